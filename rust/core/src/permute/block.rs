//! Groups of columns, and the move of the search: take one column out of each, deal them back in the best way.

use rayon::prelude::*;

use super::assign::best_assignment;
use super::gain::{Columns, GroupStatistics, Noise, Threshold, sums_of_max};
use crate::nm::{Pattern, network::Network};
use crate::vector::widest;

/// Element-wise steps that are worth a task of their own.
const TASK: usize = 1 << 17;

/// Columns of one task, at least: every task reads all thresholds once.
const TASK_COLUMNS: usize = 16;

/// The scores and the pattern; fixed during a search.
pub(crate) struct Problem {
    /// The scores by columns.
    pub(crate) columns: Columns,
    /// N:M.
    pub(crate) pattern: Pattern,
    network: Network,
}

impl Problem {
    /// Prepare a search.
    pub(crate) fn new(columns: Columns, pattern: Pattern) -> Self {
        let network = Network::new(pattern.group(), &[pattern.keep() - 1, pattern.keep()]);
        Self {
            columns,
            pattern,
            network,
        }
    }

    /// The groups of an order, M columns each.
    pub(crate) fn groups(&self, order: &[u32]) -> Vec<Group> {
        let stride = self.columns.stride();
        order
            .par_chunks(self.pattern.group())
            .map(|members| {
                let mut group = Group {
                    members: members.to_vec(),
                    last: vec![0.0; stride],
                    next: vec![0.0; stride],
                    theta: vec![0.0; stride],
                    value: 0.0,
                };
                self.refresh(&mut group);
                group
            })
            .collect()
    }

    fn refresh(&self, group: &mut Group) {
        let mut columns: [&[f32]; crate::nm::pattern::MAX_GROUP] = Default::default();
        for (column, &member) in columns.iter_mut().zip(&group.members) {
            *column = self.columns.column(member);
        }
        group.value = widest(GroupStatistics {
            columns: &columns[..group.members.len()],
            keep: self.pattern.keep(),
            network: &self.network,
            last: &mut group.last,
            next: &mut group.next,
        });
    }
}

/// M columns with the order statistics of every row.
#[derive(Default, Clone)]
pub(crate) struct Group {
    /// The columns.
    pub(crate) members: Vec<u32>,
    /// N-th largest.
    last: Vec<f32>,
    /// (N+1)-th largest.
    next: Vec<f32>,
    /// N-th largest without the column that was taken out.
    theta: Vec<f32>,
    /// Sum of the N largest over all rows: what the group keeps.
    pub(crate) value: f64,
}

/// Which column each group gives up, and how much noise there is on what columns are worth.
pub(crate) struct Move {
    /// A slot of each group.
    pub(crate) slots: Vec<usize>,
    /// Noise is uniform in [0, amplitude).
    pub(crate) amplitude: f32,
    /// Key of the noise.
    pub(crate) key: u32,
}

/// Take one column out of each group and deal them back by the assignment with the largest gain plus noise.
///
/// Without noise the sum of the values cannot fall, because everything staying in place is an assignment too. Returns the
/// spread of the gains (see [`spread`]) then, and 0 with noise.
pub(crate) fn reassign(problem: &Problem, block: &mut [Group], step: &Move) -> f32 {
    let (n, stride) = (block.len(), problem.columns.stride());
    let taken: Vec<u32> = block
        .iter()
        .zip(&step.slots)
        .map(|(group, &slot)| group.members[slot])
        .collect();
    let many = (TASK / stride).max(1);
    block
        .par_iter_mut()
        .zip(&taken)
        .with_min_len(many)
        .for_each(|(group, &column)| {
            widest(Threshold {
                own: problem.columns.column(column),
                last: &group.last,
                next: &group.next,
                theta: &mut group.theta,
            });
        });
    let mut gain = gains(problem, block, &taken);
    let mut measured = 0.0;
    if step.amplitude > 0.0 {
        widest(Noise {
            entries: &mut gain,
            amplitude: step.amplitude,
            key: step.key,
        });
    } else {
        measured = spread(&gain, n);
    }
    let mut moved = vec![false; n];
    for (from, to) in best_assignment(&gain, n).into_iter().enumerate() {
        moved[to] = from != to;
        block[to].members[step.slots[to]] = taken[from];
    }
    block
        .par_iter_mut()
        .zip(moved)
        .with_min_len((many / problem.pattern.group()).max(1))
        .for_each(|(group, moved)| {
            if moved {
                problem.refresh(group);
            }
        });
    measured
}

/// gain[i * n + j]: column i in the slot of group j, less the column that was there.
fn gains(problem: &Problem, block: &[Group], taken: &[u32]) -> Vec<f32> {
    let (n, stride) = (block.len(), problem.columns.stride());
    let columns: Vec<&[f32]> = taken.iter().map(|&c| problem.columns.column(c)).collect();
    let theta: Vec<&[f32]> = block.iter().map(|group| &group.theta[..]).collect();
    let mut gain = vec![0.0f32; n * n];
    let lines = (TASK * 4 / (n * stride))
        .next_multiple_of(4)
        .max(TASK_COLUMNS);
    gain.par_chunks_mut(lines * n)
        .zip(columns.par_chunks(lines))
        .for_each(|(gain, columns)| {
            sums_of_max(columns, &theta, gain);
        });
    let own: Vec<f32> = (0..n).map(|slot| gain[slot * n + slot]).collect();
    for line in gain.chunks_exact_mut(n) {
        for (gain, own) in line.iter_mut().zip(&own) {
            *gain -= own;
        }
    }
    gain
}

/// Standard deviation of an (n x n) matrix less its row and column means: what an assignment can choose between.
fn spread(gain: &[f32], n: usize) -> f32 {
    let mut by_column = vec![0.0f32; n];
    let (mut total, mut squares, mut by_row) = (0.0, 0.0, 0.0);
    for line in gain.chunks_exact(n) {
        let sum: f32 = line.iter().sum();
        by_row += sum * sum;
        total += sum;
        for (column, &value) in by_column.iter_mut().zip(line) {
            *column += value;
            squares += value * value;
        }
    }
    let size = n as f32;
    let columns: f32 = by_column.iter().map(|sum| sum * sum).sum();
    let residual = squares - (by_row + columns) / size + total * total / (size * size);
    residual.max(0.0).sqrt() / (size - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sum of the `keep` largest of each row over the given columns of a (rows x columns) matrix.
    fn slow(score: &[f64], columns: usize, members: &[u32], keep: usize) -> f64 {
        let rows = score.chunks_exact(columns);
        rows.map(|row| {
            let mut entries: Vec<f64> = members.iter().map(|&c| row[c as usize]).collect();
            entries.sort_by(|a, b| b.total_cmp(a));
            entries[..keep].iter().sum::<f64>()
        })
        .sum()
    }

    #[test]
    fn the_gain_of_a_column_in_a_slot_is_what_the_group_keeps_more() {
        let (rows, columns) = (37, 24);
        let score: Vec<f64> = (0..rows * columns)
            .map(|i| f64::from((i * i * 31 + 7 * i) as u32 % 101))
            .collect();
        for (keep, group) in [(1, 4), (2, 4), (3, 4), (3, 8), (7, 12)] {
            let pattern = Pattern::new(keep, group).unwrap();
            let problem = Problem::new(Columns::new(&score, columns, 1.0), pattern);
            let order: Vec<u32> = (0..columns as u32).collect();
            let mut block = problem.groups(&order);
            let taken: Vec<u32> = block.iter().map(|g| g.members[1]).collect();
            for (group, &column) in block.iter_mut().zip(&taken) {
                widest(Threshold {
                    own: problem.columns.column(column),
                    last: &group.last,
                    next: &group.next,
                    theta: &mut group.theta,
                });
            }
            let gain = gains(&problem, &block, &taken);
            for (i, &column) in taken.iter().enumerate() {
                for (j, group) in block.iter().enumerate() {
                    let before = slow(&score, columns, &group.members, keep);
                    assert!((group.value - before).abs() < 1e-3);
                    let mut members = group.members.clone();
                    members[1] = column;
                    let more = slow(&score, columns, &members, keep) - before;
                    assert!((f64::from(gain[i * block.len() + j]) - more).abs() < 1e-2);
                }
            }
        }
    }
}
