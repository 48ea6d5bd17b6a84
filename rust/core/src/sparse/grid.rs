//! Where the inputs of each output position lie, and how they come into a panel.

#![expect(
    unsafe_code,
    reason = "whole registers move between the input and the panel"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use std::ops::Range;

use super::field::{Field, Input, Order};
use super::simd::{MOST_LANES, Simd, narrowed, widened};
use crate::Result;

/// Most positions of a panel.
const MOST_PANEL: usize = 13 * MOST_LANES;

/// A field with its strides, in values, and the size of its output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    field: Field,
    out: (usize, usize),
    image: usize,
    row: usize,
    column: usize,
    /// Values from one channel of a pixel to the next.
    pub(super) channel: usize,
    /// Position p reads pixel p of the input, and the pixels lie one behind the other.
    flat: bool,
}

/// Lines of inputs, one for each column of a block.
pub(super) struct Panel<'a> {
    pub(super) values: &'a mut [f32],
    /// Values from one line to the next.
    pub(super) stride: usize,
    /// Values of a line in use.
    pub(super) lanes: usize,
}

impl Panel<'_> {
    #[inline(always)]
    fn line(&mut self, line: usize) -> &mut [f32] {
        &mut self.values[line * self.stride..][..self.lanes]
    }

    /// Turn a block of `LANES` positions into `LANES` lines from `first` on, at the place of register `vector`.
    #[inline(always)]
    fn put_block<S: Simd>(&mut self, mut block: [S; MOST_LANES], first: usize, vector: usize) {
        let lines = &mut self.values[first * self.stride..][..S::LANES * self.stride];
        assert!((vector + 1) * S::LANES <= self.stride);
        // SAFETY: the dispatcher chose S for this CPU; every line of `lines` has LANES values at register `vector`.
        unsafe {
            S::transpose(&mut block);
            let to = lines.as_mut_ptr().add(vector * S::LANES);
            for (index, register) in block.into_iter().enumerate().take(S::LANES) {
                register.store(to.add(index * self.stride));
            }
        }
    }
}

/// A value as it lies in memory.
pub(super) trait Element: Copy {
    /// As float32; rounded to bfloat16 if `round`.
    fn value(self, round: bool) -> f32;
    /// `LANES` values.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const Self, round: bool) -> S;
}

impl Element for f32 {
    #[inline(always)]
    fn value(self, round: bool) -> f32 {
        if round { widened(narrowed(self)) } else { self }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self, round: bool) -> S {
        // SAFETY: as the caller's.
        unsafe {
            let register = S::load(from);
            if round { register.rounded() } else { register }
        }
    }
}

impl Element for u16 {
    #[inline(always)]
    fn value(self, _: bool) -> f32 {
        widened(self)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self, _: bool) -> S {
        // SAFETY: as the caller's.
        unsafe { S::widen(from) }
    }
}

/// Positions of one row of one image that read inputs, not padding.
#[derive(Debug, Clone, Copy)]
struct Run {
    lane: usize,
    length: usize,
    /// Index of the first input, channel 0.
    from: usize,
}

impl Run {
    /// Zeros from lane `end` on and the inputs behind them, in whole registers: what is too much, the next run, the zeros
    /// behind the last or the next line overwrite.
    ///
    /// # Safety
    /// As for S; `from` and the line from the run's lane on hold its length, rounded up to whole registers.
    #[inline(always)]
    unsafe fn copy<S: Simd, E: Element>(
        &self,
        from: &[E],
        round: bool,
        line: &mut [f32],
        end: usize,
    ) {
        // SAFETY: the caller's; a register of zeros begins before the run and ends before its last register does.
        unsafe {
            let to = line.as_mut_ptr();
            for lane in (end..self.lane).step_by(S::LANES) {
                S::splat(0.0).store(to.add(lane));
            }
            for done in (0..self.length).step_by(S::LANES) {
                let register = E::load::<S>(from.as_ptr().add(done), round);
                register.store(to.add(self.lane + done));
            }
        }
    }
}

/// One kernel position, and channels of it that a block of columns holds.
struct Tap {
    at: (usize, usize),
    channels: Range<usize>,
    /// Line of the panel of the first channel.
    line: usize,
}

impl Grid {
    pub(super) fn new(mut field: Field) -> Result<Self> {
        let mut out = field.output_size()?;
        let pointwise = (field.kernel, field.stride, field.padding) == ((1, 1), (1, 1), (0, 0));
        if pointwise {
            field.size = (1, field.size.0 * field.size.1);
            out = field.size; // the rows of an image follow one another
        }
        let (height, width) = field.size;
        let (row, column, channel) = match field.input {
            Order::ChannelsFirst => (width, 1, height * width),
            Order::ChannelsLast => (width * field.channels, field.channels, 1),
        };
        Ok(Self {
            out,
            image: field.channels * height * width,
            flat: pointwise && field.input == Order::ChannelsLast,
            field,
            row,
            column,
            channel,
        })
    }

    /// Output positions of an image.
    pub(super) fn pixels(&self) -> usize {
        self.out.0 * self.out.1
    }

    /// Output positions.
    pub(super) fn positions(&self) -> usize {
        self.field.images * self.pixels()
    }

    /// Index of channel 0 of the pixel that an output position sees through the first tap; None in the padding.
    pub(super) fn pixel(&self, position: usize) -> Option<usize> {
        self.start(position, &self.taps(&(0..1)).next()?)
    }

    /// Put the inputs of `columns` at `positions` into the lines of a panel, one line of `lanes` values for each column;
    /// lanes behind the last position repeat it or are zero.
    #[inline(always)]
    pub(super) fn fill<S: Simd>(
        &self,
        input: Input<'_>,
        round: bool,
        positions: &Range<usize>,
        columns: &Range<usize>,
        panel: &mut Panel<'_>,
    ) {
        let along = self.field.input == Order::ChannelsFirst;
        for tap in self.taps(columns) {
            match (input, along) {
                (Input::F32(values), true) => {
                    self.copy::<S, _>(values, round, positions, &tap, panel);
                }
                (Input::Bf16(values), true) => {
                    self.copy::<S, _>(values, false, positions, &tap, panel);
                }
                // Compiled twice: a branch for each register would cost as much as the load.
                (Input::F32(values), false) if round => {
                    self.turn::<S, _>(values, true, positions, &tap, panel);
                }
                (Input::F32(values), false) => {
                    self.turn::<S, _>(values, false, positions, &tap, panel);
                }
                (Input::Bf16(values), false) => {
                    self.turn::<S, _>(values, false, positions, &tap, panel);
                }
            }
        }
    }

    fn taps(&self, columns: &Range<usize>) -> impl Iterator<Item = Tap> {
        let columns = columns.clone();
        let (channels, kernel_width) = (self.field.channels, self.field.kernel.1);
        let taps = columns.start / channels..columns.end.div_ceil(channels);
        taps.map(move |tap| {
            let first = columns.start.max(tap * channels);
            let last = columns.end.min((tap + 1) * channels);
            Tap {
                at: (tap / kernel_width, tap % kernel_width),
                channels: first - tap * channels..last - tap * channels,
                line: first - columns.start,
            }
        })
    }

    /// Index of channel 0 of the input that an output position sees through a tap; None in the padding.
    #[inline(always)]
    fn start(&self, position: usize, tap: &Tap) -> Option<usize> {
        let (x, row) = (position % self.out.1, self.row_start(position, tap)?);
        let (field, offset) = (&self.field, tap.at.1 * self.field.dilation.1);
        let x = (x * field.stride.1 + offset).checked_sub(field.padding.1)?;
        (x < field.size.1).then(|| row + x * self.column)
    }

    /// Index of channel 0 in column 0 of the input row that an output position sees; None in the padding.
    #[inline(always)]
    fn row_start(&self, position: usize, tap: &Tap) -> Option<usize> {
        let (image, y) = (
            position / self.pixels(),
            position % self.pixels() / self.out.1,
        );
        let (field, offset) = (&self.field, tap.at.0 * self.field.dilation.0);
        let y = (y * field.stride.0 + offset).checked_sub(field.padding.0)?;
        (y < field.size.0).then(|| image * self.image + y * self.row)
    }

    /// What `length` positions of one row read from `position` on, which is lane `lane`.
    fn run(&self, lane: usize, position: usize, length: usize, tap: &Tap) -> Option<Run> {
        let (first, row) = (position % self.out.1, self.row_start(position, tap)?);
        let (field, offset) = (&self.field, tap.at.1 * self.field.dilation.1);
        let (stride, padding) = (field.stride.1, field.padding.1);
        let left = padding.saturating_sub(offset).div_ceil(stride);
        let right = (field.size.1 + padding).checked_sub(offset + 1)? / stride + 1;
        let (begin, end) = (left.max(first), right.min(first + length));
        (begin < end).then(|| Run {
            lane: lane + begin - first,
            length: end - begin,
            from: row + (begin * stride + offset - padding) * self.column,
        })
    }

    /// Channels run fastest: transpose square blocks of positions and channels. Lanes behind the last position repeat it.
    #[inline(always)]
    fn turn<S: Simd, E: Element>(
        &self,
        values: &[E],
        round: bool,
        positions: &Range<usize>,
        tap: &Tap,
        panel: &mut Panel<'_>,
    ) {
        let whole = tap.channels.len() / S::LANES * S::LANES;
        for vector in 0..panel.lanes / S::LANES {
            let first = positions.start + vector * S::LANES;
            let starts = self.starts(first, S::LANES, positions.end - 1, tap);
            let present = starts[..S::LANES].iter().all(Option::is_some);
            for done in (0..whole).step_by(S::LANES) {
                // Loops, not closures: those would not take on the instruction set.
                // SAFETY: a start is the index of an input that has all channels of the tap behind it.
                unsafe {
                    let mut block = [S::splat(0.0); MOST_LANES];
                    if present {
                        for (start, register) in starts.iter().zip(&mut block).take(S::LANES) {
                            let from = start.unwrap_or(0) + done;
                            debug_assert!(from + S::LANES <= values.len());
                            *register = E::load::<S>(values.as_ptr().add(from), round);
                        }
                    } else {
                        for (start, register) in starts.iter().zip(&mut block).take(S::LANES) {
                            if let Some(start) = start {
                                debug_assert!(start + done + S::LANES <= values.len());
                                *register = E::load::<S>(values.as_ptr().add(start + done), round);
                            }
                        }
                    }
                    panel.put_block(block, tap.line + done, vector);
                }
            }
            for done in whole..tap.channels.len() {
                let line = &mut panel.line(tap.line + done)[vector * S::LANES..][..S::LANES];
                for (to, start) in line.iter_mut().zip(&starts) {
                    *to = start.map_or(0.0, |start| values[start + done].value(round));
                }
            }
        }
    }

    /// Indices of a tap's first inputs for `count` positions from `first` on, but none behind `last`; None in the padding.
    #[inline(always)]
    fn starts(
        &self,
        first: usize,
        count: usize,
        last: usize,
        tap: &Tap,
    ) -> [Option<usize>; MOST_LANES] {
        let mut starts = [None; MOST_LANES];
        for (lane, start) in starts.iter_mut().enumerate().take(count) {
            let position = last.min(first + lane);
            // A division costs as much as 16 products: none where positions follow one another in memory.
            let pixel = if self.flat {
                Some(position * self.column)
            } else {
                self.start(position, tap)
            };
            *start = pixel.map(|pixel| pixel + tap.channels.start);
        }
        starts
    }

    /// Positions run fastest: copy what lies in one row of one image, line by line.
    #[inline(always)]
    fn copy<S: Simd, E: Element>(
        &self,
        values: &[E],
        round: bool,
        positions: &Range<usize>,
        tap: &Tap,
        panel: &mut Panel<'_>,
    ) {
        let mut runs = [Run {
            lane: 0,
            length: 0,
            from: 0,
        }; MOST_PANEL];
        let count = self.runs(positions, tap, &mut runs);
        let (step, lanes) = (self.field.stride.1, panel.lanes);
        for (done, channel) in tap.channels.clone().enumerate() {
            let line = &mut panel.values[(tap.line + done) * panel.stride..];
            let mut end = 0;
            for run in &runs[..count] {
                let from = &values[run.from + channel * self.channel..];
                let whole = run.length.next_multiple_of(S::LANES);
                if step == 1 && whole <= from.len() && run.lane + whole <= line.len() {
                    // SAFETY: the dispatcher chose S for this CPU; so many values are there and have room.
                    unsafe { run.copy::<S, E>(from, round, line, end) };
                } else {
                    line[end..run.lane].fill(0.0);
                    let to = &mut line[run.lane..][..run.length];
                    for (to, from) in to.iter_mut().zip(from.iter().step_by(step)) {
                        *to = from.value(round);
                    }
                }
                end = run.lane + run.length;
            }
            line[end..lanes].fill(0.0);
        }
    }

    /// The runs of a tap, in the order of their lanes; their number.
    fn runs(&self, positions: &Range<usize>, tap: &Tap, runs: &mut [Run; MOST_PANEL]) -> usize {
        let (mut count, mut position) = (0, positions.start);
        while position < positions.end {
            let x = position % self.out.1;
            let end = positions.end.min(position + self.out.1 - x);
            if let Some(run) = self.run(position - positions.start, position, end - position, tap) {
                runs[count] = run;
                count += 1;
            }
            position = end;
        }
        count
    }
}
