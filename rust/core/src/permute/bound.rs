//! A ceiling for every order: the dual of the set-partition problem, priced by enumeration.
//!
//! Choosing an order is choosing C / M disjoint groups. With a price `pi_c` for each column, no choice keeps more than
//! `sum of pi_c + C / M * max over groups g of (f(g) - sum of pi_c over g)`, where `f(g)` is what g keeps; that holds for any
//! prices, and good ones come close to the linear program's value.

use rayon::prelude::*;

use super::measure::thresholds;
use crate::nm::{Pattern, select::Score};
use crate::threads::Threads;
use crate::vector::{Kernel, widest};
use crate::{Error, Result};

/// Most columns: all 10.7 million groups of 4 of 128 columns are 43 MB.
pub const MOST_COLUMNS: usize = 128;

/// The only group size.
const GROUP: usize = 4;

/// Steps on the prices. Measured on 128 x 64 uniform scores at 2:4, in % of what the bound by rows leaves: 48.4 before
/// the first step, 40.0 after 60, 39.95 after 100 or 300.
const STEPS: usize = 60;

/// Temperature of the soft maximum over the spread of f(g) - pi(g): of the first step, and of the last.
const WARM: f64 = 0.2;
const COLD: f64 = 0.01;

/// Size of a step over the temperature; twice as much is less accurate at the end, half as much slower.
const STEP: f64 = 0.5;

/// Exponents below it add less than 1e-11 of the largest weight.
const NEGLIGIBLE: f64 = -25.0;

const LANES: usize = 8;

/// Refuse what cannot be enumerated.
///
/// # Errors
/// [`Error::Shape`] unless M = 4 and there are at most [`MOST_COLUMNS`] columns.
pub(crate) fn check(columns: usize, pattern: Pattern) -> Result<()> {
    let wanted = |wanted: &str| wanted.to_owned();
    if pattern.group() != GROUP {
        return Err(Error::Shape {
            name: "pattern: group size",
            got: pattern.group(),
            wanted: wanted("4, the only one with a pricing bound"),
        });
    }
    if columns > MOST_COLUMNS {
        return Err(Error::Shape {
            name: "score: number of columns",
            got: columns,
            wanted: wanted("128 or less, as the pricing bound visits every group of 4"),
        });
    }
    Ok(())
}

/// No order keeps more of the score than this. `scale` brings the largest score to 1; `stop` ends it early, with the bound
/// so far.
pub(crate) fn pricing_bound<T: Score>(
    (score, scale): (&[T], f64),
    columns: usize,
    pattern: Pattern,
    threads: &Threads,
    stop: &dyn Fn() -> bool,
) -> f64 {
    let (table, mut prices) = threads.run(|| {
        (
            Table::new((score, scale), columns, pattern.keep()),
            starting_prices((score, scale), columns, pattern),
        )
    });
    let spread = threads.run(|| table.spread(&prices));
    let mut best = f64::INFINITY;
    for step in 0..=STEPS {
        let most = threads.run(|| table.most(&prices));
        let groups = (columns / GROUP) as f64;
        best = best.min(prices.iter().sum::<f64>() + groups * most);
        if step == STEPS || spread <= 0.0 || stop() {
            break;
        }
        let progress = step as f64 / (STEPS - 1) as f64;
        let temperature = spread * WARM * (COLD / WARM).powf(progress);
        let shares = threads.run(|| table.shares(&prices, most, temperature));
        for (price, share) in prices.iter_mut().zip(shares) {
            *price -= STEP * temperature * (1.0 - groups * share);
        }
    }
    best / scale * (1.0 + 1e-12) // the sums themselves are rounded
}

/// The duals of the bound by rows: with the row's threshold l, `max(0, s - l) + N / M * l`.
fn starting_prices<T: Score>(
    (score, scale): (&[T], f64),
    columns: usize,
    pattern: Pattern,
) -> Vec<f64> {
    let density = pattern.keep() as f64 / pattern.group() as f64;
    let mut prices = vec![0.0; columns];
    for (row, threshold) in score
        .chunks_exact(columns)
        .zip(thresholds(score, columns, pattern))
    {
        for (price, &value) in prices.iter_mut().zip(row) {
            let above = (Into::<f64>::into(value) - threshold).max(0.0);
            *price += scale * (above + density * threshold);
        }
    }
    prices
}

/// f(g) of all groups a < b < c < d, rounded up to f32: one run over d for each (b, c), one part for each a.
struct Table {
    columns: usize,
    parts: Vec<Vec<f32>>,
}

impl Table {
    fn new<T: Score>((score, scale): (&[T], f64), columns: usize, keep: usize) -> Self {
        let rows = score.len() / columns;
        let stride = rows.next_multiple_of(LANES);
        let mut lines = vec![0.0; stride * columns];
        for (row, entries) in score.chunks_exact(columns).enumerate() {
            for (column, &value) in entries.iter().enumerate() {
                lines[column * stride + row] = scale * Into::<f64>::into(value);
            }
        }
        let lines: Vec<&[f64]> = lines.chunks_exact(stride).collect();
        let parts = (0..columns - 3)
            .into_par_iter()
            .map(|a| {
                widest(Part {
                    lines: &lines,
                    keep,
                    a,
                })
            })
            .collect();
        Self { columns, parts }
    }

    /// Call `visit(b, c, run)` for every run of part `a`.
    fn runs(&self, a: usize, mut visit: impl FnMut(usize, usize, &[f32])) {
        let mut rest = &self.parts[a][..];
        for b in a + 1..self.columns - 2 {
            for c in b + 1..self.columns - 1 {
                let (run, behind) = rest.split_at(self.columns - 1 - c);
                visit(b, c, run);
                rest = behind;
            }
        }
    }

    /// Largest f(g) - pi(g).
    fn most(&self, prices: &[f64]) -> f64 {
        let parts = (0..self.parts.len()).into_par_iter().map(|a| {
            let mut most = f64::NEG_INFINITY;
            self.runs(a, |b, c, run| {
                let common = prices[a] + prices[b] + prices[c];
                for (&value, price) in run.iter().zip(&prices[c + 1..]) {
                    most = most.max(f64::from(value) - price - common);
                }
            });
            most
        });
        parts.reduce(|| f64::NEG_INFINITY, f64::max)
    }

    /// Standard deviation of f(g) - pi(g) over all groups.
    fn spread(&self, prices: &[f64]) -> f64 {
        let parts: Vec<[f64; 3]> = (0..self.parts.len())
            .into_par_iter()
            .map(|a| {
                let mut sums = [0.0; 3];
                self.runs(a, |b, c, run| {
                    let common = prices[a] + prices[b] + prices[c];
                    for (&value, price) in run.iter().zip(&prices[c + 1..]) {
                        let value = f64::from(value) - price - common;
                        sums = [sums[0] + 1.0, sums[1] + value, sums[2] + value * value];
                    }
                });
                sums
            })
            .collect();
        let [count, sum, squares] = parts.iter().fold([0.0; 3], |total, part| {
            std::array::from_fn(|k| total[k] + part[k])
        });
        (squares / count - (sum / count).powi(2)).max(0.0).sqrt()
    }

    /// How much of the soft maximum each column takes part in: with weights exp((f(g) - pi(g) - most) / temperature) of
    /// sum 1, the weights of the groups it is in.
    fn shares(&self, prices: &[f64], most: f64, temperature: f64) -> Vec<f64> {
        let parts: Vec<Vec<f64>> = (0..self.parts.len())
            .into_par_iter()
            .map(|a| {
                let mut shares = vec![0.0; self.columns];
                self.runs(a, |b, c, run| {
                    let common = prices[a] + prices[b] + prices[c] + most;
                    let mut total = 0.0;
                    for (d, (&value, price)) in (c + 1..).zip(run.iter().zip(&prices[c + 1..])) {
                        let exponent = (f64::from(value) - price - common) / temperature;
                        if exponent > NEGLIGIBLE {
                            let weight = exponent.exp();
                            shares[d] += weight;
                            total += weight;
                        }
                    }
                    for column in [a, b, c] {
                        shares[column] += total;
                    }
                });
                shares
            })
            .collect();
        let mut shares = vec![0.0; self.columns];
        for part in parts {
            for (share, part) in shares.iter_mut().zip(part) {
                *share += part;
            }
        }
        let total = shares.iter().sum::<f64>() / GROUP as f64;
        shares.iter().map(|share| share / total).collect()
    }
}

/// All f(g) with the lowest column a.
struct Part<'a> {
    lines: &'a [&'a [f64]],
    keep: usize,
    a: usize,
}

impl Kernel for Part<'_> {
    type Output = Vec<f32>;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let (lines, columns) = (self.lines, self.lines.len());
        let mut theta = vec![0.0; lines[0].len()];
        let mut values = Vec::new();
        for b in self.a + 1..columns - 2 {
            for c in b + 1..columns - 1 {
                let above = join([lines[self.a], lines[b], lines[c]], self.keep, &mut theta);
                for d in &lines[c + 1..] {
                    let value = above + sum_of_max(&theta, d);
                    let rounded = value as f32;
                    let low = f64::from(rounded) < value;
                    values.push(if low { rounded.next_up() } else { rounded });
                }
            }
        }
        values
    }
}

/// For three columns and each row: the N-th largest into `theta`, and the sum of those above it over all rows.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn join([a, b, c]: [&[f64]; 3], keep: usize, theta: &mut [f64]) -> f64 {
    let mut sum = 0.0;
    for (((a, b), c), theta) in a.iter().zip(b).zip(c).zip(theta) {
        let (high, low) = (a.max(*b), a.min(*b));
        let ranked = [high.max(*c), low.max(high.min(*c)), low.min(*c)];
        *theta = ranked[keep - 1];
        sum += ranked[..keep - 1].iter().sum::<f64>();
    }
    sum
}

#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn sum_of_max(x: &[f64], y: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    for (x, y) in x.chunks_exact(LANES).zip(y.chunks_exact(LANES)) {
        for lane in 0..LANES {
            sums[lane] += if x[lane] > y[lane] { x[lane] } else { y[lane] };
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::permute::measure::kept;

    /// Most that any order keeps: over sets of columns that are already grouped, each time adding a group with the first
    /// column that is left.
    fn best(score: &[f64], columns: usize, pattern: Pattern) -> f64 {
        let full = (1usize << columns) - 1;
        let mut values = std::collections::HashMap::new();
        let mut most = vec![f64::NEG_INFINITY; full + 1];
        most[0] = 0.0;
        for used in (0..full).filter(|used| used.count_ones().is_multiple_of(4)) {
            let left: Vec<u32> = (0..columns as u32).filter(|c| used >> c & 1 == 0).collect();
            if most[used] == f64::NEG_INFINITY {
                continue;
            }
            for i in 1..left.len() {
                for j in i + 1..left.len() {
                    for k in j + 1..left.len() {
                        let group = [left[0], left[i], left[j], left[k]];
                        let set = group.iter().fold(0, |set, c| set | 1 << c);
                        let value = values
                            .entry(set)
                            .or_insert_with(|| kept(score, columns, &group, pattern));
                        most[used | set] = most[used | set].max(most[used] + *value);
                    }
                }
            }
        }
        most[full]
    }

    fn uniform(count: usize) -> Vec<f64> {
        let mut state = 7u64;
        (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as f64
            })
            .collect()
    }

    #[test]
    fn no_partition_exceeds_the_bound_and_the_bound_is_below_that_by_rows() {
        let threads = Threads::new(Some(2)).unwrap();
        for (keep, sizes) in [
            (1, &[4, 8, 12][..]),
            (2, &[4, 8, 12, 16, 20]),
            (3, &[4, 8, 16]),
        ] {
            for &columns in sizes {
                let (score, pattern) = (uniform(9 * columns), Pattern::new(keep, 4).unwrap());
                let bound = pricing_bound((&score, 1e-9), columns, pattern, &threads, &|| false);
                let most = best(&score, columns, pattern);
                let rows = crate::permute::measure::row_bound(&score, columns, pattern);
                assert!(
                    most <= bound && bound <= rows * (1.0 + f64::from(f32::EPSILON)),
                    "{keep}:4, {columns}: {most} {bound} {rows}"
                );
            }
        }
    }

    #[test]
    fn other_group_sizes_and_many_columns_are_refused() {
        let message = |columns, pattern| check(columns, pattern).unwrap_err().to_string();
        assert!(
            message(64, Pattern::new(4, 8).unwrap()).starts_with("pattern: group size: 8 is not 4")
        );
        assert!(
            message(132, Pattern::new(2, 4).unwrap())
                .starts_with("score: number of columns: 132 is not 128")
        );
    }
}
