//! Lines: the glue between `phalanx::channel::Duplex` and `phalanx._phalanx`.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use phalanx::Error;
use phalanx::channel::{Duplex, Hangup, Outgoing};
use pyo3::exceptions::{PyEOFError, PyOSError};
use pyo3::prelude::*;

use crate::errors::raise;
use crate::pickle::{dumps, loads};
use crate::wait::interruptible;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Line>()
}

/// The server's threads see no signals: nothing but the other side ends their waits.
const LONG: Duration = Duration::from_secs(3600);

/// Objects to and from a process that a socket leads to, through shared memory.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct Line {
    /// `None` once closed.
    engine: Mutex<Option<Duplex>>,
    hangup: Hangup,
}

type Held<'a> = MutexGuard<'a, Option<Duplex>>;

impl Line {
    fn new(engine: Duplex) -> Self {
        Self { hangup: engine.hangup(), engine: Mutex::new(Some(engine)) }
    }

    /// The line, unless somebody is using it.
    fn hold(&self) -> Option<Held<'_>> {
        match self.engine.try_lock() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(held)) => Some(PoisonError::into_inner(held)),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn hold_now(&self) -> PyResult<Held<'_>> {
        self.hold().ok_or_else(|| PyOSError::new_err("this line is in use by another thread"))
    }
}

fn open(held: &mut Option<Duplex>) -> PyResult<&mut Duplex> {
    held.as_mut().ok_or_else(|| PyOSError::new_err("this line is closed"))
}

fn ended(py: Python<'_>, error: &Error) -> PyErr {
    if error.is_closed() { PyEOFError::new_err(error.to_string()) } else { raise(py, error) }
}

/// Sends without detaching where there is room, as there nearly always is.
fn send(py: Python<'_>, line: &mut Duplex, bytes: &[u8]) -> PyResult<()> {
    let mut message = Outgoing::new(bytes);
    if line.try_send(&mut message).map_err(|e| ended(py, &e))? {
        return Ok(());
    }
    wait(py, |slice| line.send(&mut message, slice))
}

/// Waits for ever, and lets Python see its signals.
fn wait<T: Send>(
    py: Python<'_>,
    mut wait: impl FnMut(Instant) -> phalanx::Result<Option<T>> + Send,
) -> PyResult<T> {
    // An end that is no timeout: the engine's error is told apart here, not by `raise`.
    let waited = interruptible(py, None, |slice| match wait(slice) {
        Ok(Some(result)) => Ok(Some(Ok(result))),
        Ok(None) => Ok(None),
        Err(error) => Ok(Some(Err(error))),
    })?;
    match waited {
        Some(result) => result.map_err(|error| ended(py, &error)),
        None => Err(PyEOFError::new_err("the wait ended without a result")),
    }
}

/// Waits for ever, with Python's signals put off until the end of the wait.
fn wait_shielded<T: Send>(
    py: Python<'_>,
    mut wait: impl FnMut() -> phalanx::Result<Option<T>> + Send,
) -> PyResult<T> {
    let waited = py.detach(|| {
        loop {
            match wait() {
                Ok(None) => {}
                Ok(Some(result)) => return Ok(result),
                Err(error) => return Err(error),
            }
        }
    });
    waited.map_err(|error| ended(py, &error))
}

#[pymethods]
impl Line {
    #[staticmethod]
    fn offer(py: Python<'_>, fd: RawFd) -> PyResult<Self> {
        py.detach(|| Duplex::offer(fd)).map(Self::new).map_err(|e| ended(py, &e))
    }

    #[staticmethod]
    fn accept(py: Python<'_>, fd: RawFd) -> PyResult<Self> {
        py.detach(|| Duplex::accept(fd)).map(Self::new).map_err(|e| ended(py, &e))
    }

    #[pyo3(signature = (request, *, shielded=false))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        request: &Bound<'py, PyAny>,
        shielded: bool,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let bytes = dumps(py, request)?;
        let Some(mut held) = self.hold() else { return Ok(None) };
        let line = open(&mut held)?;
        let sent = send(py, line, &bytes);
        let reply = sent.and_then(|()| match shielded {
            false => wait(py, |slice| line.receive(slice)),
            true => wait_shielded(py, || line.receive(Instant::now() + LONG)),
        });
        if reply.is_err() {
            // The answer may come yet, and is not to be taken for that of the next request.
            drop(held.take());
        }
        drop(held);
        loads(py, &reply?).map(Some)
    }

    fn send(&self, py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = dumps(py, object)?;
        let mut held = self.hold_now()?;
        let sent = send(py, open(&mut held)?, &bytes);
        if sent.is_err() {
            drop(held.take());
        }
        sent
    }

    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let mut held = self.hold_now()?;
        let line = open(&mut held)?;
        let received = wait_shielded(py, || line.receive(Instant::now() + LONG))?;
        drop(held);
        loads(py, &received)
    }

    fn close(&self) {
        match self.hold() {
            Some(mut held) => drop(held.take()),
            None => self.hangup.hang_up(),
        }
    }

    #[getter]
    fn closed(&self) -> bool {
        self.hold().is_some_and(|held| held.as_ref().is_none_or(|line| !line.is_ours()))
    }

    fn fileno(&self) -> PyResult<RawFd> {
        self.hangup.fd().ok_or_else(|| PyOSError::new_err("this line is closed"))
    }
}
