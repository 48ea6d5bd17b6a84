//! Optimality on the support, the pattern, interruption and bits, without any reference solver.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Layer, Workers, admm, lstsq, output_error, sparsegpt};
use crate::Error;
use crate::linalg::values::scale;
use crate::nm::{Pattern, check::check_pattern};

const DAMPING: f64 = 0.1;

fn never() -> bool {
    false
}

fn workers(threads: Option<usize>) -> Workers<'static> {
    Workers::new(threads, &never).unwrap()
}

/// Weights (rows x columns) and the moments of 3 x columns correlated inputs.
fn problem(rows: usize, columns: usize, seed: u64) -> (Vec<f32>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let weight = (0..rows * columns)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let mut gram = vec![0.0; columns * columns];
    for _ in 0..3 * columns {
        let common: f64 = rng.random_range(-1.0..1.0);
        let x: Vec<f64> = (0..columns)
            .map(|j| (common + rng.random_range(-1.0..1.0)) * (1.0 + j as f64 / 8.0))
            .collect();
        for i in 0..columns {
            for j in 0..columns {
                gram[i * columns + j] += x[i] * x[j] / (3 * columns) as f64;
            }
        }
    }
    (weight, gram)
}

/// Largest |(W' - W)(H + lambda I)| on the support, relative to the largest |W (H + lambda I)|.
fn slope(layer: &Layer, pruned: &[f32], mask: &[bool]) -> f64 {
    let n = layer.columns;
    let mean = (0..n).map(|j| layer.gram[j * (n + 1)]).sum::<f64>() / n as f64;
    let gradient = |row: &[f64], j: usize| -> f64 {
        let along: f64 = (0..n).map(|i| row[i] * layer.gram[i * n + j]).sum();
        along + layer.damping * mean * row[j]
    };
    let (mut worst, mut scale) = (0.0f64, 0.0f64);
    for ((w, p), kept) in layer
        .weight
        .chunks(n)
        .zip(pruned.chunks(n))
        .zip(mask.chunks(n))
    {
        let full: Vec<f64> = w.iter().map(|&v| f64::from(v)).collect();
        let moved: Vec<f64> = full.iter().zip(p).map(|(w, &p)| f64::from(p) - w).collect();
        for (j, &kept) in kept.iter().enumerate() {
            scale = scale.max(gradient(&full, j).abs());
            if kept {
                worst = worst.max(gradient(&moved, j).abs());
            }
        }
    }
    worst / scale
}

fn layer<'a>(weight: &'a [f32], gram: &'a [f64], columns: usize) -> Layer<'a> {
    Layer {
        weight,
        gram,
        columns,
        damping: DAMPING,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn lstsq_leaves_no_slope_on_the_support(rows in 1usize..6, columns in 1usize..20, seed: u64) {
        let (weight, gram) = problem(rows, columns, seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 1);
        let mask: Vec<bool> = weight.iter().map(|_| rng.random_bool(0.6)).collect();
        let layer = layer(&weight, &gram, columns);
        let pruned = lstsq(&layer, &mask, 200, &workers(None)).unwrap();
        prop_assert!(slope(&layer, &pruned, &mask) < 1e-4);
        prop_assert!(pruned.iter().zip(&mask).all(|(p, &kept)| kept || p.to_bits() == 0));
    }

    #[test]
    fn admm_keeps_to_the_pattern_and_is_optimal_on_its_support(
        rows in 1usize..6, groups in 1usize..5, (keep, group) in (1usize..4, 4usize..9), seed: u64,
    ) {
        let columns = groups * group;
        let (weight, gram) = problem(rows, columns, seed);
        let (layer, pattern) = (layer(&weight, &gram, columns), Pattern::new(keep, group).unwrap());
        let pruned = admm(&layer, pattern, 40, &workers(None)).unwrap();
        let mask: Vec<bool> = pruned.iter().map(|&p| p != 0.0).collect();
        check_pattern(rows, columns, pattern, "pruned", |r, c| mask[r * columns + c]).unwrap();
        prop_assert!(slope(&layer, &pruned, &mask) < 1e-3);
    }

    #[test]
    fn refitting_the_mask_of_sparsegpt_lowers_its_error(rows in 1usize..6, groups in 2usize..5, seed: u64) {
        let columns = 4 * groups;
        let (weight, mut gram) = problem(rows, columns, seed);
        let mean = (0..columns).map(|j| gram[j * (columns + 1)]).sum::<f64>() / columns as f64;
        (0..columns).for_each(|j| gram[j * (columns + 1)] += DAMPING * mean);
        let layer = Layer { damping: 0.0, ..layer(&weight, &gram, columns) };
        let swept = sparsegpt(&layer, Pattern::new(2, 4).unwrap(), None, &workers(None)).unwrap();
        let mask: Vec<bool> = swept.iter().map(|&p| p != 0.0).collect();
        let fitted = lstsq(&layer, &mask, 200, &workers(None)).unwrap();
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
        let error = |p: &[f32]| output_error(&wide(&weight), &wide(p), &gram, columns, &workers(None)).unwrap();
        prop_assert!(error(&fitted) <= error(&swept) * (1.0 + 1e-5));
    }
}

#[test]
fn the_output_error_is_the_same_for_weights_and_moments_of_any_size() {
    let (weight, gram) = problem(3, 8, 2);
    let weight: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    let pruned: Vec<f64> = weight.iter().map(|w| w.max(0.0)).collect();
    let error = |of_weights: i32, of_gram: i32| {
        let scaled = |values: &[f64], power: i32| -> Vec<f64> {
            values.iter().map(|&v| scale(v, power)).collect()
        };
        let (weight, pruned) = (scaled(&weight, of_weights), scaled(&pruned, of_weights));
        output_error(&weight, &pruned, &scaled(&gram, of_gram), 8, &workers(None)).unwrap()
    };
    let wanted = error(0, 0).to_bits();
    for powers in [(-560, 0), (560, 0), (0, 1000), (1000, 1000), (-900, -900)] {
        assert_eq!(error(powers.0, powers.1).to_bits(), wanted, "{powers:?}");
    }
    let largest = [f64::MAX, 1.0];
    let turned = output_error(
        &largest,
        &[-f64::MAX, 1.0],
        &[1.0, 0.0, 0.0, 1.0],
        2,
        &workers(None),
    );
    assert!((turned.unwrap() - 4.0).abs() < 1e-12);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (weight, gram) = problem(150, 40, 7);
    let (layer, pattern) = (layer(&weight, &gram, 40), Pattern::new(2, 4).unwrap());
    let run = |threads| {
        let workers = workers(threads);
        let pruned = admm(&layer, pattern, 20, &workers).unwrap();
        (pruned, sparsegpt(&layer, pattern, None, &workers).unwrap())
    };
    assert_eq!(run(Some(1)), run(Some(3)));
    assert_eq!(run(Some(1)), run(None));
}

#[test]
fn a_stop_ends_every_solver() {
    let (weight, gram) = problem(2, 8, 1);
    let (layer, pattern) = (layer(&weight, &gram, 8), Pattern::new(2, 4).unwrap());
    let always = || true;
    let workers = Workers::new(None, &always).unwrap();
    assert_eq!(admm(&layer, pattern, 9, &workers), Err(Error::Interrupted));
    assert_eq!(
        sparsegpt(&layer, pattern, None, &workers),
        Err(Error::Interrupted)
    );
    assert_eq!(
        lstsq(&layer, &[true; 16], 9, &workers),
        Err(Error::Interrupted)
    );
}

#[test]
fn a_compensated_weight_beyond_float32_is_refused() {
    let (weight, gram) = ([3e38, 3e38], [1.0, 0.9, 0.9, 1.0]);
    let layer = layer(&weight, &gram, 2);
    let (pattern, workers) = (Pattern::new(1, 2).unwrap(), workers(None));
    for found in [
        lstsq(&layer, &[true, false], 9, &workers),
        admm(&layer, pattern, 9, &workers),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.starts_with("compensated weight: entry (0, "));
        assert!(message.ends_with("is inf, only finite values are accepted"));
    }
}

#[test]
fn unfit_sizes_are_named() {
    let (weight, gram) = problem(2, 8, 1);
    let workers = workers(None);
    let message = |layer: &Layer, mask: &[bool]| {
        lstsq(layer, mask, 9, &workers).map_err(|error| error.to_string())
    };
    assert_eq!(
        message(&layer(&weight[..15], &gram, 8), &[true; 15]),
        Err("weight: number of entries: 15 is not a positive multiple of columns = 8".to_owned())
    );
    assert_eq!(
        message(&layer(&weight, &gram[..9], 8), &[true; 16]),
        Err(
            "gram: number of entries: 9 is not 8 x 8, one row and column per column of weight"
                .to_owned()
        )
    );
    assert_eq!(
        message(&layer(&weight, &gram, 8), &[true; 9]),
        Err("mask: 9 is not 16 entries, one per weight".to_owned())
    );
}
