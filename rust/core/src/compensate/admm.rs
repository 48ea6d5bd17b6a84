//! Mask and weights together, by the alternating direction method of multipliers.

use super::Layer;
use super::cg::refit;
use super::metric::{Metric, indefinite};
use super::project::Groups;
use super::workers::{ROWS, Workers};
use crate::Result;
use crate::linalg::dense::{eigh, matmul};

/// Penalty of the first step; the inputs have unit mean square in these coordinates.
const PENALTY: f64 = 0.05;
/// Growth of the penalty per step: slow enough to reconsider the mask, fast enough to settle it in about 50 steps.
const GROWTH: f64 = 1.12;
/// Conjugate gradient steps on the final support.
const REFIT_STEPS: usize = 30;

/// Prune to N:M and compensate: min over W' in N:M of tr (W' - W)(H + lambda I)(W' - W)'.
///
/// ADMM splits the problem into an unconstrained Z and a D inside the pattern with scaled dual U; in
/// unit-diagonal coordinates, A = Q L Q', each of `steps` steps is
///
/// Z = (V A + rho (D - U)) Q (L + rho)^-1 Q', Y = Z + U, D = Y on the N largest |Y| of every M, U = Y - D,
///
/// with rho = 0.05 growing by 1.12 a step. The support of the last D is kept and its weights refitted by conjugate
/// gradients. Returns W' with exact +0.0 where pruned.
///
/// # Errors
/// [`Error::Pattern`](crate::Error::Pattern), [`Error::NotAMultiple`](crate::Error::NotAMultiple), those of
/// [`lstsq`](super::lstsq), and [`Error::Convergence`](crate::Error::Convergence) of the eigendecomposition.
///
/// # References
/// Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed optimization and statistical learning via the alternating
/// direction method of multipliers", 2011; Meng et al., "ALPS: Improved optimization for highly sparse one-shot
/// pruning for large language models", 2024, which prunes with the same splitting.
pub fn admm(
    layer: &Layer,
    (keep, group): (usize, usize),
    steps: usize,
    workers: &Workers,
) -> Result<Vec<f32>> {
    let columns = layer.columns;
    let groups = Groups::new(keep, group, columns)?;
    let (metric, goal) = layer.enter()?;
    workers.ask()?;
    let basis = Eigenbasis::new(&metric)?;
    let mut blocks: Vec<Block> = goal
        .values
        .chunks(ROWS * columns)
        .map(|goal| Block::new(goal, groups))
        .collect();
    workers.each(&mut blocks, |block| block.start(&basis));
    workers.repeat(&mut blocks, steps, |block, step| {
        block.step(&basis, groups, penalty(step));
    })?;
    let kept: Vec<bool> = blocks
        .iter()
        .flat_map(|block| &block.kept)
        .copied()
        .collect();
    let mut fitted: Vec<f32> = blocks.iter().flat_map(Block::projected).collect();
    drop(blocks);
    refit(
        &metric,
        &goal.values,
        &kept,
        &mut fitted,
        REFIT_STEPS,
        workers,
    )?;
    Ok(metric.leave(&fitted, &kept, goal.peak()))
}

fn penalty(step: usize) -> f32 {
    (PENALTY * GROWTH.powf(step as f64)).min(1e6) as f32
}

/// A = Q L Q'.
struct Eigenbasis {
    columns: usize,
    values: Vec<f32>,
    q: Vec<f32>,
    q_transposed: Vec<f32>,
}

impl Eigenbasis {
    fn new(metric: &Metric) -> Result<Self> {
        let n = metric.columns;
        let (values, vectors) = eigh(&metric.unit, n)?;
        if values[0] <= 0.0 {
            return Err(indefinite(format!(
                "the smallest eigenvalue after damping, at unit diagonal, is {}",
                values[0]
            )));
        }
        let q: Vec<f32> = vectors.iter().map(|&v| v as f32).collect();
        let mut q_transposed = vec![0.0; n * n];
        for (i, row) in q.chunks_exact(n).enumerate() {
            for (j, &value) in row.iter().enumerate() {
                q_transposed[j * n + i] = value;
            }
        }
        Ok(Self {
            columns: n,
            values: values.iter().map(|&v| v as f32).collect(),
            q,
            q_transposed,
        })
    }

    /// out = rows Q.
    fn enter(&self, rows: &[f32], out: &mut [f32]) {
        let n = self.columns;
        matmul(out, rows, &self.q, (rows.len() / n, n, n), false);
    }

    /// out = rows Q'.
    fn leave(&self, rows: &[f32], out: &mut [f32]) {
        let n = self.columns;
        matmul(out, rows, &self.q_transposed, (rows.len() / n, n, n), false);
    }
}

/// Rows of the iterate. Since D = Y where kept and U = Y elsewhere, Y and the mask are the whole state.
struct Block<'a> {
    goal: &'a [f32],
    /// V A Q = V Q L
    pull: Vec<f32>,
    y: Vec<f32>,
    kept: Vec<bool>,
    work: Vec<f32>,
    spectral: Vec<f32>,
}

impl<'a> Block<'a> {
    fn new(goal: &'a [f32], groups: Groups) -> Self {
        let mut kept = vec![false; goal.len()];
        groups.project(goal, &mut kept);
        let y = keep_only(goal, &kept).collect();
        Self {
            goal,
            pull: vec![0.0; goal.len()],
            y,
            kept,
            work: vec![0.0; goal.len()],
            spectral: vec![0.0; goal.len()],
        }
    }

    fn start(&mut self, basis: &Eigenbasis) {
        basis.enter(self.goal, &mut self.pull);
        for row in self.pull.chunks_exact_mut(basis.columns) {
            for (value, eigenvalue) in row.iter_mut().zip(&basis.values) {
                *value *= eigenvalue;
            }
        }
    }

    fn step(&mut self, basis: &Eigenbasis, groups: Groups, rho: f32) {
        for ((work, &y), &kept) in self.work.iter_mut().zip(&self.y).zip(&self.kept) {
            *work = if kept { y } else { -y }; // D - U
        }
        basis.enter(&self.work, &mut self.spectral);
        let rows = self.spectral.chunks_exact_mut(basis.columns);
        for (row, pull) in rows.zip(self.pull.chunks_exact(basis.columns)) {
            for ((value, &pull), &eigenvalue) in row.iter_mut().zip(pull).zip(&basis.values) {
                *value = (pull + rho * *value) / (eigenvalue + rho);
            }
        }
        basis.leave(&self.spectral, &mut self.work);
        for ((y, &z), &kept) in self.y.iter_mut().zip(&self.work).zip(&self.kept) {
            *y = if kept { z } else { z + *y }; // Y = Z + U
        }
        groups.project(&self.y, &mut self.kept);
    }

    /// D, the part of Y inside the pattern.
    fn projected(&self) -> impl Iterator<Item = f32> {
        keep_only(&self.y, &self.kept)
    }
}

fn keep_only(values: &[f32], kept: &[bool]) -> impl Iterator<Item = f32> {
    values
        .iter()
        .zip(kept)
        .map(|(&value, &kept)| if kept { value } else { 0.0 })
}
