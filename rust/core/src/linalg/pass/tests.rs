//! Passes beside plain sums.

use super::*;
use crate::random::Random;
use crate::threads::with_threads;

fn normal(count: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed, 0);
    (0..count).map(|_| random.normal()).collect()
}

/// X B for X (b x k) and B as a function.
fn slow(x: &[f64], k: usize, n: usize, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut product = Vec::new();
    for row in x.chunks_exact(k) {
        product.extend((0..n).map(|j| (0..k).map(|i| row[i] * b(i, j)).sum::<f64>()));
    }
    product
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    let largest = b.iter().fold(1e-300, |top: f64, v| top.max(v.abs()));
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| (a - b).abs() <= tolerance * largest)
}

#[test]
fn products_equal_plain_sums_for_any_shape() {
    for (rows, columns, block) in [
        (1, 1, 1),
        (7, 5, 3),
        (9, 300, 16),
        (300, 9, 17),
        (530, 270, 40),
    ] {
        let w = normal(rows * columns, 1);
        let single: Vec<f32> = w.iter().map(|v| *v as f32).collect();
        let rounded: Vec<f64> = single.iter().map(|v| f64::from(*v)).collect();
        let (long, short) = (normal(block * columns, 2), normal(block * rows, 3));
        let at = |w: &[f64]| {
            let t = slow(&long, columns, rows, |i, j| w[j * columns + i]);
            let s = slow(&short, rows, columns, |i, j| w[i * columns + j]);
            let both = slow(&t, rows, columns, |i, j| w[i * columns + j]);
            (t, s, both)
        };
        let (t, s, both) = at(&w);
        let pass = Pass::new(&w, columns);
        assert!(close(&pass.times_transposed::<f64>(&long), &t, 1e-13));
        assert!(close(&pass.times::<f64>(&short), &s, 1e-13));
        assert!(close(
            &pass.times_both::<f64>(&long, &mut Vec::new()),
            &both,
            1e-13
        ));
        let (t, s, both) = at(&rounded);
        let pass = Pass::new(&single, columns);
        assert!(close(&pass.times_transposed::<f64>(&long), &t, 1e-13));
        assert!(close(&pass.times::<f32>(&short), &s, 1e-5));
        assert!(close(
            &pass.times_both::<f32>(&long, &mut Vec::new()),
            &both,
            1e-5
        ));
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (w, x) = (normal(700 * 300, 4), normal(20 * 300, 5));
    let run = |threads| {
        with_threads(Some(threads), || {
            Pass::new(&w, 300).times_both::<f32>(&x, &mut Vec::new())
        })
    };
    assert_eq!(run(1), run(3));
}
