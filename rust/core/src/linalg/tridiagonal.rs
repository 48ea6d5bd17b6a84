//! Eigenvalues of symmetric tridiagonal and singular values of bidiagonal matrices, by bisection.
//!
//! Each count of a bisection is a run of the three-term recurrence of the leading minors, p(i+1) = (d(i) - x) p(i) -
//! e(i-1)^2 p(i-1): as many eigenvalues lie below x as there are changes of sign (J. W. Givens, "A method of computing
//! eigenvalues and eigenvectors suggested by classical results on symmetric matrices", 1953). Many shifts go side by
//! side in vector registers, and there is no division, whose price made bisection slower than QL; rescaling keeps the
//! minors in range. Rounding acts like a change of d and e by a few eps, nothing has to converge, and values do not
//! depend on one another: any number of threads gives the same bits.

use std::ops::Range;

use rayon::prelude::*;

use crate::linalg::values::{PowerOfTwo, exponent};
use crate::vector::{FusedKernel, multiply_add, widest_fused};

/// Eigenvalues, ascending, of the symmetric tridiagonal matrix with this diagonal and off-diagonal.
///
/// `bits` of the largest are sought: absolute error 2^-`bits` times the largest (magnitude), or a few eps for 53 and more.
///
/// # Example
/// ```
/// let values = mpcore_core::linalg::tridiagonal::eigenvalues(&[2.0, 2.0], &[1.0], 53);
/// assert!((values[0] - 1.0).abs() < 1e-15 && (values[1] - 3.0).abs() < 1e-15);
/// ```
#[must_use]
pub fn eigenvalues(diagonal: &[f64], beside: &[f64], bits: u32) -> Vec<f64> {
    let n = diagonal.len();
    Tridiagonal::new(diagonal, beside)
        .map_or_else(|| vec![0.0; n], |matrix| matrix.bisect(0..n, bits))
}

/// Singular values, descending, of the upper bidiagonal matrix with this diagonal and superdiagonal.
///
/// The Golub-Kahan matrix (zero diagonal, d and e interleaved beside it) has plus and minus the singular values as its
/// eigenvalues: absolute error a few eps times the largest, no square is lost.
#[must_use]
pub fn singular_values(diagonal: &[f64], above: &[f64]) -> Vec<f64> {
    let n = diagonal.len();
    let mut beside = Vec::with_capacity(2 * n);
    for (i, value) in diagonal.iter().enumerate() {
        beside.push(*value);
        beside.extend(above.get(i));
    }
    let mut values = Tridiagonal::new(&vec![0.0; 2 * n], &beside).map_or_else(
        || vec![0.0; n],
        |matrix| matrix.bisect(n..2 * n, f64::MANTISSA_DIGITS),
    );
    values.reverse();
    values.iter().map(|v| v.max(0.0)).collect()
}

/// Shifts that are counted side by side.
const LANES: usize = 16;
/// Rows between two rescalings: minors of a matrix of norm 1 grow by 3 a row at most and shrink by [`LEAST`] eps in two.
const ROWS: usize = 8;
/// Squares off the diagonal are at least this, which moves no value by more than 2^-60: no minor after a zero is zero.
const LEAST: f64 = f64::from_bits((1023 - 120) << 52);

/// A symmetric tridiagonal matrix, scaled by 2^-exponent to a norm below 1.
struct Tridiagonal {
    diagonal: Vec<f64>,
    /// Of the off-diagonal, one above each row; the first is not looked at.
    squares: Vec<f64>,
    exponent: i32,
}

impl Tridiagonal {
    /// `None` for a matrix of zeros.
    fn new(diagonal: &[f64], beside: &[f64]) -> Option<Self> {
        let beside = |i: usize| beside.get(i).map_or(0.0, |e| e.abs());
        let above = |i: usize| if i > 0 { beside(i - 1) } else { 0.0 };
        let radius = (0..diagonal.len())
            .map(|i| diagonal[i].abs() + above(i) + beside(i))
            .fold(0.0, f64::max);
        if radius == 0.0 {
            return None;
        }
        let exponent = exponent(radius);
        let factor = PowerOfTwo::new(-exponent);
        let square = |i| factor.times(above(i)).powi(2).max(LEAST);
        // Rows of 2 beyond the last change no sign.
        let rows = diagonal.len().next_multiple_of(ROWS);
        let mut scaled: Vec<f64> = diagonal.iter().map(|d| factor.times(*d)).collect();
        scaled.resize(rows, 2.0);
        Some(Self {
            diagonal: scaled,
            squares: (0..rows).map(square).collect(),
            exponent,
        })
    }

    /// The eigenvalues with these ranks from below, to 2^-`bits`.
    fn bisect(&self, wanted: Range<usize>, bits: u32) -> Vec<f64> {
        // The counts at the points of a grid over [-1, 1] leave one cell for each value.
        let cells = wanted.len().next_power_of_two().max(LANES);
        let width = 2.0 / cells as f64;
        let point = |cell: usize| cell as f64 * width - 1.0;
        let counts: Vec<u64> = (0..cells / LANES)
            .into_par_iter()
            .flat_map_iter(|part| {
                self.count_below(std::array::from_fn(|i| point(part * LANES + i)))
            })
            .collect();
        let cell = |rank: usize| counts.partition_point(|count| *count <= rank as u64) - 1;
        let halvings = bits.min(f64::MANTISSA_DIGITS).saturating_sub(cells.ilog2());
        let unscale = PowerOfTwo::new(self.exponent);
        let ranks: Vec<usize> = wanted.collect();
        ranks
            .par_chunks(LANES)
            .flat_map_iter(|ranks| {
                let rank = |lane: usize| ranks[lane.min(ranks.len() - 1)];
                let mut low: [f64; LANES] = std::array::from_fn(|lane| point(cell(rank(lane))));
                let mut step = width;
                for _ in 0..halvings {
                    step *= 0.5;
                    let below = self.count_below(low.map(|low| low + step));
                    for lane in 0..LANES {
                        if below[lane] <= rank(lane) as u64 {
                            low[lane] += step;
                        }
                    }
                }
                let found = low.map(|low| unscale.times(low + 0.5 * step));
                found.into_iter().take(ranks.len())
            })
            .collect()
    }

    /// How many eigenvalues lie below each of the shifts.
    fn count_below(&self, shifts: [f64; LANES]) -> [u64; LANES] {
        widest_fused(Count {
            diagonal: &self.diagonal,
            squares: &self.squares,
            shifts,
        })
    }
}

struct Count<'a> {
    diagonal: &'a [f64],
    squares: &'a [f64],
    shifts: [f64; LANES],
}

impl FusedKernel for Count<'_> {
    type Output = [u64; LANES];

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run<const FUSED: bool>(self) -> [u64; LANES] {
        let (mut minor, mut before) = ([1.0; LANES], [0.0; LANES]);
        let mut changes = [0u64; LANES];
        let (diagonal, _) = self.diagonal.as_chunks::<ROWS>();
        let (squares, _) = self.squares.as_chunks::<ROWS>();
        for (diagonal, squares) in diagonal.iter().zip(squares) {
            for (d, square) in diagonal.iter().zip(squares) {
                for lane in 0..LANES {
                    let next = multiply_add::<f64, FUSED>(
                        d - self.shifts[lane],
                        minor[lane],
                        -square * before[lane],
                    );
                    changes[lane] += (next.to_bits() ^ minor[lane].to_bits()) >> 63;
                    before[lane] = minor[lane];
                    minor[lane] = next;
                }
            }
            for lane in 0..LANES {
                let factor = inverse_power_of_two(minor[lane].abs().max(before[lane].abs()));
                minor[lane] *= factor;
                before[lane] *= factor;
            }
        }
        changes
    }
}

/// The power of two that brings a normal number, smaller than 2^1023, into [1, 2).
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn inverse_power_of_two(value: f64) -> f64 {
    f64::from_bits((2046 << 52) - (value.to_bits() & (2047 << 52)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::dense;
    use crate::threads::with_threads;
    use proptest::prelude::*;

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter()
            .zip(b)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f64::max)
    }

    fn by_rotations(diagonal: &[f64], beside: &[f64]) -> Vec<f64> {
        let n = diagonal.len();
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            a[i * n + i] = diagonal[i];
            if i + 1 < n {
                a[i * n + i + 1] = beside[i];
                a[(i + 1) * n + i] = beside[i];
            }
        }
        dense::eigh(&a, n).unwrap().0
    }

    #[test]
    fn the_second_difference_matrix_has_its_textbook_eigenvalues() {
        let n = 200;
        let values = eigenvalues(&vec![2.0; n], &vec![-1.0; n - 1], 53);
        let exact: Vec<f64> = (1..=n)
            .map(|k| {
                4.0 * (std::f64::consts::PI * k as f64 / (2.0 * (n + 1) as f64))
                    .sin()
                    .powi(2)
            })
            .collect();
        assert!(largest_difference(&values, &exact) < 4e-15);
    }

    #[test]
    fn wilkinsons_pairs_are_told_apart() {
        let diagonal: Vec<f64> = (-10..=10).map(|i: i32| f64::from(i.abs())).collect();
        let values = eigenvalues(&diagonal, &[1.0; 20], 53);
        assert!((values[20] - 10.746_194_182_903_39).abs() < 1e-14);
        assert!((values[19] - 10.746_194_182_903_32).abs() < 1e-14);
    }

    #[test]
    fn a_zero_matrix_and_a_single_entry_are_their_own_answer() {
        assert_eq!(eigenvalues(&[0.0; 5], &[0.0; 4], 53), vec![0.0; 5]);
        assert!((eigenvalues(&[-3.0], &[], 53)[0] + 3.0).abs() < 1e-15);
        assert!(eigenvalues(&[], &[], 53).is_empty());
    }

    #[test]
    fn minors_neither_vanish_nor_overflow() {
        // Zeros, repeated values, and squares below the smallest number.
        let n = 300;
        let beside: Vec<f64> = (0..n - 1)
            .map(|i| [0.0, 1e-200, 1.0, 1e-17][i % 4])
            .collect();
        let diagonal: Vec<f64> = (0..n).map(|i| [1.0, 1.0, -1.0, 0.0][i % 4]).collect();
        let difference = largest_difference(
            &eigenvalues(&diagonal, &beside, 53),
            &by_rotations(&diagonal, &beside),
        );
        assert!(difference < 1e-14, "{difference:e}");
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let diagonal: Vec<f64> = (0..100).map(|i| f64::from(i * 37 % 11)).collect();
        let run = |threads| with_threads(Some(threads), || eigenvalues(&diagonal, &[0.7; 99], 53));
        assert_eq!(run(1), run(3));
    }

    proptest! {
        #[test]
        fn bisection_agrees_with_a_dense_route(pairs in prop::collection::vec((-3.0..3.0f64, prop_oneof![Just(0.0), -1e-8..1e-8f64, -2.0..2.0f64]), 1..40), power in -900..900i32) {
            let (d, e): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let slow = by_rotations(&d, &e[1..]);
            prop_assert!(largest_difference(&eigenvalues(&d, &e[1..], 53), &slow) < 1e-13);
            let scaled = |values: &[f64]| values.iter().map(|v| PowerOfTwo::new(power).times(*v)).collect::<Vec<_>>();
            prop_assert_eq!(eigenvalues(&scaled(&d), &scaled(&e[1..]), 53), scaled(&eigenvalues(&d, &e[1..], 53)));
        }

        #[test]
        fn singular_values_square_to_the_eigenvalues_of_the_product(d in prop::collection::vec(-2.0..2.0f64, 1..20), e in prop::collection::vec(-2.0..2.0f64, 20)) {
            let n = d.len();
            let diagonal: Vec<f64> = (0..n).map(|i| d[i] * d[i] + if i > 0 { e[i - 1] * e[i - 1] } else { 0.0 }).collect();
            let beside: Vec<f64> = (1..n).map(|i| d[i - 1] * e[i - 1]).collect();
            let mut squares: Vec<f64> = singular_values(&d, &e[..n - 1]).iter().map(|v| v * v).collect();
            squares.reverse();
            prop_assert!(largest_difference(&squares, &eigenvalues(&diagonal, &beside, 53)) < 1e-13);
        }
    }
}
