//! Pruned weights that make up for what was removed.
//!
//! A layer y = W x with input moments H = E[x x'] changes its outputs by tr (W' - W) H (W' - W)' on average; the solvers
//! here make that small within an N:M pattern ([`admm`], [`sparsegpt`]) or on a given support ([`lstsq`]).
//!
//! # Examples
//! ```
//! use mpcore_core::compensate::{Layer, Workers, admm, lstsq, output_error};
//! use mpcore_core::nm::Pattern;
//!
//! // The second input is half the first plus noise: its weight can move there.
//! let layer = Layer { weight: &[2.0, 1.0], gram: &[1.0, 0.5, 0.5, 1.0], columns: 2, damping: 0.0 };
//! let workers = Workers::new(None, &|| false)?;
//! let pruned = admm(&layer, Pattern::new(1, 2)?, 50, &workers)?;
//! assert!((pruned[0] - 2.5).abs() < 1e-5);
//! assert_eq!(pruned[1], 0.0);
//! assert_eq!(lstsq(&layer, &[true, false], 30, &workers)?, pruned);
//! let error = output_error(&[2.0, 1.0], &[2.5, 0.0], layer.gram, 2, &workers)?;
//! assert!((error - 0.75 / 7.0).abs() < 1e-12);
//! # Ok::<(), mpcore_core::Error>(())
//! ```

mod admm;
mod cg;
mod error;
mod metric;
mod sparsegpt;
mod swap;
#[cfg(test)]
mod tests;
mod workers;

pub use admm::admm;
pub use cg::lstsq;
pub use error::output_error;
pub use sparsegpt::sparsegpt;
pub use workers::Workers;

use crate::{Error, Result};

/// One layer to prune: its weights and the second moments of its inputs.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// W, (rows x columns), row-major.
    pub weight: &'a [f32],
    /// H = E[x x'], (columns x columns), row-major, symmetric positive semidefinite.
    pub gram: &'a [f64],
    /// Number of input columns.
    pub columns: usize,
    /// lambda / mean diag H: the solvers see H + lambda I. At least 1e-7 is used.
    pub damping: f64,
}

impl Layer<'_> {
    /// The damped moments in unit-diagonal coordinates, and the weights in them; every argument is checked.
    fn enter(&self) -> Result<(metric::Metric, metric::UnitWeights)> {
        check_rows(self.weight.len(), self.columns)?;
        let metric = metric::Metric::new(self.gram, self.columns, self.damping)?;
        let goal = metric.enter(self.weight)?;
        Ok((metric, goal))
    }
}

fn check_rows(entries: usize, columns: usize) -> Result<()> {
    if columns == 0 || entries == 0 || !entries.is_multiple_of(columns) {
        return Err(Error::Shape {
            name: "weight: number of entries",
            got: entries,
            wanted: format!("a positive multiple of columns = {columns}"),
        });
    }
    Ok(())
}

fn check_partner(name: &'static str, got: usize, weight: usize) -> Result<()> {
    if got != weight {
        return Err(Error::Shape {
            name,
            got,
            wanted: format!("{weight} entries, one per weight"),
        });
    }
    Ok(())
}
