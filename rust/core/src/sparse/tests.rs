//! Every kernel this CPU has, against the plain double loop.

use proptest::prelude::*;

use super::{Activation, Field, Input, Layer, Order, Output, Team, Weights};
use crate::nm::Pattern;
use crate::nm::pack::unpack;
use crate::vector::Level;

/// A stream of values in [-1, 1).
fn stream(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    }
}

/// Weights as stored, and in full.
struct Example {
    shape: (usize, usize),
    pattern: Pattern,
    values: Vec<f32>,
    places: Vec<u8>,
    full: Vec<f32>,
}

impl Example {
    fn new(rows: usize, columns: usize, pattern: Pattern, seed: u32) -> Self {
        let mut next = stream(seed);
        let (keep, group) = (pattern.keep(), pattern.group());
        let mut places = Vec::new();
        for _ in 0..rows * columns / group {
            let mut left = keep;
            for place in 0..group {
                // Every place of the group is as likely as any other.
                if (next() + 1.0) * ((group - place) as f32) < 2.0 * left as f32 {
                    places.push(place as u8);
                    left -= 1;
                }
            }
        }
        let values: Vec<f32> = places.iter().map(|_| next()).collect();
        let full = unpack(&values, &places, columns, pattern).unwrap();
        Self {
            shape: (rows, columns),
            pattern,
            values,
            places,
            full,
        }
    }

    fn weights(&self, level: Level) -> Weights {
        Weights::new(&self.values, &self.places, self.shape, self.pattern, level).unwrap()
    }
}

/// Input index of (image, y, x, channel), or of the output.
fn index(
    order: Order,
    (image, y, x, channel): (usize, usize, usize, usize),
    (channels, height, width): (usize, usize, usize),
) -> usize {
    match order {
        Order::ChannelsFirst => ((image * channels + channel) * height + y) * width + x,
        Order::ChannelsLast => ((image * height + y) * width + x) * channels + channel,
    }
}

/// The convolution by its definition, in f64.
fn slowly(example: &Example, field: &Field, input: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let (rows, columns) = example.shape;
    let (height, width) = field.output_size().unwrap();
    let mut output = vec![0.0; field.images * rows * height * width];
    for (image, y, x) in (0..field.images)
        .flat_map(|n| (0..height).flat_map(move |y| (0..width).map(move |x| (n, y, x))))
    {
        for row in 0..rows {
            let mut sum = bias.map_or(0.0, |bias| f64::from(bias[row]));
            for column in 0..columns {
                let (tap, channel) = (column / field.channels, column % field.channels);
                let at = |position: usize, stride, tap, dilation, padding: usize, size| {
                    let at: usize = position * stride + tap * dilation;
                    at.checked_sub(padding).filter(|&at| at < size)
                };
                let y = at(
                    y,
                    field.stride.0,
                    tap / field.kernel.1,
                    field.dilation.0,
                    field.padding.0,
                    field.size.0,
                );
                let x = at(
                    x,
                    field.stride.1,
                    tap % field.kernel.1,
                    field.dilation.1,
                    field.padding.1,
                    field.size.1,
                );
                if let (Some(y), Some(x)) = (y, x) {
                    let from = index(
                        field.input,
                        (image, y, x, channel),
                        (field.channels, field.size.0, field.size.1),
                    );
                    sum += f64::from(input[from]) * f64::from(example.full[row * columns + column]);
                }
            }
            output[index(field.output, (image, y, x, row), (rows, height, width))] = sum;
        }
    }
    output
}

fn quickly(
    weights: &Weights,
    field: &Field,
    input: &[f32],
    bias: Option<&[f32]>,
    team: Team,
) -> Vec<f32> {
    let layer = Layer {
        weights,
        bias,
        activation: Activation::Identity,
        bfloat16: false,
    };
    let (height, width) = field.output_size().unwrap();
    let mut output = vec![f32::NAN; field.images * weights.shape().0 * height * width];
    layer
        .conv2d(Input::F32(input), field, Output::F32(&mut output), team)
        .unwrap();
    output
}

/// As many units in the last place of 1 as there are products, none of which is larger.
fn tolerance(example: &Example) -> f64 {
    f64::from(f32::EPSILON) * (4 + example.values.len() / example.shape.0) as f64
}

fn orders() -> impl Strategy<Value = Order> {
    prop::sample::select(vec![Order::ChannelsFirst, Order::ChannelsLast])
}

fn patterns() -> impl Strategy<Value = Pattern> {
    let all = [
        (2, 4),
        (1, 4),
        (4, 8),
        (8, 16),
        (1, 2),
        (3, 4),
        (5, 7),
        (1, 32),
        (9, 13),
        (20, 31),
        (1, 16),
        (1, 5),
    ];
    prop::sample::select(
        all.map(|(keep, group)| Pattern::new(keep, group).unwrap())
            .to_vec(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_linear_layer_is_the_dense_product(
        (pattern, groups, rows) in (patterns(), 1usize..30, 1usize..70),
        tokens in prop::sample::select(vec![0usize, 1, 2, 3, 7, 8, 9, 17, 33, 65, 99, 130, 213]),
        (input_order, output_order) in (orders(), orders()),
        seed in any::<u32>(),
        with_bias in any::<bool>(),
    ) {
        let example = Example::new(rows, groups * pattern.group(), pattern, seed);
        let field = Field::tokens(tokens, example.shape.1, input_order, output_order);
        let mut next = stream(!seed);
        let input: Vec<f32> = (0..tokens * example.shape.1).map(|_| next()).collect();
        let bias: Vec<f32> = (0..rows).map(|_| next()).collect();
        let bias = with_bias.then_some(&bias[..]);
        let wanted = slowly(&example, &field, &input, bias);
        let mut fused: Option<Vec<f32>> = None;
        for level in Level::here() {
            let weights = example.weights(level);
            let found = quickly(&weights, &field, &input, bias, Team::rayon(Some(1)));
            for (found, wanted) in found.iter().zip(&wanted) {
                prop_assert!((f64::from(*found) - wanted).abs() < tolerance(&example), "{level:?}: {found} {wanted}");
            }
            prop_assert_eq!(&found, &quickly(&weights, &field, &input, bias, Team { threads: Some(3), openmp: true }));
            if level != Level::Portable && !(3..13).contains(&tokens) {
                prop_assert_eq!(&found, fused.get_or_insert(found.clone()));
            }
        }
    }

    #[test]
    fn a_convolution_is_its_definition(
        (pattern, groups, rows) in (patterns(), 1usize..3, 1usize..20),
        // Few positions of one tap take another way than many.
        size in prop_oneof![(1usize..4, 1usize..4), (1usize..20, 1usize..20)],
        (kernel, stride, padding, dilation) in (prop_oneof![Just((1, 1)), (1usize..4, 1usize..4)], (1usize..3, 1usize..4), (0usize..3, 0usize..3), (1usize..3, 1usize..3)),
        (input, output, images) in (orders(), orders(), 0usize..4),
        seed in any::<u32>(),
    ) {
        let channels = groups * pattern.group();
        let field = Field { images, channels, size, kernel, stride, padding, dilation, input, output };
        prop_assume!(field.output_size().is_ok());
        let example = Example::new(rows, channels * kernel.0 * kernel.1, pattern, seed);
        let mut next = stream(!seed);
        let input: Vec<f32> = (0..images * channels * size.0 * size.1).map(|_| next()).collect();
        let wanted = slowly(&example, &field, &input, None);
        for level in Level::here() {
            let weights = example.weights(level);
            let found = quickly(&weights, &field, &input, None, Team::rayon(Some(1)));
            for (found, wanted) in found.iter().zip(&wanted) {
                prop_assert!((f64::from(*found) - wanted).abs() < tolerance(&example), "{level:?}: {found} {wanted}");
            }
            prop_assert_eq!(&found, &quickly(&weights, &field, &input, None, Team::rayon(Some(2))));
        }
    }
}

#[test]
fn bfloat16_goes_in_and_out_rounded_once() {
    let example = Example::new(37, 24, Pattern::new(2, 4).unwrap(), 1);
    let mut next = stream(2);
    for (tokens, order) in [
        (3, Order::ChannelsLast),
        (50, Order::ChannelsLast),
        (50, Order::ChannelsFirst),
    ] {
        let exact: Vec<f32> = (0..tokens * 24).map(|_| next()).collect();
        let narrow: Vec<u16> = exact
            .iter()
            .map(|&value| half::bf16::from_f32(value).to_bits())
            .collect();
        let wide: Vec<f32> = narrow
            .iter()
            .map(|&bits| half::bf16::from_bits(bits).to_f32())
            .collect();
        for level in Level::here() {
            let weights = example.weights(level);
            let layer = Layer {
                weights: &weights,
                bias: None,
                activation: Activation::Identity,
                bfloat16: true,
            };
            let (mut wanted, mut found, mut short) = (
                vec![0.0; tokens * 37],
                vec![0.0; tokens * 37],
                vec![0; tokens * 37],
            );
            let run = |input: Input<'_>, output: Output<'_>| {
                let team = Team::rayon(None);
                layer
                    .linear(input, tokens, order, output, order, team)
                    .unwrap();
            };
            run(Input::F32(&wide), Output::F32(&mut wanted));
            run(Input::F32(&exact), Output::F32(&mut found));
            assert_eq!(found, wanted);
            run(Input::Bf16(&narrow), Output::Bf16(&mut short));
            let rounded: Vec<u16> = wanted
                .iter()
                .map(|&value| half::bf16::from_f32(value).to_bits())
                .collect();
            assert_eq!(short, rounded);
        }
    }
}

#[test]
fn a_token_does_not_depend_on_the_others_and_hardly_on_their_number() {
    for ((keep, group), bfloat16) in [(2, 4), (1, 4), (5, 7), (8, 16), (9, 13)]
        .into_iter()
        .flat_map(|pattern| [(pattern, false), (pattern, true)])
    {
        let mut example = Example::new(70, 5 * group, Pattern::new(keep, group).unwrap(), 4);
        if bfloat16 {
            for value in example.values.iter_mut().chain(&mut example.full) {
                *value = half::bf16::from_f32(*value).to_f32();
            }
        }
        let mut next = stream(5);
        let input: Vec<f32> = (0..30 * 5 * group).map(|_| next()).collect();
        let order = Order::ChannelsLast;
        let run = |weights: &Weights, tokens: usize| {
            let field = Field::tokens(tokens, 5 * group, order, order);
            let input = &input[..tokens * 5 * group];
            quickly(weights, &field, input, None, Team::rayon(Some(2)))
        };
        for level in Level::here() {
            let weights = example.weights(level);
            let (one, many) = (run(&weights, 1), run(&weights, 30));
            for (few, many) in one.iter().zip(&many) {
                assert!(f64::from(few - many).abs() < tolerance(&example));
            }
            for tokens in 1..30 {
                let found = run(&weights, tokens);
                let few = tokens < weights.few();
                let (found, wanted) = if few {
                    (&found[..70], &one[..])
                } else {
                    (&found[..], &many[..tokens * 70])
                };
                assert_eq!(found, wanted, "{level:?} {keep}:{group}, {tokens} tokens");
            }
        }
    }
}

#[test]
fn what_is_not_kept_does_not_reach_the_output_even_if_it_is_not_finite() {
    for (keep, group) in [(1, 4), (1, 16), (3, 5), (1, 32)] {
        let pattern = Pattern::new(keep, group).unwrap();
        let values = vec![1.0; 3 * keep];
        let places: Vec<u8> = (0..3 * keep).map(|place| (place % keep) as u8).collect();
        for level in Level::here() {
            let weights = Weights::new(&values, &places, (1, 3 * group), pattern, level).unwrap();
            for tokens in [1, 20] {
                let input: Vec<f32> = (0..tokens * 3 * group)
                    .map(|column| if column % group < keep { 1.0 } else { f32::NAN })
                    .collect();
                let field =
                    Field::tokens(tokens, 3 * group, Order::ChannelsLast, Order::ChannelsLast);
                let found = quickly(&weights, &field, &input, None, Team::rayon(Some(1)));
                assert_eq!(
                    found,
                    vec![3.0 * keep as f32; tokens],
                    "{level:?} {keep}:{group}"
                );
            }
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let example = Example::new(2, 8, Pattern::new(2, 4).unwrap(), 3);
    let weights = example.weights(Level::Portable);
    let layer = Layer {
        weights: &weights,
        bias: Some(&[1.0]),
        activation: Activation::Identity,
        bfloat16: false,
    };
    let last = Order::ChannelsLast;
    let (input, mut output) = ([0.0; 8], [0.0; 2]);
    let found = layer.linear(
        Input::F32(&input),
        1,
        last,
        Output::F32(&mut output),
        last,
        Team::rayon(None),
    );
    assert_eq!(found.unwrap_err().to_string(), "bias: 1 is not 2 entries");
    let field = Field {
        kernel: (3, 3),
        ..Field::tokens(1, 8, last, last)
    };
    let found = layer.conv2d(
        Input::F32(&input),
        &field,
        Output::F32(&mut output),
        Team::rayon(None),
    );
    assert_eq!(
        found.unwrap_err().to_string(),
        "padded input: 1 is not at least 3, what the kernel covers"
    );
    let bad = Weights::new(
        &example.values,
        &[4; 8],
        (2, 8),
        example.pattern,
        Level::Portable,
    );
    assert_eq!(
        bad.unwrap_err().to_string(),
        "places: 4 is not below the group size M"
    );
}
