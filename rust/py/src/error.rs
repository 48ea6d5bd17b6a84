//! Errors of the core as Python exceptions.

use mpcore_core::Error;
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;

pyo3::import_exception!(mpcore.records, ConvergenceError);

/// The user's mistakes become `ValueError`, the numerics' become `ConvergenceError`.
pub(crate) fn to_python(error: &Error) -> PyErr {
    match error {
        Error::Convergence { .. } => ConvergenceError::new_err(error.to_string()),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

/// Whether Ctrl-C was pressed, asked by long loops on the calling thread; the exception it brings is raised anew.
pub(crate) fn interrupted() -> bool {
    Python::attach(|py| py.check_signals().is_err())
}
