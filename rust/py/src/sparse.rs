//! Packed weights and their products: `mpcore_core::nm::pack` and `mpcore_core::sparse`.

use mpcore_core::nm::Pattern;
use mpcore_core::nm::pack;
use mpcore_core::sparse::linear::{self, Activation, Layer};
use numpy::{
    IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::to_python;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(pack_weights, module)?)?;
    module.add_function(wrap_pyfunction!(unpack_weights, module)?)?;
    module.add_function(wrap_pyfunction!(nm_linear, module)?)
}

type Packed<'py> = (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray2<u8>>);

#[pyfunction]
#[pyo3(signature = (weight, keep, group, mask))]
fn pack_weights<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    keep: usize,
    group: usize,
    mask: Option<PyReadonlyArray2<'py, bool>>,
) -> PyResult<Packed<'py>> {
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let values = weight.as_slice()?;
    let mask = mask.as_ref().map(|mask| mask.as_slice()).transpose()?;
    let packed = py
        .detach(|| pack::pack(values, columns, Pattern::new(keep, group)?, mask))
        .map_err(|error| to_python(&error))?;
    let shape = [rows, columns / group * keep];
    Ok((
        packed.values.into_pyarray(py).reshape(shape)?,
        packed.places.into_pyarray(py).reshape(shape)?,
    ))
}

#[pyfunction]
fn unpack_weights<'py>(
    py: Python<'py>,
    values: PyReadonlyArray2<'py, f32>,
    places: PyReadonlyArray2<'py, u8>,
    columns: usize,
    keep: usize,
    group: usize,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let rows = values.shape()[0];
    let (values, places) = (values.as_slice()?, places.as_slice()?);
    let weight = py
        .detach(|| pack::unpack(values, places, columns, Pattern::new(keep, group)?))
        .map_err(|error| to_python(&error))?;
    weight.into_pyarray(py).reshape([rows, columns])
}

#[pyfunction]
#[pyo3(signature = (values, places, input, pattern, bias, activation, bfloat16, threads))]
#[expect(
    clippy::too_many_arguments,
    reason = "the translation of one keyword call"
)]
fn nm_linear<'py>(
    py: Python<'py>,
    values: PyReadonlyArray2<'py, f32>,
    places: PyReadonlyArray2<'py, u8>,
    input: PyReadonlyArray2<'py, f32>,
    pattern: (usize, usize),
    bias: Option<PyReadonlyArray1<'py, f32>>,
    activation: Option<&str>,
    bfloat16: bool,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (tokens, outputs) = (input.shape()[0], values.shape()[0]);
    let layer = Layer {
        values: values.as_slice()?,
        places: places.as_slice()?,
        inputs: input.shape()[1],
        outputs,
        pattern: Pattern::new(pattern.0, pattern.1).map_err(|error| to_python(&error))?,
        bias: bias.as_ref().map(|bias| bias.as_slice()).transpose()?,
        activation: match activation {
            None => Activation::Identity,
            Some("relu") => Activation::Relu,
            Some("gelu") => Activation::Gelu,
            Some(other) => {
                let message = format!("activation {other:?}: wanted None, 'gelu' or 'relu'");
                return Err(PyValueError::new_err(message));
            }
        },
        bfloat16,
    };
    let input = input.as_slice()?;
    let output = py
        .detach(|| linear::nm_linear(&layer, input, tokens, threads))
        .map_err(|error| to_python(&error))?;
    output.into_pyarray(py).reshape([tokens, outputs])
}
