//! The one place that turns the engine's errors into Python's.

use phalanx::{Ended, Error, SupervisorFailed, Why, WorkerDied};
use pyo3::exceptions::{PyEOFError, PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Which limit an error of the system stands for, and how to raise it; `call` is what failed, where
/// that is known.
#[pyfunction]
#[pyo3(signature = (errno, call=None))]
pub fn hint(errno: i32, call: Option<&str>) -> Option<String> {
    phalanx::error::hint(errno, call)
}

/// The exception for an error.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    if let Some(died) = error.worker_died() {
        return worker_died(py, died, None);
    }
    if let Some(failed) = error.supervisor_failed() {
        return supervisor_failed(py, &message, failed);
    }
    if let Some(ended) = error.ended() {
        return task_ended(py, ended, None);
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
    let earlier: Vec<_> = died
        .earlier
        .iter()
        .map(|died| (died.pid, died.exit.map(phalanx::process::Exit::code)))
        .collect();
    let filled = more
        .set_item("task", task)
        .and_then(|()| more.set_item("doing", died.doing))
        .and_then(|()| more.set_item("earlier", earlier))
        .and_then(|()| more.set_item("stack", &died.stack));
    match filled {
        Ok(()) => {
            let exitcode = died.exit.map(phalanx::process::Exit::code);
            new_exception(py, "WorkerDied", (died.pid, exitcode), &more)
        }
        Err(error) => error,
    }
}

/// `phalanx.TaskTimeout`, `TaskCancelled` or `WorkerMemoryExceeded`, with the name of the function,
/// where one is known.
pub fn task_ended(py: Python<'_>, ended: &Ended, task: Option<&str>) -> PyErr {
    let class = match ended.why {
        Why::Cancelled => "TaskCancelled",
        Why::OverMemory => "WorkerMemoryExceeded",
        Why::TimedOut | Why::NotBegun => "TaskTimeout",
    };
    let more = PyDict::new(py);
    if let Some((used, allowed)) = ended.memory
        && let Err(error) =
            more.set_item("used", used).and_then(|()| more.set_item("allowed", allowed))
    {
        return error;
    }
    let exitcode = ended.exit.map(phalanx::process::Exit::code);
    let limit = ended.limit.map(|limit| limit.as_secs_f64());
    let args = (ended.to_string(), limit, ended.pid, exitcode, task, &ended.stack);
    new_exception(py, class, args, &more)
}

/// `phalanx.SupervisorFailed`, with all deaths.
fn supervisor_failed(py: Python<'_>, message: &str, failed: &SupervisorFailed) -> PyErr {
    let deaths: Vec<_> = failed
        .deaths
        .iter()
        .map(|death| {
            let exitcode = death.exit.map(phalanx::process::Exit::code);
            (&death.child, death.pid, exitcode, &death.trace)
        })
        .collect();
    new_exception(py, "SupervisorFailed", (message, deaths), &PyDict::new(py))
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
