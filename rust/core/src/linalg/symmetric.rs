//! The upper half of a symmetric matrix, changed and multiplied in one pass over it.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use std::ops::Range;

use rayon::prelude::*;

use crate::linalg::change::{BLOCK, Change, ROWS};
use crate::linalg::dense::Real;
use crate::linalg::side::{SIDE, dots, spread};
use crate::vector::aligned::Aligned;
use crate::vector::register::{Lanes, Register};
use crate::vector::{Kernel, Level, level, widest};

/// Rows of the strips that the half matrix is kept in; a multiple of [`BLOCK`].
pub(crate) const STRIP: usize = 64;
/// Columns of [`ROWS`] rows that are changed and multiplied while they are in the first cache.
const COLUMNS: usize = 512;
/// From so many rows on a pass takes several threads. A shorter one is over before a second thread has come, and waits for it
/// for milliseconds where other programs want the cores.
pub(crate) const LONG: usize = 1024;
/// Most tasks of a pass; they depend on the matrix alone. Each has sums of its own, and those cost memory and time.
const TASKS: usize = 16;

/// The upper half of a symmetric (n x n) matrix, padded with zeros: strip i holds rows i `STRIP` and on, from the
/// diagonal tile (both its halves) to the last column, row-major.
pub(crate) struct Symmetric<T> {
    n: usize,
    strips: Vec<Aligned<T>>,
    /// Working space of a pass.
    sums: Vec<Aligned<T>>,
}

impl<T: Real + Lanes> Symmetric<T> {
    /// The matrix whose row i is given by `upper(i, line)`, which writes its entries from column i / `STRIP` * `STRIP` on.
    pub(crate) fn new(n: usize, upper: impl Fn(usize, &mut [T]) + Sync) -> Self {
        let padded = n.next_multiple_of(BLOCK);
        let strip = |first: usize| {
            let width = padded - first;
            let mut strip = Aligned::zeros(STRIP.min(width) * width);
            for (row, line) in (first..n).zip(strip.chunks_exact_mut(width)) {
                upper(row, &mut line[..n - first]);
            }
            strip
        };
        let firsts: Vec<usize> = (0..padded).step_by(STRIP).collect();
        Self {
            n,
            strips: firsts.into_par_iter().map(strip).collect(),
            sums: Vec::new(),
        }
    }

    /// Rows and columns, without the padding.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Rows and columns with it.
    pub(crate) fn padded(&self) -> usize {
        self.n.next_multiple_of(BLOCK)
    }

    /// A row from its diagonal entry on.
    pub(crate) fn row(&self, row: usize) -> &[T] {
        let (strip, inside) = (row / STRIP, row % STRIP);
        let stride = self.padded() - strip * STRIP;
        &self.strips[strip][inside * stride + inside..][..stride - inside]
    }

    /// Take the change into some rows of one strip.
    pub(crate) fn change(&mut self, rows: Range<usize>, change: &Change<T>) {
        let part = Part {
            strip: &mut self.strips[rows.start / STRIP],
            columns: start(rows.start)..self.n.next_multiple_of(BLOCK),
            rows,
        };
        part.run(Some(change), None);
    }

    /// Take the change into the rows from `first` on and multiply the square S that they make with Y. Both `y` and S Y
    /// have 16 columns and the rows from the [`start`] of `first`'s strip on; those before `first` are zero.
    pub(crate) fn change_and_multiply(
        &mut self,
        first: usize,
        change: Option<&Change<T>>,
        y: &[T],
    ) -> Aligned<T> {
        let (from, padded) = (start(first), self.padded());
        let multiply = |group: &Range<usize>, strips: &mut [Aligned<T>], sums: &mut [T]| {
            for (start, strip) in group.clone().step_by(STRIP).zip(strips) {
                let part = Part {
                    strip,
                    columns: start..padded,
                    rows: start.max(first)..padded.min(start + STRIP),
                };
                let sums = &mut sums[(start - group.start) * SIDE..];
                part.run(change, Some((&y[(start - from) * SIDE..], sums)));
            }
        };
        let mut product = Aligned::zeros((padded - from) * SIDE);
        let mut strips = &mut self.strips[first / STRIP..];
        if padded - first < LONG {
            multiply(&(from..padded), strips, &mut product);
            return product;
        }
        let groups = groups(from, padded);
        while self.sums.len() < groups.len() {
            self.sums.push(Aligned::zeros(padded * SIDE));
        }
        let mut tasks = Vec::with_capacity(groups.len());
        for (group, sums) in groups.iter().zip(&mut self.sums) {
            let (own, after) = strips.split_at_mut(group.len().div_ceil(STRIP));
            strips = after;
            tasks.push((group, own, sums));
        }
        let tasks = tasks.into_par_iter().with_max_len(1);
        tasks.for_each(|(group, own, sums)| {
            let sums = &mut sums[..(padded - group.start) * SIDE];
            sums.fill(T::default());
            multiply(group, own, sums);
        });
        let parts = product.par_chunks_mut(COLUMNS * SIDE).enumerate();
        parts.for_each(|(part, product)| {
            let from = from + part * COLUMNS;
            for (group, sums) in groups.iter().zip(&self.sums) {
                let start = from.max(group.start);
                let skipped = ((start - from) * SIDE).min(product.len());
                let sums = sums[(start - group.start) * SIDE..].iter();
                for (total, sum) in product[skipped..].iter_mut().zip(sums) {
                    *total += *sum;
                }
            }
        });
        product
    }
}

/// First row of the strip that holds `row`.
pub(crate) fn start(row: usize) -> usize {
    row / STRIP * STRIP
}

/// Rows of the tasks from the strip at `from` on, whole strips of about the same area.
fn groups(from: usize, padded: usize) -> Vec<Range<usize>> {
    let area = |row: usize| padded - row;
    let fair = (from..padded).step_by(STRIP).map(area).sum::<usize>() / TASKS;
    let mut groups = Vec::with_capacity(TASKS);
    let (mut begin, mut held) = (from, 0);
    for row in (from..padded).step_by(STRIP) {
        held += area(row);
        if held >= fair || row + STRIP >= padded {
            let end = padded.min(row + STRIP);
            groups.push(begin..end);
            (begin, held) = (end, 0);
        }
    }
    groups
}

/// Some rows of a strip, in eights, and the columns of the strip.
struct Part<'a, T> {
    strip: &'a mut [T],
    columns: Range<usize>,
    rows: Range<usize>,
}

/// Y from the first row of a strip on, and sums of S Y from there on.
type Product<'a, T> = (&'a [T], &'a mut [T]);

impl<'a, T: Real + Lanes> Part<'a, T> {
    fn run(self, change: Option<&'a Change<T>>, product: Option<Product<'a, T>>) {
        let part = self;
        let single = size_of::<T>() == size_of::<f32>();
        match (level(), single) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, true) => widest(Step::<T::Avx512, 8, 8, 2> {
                part,
                change,
                product,
            }),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, false) => widest(Step::<T::Avx512, 8, 4, 4> {
                part,
                change,
                product,
            }),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, true) => widest(Step::<T::Avx2, 4, 4, 2> {
                part,
                change,
                product,
            }),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, false) => widest(Step::<T::Avx2, 2, 4, 2> {
                part,
                change,
                product,
            }),
            _ => widest(Step::<T::Portable, 2, 2, 1> {
                part,
                change,
                product,
            }),
        }
    }
}

/// `D` rows are multiplied at a time; sums of `M` rows times `V` registers are changed.
struct Step<'a, R: Register, const D: usize, const M: usize, const V: usize> {
    part: Part<'a, R::Item>,
    change: Option<&'a Change<R::Item>>,
    product: Option<Product<'a, R::Item>>,
}

impl<R, const D: usize, const M: usize, const V: usize> Kernel for Step<'_, R, D, M, V>
where
    R: Register,
    R::Item: Real,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            part:
                Part {
                    strip,
                    columns,
                    rows,
                },
            change,
            mut product,
        } = self;
        let stride = columns.len();
        for row in rows.step_by(ROWS) {
            let inside = row - columns.start;
            let lines = &mut strip[inside * stride..][..ROWS * stride];
            let mut own = [[R::Item::default(); SIDE]; ROWS];
            let first = row / BLOCK * BLOCK;
            for start in (first..columns.end).step_by(COLUMNS) {
                let part = start - columns.start..columns.end.min(start + COLUMNS) - columns.start;
                if let Some(change) = change {
                    change.subtract::<R, M, V>(row, start, lines, (stride, part.clone()));
                }
                if let Some((y, sums)) = &mut product {
                    multiply_lines::<R, D>(lines, stride, inside, part, (y, sums), &mut own);
                }
            }
            if let Some((_, sums)) = &mut product {
                let sums = &mut sums[inside * SIDE..][..ROWS * SIDE];
                for (sum, value) in sums.iter_mut().zip(own.as_flattened()) {
                    *sum += *value;
                }
            }
        }
    }
}

/// Multiply the columns `part` of lines, which lie `inside` a strip: with Y into the lines' `own` sums, and with the lines' own
/// Y into the sums to the right of them.
#[inline(always)]
fn multiply_lines<R, const D: usize>(
    lines: &[R::Item],
    stride: usize,
    inside: usize,
    part: Range<usize>,
    (y, sums): (&[R::Item], &mut [R::Item]),
    own: &mut [[R::Item; SIDE]; ROWS],
) where
    R: Register,
    R::Item: Real,
{
    let (from, right) = (part.start.max(inside), part.start.max(inside + ROWS));
    let y_in = &y[from * SIDE..part.end * SIDE];
    let sums = &mut sums[right * SIDE..part.end.max(right) * SIDE];
    for (own, i) in own.chunks_exact_mut(D).zip((0..ROWS).step_by(D)) {
        dots::<R::Item, R, D>(
            &lines[i * stride + from..],
            stride,
            y_in,
            own.as_flattened_mut(),
        );
        let y_own = &y[(inside + i) * SIDE..];
        spread::<R::Item, R, D>(&lines[i * stride + right..], stride, y_own, sums);
    }
}

#[cfg(test)]
mod tests;
