//! Weights on a given support: conjugate gradients, all rows of a block at once.

use super::metric::{Metric, indefinite};
use super::workers::{ROWS, Workers};
use super::{Layer, check_partner};
use crate::Result;
use crate::linalg::dense::{cholesky, matmul};

/// A row is done once its residual falls below this share of its target's norm.
const TOLERANCE: f64 = 1e-6;

/// Least squares on a given support: min over W' supported on `mask` of tr (W' - W)(H + lambda I)(W' - W)'.
///
/// `mask` is (rows x columns), true = kept, row-major; any support will do. Every row is its own problem; `steps` conjugate gradient steps start from the masked
/// weight in unit-diagonal coordinates, which makes them Jacobi-preconditioned. Returns W' with exact +0.0 off the mask.
///
/// # Errors
/// [`Shape`](crate::Error::Shape), [`NotFinite`](crate::Error::NotFinite), [`Value`](crate::Error::Value) (damping),
/// [`NotSymmetric`](crate::Error::NotSymmetric), [`Indefinite`](crate::Error::Indefinite),
/// [`Interrupted`](crate::Error::Interrupted).
pub fn lstsq(layer: &Layer, mask: &[bool], steps: usize, workers: &Workers) -> Result<Vec<f32>> {
    check_partner("mask", mask.len(), layer.weight.len())?;
    let (metric, goal) = layer.enter()?;
    check_definite(&metric)?;
    let mut fitted: Vec<f32> = goal
        .values
        .iter()
        .zip(mask)
        .map(|(&v, &kept)| if kept { v } else { 0.0 })
        .collect();
    refit(&metric, &goal.values, mask, &mut fitted, steps, workers)?;
    metric.leave(&fitted, mask, goal.peak())
}

/// [`Error::Indefinite`](crate::Error::Indefinite) unless the damped moments have a Cholesky factor.
pub(super) fn check_definite(metric: &Metric) -> Result<()> {
    let mut factor = metric.unit.clone();
    cholesky(&mut factor, metric.columns)
        .map_err(|pivot| indefinite(format!("the Cholesky factor breaks down at pivot {pivot}")))
}

/// Conjugate gradients from `fitted` towards min tr (X - goal) A (X - goal)' with X supported on `kept`.
pub(super) fn refit(
    metric: &Metric,
    goal: &[f32],
    kept: &[bool],
    fitted: &mut [f32],
    steps: usize,
    workers: &Workers,
) -> Result<()> {
    let (a, columns) = (metric.unit_f32(), metric.columns);
    let mut blocks: Vec<Block> = fitted
        .chunks_mut(ROWS * columns)
        .zip(goal.chunks(ROWS * columns))
        .zip(kept.chunks(ROWS * columns))
        .map(|((x, goal), kept)| Block::new(x, goal, kept, columns))
        .collect();
    workers.each(&mut blocks, |block| {
        block.start(&a);
    });
    for _ in 0..steps {
        workers.ask()?;
        workers.each(&mut blocks, |block| {
            block.step(&a);
        });
    }
    Ok(())
}

/// x: iterate · r: residual ((goal - x) A on the support) · p: direction, one row each.
struct Block<'a> {
    columns: usize,
    goal: &'a [f32],
    kept: &'a [bool],
    x: &'a mut [f32],
    r: Vec<f32>,
    p: Vec<f32>,
    ap: Vec<f32>,
    squares: Vec<f64>,
    enough: Vec<f64>,
}

impl<'a> Block<'a> {
    fn new(x: &'a mut [f32], goal: &'a [f32], kept: &'a [bool], columns: usize) -> Self {
        let size = x.len();
        let enough = goal
            .chunks_exact(columns)
            .map(|row| TOLERANCE * TOLERANCE * dot(row, row))
            .collect();
        Self {
            columns,
            goal,
            kept,
            x,
            r: vec![0.0; size],
            p: vec![0.0; size],
            ap: vec![0.0; size],
            squares: vec![0.0; size / columns],
            enough,
        }
    }

    fn start(&mut self, a: &[f32]) {
        for ((p, goal), x) in self.p.iter_mut().zip(self.goal).zip(&*self.x) {
            *p = goal - x;
        }
        self.multiply(a);
        self.r.copy_from_slice(&self.ap);
        self.p.copy_from_slice(&self.ap);
        for (square, r) in self
            .squares
            .iter_mut()
            .zip(self.r.chunks_exact(self.columns))
        {
            *square = dot(r, r);
        }
    }

    /// ap = (p A) on the support.
    fn multiply(&mut self, a: &[f32]) {
        let n = self.columns;
        matmul(&mut self.ap, &self.p, a, (self.p.len() / n, n, n), false);
        for (value, &kept) in self.ap.iter_mut().zip(self.kept) {
            if !kept {
                *value = 0.0;
            }
        }
    }

    fn step(&mut self, a: &[f32]) {
        if self.squares.iter().zip(&self.enough).all(|(s, e)| s <= e) {
            return;
        }
        self.multiply(a);
        for row in 0..self.squares.len() {
            if self.squares[row] > self.enough[row] {
                self.advance(row);
            }
        }
    }

    fn advance(&mut self, row: usize) {
        let span = row * self.columns..(row + 1) * self.columns;
        let (r, p, ap) = (
            &mut self.r[span.clone()],
            &mut self.p[span.clone()],
            &self.ap[span.clone()],
        );
        let curvature = dot(p, ap);
        if curvature <= 0.0 {
            return;
        }
        let length = (self.squares[row] / curvature) as f32;
        for (((x, r), &p), &ap) in self.x[span].iter_mut().zip(&mut *r).zip(&*p).zip(ap) {
            *x += length * p;
            *r -= length * ap;
        }
        let square = dot(r, r);
        let turn = (square / self.squares[row]) as f32;
        self.squares[row] = square;
        for (p, &r) in p.iter_mut().zip(&*r) {
            *p = r + turn * *p;
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f64::from(x) * f64::from(y))
        .sum()
}
