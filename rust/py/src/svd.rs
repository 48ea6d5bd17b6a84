//! Top singular triplets.

use mpcore_core::linalg::rsvd::{self, Request};
use mpcore_core::threads::with_threads;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;

use crate::error::to_python;
use crate::spectra::{contiguous, interrupted};

type Vector<'py> = Bound<'py, PyArray1<f64>>;

/// (left (k x rows) transposed, values, right (k x columns) transposed, residuals, products)
type Triplets<'py> = (
    Bound<'py, PyArray2<f64>>,
    Vector<'py>,
    Bound<'py, PyArray2<f64>>,
    Vector<'py>,
    usize,
);

#[pyfunction]
#[pyo3(signature = (w, k, tol, fast, seed, threads=None))]
fn top_svd<'py>(
    py: Python<'py>,
    w: PyReadonlyArray2<'py, f64>,
    k: usize,
    tol: f64,
    fast: bool,
    seed: u64,
    threads: Option<usize>,
) -> PyResult<Triplets<'py>> {
    let (data, shape) = contiguous(&w)?;
    let request = Request {
        k,
        tolerance: tol,
        fast,
        seed,
    };
    let found = py
        .detach(|| with_threads(threads, || rsvd::top(data, shape, &request, &interrupted)))
        .map_err(|e| to_python(&e))?;
    let left = found.left.into_pyarray(py).reshape([k, shape.0])?;
    let right = found.right.into_pyarray(py).reshape([k, shape.1])?;
    let (values, residuals) = (
        found.values.into_pyarray(py),
        found.residuals.into_pyarray(py),
    );
    Ok((left, values, right, residuals, found.products))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(top_svd, module)?)
}
