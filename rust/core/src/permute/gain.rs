//! What a column is worth in a slot of a group, for all columns and slots at once.
//!
//! Let `a_N` and `a_{N+1}` be the N-th and (N+1)-th largest entries of a group in some row. With column j taken out, the
//! N-th largest of the rest is `theta = a_{N+1}` if `s_j >= a_N`, else `a_N`; putting column c in its place adds
//! `max(0, s_c - theta) = max(s_c, theta) - theta` to the sum of the N largest. Everything is element-wise along the rows,
//! so columns are stored contiguously and padded with zeros to whole vectors.

use std::ops::Range;

use rayon::prelude::*;

use super::tile::{self, LANES, Lanes, TILE};
use crate::nm::{network::Network, pattern::MAX_GROUP, select::Score};
use crate::vector::Kernel;

/// Rows of one pass of the gain kernel: four columns of this length fit half of an L1 cache of 32 kB.
const ROWS: usize = 1024;

/// Thresholds of one pass: as many of that length are half of an L2 cache of 512 kB, and all columns meet them there.
const THRESHOLDS: usize = 64;

/// Rows of a group that are sorted at once.
const STRIP: usize = 128;

/// A matrix by columns, in f32.
pub(crate) struct Columns {
    data: Vec<f32>,
    stride: usize,
}

impl Columns {
    /// Transpose a (rows x columns) row-major matrix, times `scale`.
    pub(crate) fn new<T: Score>(score: &[T], columns: usize, scale: f64) -> Self {
        let rows = score.len() / columns;
        let stride = rows.next_multiple_of(LANES);
        let mut data = vec![0.0; stride * columns];
        data.par_chunks_mut(stride * LANES)
            .enumerate()
            .for_each(|(block, data)| {
                let first = block * LANES;
                for (row, line) in score.chunks_exact(columns).enumerate() {
                    for (column, value) in data.chunks_exact_mut(stride).zip(&line[first..]) {
                        column[row] = (Into::<f64>::into(*value) * scale) as f32;
                    }
                }
            });
        Self { data, stride }
    }

    /// Rows, padding included.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// One column.
    pub(crate) fn column(&self, column: u32) -> &[f32] {
        &self.data[column as usize * self.stride..][..self.stride]
    }
}

/// For each row the N-th and the (N+1)-th largest of a group, and the sum of its N largest over all rows.
pub(crate) struct GroupStatistics<'a> {
    /// The M columns of the group.
    pub(crate) columns: &'a [&'a [f32]],
    /// N.
    pub(crate) keep: usize,
    /// Puts lines N-1 and N of M in their places.
    pub(crate) network: &'a Network,
    /// Receives the N-th largest.
    pub(crate) last: &'a mut [f32],
    /// Receives the (N+1)-th largest.
    pub(crate) next: &'a mut [f32],
}

impl Kernel for GroupStatistics<'_> {
    /// The sum, in f64: that of `max(s, a_N)`, less `(M - N) a_N`.
    type Output = f64;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) -> f64 {
        match self.columns.len() {
            ..=4 => self.sort::<{ 4 * STRIP }>(),
            5..=16 => self.sort::<{ 16 * STRIP }>(),
            _ => self.sort::<{ MAX_GROUP * STRIP }>(),
        }
    }
}

impl GroupStatistics<'_> {
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn sort<const SIZE: usize>(self) -> f64 {
        let mut buffer = [0.0f32; SIZE];
        let surplus = (self.columns.len() - self.keep) as f32;
        let mut total = 0.0;
        for row in (0..self.last.len()).step_by(STRIP) {
            let width = STRIP.min(self.last.len() - row);
            let lines = &mut buffer[..self.columns.len() * width];
            for (line, column) in lines.chunks_exact_mut(width).zip(self.columns) {
                line.copy_from_slice(&column[row..row + width]);
            }
            self.network.apply(lines, width);
            let last = &mut self.last[row..row + width];
            last.copy_from_slice(&lines[(self.keep - 1) * width..][..width]);
            self.next[row..row + width].copy_from_slice(&lines[self.keep * width..][..width]);
            let mut sum = [0.0f32; LANES];
            for (block, last) in last.chunks_exact(LANES).enumerate() {
                for line in lines.chunks_exact(width) {
                    let line = &line[block * LANES..][..LANES];
                    for lane in 0..LANES {
                        sum[lane] += if line[lane] > last[lane] {
                            line[lane]
                        } else {
                            last[lane]
                        };
                    }
                }
                for lane in 0..LANES {
                    sum[lane] -= surplus * last[lane];
                }
            }
            total += sum.iter().map(|&v| f64::from(v)).sum::<f64>();
        }
        total
    }
}

/// theta of a slot: the N-th largest of its group without column `own`.
pub(crate) struct Threshold<'a> {
    /// The column in the slot.
    pub(crate) own: &'a [f32],
    /// N-th largest of the group.
    pub(crate) last: &'a [f32],
    /// (N+1)-th largest.
    pub(crate) next: &'a [f32],
    /// Receives theta.
    pub(crate) theta: &'a mut [f32],
}

impl Kernel for Threshold<'_> {
    type Output = ();

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) {
        let group = self.last.iter().zip(self.next);
        for ((theta, &own), (&last, &next)) in self.theta.iter_mut().zip(self.own).zip(group) {
            *theta = if own >= last { next } else { last };
        }
    }
}

/// `gain[i * n + j]` = sum over rows of `max(column_i, theta_j)`: a matrix product with max in place of times.
///
/// `theta` are n lines; `gain` is (columns x n). Sums run over 16 lanes in f32, `ROWS` rows at a time.
pub(crate) fn sums_of_max(columns: &[&[f32]], theta: &[&[f32]], gain: &mut [f32]) {
    let kernel = tile::sums_of_max();
    let n = theta.len();
    let blocks = theta.first().map_or(0, |theta| theta.len() / LANES);
    gain.fill(0.0);
    for block in (0..blocks).step_by(ROWS / LANES) {
        let part = block..blocks.min(block + ROWS / LANES);
        for first in (0..n).step_by(THRESHOLDS) {
            for i in (0..columns.len()).step_by(TILE) {
                let x = pick(columns, i, part.clone());
                for j in (first..n.min(first + THRESHOLDS)).step_by(TILE) {
                    let sums = kernel(&x, &pick(theta, j, part.clone()));
                    for (di, line) in sums.iter().enumerate().take(columns.len() - i) {
                        for (dj, lanes) in line.iter().enumerate().take(n - j) {
                            gain[(i + di) * n + j + dj] += folded(*lanes);
                        }
                    }
                }
            }
        }
    }
}

/// Sum of the lanes, halves upon halves.
fn folded(mut lanes: Lanes) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Blocks `part` of `TILE` lines from `first` on; the last line stands in for those beyond the end.
fn pick<'a>(lines: &[&'a [f32]], first: usize, part: Range<usize>) -> [&'a [Lanes]; TILE] {
    std::array::from_fn(|k| {
        let line = lines[(first + k).min(lines.len() - 1)];
        &line.as_chunks::<LANES>().0[part.clone()]
    })
}

/// Add noise in [0, amplitude) to every entry: the integer hash "lowbias32" (C. Wellons) of key and position.
pub(crate) struct Noise<'a> {
    /// The entries.
    pub(crate) entries: &'a mut [f32],
    /// Upper end of the noise.
    pub(crate) amplitude: f32,
    /// Another key gives other noise.
    pub(crate) key: u32,
}

impl Kernel for Noise<'_> {
    type Output = ();

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) {
        let step = self.amplitude / (1u32 << 24) as f32;
        for (position, entry) in self.entries.iter_mut().enumerate() {
            let mut x = (position as u32).wrapping_mul(0x9e37_79b9) ^ self.key;
            x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
            x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
            *entry += step * ((x ^ (x >> 16)) >> 8) as f32;
        }
    }
}
