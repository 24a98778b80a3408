//! The extension module `phalanx._phalanx`: parse, detach, call, map the error. No decisions.

#![deny(unsafe_code)]

#[allow(unsafe_code)] // Python's buffer protocol has raw pointers; see CONTRIBUTING.md
mod buffer;
mod cells;
mod connection;
mod errors;
mod function;
mod futures;
mod handle;
mod line;
mod outcome;
mod pickle;
mod plain;
mod pool;
mod process;
mod queue;
mod repeats;
mod slice;
mod stream;
mod supervisor;
mod synchronize;
mod terms;
mod wait;
mod worker;

use pyo3::prelude::*;

/// The engine, as Python sees it.
#[pymodule]
fn _phalanx(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<buffer::Block>()?;
    m.add_class::<cells::Cell>()?;
    m.add_class::<cells::Cells>()?;
    m.add_function(wrap_pyfunction!(errors::hint, m)?)?;
    connection::register(m)?;
    line::register(m)?;
    process::register(m)?;
    supervisor::register(m)?;
    synchronize::register(m)?;
    queue::register(m)?;
    pool::register(m)
}
