//! Binding of `mpcore_core::compensate`.

use mpcore_core::compensate::{self, Layer, Workers};
use mpcore_core::nm::Pattern;
use mpcore_core::threads::with_threads;
use numpy::{
    Element, IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::{interrupted, to_python};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(admm, module)?)?;
    module.add_function(wrap_pyfunction!(lstsq, module)?)?;
    module.add_function(wrap_pyfunction!(sparsegpt, module)?)?;
    module.add_function(wrap_pyfunction!(output_error, module)?)
}

#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the facade's keywords, unpacked")]
fn admm<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    gram: PyReadonlyArray2<'py, f64>,
    keep: usize,
    group: usize,
    damping: f64,
    steps: usize,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let layer = unpack(&weight, &gram, damping)?;
    solve(py, &weight, threads, |workers| {
        compensate::admm(&layer, Pattern::new(keep, group)?, steps, workers)
    })
}

#[pyfunction]
fn lstsq<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    gram: PyReadonlyArray2<'py, f64>,
    mask: PyReadonlyArray2<'py, bool>,
    damping: f64,
    steps: usize,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let layer = unpack(&weight, &gram, damping)?;
    let mask = contiguous("mask", &mask)?;
    solve(py, &weight, threads, |workers| {
        compensate::lstsq(&layer, mask, steps, workers)
    })
}

#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the facade's keywords, unpacked")]
fn sparsegpt<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    gram: PyReadonlyArray2<'py, f64>,
    keep: usize,
    group: usize,
    mask: Option<PyReadonlyArray2<'py, bool>>,
    damping: f64,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let layer = unpack(&weight, &gram, damping)?;
    let mask = mask
        .as_ref()
        .map(|mask| contiguous("mask", mask))
        .transpose()?;
    solve(py, &weight, threads, |workers| {
        compensate::sparsegpt(&layer, Pattern::new(keep, group)?, mask, workers)
    })
}

#[pyfunction]
fn output_error<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f64>,
    pruned: PyReadonlyArray2<'py, f64>,
    gram: PyReadonlyArray2<'py, f64>,
) -> PyResult<f64> {
    let columns = weight.shape()[1];
    let (weight, pruned) = (
        contiguous("weight", &weight)?,
        contiguous("pruned", &pruned)?,
    );
    let gram = contiguous("gram", &gram)?;
    run(py, None, |workers| {
        compensate::output_error(weight, pruned, gram, columns, workers)
    })
}

fn unpack<'a>(
    weight: &'a PyReadonlyArray2<'_, f32>,
    gram: &'a PyReadonlyArray2<'_, f64>,
    damping: f64,
) -> PyResult<Layer<'a>> {
    Ok(Layer {
        weight: contiguous("weight", weight)?,
        gram: contiguous("gram", gram)?,
        columns: weight.shape()[1],
        damping,
    })
}

/// Row-major entries of an array; [`PyValueError`] for other layouts.
pub(crate) fn contiguous<'a, T: Element>(
    name: &str,
    array: &'a PyReadonlyArray2<'_, T>,
) -> PyResult<&'a [T]> {
    if !array.is_c_contiguous() {
        return Err(PyValueError::new_err(format!(
            "{name}: wanted a C-contiguous array"
        )));
    }
    Ok(array.as_slice()?)
}

/// Run a solver without the GIL and give its weights the shape of `like`.
fn solve<'py>(
    py: Python<'py>,
    like: &PyReadonlyArray2<'py, f32>,
    threads: Option<usize>,
    work: impl FnOnce(&Workers) -> mpcore_core::Result<Vec<f32>> + Send,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let shape = [like.shape()[0], like.shape()[1]];
    run(py, threads, work)?.into_pyarray(py).reshape(shape)
}

fn run<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    work: impl FnOnce(&Workers) -> mpcore_core::Result<T> + Send,
) -> PyResult<T> {
    py.detach(|| with_threads(None, || work(&Workers::new(threads, &interrupted)?)))
        .map_err(|error| to_python(&error))
}
