//! Edges of simulated spectra whose truth is known.

use super::*;
use crate::linalg::values::{Precision, singular_values};
use crate::mp::bootstrap::null_squares;
use crate::mp::spike::Noise;
use crate::random::Random;

const QUESTION: Question = Question {
    alpha: 0.01,
    model: Model::Auto,
    most: None,
    draws: 0,
    seed: 0,
    kurtosis: Kurtosis {
        all: 0.0,
        noise: 0.0,
    },
    eps: 1e-7,
};

/// Singular values of noise beside `count` spikes of strength 1.5 + 10 / sqrt(i), in critical ones, at their mean places.
fn values(p: usize, n: usize, count: usize, draw: u64) -> Vec<f64> {
    let noise = Noise {
        sigma_sq: 1.0,
        p: p as f64,
        n: n as f64,
    };
    let strength = |i: usize| 1.5 + 10.0 / (i as f64).sqrt();
    let mut squares = null_squares(p - count, n - count, 23, draw);
    squares.extend((1..=count).map(|i| noise.sample(strength(i).powi(2) * noise.critical())));
    squares.sort_by(|a, b| b.total_cmp(a));
    squares.into_iter().map(f64::sqrt).collect()
}

#[test]
fn noise_that_is_rejected_by_chance_keeps_its_spikes() {
    let (p, n, count) = (64, 256, 13);
    let mut rejected = 0;
    for draw in 0..1500 {
        let found = find(&values(p, n, count, draw), n, &QUESTION).unwrap();
        rejected += usize::from(!found.gof.accepted);
        assert!(
            found.n_spikes.abs_diff(count) <= 2,
            "draw {draw}: {} spikes, p-value {}",
            found.n_spikes,
            found.gof.p_value
        );
    }
    assert!(rejected > 0, "no draw was rejected");
}

/// A (p x n) matrix of noise whose rows have standard deviations from `low` to 1.7, drawn uniformly.
fn unlike_rows((p, n): (usize, usize), low: f64, draw: u64) -> Vec<f64> {
    let mut random = Random::new(31, draw);
    let scales: Vec<f64> = (0..p)
        .map(|_| low + (1.7 - low) * random.uniform())
        .collect();
    let entries = (0..p * n).map(|i| scales[i / n] * random.normal());
    entries.collect()
}

#[test]
fn rows_of_unlike_variance_are_no_spikes() {
    for (shape, low) in [((64, 256), 0.3), ((128, 128), 0.3), ((128, 256), 0.1)] {
        let mut wrong = 0;
        for draw in 0..60 {
            let w = unlike_rows(shape, low, draw);
            let s = singular_values(&w, shape, Precision::Full).unwrap();
            let found = find(&s, shape.1, &QUESTION).unwrap();
            wrong += usize::from(found.n_spikes > 0);
        }
        // 1 % and less in 600 draws of each; 25 to 50 % where the law of a single variance had the last word.
        assert!(wrong <= 3, "{wrong} of 60 at {shape:?}");
    }
}

#[test]
fn a_row_of_spikes_above_a_gap_is_counted_in_noise_of_unlike_rows() {
    for (shape, count) in [((200, 400), 40), ((200, 200), 30), ((128, 512), 20)] {
        let (p, n) = shape;
        let s = singular_values(&unlike_rows(shape, 0.3, 5), shape, Precision::Full).unwrap();
        // What noise this weak beside them makes of the spikes is nothing beside their distances.
        let top = 10.0 * s[0];
        let step = top / (2.0 * count as f64);
        let mut values: Vec<f64> = (0..count).map(|i| top - step * i as f64).collect();
        values.extend(&s[..p - count]);
        let found = find(&values, n, &QUESTION).unwrap();
        assert_eq!(found.n_spikes, count, "{shape:?}");
    }
}

#[test]
fn a_spike_far_above_free_noise_has_the_strength_of_its_value() {
    let (p, n, count) = (200, 200, 20);
    let s = singular_values(&unlike_rows((p, n), 0.3, 2), (p, n), Precision::Full).unwrap();
    let mut values: Vec<f64> = (1..=count)
        .rev()
        .map(|i| 200.0 * s[0] * f64::from(i))
        .collect();
    values.extend(&s[..p - values.len()]);
    let found = find(
        &values,
        n,
        &Question {
            model: Model::Free,
            ..QUESTION
        },
    )
    .unwrap();
    let spike = found.spikes[0];
    assert_eq!(found.spikes.len(), values.len() - 180);
    assert!((spike.strength / spike.value - 1.0).abs() < 1e-3);
    assert!(spike.short * spike.long > 0.999);
}

#[test]
fn noise_beside_one_value_a_billion_times_as_large_keeps_its_variance() {
    let (p, n) = (60, 90);
    let mut values: Vec<f64> = null_squares(p - 1, n - 1, 3, 0)
        .into_iter()
        .map(f64::sqrt)
        .rev()
        .collect();
    values.insert(0, 1e11);
    let found = find(
        &values,
        n,
        &Question {
            eps: f64::EPSILON,
            ..QUESTION
        },
    )
    .unwrap();
    assert_eq!(found.n_spikes, 1);
    assert!((found.sigma_sq - 1.0).abs() < 0.06, "{}", found.sigma_sq);
}

#[test]
fn values_that_are_rounding_errors_from_the_middle_on_are_no_noise() {
    let mut values: Vec<f64> = (0..30).map(|i| 20.0 - f64::from(i) / 3.0).collect();
    values.extend([1e-16; 30]);
    let found = find(
        &values,
        90,
        &Question {
            eps: f64::EPSILON,
            ..QUESTION
        },
    )
    .unwrap();
    assert_eq!((found.n_spikes, found.sigma_sq, found.edge), (30, 0.0, 0.0));
}

#[test]
fn no_more_spikes_are_found_than_asked_for() {
    for most in 0..3 {
        let question = Question {
            most: Some(most),
            model: Model::Mp,
            ..QUESTION
        };
        let found = find(&values(64, 256, 6, 0), 256, &question).unwrap();
        assert_eq!((found.n_spikes, found.spikes.len()), (most, most));
    }
}

#[test]
fn a_level_without_a_quantile_is_refused() {
    for alpha in [0.0, 1e-17, 0.6, f64::NAN] {
        let error = find(&values(64, 256, 1, 0), 256, &Question { alpha, ..QUESTION }).unwrap_err();
        assert!(error.to_string().starts_with("alpha: "), "{error}");
    }
}
