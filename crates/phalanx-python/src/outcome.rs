//! From an outcome to a Python value or exception.

use phalanx::pool::Outcome;
use pyo3::prelude::*;

use crate::errors::{raise, task_ended, worker_died};
use crate::function::Function;
use crate::pickle::{carry, loads_parcel};

/// What the task returned, or what it raised, or why it is lost.
pub fn value<'py>(
    py: Python<'py>,
    outcome: &Outcome,
    function: &Function,
) -> PyResult<Bound<'py, PyAny>> {
    match outcome {
        Outcome::Returned(result) => loads_parcel(py, result),
        Outcome::Failed(envelope) => {
            let error = carry(py, "revive", (loads_parcel(py, envelope)?,))?;
            Err(PyErr::from_value(error))
        }
        Outcome::Lost(died) => Err(worker_died(py, died, function.name(py).as_deref())),
        Outcome::Broken(why) => Err(raise(py, why)),
        Outcome::Ended(ended) => Err(task_ended(py, ended, function.name(py).as_deref())),
    }
}
