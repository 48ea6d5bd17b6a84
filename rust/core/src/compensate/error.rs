//! How much a layer's outputs change.

use super::metric::{check_finite, check_moments};
use super::workers::{ROWS, Workers};
use super::{check_partner, check_rows};
use crate::Result;
use crate::linalg::dense::matmul;

/// Relative squared error of a layer's outputs, tr (W' - W) H (W' - W)' / tr W H W', undamped.
///
/// `weight` and `pruned` are (rows x columns), `gram` is (columns x columns), row-major. 0 if nothing changed, infinite
/// if outputs that were zero no longer are.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::NotFinite`](crate::Error::NotFinite),
/// [`Error::NotSymmetric`](crate::Error::NotSymmetric), [`Error::Indefinite`](crate::Error::Indefinite).
pub fn output_error(
    weight: &[f64],
    pruned: &[f64],
    gram: &[f64],
    columns: usize,
    workers: &Workers,
) -> Result<f64> {
    check_rows(weight.len(), columns)?;
    check_partner("pruned", pruned.len(), weight.len())?;
    check_finite("weight", weight, columns)?;
    check_finite("pruned", pruned, columns)?;
    check_moments(gram, columns)?;
    let mut blocks: Vec<Block> = weight
        .chunks(ROWS * columns)
        .zip(pruned.chunks(ROWS * columns))
        .map(|(weight, pruned)| Block {
            weight,
            pruned,
            changed: 0.0,
            total: 0.0,
        })
        .collect();
    workers.ask()?;
    workers.each(&mut blocks, |block| {
        block.measure(gram, columns);
    });
    let changed = blocks.iter().map(|b| b.changed).sum::<f64>().max(0.0);
    let total = blocks.iter().map(|b| b.total).sum::<f64>().max(0.0);
    Ok(if changed == 0.0 { 0.0 } else { changed / total })
}

struct Block<'a> {
    weight: &'a [f64],
    pruned: &'a [f64],
    changed: f64,
    total: f64,
}

impl Block<'_> {
    fn measure(&mut self, gram: &[f64], columns: usize) {
        let difference: Vec<f64> = self
            .weight
            .iter()
            .zip(self.pruned)
            .map(|(w, p)| p - w)
            .collect();
        self.changed = energy(&difference, gram, columns);
        self.total = energy(self.weight, gram, columns);
    }
}

/// tr X H X'.
fn energy(x: &[f64], gram: &[f64], columns: usize) -> f64 {
    let mut product = vec![0.0; x.len()];
    matmul(
        &mut product,
        x,
        gram,
        (x.len() / columns, columns, columns),
        false,
    );
    x.iter().zip(&product).map(|(x, p)| x * p).sum()
}
