//! Pools: the glue between `phalanx::pool` and `phalanx._phalanx`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use phalanx::pool::{Core, Errand, Seating as EngineSeating};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::errors::raise;
use crate::function::{Functions, shape};
use crate::handle::{Cut, Extras, Handle};
use crate::process::Child;
use crate::stream::{Feeder, Manner, Stream};
use crate::wait::interruptible;
use crate::worker::Worker;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Pool>()?;
    m.add_class::<Seating>()?;
    m.add_class::<Worker>()?;
    m.add_class::<Handle>()?;
    m.add_class::<Stream>()?;
    m.add_class::<Feeder>()
}

/// A seat on offer: what a new worker is started with.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct Seating {
    #[pyo3(get)]
    seat: usize,
    #[pyo3(get)]
    memory: RawFd,
    #[pyo3(get)]
    event: RawFd,
    #[pyo3(get)]
    lifeline: RawFd,
    offer: Mutex<Option<EngineSeating>>,
}

/// The engine's part of a pool.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct Pool {
    core: Arc<Core>,
    functions: Functions,
}

#[pymethods]
impl Pool {
    #[new]
    fn new(py: Python<'_>, workers: usize) -> PyResult<Self> {
        let core = Core::new(workers).map_err(|e| raise(py, &e))?;
        Ok(Self { core: Arc::new(core), functions: Functions::new(py)? })
    }

    /// Offers a seat that is empty, unless the pool has ended.
    fn prepare(&self, py: Python<'_>, seat: usize) -> PyResult<Option<Seating>> {
        let Some(offer) = self.core.prepare(seat).map_err(|e| raise(py, &e))? else {
            return Ok(None);
        };
        let (memory, event) = self.core.descriptors();
        Ok(Some(Seating {
            seat,
            memory: memory.as_raw_fd(),
            event: event.as_raw_fd(),
            lifeline: offer.lifeline.as_raw_fd(),
            offer: Mutex::new(Some(offer)),
        }))
    }

    /// Says that a process has been started in the seat.
    fn seat(&self, py: Python<'_>, seating: &Seating, child: &Child) -> PyResult<()> {
        let offer = seating.offer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let offer = offer.ok_or_else(|| PyValueError::new_err("this seat was taken"))?;
        self.core.seat(offer, child.inner()?).map_err(|e| raise(py, &e))
    }

    /// Waits for something that needs Python: `("staff", seat)` or `("done", token)`; `None` when
    /// the pool has ended.
    fn errand(&self, py: Python<'_>) -> PyResult<Option<(&'static str, u64)>> {
        // In a thread of its own, which sees no signals.
        let errand = py.detach(|| self.core.errand(None)).map_err(|e| raise(py, &e))?;
        Ok(errand.map(|errand| match errand {
            Errand::Staff(seat) => ("staff", seat as u64),
            Errand::Done(token) => ("done", token),
        }))
    }

    fn apply(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: &Bound<'_, PyDict>,
        extras: Extras,
    ) -> PyResult<Handle> {
        let function = self.functions.get(py, function)?;
        if kwargs.is_empty() {
            return Handle::apply(py, self.core.clone(), function, shape::ARGS, args, extras);
        }
        let both = (args, kwargs).into_pyobject(py)?;
        Handle::apply(py, self.core.clone(), function, shape::CALL, &both, extras)
    }

    #[pyo3(signature = (function, items, chunk, extras, *, star, wait))]
    #[allow(clippy::too_many_arguments)] // what Python's map_async has
    fn map(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        items: &Bound<'_, PyAny>,
        chunk: Option<usize>,
        extras: Extras,
        star: bool,
        wait: bool,
    ) -> PyResult<Handle> {
        let function = self.functions.get(py, function)?;
        Handle::map(py, self.core.clone(), function, items, Cut { chunk, star, wait }, extras)
    }

    #[pyo3(signature = (function, input, chunk, pool, *, prompt, sized, buffer, ordered))]
    #[allow(clippy::too_many_arguments)] // what Python's imap has
    fn imap(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        input: &Bound<'_, PyAny>,
        chunk: usize,
        pool: Py<PyAny>,
        prompt: bool,
        sized: bool,
        buffer: Option<usize>,
        ordered: bool,
    ) -> PyResult<Stream> {
        let function = self.functions.get(py, function)?;
        let input = prompt.then_some(input);
        let manner = Manner { sized, chunk, buffer, ordered };
        Stream::new(py, &self.core, pool, function, input, manner)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.core.close().map_err(|e| raise(py, &e))
    }

    fn terminate(&self, py: Python<'_>, why: &str) -> PyResult<()> {
        self.core.terminate(why).map_err(|e| raise(py, &e))
    }

    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        self.core.kill().map_err(|e| raise(py, &e))
    }

    /// Waits until no worker is left. False: `timeout` seconds have passed.
    #[pyo3(signature = (timeout=None))]
    fn wait_ended(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let ended = interruptible(py, timeout, |slice| {
            Ok(self.core.wait_ended(Some(slice))?.then_some(()))
        })?;
        Ok(ended.is_some())
    }
}
