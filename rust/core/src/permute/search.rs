//! The search for an order: annealed rounds of linear assignments.

use std::time::Instant;

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::block::{Group, Move, Problem, reassign};
use super::gain::Columns;
use super::measure::{kept, row_bound};
use crate::nm::{Pattern, select::Score};
use crate::threads::Threads;
use crate::{Error, Result};

/// Groups that exchange columns in one assignment, at most.
const BLOCK: usize = 256;

/// Noise of the first annealed round over the spread of the gains, and of the last round over the first.
///
/// Measured on uniform scores, efficacy in %: heat 0.25 / 0.5 / 1 / 1.5 / 2 gives 36.9 / 37.6 / 38.1 / 37.8 / 37.8 for
/// 128 x 64 at 2:4 after 6000 rounds, 32.9 / 33.0 / 33.2 / 33.4 / 33.3 for 768 x 768 at 12:16 after 2000. Without noise the
/// first stays at 35.6. Cooling between 0.02 and 0.2 makes less of a difference than the seed.
const HEAT: f32 = 1.25;
const COOLING: f32 = 0.15;

/// Independent searches where one round is too short to share between threads.
const CHAINS: usize = 4;

/// Element-wise steps of such a round.
const SHORT: usize = 1 << 20;

/// Element-wise steps of a batch: rounds between two looks at the clock.
const BATCH: usize = 1 << 23;

/// When to stop, and what the random choices start from.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Seconds.
    pub time_limit: f64,
    /// Rounds; with them the result does not depend on the time the rounds take.
    pub max_rounds: Option<u64>,
    /// Of the ChaCha8 generator.
    pub seed: u64,
    /// Threads; None for all. The result does not depend on them.
    pub threads: Option<usize>,
}

/// An order and what it keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// order[new] = old.
    pub order: Vec<u32>,
    /// Sum kept under the order.
    pub kept: f64,
    /// Sum kept under the given order.
    pub kept_identity: f64,
    /// Sum that no order can exceed: the best of every row without groups.
    pub row_bound: f64,
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
/// [`Error::NotAMultiple`] if M does not divide the columns; [`Error::Value`] for a negative or not finite score, or a
/// time limit that is not a number >= 0; [`Error::Shape`] if there are no columns or no whole rows.
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
    let threads = Threads::new(settings.threads);
    let identity: Vec<u32> = (0..columns as u32).collect();
    let (mut search, kept_identity, row_bound) = threads.run(|| {
        let problem = Problem::new(Columns::new(score, columns, scale), pattern);
        (
            Search::new(problem, &identity, settings.seed),
            kept(score, columns, &identity, pattern),
            row_bound(score, columns, pattern),
        )
    });
    let mut trace = vec![(clock.elapsed().as_secs_f64(), kept_identity)];
    let mut interrupted = false;
    while let Some(count) = search.next_batch(settings, clock.elapsed().as_secs_f64()) {
        interrupted = stop();
        if interrupted {
            break;
        }
        let elapsed = clock.elapsed().as_secs_f64() / settings.time_limit;
        let progress = |round: u64| match settings.max_rounds {
            Some(most) => round as f64 / most as f64,
            None => elapsed,
        };
        threads.run(|| search.advance(count, &progress));
        let kept = search.best().value / scale;
        if trace.last().is_none_or(|last| kept > last.1) {
            trace.push((clock.elapsed().as_secs_f64(), kept));
        }
    }
    let mut order = search.best().order.clone();
    let mut kept = threads.run(|| kept(score, columns, &order, pattern));
    if kept <= kept_identity {
        (order, kept) = (identity, kept_identity);
    }
    for entry in &mut trace {
        entry.1 = entry.1.min(kept);
    }
    trace.push((clock.elapsed().as_secs_f64(), kept));
    Ok(Found {
        order,
        kept,
        kept_identity,
        row_bound,
        trace,
        rounds: search.rounds,
        interrupted,
    })
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
    pattern.groups(columns, "score").map(|_| ())
}

/// The power of two that brings the largest score to (1/2, 1], so that f64 scores of any size survive in f32.
fn scale<T: Score>(score: &[T]) -> Result<f64> {
    let mut largest = 0.0f64;
    for &value in score {
        let value: f64 = value.into();
        if !(0.0..f64::INFINITY).contains(&value) {
            return Err(Error::Value {
                name: "score",
                got: value,
                wanted: "finite and >= 0",
            });
        }
        largest = largest.max(value);
    }
    Ok(if largest > 0.0 {
        (-largest.log2().ceil()).exp2()
    } else {
        1.0
    })
}

/// Columns by falling sums, dealt to the groups back and forth, so that every group gets large and small ones.
fn snake(problem: &Problem, columns: usize) -> Vec<u32> {
    let sums: Vec<f64> = (0..columns as u32)
        .map(|column| {
            problem
                .columns
                .column(column)
                .iter()
                .map(|&v| f64::from(v))
                .sum()
        })
        .collect();
    let mut ranked: Vec<u32> = (0..columns as u32).collect();
    ranked.sort_by(|&a, &b| sums[b as usize].total_cmp(&sums[a as usize]));
    let group = problem.pattern.group();
    let groups = columns / group;
    let mut order = vec![0; columns];
    for (rank, column) in ranked.into_iter().enumerate() {
        let (slot, place) = (rank / groups, rank % groups);
        let place = if slot.is_multiple_of(2) {
            place
        } else {
            groups - 1 - place
        };
        order[place * group + slot] = column;
    }
    order
}

/// The state between two batches.
struct Search {
    problem: Problem,
    chains: Vec<Chain>,
    rounds: u64,
    batch: u64,
}

impl Search {
    fn new(problem: Problem, identity: &[u32], seed: u64) -> Self {
        let given = problem.groups(identity);
        let dealt = problem.groups(&snake(&problem, identity.len()));
        let groups = if total(&dealt) > total(&given) {
            dealt
        } else {
            given
        };
        let work = groups.len() * groups.len().min(BLOCK) * problem.columns.stride();
        let chains = if work < SHORT { CHAINS } else { 1 };
        let chains = (0..chains)
            .map(|index| Chain::new(groups.clone(), seed, index as u64))
            .collect();
        Self {
            problem,
            chains,
            rounds: 0,
            batch: (BATCH / work).clamp(1, 1024) as u64,
        }
    }

    /// Rounds until the next look at the clock; None at the end.
    fn next_batch(&self, settings: Settings, seconds: f64) -> Option<u64> {
        let left = settings
            .max_rounds
            .map_or(u64::MAX, |most| most - self.rounds);
        let done = left == 0 || self.chains[0].groups.len() < 2 || seconds >= settings.time_limit;
        (!done).then(|| self.batch.min(left))
    }

    fn advance(&mut self, count: u64, progress: &(impl Fn(u64) -> f64 + Sync)) {
        let (problem, rounds) = (&self.problem, self.rounds);
        self.chains.par_iter_mut().for_each(|chain| {
            for round in rounds..rounds + count {
                chain.round(problem, round, progress(round) as f32);
            }
        });
        self.rounds += count;
    }

    /// The best chain; the first of equals.
    fn best(&self) -> &Chain {
        let mut best = &self.chains[0];
        for chain in &self.chains[1..] {
            if chain.value > best.value {
                best = chain;
            }
        }
        best
    }
}

fn total(groups: &[Group]) -> f64 {
    groups.iter().map(|group| group.value).sum()
}

/// One search: where it stands, and the best it has seen.
struct Chain {
    groups: Vec<Group>,
    rng: ChaCha8Rng,
    spread: f32,
    order: Vec<u32>,
    value: f64,
}

impl Chain {
    fn new(groups: Vec<Group>, seed: u64, index: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let mut chain = Self {
            groups,
            rng,
            spread: 0.0,
            order: Vec::new(),
            value: f64::NEG_INFINITY,
        };
        chain.remember();
        chain
    }

    /// The first M rounds sweep the slots without noise; the first of all measures the spread of the gains.
    fn round(&mut self, problem: &Problem, round: u64, progress: f32) {
        let group = problem.pattern.group();
        let amplitude = if round < group as u64 {
            0.0
        } else {
            HEAT * COOLING.powf(progress) * self.spread
        };
        let mut blocks = self.deal_blocks();
        let steps: Vec<Move> = blocks
            .iter()
            .map(|(_, block)| Move {
                slots: block
                    .iter()
                    .map(|_| {
                        if round < group as u64 {
                            round as usize
                        } else {
                            self.rng.random_range(0..group)
                        }
                    })
                    .collect(),
                amplitude,
                key: self.rng.random(),
            })
            .collect();
        let spreads: Vec<f32> = blocks
            .par_iter_mut()
            .zip(&steps)
            .map(|((_, block), step)| reassign(problem, block, step))
            .collect();
        if round == 0 {
            self.spread = spreads.iter().sum::<f32>() / spreads.len() as f32;
        }
        for (places, block) in blocks {
            for (place, group) in places.into_iter().zip(block) {
                self.groups[place] = group;
            }
        }
        self.remember();
    }

    /// The groups and their places, in random blocks of equal size where there are more than `BLOCK`.
    fn deal_blocks(&mut self) -> Vec<(Vec<usize>, Vec<Group>)> {
        let count = self.groups.len();
        let blocks = count.div_ceil(BLOCK);
        let mut places: Vec<usize> = (0..count).collect();
        if blocks > 1 {
            places.shuffle(&mut self.rng);
        }
        places
            .chunks(count.div_ceil(blocks))
            .map(|places| {
                let block = places
                    .iter()
                    .map(|&place| std::mem::take(&mut self.groups[place]));
                (places.to_vec(), block.collect())
            })
            .collect()
    }

    fn remember(&mut self) {
        let value = total(&self.groups);
        if value > self.value {
            self.value = value;
            self.order = self
                .groups
                .iter()
                .flat_map(|group| group.members.clone())
                .collect();
        }
    }
}
