//! The extension module `phalanx._phalanx`: parse, detach, call, map the error. No decisions.

#![forbid(unsafe_code)]

mod connection;
mod errors;
mod function;
mod handle;
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
    connection::register(m)?;
    process::register(m)?;
    synchronize::register(m)?;
    queue::register(m)?;
    pool::register(m)
}
