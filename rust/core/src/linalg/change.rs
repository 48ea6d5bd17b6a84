//! A change of a symmetric matrix, V X' + X V', packed for kernels that keep sums in registers.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use std::ops::Range;

use crate::linalg::dense::Real;
use crate::linalg::side::SIDE;
use crate::vector::aligned::Aligned;
use crate::vector::register::{Lanes, Register};

/// Columns that a change is packed by; the matrix is padded with zeros to a multiple of it.
pub(crate) const BLOCK: usize = 32;
/// Rows that are changed at a time.
pub(crate) const ROWS: usize = 8;

/// V X' + X V' for V and X of 16 columns, to be taken from a symmetric matrix.
pub(crate) struct Change<T> {
    /// Row and column that V and X begin at.
    from: usize,
    /// (padded - from) x 16 each.
    v: Aligned<T>,
    x: Aligned<T>,
    /// For every [`BLOCK`] of columns the rows of -X' and of -V', (32 x BLOCK).
    packed: Aligned<T>,
}

impl<T: Real + Lanes> Change<T> {
    /// V and X have 16 columns and the rows from `from`, a multiple of [`BLOCK`], to the padding's last.
    pub(crate) fn new(from: usize, v: Aligned<T>, x: Aligned<T>) -> Self {
        let mut packed = Aligned::zeros(2 * v.len());
        let blocks = packed.chunks_exact_mut(2 * SIDE * BLOCK);
        let sources = x
            .chunks_exact(BLOCK * SIDE)
            .zip(v.chunks_exact(BLOCK * SIDE));
        for (block, (x, v)) in blocks.zip(sources) {
            let (for_v, for_x) = block.split_at_mut(SIDE * BLOCK);
            for (rows, from) in [(for_v, x), (for_x, v)] {
                for (lane, row) in rows.chunks_exact_mut(BLOCK).enumerate() {
                    for (value, from) in row.iter_mut().zip(from.chunks_exact(SIDE)) {
                        *value = -from[lane];
                    }
                }
            }
        }
        Self { from, v, x, packed }
    }
}

impl<T: Real> Change<T> {
    /// Take it from [`ROWS`] lines of the matrix, row `row` and those below: from column `start` on, which lies at the
    /// `part` of the lines given, `stride` values apart.
    #[inline(always)]
    pub(crate) fn subtract<R, const M: usize, const V: usize>(
        &self,
        row: usize,
        start: usize,
        lines: &mut [T],
        (stride, part): (usize, Range<usize>),
    ) where
        R: Register<Item = T>,
    {
        let packed = &self.packed[(start - self.from) * 2 * SIDE..];
        let blocks = packed.chunks_exact(2 * SIDE * BLOCK);
        let row = row - self.from;
        for (block, at) in blocks.zip(part.step_by(BLOCK)) {
            for i in (0..ROWS).step_by(M) {
                let factors = (row + i) * SIDE..(row + i + M) * SIDE;
                let factors = [&self.v[factors.clone()], &self.x[factors]];
                for v in (0..BLOCK).step_by(V * R::LANES) {
                    let onto = &mut lines[i * stride + at + v..];
                    add_products::<R, M, V>(factors, &block[v..], onto, stride);
                }
            }
        }
    }
}

/// `M` rows of a matrix, `stride` apart, V registers wide, plus factors (M x 32) times rows of [`BLOCK`] values.
#[inline(always)]
fn add_products<R, const M: usize, const V: usize>(
    factors: [&[R::Item]; 2],
    rows: &[R::Item],
    onto: &mut [R::Item],
    stride: usize,
) where
    R: Register,
    R::Item: Real,
{
    let width = V * R::LANES;
    assert!(factors[0].len() == M * SIDE && factors[1].len() == M * SIDE);
    assert!(rows.len() >= (2 * SIDE - 1) * BLOCK + width && onto.len() >= (M - 1) * stride + width);
    #[expect(unsafe_code, reason = "sums stay in registers; asserted bounds")]
    // SAFETY: the level in use names the instruction set of R. Values i * 16 + k of the factors are read for i < M and
    // k < 16, `width` values from every BLOCK of the 32 rows, and `width` values of each of M rows of the matrix.
    unsafe {
        let onto = onto.as_mut_ptr();
        let mut sums = [[R::splat(R::Item::default()); V]; M];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = R::load(onto.add(i * stride + v * R::LANES));
            }
        }
        let mut row = rows.as_ptr();
        for factors in factors {
            let factors = factors.as_ptr();
            for k in 0..SIDE {
                let line: [R; V] = std::array::from_fn(|v| R::load(row.add(v * R::LANES)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let factor = R::splat(*factors.add(i * SIDE + k));
                    for v in 0..V {
                        sums[v] = sums[v].plus_product(factor, line[v]);
                    }
                }
                row = row.wrapping_add(BLOCK);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(onto.add(i * stride + v * R::LANES));
            }
        }
    }
}
