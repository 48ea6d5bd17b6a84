//! Masks: `mpcore_core::nm`.

use mpcore_core::nm::{Fibers, Pattern, check, select};
use numpy::{
    IntoPyArray, PyArray3, PyArrayMethods, PyReadonlyArray2, PyReadonlyArray3,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::error::to_python;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(nm_mask, module)?)?;
    module.add_function(wrap_pyfunction!(check_mask, module)?)?;
    Ok(())
}

/// A score of either precision.
#[derive(FromPyObject)]
enum Score<'py> {
    Single(PyReadonlyArray3<'py, f32>),
    Double(PyReadonlyArray3<'py, f64>),
}

#[pyfunction]
fn nm_mask<'py>(
    py: Python<'py>,
    score: Score<'py>,
    keep: usize,
    group: usize,
) -> PyResult<Bound<'py, PyArray3<bool>>> {
    match score {
        Score::Single(score) => top_n(py, &score, keep, group),
        Score::Double(score) => top_n(py, &score, keep, group),
    }
}

fn top_n<'py, T: select::Score + numpy::Element>(
    py: Python<'py>,
    score: &PyReadonlyArray3<'py, T>,
    keep: usize,
    group: usize,
) -> PyResult<Bound<'py, PyArray3<bool>>> {
    let shape = [score.shape()[0], score.shape()[1], score.shape()[2]];
    let [outer, length, inner] = shape;
    let fibers = Fibers {
        outer,
        length,
        inner,
    };
    let values = score.as_slice()?;
    let mask = py
        .detach(|| {
            Pattern::new(keep, group).and_then(|pattern| select::nm_mask(values, fibers, pattern))
        })
        .map_err(|error| to_python(&error))?;
    mask.into_pyarray(py).reshape(shape)
}

#[pyfunction]
fn check_mask(
    py: Python<'_>,
    mask: PyReadonlyArray2<'_, bool>,
    keep: usize,
    group: usize,
) -> PyResult<()> {
    let (rows, columns) = (mask.shape()[0], mask.shape()[1]);
    let kept = mask.as_slice()?;
    py.detach(|| {
        check::check_pattern(
            rows,
            columns,
            Pattern::new(keep, group)?,
            "mask",
            |row, column| kept[row * columns + column],
        )
    })
    .map_err(|error| to_python(&error))
}
