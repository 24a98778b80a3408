//! The extension module `phalanx._phalanx`: parse, detach, call, map the error. No decisions.

#![deny(unsafe_code)]

#[allow(unsafe_code)] // Python's buffer protocol has raw pointers; see CONTRIBUTING.md
mod buffer;
mod cells;
mod connection;
mod errors;
mod function;
mod handle;
mod line;
mod outcome;
mod pickle;
mod pool;
mod process;
mod queue;
mod stream;
mod synchronize;
mod wait;
mod worker;

use pyo3::prelude::*;

/// The engine, as Python sees it.
#[pymodule]
fn _phalanx(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<buffer::Block>()?;
    m.add_class::<cells::Cell>()?;
    m.add_class::<cells::Cells>()?;
    connection::register(m)?;
    line::register(m)?;
    process::register(m)?;
    synchronize::register(m)?;
    queue::register(m)?;
    pool::register(m)
}
