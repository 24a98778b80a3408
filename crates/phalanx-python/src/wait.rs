//! The one place that detaches from the interpreter and lets Python see its signals.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::raise;

/// A signal that arrives in another thread than the waiting one interrupts no system call, so
/// nobody sleeps longer than this before Python has a look.
const SLICE: Duration = Duration::from_millis(100);

/// Waits in slices, each until the deadline that it is given, until there is a result or
/// `timeout` (seconds; `None`: for ever) is over.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    timeout: Option<f64>,
    wait: impl FnMut(Instant) -> phalanx::Result<Option<T>> + Send,
) -> PyResult<Option<T>> {
    interruptible_until(py, deadline(timeout)?, wait)
}

/// As [`interruptible`], until a moment.
pub fn interruptible_until<T: Send>(
    py: Python<'_>,
    end: Option<Instant>,
    mut wait: impl FnMut(Instant) -> phalanx::Result<Option<T>> + Send,
) -> PyResult<Option<T>> {
    loop {
        let slice = Instant::now() + SLICE;
        let slice = end.map_or(slice, |end| end.min(slice));
        if let Some(result) = py.detach(|| wait(slice)).map_err(|error| raise(py, &error))? {
            return Ok(Some(result));
        }
        py.check_signals()?;
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(None);
        }
    }
}

/// Python's timeouts: negative means none left, infinite or absurdly long means for ever.
pub fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    match timeout {
        None => Ok(None),
        Some(seconds) if seconds.is_nan() => Err(PyValueError::new_err("timeout is not a number")),
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds.max(0.0))
            .ok()
            .and_then(|timeout| Instant::now().checked_add(timeout))),
    }
}
