//! Python binding: unpack, run without the GIL, wrap. One file per module of the core.

#![expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands over its array guards by value"
)]

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

mod certify;
mod compensate;
mod edge;
mod error;
mod masks;
mod permute;
mod sparse;
mod spectra;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    mpcore_core::vector::check().map_err(PyValueError::new_err)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    edge::register(module)?;
    spectra::register(module)?;
    certify::register(module)?;
    compensate::register(module)?;
    masks::register(module)?;
    permute::register(module)?;
    sparse::register(module)?;
    Ok(())
}
