//! The k largest singular triplets of a dense matrix, with the residuals they really have.

use crate::linalg::dense::{self, Real};
use crate::linalg::krylov::{Operator, Space};
use crate::linalg::orthogonal::orthonormalise;
use crate::linalg::values::scale;
use crate::random::Random;
use crate::{Error, Result};

/// Leading singular triplets of a (rows x columns) matrix.
#[derive(Debug, Clone)]
pub struct Triplets {
    /// Left vectors, one per row (k x rows).
    pub left: Vec<f64>,
    /// Values, descending.
    pub values: Vec<f64>,
    /// Right vectors, one per row (k x columns).
    pub right: Vec<f64>,
    /// max(||W v - s u||, ||W' u - s v||) / s1 of each, measured.
    pub residuals: Vec<f64>,
    /// Products of W or W' with one vector.
    pub products: usize,
}

/// What [`top`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Number of triplets.
    pub k: usize,
    /// Residual, relative to the largest value, at which the iteration stops.
    pub tolerance: f64,
    /// The randomised range finder with two power iterations instead of the iteration.
    pub fast: bool,
    /// Seed of the start block.
    pub seed: u64,
}

/// Vectors multiplied at a time.
const BLOCK: usize = 16;
/// Smallest tolerance that products in float32 are tried for: their rounding leaves residuals of 1 to 3e-7.
pub const SINGLE: f64 = 1e-6;
/// The iteration gives up after so many blocks, or so many checks in a row that did not lower the residual by a tenth.
const MOST: usize = 4000;
const PATIENCE: usize = 20;

/// The `k` largest singular triplets of the row-major (rows x columns) matrix `w`.
///
/// Block Lanczos on the Gram operator of the shorter side (never formed), full reorthogonalisation, thick restarts;
/// at the end a Rayleigh-Ritz step on the matrix itself. Float32 matrices are multiplied in float32 where that can reach
/// the tolerance (from [`SINGLE`] on; if it did not, everything is done again in float64), and the Rayleigh-Ritz step and
/// the residuals always come from float64 products. For k > short/4 or short <= 128 a full decomposition is
/// cheaper and is what happens. `stop` is asked once per block, on the calling thread.
///
/// # Errors
/// [`Error::Value`] for k outside 1..=min(rows, columns); [`Error::NotFinite`]; [`Error::Convergence`] if the residuals
/// do not reach `tolerance` (not in fast mode, which takes what it gets); [`Error::Interrupted`].
///
/// # References
/// T. Chen, E. N. Epperly, R. A. Meyer, C. Musco, A. Rao, "Does block size matter in randomized block Krylov low-rank
/// approximation?", 2025; K. Wu, H. Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", 2000;
/// N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", 2011 (fast).
pub fn top<T: Real>(
    w: &[T],
    shape: (usize, usize),
    request: &Request,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Triplets> {
    let operator = Operator::new(w, shape)?;
    let short = operator.short();
    if request.k == 0 || request.k > short {
        return Err(Error::Value {
            name: "k",
            got: request.k as f64,
            wanted: "between 1 and the shorter side of W",
        });
    }
    if 4 * request.k > short || short <= 128 {
        return full(&operator.exact(), request.k);
    }
    let exact = operator.exact();
    if request.fast {
        let (block, products) = range(&operator, request);
        return finish(&exact, &block, request.k, products);
    }
    let single = T::epsilon().to_f64() > Some(1e-10);
    if single && request.tolerance >= SINGLE {
        match attempt(&operator, &exact, request, stop) {
            Err(Error::Convergence { .. }) => {}
            other => return other,
        }
    }
    attempt(&exact, &exact, request, stop)
}

fn attempt<T: Real>(
    operator: &Operator<'_, T>,
    exact: &Operator<'_, T>,
    request: &Request,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Triplets> {
    let (block, products) = iterate(operator, request, stop)?;
    let found = finish(exact, &block, request.k, products)?;
    let worst = found.residuals.iter().copied().fold(0.0, f64::max);
    if worst > request.tolerance {
        return Err(gave_up(worst, request, found.products));
    }
    Ok(found)
}

fn gave_up(worst: f64, request: &Request, products: usize) -> Error {
    Error::Convergence {
        routine: "svd",
        detail: format!(
            "largest residual {worst:.1e} of s1 after {products} products, wanted {:.1e}",
            request.tolerance
        ),
    }
}

/// Ritz vectors on the short side, one per row, once their residuals are small.
fn iterate<T: Real>(
    operator: &Operator<'_, T>,
    request: &Request,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<(Vec<f64>, usize)> {
    let k = request.k;
    let block = BLOCK.min(operator.short() / 8).max(1);
    let ceiling = (3 * k).max(k + 12 * block).min(operator.short() - block);
    let mut space = Space::new(operator, block, request.seed);
    let mut check = (k + block).max(3 * block);
    let (mut best, mut idle) = (f64::INFINITY, 0);
    for _ in 0..MOST {
        if stop() {
            return Err(Error::Interrupted);
        }
        space.expand();
        let full = space.dimension() + block > ceiling;
        if !full && space.dimension() < check {
            continue;
        }
        check = space.dimension() + (space.dimension() / 5).max(block);
        let ritz = space.ritz()?;
        let largest = ritz.values[0].max(f64::MIN_POSITIVE);
        let worst = (0..k)
            .map(|i| ritz.residuals[i] / (ritz.values[i].max(largest * 1e-16) * largest).sqrt())
            .fold(0.0, f64::max);
        // Half the tolerance leaves room for rounding in the last step.
        if worst <= 0.5 * request.tolerance {
            return Ok((space.vectors(&ritz, k), space.products));
        }
        idle = if worst > 0.9 * best { idle + 1 } else { 0 };
        best = best.min(worst);
        if idle == PATIENCE {
            break;
        }
        if full {
            let kept = (k + (ceiling - k) / 3).min(ceiling - 2 * block).max(k);
            space.restart(&ritz, kept);
            check = kept + 4 * block;
        }
    }
    Err(gave_up(best, request, space.products))
}

/// Randomised range finder: k + 10 vectors, two power iterations.
fn range<T: Real>(operator: &Operator<'_, T>, request: &Request) -> (Vec<f64>, usize) {
    let length = operator.short();
    let count = (request.k + 10).min(length);
    let mut random = Random::new(request.seed, 0);
    let mut block: Vec<f64> = (0..count * length).map(|_| random.normal()).collect();
    for _ in 0..3 {
        orthonormalise(&mut block, length, &[], &mut random);
        block = operator.to_short(&operator.to_long(&block));
    }
    orthonormalise(&mut block, length, &[], &mut random);
    (block, 6 * count)
}

/// Rayleigh-Ritz on the matrix: X A = P diag(s) Q' for orthonormal X; triplets are (P' X, s, Q).
fn finish<T: Real>(
    operator: &Operator<'_, T>,
    x: &[f64],
    k: usize,
    products: usize,
) -> Result<Triplets> {
    let (short, long) = (operator.short(), operator.long());
    let count = x.len() / short;
    let image = operator.to_long(x);
    let small = dense::thin_svd(&image, (count, long))?;
    let turned: Vec<f64> = (0..k * count)
        .map(|i| small.left[(i % count) * count + i / count])
        .collect();
    let rotated = |block: &[f64], length: usize| {
        let mut rotated = vec![0.0; k * length];
        dense::matmul(&mut rotated, &turned, block, (k, count, length), false);
        rotated
    };
    let on_short = rotated(x, short);
    let mut on_long = vec![0.0; k * long];
    for (index, value) in on_long.iter_mut().enumerate() {
        *value = small.right[(index % long) * count + index / long];
    }
    let values = small.values[..k].to_vec();
    // P' X A is P' times the image.
    let beside_long = distances(&rotated(&image, long), &values, &on_long);
    let beside_short = distances(&operator.to_short(&on_long), &values, &on_short);
    let largest = values[0].max(f64::MIN_POSITIVE);
    let both = beside_long.iter().zip(beside_short);
    let residuals = both.map(|(a, b)| a.max(b) / largest).collect();
    let (left, right) = if operator.is_wide() {
        (on_short, on_long)
    } else {
        (on_long, on_short)
    };
    Ok(Triplets {
        left,
        values: values.iter().map(|s| scale(*s, operator.power)).collect(),
        right,
        residuals,
        products: products + count + k,
    })
}

/// ||a - s b|| for the rows of two blocks.
fn distances(images: &[f64], values: &[f64], vectors: &[f64]) -> Vec<f64> {
    let length = images.len() / values.len();
    let pairs = images
        .chunks_exact(length)
        .zip(vectors.chunks_exact(length));
    pairs
        .zip(values)
        .map(|((image, vector), s)| {
            let squares = image.iter().zip(vector).map(|(a, b)| (a - s * b).powi(2));
            squares.sum::<f64>().sqrt()
        })
        .collect()
}

/// Every triplet at once, cut to `k`.
fn full<T: Real>(operator: &Operator<'_, T>, k: usize) -> Result<Triplets> {
    let identity: Vec<f64> = (0..operator.short() * operator.short())
        .map(|i| f64::from(u8::from(i % (operator.short() + 1) == 0)))
        .collect();
    let short = operator.short();
    finish(operator, &identity, k, short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::values::{Precision, singular_values};
    use crate::threads::with_threads;

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
            let found = top(&w, (rows, columns), &request(20, 1e-10, false), &|| false).unwrap();
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
        let found = top(&w, (300, 400), &request(6, 1e-6, true), &|| false).unwrap();
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
        let found = top(&w, (rows, columns), &request(5, 1e-6, false), &|| false).unwrap();
        assert!(found.values[1] < 1e-7 * found.values[0]);
        assert!(orthonormal(&found.left, rows) && orthonormal(&found.right, columns));
    }

    #[test]
    fn float32_products_reach_their_tolerance_and_float64_takes_over_below() {
        let w: Vec<f32> = matrix(300, 420, 5).iter().map(|v| *v as f32).collect();
        let wide: Vec<f64> = w.iter().map(|v| f64::from(*v)).collect();
        let exact = top(&wide, (300, 420), &request(12, 1e-12, false), &|| false).unwrap();
        for tolerance in [1e-3, SINGLE, 1e-9] {
            let found = top(&w, (300, 420), &request(12, tolerance, false), &|| false).unwrap();
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
        let run = |threads| {
            with_threads(Some(threads), || {
                top(&w, (300, 420), &request(12, 1e-8, false), &|| false)
                    .unwrap()
                    .left
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn a_stop_interrupts() {
        let w = matrix(300, 420, 0);
        let stopped = top(&w, (300, 420), &request(12, 1e-8, false), &|| true);
        assert_eq!(stopped.unwrap_err(), Error::Interrupted);
    }

    #[test]
    fn k_out_of_range_is_refused() {
        for k in [0, 4] {
            let error = top(&[1.0; 12], (3, 4), &request(k, 1e-6, false), &|| false).unwrap_err();
            assert!(matches!(error, Error::Value { name: "k", .. }));
        }
    }
}
