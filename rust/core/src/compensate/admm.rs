//! Mask and weights together, by the alternating direction method of multipliers.

use super::Layer;
use super::cg::refit;
use super::metric::{Metric, indefinite};
use super::workers::{ROWS, Workers};
use crate::Result;
use crate::linalg::dense::{eigh, matmul};
use crate::nm::{Fibers, Pattern, select::nm_mask};

/// Penalty of the first step; the inputs have unit mean square in these coordinates.
const PENALTY: f64 = 0.05;
/// Growth of the penalty per step: slow enough to reconsider the mask, fast enough to settle it in about 50 steps.
const GROWTH: f64 = 1.12;
/// Conjugate gradient steps on the final support.
const REFIT_STEPS: usize = 30;

/// Prune to N:M and compensate: min over W' in N:M of tr (W' - W)(H + lambda I)(W' - W)'.
///
/// ADMM splits the problem into an unconstrained Z and a D inside the pattern with scaled dual U. In unit-diagonal
/// coordinates, A = Q L Q', each of `steps` steps is
///
/// Z = (V A + rho (D - U)) (A + rho I)^-1, Y = Z + U, D = Y on the N largest |Y| of every M, U = Y - D,
///
/// with rho = 0.05 growing by 1.12 a step. The support of the last D is kept and its weights refitted by conjugate
/// gradients. Returns W' with exact +0.0 where pruned.
///
/// # Errors
/// [`NotAMultiple`](crate::Error::NotAMultiple), those of [`lstsq`](super::lstsq), and
/// [`Convergence`](crate::Error::Convergence) of the eigendecomposition.
///
/// # References
/// Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed optimization and statistical learning via the alternating
/// direction method of multipliers", 2011; Meng et al., "ALPS: Improved optimization for highly sparse one-shot
/// pruning for large language models", 2024, which prunes with the same splitting.
pub fn admm(layer: &Layer, pattern: Pattern, steps: usize, workers: &Workers) -> Result<Vec<f32>> {
    let columns = layer.columns;
    pattern.groups(columns, "weight")?;
    let (metric, goal) = layer.enter()?;
    workers.ask()?;
    let basis = Eigenbasis::new(&metric)?;
    let mut blocks = goal
        .values
        .chunks(ROWS * columns)
        .map(|goal| Block::new(goal, columns, pattern))
        .collect::<Result<Vec<_>>>()?;
    for step in 0..steps {
        workers.ask()?;
        let shrink = Shrinkage::new(&basis, penalty(step), layer.weight.len() / columns, workers);
        workers.try_each(&mut blocks, |block| block.step(&shrink, pattern))?;
    }
    let kept: Vec<bool> = blocks.iter().flat_map(|b| &b.kept).copied().collect();
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

fn penalty(step: usize) -> f64 {
    (PENALTY * GROWTH.powf(step as f64)).min(1e6)
}

/// A = Q L Q'.
struct Eigenbasis {
    columns: usize,
    values: Vec<f64>,
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
            values,
            q,
            q_transposed,
        })
    }
}

/// S = rho (A + rho I)^-1 = Q F Q', the step towards the penalty's side: Z = V + (D - U - V) S.
///
/// All its eigenvalues f = rho / (l + rho) lie in (0, 1), so that single precision is enough.
struct Shrinkage<'a> {
    basis: &'a Eigenbasis,
    factors: Vec<f32>,
    /// S itself, formed where there are more rows than columns: then one product a row is cheaper than two.
    formed: Option<Vec<f32>>,
}

impl<'a> Shrinkage<'a> {
    fn new(basis: &'a Eigenbasis, rho: f64, rows: usize, workers: &Workers) -> Self {
        let factors = basis
            .values
            .iter()
            .map(|l| (rho / (l + rho)) as f32)
            .collect();
        let mut shrinkage = Self {
            basis,
            factors,
            formed: None,
        };
        if rows > basis.columns {
            shrinkage.formed = Some(shrinkage.form(workers));
        }
        shrinkage
    }

    fn form(&self, workers: &Workers) -> Vec<f32> {
        let n = self.basis.columns;
        let mut formed = vec![0.0; n * n];
        let mut blocks: Vec<(&mut [f32], &[f32])> = formed
            .chunks_mut(ROWS * n)
            .zip(self.basis.q.chunks(ROWS * n))
            .collect();
        workers.each(&mut blocks, |(out, q)| {
            let mut scaled = q.to_vec();
            self.scale(&mut scaled);
            multiply(out, &scaled, &self.basis.q_transposed, n);
        });
        formed
    }

    fn scale(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.basis.columns) {
            for (value, factor) in row.iter_mut().zip(&self.factors) {
                *value *= factor;
            }
        }
    }

    /// rows = rows S; `spare` is as large.
    fn apply(&self, rows: &mut Vec<f32>, spare: &mut Vec<f32>) {
        let n = self.basis.columns;
        if let Some(formed) = &self.formed {
            multiply(spare, rows, formed, n);
            std::mem::swap(rows, spare);
        } else {
            multiply(spare, rows, &self.basis.q, n);
            self.scale(spare);
            multiply(rows, spare, &self.basis.q_transposed, n);
        }
    }
}

/// out = rows B with B (n x n).
fn multiply(out: &mut [f32], rows: &[f32], b: &[f32], n: usize) {
    matmul(out, rows, b, (rows.len() / n, n, n), false);
}

/// Rows of the iterate. Since D = Y where kept and U = Y elsewhere, Y and the mask are the whole state.
struct Block<'a> {
    goal: &'a [f32],
    fibers: Fibers,
    y: Vec<f32>,
    kept: Vec<bool>,
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
            work: magnitudes,
            spare: vec![0.0; goal.len()],
        })
    }

    fn step(&mut self, shrink: &Shrinkage, pattern: Pattern) -> Result<()> {
        let state = self.y.iter().zip(&self.kept).zip(self.goal);
        for (work, ((&y, &kept), goal)) in self.work.iter_mut().zip(state) {
            *work = if kept { y - goal } else { -y - goal }; // D - U - V
        }
        shrink.apply(&mut self.work, &mut self.spare);
        let moved = self.work.iter_mut().zip(&self.kept).zip(self.goal);
        for (y, ((work, &kept), goal)) in self.y.iter_mut().zip(moved) {
            let z = goal + *work;
            *y = if kept { z } else { z + *y }; // Y = Z + U
            *work = y.abs();
        }
        self.kept = nm_mask(&self.work, self.fibers, pattern)?;
        Ok(())
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
