//! From an outcome to a Python value or exception.

use phalanx::pool::Outcome;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{raise, worker_died};
use crate::function::Function;
use crate::pickle::{carry, loads};

/// What the task returned, or what it raised, or why it is lost.
pub fn value<'py>(
    py: Python<'py>,
    outcome: &Outcome,
    function: &Function,
) -> PyResult<Bound<'py, PyAny>> {
    match outcome {
        Outcome::Returned(bytes) => loads(py, bytes),
        Outcome::Failed(bytes) => {
            let error = carry(py, "revive", (PyBytes::new(py, bytes),))?;
            Err(PyErr::from_value(error))
        }
        Outcome::Lost(died) => Err(worker_died(py, died, function.name(py).as_deref())),
        Outcome::Broken(why) => Err(raise(py, why)),
    }
}
