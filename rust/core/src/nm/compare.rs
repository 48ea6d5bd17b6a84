//! From the N-th largest of every consecutive group to its mask, in the order in which the scores lie.

use super::Pattern;
use super::select::Score;

/// Keep the entries that reach the `last` kept one of their group, given for each group; ties go to the lower index.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
pub(super) fn compare<T: Score>(score: &[T], last: &[T], mask: &mut [bool], pattern: Pattern) {
    match pattern.group() {
        4 => compare_arrays::<T, 4>(score, last, mask),
        8 => compare_arrays::<T, 8>(score, last, mask),
        16 => compare_arrays::<T, 16>(score, last, mask),
        32 => compare_arrays::<T, 32>(score, last, mask),
        group => {
            let runs = score.chunks_exact(group).zip(mask.chunks_exact_mut(group));
            for ((run, kept), last) in runs.zip(last) {
                for (value, kept) in run.iter().zip(kept) {
                    *kept = value >= last;
                }
            }
        }
    }
    let count: u64 = mask
        .chunks(128)
        .map(|run| u64::from(run.iter().map(|&kept| u8::from(kept)).sum::<u8>()))
        .sum();
    let (keep, group) = (pattern.keep(), pattern.group());
    if count > (score.len() / group * keep) as u64 {
        let runs = score.chunks_exact(group).zip(mask.chunks_exact_mut(group));
        for ((run, kept), &last) in runs.zip(last) {
            settle(run, last, kept, keep);
        }
    }
}

/// Keep what is above the `keep`-th largest of one group, and of its equals the first ones, as many as there is room for.
pub(super) fn settle<T: Score>(run: &[T], last: T, kept: &mut [bool], keep: usize) {
    let above = run.iter().filter(|&&value| value > last).count();
    let mut room = keep.saturating_sub(above); // with a NaN in the group nothing is true
    for (&value, kept) in run.iter().zip(kept) {
        let tie = value == last && room > 0;
        *kept = value > last || tie;
        room -= usize::from(tie);
    }
}

#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn compare_arrays<T: Score, const M: usize>(score: &[T], last: &[T], mask: &mut [bool]) {
    let runs = score.as_chunks::<M>().0.iter();
    for ((run, kept), &last) in runs.zip(mask.as_chunks_mut::<M>().0).zip(last) {
        for place in 0..M {
            kept[place] = run[place] >= last;
        }
    }
}
