//! What follows the sums of a layer.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

/// What is applied to each output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(0, y); a NaN stays one.
    Relu,
    /// y Phi(y) with the normal distribution function Phi, to 3e-7 or three units in the last place.
    Gelu,
}

impl Activation {
    /// Add `bias`, then apply the activation.
    #[inline(always)]
    pub(super) fn finish(self, sums: &mut [f32], bias: f32) {
        for sum in sums.iter_mut() {
            *sum += bias;
        }
        self.apply(sums);
    }

    #[inline(always)]
    pub(super) fn apply(self, sums: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Relu => {
                for sum in sums {
                    *sum = if *sum < 0.0 { 0.0 } else { *sum };
                }
            }
            Self::Gelu => sums.iter_mut().for_each(|sum| *sum = gelu(*sum)),
        }
    }
}

/// y Phi(y) in a form without branches; the error function is 7.1.26 of M. Abramowitz, I. Stegun, *Handbook of
/// Mathematical Functions*.
#[inline(always)]
fn gelu(y: f32) -> f32 {
    let x = y.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = t
        * (0.254_829_6
            + t * (-0.284_496_74 + t * (1.421_413_8 + t * (-1.453_152_1 + t * 1.061_405_4))));
    let beyond = 0.5 * series * exp_of_minus(x * x);
    let share = if y < 0.0 { beyond } else { 1.0 - beyond };
    y * share
}

/// exp(-z) for z >= 0 (0 beyond 87): 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
#[inline(always)]
fn exp_of_minus(z: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let shifted = z * -std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (-z - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.0
        + r * (1.0
            + r * (0.5
                + r * (0.166_666_67 + r * (0.041_666_6 + r * (0.008_333_6 + r * 0.001_39)))));
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if z > 87.0 { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_matches_known_values() {
        for (y, wanted) in [
            (0.0, 0.0),
            (1.0, 0.841_344_7),
            (-1.0, -0.158_655_25),
            (3.0, 2.995_950_3),
            (-3.0, -0.004_049_69),
            (-9.0, 0.0),
            (20.0, 20.0),
            (-200.0, 0.0),
        ] {
            assert!((gelu(y) - wanted).abs() < 3e-7, "{y}: {}", gelu(y));
        }
        assert!(gelu(f32::NAN).is_nan());
        assert!(gelu(f32::INFINITY) > f32::MAX);
    }

    #[test]
    fn the_exponential_is_right_to_the_last_places() {
        for step in 0..8_700 {
            let z = step as f32 * 0.01;
            let wanted = (-f64::from(z)).exp();
            let error = (f64::from(exp_of_minus(z)) - wanted).abs();
            assert!(error < 3e-7 * wanted + 1e-38, "{z}: {error}");
        }
    }

    #[test]
    fn relu_keeps_nan() {
        let mut sums = [f32::NAN, -1.0, 2.0];
        Activation::Relu.finish(&mut sums, 0.5);
        assert!(sums[0].is_nan());
        assert_eq!(sums[1..], [0.0, 2.5]);
    }
}
