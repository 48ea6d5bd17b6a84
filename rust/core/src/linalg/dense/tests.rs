//! Products and factors against plain loops.

use super::*;

/// A row-major matrix whose entries look random.
fn matrix(rows: usize, columns: usize) -> Vec<f64> {
    (0..rows * columns)
        .map(|k| ((k * k + 3 * k + 1) as f64 * 0.618).fract() - 0.5)
        .collect()
}

fn product(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let entry = |at: usize| (0..k).map(|t| a[at / n * k + t] * b[t * n + at % n]).sum();
    (0..m * n).map(entry).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f64::max)
}

fn transposed(a: &[f64], n: usize) -> Vec<f64> {
    (0..n * n).map(|at| a[at % n * n + at / n]).collect()
}

#[test]
fn cholesky_reconstructs_and_its_factor_inverts() {
    for n in [1, 2, 7, 64, 65, 130] {
        let root = matrix(n, n);
        let mut a = product(&root, &transposed(&root, n), (n, n, n));
        (0..n).for_each(|j| a[j * (n + 1)] += 1.0);
        let mut factor = a.clone();
        cholesky(&mut factor, n).unwrap();
        let again = product(&factor, &transposed(&factor, n), (n, n, n));
        assert!(largest_difference(&a, &again) < 1e-12 * n as f64, "n = {n}");
        let mut unit = product(&factor, &invert_lower(&factor, n), (n, n, n));
        (0..n).for_each(|j| unit[j * (n + 1)] -= 1.0);
        assert!(
            largest_difference(&unit, &vec![0.0; n * n]) < 1e-12 * n as f64,
            "n = {n}"
        );
    }
}

#[test]
fn the_inverse_of_a_definite_matrix_is_symmetric_and_undoes_it() {
    for n in [1, 2, 7, 64, 65, 130] {
        let root = matrix(n, n);
        let mut a = product(&root, &transposed(&root, n), (n, n, n));
        (0..n).for_each(|j| a[j * (n + 1)] += 1.0);
        let mut inverse = a.clone();
        invert_definite(&mut inverse, n).unwrap();
        assert_eq!(inverse, transposed(&inverse, n));
        let mut unit = product(&a, &inverse, (n, n, n));
        (0..n).for_each(|j| unit[j * (n + 1)] -= 1.0);
        assert!(
            largest_difference(&unit, &vec![0.0; n * n]) < 1e-11 * n as f64,
            "n = {n}"
        );
    }
}

#[test]
fn an_indefinite_matrix_has_neither_factor_nor_inverse() {
    assert_eq!(cholesky(&mut [1.0, 2.0, 2.0, 1.0], 2), Err(1));
    assert_eq!(invert_definite(&mut [1.0, 2.0, 2.0, 1.0], 2), Err(1));
}

#[test]
fn subtracting_a_product_touches_its_rectangle_alone() {
    for (m, k, n, stride) in [
        (1, 1, 1, 1),
        (3, 2, 5, 9),
        (64, 128, 100, 384),
        (7, 126, 130, 131),
    ] {
        let (a, b, c) = (matrix(m, k), matrix(k, n), matrix(m, stride));
        let wide: Vec<f64> = (0..k * stride)
            .map(|at| {
                if at % stride < n {
                    b[at / stride * n + at % stride]
                } else {
                    f64::NAN
                }
            })
            .collect();
        let mut found = c.clone();
        subtract_product((&mut found, stride), (&a, k), (&wide, stride), (m, k, n));
        let expected = product(&a, &b, (m, k, n));
        for (at, (found, before)) in found.iter().zip(&c).enumerate() {
            let (row, column) = (at / stride, at % stride);
            let change = if column < n {
                expected[row * n + column]
            } else {
                0.0
            };
            assert!((found - (before - change)).abs() < 1e-12 * k as f64);
        }
    }
}
