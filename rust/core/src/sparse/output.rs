//! Sums become outputs: bias, activation, dtype and order.

#![expect(
    unsafe_code,
    reason = "tasks write disjoint parts of one output, whole registers at a time"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use std::marker::PhantomData;
use std::ops::Range;

use super::activation::Activation;
use super::field::Order;
use super::lanes::ROWS;
use super::simd::{MOST_LANES, Simd, narrowed};

/// Room for values of float32, or for the bits of bfloat16.
#[derive(Debug)]
pub enum Output<'a> {
    /// float32.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [u16]),
}

impl Output<'_> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Copy)]
enum Target {
    F32(*mut f32),
    Bf16(*mut u16),
}

/// The outputs of a product, written by many tasks.
pub(super) struct Sink<'a> {
    target: Target,
    /// Output channels.
    rows: usize,
    /// Positions of one image.
    pixels: usize,
    positions: usize,
    order: Order,
    bias: Option<&'a [f32]>,
    activation: Activation,
    output: PhantomData<Output<'a>>,
}

// SAFETY: the methods that write are told which rows and positions, and are called once for each.
unsafe impl Sync for Sink<'_> {}

impl<'a> Sink<'a> {
    /// `output` holds (images x pixels x rows) values in the given order.
    pub(super) fn new(
        output: Output<'a>,
        (rows, pixels): (usize, usize),
        order: Order,
        bias: Option<&'a [f32]>,
        activation: Activation,
    ) -> Self {
        let positions = output.len() / rows.max(1);
        let target = match output {
            Output::F32(values) => Target::F32(values.as_mut_ptr()),
            Output::Bf16(values) => Target::Bf16(values.as_mut_ptr()),
        };
        Self {
            target,
            rows,
            pixels,
            positions,
            order,
            bias,
            activation,
            output: PhantomData,
        }
    }

    #[inline(always)]
    fn bias(&self, row: usize) -> f32 {
        self.bias.map_or(0.0, |bias| bias[row])
    }

    /// Index of an output.
    #[inline(always)]
    fn index(&self, position: usize, row: usize) -> usize {
        assert!(position < self.positions && row < self.rows);
        match self.order {
            Order::ChannelsLast => position * self.rows + row,
            Order::ChannelsFirst => {
                let (image, pixel) = (position / self.pixels, position % self.pixels);
                (image * self.rows + row) * self.pixels + pixel
            }
        }
    }

    /// Write `values` from index `at` on.
    #[inline(always)]
    fn put(&self, at: usize, values: &[f32]) {
        assert!(at + values.len() <= self.positions * self.rows);
        // SAFETY: the indices were checked above, and no other task writes them.
        match self.target {
            Target::F32(target) => unsafe {
                if let Ok(whole) = <&[f32; MOST_LANES]>::try_from(values) {
                    return target
                        .add(at)
                        .cast::<[f32; MOST_LANES]>()
                        .write_unaligned(*whole);
                }
                std::ptr::copy_nonoverlapping(values.as_ptr(), target.add(at), values.len());
            },
            Target::Bf16(target) => {
                for (index, &value) in values.iter().enumerate() {
                    unsafe { *target.add(at + index) = narrowed(value) };
                }
            }
        }
    }

    /// The outputs of one position for 16 rows from `first` on, or as many as there are.
    #[inline(always)]
    pub(super) fn put_rows(&self, position: usize, first: usize, sums: &mut [f32; ROWS]) {
        let count = ROWS.min(self.rows - first);
        for (row, sum) in sums[..count].iter_mut().enumerate() {
            *sum += self.bias(first + row);
        }
        self.activation.apply(sums);
        match self.order {
            Order::ChannelsLast => self.put(self.index(position, first), &sums[..count]),
            Order::ChannelsFirst => {
                for (row, sum) in sums[..count].iter().enumerate() {
                    self.put(self.index(position, first + row), std::slice::from_ref(sum));
                }
            }
        }
    }

    /// The outputs of a tile of sums, (rows x lanes), of which the first `positions.len()` lanes count.
    #[inline(always)]
    pub(super) fn put_tile<S: Simd>(
        &self,
        sums: &mut [f32],
        lanes: usize,
        rows: Range<usize>,
        positions: &Range<usize>,
    ) {
        for (done, sums) in sums.chunks_mut(MOST_LANES * lanes).enumerate() {
            let first = rows.start + done * MOST_LANES;
            for (row, sums) in sums.chunks_exact_mut(lanes).enumerate() {
                self.activation.finish(sums, self.bias(first + row));
                if self.order == Order::ChannelsFirst {
                    self.put_row(sums, first + row, positions);
                }
            }
            if self.order == Order::ChannelsLast {
                self.put_turned::<S>(sums, lanes, first, positions);
            }
        }
    }

    /// One row: a piece for each image.
    #[inline(always)]
    fn put_row(&self, sums: &[f32], row: usize, positions: &Range<usize>) {
        let mut position = positions.start;
        while position < positions.end {
            let end = positions
                .end
                .min((position / self.pixels + 1) * self.pixels);
            let piece = &sums[position - positions.start..end - positions.start];
            self.put(self.index(position, row), piece);
            position = end;
        }
    }

    /// Up to 16 rows, (rows x lanes): position by position, so that whole lines of the cache are written.
    #[inline(always)]
    fn put_turned<S: Simd>(
        &self,
        sums: &[f32],
        lanes: usize,
        first: usize,
        positions: &Range<usize>,
    ) {
        let count = sums.len() / lanes;
        for (vector, start) in (positions.start..positions.end)
            .step_by(S::LANES)
            .enumerate()
        {
            let corner = (start, first);
            if count == S::LANES
                && start + S::LANES <= positions.end
                && self.put_square::<S>(sums, lanes, vector, corner)
            {
                continue;
            }
            let mut turned = [[0.0; MOST_LANES]; MOST_LANES];
            for part in (0..count).step_by(S::LANES) {
                // SAFETY: a row of the tile holds LANES sums from `vector * LANES` on; a row of `turned` holds 16.
                unsafe {
                    let mut block = [S::splat(0.0); MOST_LANES];
                    for row in part..count.min(part + S::LANES) {
                        let from = &sums[row * lanes + vector * S::LANES..][..S::LANES];
                        block[row - part] = S::load(from.as_ptr());
                    }
                    S::transpose(&mut block);
                    for (lane, register) in block.into_iter().enumerate().take(S::LANES) {
                        register.store(turned[lane].as_mut_ptr().add(part));
                    }
                }
            }
            for (position, turned) in (start..positions.end.min(start + S::LANES)).zip(&turned) {
                self.put(self.index(position, first), &turned[..count]);
            }
        }
    }

    /// A square block of `LANES` rows and positions, straight from the registers; false if the outputs are not float32.
    #[inline(always)]
    fn put_square<S: Simd>(
        &self,
        sums: &[f32],
        lanes: usize,
        vector: usize,
        (position, row): (usize, usize),
    ) -> bool {
        let Target::F32(target) = self.target else {
            return false;
        };
        let last = self.index(position + S::LANES - 1, row + S::LANES - 1);
        let to = self.index(position, row);
        assert!(to + (S::LANES - 1) * (self.rows + 1) == last);
        assert!(sums.len() >= S::LANES * lanes && (vector + 1) * S::LANES <= lanes);
        // SAFETY: sums hold LANES rows of `lanes` values; outputs lie `rows` apart from the first to the last index, both
        // of which were checked, and no other task writes them.
        unsafe {
            let from = sums.as_ptr().add(vector * S::LANES);
            let mut block = [S::splat(0.0); MOST_LANES];
            for (row, register) in block.iter_mut().enumerate().take(S::LANES) {
                *register = S::load(from.add(row * lanes));
            }
            S::transpose(&mut block);
            for (lane, register) in block.into_iter().enumerate().take(S::LANES) {
                register.store(target.add(to + lane * self.rows));
            }
        }
        true
    }
}
