//! Both stages beside faer's eigenvalues.

use crate::linalg::band;
use crate::linalg::dense::{self, Real};
use crate::linalg::symmetric::{STRIP, Symmetric};
use crate::linalg::tridiagonal;
use crate::random::Random;
use crate::threads::with_threads;
use crate::vector::register::Lanes;

/// The upper half of a whole row-major matrix.
fn stored<T: Real + Lanes>(a: &[f64], n: usize) -> Symmetric<T> {
    Symmetric::new(n, |row, line| {
        let from = &a[row * n + row / STRIP * STRIP..(row + 1) * n];
        for (to, v) in line.iter_mut().zip(from) {
            *to = T::from(*v).unwrap();
        }
    })
}

fn two_stages<T: Real + Lanes>(a: &[f64], n: usize) -> Vec<f64> {
    let (diagonal, beside) = band::reduce(stored::<T>(a, n)).into_tridiagonal();
    tridiagonal::eigenvalues(&diagonal, &beside, 53)
}

fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut source = Random::new(seed, 0);
    let mut a = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let value = source.normal();
            a[i * n + j] = value;
            a[j * n + i] = value;
        }
    }
    a
}

fn check(a: &[f64], n: usize) {
    let exact = dense::eigh(a, n).unwrap().0;
    let scale = exact
        .iter()
        .fold(f64::MIN_POSITIVE, |top, v| top.max(v.abs()));
    let worst = |found: &[f64]| {
        let differences = found.iter().zip(&exact).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f64::max) / scale
    };
    assert_eq!(exact.len(), n);
    assert!(worst(&two_stages::<f64>(a, n)) < 1e-13, "float64, n = {n}");
    assert!(worst(&two_stages::<f32>(a, n)) < 2e-6, "float32, n = {n}");
}

#[test]
fn eigenvalues_are_kept_at_every_size() {
    for n in (1..=70).chain([95, 96, 97, 127, 128, 129, 200, 257]) {
        check(&random(n, n as u64), n);
    }
}

#[test]
fn degenerate_matrices_are_no_exception() {
    let n = 100;
    check(&vec![0.0; n * n], n);
    check(&vec![1.0; n * n], n);
    let mut diagonal = vec![0.0; n * n];
    (0..n).for_each(|i| diagonal[i * (n + 1)] = i as f64);
    check(&diagonal, n);
    // Rank three, and a block of zeros.
    let rows = random(n, 5);
    let product = |i: usize, j: usize| {
        (0..3)
            .map(|k| rows[k * n + i] * rows[k * n + j])
            .sum::<f64>()
    };
    check(
        &(0..n * n)
            .map(|at| product(at / n, at % n))
            .collect::<Vec<_>>(),
        n,
    );
    let mut half = random(n, 6);
    for (at, value) in half.iter_mut().enumerate() {
        if at / n >= 40 || at % n >= 40 {
            *value = 0.0;
        }
    }
    check(&half, n);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (n, a) = (1100, random(1100, 9)); // above LONG
    let run = |threads| with_threads(Some(threads), || two_stages::<f32>(&a, n));
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}
