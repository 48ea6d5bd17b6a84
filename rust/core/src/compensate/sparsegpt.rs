//! The optimal-brain-surgeon sweep of `SparseGPT`, for comparison and for masks that come from elsewhere.

use super::metric::{Metric, indefinite};
use super::workers::{ROWS, Workers};
use super::{Layer, check_partner};
use crate::Result;
use crate::linalg::dense::{cholesky, invert_lower, subtract_product};
use crate::nm::{Pattern, check::check_pattern, pattern::MAX_GROUP};

/// Columns of a block, before rounding to whole groups: inside, rows are updated one column at a time.
const BLOCK: usize = 128;

/// `SparseGPT`: columns from left to right, each pruned weight's error passed on to the columns not yet visited.
///
/// With (H + lambda I)^-1 = U' U, U upper triangular, a group on entry keeps the N largest w^2 / `U_jj^2` (or
/// what `mask` says, inside the same pattern); pruning column j moves the row by -(`w_j` / `U_jj`) `U_j`. Returns W' with
/// exact +0.0 where pruned.
///
/// # Errors
/// [`Error::Pattern`](crate::Error::Pattern), [`Error::NotAMultiple`](crate::Error::NotAMultiple),
/// [`Error::BreaksPattern`](crate::Error::BreaksPattern) (mask), and those of [`lstsq`](super::lstsq).
///
/// # References
/// Frantar, Alistarh, "`SparseGPT`: Massive language models can be accurately pruned in one-shot", 2023, algorithm 1.
pub fn sparsegpt(
    layer: &Layer,
    pattern: Pattern,
    mask: Option<&[bool]>,
    workers: &Workers,
) -> Result<Vec<f32>> {
    let (weight, columns) = (layer.weight, layer.columns);
    pattern.groups(columns, "weight")?;
    if let Some(mask) = mask {
        check_partner("mask", mask.len(), weight.len())?;
        let kept = |row, column| mask[row * columns + column];
        check_pattern(weight.len() / columns, columns, pattern, "mask", kept)?;
    }
    let (metric, mut goal) = layer.enter()?;
    let mut kept = mask.map_or_else(|| vec![false; weight.len()], <[bool]>::to_vec);
    workers.ask()?;
    let surgeon = Surgeon::new(&metric, pattern, mask.is_some())?;
    let mut blocks: Vec<(&mut [f32], &mut [bool])> = goal
        .values
        .chunks_mut(ROWS * columns)
        .zip(kept.chunks_mut(ROWS * columns))
        .collect();
    for from in (0..columns).step_by(surgeon.width) {
        workers.ask()?;
        workers.each(&mut blocks, |(w, kept)| {
            surgeon.operate(w, kept, from);
        });
    }
    let peak = goal.peak();
    metric.leave(&goal.values, &kept, peak)
}

struct Surgeon {
    columns: usize,
    width: usize,
    pattern: Pattern,
    masked: bool,
    /// U, upper triangular, U' U = A^-1
    u: Vec<f32>,
}

impl Surgeon {
    fn new(metric: &Metric, pattern: Pattern, masked: bool) -> Result<Self> {
        Ok(Self {
            columns: metric.columns,
            width: BLOCK / pattern.group() * pattern.group(),
            pattern,
            masked,
            u: inverse_factor(metric)?,
        })
    }

    /// Prune the block of columns that starts at `from` in every row of `w`, then update all columns to its right.
    fn operate(&self, w: &mut [f32], kept: &mut [bool], from: usize) {
        let n = self.columns;
        let to = (from + self.width).min(n);
        let width = to - from;
        let rows = w.len() / n;
        let mut errors = vec![0.0; rows * width];
        for ((w, kept), errors) in w
            .chunks_exact_mut(n)
            .zip(kept.chunks_exact_mut(n))
            .zip(errors.chunks_exact_mut(width))
        {
            self.sweep(&mut w[from..to], &mut kept[from..to], errors, from);
        }
        if to < n {
            let u = &self.u[from * n + to..];
            subtract_product(
                (&mut w[to..], n),
                (&errors, width),
                (u, n),
                (rows, width, n - to),
            );
        }
    }

    /// One row, columns `from`.. of a block: errors\[j\] = `w_j` / `U_jj` where pruned, 0 where kept.
    fn sweep(&self, w: &mut [f32], kept: &mut [bool], errors: &mut [f32], from: usize) {
        let (n, group) = (self.columns, self.pattern.group());
        let mut saliency = [0.0; MAX_GROUP];
        for j in 0..w.len() {
            if j % group == 0 && !self.masked {
                for (offset, value) in saliency[..group].iter_mut().enumerate() {
                    let diagonal = self.u[(from + j + offset) * (n + 1)];
                    *value = (w[j + offset] / diagonal).abs();
                }
                let kept = &mut kept[j..j + group];
                keep_largest(&saliency[..group], self.pattern.keep(), kept);
            }
            if kept[j] {
                continue;
            }
            let u = &self.u[(from + j) * n + from..][..w.len()];
            let error = w[j] / u[j];
            errors[j] = error;
            for (w, u) in w[j..].iter_mut().zip(&u[j..]) {
                *w -= error * u;
            }
        }
    }
}

/// Upper triangular U with U' U = A^-1.
///
/// With J the reversal of rows and columns and J A J = L L', U = J L^-1 J: one factorisation, one triangular inverse.
fn inverse_factor(metric: &Metric) -> Result<Vec<f32>> {
    let n = metric.columns;
    let mut reversed: Vec<f64> = metric.unit.iter().rev().copied().collect();
    cholesky(&mut reversed, n).map_err(|pivot| {
        indefinite(format!(
            "the Cholesky factor breaks down at column {}",
            n - 1 - pivot.min(n - 1)
        ))
    })?;
    let inverse = invert_lower(&reversed, n);
    Ok(inverse.iter().rev().map(|&value| value as f32).collect())
}

/// Mark the `keep` largest magnitudes of one group; ties go to the lower index, as in `nm::select`.
fn keep_largest(magnitudes: &[f32], keep: usize, kept: &mut [bool]) {
    for (index, (&own, kept)) in magnitudes.iter().zip(kept).enumerate() {
        let before = magnitudes[..index].iter().filter(|&&other| other >= own);
        let after = magnitudes[index + 1..].iter().filter(|&&other| other > own);
        *kept = before.count() + after.count() < keep;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        let mut kept = [false; 4];
        keep_largest(&[1.0, 2.0, 1.0, 1.0], 2, &mut kept);
        assert_eq!(kept, [true, true, false, false]);
        keep_largest(&[0.0; 4], 3, &mut kept);
        assert_eq!(kept, [true, true, true, false]);
    }
}
