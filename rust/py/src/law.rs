//! The Marchenko-Pastur and Tracy-Widom laws, elementwise.

use mpcore_core::mp::law::Law;
use mpcore_core::mp::{spike, tracy_widom};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::to_python;

/// Elementwise over three arrays of one length.
#[pyfunction]
fn mp_law<'py>(
    py: Python<'py>,
    what: &str,
    x: PyReadonlyArray1<'py, f64>,
    gamma: PyReadonlyArray1<'py, f64>,
    sigma_sq: PyReadonlyArray1<'py, f64>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let function: fn(&Law, f64) -> f64 = match what {
        "pdf" => Law::pdf,
        "cdf" => Law::cdf,
        "ppf" => Law::ppf,
        "sample" => spike::sample_singular,
        "strength" => spike::strength_singular,
        other => {
            return Err(PyValueError::new_err(format!(
                "mp_law: no function {other:?}"
            )));
        }
    };
    let found: Result<Vec<f64>, _> = x
        .as_slice()?
        .iter()
        .zip(gamma.as_slice()?.iter().zip(sigma_sq.as_slice()?))
        .map(|(x, (gamma, sigma_sq))| Law::new(*gamma, *sigma_sq).map(|law| function(&law, *x)))
        .collect();
    Ok(found.map_err(|e| to_python(&e))?.into_pyarray(py))
}

#[pyfunction]
fn tracy_widom_law<'py>(
    py: Python<'py>,
    what: &str,
    x: PyReadonlyArray1<'py, f64>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let function = match what {
        "cdf" => tracy_widom::cdf,
        "sf" => tracy_widom::sf,
        "ppf" => tracy_widom::ppf,
        other => {
            return Err(PyValueError::new_err(format!(
                "tracy_widom_law: no function {other:?}"
            )));
        }
    };
    let found: Vec<f64> = x.as_slice()?.iter().map(|x| function(*x)).collect();
    Ok(found.into_pyarray(py))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(mp_law, module)?)?;
    module.add_function(wrap_pyfunction!(tracy_widom_law, module)?)
}
