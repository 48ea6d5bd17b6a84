//! Python binding: unpack, run without the GIL, wrap. One file per module of the core.

#![expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands over its array guards by value"
)]

use mpcore_core::vector::Level;
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
    Level::from_environment().map_err(|error| PyValueError::new_err(error.to_string()))?;
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
