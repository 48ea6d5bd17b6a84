//! Pruned weights that make up for what was removed.
//!
//! A layer y = W x with input moments H = E[x x'] changes its outputs by tr (W' - W) H (W' - W)' on average; the solvers
//! here make that small within an N:M pattern ([`admm`], [`sparsegpt`]) or on a given support ([`lstsq`]).

mod admm;
mod cg;
mod error;
mod metric;
mod sparsegpt;
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
