//! What is agreed upon for a task, and what becomes of one that is to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use phalanx::Ended;
use phalanx::pool::{Ear, Limits, Terms};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::task_ended;

/// Terms of a call: timeout and start timeout in seconds, retries, back-off in seconds, whether a
/// failure may be reason for a retry.
pub type Asked = (Option<f64>, Option<f64>, Option<u32>, Option<f64>, Option<bool>);

/// Limits of a pool: bytes of memory, soft and hard, a worker's seconds, deaths and their seconds.
pub type Bounds = (Option<u64>, Option<u64>, Option<f64>, Option<usize>, f64);

/// What a pool's workers are held to.
pub fn limits((soft_memory, hard_memory, life, intensity, period): Bounds) -> PyResult<Limits> {
    let lifetime = life.map(|seconds| duration("lifetime", seconds)).transpose()?;
    let period = duration("period", period)?;
    Ok(Limits { soft_memory, hard_memory, lifetime, intensity, period })
}

/// What a call asks for, and of the rest what its pool does.
pub fn terms(
    pool: Terms,
    (timeout, start_timeout, retries, backoff, retry_failed): Asked,
) -> PyResult<Terms> {
    let limit = |name: &str, seconds: Option<f64>, default: Option<Duration>| match seconds {
        None => Ok(default),
        Some(seconds) if seconds == f64::INFINITY => Ok(None),
        Some(seconds) if seconds > 0.0 => Ok(Duration::try_from_secs_f64(seconds).ok()),
        Some(seconds) => {
            let why = format!("{name} must be a number of seconds above 0, not {seconds}");
            Err(PyValueError::new_err(why))
        }
    };
    Ok(Terms {
        timeout: limit("timeout", timeout, pool.timeout)?,
        start_timeout: limit("start_timeout", start_timeout, pool.start_timeout)?,
        retries: retries.unwrap_or(pool.retries),
        backoff: backoff.map_or(Ok(pool.backoff), |it| duration("backoff", it))?,
        retry_failed: retry_failed.unwrap_or(pool.retry_failed),
        ..pool
    })
}

/// A number of seconds, which may be 0.
pub fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        let why = format!("{name} must be a number of seconds, 0 or more, not {seconds}");
        PyValueError::new_err(why)
    })
}

/// What hears, in a worker, that its task is to end.
static EAR: Mutex<Option<Ear>> = Mutex::new(None);

/// This process is a worker from now on.
pub fn listen(ear: Ear) {
    *EAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(ear);
}

/// In a worker: the exception that is being raised is worth another try, if there is one.
#[pyfunction]
pub fn worth_another_try() {
    WORTH.store(true, Ordering::Relaxed);
}

/// Was that said since this was asked last?
pub fn was_worth() -> bool {
    WORTH.swap(false, Ordering::Relaxed)
}

static WORTH: AtomicBool = AtomicBool::new(false);

/// The signal that wants a worker's stack at once.
#[pyfunction]
pub fn trace_signal() -> i32 {
    phalanx::pool::trace_signal()
}

/// For the handler of the signal that says so: raises if the task that runs here is to end.
#[pyfunction]
pub fn heed(py: Python<'_>) -> PyResult<()> {
    // The main thread's alone, as handlers are; it holds this lock nowhere else.
    let ear = EAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(why) = ear.and_then(|ear| ear.hear()) else { return Ok(()) };
    Err(task_ended(py, &Ended::here(why), None))
}
