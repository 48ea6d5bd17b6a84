//! The Gram matrix of the shorter side, tile by tile.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use std::ops::Range;

use rayon::prelude::*;

use num_traits::ToPrimitive;

use crate::linalg::dense::Real;
use crate::linalg::symmetric::{STRIP, Symmetric, start};
use crate::linalg::values::{PowerOfTwo, Scaled};
use crate::vector::aligned::Aligned;
use crate::vector::register::{Lanes, MOST_LANES, Register};
use crate::vector::{Kernel, Level, level, widest};

/// Rows and columns of the Gram matrix that one task computes; a multiple of every panel's height and of [`STRIP`].
const TILE: usize = 192;
/// Bytes of packed columns: a buffer that is filled again and again, because fresh pages cost more than what they hold.
const PACKED: usize = 1 << 20;
/// Columns that are packed at a time at least: once for so many the sums of all tiles go through memory.
const COLUMNS: usize = 512;
/// Columns that are turned at a time.
const TURN: usize = 64;
/// Most rows of a panel.
const MOST_HEIGHT: usize = 3 * MOST_LANES;

impl<T: Real> Scaled<'_, T> {
    /// Products in `P`, sums over blocks of columns in float64, the matrix in `S`.
    pub(super) fn gram<P: Lanes + Real, S: Lanes + Real>(&self) -> Symmetric<S> {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => self.gram_in::<P::Avx512, 8, 3, S>(256),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => self.gram_in::<P::Avx2, 2, 6, S>(128),
            _ => self.gram_in::<P::Portable, 4, 1, S>(256),
        }
    }

    /// `M` rows times `V` registers are summed at a time, over at most `depth` columns before the sums move on: so many
    /// rounding errors of float32 pile up, and one panel of so many columns fits the first cache (32 KiB where AVX2 is all).
    fn gram_in<R, const M: usize, const V: usize, S: Lanes + Real>(
        &self,
        depth: usize,
    ) -> Symmetric<S>
    where
        R: Register,
        R::Item: Lanes + Real,
    {
        let height = V * R::LANES;
        assert!(
            TILE.is_multiple_of(height)
                && TILE.is_multiple_of(STRIP)
                && height.is_multiple_of(M)
                && height <= MOST_HEIGHT
        );
        let bands = self.short().div_ceil(TILE);
        let padded = |band: usize| TILE.min(self.short().next_multiple_of(height) - band * TILE);
        // Those on the diagonal take half the time and come last.
        let mut tiles: Vec<Tile> = (0..bands)
            .flat_map(|apart| (apart..bands).map(move |j| (j - apart, j)))
            .map(|(i, j)| Tile::new(i, j, padded(i), padded(j)))
            .collect();
        tiles.sort_by_key(|tile| tile.i == tile.j);
        let columns = (PACKED / (self.short() * size_of::<R::Item>())).max(COLUMNS);
        let columns = columns.next_multiple_of(depth).min(self.long());
        let mut panels: Vec<_> = (0..self.short().div_ceil(height))
            .map(|_| Aligned::zeros(height * columns))
            .collect();
        for start in (0..self.long()).step_by(columns) {
            let part = start..self.long().min(start + columns);
            panels.par_iter_mut().enumerate().for_each(|(i, panel)| {
                panel.truncate(height * part.len());
                self.pack(i * height, height, part.clone(), panel);
            });
            let of_band =
                |band: usize, rows: usize| &panels[band * TILE / height..][..rows / height];
            tiles.par_iter_mut().with_max_len(1).for_each(|tile| {
                let (left, right) = (of_band(tile.i, tile.rows), of_band(tile.j, tile.columns));
                widest(Products::<R, M, V> {
                    left,
                    right,
                    depth,
                    tile,
                });
            });
        }
        tiles.sort_by_key(|tile| (tile.i, tile.j));
        Symmetric::new(self.short(), |row, line| {
            self.line(row, &tiles, line);
        })
    }

    /// Entries of a row from the first column of its strip on.
    fn line<S: Real>(&self, row: usize, tiles: &[Tile], line: &mut [S]) {
        let cast = |v: f64| S::from(v).unwrap_or_else(S::nan);
        let (bands, band) = (self.short().div_ceil(TILE), row / TILE);
        // Tiles (i, j) with j >= i, row after row.
        let begin: usize = (0..band).map(|i| bands - i).sum();
        let (on_diagonal, others) = tiles[begin..begin + bands - band]
            .split_first()
            .expect("a band has a tile on the diagonal");
        let columns = start(row)..self.short().min((band + 1) * TILE);
        let (own, rest) = line.split_at_mut(columns.len());
        let inside = |column: usize| column - band * TILE;
        for (to, column) in own.iter_mut().zip(columns) {
            let (row, column) = (row.min(column), row.max(column));
            *to = cast(on_diagonal.row(inside(row))[inside(column)]);
        }
        for (to, tile) in rest.chunks_mut(TILE).zip(others) {
            for (to, value) in to.iter_mut().zip(tile.row(inside(row))) {
                *to = cast(*value);
            }
        }
    }

    /// At most `height` rows of the shorter side from `first` on, column by column; the panel's other rows stay.
    fn pack<P: Real>(&self, first: usize, height: usize, depth: Range<usize>, panel: &mut [P]) {
        let rows = height.min(self.short() - first);
        let from = if self.rows <= self.columns {
            &self.w[first * self.columns + depth.start..]
        } else {
            &self.w[depth.start * self.columns + first..]
        };
        widest(Packing {
            from,
            stride: self.columns,
            turned: self.rows <= self.columns,
            rows,
            height,
            factor: self.factor,
            panel,
        });
    }
}

/// `rows` values for every `height` of a panel, from lines that are `stride` apart: one line for each, or, `turned`, one line
/// for each of the rows.
struct Packing<'a, T, P> {
    from: &'a [T],
    stride: usize,
    turned: bool,
    rows: usize,
    height: usize,
    factor: PowerOfTwo,
    panel: &'a mut [P],
}

impl<T: Real, P: Real> Kernel for Packing<'_, T, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            from,
            stride,
            rows,
            height,
            factor,
            ..
        } = self;
        if !self.turned {
            let lines = from.chunks(stride);
            for (values, line) in self.panel.chunks_exact_mut(height).zip(lines) {
                scaled(&mut values[..rows], line, factor);
            }
            return;
        }
        let mut block = [[P::default(); TURN]; MOST_HEIGHT];
        let parts = self.panel.chunks_mut(TURN * height);
        for (part, start) in parts.zip((0..).step_by(TURN)) {
            let width = part.len() / height;
            for (line, row) in block[..rows].iter_mut().zip(0..) {
                scaled(&mut line[..width], &from[row * stride + start..], factor);
            }
            for (k, values) in part.chunks_exact_mut(height).enumerate() {
                for (value, line) in values[..rows].iter_mut().zip(&block) {
                    *value = line[k];
                }
            }
        }
    }
}

/// Entries times the factor.
#[inline(always)]
fn scaled<T: Real, P: Real>(values: &mut [P], line: &[T], factor: PowerOfTwo) {
    for (value, entry) in values.iter_mut().zip(line) {
        let wide = factor.times(entry.to_f64().unwrap_or(f64::NAN));
        *value = P::from(wide).unwrap_or_else(P::nan);
    }
}

/// Rows of band `i` and columns of band `j` >= `i`; on the diagonal only the upper half is right.
struct Tile {
    i: usize,
    j: usize,
    rows: usize,
    columns: usize,
    sums: Aligned<f64>,
}

impl Tile {
    fn new(i: usize, j: usize, rows: usize, columns: usize) -> Self {
        let sums = Aligned::zeros(rows * columns);
        Self {
            i,
            j,
            rows,
            columns,
            sums,
        }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.sums[row * self.columns..][..self.columns]
    }
}

/// Products of all pairs of two bands' panels, each V registers high.
struct Products<'a, R: Register, const M: usize, const V: usize> {
    left: &'a [Aligned<R::Item>],
    right: &'a [Aligned<R::Item>],
    depth: usize,
    tile: &'a mut Tile,
}

impl<R, const M: usize, const V: usize> Kernel for Products<'_, R, M, V>
where
    R: Register,
    R::Item: Real,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let height = V * R::LANES;
        let width = self.tile.columns;
        let columns = self.right[0].len() / height;
        for start in (0..columns).step_by(self.depth) {
            let part = start * height..columns.min(start + self.depth) * height;
            for (j, right) in self.right.iter().enumerate() {
                let above = if self.tile.i == self.tile.j {
                    j + 1
                } else {
                    self.left.len()
                };
                for (i, left) in self.left[..above].iter().enumerate() {
                    let (left, right) = (&left[part.clone()], &right[part.clone()]);
                    for row in (0..height).step_by(M) {
                        let place = (i * height + row) * width + j * height;
                        let sums = &mut self.tile.sums[place..];
                        block::<R, M, V>(left, row, right, sums, width);
                    }
                }
            }
        }
    }
}

/// Add the products of `M` rows of one panel, from `row` on, with all rows of another to sums that are `width` apart.
#[inline(always)]
fn block<R, const M: usize, const V: usize>(
    left: &[R::Item],
    row: usize,
    right: &[R::Item],
    sums: &mut [f64],
    width: usize,
) where
    R: Register,
    R::Item: Real,
{
    let height = V * R::LANES;
    assert!(row + M <= height && left.len() == right.len() && left.len().is_multiple_of(height));
    let zero = R::Item::default();
    #[expect(unsafe_code, reason = "sums stay in registers; asserted bounds")]
    // SAFETY: the level in use names the instruction set of R. Every read lies inside one of the `len / height`
    // columns of `height` values of its panel, every store in `lanes`, which has room for the widest register.
    unsafe {
        let mut inner = [[R::splat(zero); V]; M];
        let (mut left, mut from) = (left.as_ptr().add(row), right.as_ptr());
        let end = from.add(right.len());
        while from < end {
            // The fewer of the factors stay in registers, beside the sums.
            if M < V {
                let values: [R; M] = std::array::from_fn(|i| R::splat(*left.add(i)));
                for v in 0..V {
                    let line = R::load(from.add(v * R::LANES));
                    for (inner, value) in inner.iter_mut().zip(values) {
                        inner[v] = inner[v].plus_product(value, line);
                    }
                }
            } else {
                let lines: [R; V] = std::array::from_fn(|v| R::load(from.add(v * R::LANES)));
                for (i, inner) in inner.iter_mut().enumerate() {
                    let value = R::splat(*left.add(i));
                    for (inner, line) in inner.iter_mut().zip(lines) {
                        *inner = inner.plus_product(value, line);
                    }
                }
            }
            (left, from) = (left.wrapping_add(height), from.add(height));
        }
        for (i, inner) in inner.iter().enumerate() {
            for (v, inner) in inner.iter().enumerate() {
                let mut lanes = [zero; MOST_LANES];
                inner.store(lanes.as_mut_ptr());
                let sums = &mut sums[i * width + v * R::LANES..][..R::LANES];
                for (sum, value) in sums.iter_mut().zip(lanes) {
                    *sum += value.to_f64().unwrap_or(f64::NAN);
                }
            }
        }
    }
}
