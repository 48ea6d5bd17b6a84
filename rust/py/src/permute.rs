//! Channel permutations: `mpcore_core::permute`.

use mpcore_core::nm::{Pattern, select::Score};
use mpcore_core::permute::search::{Ceiling, Found, Settings, optimize};
use mpcore_core::threads::with_threads;
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::{interrupted, to_python};
use crate::masks::Matrix;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(optimize_permutation, module)?)
}

/// order, kept, kept under the given order, bound by rows, lowest bound, trace, rounds, interrupted.
type Result<'py> = (
    Bound<'py, PyArray1<i64>>,
    f64,
    f64,
    f64,
    f64,
    Vec<(f64, f64)>,
    u64,
    bool,
);

#[pyfunction]
#[pyo3(signature = (score, pattern, time_limit, max_rounds, seed, threads, pricing))]
#[expect(clippy::too_many_arguments, reason = "the facade's keywords, unpacked")]
fn optimize_permutation<'py>(
    py: Python<'py>,
    score: Matrix<'py>,
    pattern: (usize, usize),
    time_limit: f64,
    max_rounds: Option<u64>,
    seed: u64,
    threads: Option<usize>,
    pricing: bool,
) -> PyResult<Result<'py>> {
    let settings = Settings {
        time_limit,
        max_rounds,
        seed,
        threads,
        bound: if pricing {
            Ceiling::Pricing
        } else {
            Ceiling::Rows
        },
    };
    let found = match score {
        Matrix::Single(score) => search(py, &score, pattern, settings),
        Matrix::Double(score) => search(py, &score, pattern, settings),
    }?;
    let order: Vec<i64> = found.order.into_iter().map(i64::from).collect();
    Ok((
        order.into_pyarray(py),
        found.kept,
        found.kept_identity,
        found.row_bound,
        found.upper_bound,
        found.trace,
        found.rounds,
        found.interrupted,
    ))
}

fn search<T: Score + Element>(
    py: Python<'_>,
    score: &PyReadonlyArray2<'_, T>,
    (keep, group): (usize, usize),
    settings: Settings,
) -> PyResult<Found> {
    let columns = score.shape()[1];
    let values = score.as_slice()?;
    // Ctrl-C ends the search; the exception is dropped, because the best order so far is the answer.
    py.detach(|| {
        with_threads(None, || {
            let pattern = Pattern::new(keep, group)?;
            optimize(values, columns, pattern, settings, &interrupted)
        })
    })
    .map_err(|error| to_python(&error))
}
