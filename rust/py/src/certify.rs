//! Binding of `mpcore_core::certify`.

use mpcore_core::certify;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::compensate::contiguous;
use crate::error::to_python;

type Vector<'py, T> = Bound<'py, PyArray1<T>>;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(margins, module)?)?;
    module.add_function(wrap_pyfunction!(label_margins, module)?)?;
    module.add_function(wrap_pyfunction!(largest_changes, module)?)
}

#[pyfunction]
fn margins<'py>(
    py: Python<'py>,
    logits: PyReadonlyArray2<'py, f64>,
) -> PyResult<(Vector<'py, usize>, Vector<'py, f64>)> {
    let (rows, classes) = (contiguous("logits", &logits)?, logits.shape()[1]);
    let found = py
        .detach(|| certify::margins(rows, classes))
        .map_err(|error| to_python(&error))?;
    let labels: Vec<usize> = found.iter().map(|m| m.label).collect();
    let values: Vec<f64> = found.iter().map(|m| m.margin).collect();
    Ok((labels.into_pyarray(py), values.into_pyarray(py)))
}

#[pyfunction]
fn label_margins<'py>(
    py: Python<'py>,
    logits: PyReadonlyArray2<'py, f64>,
    labels: PyReadonlyArray1<'py, usize>,
) -> PyResult<Vector<'py, f64>> {
    let (rows, classes) = (contiguous("logits", &logits)?, logits.shape()[1]);
    let labels = labels.as_slice()?;
    let found = py
        .detach(|| certify::label_margins(rows, classes, labels))
        .map_err(|error| to_python(&error))?;
    Ok(found.into_pyarray(py))
}

#[pyfunction]
fn largest_changes<'py>(
    py: Python<'py>,
    dense: PyReadonlyArray2<'py, f64>,
    pruned: PyReadonlyArray2<'py, f64>,
) -> PyResult<Vector<'py, f64>> {
    let classes = dense.shape()[1];
    let (before, after) = (
        contiguous("dense_logits", &dense)?,
        contiguous("pruned_logits", &pruned)?,
    );
    let found = py
        .detach(|| certify::largest_changes(before, after, classes))
        .map_err(|error| to_python(&error))?;
    Ok(found.into_pyarray(py))
}
