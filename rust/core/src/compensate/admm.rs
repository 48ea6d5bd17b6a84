//! Mask and weights together, by the alternating direction method of multipliers.

use super::Layer;
use super::cg::{check_definite, refit};
use super::metric::indefinite;
use super::swap::swap;
use super::workers::{ROWS, Workers};
use crate::Result;
use crate::linalg::dense::{invert_definite, matmul};
use crate::nm::{Fibers, Pattern, select::nm_mask};

/// Penalty of the first step; the inputs have unit mean square in these coordinates.
const PENALTY: f64 = 0.05;
/// Growth of the penalty per step: slow enough to reconsider the mask, fast enough to settle it in about 50 steps.
const GROWTH: f64 = 1.12;
/// Steps that share a penalty, and so one inverse. Against a penalty of its own for every step the error of nine layers
/// of a ViT-S/14 and of EfficientNet-Lite0 at 2:4 grows by 0.2 % (at ten steps by 3 %), and no eigenvectors are needed.
const STEPS_PER_PENALTY: usize = 5;
/// The mask has settled once steps of one penalty change less than this share of it: after 25 to 30 steps on a ViT-S/14
/// at 2:4, 1:4 and 8:16, where the 20 to 25 steps that would follow lower the error by less than 0.1 %.
const SETTLED: f64 = 1e-4;
/// Inverses computed side by side; their memory is so many times columns^2.
const WAVE: usize = 2;
/// Conjugate gradient steps on the final support: 30 would lower the error of the same layers by 0.1 % at most.
const REFIT_STEPS: usize = 20;

/// Prune to N:M and compensate: min over W' in N:M of tr (W' - W)(H + lambda I)(W' - W)'.
///
/// ADMM splits the problem into an unconstrained Z and a D inside the pattern with scaled dual U. In unit-diagonal
/// coordinates each of `steps` steps is
///
/// Z = (V A + rho (D - U)) (A + rho I)^-1, Y = Z + U, D = Y on the N largest |Y| of every M, U = Y - D,
///
/// with rho from 0.05, growing by 1.12 a step, in stairs of five steps; five steps that hardly change the mask are the last.
/// Exchanges in the groups of the last D, each of which lowers the error, settle its support, whose weights are refitted by
/// conjugate gradients. Returns W' with exact +0.0 where pruned.
///
/// # Errors
/// [`NotAMultiple`](crate::Error::NotAMultiple) and those of [`lstsq`](super::lstsq).
///
/// # References
/// Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed optimization and statistical learning via the alternating
/// direction method of multipliers", 2011; Meng et al., "ALPS: Improved optimization for highly sparse one-shot
/// pruning for large language models", 2024, which prunes with the same splitting.
pub fn admm(layer: &Layer, pattern: Pattern, steps: usize, workers: &Workers) -> Result<Vec<f32>> {
    let columns = layer.columns;
    pattern.groups(columns, "weight")?;
    let (metric, goal) = layer.enter()?;
    check_definite(&metric)?;
    let a = metric.unit_f32();
    let mut blocks = goal
        .values
        .chunks(ROWS * columns)
        .map(|goal| Block::new(goal, columns, pattern))
        .collect::<Result<Vec<_>>>()?;
    iterate(&mut blocks, &a, pattern, steps, workers)?;
    workers.each(&mut blocks, |block| block.exchange(&a, pattern));
    let kept: Vec<bool> = blocks.iter().flat_map(|b| &b.kept).copied().collect();
    let mut fitted: Vec<f32> = blocks.iter().flat_map(|b| &b.y).copied().collect();
    drop(blocks);
    refit(
        &metric,
        &goal.values,
        &kept,
        &mut fitted,
        REFIT_STEPS,
        workers,
    )?;
    metric.leave(&fitted, &kept, goal.peak())
}

/// Take at most `steps` steps of every block, until the mask has settled; blocks share each inverse of A + rho I.
fn iterate(
    blocks: &mut [Block],
    a: &[f32],
    pattern: Pattern,
    steps: usize,
    workers: &Workers,
) -> Result<()> {
    let columns = blocks[0].fibers.length;
    let entries: usize = blocks.iter().map(|block| block.y.len()).sum();
    let firsts: Vec<usize> = (0..steps).step_by(STEPS_PER_PENALTY).collect();
    for wave in firsts.chunks(WAVE) {
        workers.ask()?;
        let mut levels: Vec<(usize, Vec<f32>)> =
            wave.iter().map(|&first| (first, Vec::new())).collect();
        workers.try_each(&mut levels, |(first, s)| {
            *s = shrinkage(a, columns, penalty(*first))?;
            Ok(())
        })?;
        for (first, s) in &levels {
            let mut most = 0;
            for _ in *first..steps.min(first + STEPS_PER_PENALTY) {
                workers.ask()?;
                workers.try_each(blocks, |block| block.step(s, pattern))?;
                most = most.max(blocks.iter().map(|block| block.changed).sum());
            }
            if (most as f64) < SETTLED * entries as f64 {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The penalty of the steps that begin at `first`: that of the middle one.
fn penalty(first: usize) -> f64 {
    (PENALTY * GROWTH.powf((first + STEPS_PER_PENALTY / 2) as f64)).min(1e6)
}

/// S = rho (A + rho I)^-1, the step towards the penalty's side: Z = V + (D - U - V) S.
///
/// All its eigenvalues rho / (l + rho) lie in (0, 1) and rho >= 0.05, so that single precision is enough.
fn shrinkage(a: &[f32], columns: usize, rho: f64) -> Result<Vec<f32>> {
    let mut s = a.to_vec();
    for diagonal in s.iter_mut().step_by(columns + 1) {
        *diagonal += rho as f32;
    }
    invert_definite(&mut s, columns)
        .map_err(|pivot| indefinite(format!("with rho = {rho} pivot {pivot} is not positive")))?;
    for value in &mut s {
        *value *= rho as f32;
    }
    Ok(s)
}

/// Rows of the iterate. Since D = Y where kept and U = Y elsewhere, Y and the mask are the whole state.
struct Block<'a> {
    goal: &'a [f32],
    fibers: Fibers,
    y: Vec<f32>,
    kept: Vec<bool>,
    /// Entries whose place in the mask the last step changed.
    changed: usize,
    work: Vec<f32>,
    spare: Vec<f32>,
}

impl<'a> Block<'a> {
    /// D = the goal's own projection, U = 0.
    fn new(goal: &'a [f32], columns: usize, pattern: Pattern) -> Result<Self> {
        let fibers = Fibers {
            outer: goal.len() / columns,
            length: columns,
            inner: 1,
        };
        let magnitudes: Vec<f32> = goal.iter().map(|v| v.abs()).collect();
        let kept = nm_mask(&magnitudes, fibers, pattern)?;
        Ok(Self {
            goal,
            fibers,
            y: keep_only(goal, &kept).collect(),
            kept,
            changed: 0,
            work: magnitudes,
            spare: vec![0.0; goal.len()],
        })
    }

    /// One step with S = `shrinkage`.
    fn step(&mut self, shrinkage: &[f32], pattern: Pattern) -> Result<()> {
        let state = self.y.iter().zip(&self.kept).zip(self.goal);
        for (work, ((&y, &kept), goal)) in self.work.iter_mut().zip(state) {
            *work = if kept { y - goal } else { -y - goal }; // D - U - V
        }
        let n = self.fibers.length;
        let shape = (self.fibers.outer, n, n);
        matmul(&mut self.spare, &self.work, shrinkage, shape, false);
        let moved = self.spare.iter_mut().zip(&self.kept).zip(self.goal);
        for (y, ((work, &kept), goal)) in self.y.iter_mut().zip(moved) {
            let z = goal + *work;
            *y = if kept { z } else { z + *y }; // Y = Z + U
            *work = y.abs();
        }
        let before = std::mem::replace(&mut self.kept, nm_mask(&self.spare, self.fibers, pattern)?);
        self.changed = before
            .iter()
            .zip(&self.kept)
            .filter(|(b, k)| b != k)
            .count();
        Ok(())
    }

    /// Leave D, the part of Y inside the pattern, in Y, after exchanges in its groups.
    fn exchange(&mut self, a: &[f32], pattern: Pattern) {
        let (rows, n) = (self.fibers.outer, self.fibers.length);
        self.y = keep_only(&self.y, &self.kept).collect();
        for (work, (goal, y)) in self.work.iter_mut().zip(self.goal.iter().zip(&self.y)) {
            *work = goal - y;
        }
        matmul(&mut self.spare, &self.work, a, (rows, n, n), false);
        swap(&mut self.y, &mut self.spare, &mut self.kept, a, n, pattern);
    }
}

fn keep_only(values: &[f32], kept: &[bool]) -> impl Iterator<Item = f32> {
    values
        .iter()
        .zip(kept)
        .map(|(&value, &kept)| if kept { value } else { 0.0 })
}
