//! Triplets beside the whole spectrum.

use super::*;
use crate::linalg::values::{Precision, singular_values};
use crate::threads::Threads;

const ALL: Threads = Threads::ALL;

fn request(k: usize, tolerance: f64, fast: bool) -> Request {
    Request {
        k,
        tolerance,
        fast,
        seed: 3,
    }
}

/// Noise plus spikes that fall off geometrically.
fn matrix(rows: usize, columns: usize, spikes: usize) -> Vec<f64> {
    let mut random = Random::new(9, 0);
    let mut w: Vec<f64> = (0..rows * columns).map(|_| random.normal()).collect();
    for spike in 0..spikes {
        let strength = 8.0 * 0.8f64.powi(i32::try_from(spike).unwrap());
        let u: Vec<f64> = (0..rows).map(|_| random.normal()).collect();
        let v: Vec<f64> = (0..columns).map(|_| random.normal()).collect();
        for i in 0..rows {
            for j in 0..columns {
                w[i * columns + j] += strength * u[i] * v[j];
            }
        }
    }
    w
}

fn orthonormal(rows: &[f64], length: usize) -> bool {
    rows.chunks_exact(length).enumerate().all(|(i, a)| {
        rows.chunks_exact(length).enumerate().all(|(j, b)| {
            let product: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
            (product - f64::from(u8::from(i == j))).abs() < 1e-10
        })
    })
}

#[test]
fn values_equal_those_of_the_whole_spectrum() {
    for (rows, columns) in [(200, 500), (500, 200), (300, 300), (60, 90)] {
        let w = matrix(rows, columns, 6);
        let all = singular_values(&w, (rows, columns), Precision::Full).unwrap();
        let found = top(
            &w,
            (rows, columns),
            &request(20, 1e-10, false),
            &ALL,
            &|| false,
        )
        .unwrap();
        for (a, b) in found.values.iter().zip(&all) {
            assert!(
                (a - b).abs() < 1e-10 * all[0],
                "{rows} x {columns}: {a} {b}"
            );
        }
        assert!(found.residuals.iter().all(|r| *r <= 1e-10));
        assert!(orthonormal(&found.left, rows) && orthonormal(&found.right, columns));
    }
}

#[test]
fn the_fast_method_states_its_error_and_finds_the_spikes() {
    let w = matrix(300, 400, 6);
    let all = singular_values(&w, (300, 400), Precision::Full).unwrap();
    let found = top(&w, (300, 400), &request(6, 1e-6, true), &ALL, &|| false).unwrap();
    for (index, value) in found.values.iter().enumerate() {
        let error = (value - all[index]).abs() / all[0];
        assert!(
            error <= found.residuals[index] && error < 1e-2,
            "{index}: {error}"
        );
    }
}

#[test]
fn a_matrix_of_low_rank_gives_orthonormal_vectors_beyond_its_rank() {
    let (rows, columns) = (200, 260);
    let one = matrix(1, columns, 0);
    let w: Vec<f64> = (0..rows).flat_map(|_| one.clone()).collect();
    let found = top(&w, (rows, columns), &request(5, 1e-6, false), &ALL, &|| {
        false
    })
    .unwrap();
    assert!(found.values[1] < 1e-7 * found.values[0]);
    assert!(orthonormal(&found.left, rows) && orthonormal(&found.right, columns));
}

#[test]
fn float32_products_reach_their_tolerance_and_float64_takes_over_below() {
    let w: Vec<f32> = matrix(300, 420, 5).iter().map(|v| *v as f32).collect();
    let wide: Vec<f64> = w.iter().map(|v| f64::from(*v)).collect();
    let exact = top(&wide, (300, 420), &request(12, 1e-12, false), &ALL, &|| {
        false
    })
    .unwrap();
    for tolerance in [1e-3, SINGLE, 1e-9] {
        let found = top(
            &w,
            (300, 420),
            &request(12, tolerance, false),
            &ALL,
            &|| false,
        )
        .unwrap();
        for (index, value) in found.values.iter().enumerate() {
            // The error of a value is at most its residual; of a well separated one, its square.
            let error = (value - exact.values[index]).abs() / exact.values[0];
            assert!(error <= found.residuals[index] + 1e-12);
            assert!(found.residuals[index] <= tolerance);
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let w = matrix(300, 420, 3);
    let run = |count| {
        let threads = Threads::new(Some(count)).unwrap();
        let found = top(&w, (300, 420), &request(12, 1e-8, false), &threads, &|| {
            false
        });
        found.unwrap().left
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_stop_interrupts() {
    let w = matrix(300, 420, 0);
    let stopped = top(&w, (300, 420), &request(12, 1e-8, false), &ALL, &|| true);
    assert_eq!(stopped.unwrap_err(), Error::Interrupted);
}

#[test]
fn k_out_of_range_is_refused() {
    for k in [0, 4] {
        let error = top(&[1.0; 12], (3, 4), &request(k, 1e-6, false), &ALL, &|| {
            false
        })
        .unwrap_err();
        assert!(matches!(error, Error::Value { name: "k", .. }));
    }
}
