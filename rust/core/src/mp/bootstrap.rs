//! Spectra of pure noise without dense matrices.

use rayon::prelude::*;

use crate::linalg::tridiagonal;
use crate::mp::gof;
use crate::mp::law::Law;
use crate::random::Random;

/// Squared singular values, ascending, of a (p x n) matrix of independent standard normal entries, p <= n.
///
/// The bidiagonal model: diagonal chi(n), chi(n-1), ..., chi(n-p+1), beside it chi(p-1), ..., chi(1).
///
/// # References
/// I. Dumitriu, A. Edelman, "Matrix models for beta ensembles", 2002.
#[must_use]
pub fn null_squares(p: usize, n: usize, seed: u64, draw: u64) -> Vec<f64> {
    let mut random = Random::new(seed, draw);
    let on: Vec<f64> = (0..p).map(|i| random.chi_square(n - i)).collect();
    let beside: Vec<f64> = (1..p).map(|i| random.chi_square(p - i)).collect();
    let diagonal: Vec<f64> = (0..p)
        .map(|i| on[i] + if i > 0 { beside[i - 1] } else { 0.0 })
        .collect();
    let off: Vec<f64> = (1..p).map(|i| (on[i - 1] * beside[i - 1]).sqrt()).collect();
    tridiagonal::eigenvalues(&diagonal, &off, 40)
        .into_iter()
        .map(|v| v.max(0.0))
        .collect()
}

/// Simulated null of a (p x n) bulk of unit variance.
#[derive(Debug, Clone)]
pub struct Null {
    /// Mean-square estimates of the variance, ascending.
    pub sigma_sq: Vec<f64>,
    /// Kolmogorov-Smirnov distances, ascending.
    pub ks: Vec<f64>,
}

/// `draws` spectra; draw `i` uses stream `i` of `seed`, so the result does not depend on threads.
#[must_use]
pub fn null(p: usize, n: usize, draws: usize, seed: u64) -> Null {
    let law = Law::of(p, n);
    let pairs: Vec<(f64, f64)> = (0..draws)
        .into_par_iter()
        .map(|draw| {
            let squares = null_squares(p, n, seed, draw as u64);
            let sigma_sq = squares.iter().sum::<f64>() / (p as f64 * n as f64);
            let expected: Vec<f64> = squares
                .iter()
                .map(|v| p as f64 * law.cdf(v / (sigma_sq * n as f64)))
                .collect();
            (sigma_sq, gof::count_distance(&expected) / p as f64)
        })
        .collect();
    let (mut sigma_sq, mut ks): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    sigma_sq.sort_by(f64::total_cmp);
    ks.sort_by(f64::total_cmp);
    Null { sigma_sq, ks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::values::{Precision, singular_values};
    use crate::threads::with_threads;

    #[test]
    fn the_bidiagonal_model_has_the_mean_spectrum_of_dense_noise() {
        let (p, n, draws) = (12, 30, 400);
        let mut model = vec![0.0; p];
        let mut dense = vec![0.0; p];
        let mut random = Random::new(3, 0);
        for draw in 0..draws {
            for (sum, v) in model.iter_mut().zip(null_squares(p, n, 5, draw)) {
                *sum += v;
            }
            let w: Vec<f64> = (0..p * n).map(|_| random.normal()).collect();
            let s = singular_values(&w, (p, n), Precision::Full).unwrap();
            for (sum, v) in dense.iter_mut().zip(s.iter().rev()) {
                *sum += v * v;
            }
        }
        for (a, b) in model.iter().zip(&dense) {
            assert!((a / b - 1.0).abs() < 0.06, "{a} {b}");
        }
    }

    #[test]
    fn the_simulation_does_not_depend_on_threads() {
        let run = |threads| with_threads(Some(threads), || null(30, 50, 9, 4).ks);
        assert_eq!(run(1), run(3));
    }
}
