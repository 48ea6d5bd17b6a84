//! How much a layer's outputs change.

use super::metric::{check_finite, check_moments};
use super::workers::{ROWS, Workers};
use super::{check_partner, check_rows};
use crate::Result;
use crate::linalg::dense::matmul;
use crate::linalg::values::{PowerOfTwo, exponent, scale};

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
    // Powers of two take both near one, so that no square overflows or vanishes; the moments' own is shared out.
    let of_gram = power(gram.iter().copied()) / 2;
    let of_change = power(pruned.iter().zip(weight).map(|(p, w)| p - w));
    let of_total = power(weight.iter().copied());
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
    let units = [of_change, of_total].map(|power| PowerOfTwo::new(-power - of_gram));
    workers.each(&mut blocks, |block| {
        block.measure(gram, columns, units);
    });
    let changed = blocks.iter().map(|b| b.changed).sum::<f64>().max(0.0);
    let total = blocks.iter().map(|b| b.total).sum::<f64>().max(0.0);
    Ok(if changed == 0.0 {
        0.0
    } else {
        let apart = (2 * (of_change - of_total)).clamp(-2040, 2040);
        scale(changed / total, apart)
    })
}

/// The power of two just above the largest magnitude; 0 for zeros, and 1025 where a difference overflowed.
fn power(values: impl Iterator<Item = f64>) -> i32 {
    match values.fold(0.0, |largest: f64, v| largest.max(v.abs())) {
        0.0 => 0,
        f64::INFINITY => 1025,
        largest => exponent(largest),
    }
}

struct Block<'a> {
    weight: &'a [f64],
    pruned: &'a [f64],
    changed: f64,
    total: f64,
}

impl Block<'_> {
    /// Both energies, of what `units` make of the change and of the weights.
    fn measure(&mut self, gram: &[f64], columns: usize, [change, whole]: [PowerOfTwo; 2]) {
        let differences = self.weight.iter().zip(self.pruned).map(|(&w, &p)| {
            if (p - w).is_finite() {
                change.times(p - w)
            } else {
                change.times(p) - change.times(w)
            }
        });
        self.changed = energy(&differences.collect::<Vec<_>>(), gram, columns);
        let weights = self.weight.iter().map(|&w| whole.times(w));
        self.total = energy(&weights.collect::<Vec<_>>(), gram, columns);
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
