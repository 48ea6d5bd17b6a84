//! Many tokens: they lie along the lanes, and one weight meets a whole line of them.
//!
//! The inputs of a block of columns are packed just in time into a panel that stays in the L1 cache, while the rows of
//! the weights run over it; their sums wait in the L2 cache for the next block. A kept weight costs one broadcast and,
//! for every register of the line, one fused product with an operand in memory, wherever in its group it stood.

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
use super::simd::Simd;
use super::team::Team;
use super::weights::{Block, QUAD, Weights};
use crate::vector::Kernel;

/// Rows of the smallest tile, below which packing costs more than the products.
const LEAST_TILE: usize = 32;

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
            .min(rows.div_ceil(LEAST_TILE))
            .max(rows.div_ceil(blocking.rows));
        let tile = rows.div_ceil(tiles).next_multiple_of(16);
        let tiles = rows.div_ceil(tile);
        // As even as whole registers allow.
        let edge = |panel: usize| (vectors * panel / panels * S::LANES).min(positions);
        team.run(panels * tiles, &|task| {
            let (panel, first) = (task / tiles, task % tiles * tile);
            let (positions, rows) = (edge(panel)..edge(panel + 1), first..rows.min(first + tile));
            let vectors = positions.len().div_ceil(S::LANES);
            let size = (self.weights.block_width() + 1) * self.weights.line();
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

/// A line of the cache, for its alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// The panel and the sums of a task, kept by each thread: up to 0.7 MB.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch<T>(size: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with_borrow_mut(|lines| {
        lines.resize(lines.len().max(size.div_ceil(16)), Line([0.0; 16]));
        // SAFETY: a Line is 16 values of f32 without padding.
        let values =
            unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) };
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
        for block in job.weights.blocks() {
            let mut lines = Panel {
                values: &mut *panel,
                stride,
                lanes,
            };
            job.grid
                .fill::<S>(job.input, job.round, &positions, &block.columns, &mut lines);
            panel[block.columns.len() * stride..][..lanes].fill(0.0);
            let first = block.columns.start == 0;
            multiply::<S>(vectors, &block, rows.clone(), panel, sums, first);
        }
        job.sink.put_tile::<S>(sums, lanes, rows, &positions);
    }
}

/// sums (rows x lanes) += weights of one block times its panel; `first` starts the sums at zero.
#[inline(always)]
fn multiply<S: Simd>(
    vectors: usize,
    block: &Block<'_>,
    rows: Range<usize>,
    panel: &[f32],
    sums: &mut [f32],
    first: bool,
) {
    macro_rules! by_vectors {
        ($($count:literal: $rows:literal),*) => {
            match vectors {
                $($count => several::<S, $count, $rows>(block, rows, panel, sums, first),)*
                _ => unreachable!("one to WIDEST registers"),
            }
        };
    }
    // Eight chains of sums keep two units busy whose result takes four cycles.
    by_vectors!(1: 8, 2: 4, 3: 3, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1);
}

/// R rows at once, then the rest one by one.
#[inline(always)]
fn several<S: Simd, const C: usize, const R: usize>(
    block: &Block<'_>,
    rows: Range<usize>,
    panel: &[f32],
    sums: &mut [f32],
    first: bool,
) {
    let whole = rows.len() / R * R;
    let (sums, rest) = sums.split_at_mut(whole * C * S::LANES);
    let middle = rows.start + whole;
    // SAFETY: the dispatcher chose S for this CPU.
    unsafe {
        S::enter(Rows::<S, C, R> {
            block,
            range: rows.start..middle,
            panel,
            sums,
            first,
            isa: PhantomData,
        });
        if R > 1 && middle < rows.end {
            S::enter(Rows::<S, C, 1> {
                block,
                range: middle..rows.end,
                panel,
                sums: rest,
                first,
                isa: PhantomData,
            });
        }
    }
}

/// Rows, R at a time, times a panel of C registers.
struct Rows<'a, S, const C: usize, const R: usize> {
    block: &'a Block<'a>,
    range: Range<usize>,
    panel: &'a [f32],
    sums: &'a mut [f32],
    first: bool,
    isa: PhantomData<S>,
}

impl<S: Simd, const C: usize, const R: usize> Kernel for Rows<'_, S, C, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (entries, width) = (self.block.entries, C * S::LANES);
        assert_eq!(self.sums.len(), self.range.len() * width);
        assert!(self.range.end * entries <= self.block.values.len());
        let panel = self.panel.as_ptr();
        // SAFETY: rows and sums were checked above; offsets point at lines of the panel, which hold C registers, and there
        // is a quad behind the last offset that is read ahead of its use.
        unsafe {
            for (group, sums) in self.sums.chunks_exact_mut(R * width).enumerate() {
                let at = (self.range.start + group * R) * entries;
                let (values, offsets) = (
                    self.block.values.as_ptr().add(at),
                    self.block.offsets.as_ptr().add(at),
                );
                let sums = sums.as_mut_ptr();
                let mut totals = [[S::splat(0.0); C]; R];
                if !self.first {
                    for (place, total) in totals.as_flattened_mut().iter_mut().enumerate() {
                        *total = S::load(sums.add(place * S::LANES));
                    }
                }
                let quad = |row: usize, entry: usize| {
                    offsets
                        .add(row * entries + entry)
                        .cast::<u64>()
                        .read_unaligned()
                };
                let mut next: [u64; R] = std::array::from_fn(|row| quad(row, 0));
                for entry in (0..entries).step_by(QUAD) {
                    let mut now = next;
                    next = std::array::from_fn(|row| quad(row, entry + QUAD));
                    for step in 0..QUAD {
                        for row in 0..R {
                            let weight = S::splat(*values.add(row * entries + entry + step));
                            let inputs = panel.byte_add(usize::from(now[row] as u16));
                            now[row] >>= 16;
                            for (vector, total) in totals[row].iter_mut().enumerate() {
                                *total = total
                                    .plus_product(weight, S::load(inputs.add(vector * S::LANES)));
                            }
                        }
                    }
                }
                for (place, total) in totals.as_flattened().iter().enumerate() {
                    total.store(sums.add(place * S::LANES));
                }
            }
        }
    }
}
