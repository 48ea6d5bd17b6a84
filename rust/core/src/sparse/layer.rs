//! activation(X W' + bias) and convolutions for N:M-sparse W, by the kernel that suits the number of tokens.

use std::marker::PhantomData;

use super::activation::Activation;
use super::field::{Field, Input, Order};
use super::grid::Grid;
use super::lanes::{Few, ROWS};
use super::output::{Output, Sink};
use super::panel::Job;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd, narrowed, widened};
use super::team::Team;
use super::weights::Weights;
use crate::vector::Level;
use crate::{Error, Result};

/// Blocks of 16 rows of one task for few tokens, at least.
const BLOCKS: usize = 4;

/// Weights and what comes after the product.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// (outputs x inputs).
    pub weights: &'a Weights,
    /// One value per output.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Activation,
    /// Round the inputs to bfloat16 first; the products are exact in f32 then if the weights are bfloat16 too.
    pub bfloat16: bool,
}

impl Layer<'_> {
    /// The outputs of a linear layer for `tokens` tokens.
    ///
    /// `input` is (tokens x inputs) with [`Order::ChannelsLast`], (inputs x tokens) with [`Order::ChannelsFirst`], and
    /// `output` accordingly. Sums are taken in f32. The result is the same for any number of threads. A token's outputs do
    /// not depend on the others, except that few and many tokens (13 and more with AVX-512, 8 or 3 with AVX2) are summed in
    /// different orders, either of which has the same bits with AVX2 and AVX-512.
    ///
    /// # Errors
    /// [`Error::Shape`] if sizes do not fit.
    ///
    /// # Examples
    /// ```
    /// use mpcore_core::nm::Pattern;
    /// use mpcore_core::sparse::{Activation, Input, Layer, Order, Output, Team, Weights};
    /// use mpcore_core::vector::Level;
    /// let pattern = Pattern::new(2, 4)?;
    /// let weights = Weights::new(&[2.0, 3.0], &[0, 3], (1, 4), pattern, Level::widest())?;
    /// let layer = Layer { weights: &weights, bias: Some(&[0.5]), activation: Activation::Identity, bfloat16: false };
    /// let mut output = [0.0];
    /// let input = Input::F32(&[1.0, 9.0, 9.0, 10.0]);
    /// let last = Order::ChannelsLast;
    /// layer.linear(input, 1, last, Output::F32(&mut output), last, Team::rayon(None))?;
    /// assert_eq!(output, [32.5]);
    /// # Ok::<(), mpcore_core::Error>(())
    /// ```
    pub fn linear(
        &self,
        input: Input<'_>,
        tokens: usize,
        input_order: Order,
        output: Output<'_>,
        output_order: Order,
        team: Team,
    ) -> Result<()> {
        let field = Field::tokens(tokens, self.weights.shape().1, input_order, output_order);
        self.conv2d(input, &field, output, team)
    }

    /// The outputs of a convolution; columns of the weights are (kernel row, kernel column, channel).
    ///
    /// # Errors
    /// [`Error::Shape`] if sizes do not fit, or for a kernel larger than the padded input.
    pub fn conv2d(
        &self,
        input: Input<'_>,
        field: &Field,
        output: Output<'_>,
        team: Team,
    ) -> Result<()> {
        let grid = Grid::new(*field)?;
        self.check(&input, field, &grid, &output)?;
        let (rows, _) = self.weights.shape();
        if output.is_empty() {
            return Ok(());
        }
        let pixels = grid.pixels();
        let sink = Sink::new(
            output,
            (rows, pixels),
            field.output,
            self.bias,
            self.activation,
        );
        match self.weights.level {
            Level::Portable => self.multiply::<Portable>(input, field, grid, &sink, team),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => self.multiply::<Avx2>(input, field, grid, &sink, team),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => self.multiply::<Avx512>(input, field, grid, &sink, team),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => unreachable!("Weights::new refuses them here"),
        }
        Ok(())
    }

    fn multiply<S: Simd>(
        &self,
        input: Input<'_>,
        field: &Field,
        grid: Grid,
        sink: &Sink<'_>,
        team: Team,
    ) {
        let few = grid.positions() < self.weights.few();
        if few && field.kernel == (1, 1) && self.few::<S>(input, &grid, sink, team) {
            return;
        }
        Job {
            weights: self.weights,
            grid,
            input,
            round: self.bfloat16,
            sink,
        }
        .run::<S>(team);
    }

    /// Few positions of a kernel of one tap, if the weights have a form for them.
    fn few<S: Simd>(&self, input: Input<'_>, grid: &Grid, sink: &Sink<'_>, team: Team) -> bool {
        let Some(lanes) = self.weights.lanes() else {
            return false;
        };
        let (rows, columns) = self.weights.shape();
        let stride = lanes.padded();
        let mut inputs = vec![0.0; grid.positions() * stride];
        for (position, inputs) in inputs.chunks_exact_mut(stride).enumerate() {
            let Some(pixel) = grid.pixel(position) else {
                continue; // in the padding
            };
            for (column, to) in inputs[..columns].iter_mut().enumerate() {
                let at = pixel + column * grid.channel;
                *to = match input {
                    Input::Bf16(values) => widened(values[at]),
                    Input::F32(values) if self.bfloat16 => widened(narrowed(values[at])),
                    Input::F32(values) => values[at],
                };
            }
        }
        let blocks = rows.div_ceil(ROWS);
        let share = blocks.div_ceil(2 * team.size()).max(BLOCKS);
        team.run(blocks.div_ceil(share), &|task| {
            let blocks = task * share..blocks.min((task + 1) * share);
            #[expect(unsafe_code, reason = "calling a function compiled for S")]
            // SAFETY: the dispatcher chose S for this CPU.
            unsafe {
                S::enter(Few::<S> {
                    lanes,
                    blocks,
                    inputs: &inputs,
                    sink,
                    isa: PhantomData,
                });
            }
        });
        true
    }

    fn check(
        &self,
        input: &Input<'_>,
        field: &Field,
        grid: &Grid,
        output: &Output<'_>,
    ) -> Result<()> {
        let (rows, columns) = self.weights.shape();
        let kernel = field.kernel.0 * field.kernel.1 * field.channels;
        let sizes = [
            ("kernel", kernel, columns),
            ("bias", self.bias.map_or(rows, <[f32]>::len), rows),
            (
                "X",
                input.len(),
                field.images * field.channels * field.size.0 * field.size.1,
            ),
            ("output", output.len(), grid.positions() * rows),
        ];
        for (name, got, wanted) in sizes {
            if got != wanted {
                return Err(Error::Shape {
                    name,
                    got,
                    wanted: format!("{wanted} entries"),
                });
            }
        }
        Ok(())
    }
}
