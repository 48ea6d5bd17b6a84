//! Masks that minimise a quadratic cost of what is removed, exactly.

use rayon::prelude::*;

use super::Pattern;
use super::pattern::MAX_GROUP;
use super::select::Score;
use crate::linalg::values::{PowerOfTwo, exponent};
use crate::vector::{Kernel, widest};
use crate::{Error, Result};

/// Rows searched at once; 8 were a third slower at 8:16, 32 no faster.
const LANES: usize = 16;

/// Patterns of `LANES` rows between two looks at `stop`: a fraction of a second.
const BATCH: u64 = 1 << 23;

/// Patterns of a group that are still enumerated; 8:16 has 12 870, 12:24 would have 2.7 million.
pub const MOST_PATTERNS: u64 = 1 << 20;

type Lanes = [f64; LANES];

/// A mask to stay close to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// (rows x columns), true = kept.
    pub mask: &'a [bool],
    /// Weight of one differing entry, in units of the mean cost over all patterns of the same row and group.
    pub weight: f64,
}

/// The N:M mask with the least removed energy `r' C_g r` in every row and group, where r are the removed weights.
///
/// `weight` is (rows x columns), row-major; `gram` is (columns / M, M, M), the second moments of each group's inputs; both are
/// finite. Only the symmetric part of a moment matters, and it need not be positive. With a target the cost has `weight * mean_cost * h` added, where h
/// is the number of entries of the group that differ from the target and `mean_cost` the mean of `r' C_g r` over all
/// C(M, N) patterns. `stop` is asked now and then. Every pattern is visited; of equal costs the one that keeps lower indices wins.
///
/// # Errors
/// [`Error::Shape`] for sizes that do not fit; [`Error::NotAMultiple`] if M does not divide the columns;
/// [`Error::Value`] if a group has more than [`MOST_PATTERNS`] patterns, or for a weight of the target outside 0..=1e100; [`Error::Interrupted`] if `stop` says so.
///
/// # Examples
/// ```
/// use mpcore_core::nm::{Pattern, quadratic::quadratic_mask};
/// // The two inputs cancel: removing both of the first two weights costs nothing.
/// let gram = [1.0, -1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.5];
/// let mask = quadratic_mask(&[1.0f64, 1.0, 1.0], 3, &gram, Pattern::new(1, 3)?, None, &|| false)?;
/// assert_eq!(mask, [false, false, true]);
/// # Ok::<(), mpcore_core::Error>(())
/// ```
pub fn quadratic_mask<T: Score>(
    weight: &[T],
    columns: usize,
    gram: &[f64],
    pattern: Pattern,
    target: Option<Target<'_>>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<bool>> {
    let groups = pattern.groups(columns, "W")?;
    check(weight.len(), columns, gram.len(), pattern, target)?;
    let group = pattern.group();
    let mut mask = vec![false; weight.len()];
    if columns == 0 {
        return Ok(mask);
    }
    let fill = |(block, mask): (usize, &mut [bool])| {
        for index in 0..groups {
            let at = |lane: usize| (block * LANES + lane) * columns + index * group;
            let gram = symmetric(&gram[index * group * group..][..group * group], group);
            let mut search = Search::new(pattern);
            for lane in 0..mask.len() / columns {
                let weights = &weight[at(lane)..][..group];
                let target = target.map(|t| (&t.mask[at(lane)..][..group], t.weight));
                search.load(lane, weights, &gram, target);
            }
            let removed = widest(&mut search);
            for (lane, row) in mask.chunks_exact_mut(columns).enumerate() {
                for (place, kept) in row[index * group..][..group].iter_mut().enumerate() {
                    *kept = removed[lane] >> place & 1 == 0;
                }
            }
        }
    };
    let visits = groups as u64 * binomial(group, pattern.keep());
    let batch = (BATCH / visits).max(1) as usize;
    for (index, mask) in mask.chunks_mut(columns * LANES * batch).enumerate() {
        if stop() {
            return Err(Error::Interrupted);
        }
        let blocks = mask.par_chunks_mut(columns * LANES).enumerate();
        blocks.for_each(|(block, mask)| fill((index * batch + block, mask)));
    }
    Ok(mask)
}

fn check(
    weights: usize,
    columns: usize,
    gram: usize,
    pattern: Pattern,
    target: Option<Target<'_>>,
) -> Result<()> {
    let shape = |name, got, wanted| Err(Error::Shape { name, got, wanted });
    if columns > 0 && !weights.is_multiple_of(columns) {
        return shape("W", weights, format!("rows of {columns} columns"));
    }
    if gram != columns * pattern.group() {
        return shape(
            "gram",
            gram,
            format!("{} groups of M x M", columns / pattern.group()),
        );
    }
    if let Some(target) = target {
        if target.mask.len() != weights {
            return shape("target", target.mask.len(), format!("{weights} entries"));
        }
        if !(0.0..=1e100).contains(&target.weight) {
            return Err(Error::Value {
                name: "target_weight",
                got: target.weight,
                wanted: "between 0 and 1e100",
            });
        }
    }
    let patterns = binomial(pattern.group(), pattern.keep());
    if patterns > MOST_PATTERNS {
        return Err(Error::Value {
            name: "pattern",
            got: patterns as f64,
            wanted: "a number of masks per group up to 2^20, all of which are visited",
        });
    }
    Ok(())
}

/// The symmetric part of a group's moments, within range.
fn symmetric(gram: &[f64], group: usize) -> Vec<f64> {
    let mut found = gram.to_vec();
    within_range(&mut found);
    for i in 0..group {
        for j in 0..i {
            let mean = f64::midpoint(found[i * group + j], found[j * group + i]);
            (found[i * group + j], found[j * group + i]) = (mean, mean);
        }
    }
    found
}

/// Multiply by a power of two if the largest magnitude is so far from one that products might leave float64.
fn within_range(values: &mut [f64]) {
    let largest = values
        .iter()
        .fold(0.0, |largest: f64, v| largest.max(v.abs()));
    if largest > 0.0 && !(1e-60..1e60).contains(&largest) {
        let unit = PowerOfTwo::new(-exponent(largest));
        for value in values {
            *value = unit.times(*value);
        }
    }
}

/// M over N; at most 32 over 16, which fits.
fn binomial(m: usize, n: usize) -> u64 {
    (0..n as u64).fold(1, |value, k| value * (m as u64 - k) / (k + 1))
}

/// Enumeration of the removed sets of one group, `LANES` rows at once.
///
/// With `A_ij = w_i C_ij w_j` the cost of a set is the sum of A over it. Sets are built in falling order of their members: with
/// `gain[j] = A_jj + 2 sum of A_ij` over the members so far, adding j costs `gain[j]`, and one level further down
/// `gain[i]` grows by `2 A_ij`. The last level is one addition and one comparison a set.
struct Search {
    keep: usize,
    group: usize,
    /// A, doubled off the diagonal: `cross[i * group + j]`.
    cross: Vec<Lanes>,
    /// `gain` of every depth: `gain[depth * group + j]`.
    gain: Vec<Lanes>,
}

impl Search {
    fn new(pattern: Pattern) -> Self {
        let (keep, group) = (pattern.keep(), pattern.group());
        Self {
            keep,
            group,
            cross: vec![[0.0; LANES]; group * group],
            gain: vec![[0.0; LANES]; (group - keep + 1) * group],
        }
    }

    /// Put the costs of one row into a lane; `gram` is symmetric and within range.
    fn load<T: Score>(
        &mut self,
        lane: usize,
        weights: &[T],
        gram: &[f64],
        target: Option<(&[bool], f64)>,
    ) {
        let group = self.group;
        let mut row = [0.0; MAX_GROUP];
        for (value, &weight) in row.iter_mut().zip(weights) {
            *value = weight.into();
        }
        let row = &mut row[..group];
        within_range(row);
        let (mut diagonal, mut rest) = (0.0, 0.0);
        for (i, &wi) in row.iter().enumerate() {
            for (j, &wj) in row.iter().enumerate() {
                let value = wi * wj * gram[i * group + j];
                self.cross[i * group + j][lane] = 2.0 * value;
                if i == j {
                    self.gain[j][lane] = value;
                    diagonal += value;
                } else {
                    rest += value;
                }
            }
        }
        if let Some((mask, weight)) = target {
            let (m, k) = (group as f64, (group - self.keep) as f64);
            let mean = k / m * (diagonal + (k - 1.0) / (m - 1.0) * rest);
            for (gain, &kept) in self.gain.iter_mut().zip(mask) {
                gain[lane] += if kept { weight * mean } else { -weight * mean };
            }
        }
    }
}

impl Kernel for &mut Search {
    /// The removed set of every lane, as bits.
    type Output = [u64; LANES];

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) -> [u64; LANES] {
        let (group, last) = (self.group, self.group - self.keep - 1);
        let (mut best, mut found) = ([f64::INFINITY; LANES], [0u64; LANES]);
        let mut cost = vec![[0.0; LANES]; last + 1];
        // member[d]: the member chosen at depth d; below[d]: the next one to try there, plus one.
        let (mut member, mut below) = (vec![0; last + 1], vec![0; last + 1]);
        let (mut depth, mut bits) = (0, 0u64);
        below[0] = group;
        loop {
            if depth == last {
                let gains = &self.gain[depth * group..][..below[depth]];
                for (j, gain) in gains.iter().enumerate().rev() {
                    let set = bits | 1 << j;
                    for lane in 0..LANES {
                        let total = cost[depth][lane] + gain[lane];
                        let better = total < best[lane];
                        best[lane] = if better { total } else { best[lane] };
                        found[lane] = if better { set } else { found[lane] };
                    }
                }
            } else if below[depth] > last - depth {
                let j = below[depth] - 1;
                (member[depth], below[depth]) = (j, j);
                bits |= 1 << j;
                let (here, next) = self.gain.split_at_mut((depth + 1) * group);
                let here = &here[depth * group..];
                for lane in 0..LANES {
                    cost[depth + 1][lane] = cost[depth][lane] + here[j][lane];
                }
                let cross = self.cross[j * group..][..j].as_flattened();
                let lines = next.as_flattened_mut().iter_mut();
                for ((next, here), cross) in lines.zip(here.as_flattened()).zip(cross) {
                    *next = here + cross;
                }
                depth += 1;
                below[depth] = j;
                continue;
            }
            if depth == 0 {
                return found;
            }
            depth -= 1;
            bits &= !(1 << member[depth]);
        }
    }
}

#[cfg(test)]
mod tests;
