//! All singular values of a dense matrix, the same bits for any number of threads.

use rayon::prelude::*;

use crate::linalg::dense::{self, Real};
use crate::linalg::reduce::{self, Moments};
use crate::linalg::symmetric::Symmetric;
use crate::linalg::{band, tridiagonal};
use crate::vector::register::Lanes;
use crate::{Error, Result};

/// How exact the small values have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Every value within 1e-7 of the largest, and within 1e-10 of it for float64 input.
    Full,
    /// Enough for the upper half of the values (relative 1e-5): float32 input with short <= 0.8 long is multiplied and
    /// reduced in float32 where the middle value exceeds 3 % of the largest and the smallest .3 %, which may then be off by
    /// 1e-4 of it.
    Bulk,
}

/// Singular values, descending, of the row-major (rows x columns) matrix `w`.
///
/// The matrix is scaled by a power of two to entries near 1. Route: Gram matrix of the shorter side (products in
/// float64, tiles spread over threads), band, tridiagonal form, bisection: error below sqrt(short * eps) of the largest,
/// and far smaller for values that are not tiny. Squaring loses float64 values below 1e-5 of the largest, so if there
/// are such (float64 input, [`Precision::Full`]) a bidiagonal form of the matrix itself and bisection follow, which
/// have no square in them. The trace is checked against the Frobenius norm on either route.
///
/// # Errors
/// [`Error::NotFinite`] at the first NaN or infinity; [`Error::Convergence`] if the trace check fails on both routes.
///
/// # Example
/// ```
/// use mpcore_core::linalg::values::{Precision, singular_values};
/// let s = singular_values(&[3.0, 0.0, 0.0, 0.0, 4.0, 0.0], (2, 3), Precision::Full).unwrap();
/// assert!((s[0] - 4.0).abs() < 1e-14 && (s[1] - 3.0).abs() < 1e-14);
/// ```
pub fn singular_values<T: Real>(
    w: &[T],
    (rows, columns): (usize, usize),
    precision: Precision,
) -> Result<Vec<f64>> {
    // Hundreds of short parallel steps: from outside the pool each would cost two switches of threads.
    rayon::scope(|_| on_the_pool(w, (rows, columns), precision))
}

fn on_the_pool<T: Real>(
    w: &[T],
    (rows, columns): (usize, usize),
    precision: Precision,
) -> Result<Vec<f64>> {
    let Size { largest, moments } = size(w, columns)?;
    if largest == 0.0 {
        return Ok(vec![0.0; rows.min(columns)]);
    }
    let matrix = Scaled {
        w,
        rows,
        columns,
        exponent: exponent(largest),
        factor: PowerOfTwo::new(-exponent(largest)),
        squares: moments.second,
    };
    let single = T::epsilon().to_f64() > Some(1e-10);
    // Over the largest: squaring loses what is below the root of the rounding unit.
    let middle = |values: &[f64]| values[values.len() / 2] / values[0];
    let smallest = |values: &[f64]| values[values.len() - 1] / values[0];
    if single && precision == Precision::Bulk && 5 * matrix.short() <= 4 * matrix.long() {
        let values = roots(matrix.gram::<f32, f32>());
        if middle(&values) > 0.03
            && smallest(&values) > 0.003
            && matrix.holds_the_norm(&values, 1e-4)
        {
            return Ok(matrix.unscale(values));
        }
    }
    let values = roots(matrix.gram::<f64, f64>());
    let least = if precision == Precision::Full {
        1e-5
    } else {
        1e-6
    };
    if (single || smallest(&values) > least) && matrix.holds_the_norm(&values, 1e-9) {
        return Ok(matrix.unscale(values));
    }
    let values = matrix.values_directly();
    if matrix.holds_the_norm(&values, 1e-9) {
        return Ok(matrix.unscale(values));
    }
    Err(Error::Convergence {
        routine: "svdvals",
        detail: format!(
            "squares of the values do not add up to the squared norm of the {rows} x {columns} matrix"
        ),
    })
}

/// Largest |w|, or the error that names the first entry that is not finite.
///
/// # Errors
/// [`Error::NotFinite`].
pub fn largest_magnitude<T: Real>(w: &[T], columns: usize) -> Result<f64> {
    let blocks: Vec<Option<f64>> = w.par_chunks(PART).map(reduce::largest).collect();
    match blocks.iter().position(Option::is_none) {
        None => Ok(blocks.into_iter().flatten().fold(0.0, f64::max)),
        Some(block) => Err(first_not_finite(w, columns, block * PART)),
    }
}

/// Entries of a task that adds them up.
const PART: usize = 1 << 14;

/// How large the entries are.
pub(crate) struct Size {
    /// Largest |w|.
    pub(crate) largest: f64,
    /// Of the entries times 2^-exponent of the largest.
    pub(crate) moments: Moments,
}

/// All of it in one pass over `w`.
///
/// # Errors
/// [`Error::NotFinite`] at the first NaN or infinity.
pub(crate) fn size<T: Real>(w: &[T], columns: usize) -> Result<Size> {
    let parts: Vec<(Option<f64>, Moments)> = w.par_chunks(PART).map(reduce::size).collect();
    if let Some(part) = parts.iter().position(|(largest, _)| largest.is_none()) {
        return Err(first_not_finite(w, columns, part * PART));
    }
    let largest = parts.iter().filter_map(|(v, _)| *v).fold(0.0, f64::max);
    let power = if largest > 0.0 { exponent(largest) } else { 0 };
    let moments = if power.abs() <= 200 {
        let sum = parts
            .into_iter()
            .map(|(_, m)| m)
            .fold(Moments::default(), Moments::plus);
        sum.scaled(-power)
    } else {
        // Fourth powers of such numbers leave the range.
        moments(w, PowerOfTwo::new(-power), f64::INFINITY)
    };
    Ok(Size { largest, moments })
}

/// Moments of factor times entry over the entries where that is at most `limit` in magnitude.
pub(crate) fn moments<T: Real>(w: &[T], factor: PowerOfTwo, limit: f64) -> Moments {
    let parts: Vec<Moments> = w
        .par_chunks(PART)
        .map(|part| reduce::moments(part, factor, limit))
        .collect();
    parts.into_iter().fold(Moments::default(), Moments::plus)
}

/// The error that names the first such entry, which is not before entry `from`.
pub(crate) fn first_not_finite<T: Real>(w: &[T], columns: usize, from: usize) -> Error {
    let index = w[from..]
        .iter()
        .position(|v| !v.is_finite())
        .map_or(from, |i| from + i);
    Error::NotFinite {
        name: "W",
        row: index / columns,
        column: index % columns,
        value: w[index].to_f64().unwrap_or(f64::NAN),
    }
}

/// The power of two that brings `largest` > 0 into [1/2, 1): `largest` < 2^power.
#[must_use]
pub fn exponent(largest: f64) -> i32 {
    // Through the logarithm, corrected by comparisons: the bits of a subnormal number hold no exponent.
    let guess = largest.log2().floor() as i32 + 1;
    match scale(largest, -guess) {
        1.0.. => guess + 1,
        ..0.5 => guess - 1,
        _ => guess,
    }
}

/// `value` times 2^`power` in two steps, so that no factor overflows or vanishes.
#[must_use]
pub fn scale(value: f64, power: i32) -> f64 {
    PowerOfTwo::new(power).times(value)
}

/// The factor of [`scale`], for many values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerOfTwo(f64, f64);

impl PowerOfTwo {
    /// 2^`power`, |`power`| <= 2040.
    #[must_use]
    pub fn new(power: i32) -> Self {
        Self(2f64.powi(power / 2), 2f64.powi(power - power / 2))
    }

    /// `value` times the factor.
    #[must_use]
    pub fn times(self, value: f64) -> f64 {
        value * self.0 * self.1
    }
}

/// Roots of the eigenvalues, descending.
fn roots<S: Real + Lanes>(gram: Symmetric<S>) -> Vec<f64> {
    let (diagonal, beside) = band::reduce(gram).into_tridiagonal();
    // Eight bits beyond the rounding of the matrix.
    let bits = 8 - S::epsilon().to_f64().map_or(-52, |unit| unit.log2() as i32);
    let mut values = tridiagonal::eigenvalues(&diagonal, &beside, bits.unsigned_abs());
    values.reverse();
    values.into_iter().map(|v| v.max(0.0).sqrt()).collect()
}

/// A row-major matrix seen through the factor 2^-exponent.
pub(super) struct Scaled<'a, T> {
    pub(super) w: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    exponent: i32,
    pub(super) factor: PowerOfTwo,
    /// Squared Frobenius norm.
    squares: f64,
}

impl<T: Real> Scaled<'_, T> {
    pub(super) fn short(&self) -> usize {
        self.rows.min(self.columns)
    }

    pub(super) fn long(&self) -> usize {
        self.rows.max(self.columns)
    }

    fn at(&self, short: usize, long: usize) -> f64 {
        let index = if self.rows <= self.columns {
            short * self.columns + long
        } else {
            long * self.columns + short
        };
        self.scaled(self.w[index])
    }

    pub(super) fn scaled(&self, value: T) -> f64 {
        self.factor.times(value.to_f64().unwrap_or(f64::NAN))
    }

    fn unscale(&self, values: Vec<f64>) -> Vec<f64> {
        values
            .into_iter()
            .map(|v| scale(v, self.exponent))
            .collect()
    }

    fn values_directly(&self) -> Vec<f64> {
        let (long, short) = (self.long(), self.short());
        let mut copy = Vec::with_capacity(long * short);
        for i in 0..short {
            copy.extend((0..long).map(|k| self.at(i, k)));
        }
        let (diagonal, above) = dense::bidiagonalise(&mut copy, (long, short));
        tridiagonal::singular_values(&diagonal, &above)
    }

    /// Sum of the squared values = squared Frobenius norm, to a relative `tolerance`.
    fn holds_the_norm(&self, values: &[f64], tolerance: f64) -> bool {
        let total: f64 = values.iter().map(|v| v * v).sum();
        (total - self.squares).abs() <= tolerance * self.squares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::threads::with_threads;

    fn gaussian(rows: usize, columns: usize, seed: u64) -> Vec<f64> {
        let mut random = Random::new(seed, 0);
        (0..rows * columns).map(|_| random.normal()).collect()
    }

    fn worst(a: &[f64], b: &[f64]) -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f64::max)
            / b[0]
    }

    #[test]
    fn both_routes_agree_with_a_decomposition_with_vectors() {
        for (rows, columns) in [
            (1, 1),
            (1, 7),
            (7, 1),
            (5, 5),
            (130, 40),
            (40, 131),
            (150, 150),
        ] {
            let w = gaussian(rows, columns, 3);
            let exact = dense::thin_svd(&w, (rows, columns)).unwrap().values;
            let ours = singular_values(&w, (rows, columns), Precision::Full).unwrap();
            let bulk = singular_values(&w, (rows, columns), Precision::Bulk).unwrap();
            assert!(worst(&ours, &exact) < 1e-10, "{rows} x {columns}");
            assert!(worst(&bulk, &exact) < 1e-7, "{rows} x {columns}");
        }
    }

    #[test]
    fn small_values_of_a_double_matrix_are_not_lost_by_squaring() {
        let w = [1.0, 0.0, 0.0, 0.0, 1e-9, 0.0, 0.0, 0.0, 1e-12];
        let s = singular_values(&w, (3, 3), Precision::Full).unwrap();
        assert!((s[1] / 1e-9 - 1.0).abs() < 1e-5 && (s[2] / 1e-12 - 1.0).abs() < 1e-2);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let w: Vec<f32> = gaussian(300, 700, 5).iter().map(|v| *v as f32).collect();
        for precision in [Precision::Full, Precision::Bulk] {
            let run = |threads| {
                with_threads(Some(threads), || {
                    singular_values(&w, (300, 700), precision).unwrap()
                })
            };
            assert_eq!(run(1), run(3));
        }
    }

    #[test]
    fn a_power_of_two_and_a_transpose_change_nothing_else() {
        let (rows, columns) = (30, 50);
        let w = gaussian(rows, columns, 9);
        let base = singular_values(&w, (rows, columns), Precision::Full).unwrap();
        for power in [-1000, -540, 500, 1000] {
            let scaled: Vec<f64> = w.iter().map(|v| scale(*v, power)).collect();
            let s = singular_values(&scaled, (rows, columns), Precision::Full).unwrap();
            assert_eq!(s, base.iter().map(|v| scale(*v, power)).collect::<Vec<_>>());
        }
        let mut turned = vec![0.0; rows * columns];
        for i in 0..rows {
            for j in 0..columns {
                turned[j * rows + i] = w[i * columns + j];
            }
        }
        let s = singular_values(&turned, (columns, rows), Precision::Full).unwrap();
        assert_eq!(s, base);
    }

    #[test]
    fn the_exponent_is_right_beside_powers_of_two() {
        for power in [-1000, -30, 0, 1, 52, 100, 1024] {
            let least = scale(0.5, power);
            assert_eq!((exponent(least), exponent(least.next_up())), (power, power));
            assert_eq!(exponent(least.next_down()), power - 1);
        }
        assert_eq!(exponent(f64::from_bits(1)), -1073);
    }

    #[test]
    fn rank_deficient_and_zero_matrices_give_zeros() {
        let (rows, columns) = (300, 300);
        let factor = gaussian(3, columns, 1);
        let w: Vec<f64> = (0..rows)
            .flat_map(|i| factor[(i % 3) * columns..(i % 3 + 1) * columns].to_vec())
            .collect();
        let s = singular_values(&w, (rows, columns), Precision::Full).unwrap();
        assert!(s[2] > 1.0 && s[3] < 1e-12 * s[0]);
        assert_eq!(
            singular_values(&[0f32; 6], (2, 3), Precision::Full).unwrap(),
            vec![0.0; 2]
        );
    }

    #[test]
    fn a_nan_is_refused_with_its_place() {
        let mut w = vec![1.0; 12];
        w[7] = f64::NAN;
        let error = singular_values(&w, (3, 4), Precision::Full).unwrap_err();
        assert!(error.to_string().starts_with("W: entry (1, 3) is nan"));
    }
}
