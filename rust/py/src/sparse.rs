//! Packed weights and their products: `mpcore_core::nm::pack` and `mpcore_core::sparse`.

use std::borrow::Cow;

use half::bf16;
use mpcore_core::nm::Pattern;
use mpcore_core::nm::pack;
use mpcore_core::sparse::{Activation, Field, Input, Layer, Order, Output, Team, Weights};
use mpcore_core::threads::remember_process;
use mpcore_core::vector::Level;
use numpy::{
    IntoPyArray, PyArray2, PyArrayDyn, PyArrayMethods, PyReadonlyArray2, PyReadonlyArrayDyn,
    PyReadwriteArrayDyn, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::to_python;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    remember_process();
    module.add_function(wrap_pyfunction!(pack_weights, module)?)?;
    module.add_function(wrap_pyfunction!(unpack_weights, module)?)?;
    module.add_function(wrap_pyfunction!(instruction_sets, module)?)?;
    module.add_class::<NmWeights>()
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

/// The instruction sets of this CPU that the sparse kernels know, the widest last.
#[pyfunction]
fn instruction_sets() -> Vec<&'static str> {
    Level::here().map(Level::name).collect()
}

/// Weights in the order in which the kernels of this CPU read them.
#[pyclass(frozen, module = "mpcore._native")]
struct NmWeights(Weights);

enum Values<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    Bf16(PyReadonlyArrayDyn<'py, u16>),
}

enum Room<'py> {
    F32(PyReadwriteArrayDyn<'py, f32>),
    Bf16(PyReadwriteArrayDyn<'py, u16>),
}

// Not derived: that tries the variants in turn, and the exception of each one that fails costs 5 us.
impl<'py> FromPyObject<'_, 'py> for Values<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.cast::<PyArrayDyn<u16>>() {
            Ok(array) => Ok(Self::Bf16(array.try_readonly()?)),
            Err(_) => Ok(Self::F32(object.extract()?)),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Room<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.cast::<PyArrayDyn<u16>>() {
            Ok(array) => Ok(Self::Bf16(array.try_readwrite()?)),
            Err(_) => Ok(Self::F32(object.extract()?)),
        }
    }
}

/// bias, activation, rounding of the inputs to bfloat16, threads, use of the OpenMP runtime
type Rest<'py> = (
    Option<Values<'py>>,
    Option<String>,
    bool,
    Option<usize>,
    bool,
);

/// images, channels; height, width; kernel, stride, padding, dilation
type Geometry = (
    (usize, usize),
    (usize, usize),
    (usize, usize),
    (usize, usize),
    (usize, usize),
    (usize, usize),
);

#[pymethods]
impl NmWeights {
    #[new]
    fn new(
        values: PyReadonlyArray2<'_, f32>,
        places: PyReadonlyArray2<'_, u8>,
        columns: usize,
        keep: usize,
        group: usize,
    ) -> PyResult<Self> {
        let shape = (values.shape()[0], columns);
        Pattern::new(keep, group)
            .and_then(|pattern| Ok((pattern, Level::from_environment()?)))
            .map_err(|error| to_python(&error))
            .and_then(|(pattern, level)| {
                Weights::new(
                    values.as_slice()?,
                    places.as_slice()?,
                    shape,
                    pattern,
                    level,
                )
                .map_err(|error| to_python(&error))
            })
            .map(Self)
    }

    /// input: contiguous, (tokens, columns) if `last`, else (columns, tokens); output likewise, overwritten.
    fn linear(
        &self,
        py: Python<'_>,
        input: Values<'_>,
        output: Room<'_>,
        last: bool,
        rest: Rest<'_>,
    ) -> PyResult<()> {
        let columns = self.0.shape().1;
        let size = match &input {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
        };
        let tokens = size.checked_div(columns).unwrap_or(0);
        let field = Field::tokens(tokens, columns, order(last), Order::ChannelsLast);
        self.run(py, input, output, &field, rest)
    }

    /// input: contiguous, (images, height, width, channels) if `last`, else (images, channels, height, width); output
    /// likewise, overwritten.
    fn conv2d(
        &self,
        py: Python<'_>,
        input: Values<'_>,
        output: Room<'_>,
        last: bool,
        geometry: Geometry,
        rest: Rest<'_>,
    ) -> PyResult<()> {
        let ((images, channels), size, kernel, stride, padding, dilation) = geometry;
        let field = Field {
            images,
            channels,
            size,
            kernel,
            stride,
            padding,
            dilation,
            input: order(last),
            output: order(last),
        };
        self.run(py, input, output, &field, rest)
    }
}

fn order(last: bool) -> Order {
    if last {
        Order::ChannelsLast
    } else {
        Order::ChannelsFirst
    }
}

impl NmWeights {
    fn run(
        &self,
        py: Python<'_>,
        input: Values<'_>,
        mut output: Room<'_>,
        field: &Field,
        (bias, activation, bfloat16, threads, openmp): Rest<'_>,
    ) -> PyResult<()> {
        let bias = match &bias {
            None => None,
            Some(Values::F32(bias)) => Some(Cow::Borrowed(bias.as_slice()?)),
            Some(Values::Bf16(bias)) => {
                let wide = |&bits: &u16| bf16::from_bits(bits).to_f32();
                Some(bias.as_slice()?.iter().map(wide).collect())
            }
        };
        let layer = Layer {
            weights: &self.0,
            bias: bias.as_deref(),
            activation: to_activation(activation.as_deref())?,
            bfloat16,
        };
        let input = match &input {
            Values::F32(values) => Input::F32(values.as_slice()?),
            Values::Bf16(values) => Input::Bf16(values.as_slice()?),
        };
        let output = match &mut output {
            Room::F32(values) => Output::F32(values.as_slice_mut()?),
            Room::Bf16(values) => Output::Bf16(values.as_slice_mut()?),
        };
        py.detach(|| layer.conv2d(input, field, output, Team { threads, openmp }))
            .map_err(|error| to_python(&error))
    }
}

fn to_activation(name: Option<&str>) -> PyResult<Activation> {
    match name {
        None => Ok(Activation::Identity),
        Some("relu") => Ok(Activation::Relu),
        Some("gelu") => Ok(Activation::Gelu),
        Some(other) => {
            let message = format!("activation {other:?}: wanted None, 'gelu' or 'relu'");
            Err(PyValueError::new_err(message))
        }
    }
}
