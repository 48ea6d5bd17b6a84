//! A symmetric band to a tridiagonal matrix, by chasing bulges down the band: the second stage of its eigenvalues.
//!
//! Sweep j annihilates row j outside the tridiagonal part by a reflector of `B` rows and moves the bulge that this
//! leaves down the band, `B` rows a step (K. Murata, K. Horikoshi, "A new method for the tridiagonalization of the
//! symmetric band matrix", 1975; A. Haidar, H. Ltaief, J. Dongarra, "Parallel reduction to condensed forms for
//! symmetric eigenvalue problems using aggregated fine-grained and memory-aware kernels", 2011).
//! Step s of a sweep needs steps 0..=s+1 of the one before and nothing else, so groups of sweeps walk the band in
//! skewed pieces; pieces of one wave lie in different rows. The order of operations on an entry never changes.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "rows and lanes go by number, as in the formulas"
)]

use rayon::prelude::*;

use crate::linalg::band::Turn;
use crate::linalg::dense::Real;
use crate::linalg::side::SIDE;
use crate::linalg::symmetric::LONG;
use crate::vector::{FusedKernel, multiply_add, widest_fused};

/// Half width of the band: with 32 the chase takes 1.4 times as long, and the first stage no less.
const B: usize = SIDE;
/// Values that are added up together.
const LANES: usize = 16;
/// Sweeps of a group, and steps of a piece.
const GROUP: usize = 8;

/// A symmetric (n x n) band matrix of half width `B`, with room for bulges.
///
/// Row c takes [`Self::STRIDE`] values: the entries from (c, c - B) to (c, c + 2 B - 1). The lower half only serves the
/// diagonal blocks, which are read by rows. `B` rows of zeros below the last one make all blocks equal.
pub(crate) struct Band<T> {
    n: usize,
    entries: Vec<T>,
}

impl<T: Real> Band<T> {
    const STRIDE: usize = 3 * B;

    pub(crate) fn new(n: usize) -> Self {
        Self {
            n,
            entries: vec![T::zero(); (n + B) * Self::STRIDE],
        }
    }

    /// Entries of a row from the diagonal on, in two parts.
    pub(crate) fn set(&mut self, row: usize, first: &[T], second: &[T]) {
        for (beside, value) in first.iter().chain(second).enumerate() {
            self.entries[row * Self::STRIDE + B + beside] = *value;
            self.entries[(row + beside) * Self::STRIDE + B - beside] = *value;
        }
    }

    /// Diagonal and off-diagonal of an orthogonally similar tridiagonal matrix.
    pub(crate) fn into_tridiagonal(mut self) -> (Vec<f64>, Vec<f64>) {
        let sweeps = self.n.saturating_sub(2);
        let mut groups: Vec<Group<T>> = (0..sweeps.div_ceil(GROUP))
            .map(|g| Group::new(g * GROUP, sweeps.min((g + 1) * GROUP), self.n))
            .collect();
        let pieces = |group: &Group<T>| group.pieces();
        let waves = groups
            .iter()
            .enumerate()
            .map(|(g, group)| 2 * g + pieces(group))
            .max()
            .unwrap_or(0);
        let mut low = 0;
        for wave in 0..waves {
            let high = groups.len().min(wave / 2 + 1);
            while low < high && 2 * low + pieces(&groups[low]) <= wave {
                low += 1;
            }
            self.wave(&mut groups[low..high], wave - 2 * low);
        }
        let wide = |value: T| value.to_f64().unwrap_or(f64::NAN);
        let line = |row: usize| &self.entries[row * Self::STRIDE + B..];
        let diagonal = (0..self.n).map(|row| wide(line(row)[0])).collect();
        let beside = (1..self.n).map(|row| wide(line(row - 1)[1])).collect();
        (diagonal, beside)
    }

    /// One piece of every group: the first takes its piece `piece`, each one after it the second one before.
    fn wave(&mut self, groups: &mut [Group<T>], piece: usize) {
        let mut rest = self.entries.as_mut_slice();
        let mut taken = 0;
        let mut tasks = Vec::with_capacity(groups.len());
        for (index, group) in groups.iter_mut().enumerate().rev() {
            let piece = piece - 2 * index;
            let Some(rows) = group.rows(piece, self.n) else {
                continue;
            };
            let (_, from) = rest.split_at_mut((rows.start - taken) * Self::STRIDE);
            let (own, after) = from.split_at_mut(rows.len() * Self::STRIDE);
            (rest, taken) = (after, rows.end);
            tasks.push((group, piece, own, rows.start));
        }
        let n = self.n;
        let work = |(group, piece, rows, first): (&mut Group<T>, usize, &mut [T], usize)| {
            widest_fused(Walk {
                group,
                piece,
                window: Window { rows, first, n },
            });
        };
        if tasks.len() == 1 || n < LONG {
            tasks.into_iter().for_each(work);
        } else {
            tasks.into_par_iter().with_max_len(1).for_each(work);
        }
    }
}

/// Sweeps that walk together, with the reflector that each carries.
struct Group<T> {
    first: usize,
    reflectors: Vec<Reflector<T>>,
    steps: usize,
}

#[derive(Clone)]
struct Reflector<T> {
    vector: [T; B],
    scale: T,
}

impl<T: Real> Group<T> {
    fn new(first: usize, end: usize, n: usize) -> Self {
        let none = Reflector {
            vector: [T::zero(); B],
            scale: T::zero(),
        };
        Self {
            first,
            reflectors: vec![none; end - first],
            steps: (n - 1 - first).div_ceil(B),
        }
    }

    /// Sweep i takes the steps piece GROUP - i .. (piece + 1) GROUP - i.
    fn pieces(&self) -> usize {
        (self.steps + GROUP - 1).div_ceil(GROUP)
    }

    /// The steps of sweep `index` in a piece.
    fn steps(&self, piece: usize, index: usize, n: usize) -> std::ops::Range<usize> {
        let steps = (n - 1 - self.first - index).div_ceil(B);
        let at = |piece: usize| (piece * GROUP).saturating_sub(index).min(steps);
        at(piece)..at(piece + 1)
    }

    /// The rows that a piece touches.
    fn rows(&self, piece: usize, n: usize) -> Option<std::ops::Range<usize>> {
        let mut rows: Option<std::ops::Range<usize>> = None;
        for index in 0..self.reflectors.len() {
            let steps = self.steps(piece, index, n);
            if steps.is_empty() {
                continue;
            }
            let sweep = self.first + index;
            // The first step also takes the row of the sweep itself.
            let start = sweep + usize::from(steps.start > 0) + steps.start * B;
            let end = sweep + 1 + steps.end * B;
            rows = Some(rows.map_or(start..end, |r| r.start.min(start)..r.end.max(end)));
        }
        rows
    }
}

struct Walk<'a, T> {
    group: &'a mut Group<T>,
    piece: usize,
    window: Window<'a, T>,
}

impl<T: Real> FusedKernel for Walk<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(mut self) {
        for index in 0..self.group.reflectors.len() {
            let steps = self.group.steps(self.piece, index, self.window.n);
            let sweep = self.group.first + index;
            let carried = &mut self.group.reflectors[index];
            for step in steps {
                if step == 0 {
                    self.window.start::<FUSED>(sweep, carried);
                }
                self.window.step::<FUSED>(sweep + 1 + step * B, carried);
            }
        }
    }
}

/// Some rows of the band.
struct Window<'a, T> {
    rows: &'a mut [T],
    first: usize,
    n: usize,
}

impl<T: Real> Window<'_, T> {
    /// Where an entry lies.
    #[inline(always)]
    fn place(&self, row: usize, column: usize) -> usize {
        (row - self.first) * Band::<T>::STRIDE + B + column - row
    }

    /// The row's entries in the columns from `column` on.
    #[inline(always)]
    fn block(&mut self, row: usize, column: usize) -> &mut [T; B] {
        let place = self.place(row, column);
        self.rows[place..]
            .first_chunk_mut()
            .expect("a row of the band holds the block")
    }

    /// Make row `sweep` tridiagonal; the reflector is carried on.
    #[inline(always)]
    fn start<const FUSED: bool>(&mut self, sweep: usize, carried: &mut Reflector<T>) {
        *carried = take::<T, FUSED>(self.block(sweep, sweep + 1));
    }

    /// Apply the reflector to its rows from both sides, then to the block on their right, and make the first row of
    /// what comes out of that block short again by the next reflector.
    #[inline(always)]
    fn step<const FUSED: bool>(&mut self, row: usize, carried: &mut Reflector<T>) {
        self.diagonal::<FUSED>(row, carried);
        if row + B < self.n {
            self.beside::<FUSED>(row, carried);
        }
    }

    /// S -= w v' + v w', w = scale (S v - scale (v' S v) v / 2), in both halves.
    #[inline(always)]
    fn diagonal<const FUSED: bool>(&mut self, row: usize, h: &Reflector<T>) {
        // The sweep before left the last row's lower half as it was.
        let last = self.place(row + B - 1, row);
        let (above, line) = self.rows.split_at_mut(last);
        let column = above[last - (B - 1) * (Band::<T>::STRIDE - 1) + B - 1..].iter();
        for (to, from) in line[..B - 1]
            .iter_mut()
            .zip(column.step_by(Band::<T>::STRIDE - 1))
        {
            *to = *from;
        }
        let mut w = [T::zero(); B];
        for i in 0..B {
            w = plus::<T, FUSED>(&w, h.vector[i], self.block(row + i, row));
        }
        for value in &mut w {
            *value *= h.scale;
        }
        let half = h.scale / (T::one() + T::one());
        let along = -half * dot::<T, FUSED>(&w, &h.vector);
        w = plus::<T, FUSED>(&w, along, &h.vector);
        for i in 0..B {
            let line = self.block(row + i, row);
            let once = plus::<T, FUSED>(line, -w[i], &h.vector);
            *line = plus::<T, FUSED>(&once, -h.vector[i], &w);
        }
    }

    #[inline(always)]
    fn beside<const FUSED: bool>(&mut self, row: usize, h: &mut Reflector<T>) {
        let mut y = [T::zero(); B];
        for i in 0..B {
            y = plus::<T, FUSED>(&y, h.vector[i], self.block(row + i, row + B));
        }
        for value in &mut y {
            *value *= h.scale;
        }
        let line = self.block(row, row + B);
        *line = plus::<T, FUSED>(line, -h.vector[0], &y);
        let next = take::<T, FUSED>(line);
        let mut products = [[T::zero(); LANES]; B];
        for i in 1..B {
            let line = self.block(row + i, row + B);
            *line = plus::<T, FUSED>(line, -h.vector[i], &y);
            products[i] = lanes_of_dot::<T, FUSED>(line, &next.vector);
        }
        for i in 1..B {
            let part = -next.scale * total(products[i]);
            let line = self.block(row + i, row + B);
            *line = plus::<T, FUSED>(line, part, &next.vector);
        }
        *h = next;
    }
}

/// Reflect a row onto its first entry.
///
/// Whole rows throughout: loops over all but the first entry are turned into vector code of odd widths.
#[inline(always)]
fn take<T: Real, const FUSED: bool>(row: &mut [T; B]) -> Reflector<T> {
    let first = std::mem::replace(&mut row[0], T::zero());
    let turn = Turn::new(first, dot::<T, FUSED>(row, row));
    let mut vector = row.map(|value| value * turn.factor);
    vector[0] = T::one();
    *row = [T::zero(); B];
    row[0] = turn.onto;
    Reflector {
        vector,
        scale: turn.scale,
    }
}

/// line + factor x
#[inline(always)]
fn plus<T: Real, const FUSED: bool>(line: &[T; B], factor: T, x: &[T; B]) -> [T; B] {
    std::array::from_fn(|k| multiply_add::<T, FUSED>(factor, x[k], line[k]))
}

#[inline(always)]
fn dot<T: Real, const FUSED: bool>(a: &[T; B], b: &[T; B]) -> T {
    total(lanes_of_dot::<T, FUSED>(a, b))
}

#[inline(always)]
fn lanes_of_dot<T: Real, const FUSED: bool>(a: &[T; B], b: &[T; B]) -> [T; LANES] {
    let mut sums = [T::zero(); LANES];
    for start in (0..B).step_by(LANES) {
        for k in 0..LANES {
            sums[k] = multiply_add::<T, FUSED>(a[start + k], b[start + k], sums[k]);
        }
    }
    sums
}

#[inline(always)]
fn total<T: Real>(mut sums: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for k in 0..width {
            sums[k] += sums[k + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests;
