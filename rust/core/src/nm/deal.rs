//! Consecutive groups of M entries into M lines, one for each place.
//!
//! One pass per factor of M. The loops run over slices with the factors 2 and 4 spelled out, which the compiler turns into
//! shuffles; a single strided loop becomes gathers, which were three times as slow at M = 8 and 16.

/// M as a product of fours, at most one two, and odd primes: 24 = 4 * 2 * 3.
pub(super) fn factors(group: usize) -> Vec<usize> {
    let (mut rest, mut found) = (group, Vec::new());
    for factor in std::iter::once(4).chain(2..=group) {
        while rest.is_multiple_of(factor) {
            found.push(factor);
            rest /= factor;
        }
    }
    found
}

/// to[k * part + e] = from[factor * e + k]: moves the lowest digit of the position to the top.
///
/// One pass per factor of M turns consecutive groups into M lines, one for each place.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
pub(super) fn deal<T: Copy>(from: &[T], to: &mut [T], factor: usize) {
    let part = from.len() / factor;
    match factor {
        2 => {
            let (even, odd) = to.split_at_mut(part);
            for ((pair, even), odd) in from.chunks_exact(2).zip(even).zip(odd) {
                (*even, *odd) = (pair[0], pair[1]);
            }
        }
        4 => {
            let (front, back) = to.split_at_mut(2 * part);
            let ((a, b), (c, d)) = (front.split_at_mut(part), back.split_at_mut(part));
            for ((((run, a), b), c), d) in from.chunks_exact(4).zip(a).zip(b).zip(c).zip(d) {
                (*a, *b, *c, *d) = (run[0], run[1], run[2], run[3]);
            }
        }
        _ => {
            for (k, line) in to.chunks_exact_mut(part).enumerate() {
                for (value, run) in line.iter_mut().zip(from.chunks_exact(factor)) {
                    *value = run[k];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dealing_gathers_the_places() {
        for group in 2..=32 {
            let run: Vec<usize> = (0..group * 16).collect();
            let (mut lines, mut spare) = (run.clone(), vec![0; run.len()]);
            for factor in factors(group) {
                deal(&lines, &mut spare, factor);
                std::mem::swap(&mut lines, &mut spare);
            }
            for (position, entry) in lines.iter().enumerate() {
                assert_eq!(*entry, position % 16 * group + position / 16);
            }
        }
    }
}
