//! A change and a product beside plain sums.

use super::*;
use crate::random::Random;
use crate::threads::with_threads;

fn normal(count: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed, 0);
    (0..count).map(|_| random.normal()).collect()
}

/// From the strip that holds `first` on: rows of zeros above `first` and below `n`, padded as the matrix is.
fn side<T: Real + Lanes>(n: usize, first: usize, seed: u64) -> Aligned<T> {
    let above = first - start(first);
    let mut rows = Aligned::zeros((n.next_multiple_of(BLOCK) - start(first)) * SIDE);
    let values = normal((n - first) * SIDE, seed);
    for (to, from) in rows[above * SIDE..].iter_mut().zip(values) {
        *to = T::from(from).unwrap();
    }
    rows
}

fn wide<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64().unwrap()).collect()
}

/// Entries of a random symmetric matrix.
fn entry(values: &[f64], n: usize, row: usize, column: usize) -> f64 {
    values[row.min(column) * n + row.max(column)]
}

fn stored<T: Real + Lanes>(values: &[f64], n: usize) -> Symmetric<T> {
    Symmetric::new(n, |row, line| {
        for (to, column) in line.iter_mut().zip(row / STRIP * STRIP..) {
            *to = T::from(entry(values, n, row, column)).unwrap();
        }
    })
}

fn agrees<T: Real + Lanes>(n: usize, first: usize, tolerance: f64) {
    let values = normal(n * n, 1);
    let mut s = stored::<T>(&values, n);
    let (v, x, y) = (
        side::<T>(n, first, 2),
        side::<T>(n, first, 3),
        side::<T>(n, first, 4),
    );
    let (v_wide, x_wide, y_wide) = (wide(&v), wide(&x), wide(&y));
    let change = Change::new(start(first), v, x);
    let product = s.change_and_multiply(first, Some(&change), &y);
    let changed = |row: usize, column: usize| {
        let (i, j) = (row - start(first), column - start(first));
        let parts = (0..SIDE).map(|k| {
            v_wide[i * SIDE + k] * x_wide[j * SIDE + k]
                + x_wide[i * SIDE + k] * v_wide[j * SIDE + k]
        });
        entry(&values, n, row, column) - parts.sum::<f64>()
    };
    for row in first..n {
        let line: Vec<f64> = (first..n).map(|column| changed(row, column)).collect();
        for (found, wanted) in s.row(row).iter().zip(&line[row - first..]) {
            assert!((found.to_f64().unwrap() - wanted).abs() < 100.0 * tolerance);
        }
        for k in 0..SIDE {
            let column = y_wide[(first - start(first)) * SIDE + k..]
                .iter()
                .step_by(SIDE);
            let wanted: f64 = line.iter().zip(column).map(|(a, b)| a * b).sum();
            let found = product[(row - start(first)) * SIDE + k].to_f64().unwrap();
            assert!(
                (found - wanted).abs() < 1e3 * tolerance,
                "n = {n}, ({row}, {k}): {found} {wanted}"
            );
        }
    }
}

#[test]
fn change_and_product_equal_plain_sums() {
    for (n, first) in [
        (1, 0),
        (17, 16),
        (33, 0),
        (100, 16),
        (130, 80),
        (600, 48),
        (1100, 16),
    ] {
        agrees::<f64>(n, first, 1e-13);
        agrees::<f32>(n, first, 1e-5);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (n, first) = (LONG + 100, 32);
    let values = normal(n * n, 7);
    let (change, y) = (
        Change::new(start(first), side(n, first, 2), side(n, first, 3)),
        side(n, first, 4),
    );
    let run = |threads| {
        let mut s = stored::<f32>(&values, n);
        with_threads(Some(threads), || {
            s.change_and_multiply(first, Some(&change), &y).to_vec()
        })
    };
    assert_eq!(run(1), run(3));
}
