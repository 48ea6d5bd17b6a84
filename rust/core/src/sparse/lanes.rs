//! Few tokens: sixteen rows lie along the lanes, and the inputs of each weight are selected in registers.
//!
//! Nothing is packed and every weight is read once for up to 12 tokens, so one token costs what the memory takes to deliver 4.5 bytes per
//! kept weight, or 2.5 where all of them are values of bfloat16. Columns are cut into windows of up to 16; in a window
//! every row has the same number of entries.

#![expect(
    unsafe_code,
    reason = "the weights and the windows are read through pointers"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use super::grid::Element;
use super::output::Sink;
use super::simd::{MOST_LANES, Simd, narrowed};
use super::weights::Weights;
use crate::vector::Kernel;
use crate::vector::aligned::Aligned;

/// Rows that lie along the lanes: one register of AVX-512, two of AVX2.
pub(super) const ROWS: usize = 16;
/// Most tokens of one pass over the weights, whose sums take that many registers of AVX-512.
const TOKENS: usize = 12;

/// The same of an instruction set with other registers.
const fn most<S: Simd>() -> usize {
    TOKENS * S::LANES / ROWS
}

/// Registers of sums of AVX2 that are in use at once, where there are enough rows.
const CHAINS: usize = 8;
/// Values behind the last window that may be read.
pub(super) const MARGIN: usize = 16;

/// Weights by 16 rows, window and step.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Columns of a window, at most 16.
    pub(super) window: usize,
    windows: usize,
    /// Entries of a row in a window.
    steps: usize,
    /// (blocks of 16 rows) x windows x steps x 16.
    values: Values,
    /// Two steps to a byte, the first in the low half: (blocks) x windows x ceil(steps / 2) x 16.
    places: Aligned<u8>,
}

/// Weights in the shorter of two types that holds them exactly.
#[derive(Debug)]
enum Values {
    F32(Aligned<f32>),
    Bf16(Aligned<u16>),
}

impl Values {
    fn new(values: Aligned<f32>, bfloat16: bool) -> Self {
        if bfloat16 {
            let mut narrow = Aligned::zeros(values.len());
            for (to, value) in narrow.iter_mut().zip(&*values) {
                *to = narrowed(*value);
            }
            Self::Bf16(narrow)
        } else {
            Self::F32(values)
        }
    }
}

impl Lanes {
    /// None where a group is wider than a window.
    pub(super) fn new(weights: &Weights) -> Option<Self> {
        let ((rows, columns), pattern) = (weights.shape(), weights.pattern());
        let (keep, group) = (pattern.keep(), pattern.group());
        if group > MOST_LANES {
            return None;
        }
        let per_window = (8 / group).max(1);
        let window = per_window * group;
        let (windows, blocks) = (columns.div_ceil(window), rows.div_ceil(ROWS));
        let steps = per_window * keep;
        let bytes = steps.div_ceil(2);
        // An entry that is missing in the last window takes the zero behind the last input.
        let spare = (columns % window) as u8;
        let mut values = Aligned::zeros(blocks * windows * steps * ROWS);
        let mut places = Aligned::zeros(blocks * windows * bytes * ROWS);
        places.fill(spare << 4 | spare);
        for (row, entries) in weights.by_row().into_iter().enumerate() {
            for (position, (column, value)) in entries.into_iter().enumerate() {
                let (at, step) = (row / ROWS * windows + position / steps, position % steps);
                values[(at * steps + step) * ROWS + row % ROWS] = value;
                let byte = &mut places[(at * bytes + step / 2) * ROWS + row % ROWS];
                let (place, half) = ((column % window) as u8, 4 * (step % 2));
                *byte = *byte & !(15 << half) | place << half;
            }
        }
        Some(Self {
            window,
            windows,
            steps,
            values: Values::new(values, weights.bfloat16),
            places,
        })
    }

    /// Values of a token's inputs: the columns, and zeros up to the end of what may be read.
    pub(super) fn padded(&self) -> usize {
        self.windows * self.window + MARGIN
    }
}

/// The outputs of some blocks of 16 rows for all tokens.
pub(super) struct Few<'a, S> {
    pub(super) lanes: &'a Lanes,
    pub(super) blocks: std::ops::Range<usize>,
    /// (tokens x [`Lanes::padded`]).
    pub(super) inputs: &'a [f32],
    pub(super) sink: &'a Sink<'a>,
    pub(super) isa: std::marker::PhantomData<S>,
}

impl<S: Simd> Kernel for Few<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match &self.lanes.values {
            Values::F32(values) => self.products(values),
            Values::Bf16(values) => self.products(values),
        }
    }
}

impl<S: Simd> Few<'_, S> {
    #[inline(always)]
    fn products<E: Element>(&self, values: &[E]) {
        let stride = self.lanes.padded();
        let tokens = self.inputs.len() / stride;
        // As even as can be.
        let passes = tokens.div_ceil(most::<S>());
        for pass in 0..passes {
            let first = tokens * pass / passes;
            let count = tokens * (pass + 1) / passes - first;
            let inputs = &self.inputs[first * stride..][..count * stride];
            // Eight chains of sums, as many as two units of four cycles can work on.
            let most = (CHAINS / (2 * count)).max(1);
            let mut block = self.blocks.start;
            while block < self.blocks.end {
                let blocks = if block + most <= self.blocks.end {
                    most
                } else {
                    1
                };
                let mut sums = [[0.0; ROWS]; TOKENS];
                self.lanes
                    .pass::<S, E>(values, block, blocks, inputs, &mut sums);
                for (place, sums) in sums[..blocks * count].iter_mut().enumerate() {
                    let (row, token) = ((block + place / count) * ROWS, first + place % count);
                    self.sink.put_rows(token, row, sums);
                }
                block += blocks;
            }
        }
    }
}

impl Lanes {
    #[inline(always)]
    fn pass<S: Simd, E: Element>(
        &self,
        values: &[E],
        block: usize,
        blocks: usize,
        inputs: &[f32],
        sums: &mut [[f32; ROWS]; TOKENS],
    ) {
        macro_rules! by_tokens {
            ($($tokens:literal: $blocks:literal),*) => {
                match (inputs.len() / self.padded(), blocks, self.window > S::LANES) {
                    $(($tokens, $blocks, false) if $tokens <= most::<S>() => self.blocks::<S, E, $tokens, $blocks, false>(values, block, inputs, sums),
                      ($tokens, $blocks, true) if $tokens <= most::<S>() => self.blocks::<S, E, $tokens, $blocks, true>(values, block, inputs, sums),)*
                    _ => unreachable!("one to most tokens"),
                }
            };
        }
        by_tokens!(1: 4, 1: 1, 2: 2, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1);
    }

    /// Sums of B blocks of 16 rows for T tokens, (blocks x tokens), entry by entry in the order of the columns.
    #[inline(always)]
    fn blocks<S: Simd, E: Element, const T: usize, const B: usize, const WIDE: bool>(
        &self,
        values: &[E],
        first: usize,
        inputs: &[f32],
        sums: &mut [[f32; ROWS]; TOKENS],
    ) {
        let (steps, bytes, stride) = (self.steps, self.steps.div_ceil(2), self.padded());
        let (block_values, block_places) =
            (self.windows * steps * ROWS, self.windows * bytes * ROWS);
        assert_eq!(inputs.len(), T * stride);
        assert!((first + B) * block_values <= values.len());
        // SAFETY: window w starts at w * window <= stride - MARGIN - window, and reaches 16 values at most; there are
        // `steps` times 16 values and `bytes` times 16 places for each block and window; 16 is a multiple of LANES.
        unsafe {
            let values = values.as_ptr().add(first * block_values);
            let places = self.places.as_ptr().add(first * block_places);
            let mut totals = [[[S::splat(0.0); T]; ROWS / 8]; B];
            for window in 0..self.windows {
                let inputs = inputs.as_ptr().add(window * self.window);
                for pair in 0..bytes {
                    for (block, totals) in totals.iter_mut().enumerate() {
                        let values =
                            values.add(block * block_values + (window * steps + 2 * pair) * ROWS);
                        let places =
                            places.add(block * block_places + (window * bytes + pair) * ROWS);
                        for (part, totals) in totals.iter_mut().enumerate().take(ROWS / S::LANES) {
                            let chosen = S::places(places.add(part * S::LANES));
                            let values = values.add(part * S::LANES);
                            let weight = E::load::<S>(values, false);
                            add::<S, T, WIDE>(totals, weight, inputs, stride, chosen);
                            if 2 * pair + 1 < steps {
                                let weight = E::load::<S>(values.add(ROWS), false);
                                add::<S, T, WIDE>(
                                    totals,
                                    weight,
                                    inputs,
                                    stride,
                                    S::high_places(chosen),
                                );
                            }
                        }
                    }
                }
            }
            for (block, totals) in totals.iter().enumerate() {
                for (part, totals) in totals.iter().enumerate().take(ROWS / S::LANES) {
                    for (token, total) in totals.iter().enumerate() {
                        total.store(sums[block * T + token][part * S::LANES..].as_mut_ptr());
                    }
                }
            }
        }
    }
}

/// totals += weight times the chosen inputs, token by token.
///
/// # Safety
/// As [`Simd::select`], for T windows `stride` values apart.
#[inline(always)]
unsafe fn add<S: Simd, const T: usize, const WIDE: bool>(
    totals: &mut [S; T],
    weight: S,
    inputs: *const f32,
    stride: usize,
    chosen: S::Places,
) {
    for (token, total) in totals.iter_mut().enumerate() {
        // SAFETY: as the caller's.
        *total = unsafe {
            total.plus_product(
                weight,
                S::select::<WIDE>(inputs.add(token * stride), chosen),
            )
        };
    }
}
