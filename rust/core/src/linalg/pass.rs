//! Products of a row-major matrix W with a block of vectors, 16 at a time, straight from its rows: X W', X W, and X W' W in
//! one pass over W.
//!
//! Where no cache holds W, reading it is the price of a product.

use rayon::prelude::*;

use crate::linalg::dense::Real;
use crate::linalg::side::{Job, SIDE, cast, run};
use crate::vector::aligned::Aligned;
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
            let mut products = Aligned::zeros(self.rows() * SIDE);
            let parts = self.w.par_chunks(ROWS * self.columns);
            parts
                .zip(products.par_chunks_mut(ROWS * SIDE))
                .for_each(|(w, products)| {
                    run(w, self.columns, Job::Dots { x, products });
                });
            products
        })
    }

    /// X W in `P`, X (b x rows).
    pub(crate) fn times<P: Lanes + Real>(&self, x: &[f64]) -> Vec<f64> {
        by_side(x, self.rows(), self.columns, |x: &[P]| {
            let mut sums = Aligned::zeros(self.columns * SIDE);
            sums.par_chunks_mut(COLUMNS * SIDE)
                .enumerate()
                .for_each(|(part, sums)| {
                    let w = &self.w[part * COLUMNS..];
                    run(w, self.columns, Job::Spread { x, sums });
                });
            sums
        })
    }

    /// X W' W in `P`, X (b x columns). The sums of the tasks are kept in `parts` for the next call: fresh memory would cost
    /// 4 % of the product at 4096 x 4096.
    pub(crate) fn times_both<P: Lanes + Real>(
        &self,
        x: &[f64],
        parts: &mut Vec<Aligned<P>>,
    ) -> Vec<f64> {
        parts.resize_with(self.rows().div_ceil(ROWS), || {
            Aligned::zeros(self.columns * SIDE)
        });
        by_side(x, self.columns, self.columns, |x: &[P]| {
            let tasks = self.w.par_chunks(ROWS * self.columns);
            tasks.zip(&mut *parts).for_each(|(w, sums)| {
                sums.fill(P::default());
                run(w, self.columns, Job::Both { x, sums });
            });
            let mut total = Aligned::<f64>::zeros(self.columns * SIDE);
            let blocks = total.par_chunks_mut(COLUMNS * SIDE).enumerate();
            blocks.for_each(|(block, total)| {
                for sums in &*parts {
                    let sums = &sums[block * COLUMNS * SIDE..];
                    for (total, sum) in total.iter_mut().zip(sums) {
                        *total += wide(*sum);
                    }
                }
            });
            total
        })
    }
}

fn wide<P: Real>(value: P) -> f64 {
    value.to_f64().unwrap_or(f64::NAN)
}

/// A block (b x length), 16 vectors at a time as (length x 16) with zeros beyond the last, through `product` to a block
/// (b x onto).
fn by_side<P: Real, S: Real>(
    x: &[f64],
    length: usize,
    onto: usize,
    mut product: impl FnMut(&[P]) -> Aligned<S>,
) -> Vec<f64> {
    let mut result = vec![0.0; x.len() / length * onto];
    for (x, result) in x.chunks(SIDE * length).zip(result.chunks_mut(SIDE * onto)) {
        let mut side = Aligned::zeros(length * SIDE);
        // Both turns go by pieces that the first cache holds.
        for (piece, start) in side.chunks_mut(COLUMNS * SIDE).zip((0..).step_by(COLUMNS)) {
            for (lane, vector) in x.chunks_exact(length).enumerate() {
                for (values, value) in piece.chunks_exact_mut(SIDE).zip(&vector[start..]) {
                    values[lane] = cast(*value);
                }
            }
        }
        let found = product(&side);
        for (piece, start) in found.chunks(COLUMNS * SIDE).zip((0..).step_by(COLUMNS)) {
            for (lane, vector) in result.chunks_exact_mut(onto).enumerate() {
                for (values, value) in piece.chunks_exact(SIDE).zip(&mut vector[start..]) {
                    *value = wide(values[lane]);
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests;
