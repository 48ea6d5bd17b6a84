//! Looks at a matrix beside its spectrum: which rows and columns are zero, and how heavy the tails are.

use rayon::prelude::*;

use crate::Result;
use crate::linalg::dense::Real;
use crate::linalg::values::{self, PowerOfTwo, Size, exponent, first_not_finite};
use crate::vector::{Kernel, widest};

/// Rows (`true` where an entry is not zero) and columns of a row-major matrix of `columns` columns.
///
/// # Errors
/// [`crate::Error::NotFinite`] at the first NaN or infinity.
pub fn nonzero_lines<T: Real>(w: &[T], columns: usize) -> Result<(Vec<bool>, Vec<bool>)> {
    const BLOCK: usize = 16;
    let blocks: Vec<Option<(Vec<bool>, Vec<bool>)>> = w
        .par_chunks(BLOCK * columns)
        .map(|lines| widest(Lines { lines, columns }))
        .collect();
    if let Some(block) = blocks.iter().position(Option::is_none) {
        return Err(first_not_finite(w, columns, block * BLOCK * columns));
    }
    let mut kept = vec![false; columns];
    let mut rows = Vec::new();
    for (block_rows, block_kept) in blocks.into_iter().flatten() {
        rows.extend(block_rows);
        for (all, one) in kept.iter_mut().zip(block_kept) {
            *all |= one;
        }
    }
    Ok((rows, kept))
}

/// Which rows and columns of a few rows hold an entry other than zero; `None` if one is NaN or infinite.
struct Lines<'a, T> {
    lines: &'a [T],
    columns: usize,
}

impl<T: Real> Kernel for Lines<'_, T> {
    type Output = Option<(Vec<bool>, Vec<bool>)>;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut kept = vec![false; self.columns];
        let mut rows = Vec::with_capacity(self.lines.len() / self.columns);
        let mut finite = true;
        for line in self.lines.chunks_exact(self.columns) {
            let mut any = false;
            for (value, kept) in line.iter().zip(&mut kept) {
                let some = *value != T::zero();
                any |= some;
                *kept |= some;
                finite &= value.abs() <= T::max_value();
            }
            rows.push(any);
        }
        finite.then_some((rows, kept))
    }
}

/// Excess kurtosis m4 / m2^2 - 3 about zero.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Kurtosis {
    /// Of all entries.
    pub all: f64,
    /// Of the entries within ten noise deviations: what a few outliers or spikes in single entries cannot spoil.
    pub noise: f64,
}

/// Kurtosis of the entries of `w`; `deviation` is the noise's standard deviation, `None` the root mean square of `w`.
///
/// A sum over blocks of entries in order; 0 where there is nothing to measure.
///
/// # Errors
/// [`crate::Error::NotFinite`] at the first NaN or infinity.
pub fn kurtosis<T: Real>(w: &[T], columns: usize, deviation: Option<f64>) -> Result<Kurtosis> {
    let Size {
        largest,
        moments: all,
    } = values::size(w, columns)?;
    let power = if largest > 0.0 { -exponent(largest) } else { 0 };
    let factor = PowerOfTwo::new(power);
    let deviation = deviation.map_or_else(|| (all.second / all.count).sqrt(), |d| factor.times(d));
    let limit = 10.0 * deviation;
    let noise = if factor.times(largest) <= limit {
        all
    } else {
        values::moments(w, factor, limit)
    };
    Ok(Kurtosis {
        all: all.excess(),
        noise: noise.excess(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn zero_rows_and_columns_are_seen() {
        let w = [1.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0];
        let (rows, columns) = nonzero_lines(&w, 3).unwrap();
        assert_eq!(rows, vec![true, false, true]);
        assert_eq!(columns, vec![true, false, true]);
    }

    #[test]
    fn an_outlier_spoils_the_kurtosis_of_all_but_not_of_the_noise() {
        let mut random = Random::new(3, 0);
        let mut w: Vec<f64> = (0..40_000).map(|_| random.normal()).collect();
        w[77] = 1e6;
        let found = kurtosis(&w, 200, Some(1.0)).unwrap();
        assert!(found.all > 1000.0 && found.noise.abs() < 0.15, "{found:?}");
    }

    #[test]
    fn signs_have_the_least_kurtosis_and_zeros_none() {
        let found = kurtosis(&[1.0, -1.0, 1.0, -1.0], 2, None).unwrap();
        assert!((found.all + 2.0).abs() < 1e-15 && (found.noise + 2.0).abs() < 1e-15);
        let nothing = kurtosis(&[0f32; 6], 3, None).unwrap();
        assert!(nothing.all.abs() < 1e-300 && nothing.noise.abs() < 1e-300);
    }
}
