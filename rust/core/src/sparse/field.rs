//! The shape of a product's input and output.
//!
//! A linear layer is a 1 x 1 convolution over a row of tokens. Columns of the weights are (kernel row, kernel column,
//! channel), channels fastest.

use crate::{Error, Result};

/// Values of float32, or the bits of bfloat16.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// float32.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [u16]),
}

impl Input<'_> {
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

/// Which index runs fastest in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Positions: (images, channels, height, width), and (features, tokens) of one image.
    ChannelsFirst,
    /// Channels: (images, height, width, channels), and (tokens, features) of one image.
    ChannelsLast,
}

/// Input and output of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Images.
    pub images: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Height and width of the input.
    pub size: (usize, usize),
    /// Of the kernel, as all pairs below: rows, columns.
    pub kernel: (usize, usize),
    /// Input positions from one output position to the next.
    pub stride: (usize, usize),
    /// Zeros around the input, on each side.
    pub padding: (usize, usize),
    /// Input positions from one kernel position to the next.
    pub dilation: (usize, usize),
    /// Order of the input.
    pub input: Order,
    /// Order of the output.
    pub output: Order,
}

impl Field {
    /// Tokens of a linear layer.
    #[must_use]
    pub fn tokens(tokens: usize, channels: usize, input: Order, output: Order) -> Self {
        Self {
            images: 1,
            channels,
            size: (1, tokens),
            kernel: (1, 1),
            stride: (1, 1),
            padding: (0, 0),
            dilation: (1, 1),
            input,
            output,
        }
    }

    /// Height and width of the output.
    ///
    /// # Errors
    /// [`Error::Shape`] for a kernel, stride or dilation of zero, or a kernel larger than the padded input.
    pub fn output_size(&self) -> Result<(usize, usize)> {
        let along = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
            for (name, got) in [
                ("kernel", kernel),
                ("stride", stride),
                ("dilation", dilation),
            ] {
                if got == 0 {
                    return Err(Error::Shape {
                        name,
                        got,
                        wanted: "at least 1".to_owned(),
                    });
                }
            }
            let (padded, reach) = (size + 2 * padding, dilation * (kernel - 1) + 1);
            if padded < reach {
                let wanted = format!("at least {reach}, what the kernel covers");
                return Err(Error::Shape {
                    name: "padded input",
                    got: padded,
                    wanted,
                });
            }
            Ok((padded - reach) / stride + 1)
        };
        let (size, kernel, dilation) = (self.size, self.kernel, self.dilation);
        if size == (1, 0) && kernel == (1, 1) {
            return Ok((1, 0)); // no tokens
        }
        Ok((
            along(size.0, kernel.0, self.stride.0, self.padding.0, dilation.0)?,
            along(size.1, kernel.1, self.stride.1, self.padding.1, dilation.1)?,
        ))
    }
}
