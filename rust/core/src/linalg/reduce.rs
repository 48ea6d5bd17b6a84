//! Sums and maxima over entries in fixed lanes: the compiler can use vector registers, the order never changes.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#![expect(clippy::needless_range_loop, reason = "lanes go by number")]

use crate::linalg::dense::Real;
use crate::linalg::values::{PowerOfTwo, scale};
use crate::vector::{Kernel, widest};

const LANES: usize = 16;

/// Largest magnitude of the entries; `None` if one is NaN or infinite.
pub(crate) fn largest<T: Real>(block: &[T]) -> Option<f64> {
    widest(Largest(block))
}

struct Largest<'a, T>(&'a [T]);

impl<T: Real> Kernel for Largest<'_, T> {
    type Output = Option<f64>;

    #[inline(always)]
    fn run(self) -> Option<f64> {
        let (mut top, mut poison) = ([T::zero(); LANES], [T::zero(); LANES]);
        each_lane(self.0, |lane, value| {
            top[lane] = larger(top[lane], value.abs());
            // 0 for a finite entry, NaN otherwise.
            poison[lane] += value * T::zero();
        });
        let finite = poison.iter().all(|v| !v.is_nan());
        finite.then(|| top.iter().filter_map(T::to_f64).fold(0.0, f64::max))
    }
}

/// The larger of two values; `top` beside a NaN.
#[inline(always)]
fn larger<T: Real>(top: T, value: T) -> T {
    if value > top { value } else { top }
}

/// Hand out the entries in order: the remainder first, then rows of lanes.
#[inline(always)]
fn each_lane<T: Copy>(block: &[T], mut add: impl FnMut(usize, T)) {
    let chunks = block.chunks_exact(LANES);
    for (lane, value) in chunks.remainder().iter().enumerate() {
        add(lane, *value);
    }
    for chunk in chunks {
        for lane in 0..LANES {
            add(lane, chunk[lane]);
        }
    }
}

/// Sums over the entries within a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) count: f64,
    pub(crate) second: f64,
    pub(crate) fourth: f64,
}

impl Moments {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            second: self.second + other.second,
            fourth: self.fourth + other.fourth,
        }
    }

    /// Of the values times 2^`power`, as far as nothing overflows.
    pub(crate) fn scaled(self, power: i32) -> Self {
        Self {
            count: self.count,
            second: scale(self.second, 2 * power),
            fourth: scale(self.fourth, 4 * power),
        }
    }

    /// Excess kurtosis; 0 where there is nothing to measure.
    pub(crate) fn excess(self) -> f64 {
        if self.second > 0.0 {
            self.fourth * self.count / (self.second * self.second) - 3.0
        } else {
            0.0
        }
    }
}

/// Largest magnitude (`None` if an entry is NaN or infinite) and the moments of all entries.
pub(crate) fn size<T: Real>(block: &[T]) -> (Option<f64>, Moments) {
    widest(Both(block))
}

struct Both<'a, T>(&'a [T]);

impl<T: Real> Kernel for Both<'_, T> {
    type Output = (Option<f64>, Moments);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut top = [T::zero(); LANES];
        let (mut second, mut fourth) = ([0.0; LANES], [0.0; LANES]);
        each_lane(self.0, |lane, value| {
            top[lane] = larger(top[lane], value.abs());
            let wide = value.to_f64().unwrap_or(f64::NAN);
            let square = wide * wide;
            second[lane] += square;
            fourth[lane] += square * square;
        });
        let moments = Moments {
            count: self.0.len() as f64,
            second: second.iter().sum(),
            fourth: fourth.iter().sum(),
        };
        // An entry that is not finite makes no finite sum; a sum may overflow without one.
        let finite = moments.fourth.is_finite() || self.0.iter().all(|v| v.is_finite());
        let largest = finite.then(|| top.iter().filter_map(T::to_f64).fold(0.0, f64::max));
        (largest, moments)
    }
}

/// Number, squares and fourth powers of factor times entry, where that is at most `limit` in magnitude.
pub(crate) fn moments<T: Real>(block: &[T], factor: PowerOfTwo, limit: f64) -> Moments {
    widest(Sums {
        block,
        factor,
        limit,
    })
}

struct Sums<'a, T> {
    block: &'a [T],
    factor: PowerOfTwo,
    limit: f64,
}

impl<T: Real> Kernel for Sums<'_, T> {
    type Output = Moments;

    #[inline(always)]
    fn run(self) -> Moments {
        let mut count = [0.0; LANES];
        let (mut second, mut fourth) = ([0.0; LANES], [0.0; LANES]);
        each_lane(self.block, |lane, value| {
            let value = self.factor.times(value.to_f64().unwrap_or(f64::NAN));
            let inside = f64::from(u8::from(value.abs() <= self.limit));
            let square = inside * value * value;
            count[lane] += inside;
            second[lane] += square;
            fourth[lane] += square * square;
        });
        Moments {
            count: count.iter().sum(),
            second: second.iter().sum(),
            fourth: fourth.iter().sum(),
        }
    }
}

/// Sum of (factor times entry)^2 times weight.
pub(crate) fn weighted_squares<T: Real>(line: &[T], factor: PowerOfTwo, weights: &[f64]) -> f64 {
    widest(WeightedSquares {
        line,
        factor,
        weights,
    })
}

struct WeightedSquares<'a, T> {
    line: &'a [T],
    factor: PowerOfTwo,
    weights: &'a [f64],
}

impl<T: Real> Kernel for WeightedSquares<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sums = [0.0; LANES];
        let (line, weights) = (
            self.line.chunks_exact(LANES),
            self.weights.chunks_exact(LANES),
        );
        let tail = line.remainder().iter().zip(weights.remainder());
        let tail: f64 = tail.map(|(v, w)| square(*v, self.factor) * w).sum();
        for (values, weights) in line.zip(weights) {
            for lane in 0..LANES {
                sums[lane] += square(values[lane], self.factor) * weights[lane];
            }
        }
        sums.iter().sum::<f64>() + tail
    }
}

/// Add weight times (factor times entry)^2 to the sum of every column.
pub(crate) fn add_squares<T: Real>(sums: &mut [f64], line: &[T], factor: PowerOfTwo, weight: f64) {
    widest(AddSquares {
        sums,
        line,
        factor,
        weight,
    });
}

struct AddSquares<'a, T> {
    sums: &'a mut [f64],
    line: &'a [T],
    factor: PowerOfTwo,
    weight: f64,
}

impl<T: Real> Kernel for AddSquares<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (sum, value) in self.sums.iter_mut().zip(self.line) {
            *sum += square(*value, self.factor) * self.weight;
        }
    }
}

#[inline(always)]
fn square<T: Real>(value: T, factor: PowerOfTwo) -> f64 {
    let value = factor.times(value.to_f64().unwrap_or(f64::NAN));
    value * value
}

/// Sum of the products of two vectors of one length.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    widest(Dot(a, b))
}

struct Dot<'a>(&'a [f64], &'a [f64]);

impl Kernel for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sums = [0.0; LANES];
        let (a, b) = (self.0.chunks_exact(LANES), self.1.chunks_exact(LANES));
        let tail = a.remainder().iter().zip(b.remainder());
        let tail: f64 = tail.map(|(x, y)| x * y).sum();
        for (x, y) in a.zip(b) {
            for lane in 0..LANES {
                sums[lane] += x[lane] * y[lane];
            }
        }
        sums.iter().sum::<f64>() + tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_agree_with_plain_loops() {
        let values: Vec<f64> = (0..37).map(|i| f64::from(i) - 20.0).collect();
        assert_eq!(largest(&values), Some(20.0));
        let Moments { second, fourth, .. } = moments(&values, PowerOfTwo::new(1), f64::INFINITY);
        let plain = |power: i32| values.iter().map(|v| (2.0 * v).powi(power)).sum::<f64>();
        assert!((second - plain(2)).abs() < 1e-9 && (fourth - plain(4)).abs() < 1e-6);
        assert!((dot(&values, &values) - plain(2) / 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_nan_or_an_infinity_anywhere_is_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 15, 16, 33] {
                let mut values = [1f32; 34];
                values[place] = bad;
                assert_eq!(largest(&values), None);
            }
        }
    }
}
