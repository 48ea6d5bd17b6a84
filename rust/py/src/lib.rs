//! Python binding: unpack, run without the GIL, wrap. One file per module of the core.

use pyo3::prelude::*;

mod certify;
mod compensate;
mod error;
mod masks;
mod permute;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    certify::register(module)?;
    compensate::register(module)?;
    masks::register(module)?;
    permute::register(module)?;
    Ok(())
}
