//! Annealed rounds of assignments, in one or several independent chains.

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::block::{Group, Move, Problem, reassign};

/// Groups that exchange columns in one assignment, at most.
const BLOCK: usize = 256;

/// Noise of the first annealed round over the spread of the gains, and of the last round over the first.
///
/// Measured on uniform scores, efficacy in %: heat 0.25 / 0.5 / 1 / 1.5 / 2 gives 36.9 / 37.6 / 38.1 / 37.8 / 37.8 for
/// 128 x 64 at 2:4 after 6000 rounds, 32.9 / 33.0 / 33.2 / 33.4 / 33.3 for 768 x 768 at 12:16 after 2000. Without noise the
/// first stays at 35.6. Cooling between 0.02 and 0.2 makes less of a difference than the seed.
const HEAT: f32 = 1.25;
const COOLING: f32 = 0.15;
/// The heat of two groups, times M: a round exchanges one pair out of M^2, and the fewer there are, the sooner it is stuck.
///
/// Of 2100 uniform problems of 8 columns (2:4, 1:4, 3:4; 1 to 20 rows), 200 rounds miss the optimum of 15 at heat 1.25, 3 at
/// 2.5, 1 at 5 and none at 10; after 1000 rounds 16 columns at 4:8 keep most at 5, 32 columns at 8:16 at 2.5.
const HEAT_OF_TWO: f32 = 40.0;

/// Independent searches where one round is too short to share between threads.
const CHAINS: usize = 4;

/// Element-wise steps of such a round.
const SHORT: usize = 1 << 20;

/// Element-wise steps of a batch: rounds between two looks at the clock.
const BATCH: usize = 1 << 23;

/// The chains between two batches of rounds.
pub(crate) struct Chains {
    problem: Problem,
    members: Vec<Chain>,
    rounds: u64,
    batch: u64,
}

impl Chains {
    /// Start from the better of the order `identity` and the columns dealt out by their sums.
    pub(crate) fn new(problem: Problem, identity: &[u32], seed: u64) -> Self {
        let given = problem.groups(identity);
        let dealt = problem.groups(&snake(&problem, identity.len()));
        let groups = if total(&dealt) > total(&given) {
            dealt
        } else {
            given
        };
        let work = groups.len() * groups.len().min(BLOCK) * problem.columns.stride();
        let count = if work < SHORT { CHAINS } else { 1 };
        let members = (0..count)
            .map(|index| Chain::new(groups.clone(), seed, index as u64))
            .collect();
        Self {
            problem,
            members,
            rounds: 0,
            batch: (BATCH / work).clamp(1, 1024) as u64,
        }
    }

    /// Rounds so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds
    }

    /// A single group has no neighbour to exchange columns with.
    pub(crate) fn are_settled(&self) -> bool {
        self.members[0].groups.len() < 2
    }

    /// One batch of rounds, at most `left`; `progress` of a round goes from 0 to 1.
    pub(crate) fn advance(&mut self, left: u64, progress: &(impl Fn(u64) -> f64 + Sync)) {
        let (problem, rounds) = (&self.problem, self.rounds);
        let count = self.batch.min(left);
        self.members.par_iter_mut().for_each(|chain| {
            for round in rounds..rounds + count {
                chain.round(problem, round, progress(round) as f32);
            }
        });
        self.rounds += count;
    }

    /// The best chain; the first of equals.
    pub(crate) fn best(&self) -> &Chain {
        let mut best = &self.members[0];
        for chain in &self.members[1..] {
            if chain.value > best.value {
                best = chain;
            }
        }
        best
    }
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

fn total(groups: &[Group]) -> f64 {
    groups.iter().map(|group| group.value).sum()
}

/// One search: where it stands, and the best it has seen.
pub(crate) struct Chain {
    groups: Vec<Group>,
    rng: ChaCha8Rng,
    spread: f32,
    /// The best order.
    pub(crate) order: Vec<u32>,
    /// What it keeps of the scaled scores, to f32.
    pub(crate) value: f64,
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

    /// Every group gives up a column, and all are dealt back; the first M rounds measure the spread of the gains.
    fn round(&mut self, problem: &Problem, round: u64, progress: f32) {
        let mut blocks = self.deal_blocks();
        let steps: Vec<Move> = blocks
            .iter()
            .map(|(_, block)| self.choose(problem, block.len(), round, progress))
            .collect();
        let spreads: Vec<f32> = blocks
            .par_iter_mut()
            .zip(&steps)
            .map(|((_, block), step)| reassign(problem, block, step))
            .collect();
        if round < problem.pattern.group() as u64 {
            let spread = spreads.iter().sum::<f32>() / spreads.len() as f32;
            self.spread += spread / problem.pattern.group() as f32;
        }
        for (places, block) in blocks {
            for (place, group) in places.into_iter().zip(block) {
                self.groups[place] = group;
            }
        }
        self.remember();
    }

    /// The first M rounds sweep the slots without noise, the others take random slots with noise.
    fn choose(&mut self, problem: &Problem, groups: usize, round: u64, progress: f32) -> Move {
        let group = problem.pattern.group();
        let sweep = round < group as u64;
        let heat = if groups == 2 {
            HEAT_OF_TWO / group as f32
        } else {
            HEAT
        };
        let slots = (0..groups).map(|_| {
            if sweep {
                round as usize
            } else {
                self.rng.random_range(0..group)
            }
        });
        Move {
            slots: slots.collect(),
            amplitude: if sweep {
                0.0
            } else {
                heat * COOLING.powf(progress) * self.spread
            },
            key: self.rng.random(),
        }
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
