//! Top-N masks of a score: the optimum for every cost that is a sum over entries.

use num_traits::Float;
use rayon::prelude::*;

use super::compare::compare;
use super::deal::{deal, factors};
use super::network::Network;
use super::{Fibers, Pattern, octets, quads};
use crate::vector::{Kernel, widest};
use crate::{Error, Result};

/// Entries ranked at once: long enough for loops over slices, short enough for the L1 cache.
const TILE: usize = 2048;

/// Entries one task looks at; about a quarter of an L2 cache.
const TASK: usize = 1 << 15;

/// N:M, and the network that puts the N-th largest of M in its place.
#[doc(hidden)]
pub struct Rule(pub(super) Pattern, pub(super) Network);

/// A score: f32 or f64.
pub trait Score: Float + Default + Send + Sync + Into<f64> + 'static {
    /// The mask of consecutive groups, and whether all scores are finite, where a version in registers is at hand.
    #[doc(hidden)]
    #[must_use]
    fn in_registers(_: &[Self], _: &mut [bool], _: &Rule) -> Option<bool> {
        None
    }
}
impl Score for f32 {
    fn in_registers(score: &[Self], mask: &mut [bool], rule: &Rule) -> Option<bool> {
        match rule.0.group() {
            4 => quads::top_of_four(score, mask, rule.0.keep()),
            group if group.is_multiple_of(8) => octets::top_of_octets(score, mask, rule),
            _ => None,
        }
    }
}
impl Score for f64 {}

/// Keep the `keep` largest scores of every run of `group` entries along the length of `fibers`; true = kept.
///
/// `score` is (outer x length x inner), finite. An entry stays if fewer than `keep` of its group are greater, or equal
/// with a lower index: ties go to the lower index, so the mask is a function of the scores alone.
///
/// # Errors
/// [`Error::NotAMultiple`] if M does not divide the length; [`Error::NotFinite`] at the first NaN or infinity;
/// [`Error::Shape`] if `score` has another size than `fibers`.
///
/// # Examples
/// ```
/// use mpcore_core::nm::{Fibers, Pattern, select::nm_mask};
/// let row = Fibers { outer: 1, length: 4, inner: 1 };
/// let mask = nm_mask(&[1.0, 3.0, 3.0, 3.0], row, Pattern::new(2, 4)?)?;
/// assert_eq!(mask, [false, true, true, false]);
/// # Ok::<(), mpcore_core::Error>(())
/// ```
pub fn nm_mask<T: Score>(score: &[T], fibers: Fibers, pattern: Pattern) -> Result<Vec<bool>> {
    fibers.check(score.len(), pattern, "score")?;
    let mut mask = vec![false; score.len()];
    let unit = pattern.group() * fibers.inner;
    if unit == 0 {
        return Ok(mask);
    }
    let slab = unit * (TASK / unit).max(1);
    let network = Network::new(pattern.group(), &[pattern.keep() - 1]);
    let rule = Rule(pattern, network);
    let one = |(score, mask): (&[T], &mut [bool])| {
        let consecutive = fibers.inner == 1;
        let special = consecutive.then(|| T::in_registers(score, mask, &rule));
        special.flatten().unwrap_or_else(|| {
            widest(TopN {
                score,
                mask,
                inner: fibers.inner,
                pattern,
                network: &rule.1,
            })
        })
    };
    let slabs = score.par_chunks(slab).zip(mask.par_chunks_mut(slab));
    let finite = slabs.map(one).reduce(|| true, |a, b| a && b);
    if finite {
        Ok(mask)
    } else {
        Err(not_finite(score, fibers))
    }
}

fn not_finite<T: Score>(score: &[T], fibers: Fibers) -> Error {
    let position = score.iter().position(|v| !v.is_finite()).unwrap_or(0);
    let (row, column) = fibers.locate(position);
    Error::NotFinite {
        name: "score",
        row,
        column,
        value: score[position].into(),
    }
}

/// Whole groups of consecutive entries (`inner = 1`), or whole slabs of `inner` interleaved groups.
///
/// Both are ranked in tiles of `group` lines, where a line holds one place of each of them. The loops run over
/// slices and not over 16-lane arrays: measured, LLVM unrolls the latter first and then falls back to gathers.
struct TopN<'a, T> {
    score: &'a [T],
    mask: &'a mut [bool],
    inner: usize,
    pattern: Pattern,
    network: &'a Network,
}

impl<T: Score> Kernel for TopN<'_, T> {
    /// True if every score is finite.
    type Output = bool;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) -> bool {
        let score = self.score;
        if self.inner == 1 {
            self.consecutive();
        } else {
            self.interleaved();
        }
        let bad = |v: &T| u32::from(!v.is_finite());
        score.iter().fold(0, |found, v| found | bad(v)) == 0
    }
}

impl<T: Score> TopN<'_, T> {
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn consecutive(self) {
        let group = self.pattern.group();
        let width = width(group);
        let (factors, used) = (factors(group), group * width);
        let (mut one, mut two) = ([T::zero(); TILE], [T::zero(); TILE]);
        let (mut lines, mut spare) = (&mut one[..used], &mut two[..used]);
        for (score, mask) in self.score.chunks(used).zip(self.mask.chunks_mut(used)) {
            if score.len() == used {
                deal(score, lines, factors[0]);
            } else {
                spare[..score.len()].copy_from_slice(score);
                deal(spare, lines, factors[0]);
            }
            for &factor in &factors[1..] {
                deal(lines, spare, factor);
                std::mem::swap(&mut lines, &mut spare);
            }
            self.network.apply(lines, width);
            let last = &lines[(self.pattern.keep() - 1) * width..][..width];
            compare(score, last, mask, self.pattern);
        }
    }

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn interleaved(self) {
        let group = self.pattern.group();
        let width = width(group);
        let piece = self.inner.min(width);
        let slab = group * self.inner * (width / piece);
        let (mut one, mut two, mut three) = ([T::zero(); TILE], [T::zero(); TILE], [false; TILE]);
        let used = group * width;
        let (lines, spare, kept) = (&mut one[..used], &mut two[..used], &mut three[..used]);
        let mut counts = [0; TILE / 2];
        for (place, line) in lines.chunks_exact_mut(width).enumerate() {
            line.fill(T::from(place).unwrap_or_default()); // lanes that stay unused shall have no ties
        }
        let start = |row: usize| row % group * width + row / group * piece;
        for (score, mask) in self.score.chunks(slab).zip(self.mask.chunks_mut(slab)) {
            for first in (0..self.inner).step_by(piece) {
                let part = first..self.inner.min(first + piece);
                for (row, entries) in score.chunks_exact(self.inner).enumerate() {
                    lines[start(row)..][..part.len()].copy_from_slice(&entries[part.clone()]);
                }
                rank(
                    lines,
                    kept,
                    (self.network, self.pattern.keep()),
                    (spare, &mut counts[..width]),
                );
                for (row, entries) in mask.chunks_exact_mut(self.inner).enumerate() {
                    entries[part.clone()].copy_from_slice(&kept[start(row)..][..part.len()]);
                }
            }
        }
    }
}

/// Groups in one tile; a multiple of 16 for groups of up to 32, so that lines fill whole vectors.
fn width(group: usize) -> usize {
    TILE / group / 16 * 16
}

/// Which entries of every column of `lines` (group x width) are among its `keep` largest; `sorted` and `counts` are scratch.
///
/// The network leaves the `keep`-th largest in its line. Where no more than `keep` entries reach it, these are the mask.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn rank<T: Score>(
    lines: &[T],
    kept: &mut [bool],
    (network, keep): (&Network, usize),
    (sorted, counts): (&mut [T], &mut [u32]),
) {
    let width = counts.len();
    sorted.copy_from_slice(lines);
    network.apply(sorted, width);
    let last = &sorted[(keep - 1) * width..][..width];
    counts.fill(0);
    for (line, kept) in lines.chunks_exact(width).zip(kept.chunks_exact_mut(width)) {
        let entries = line.iter().zip(last).zip(counts.iter_mut());
        for (((value, last), count), kept) in entries.zip(kept) {
            *kept = value >= last;
            *count += u32::from(value >= last);
        }
    }
    let most = counts.iter().fold(0, |most, &count| most.max(count));
    if most > keep as u32 {
        settle_ties(lines, last, kept, (keep, counts));
    }
}

/// Of the entries equal to the `keep`-th largest, keep the first ones, as many as there is room for.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn settle_ties<T: Score>(
    lines: &[T],
    last: &[T],
    kept: &mut [bool],
    (keep, room): (usize, &mut [u32]),
) {
    let width = room.len();
    room.fill(keep as u32);
    for line in lines.chunks_exact(width) {
        for ((value, last), room) in line.iter().zip(last).zip(room.iter_mut()) {
            *room -= u32::from(value > last);
        }
    }
    for (line, kept) in lines.chunks_exact(width).zip(kept.chunks_exact_mut(width)) {
        let entries = line.iter().zip(last).zip(room.iter_mut());
        for (((value, last), room), kept) in entries.zip(kept) {
            let tie = u32::from(value == last) & u32::from(*room > 0);
            *kept = u32::from(value > last) + tie > 0;
            *room -= tie;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(score: &[f64], fibers: Fibers, pattern: Pattern) -> Vec<bool> {
        let mut mask = vec![false; score.len()];
        for outer in 0..fibers.outer {
            for group in 0..fibers.length / pattern.group() {
                for inner in 0..fibers.inner {
                    let at = |place: usize| {
                        (outer * fibers.length + group * pattern.group() + place) * fibers.inner
                            + inner
                    };
                    let mut order: Vec<usize> = (0..pattern.group()).collect();
                    order.sort_by(|&a, &b| score[at(b)].total_cmp(&score[at(a)]));
                    for &place in &order[..pattern.keep()] {
                        mask[at(place)] = true;
                    }
                }
            }
        }
        mask
    }

    proptest! {
        #[test]
        fn the_mask_is_the_stable_sort_of_every_group(
            (outer, groups, inner) in (1usize..4, 1usize..40, 1usize..20),
            (keep, extra) in (1usize..16, 1usize..16),
            seed in any::<u32>(),
        ) {
            let pattern = Pattern::new(keep, keep + extra).unwrap();
            let fibers = Fibers { outer, length: groups * pattern.group(), inner };
            let mut state = u64::from(seed);
            let score: Vec<f64> = (0..fibers.size()).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((state >> 60) as f64) - 8.0
            }).collect();
            let wanted = slow(&score, fibers, pattern);
            prop_assert_eq!(&nm_mask(&score, fibers, pattern).unwrap(), &wanted);
            let single: Vec<f32> = score.iter().map(|&v| v as f32).collect();
            prop_assert_eq!(&nm_mask(&single, fibers, pattern).unwrap(), &wanted);
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named() {
        let fibers = Fibers {
            outer: 2,
            length: 8,
            inner: 1,
        };
        let mut score = vec![1.0f32; 16];
        score[13] = f32::INFINITY;
        let error = nm_mask(&score, fibers, Pattern::new(2, 4).unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("score: entry (1, 5) is inf"));
    }

    /// Scores with many ties, both zeros among them.
    fn tied(count: usize) -> Vec<f32> {
        let value = |i: usize| ((i * i * 7919 + i * 31) >> 3) % 23;
        (0..count)
            .map(|i| (value(i) as f32 - 11.0) * -0.5)
            .collect()
    }

    fn portable(score: &[f32], mask: &mut [bool], rule: &Rule) -> bool {
        let (pattern, network) = (rule.0, &rule.1);
        TopN {
            score,
            mask,
            inner: 1,
            pattern,
            network,
        }
        .run()
    }

    #[test]
    fn versions_in_registers_give_the_mask_of_the_portable_one_and_see_what_is_not_finite() {
        for group in [4, 8, 16, 24, 32] {
            for keep in 1..group {
                let pattern = Pattern::new(keep, group).unwrap();
                let rule = Rule(pattern, Network::new(group, &[keep - 1]));
                for groups in [1, 7, 8, 21] {
                    let mut score = tied(groups * group);
                    let (mut wanted, mut found) =
                        (vec![false; score.len()], vec![false; score.len()]);
                    assert!(portable(&score, &mut wanted, &rule));
                    let Some(finite) = f32::in_registers(&score, &mut found, &rule) else {
                        return; // this CPU, or the level asked for, has no such version
                    };
                    assert!(finite && found == wanted, "{keep}:{group}, {groups}");
                    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let place = groups * group - 1 - keep;
                        score[place] = bad;
                        assert_eq!(f32::in_registers(&score, &mut found, &rule), Some(false));
                        assert!(!portable(&score, &mut wanted, &rule));
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_in_gives_nothing_out() {
        let fibers = Fibers {
            outer: 0,
            length: 8,
            inner: 1,
        };
        assert_eq!(
            nm_mask::<f32>(&[], fibers, Pattern::new(2, 4).unwrap()),
            Ok(vec![])
        );
    }
}
