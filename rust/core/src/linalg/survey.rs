//! One look at a matrix before it is fitted: which rows and columns are zero, and how heavy the tails are.

use rayon::prelude::*;

use crate::Result;
use crate::linalg::dense::Real;
use crate::linalg::reduce;
use crate::linalg::values::{PowerOfTwo, exponent, largest_magnitude};

/// What one pass over a matrix shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// True for rows with an entry other than zero.
    pub rows: Vec<bool>,
    /// True for such columns.
    pub columns: Vec<bool>,
    /// Excess kurtosis m4/m2^2 - 3 about zero, of the kept rows and columns; 0 for a zero matrix.
    pub kurtosis: f64,
}

/// Survey a row-major matrix of `columns` columns.
///
/// # Errors
/// [`crate::Error::NotFinite`] at the first NaN or infinity.
pub fn survey<T: Real>(w: &[T], columns: usize) -> Result<Survey> {
    const BLOCK: usize = 16;
    let largest = largest_magnitude(w, columns)?;
    let factor = PowerOfTwo::new(if largest > 0.0 { -exponent(largest) } else { 0 });
    let blocks: Vec<Block> = w
        .par_chunks(BLOCK * columns)
        .map(|lines| Block::of(lines, columns, factor))
        .collect();
    let mut kept = vec![false; columns];
    let (mut second, mut fourth) = (0.0, 0.0);
    for block in &blocks {
        second += block.second;
        fourth += block.fourth;
        for (all, one) in kept.iter_mut().zip(&block.columns) {
            *all |= one;
        }
    }
    let rows: Vec<bool> = blocks.into_iter().flat_map(|b| b.rows).collect();
    let count = |kept: &[bool]| kept.iter().filter(|k| **k).count() as f64;
    let entries = count(&rows) * count(&kept);
    let kurtosis = if entries > 0.0 {
        fourth * entries / (second * second) - 3.0
    } else {
        0.0
    };
    Ok(Survey {
        rows,
        columns: kept,
        kurtosis,
    })
}

struct Block {
    rows: Vec<bool>,
    columns: Vec<bool>,
    second: f64,
    fourth: f64,
}

impl Block {
    fn of<T: Real>(lines: &[T], columns: usize, factor: PowerOfTwo) -> Self {
        let mut block = Self {
            rows: Vec::new(),
            columns: vec![false; columns],
            second: 0.0,
            fourth: 0.0,
        };
        for line in lines.chunks_exact(columns) {
            for (value, kept) in line.iter().zip(&mut block.columns) {
                *kept |= *value != T::zero();
            }
            let (second, fourth) = reduce::moments(line, factor);
            block
                .rows
                .push(line.iter().any(|value| *value != T::zero()));
            block.second += second;
            block.fourth += fourth;
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_rows_and_columns_are_seen_and_left_out_of_the_kurtosis() {
        let w = [1.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0];
        let seen = survey(&w, 3).unwrap();
        assert_eq!(seen.rows, vec![true, false, true]);
        assert_eq!(seen.columns, vec![true, false, true]);
        assert!((seen.kurtosis + 2.0).abs() < 1e-15);
    }

    #[test]
    fn a_zero_matrix_has_nothing_to_keep() {
        let seen = survey(&[0f32; 6], 3).unwrap();
        assert!(!seen.rows.contains(&true) && !seen.columns.contains(&true));
        assert!(seen.kurtosis.abs() < 1e-300);
    }
}
