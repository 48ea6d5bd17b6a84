//! Products of a row-major matrix W with a block of vectors, 16 at a time, straight from its rows: X W', X W, and X W' W in
//! one pass over W.
//!
//! Where no cache holds W, reading it is the price of a product.

use rayon::prelude::*;

use crate::linalg::dense::Real;
use crate::linalg::side::{Job, SIDE, cast, run};
use crate::vector::register::Lanes;

/// Rows of a task. Sums over them are in the precision of the products, sums of tasks in float64.
const ROWS: usize = 256;
/// Columns of a task that sums over all rows.
const COLUMNS: usize = 512;

/// A row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass<'a, T> {
    w: &'a [T],
    columns: usize,
}

impl<'a, T: Real> Pass<'a, T> {
    /// From its rows of `columns` entries.
    pub(crate) fn new(w: &'a [T], columns: usize) -> Self {
        Self { w, columns }
    }

    fn rows(&self) -> usize {
        self.w.len() / self.columns
    }

    /// X W' in `P`, X (b x columns).
    pub(crate) fn times_transposed<P: Lanes + Real>(&self, x: &[f64]) -> Vec<f64> {
        by_side(x, self.columns, self.rows(), |x: &[P]| {
            let mut products = vec![P::default(); self.rows() * SIDE];
            let parts = self.w.par_chunks(ROWS * self.columns);
            parts
                .zip(products.par_chunks_mut(ROWS * SIDE))
                .for_each(|(w, products)| {
                    run(w, self.columns, Job::Dots { x, products });
                });
            products.into_iter().map(wide).collect()
        })
    }

    /// X W in `P`, X (b x rows).
    pub(crate) fn times<P: Lanes + Real>(&self, x: &[f64]) -> Vec<f64> {
        by_side(x, self.rows(), self.columns, |x: &[P]| {
            let mut sums = vec![P::default(); self.columns * SIDE];
            sums.par_chunks_mut(COLUMNS * SIDE)
                .enumerate()
                .for_each(|(part, sums)| {
                    let w = &self.w[part * COLUMNS..];
                    run(w, self.columns, Job::Spread { x, sums });
                });
            sums.into_iter().map(wide).collect()
        })
    }

    /// X W' W in `P`, X (b x columns).
    pub(crate) fn times_both<P: Lanes + Real>(&self, x: &[f64]) -> Vec<f64> {
        by_side(x, self.columns, self.columns, |x: &[P]| {
            let parts: Vec<Vec<P>> = self
                .w
                .par_chunks(ROWS * self.columns)
                .map(|w| {
                    let mut sums = vec![P::default(); self.columns * SIDE];
                    let sums_in = &mut sums;
                    run(w, self.columns, Job::Both { x, sums: sums_in });
                    sums
                })
                .collect();
            let mut total = vec![0.0; self.columns * SIDE];
            for sums in parts {
                for (total, sum) in total.iter_mut().zip(sums) {
                    *total += wide(sum);
                }
            }
            total
        })
    }
}

fn wide<P: Real>(value: P) -> f64 {
    value.to_f64().unwrap_or(f64::NAN)
}

/// A block (b x length), 16 vectors at a time as (length x 16) with zeros beyond the last, through `product` to a block
/// (b x onto).
fn by_side<P: Real>(
    x: &[f64],
    length: usize,
    onto: usize,
    product: impl Fn(&[P]) -> Vec<f64>,
) -> Vec<f64> {
    let mut result = Vec::with_capacity(x.len() / length * onto);
    for vectors in x.chunks(SIDE * length) {
        let mut side = vec![P::default(); length * SIDE];
        for (lane, vector) in vectors.chunks_exact(length).enumerate() {
            for (values, value) in side.chunks_exact_mut(SIDE).zip(vector) {
                values[lane] = cast(*value);
            }
        }
        let found = product(&side);
        for lane in 0..vectors.len() / length {
            result.extend(found.chunks_exact(SIDE).map(|values| values[lane]));
        }
    }
    result
}

#[cfg(test)]
mod tests;
