//! Top-N masks of a score: the optimum for every cost that is a sum over entries.

use num_traits::Float;
use rayon::prelude::*;

use super::{Fibers, Pattern, pattern::MAX_GROUP};
use crate::vector::{Kernel, widest};
use crate::{Error, Result};

/// Groups, or neighbouring fibers, ranked at once.
const LANES: usize = 16;

/// Entries one task looks at; about a quarter of an L2 cache.
const TASK: usize = 1 << 15;

/// A score: f32 or f64.
pub trait Score: Float + Default + Send + Sync + Into<f64> + 'static {}
impl Score for f32 {}
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
    let slab = if fibers.inner == 1 {
        unit * (TASK / unit).max(1)
    } else {
        unit
    };
    let finite = score
        .par_chunks(slab)
        .zip(mask.par_chunks_mut(slab))
        .with_min_len((TASK / slab).max(1))
        .map(|(score, mask)| {
            widest(TopN {
                score,
                mask,
                inner: fibers.inner,
                pattern,
            })
        })
        .reduce(|| true, |a, b| a && b);
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

/// Whole groups of consecutive entries (`inner = 1`), or the `inner` interleaved groups of one slab.
struct TopN<'a, T> {
    score: &'a [T],
    mask: &'a mut [bool],
    inner: usize,
    pattern: Pattern,
}

impl<T: Score> Kernel for TopN<'_, T> {
    type Output = bool;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) -> bool {
        match self.pattern.group() {
            2 => self.ranks::<2>(),
            4 => self.ranks::<4>(),
            8 => self.ranks::<8>(),
            16 => self.ranks::<16>(),
            _ => self.ranks::<MAX_GROUP>(),
        }
    }
}

impl<T: Score> TopN<'_, T> {
    /// Rank tiles of up to `LANES` groups; `M` only bounds the group, so that loops unroll. True if all is finite.
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn ranks<const M: usize>(self) -> bool {
        let (keep, group) = (
            self.pattern.keep() as u32,
            if M < MAX_GROUP {
                M
            } else {
                self.pattern.group()
            },
        );
        let (step, next) = if self.inner == 1 {
            (1, group)
        } else {
            (self.inner, 1)
        };
        let lanes = self.score.len() / group;
        let mut probe = [T::zero(); LANES];
        for first in (0..lanes).step_by(LANES) {
            let width = LANES.min(lanes - first);
            let base = first * next;
            let mut tile = [[T::zero(); LANES]; M];
            for (place, line) in tile[..group].iter_mut().enumerate() {
                for (lane, value) in line[..width].iter_mut().enumerate() {
                    *value = self.score[base + lane * next + place * step];
                }
            }
            for place in 0..group {
                let kept = fewer_above(&tile[..group], place, keep, &mut probe);
                for (lane, &kept) in kept[..width].iter().enumerate() {
                    self.mask[base + lane * next + place * step] = kept;
                }
            }
        }
        probe.iter().all(|v| *v == T::zero())
    }
}

/// Whether fewer than `keep` entries of the group come before the one at `place`, lane by lane.
///
/// `probe` gathers x - x, which is zero for finite x and NaN otherwise.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn fewer_above<T: Score>(
    tile: &[[T; LANES]],
    place: usize,
    keep: u32,
    probe: &mut [T; LANES],
) -> [bool; LANES] {
    let own = tile[place];
    let mut above = [0u32; LANES];
    for other in &tile[..place] {
        for lane in 0..LANES {
            above[lane] += u32::from(other[lane] >= own[lane]);
        }
    }
    for other in &tile[place + 1..] {
        for lane in 0..LANES {
            above[lane] += u32::from(other[lane] > own[lane]);
        }
    }
    let mut kept = [false; LANES];
    for lane in 0..LANES {
        probe[lane] = probe[lane] + (own[lane] - own[lane]);
        kept[lane] = above[lane] < keep;
    }
    kept
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
