//! Noise whose variance differs by row and column: scales that even it out, and the edge such noise has.

use rayon::prelude::*;

use crate::linalg::dense::Real;
use crate::linalg::reduce;
use crate::linalg::values::{PowerOfTwo, exponent, largest_magnitude, scale};
use crate::{Error, Result};

/// Which sides are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// Every row to mean square 1.
    Rows,
    /// Every column to mean square 1.
    Columns,
    /// Both.
    Both,
}

/// W = diag(rows) Z diag(columns), where every scaled side of Z has mean square 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// One factor per row.
    pub rows: Vec<f64>,
    /// One factor per column.
    pub columns: Vec<f64>,
}

/// Sinkhorn's alternation on the squares of the row-major (rows x columns) matrix `w`, which has no zero row or column
/// (`w` is scaled by a power of two inside).
///
/// # Errors
/// [`Error::Convergence`] if 1000 rounds do not bring the rows within 1e-8 of mean square 1: the pattern of zeros does
/// not allow it.
///
/// # References
/// R. Sinkhorn, "A relationship between arbitrary positive matrices and doubly stochastic matrices", 1964;
/// B. Landa, T. Zhang, Y. Kluger, "Biwhitening reveals the rank of a count matrix", 2022.
pub fn sinkhorn<T: Real>(w: &[T], (rows, columns): (usize, usize), sides: Sides) -> Result<Scales> {
    let power = exponent(largest_magnitude(w, columns)?);
    let factor = PowerOfTwo::new(-power);
    let (mut row, mut column) = (vec![1.0; rows], vec![1.0; columns]);
    let mut off = f64::INFINITY;
    for _ in 0..1000 {
        if sides != Sides::Columns {
            let weights: Vec<f64> = column.iter().map(|c| 1.0 / c / columns as f64).collect();
            let means: Vec<f64> = w
                .par_chunks(columns)
                .map(|line| reduce::weighted_squares(line, factor, &weights))
                .collect();
            off = means
                .iter()
                .zip(&row)
                .map(|(mean, r)| (mean / r - 1.0).abs())
                .fold(0.0, f64::max);
            row = means;
        }
        if sides != Sides::Rows {
            column = column_means(w, (rows, columns), &row, factor);
        }
        let positive = |v: &f64| v.is_finite() && *v > 0.0;
        if !row.iter().all(positive) || !column.iter().all(positive) {
            break;
        }
        if sides != Sides::Both || off < 1e-8 {
            return Ok(Scales {
                rows: row.iter().map(|v| scale(v.sqrt(), power)).collect(),
                columns: column.iter().map(|v| v.sqrt()).collect(),
            });
        }
    }
    Err(Error::Convergence {
        routine: "whitening",
        detail: format!(
            "row mean squares are still off by {off:.1e}: the pattern of zeros does not allow equal ones"
        ),
    })
}

/// Mean over the rows of square / row factor, in blocks of rows added in order.
fn column_means<T: Real>(
    w: &[T],
    (rows, columns): (usize, usize),
    row: &[f64],
    factor: PowerOfTwo,
) -> Vec<f64> {
    const BLOCK: usize = 64;
    let partial: Vec<Vec<f64>> = w
        .par_chunks(BLOCK * columns)
        .zip(row.par_chunks(BLOCK))
        .map(|(lines, row)| {
            let mut sums = vec![0.0; columns];
            for (line, r) in lines.chunks_exact(columns).zip(row) {
                reduce::add_squares(&mut sums, line, factor, 1.0 / r);
            }
            sums
        })
        .collect();
    let mut means = vec![0.0; columns];
    for sums in partial {
        for (mean, sum) in means.iter_mut().zip(sums) {
            *mean += sum / rows as f64;
        }
    }
    means
}

/// Largest singular value, to leading order, of noise with variance `a[i] b[j]` at (i, j).
///
/// The resolvent of such noise is diagonal: with alpha in (0, 1 / max a) and beta in (0, 1 / max b) tied by
/// alpha A(alpha) = beta B(beta), A(x) = sum a / (1 - x a), B(x) = sum b / (1 - x b), the squared singular value is
/// A(alpha) / beta; its least value over alpha is the edge.
///
/// # References
/// R. Couillet, W. Hachem, "Analysis of the limiting spectral measure of large random matrices of the separable
/// covariance type", 2014.
#[must_use]
pub fn profile_edge(a: &[f64], b: &[f64]) -> f64 {
    let top = |v: &[f64]| v.iter().copied().fold(0.0, f64::max);
    let (high_a, high_b) = (1.0 / top(a), 1.0 / top(b));
    let sum = |v: &[f64], x: f64| v.iter().map(|t| t / (1.0 - x * t)).sum::<f64>();
    let square = |alpha: f64| {
        let target = alpha * sum(a, alpha);
        let (mut low, mut high) = (0.0, high_b);
        for _ in 0..60 {
            let beta = 0.5 * (low + high);
            if beta * sum(b, beta) < target {
                low = beta;
            } else {
                high = beta;
            }
        }
        sum(a, alpha) / (0.5 * (low + high))
    };
    // Golden section: the square falls from infinity at 0 and rises to infinity at the end.
    let ratio = 0.5 * (5f64.sqrt() - 1.0);
    let (mut low, mut high) = (0.0, high_a);
    for _ in 0..80 {
        let (left, right) = (high - ratio * (high - low), low + ratio * (high - low));
        if square(left) < square(right) {
            high = right;
        } else {
            low = left;
        }
    }
    square(0.5 * (low + high)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn one_variance_has_the_marchenko_pastur_edge() {
        let edge = profile_edge(&[2.0; 30], &[3.0; 70]);
        let exact = 6f64.sqrt() * (30f64.sqrt() + 70f64.sqrt());
        assert!((edge / exact - 1.0).abs() < 1e-9);
    }

    #[test]
    fn zero_rows_and_columns_of_the_profile_do_not_count() {
        let mut a = vec![1.0; 30];
        a.extend([0.0; 10]);
        assert!(
            (profile_edge(&a, &[1.0; 50]) / profile_edge(&[1.0; 30], &[1.0; 50]) - 1.0).abs()
                < 1e-9
        );
    }

    #[test]
    fn whitened_sides_have_mean_square_one() {
        let (rows, columns) = (20, 33);
        let mut random = Random::new(4, 0);
        let w: Vec<f64> = (0..rows * columns)
            .map(|i| random.normal() * (1 + i % columns) as f64)
            .collect();
        let scales = sinkhorn(&w, (rows, columns), Sides::Both).unwrap();
        let z = |i: usize, j: usize| w[i * columns + j] / scales.rows[i] / scales.columns[j];
        for i in 0..rows {
            let mean: f64 = (0..columns).map(|j| z(i, j).powi(2)).sum::<f64>() / columns as f64;
            assert!((mean - 1.0).abs() < 1e-7);
        }
        for j in 0..columns {
            let mean: f64 = (0..rows).map(|i| z(i, j).powi(2)).sum::<f64>() / rows as f64;
            assert!((mean - 1.0).abs() < 1e-7);
        }
    }

    #[test]
    fn a_pattern_without_a_solution_is_an_error() {
        let w = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0];
        assert!(matches!(
            sinkhorn(&w, (3, 3), Sides::Both),
            Err(Error::Convergence { .. })
        ));
    }
}
