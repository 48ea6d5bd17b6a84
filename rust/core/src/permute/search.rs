//! The search for an order: annealed rounds of linear assignments.

use std::time::Instant;

use super::block::Problem;
use super::bound::{self, pricing_bound};
use super::chain::Chains;
use super::gain::Columns;
use super::measure::{kept, row_bound, scale};
use crate::nm::{Pattern, select::Score};
use crate::threads::Threads;
use crate::{Error, Result};

/// A ceiling for what any order can keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceiling {
    /// The best of every row without groups; always there.
    Rows,
    /// The dual of the set-partition problem: M = 4, at most 128 columns.
    Pricing,
}

/// When to stop, and what the random choices start from.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Seconds.
    pub time_limit: f64,
    /// Rounds; with them the result does not depend on the time the rounds take.
    pub max_rounds: Option<u64>,
    /// Of the `ChaCha8` generator.
    pub seed: u64,
    /// Threads; None for all. The result does not depend on them.
    pub threads: Option<usize>,
    /// Of `upper_bound`.
    pub bound: Ceiling,
}

/// An order and what it keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// `order[new] = old`.
    pub order: Vec<u32>,
    /// Sum kept under the order.
    pub kept: f64,
    /// Sum kept under the given order.
    pub kept_identity: f64,
    /// Sum that no order can exceed: the best of every row without groups.
    pub row_bound: f64,
    /// The lowest ceiling known.
    pub upper_bound: f64,
    /// (seconds, sum kept) at the start and whenever a better order was found.
    pub trace: Vec<(f64, f64)>,
    /// Rounds of each search.
    pub rounds: u64,
    /// Whether `stop` ended it.
    pub interrupted: bool,
}

/// An order of the columns under which the N:M mask of `score` keeps more.
///
/// `score` is (rows x columns), row-major, finite and >= 0. The search starts from the better of the given order and the
/// columns dealt out by their sums, back and forth ("snake"). A round takes one column out of every group and deals
/// them back by an exact assignment of what each column is worth in each group, plus noise that falls with progress; with
/// more than 256 groups, in random blocks. Progress is rounds over `max_rounds` where these are given, else time over
/// `time_limit`. The best order seen is returned; it never keeps less than the given one.
///
/// `stop` is asked between batches of rounds, on the calling thread.
///
/// # Errors
/// [`Error::NotAMultiple`] if M does not divide the columns; [`Error::Value`] for a negative or not finite score or sum of scores, or a
/// time limit that is not a number >= 0; [`Error::Shape`] if there are no columns or no whole rows, for a
/// number of threads that cannot be, or if the bound does not go with the shape.
///
/// # References
/// One column out of each group and an assignment back: Y. Zhang et al., *Plug-and-Play: An Efficient Post-training Pruning
/// Method for Large Language Models* (ICLR 2024), who do one sweep without noise.
pub fn optimize<T: Score>(
    score: &[T],
    columns: usize,
    pattern: Pattern,
    settings: Settings,
    stop: &dyn Fn() -> bool,
) -> Result<Found> {
    let clock = Instant::now();
    check(score, columns, pattern, settings)?;
    let scale = scale(score)?;
    let threads = Threads::new(settings.threads)?;
    let identity: Vec<u32> = (0..columns as u32).collect();
    let (mut chains, kept_identity, row_bound) = threads.run(|| {
        let problem = Problem::new(Columns::new(score, columns, scale), pattern);
        (
            Chains::new(problem, &identity, settings.seed),
            kept(score, columns, &identity, pattern),
            row_bound(score, columns, pattern),
        )
    });
    if !row_bound.is_finite() {
        return Err(Error::Value {
            name: "score",
            got: row_bound,
            wanted: "a sum inside float64",
        });
    }
    let mut trace = vec![(clock.elapsed().as_secs_f64(), kept_identity)];
    let interrupted = search(&mut chains, settings, (clock, &threads), stop, |value| {
        if trace.last().is_none_or(|last| value / scale > last.1) {
            trace.push((clock.elapsed().as_secs_f64(), value / scale));
        }
    });
    let mut order = chains.best().order.clone();
    let mut kept = threads.run(|| kept(score, columns, &order, pattern));
    if kept <= kept_identity {
        (order, kept) = (identity, kept_identity);
    }
    for entry in &mut trace {
        entry.1 = entry.1.min(kept);
    }
    trace.push((clock.elapsed().as_secs_f64(), kept));
    let upper_bound = if settings.bound == Ceiling::Pricing && !interrupted {
        pricing_bound((score, scale), columns, pattern, &threads, stop).min(row_bound)
    } else {
        row_bound
    };
    Ok(Found {
        order,
        kept,
        kept_identity,
        row_bound,
        upper_bound,
        trace,
        rounds: chains.rounds(),
        interrupted,
    })
}

/// Batches of rounds until time, rounds or patience are over; `note` hears the best value after each. True if `stop` said so.
fn search(
    chains: &mut Chains,
    settings: Settings,
    (clock, threads): (Instant, &Threads),
    stop: &dyn Fn() -> bool,
    mut note: impl FnMut(f64),
) -> bool {
    loop {
        let seconds = clock.elapsed().as_secs_f64();
        let left = settings
            .max_rounds
            .map_or(u64::MAX, |most| most - chains.rounds());
        if left == 0 || seconds >= settings.time_limit || chains.are_settled() {
            return false;
        }
        if stop() {
            return true;
        }
        let progress = |round: u64| match settings.max_rounds {
            Some(most) => round as f64 / most as f64,
            None => seconds / settings.time_limit,
        };
        threads.run(|| chains.advance(left, &progress));
        note(chains.best().value);
    }
}

fn check<T: Score>(
    score: &[T],
    columns: usize,
    pattern: Pattern,
    settings: Settings,
) -> Result<()> {
    if columns == 0 || score.is_empty() || !score.len().is_multiple_of(columns) {
        return Err(Error::Shape {
            name: "score",
            got: score.len(),
            wanted: format!("one or more rows of {columns} columns"),
        });
    }
    if settings.time_limit.is_nan() || settings.time_limit < 0.0 {
        return Err(Error::Value {
            name: "time_limit",
            got: settings.time_limit,
            wanted: "a number of seconds >= 0",
        });
    }
    pattern.groups(columns, "score")?;
    match settings.bound {
        Ceiling::Rows => Ok(()),
        Ceiling::Pricing => bound::check(columns, pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(count: usize) -> Vec<f32> {
        let mut state = 7u64;
        (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as f32 / (1u64 << 24) as f32
            })
            .collect()
    }

    fn settings(max_rounds: u64, threads: usize) -> Settings {
        Settings {
            time_limit: 1e6,
            max_rounds: Some(max_rounds),
            seed: 1,
            threads: Some(threads),
            bound: Ceiling::Rows,
        }
    }

    #[test]
    fn an_order_is_a_permutation_that_keeps_what_is_said_for_any_threads() {
        // 48 columns: several chains; 1080: blocks of groups.
        for (rows, columns, pattern) in [(20, 48, (2, 4)), (9, 1080, (2, 4)), (33, 60, (4, 6))] {
            let score = uniform(rows * columns);
            let pattern = Pattern::new(pattern.0, pattern.1).unwrap();
            let run = |threads| {
                optimize(&score, columns, pattern, settings(9, threads), &|| false).unwrap()
            };
            let found = run(1);
            let mut sorted = found.order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..columns as u32).collect::<Vec<_>>());
            assert!(
                (found.kept / kept(&score, columns, &found.order, pattern) - 1.0).abs() < 1e-12
            );
            assert!(found.kept_identity < found.kept && found.kept < found.row_bound);
            assert_eq!(found.order, run(3).order);
        }
    }

    #[test]
    fn subnormal_scores_are_searched_as_others_are() {
        let pattern = Pattern::new(2, 4).unwrap();
        let order = |unit: f64| {
            let score: Vec<f64> = (0..12 * 16)
                .map(|i| f64::from(i * i * 31 % 97) * unit)
                .collect();
            optimize(&score, 16, pattern, settings(20, 1), &|| false)
                .unwrap()
                .order
        };
        assert_eq!(order(f64::MIN_POSITIVE * f64::EPSILON), order(1.0));
    }

    #[test]
    fn scores_whose_sum_is_infinite_are_refused() {
        let pattern = Pattern::new(1, 2).unwrap();
        let found = optimize(&[f64::MAX; 8], 4, pattern, settings(1, 1), &|| false);
        assert!(
            found
                .unwrap_err()
                .to_string()
                .starts_with("score: inf is not")
        );
    }

    #[test]
    fn a_caller_who_says_stop_gets_the_best_order_so_far() {
        let pattern = Pattern::new(2, 4).unwrap();
        let asked = std::cell::Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > 2
        };
        let found = optimize(&uniform(64 * 64), 64, pattern, settings(u64::MAX, 2), &stop);
        let found = found.unwrap();
        assert!(found.interrupted && found.rounds > 0 && found.kept > found.kept_identity);
    }
}
