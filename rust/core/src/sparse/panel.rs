//! Many tokens: they lie along the lanes, and one weight meets a whole line of them.
//!
//! The inputs of a block of columns are packed just in time into a panel that stays in the L1 cache, while the rows of
//! the weights run over it two by two; their sums wait in the L2 cache for the next block. A kept weight costs one
//! broadcast and, for every register of the line, one fused product, wherever in its group it stood; an input that both
//! rows keep is read once for both.

#![expect(
    unsafe_code,
    reason = "the innermost loop follows offsets that Weights has checked"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::field::Input;
use super::grid::{Grid, Panel};
use super::output::Sink;
use super::pairs::BAND;
use super::simd::Simd;
use super::team::Team;
use super::weights::{Entries, Weights};
use crate::vector::Kernel;
use crate::vector::aligned::Aligned;

/// A product to be shared out in tasks.
pub(super) struct Job<'a> {
    pub(super) weights: &'a Weights,
    pub(super) grid: Grid,
    pub(super) input: Input<'a>,
    /// Round the inputs to bfloat16.
    pub(super) round: bool,
    pub(super) sink: &'a Sink<'a>,
}

impl Job<'_> {
    pub(super) fn run<S: Simd>(&self, team: Team) {
        let (rows, positions) = (self.weights.shape().0, self.grid.positions());
        let blocking = self.weights.blocking();
        let vectors = positions.div_ceil(S::LANES);
        let (panels, threads) = (vectors.div_ceil(S::WIDEST), team.size());
        let wanted = blocking.tiles(panels, threads);
        let tiles = wanted
            .min(rows.div_ceil(BAND))
            .max(rows.div_ceil(blocking.rows));
        let tile = rows.div_ceil(tiles).next_multiple_of(BAND);
        let tiles = rows.div_ceil(tile);
        // As even as whole registers allow.
        let edge = |panel: usize| (vectors * panel / panels * S::LANES).min(positions);
        team.run(panels * tiles, &|task| {
            let (panel, first) = (task / tiles, task % tiles * tile);
            let (positions, rows) = (edge(panel)..edge(panel + 1), first..rows.min(first + tile));
            let vectors = positions.len().div_ceil(S::LANES);
            let size = self.weights.block_width() * self.weights.line();
            with_scratch(size + rows.len() * vectors * S::LANES, |scratch| {
                let (panel, sums) = scratch.split_at_mut(size);
                // SAFETY: the dispatcher chose S for this CPU.
                unsafe {
                    S::enter(Task::<S> {
                        job: self,
                        positions,
                        rows,
                        panel,
                        sums,
                        isa: PhantomData,
                    });
                }
            });
        });
    }
}

thread_local! {
    /// The panel and the sums of a task, kept by each thread: up to 0.7 MB.
    static SCRATCH: RefCell<Aligned<f32>> = RefCell::new(Aligned::zeros(0));
}

fn with_scratch<T>(size: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with_borrow_mut(|values| {
        if values.len() < size {
            *values = Aligned::zeros(size);
        }
        work(&mut values[..size])
    })
}

/// Some rows at the positions of one panel.
struct Task<'a, S> {
    job: &'a Job<'a>,
    positions: Range<usize>,
    rows: Range<usize>,
    panel: &'a mut [f32],
    /// (rows x lanes).
    sums: &'a mut [f32],
    isa: PhantomData<S>,
}

impl<S: Simd> Kernel for Task<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            job,
            positions,
            rows,
            panel,
            sums,
            ..
        } = self;
        let (stride, vectors) = (job.weights.line(), positions.len().div_ceil(S::LANES));
        let lanes = vectors * S::LANES;
        for (block, columns) in job.weights.blocks().enumerate() {
            let mut lines = Panel {
                values: &mut *panel,
                stride,
                lanes,
            };
            job.grid
                .fill::<S>(job.input, job.round, &positions, &columns, &mut lines);
            let entries = job.weights.entries(block, &rows);
            multiply::<S>(vectors, &entries, panel, sums, block == 0);
        }
        job.sink.put_tile::<S>(sums, lanes, rows, &positions);
    }
}

/// sums (rows x lanes) += weights of one block times its panel; `first` starts the sums at zero.
#[inline(always)]
fn multiply<S: Simd>(
    vectors: usize,
    entries: &Entries<'_>,
    panel: &[f32],
    sums: &mut [f32],
    first: bool,
) {
    macro_rules! by_vectors {
        ($($count:literal),*) => {
            match vectors {
                // SAFETY: the dispatcher chose S for this CPU.
                $($count if $count <= S::WIDEST => unsafe {
                    S::enter(Pairs::<S, $count> { entries, panel, sums, first, isa: PhantomData });
                },)*
                _ => unreachable!("one to WIDEST registers"),
            }
        };
    }
    by_vectors!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
}

/// Pairs of rows times a panel of C registers.
struct Pairs<'a, S, const C: usize> {
    entries: &'a Entries<'a>,
    panel: &'a [f32],
    sums: &'a mut [f32],
    first: bool,
    isa: PhantomData<S>,
}

impl<S: Simd, const C: usize> Kernel for Pairs<'_, S, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = C * S::LANES;
        let mut lines = Lines {
            panel: self.panel.as_ptr(),
            values: self.entries.values.as_ptr(),
            offsets: self.entries.offsets.as_ptr(),
        };
        for (sums, pairs) in self.sums.chunks_mut(BAND * width).zip(&self.entries.pairs) {
            for pair in *pairs {
                let [upper, lower] = pair.rows.map(usize::from);
                assert!((upper + 1) * width <= sums.len() && (lower + 1) * width <= sums.len());
                // SAFETY: the sums of both rows were checked; Weights has written an offset and two values for each step, and
                // the offsets point at lines of the panel, which hold C registers.
                unsafe {
                    let (upper, lower) = (
                        sums.as_mut_ptr().add(upper * width),
                        sums.as_mut_ptr().add(lower * width),
                    );
                    let mut totals = [[S::splat(0.0); C]; 2];
                    if !self.first {
                        load(&mut totals[0], upper);
                        load(&mut totals[1], lower);
                    }
                    for _ in 0..pair.mixed {
                        lines.shared(&mut totals);
                        lines.own(&mut totals);
                    }
                    for _ in 0..pair.shared {
                        lines.shared(&mut totals);
                    }
                    for _ in 0..pair.own {
                        lines.own(&mut totals);
                    }
                    // A row without a partner is its own: what counts is stored last.
                    store(&totals[1], lower);
                    store(&totals[0], upper);
                }
            }
        }
        debug_assert_eq!(lines.values, self.entries.values.as_ptr_range().end);
        debug_assert_eq!(lines.offsets, self.entries.offsets.as_ptr_range().end);
    }
}

/// What is read next.
struct Lines {
    panel: *const f32,
    values: *const f32,
    offsets: *const u16,
}

impl Lines {
    /// The inputs of the next offset.
    #[inline(always)]
    unsafe fn next(&mut self) -> *const f32 {
        // SAFETY: as the caller's.
        unsafe {
            let offset = *self.offsets;
            self.offsets = self.offsets.add(1);
            self.panel.byte_add(offset.into())
        }
    }

    #[inline(always)]
    unsafe fn weights<S: Simd>(&mut self) -> [S; 2] {
        // SAFETY: as the caller's.
        unsafe {
            let weights = [S::splat(*self.values), S::splat(*self.values.add(1))];
            self.values = self.values.add(2);
            weights
        }
    }

    /// Both rows add the same inputs, each by its weight.
    #[inline(always)]
    unsafe fn shared<S: Simd, const C: usize>(&mut self, totals: &mut [[S; C]; 2]) {
        // SAFETY: as the caller's.
        unsafe {
            let (weights, inputs) = (self.weights::<S>(), self.next());
            for vector in 0..C {
                let inputs = S::load(inputs.add(vector * S::LANES));
                for (totals, &weight) in totals.iter_mut().zip(&weights) {
                    totals[vector] = totals[vector].plus_product(weight, inputs);
                }
            }
        }
    }

    /// Each row adds inputs of its own.
    #[inline(always)]
    unsafe fn own<S: Simd, const C: usize>(&mut self, totals: &mut [[S; C]; 2]) {
        // SAFETY: as the caller's.
        unsafe {
            let weights = self.weights::<S>();
            for (totals, &weight) in totals.iter_mut().zip(&weights) {
                let inputs = self.next();
                for (vector, total) in totals.iter_mut().enumerate() {
                    *total = total.plus_product(weight, S::load(inputs.add(vector * S::LANES)));
                }
            }
        }
    }
}

/// # Safety
/// As [`Register::load`](super::simd::Register::load), for C registers.
#[inline(always)]
unsafe fn load<S: Simd, const C: usize>(totals: &mut [S; C], from: *const f32) {
    for (vector, total) in totals.iter_mut().enumerate() {
        // SAFETY: as the caller's.
        *total = unsafe { S::load(from.add(vector * S::LANES)) };
    }
}

/// # Safety
/// As [`Register::store`](super::simd::Register::store), for C registers.
#[inline(always)]
unsafe fn store<S: Simd, const C: usize>(totals: &[S; C], to: *mut f32) {
    for (vector, total) in totals.iter().enumerate() {
        // SAFETY: as the caller's.
        unsafe { total.store(to.add(vector * S::LANES)) };
    }
}
