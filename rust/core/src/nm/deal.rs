//! Consecutive groups of M entries into M lines, one for each place, and back.
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

/// The inverse of [`deal`]: to[factor * e + k] = from[k * part + e].
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
pub(super) fn collect<T: Copy>(from: &[T], to: &mut [T], factor: usize) {
    let part = from.len() / factor;
    match factor {
        2 => {
            let (even, odd) = from.split_at(part);
            for ((pair, even), odd) in to.chunks_exact_mut(2).zip(even).zip(odd) {
                (pair[0], pair[1]) = (*even, *odd);
            }
        }
        4 => {
            let (front, back) = from.split_at(2 * part);
            let ((a, b), (c, d)) = (front.split_at(part), back.split_at(part));
            for ((((run, a), b), c), d) in to.chunks_exact_mut(4).zip(a).zip(b).zip(c).zip(d) {
                (run[0], run[1], run[2], run[3]) = (*a, *b, *c, *d);
            }
        }
        _ => {
            for (k, line) in from.chunks_exact(part).enumerate() {
                for (value, run) in line.iter().zip(to.chunks_exact_mut(factor)) {
                    run[k] = *value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dealing_gathers_the_places_and_collecting_undoes_it() {
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
            for &factor in factors(group).iter().rev() {
                collect(&lines, &mut spare, factor);
                std::mem::swap(&mut lines, &mut spare);
            }
            assert_eq!(lines, run);
        }
    }
}
