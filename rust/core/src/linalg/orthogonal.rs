//! Orthonormal rows, whatever comes in.

use crate::linalg::reduce::dot;
use crate::random::Random;
use crate::vector::{Kernel, widest};

/// Make the rows of `block` orthonormal, and orthogonal to the orthonormal rows of `basis`, by Gram-Schmidt twice.
///
/// Returns the upper triangular R (b x b) with block' = block'(new) R. A row that depends on those before it is
/// replaced by a random direction, with a zero on the diagonal of R: the result is orthonormal whatever comes in.
pub(crate) fn orthonormalise(
    block: &mut [f64],
    length: usize,
    basis: &[f64],
    random: &mut Random,
) -> Vec<f64> {
    let count = block.len() / length;
    let mut triangle = vec![0.0; count * count];
    let largest = block
        .chunks_exact(length)
        .map(|row| dot(row, row).sqrt())
        .fold(0.0, f64::max);
    for i in 0..count {
        let (done, rest) = block.split_at_mut(i * length);
        let row = &mut rest[..length];
        for _ in 0..2 {
            for (j, earlier) in done.chunks_exact(length).enumerate() {
                triangle[j * count + i] += remove(row, earlier);
            }
        }
        let mut norm = dot(row, row).sqrt();
        triangle[i * count + i] = norm;
        if norm <= 1e-14 * largest || norm == 0.0 {
            triangle[i * count + i] = 0.0;
            for value in row.iter_mut() {
                *value = random.normal();
            }
            for _ in 0..2 {
                for other in basis.chunks_exact(length).chain(done.chunks_exact(length)) {
                    remove(row, other);
                }
            }
            norm = dot(row, row).sqrt();
        }
        for value in row.iter_mut() {
            *value /= norm;
        }
    }
    triangle
}

/// Subtract from `row` its part along the unit vector `other`; returns that part.
fn remove(row: &mut [f64], other: &[f64]) -> f64 {
    let part = dot(row, other);
    widest(Less { row, part, other });
    part
}

/// row -= part other
struct Less<'a> {
    row: &'a mut [f64],
    part: f64,
    other: &'a [f64],
}

impl Kernel for Less<'_> {
    type Output = ();

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) {
        for (value, o) in self.row.iter_mut().zip(self.other) {
            *value -= self.part * o;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependent_rows_are_replaced_and_the_triangle_rebuilds_the_block() {
        let length = 6;
        let mut random = Random::new(1, 0);
        let first: Vec<f64> = (0..length).map(|_| random.normal()).collect();
        let mut block = first.clone();
        block.extend(first.iter().map(|v| 2.0 * v));
        block.extend((0..length).map(|_| random.normal()));
        let given = block.clone();
        let r = orthonormalise(&mut block, length, &[], &mut random);
        for i in 0..3 {
            for j in 0..3 {
                let product = dot(
                    &block[i * length..][..length],
                    &block[j * length..][..length],
                );
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
            for k in 0..length {
                let rebuilt: f64 = (0..3).map(|j| r[j * 3 + i] * block[j * length + k]).sum();
                assert!((rebuilt - given[i * length + k]).abs() < 1e-12);
            }
        }
        assert!(r[3 + 1].abs() < 1e-300);
    }
}
