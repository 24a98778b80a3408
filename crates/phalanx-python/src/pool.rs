//! Pools: the glue between `phalanx::pool` and `phalanx._phalanx`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use phalanx::pool::{self as engine, Core, Errand, Seating as EngineSeating, Terms, WorkerStats};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::buffer::{Piece, Snapshot};
use crate::errors::raise;
use crate::function::{Function, Functions, shape};
use crate::futures::Futures;
use crate::handle::{Announced, Cut, Handle};
use crate::pickle::dumps_loose;
use crate::process::Child;
use crate::stream::{Feeder, Manner, Stream};
use crate::terms::{Asked, Bounds, duration, heed, limits, terms, trace_signal, worth_another_try};
use crate::wait::interruptible;
use crate::worker::{Worker, loan, say};

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Pool>()?;
    m.add_class::<Seating>()?;
    m.add_class::<Worker>()?;
    m.add_class::<Piece>()?;
    m.add_class::<Snapshot>()?;
    m.add_class::<Handle>()?;
    m.add_class::<Stream>()?;
    m.add_class::<Futures>()?;
    m.add_class::<Feeder>()?;
    m.add_function(wrap_pyfunction!(default_processes, m)?)?;
    m.add_function(wrap_pyfunction!(snapshot, m)?)?;
    m.add_function(wrap_pyfunction!(loan, m)?)?;
    m.add_function(wrap_pyfunction!(say, m)?)?;
    m.add_function(wrap_pyfunction!(trace_signal, m)?)?;
    m.add_function(wrap_pyfunction!(heed, m)?)?;
    m.add_function(wrap_pyfunction!(worth_another_try, m)?)
}

/// How many workers a pool has that was not told.
#[pyfunction]
fn default_processes() -> usize {
    engine::default_processes()
}

/// A copy of an object: its pickle, and the large buffers of that.
#[pyfunction]
fn snapshot(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<(Snapshot, Vec<Snapshot>)> {
    dumps_loose(py, object)?.snapshot(py)
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
    #[pyo3(get)]
    tree: bool,
    #[pyo3(get)]
    report: RawFd,
    offer: Mutex<Option<EngineSeating>>,
}

/// The engine's part of a pool.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Pool {
    core: Arc<Core>,
    functions: Functions,
}

/// What `Pool.errand` has.
type Errands<'py> = (&'static str, u64, Option<Bound<'py, PyBytes>>);

/// What `Pool.stats` has of a worker.
type Stats = (Option<u32>, u64, u64, u64, f64, Option<f64>, usize, Option<u64>, Option<f64>);

impl Pool {
    pub fn core(&self) -> Arc<Core> {
        self.core.clone()
    }

    fn function(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        asked: Option<Asked>,
    ) -> PyResult<Function> {
        let own = self.core.terms();
        self.functions.get(py, function, asked.map_or(Ok(own), |asked| terms(own, asked))?)
    }
}

#[pymethods]
impl Pool {
    #[new]
    #[pyo3(signature = (
        workers,
        asked=(None, None, None, None, None),
        grace=None,
        bounds=(None, None, None, None, 5.0),
    ))]
    fn new(
        py: Python<'_>,
        workers: &Bound<'_, PyAny>,
        asked: Asked,
        grace: Option<f64>,
        bounds: Bounds,
    ) -> PyResult<Self> {
        let workers = workers.extract().map_err(|error: PyErr| {
            let large = error.is_instance_of::<PyOverflowError>(py);
            let told = || PyValueError::new_err(format!("{workers} workers are too many"));
            if large { told() } else { error }
        })?;
        let mut terms = terms(Terms::default(), asked)?;
        terms.grace = grace.map_or(Ok(terms.grace), |it| duration("grace", it))?;
        let core = Core::new(workers, terms, limits(bounds)?).map_err(|e| raise(py, &e))?;
        Ok(Self { core: Arc::new(core), functions: Functions::new(py)? })
    }

    /// Offers a seat that is empty, unless the pool has ended.
    fn prepare(&self, py: Python<'_>, seat: usize, tree: bool) -> PyResult<Option<Seating>> {
        let Some(offer) = self.core.prepare(seat, tree).map_err(|e| raise(py, &e))? else {
            return Ok(None);
        };
        let (memory, event) = self.core.descriptors();
        Ok(Some(Seating {
            seat,
            memory: memory.as_raw_fd(),
            event: event.as_raw_fd(),
            lifeline: offer.lifeline.as_raw_fd(),
            tree,
            report: offer.report.as_raw_fd(),
            offer: Mutex::new(Some(offer)),
        }))
    }

    /// Says that a process has been started in the seat.
    fn seat(&self, py: Python<'_>, seating: &Seating, child: &Child) -> PyResult<()> {
        let offer = seating.offer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let offer = offer.ok_or_else(|| PyValueError::new_err("this seat was taken"))?;
        self.core.seat(offer, child.inner()?).map_err(|e| raise(py, &e))
    }

    /// Says that no process could be started in the seat.
    fn refused(&self, py: Python<'_>, seat: usize, why: &str, errno: Option<i32>) -> PyResult<()> {
        self.core.refused(seat, why, errno).map_err(|e| raise(py, &e))
    }

    /// Waits for something that needs Python: `("staff", seat, None)`, `("done", token, None)`, or
    /// `("note", task, bytes)`; `None` when the pool has ended.
    fn errand<'py>(&self, py: Python<'py>) -> PyResult<Option<Errands<'py>>> {
        // In a thread of its own, which sees no signals.
        let errand = py.detach(|| self.core.errand(None)).map_err(|e| raise(py, &e))?;
        Ok(errand.map(|errand| match errand {
            Errand::Staff(seat) => ("staff", seat as u64, None),
            Errand::Done(token) => ("done", token, None),
            Errand::Note(task, note) => ("note", task, Some(PyBytes::new(py, &note))),
        }))
    }

    #[pyo3(signature = (function, args, kwargs, pool, asked=None, callbacks=None))]
    #[allow(clippy::too_many_arguments)] // what Python's apply_async has
    fn apply(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: &Bound<'_, PyDict>,
        pool: Py<PyAny>,
        asked: Option<Asked>,
        callbacks: Option<Announced>,
    ) -> PyResult<Handle> {
        let function = self.function(py, function, asked)?;
        let extras = (pool, callbacks);
        if kwargs.is_empty() {
            return Handle::apply(py, self.core.clone(), function, shape::ARGS, args, extras);
        }
        let both = (args, kwargs).into_pyobject(py)?;
        Handle::apply(py, self.core.clone(), function, shape::CALL, &both, extras)
    }

    #[pyo3(signature = (function, items, chunk, pool, asked=None, callbacks=None, *, star, wait))]
    #[allow(clippy::too_many_arguments)] // what Python's map_async has
    fn map(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        items: &Bound<'_, PyAny>,
        chunk: Option<usize>,
        pool: Py<PyAny>,
        asked: Option<Asked>,
        callbacks: Option<Announced>,
        star: bool,
        wait: bool,
    ) -> PyResult<Handle> {
        let function = self.function(py, function, asked)?;
        let cut = Cut { chunk, star, wait };
        Handle::map(py, self.core.clone(), function, items, cut, (pool, callbacks))
    }

    #[pyo3(signature = (function, input, chunk, pool, asked=None, *, prompt, sized, buffer, ordered))]
    #[allow(clippy::too_many_arguments)] // what Python's imap has
    fn imap(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        input: &Bound<'_, PyAny>,
        chunk: usize,
        pool: Py<PyAny>,
        asked: Option<Asked>,
        prompt: bool,
        sized: bool,
        buffer: Option<usize>,
        ordered: bool,
    ) -> PyResult<Stream> {
        let function = self.function(py, function, asked)?;
        let input = prompt.then_some(input);
        let manner = Manner { sized, chunk, buffer, ordered };
        Stream::new(py, &self.core, pool, function, input, manner)
    }

    /// Ends all tasks: those that have not begun vanish, others are ended. Says how many there were.
    fn cancel_all(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| self.core.cancel(None)).map_err(|e| raise(py, &e))
    }

    /// Calls that have not ended, without those that have callbacks; tasks that no worker was given.
    fn waiting(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        let calls = self.core.unannounced().map_err(|e| raise(py, &e))?;
        Ok((calls, self.core.backlog().map_err(|e| raise(py, &e))?))
    }

    /// For each worker: its process, how many there were in its place, tasks that returned and that
    /// failed, seconds that these took, seconds that it has been at a task, tasks that wait in it, and
    /// bytes of memory, seconds that its start took.
    fn stats(&self, py: Python<'_>) -> PyResult<Vec<Stats>> {
        let stats = self.core.stats().map_err(|e| raise(py, &e))?;
        let each = stats.into_iter().map(|it| {
            let (busy, running) = (it.busy.as_secs_f64(), it.running.map(|it| it.as_secs_f64()));
            let WorkerStats { pid, started, returned, failed, waiting, memory, startup, .. } = it;
            let startup = startup.map(|it| it.as_secs_f64());
            (pid, started, returned, failed, busy, running, waiting, memory, startup)
        });
        Ok(each.collect())
    }

    /// What the workers are doing that can say so within `timeout` seconds: process and stack.
    fn stacks(&self, py: Python<'_>, timeout: f64) -> PyResult<Vec<(u32, String)>> {
        let within = duration("timeout", timeout)?;
        py.detach(|| self.core.stacks(within)).map_err(|e| raise(py, &e))
    }

    /// Room for `len` bytes of arguments; `None` if they are too few, or there is none.
    fn loan(&self, py: Python<'_>, len: usize) -> PyResult<Option<Piece>> {
        self.core.check().map_err(|e| raise(py, &e))?;
        Ok(self.core.store().loan(len).map(Piece::lent))
    }

    /// Why it has ended before its time, if it has, and was not told to: in words, since an exception
    /// cannot be made while the interpreter ends.
    fn failure(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let broken = self.core.broken().map_err(|e| raise(py, &e))?;
        Ok(broken.filter(|why| !why.is_closed()).map(|why| why.to_string()))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.core.close().map_err(|e| raise(py, &e))
    }

    fn terminate(&self, py: Python<'_>, why: &str) -> PyResult<usize> {
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
