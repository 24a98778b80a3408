//! The one place that turns the engine's errors into Python's.

use phalanx::{Error, WorkerDied};
use pyo3::exceptions::{PyEOFError, PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The exception for an error.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    if let Some(died) = error.worker_died() {
        return worker_died(py, died, None);
    }
    if error.is_end_inside() {
        let class = py.import("phalanx.connection").and_then(|m| m.getattr("_EndInMessage"));
        let end = class.and_then(|class| class.call1((message,)));
        return end.map_or_else(|error| error, PyErr::from_value);
    }
    if error.is_end() {
        return PyEOFError::new_err(());
    }
    if let Some(errno) = error.os_error().and_then(std::io::Error::raw_os_error) {
        // Two arguments: Python then picks the subclass that belongs to the number.
        return PyOSError::new_err((errno, message));
    }
    if error.os_error().is_some() {
        return PyOSError::new_err(message);
    }
    if error.is_timeout() {
        return PyTimeoutError::new_err(message);
    }
    if error.is_closed() || error.is_invalid() {
        return PyValueError::new_err(message);
    }
    if error.is_initializer_failure() {
        let failed = new_exception(py, "InitializerFailed", (message,), &PyDict::new(py));
        let cause = crate::pickle::carry(py, "remote_traceback", (error.trace(),));
        failed.set_cause(py, cause.ok().map(PyErr::from_value));
        return failed;
    }
    PyRuntimeError::new_err(message)
}

/// `phalanx.WorkerDied`, with the name of the function that it was running, where one is known.
pub fn worker_died(py: Python<'_>, died: &WorkerDied, task: Option<&str>) -> PyErr {
    let more = PyDict::new(py);
    let filled = more.set_item("task", task).and_then(|()| more.set_item("doing", died.doing));
    match filled {
        Ok(()) => {
            let exitcode = died.exit.map(phalanx::process::Exit::code);
            new_exception(py, "WorkerDied", (died.pid, exitcode), &more)
        }
        Err(error) => error,
    }
}

/// `multiprocessing.TimeoutError`.
pub fn timeout_error(py: Python<'_>) -> PyErr {
    py.import("multiprocessing.context")
        .and_then(|module| module.getattr("TimeoutError")?.call0())
        .map_or_else(|error| error, PyErr::from_value)
}

fn new_exception<'py>(
    py: Python<'py>,
    class: &str,
    args: impl pyo3::call::PyCallArgs<'py>,
    more: &Bound<'py, PyDict>,
) -> PyErr {
    py.import("phalanx.exceptions")
        .and_then(|module| module.getattr(class)?.call(args, Some(more)))
        .map_or_else(|error| error, PyErr::from_value)
}
