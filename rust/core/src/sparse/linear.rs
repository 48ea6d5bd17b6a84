//! Y = activation(X W' + bias) for N:M-sparse W.
//!
//! Tokens lie along the vector lanes: X is transposed into strips of up to 64 tokens, so that each kept weight is one
//! factor for a contiguous line, whatever its place in the group.

use rayon::prelude::*;

use crate::nm::{Pattern, pack::check_places};
use crate::threads::Threads;
use crate::vector::{Kernel, widest};
use crate::{Error, Result};

/// Most tokens of a strip; 768 inputs of 64 tokens are 192 KB, which an L2 cache holds.
const STRIP: usize = 64;

/// Tokens of one vector; strips are multiples of it from 16 tokens on.
const LANES: usize = 16;

/// Output rows of one task.
const ROWS: usize = 32;

/// Weights without their zeros, (outputs x inputs), and what comes after the product.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// N values per group of M inputs, row-major.
    pub values: &'a [f32],
    /// The place of each value in its group.
    pub places: &'a [u8],
    /// Inputs C.
    pub inputs: usize,
    /// Outputs R.
    pub outputs: usize,
    /// N:M.
    pub pattern: Pattern,
    /// One value per output.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Activation,
    /// Round the inputs to bfloat16 first; the products are exact in f32 then if the weights are bfloat16 too.
    pub bfloat16: bool,
}

/// What is applied to each output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(0, y).
    Relu,
    /// y Phi(y) with the normal distribution function Phi, to 2e-7.
    Gelu,
}

/// The layer's outputs for `input` (tokens x inputs): (tokens x outputs), row-major.
///
/// Sums are taken in f32 in the order of the inputs, four products at a time. The result is the same for any number of
/// threads.
///
/// # Errors
/// [`Error::Shape`] if sizes do not fit or for a number of threads that cannot be; [`Error::NotAMultiple`] if M does not
/// divide the inputs; [`Error::Value`] for a
/// place outside its group.
///
/// # Examples
/// ```
/// use mpcore_core::nm::Pattern;
/// use mpcore_core::sparse::linear::{Activation, Layer, nm_linear};
/// let layer = Layer {
///     values: &[2.0, 3.0],
///     places: &[0, 3],
///     inputs: 4,
///     outputs: 1,
///     pattern: Pattern::new(2, 4)?,
///     bias: Some(&[0.5]),
///     activation: Activation::Identity,
///     bfloat16: false,
/// };
/// assert_eq!(nm_linear(&layer, &[1.0, 9.0, 9.0, 10.0], 1, None)?, [32.5]);
/// # Ok::<(), mpcore_core::Error>(())
/// ```
pub fn nm_linear(
    layer: &Layer<'_>,
    input: &[f32],
    tokens: usize,
    threads: Option<usize>,
) -> Result<Vec<f32>> {
    check(layer, input.len(), tokens)?;
    let mut output = vec![0.0; tokens * layer.outputs];
    if output.is_empty() {
        return Ok(output);
    }
    let width = strip_width(tokens);
    Threads::new(threads)?.run(|| {
        let strips = transpose_in(layer, input, width);
        let mut by_strip = vec![0.0; tokens.div_ceil(width) * layer.outputs * width];
        by_strip
            .par_chunks_mut(layer.outputs * width)
            .zip(strips.par_chunks(layer.inputs * width))
            .for_each(|(output, strip)| {
                output
                    .par_chunks_mut(ROWS * width)
                    .enumerate()
                    .for_each(|(tile, output)| {
                        widest(Rows {
                            layer,
                            first: tile * ROWS,
                            strip,
                            width,
                            output,
                        });
                    });
            });
        output
            .par_chunks_mut(width * layer.outputs)
            .zip(by_strip.par_chunks(layer.outputs * width))
            .for_each(|(output, strip)| transpose(strip, output, (width, layer.outputs)));
    });
    Ok(output)
}

fn check(layer: &Layer<'_>, input: usize, tokens: usize) -> Result<()> {
    let groups = layer.pattern.groups(layer.inputs, "W")?;
    let sizes = [
        (
            "values",
            layer.values.len(),
            groups * layer.pattern.keep() * layer.outputs,
        ),
        (
            "bias",
            layer.bias.map_or(layer.outputs, <[f32]>::len),
            layer.outputs,
        ),
        ("X", input, tokens * layer.inputs),
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
    check_places(layer.places, layer.values.len(), layer.pattern)
}

/// Tokens of each strip: as even as whole vectors allow, and no padding below one vector.
fn strip_width(tokens: usize) -> usize {
    if tokens < LANES {
        return tokens;
    }
    let vectors = tokens.div_ceil(LANES);
    vectors.div_ceil(tokens.div_ceil(STRIP)) * LANES
}

/// (strips x inputs x width); tokens past the end are zero.
fn transpose_in(layer: &Layer<'_>, input: &[f32], width: usize) -> Vec<f32> {
    let tokens = input.len() / layer.inputs;
    let mut strips = vec![0.0; tokens.div_ceil(width) * layer.inputs * width];
    let parts = input.par_chunks(width * layer.inputs);
    strips
        .par_chunks_mut(layer.inputs * width)
        .zip(parts)
        .for_each(|(strip, input)| {
            transpose(input, strip, (layer.inputs, width));
            if layer.bfloat16 {
                for value in strip {
                    *value = half::bf16::from_f32(*value).to_f32();
                }
            }
        });
    strips
}

/// to[j * width + i] = from[i * length + j], in blocks; rows of `from` beyond `to` or its own end are left out.
fn transpose(from: &[f32], to: &mut [f32], (length, width): (usize, usize)) {
    const BLOCK: usize = 16;
    let rows = (from.len() / length).min(width);
    let columns = (to.len() / width).min(length);
    for i in (0..rows).step_by(BLOCK) {
        for j in (0..columns).step_by(BLOCK) {
            for i in i..rows.min(i + BLOCK) {
                for j in j..columns.min(j + BLOCK) {
                    to[j * width + i] = from[i * length + j];
                }
            }
        }
    }
}

/// Some output rows for one strip.
struct Rows<'a> {
    layer: &'a Layer<'a>,
    first: usize,
    /// (inputs x width).
    strip: &'a [f32],
    width: usize,
    /// (rows x width).
    output: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) {
        let (keep, group) = (self.layer.pattern.keep(), self.layer.pattern.group());
        let count = self.layer.inputs / group * keep;
        let mut lines = vec![0; count];
        for (row, sums) in self.output.chunks_exact_mut(self.width).enumerate() {
            let row = self.first + row;
            let values = &self.layer.values[row * count..][..count];
            let places = &self.layer.places[row * count..][..count];
            for (position, (line, &place)) in lines.iter_mut().zip(places).enumerate() {
                *line = (position / keep * group + usize::from(place)) * self.width;
            }
            sums.fill(self.layer.bias.map_or(0.0, |bias| bias[row]));
            accumulate(values, &lines, self.strip, sums);
            activate(self.layer.activation, sums);
        }
    }
}

/// sums += sum of values[k] * the line of the strip that starts at lines[k], four at a time.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn accumulate(values: &[f32], lines: &[usize], strip: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let line = |start: usize| &strip[start..start + width];
    let (fours, rest) = values.as_chunks::<4>();
    for (&[w, x, y, z], lines) in fours.iter().zip(lines.chunks_exact(4)) {
        let (a, b) = (
            line(lines[0]).iter().zip(line(lines[1])),
            line(lines[2]).iter().zip(line(lines[3])),
        );
        for ((sum, (a, b)), (c, d)) in sums.iter_mut().zip(a).zip(b) {
            *sum += (w * a + x * b) + (y * c + z * d);
        }
    }
    for (value, &start) in rest.iter().zip(&lines[fours.len() * 4..]) {
        for (sum, a) in sums.iter_mut().zip(line(start)) {
            *sum += value * a;
        }
    }
}

#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn activate(activation: Activation, sums: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => {
            for sum in sums {
                *sum = if *sum < 0.0 { 0.0 } else { *sum };
            }
        }
        Activation::Gelu => {
            for sum in sums {
                *sum = gelu(*sum);
            }
        }
    }
}

/// y Phi(y); the error function is 7.1.26 of M. Abramowitz, I. Stegun, *Handbook of Mathematical Functions*, to 1.5e-7.
fn gelu(y: f32) -> f32 {
    let x = f64::from(y.abs()) * std::f64::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [
        0.254_829_592,
        -0.284_496_736,
        1.421_413_741,
        -1.453_152_027,
        1.061_405_429,
    ]
    .iter()
    .rev()
    .fold(0.0, |sum, a| (sum + a) * t);
    let beyond = 0.5 * series * (-x * x).exp();
    let share = if y < 0.0 { beyond } else { 1.0 - beyond };
    (f64::from(y) * share) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nm::pack::unpack;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_outputs_are_those_of_the_dense_product(
            (keep, extra, outputs, groups) in (1usize..5, 1usize..5, 1usize..70, 1usize..5),
            tokens in prop::sample::select(vec![0usize, 1, 3, 15, 16, 17, 65, 130]),
            seed in any::<u32>(),
            with_bias in any::<bool>(),
        ) {
            let pattern = Pattern::new(keep, keep + extra).unwrap();
            let inputs = groups * pattern.group();
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            };
            let values: Vec<f32> = (0..outputs * groups * keep).map(|_| next()).collect();
            let places: Vec<u8> = (0..values.len()).map(|i| (i % keep) as u8 + u8::from(outputs > 9)).collect();
            let bias: Vec<f32> = (0..outputs).map(|_| next()).collect();
            let input: Vec<f32> = (0..tokens * inputs).map(|_| next()).collect();
            let weight = unpack(&values, &places, inputs, pattern).unwrap();
            let layer = Layer {
                values: &values, places: &places, inputs, outputs, pattern,
                bias: with_bias.then_some(&bias[..]),
                activation: Activation::Identity, bfloat16: false,
            };
            let found = nm_linear(&layer, &input, tokens, None).unwrap();
            prop_assert_eq!(&found, &nm_linear(&layer, &input, tokens, Some(1)).unwrap());
            for t in 0..tokens {
                for r in 0..outputs {
                    let mut wanted = if with_bias { f64::from(bias[r]) } else { 0.0 };
                    for c in 0..inputs {
                        wanted += f64::from(input[t * inputs + c]) * f64::from(weight[r * inputs + c]);
                    }
                    prop_assert!((f64::from(found[t * outputs + r]) - wanted).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn gelu_matches_known_values() {
        for (y, wanted) in [
            (0.0, 0.0),
            (1.0, 0.841_344_7),
            (-1.0, -0.158_655_3),
            (3.0, 2.995_95),
            (-9.0, 0.0),
        ] {
            assert!((gelu(y) - wanted).abs() < 3e-7, "{y}: {}", gelu(y));
        }
    }

    #[test]
    fn relu_keeps_nan() {
        let mut sums = [f32::NAN, -1.0, 2.0];
        activate(Activation::Relu, &mut sums);
        assert!(sums[0].is_nan());
        assert_eq!(sums[1..], [0.0, 2.0]);
    }
}
