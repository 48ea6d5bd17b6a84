//! Masks: `mpcore_core::nm`.

use mpcore_core::nm::quadratic::Target;
use mpcore_core::nm::{Fibers, Pattern, check, quadratic, select, transposable};
use mpcore_core::threads::with_threads;
use numpy::{
    Element, IntoPyArray, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray2, PyReadonlyArray3,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::error::{interrupted, to_python};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(nm_mask, module)?)?;
    module.add_function(wrap_pyfunction!(check_mask, module)?)?;
    module.add_function(wrap_pyfunction!(quadratic_mask, module)?)?;
    module.add_function(wrap_pyfunction!(transposable_mask, module)?)?;
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

fn top_n<'py, T: select::Score + Element>(
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
            with_threads(None, || {
                select::nm_mask(values, fibers, Pattern::new(keep, group)?)
            })
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

/// A matrix of either precision.
#[derive(FromPyObject)]
pub(crate) enum Matrix<'py> {
    /// f32.
    Single(PyReadonlyArray2<'py, f32>),
    /// f64.
    Double(PyReadonlyArray2<'py, f64>),
}

#[pyfunction]
#[pyo3(signature = (weight, gram, keep, group, target, target_weight))]
fn quadratic_mask<'py>(
    py: Python<'py>,
    weight: Matrix<'py>,
    gram: PyReadonlyArray3<'py, f64>,
    keep: usize,
    group: usize,
    target: Option<PyReadonlyArray2<'py, bool>>,
    target_weight: f64,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let gram = gram.as_slice()?;
    let target = match &target {
        None => None,
        Some(target) => Some(Target {
            mask: target.as_slice()?,
            weight: target_weight,
        }),
    };
    let find = Quadratic { gram, target };
    match weight {
        Matrix::Single(weight) => search(py, &weight, (keep, group), &find),
        Matrix::Double(weight) => search(py, &weight, (keep, group), &find),
    }
}

#[pyfunction]
fn transposable_mask<'py>(
    py: Python<'py>,
    score: Matrix<'py>,
    keep: usize,
    group: usize,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    match score {
        Matrix::Single(score) => search(py, &score, (keep, group), &Transposable),
        Matrix::Double(score) => search(py, &score, (keep, group), &Transposable),
    }
}

/// A rule that finds a mask for a matrix with so many columns.
trait Find: Sync {
    fn find<T: select::Score>(
        &self,
        values: &[T],
        columns: usize,
        pattern: Pattern,
    ) -> mpcore_core::Result<Vec<bool>>;
}

struct Transposable;

impl Find for Transposable {
    fn find<T: select::Score>(
        &self,
        values: &[T],
        columns: usize,
        pattern: Pattern,
    ) -> mpcore_core::Result<Vec<bool>> {
        transposable::transposable_mask(values, columns, pattern, &interrupted)
    }
}

struct Quadratic<'a> {
    gram: &'a [f64],
    target: Option<Target<'a>>,
}

impl Find for Quadratic<'_> {
    fn find<T: select::Score>(
        &self,
        values: &[T],
        columns: usize,
        pattern: Pattern,
    ) -> mpcore_core::Result<Vec<bool>> {
        quadratic::quadratic_mask(
            values,
            columns,
            self.gram,
            pattern,
            self.target,
            &interrupted,
        )
    }
}

fn search<'py, T: select::Score + Element>(
    py: Python<'py>,
    matrix: &PyReadonlyArray2<'py, T>,
    (keep, group): (usize, usize),
    rule: &impl Find,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let shape = [matrix.shape()[0], matrix.shape()[1]];
    let values = matrix.as_slice()?;
    let mask = py
        .detach(|| {
            with_threads(None, || {
                rule.find(values, shape[1], Pattern::new(keep, group)?)
            })
        })
        .map_err(|error| to_python(&error))?;
    mask.into_pyarray(py).reshape(shape)
}
