//! Few tokens: sixteen rows lie along the lanes, and the inputs of each weight are selected in registers.
//!
//! Nothing is packed and every weight is read once, so one token costs what the memory takes to deliver 4.5 bytes per
//! kept weight. Columns are cut into windows of up to 16; in a window every row has the same number of entries.

#![expect(
    unsafe_code,
    reason = "the weights and the windows are read through pointers"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use super::output::Sink;
use super::simd::{MOST_LANES, Simd};
use super::weights::Weights;
use crate::vector::Kernel;

/// Rows that lie along the lanes: one register of AVX-512, two of AVX2.
pub(super) const ROWS: usize = 16;
/// Most tokens of one pass over the weights.
pub(super) const TOKENS: usize = 6;
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
    values: Vec<f32>,
    /// Two steps to a byte, the first in the low half: (blocks) x windows x ceil(steps / 2) x 16.
    places: Vec<u8>,
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
        let mut lanes = Self {
            window,
            windows,
            steps,
            values: vec![0.0; blocks * windows * steps * ROWS],
            places: vec![spare << 4 | spare; blocks * windows * bytes * ROWS],
        };
        for row in 0..rows {
            for (position, (column, value)) in weights.row(row).enumerate() {
                let (at, step) = (row / ROWS * windows + position / steps, position % steps);
                lanes.values[(at * steps + step) * ROWS + row % ROWS] = value;
                let byte = &mut lanes.places[(at * bytes + step / 2) * ROWS + row % ROWS];
                let (place, half) = ((column % window) as u8, 4 * (step % 2));
                *byte = *byte & !(15 << half) | place << half;
            }
        }
        Some(lanes)
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
        let stride = self.lanes.padded();
        let tokens = self.inputs.len() / stride;
        for block in self.blocks.clone() {
            for first in (0..tokens).step_by(TOKENS) {
                let count = TOKENS.min(tokens - first);
                let inputs = &self.inputs[first * stride..][..count * stride];
                let mut sums = [[0.0; ROWS]; TOKENS];
                self.lanes.pass::<S>(block, inputs, &mut sums[..count]);
                for (token, sums) in sums[..count].iter_mut().enumerate() {
                    self.sink.put_rows(first + token, block * ROWS, sums);
                }
            }
        }
    }
}

impl Lanes {
    #[inline(always)]
    fn pass<S: Simd>(&self, block: usize, inputs: &[f32], sums: &mut [[f32; ROWS]]) {
        macro_rules! by_tokens {
            ($($count:literal),*) => {
                match (sums.len(), self.window > 8) {
                    $(($count, false) => self.block::<S, $count, false>(block, inputs, sums),
                      ($count, true) => self.block::<S, $count, true>(block, inputs, sums),)*
                    _ => unreachable!("one to TOKENS tokens"),
                }
            };
        }
        by_tokens!(1, 2, 3, 4, 5, 6);
    }

    /// Sums of 16 rows for T tokens, entry by entry in the order of the columns.
    #[inline(always)]
    fn block<S: Simd, const T: usize, const WIDE: bool>(
        &self,
        block: usize,
        inputs: &[f32],
        sums: &mut [[f32; ROWS]],
    ) {
        let (steps, bytes) = (self.steps, self.steps.div_ceil(2));
        let values =
            &self.values[block * self.windows * steps * ROWS..][..self.windows * steps * ROWS];
        let places =
            &self.places[block * self.windows * bytes * ROWS..][..self.windows * bytes * ROWS];
        let stride = self.padded();
        assert_eq!(inputs.len(), T * stride);
        // SAFETY: window w starts at w * window <= stride - MARGIN - window, and reaches 16 values at most; the weights'
        // slices hold `steps` times 16 values and `bytes` times 16 places for each window; 16 is a multiple of LANES.
        unsafe {
            let mut totals = [[S::splat(0.0); ROWS / 8]; T];
            for window in 0..self.windows {
                let values = values.as_ptr().add(window * steps * ROWS);
                let places = places.as_ptr().add(window * bytes * ROWS);
                let inputs = inputs.as_ptr().add(window * self.window);
                for step in 0..steps {
                    for part in 0..ROWS / S::LANES {
                        let mut chosen = S::places(places.add(step / 2 * ROWS + part * S::LANES));
                        if step % 2 == 1 {
                            chosen = S::high_places(chosen);
                        }
                        let weight = S::load(values.add(step * ROWS + part * S::LANES));
                        for (token, totals) in totals.iter_mut().enumerate() {
                            let input = S::select::<WIDE>(inputs.add(token * stride), chosen);
                            totals[part] = totals[part].plus_product(weight, input);
                        }
                    }
                }
            }
            for (totals, sums) in totals.iter().zip(sums) {
                for (part, total) in totals.iter().enumerate().take(ROWS / S::LANES) {
                    total.store(sums.as_mut_ptr().add(part * S::LANES));
                }
            }
        }
    }
}
