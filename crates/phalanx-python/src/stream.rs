//! `imap`: results while the input is still being read.
//!
//! Two ends share a [`Stream`]. The consumer takes results; the feeder puts items. Where the
//! input cannot block (a list, a range) the consumer feeds too, whenever it comes for a result;
//! where it may (a generator), a thread of its own reads it, and sleeps while enough is under way.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use phalanx::pool::{Core, Group, Hold, Next, Outcome, Task, Until, Window};
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyStopIteration, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList};

use crate::errors::{raise, timeout_error};
use crate::function::{Function, shape};
use crate::outcome::value;
use crate::wait::interruptible;

struct Shared {
    core: Arc<Core>,
    group: Arc<Group>,
    function: Function,
    chunk: usize,
    /// The input has a length, so it has an end.
    sized: bool,
    window: Window,
    progress: Mutex<Progress>,
    /// The feeder may go on, or must stop.
    changed: Condvar,
}

/// How an input is read and its results are given.
pub struct Manner {
    /// It has a length, so it has an end.
    pub sized: bool,
    /// Items a task.
    pub chunk: usize,
    /// Items ahead of the results; as many as is best by default.
    pub buffer: Option<usize>,
    /// Results in the order of the items.
    pub ordered: bool,
}

#[derive(Default)]
struct Progress {
    /// Until the input has ended, or nobody wants the rest of it.
    hold: Option<Hold>,
    submitted: u64,
    taken: u64,
    /// Bytes of all arguments that were submitted.
    bytes: usize,
    /// The bounds do not hold any more: all is to be read.
    lifted: bool,
    /// A consumer has asked for a result at least once.
    advanced: bool,
    /// What reading the input raised.
    error: Option<PyErr>,
    /// Reading stopped before the end.
    stopped: bool,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tasks may be submitted now.
    fn room(&self, progress: &Progress) -> usize {
        if progress.lifted {
            return usize::MAX;
        }
        let (arrived, spent) = self.group.arrived();
        let pace = (arrived > 0).then(|| spent / u32::try_from(arrived).unwrap_or(u32::MAX));
        let bytes = progress.bytes / (progress.submitted.max(1) as usize);
        let ahead = (progress.submitted - progress.taken) as usize;
        self.window.tasks(pace, bytes).saturating_sub(ahead)
    }

    fn task(&self, py: Python<'_>, items: &Bound<'_, PyList>, first: u64) -> PyResult<Task> {
        let what = format!("iterable[{}]", first as usize * self.chunk);
        let store = self.core.store();
        match self.chunk {
            1 => self.function.task(py, store, shape::ONE, &items.get_item(0)?, &what, None),
            _ => self.function.task(py, store, shape::EACH, items, &what, None),
        }
    }

    /// Submits a chunk of items. False: nobody wants it any more.
    fn put(&self, py: Python<'_>, items: &Bound<'_, PyList>) -> PyResult<bool> {
        // One feeder: the number is ours until we submit.
        let index = self.progress().submitted;
        let task = self.task(py, items, index)?;
        let mut progress = self.progress();
        let bytes = task.size();
        let Some(hold) = &progress.hold else { return Ok(false) };
        hold.submit(&self.group, index, task).map_err(|e| raise(py, &e))?;
        progress.submitted += 1;
        progress.bytes += bytes;
        Ok(true)
    }

    /// The input has ended, with an exception or without.
    fn end(&self, error: Option<PyErr>, stopped: bool) {
        let mut progress = self.progress();
        let hold = progress.hold.take();
        if hold.is_some() {
            progress.error = error;
            progress.stopped = stopped;
            self.group.expect(progress.submitted);
        }
        self.changed.notify_all();
        drop(progress);
        drop(hold);
    }
}

/// The consumer's end: an iterator over results.
#[pyclass(frozen, weakref, name = "IMapIterator", module = "phalanx.pool")]
pub struct Stream {
    /// The pool, which must not be collected while its results are awaited.
    _pool: Py<PyAny>,
    shared: Arc<Shared>,
    /// The input, if it is read by whoever consumes.
    input: Mutex<Option<Py<PyIterator>>>,
    /// Results of a chunk that were not handed out yet, the next one last.
    rest: Mutex<Vec<Py<PyAny>>>,
}

impl Stream {
    pub fn new(
        py: Python<'_>,
        core: &Arc<Core>,
        pool: Py<PyAny>,
        function: Function,
        input: Option<&Bound<'_, PyAny>>,
        Manner { sized, chunk, buffer, ordered }: Manner,
    ) -> PyResult<Self> {
        let hold = core.hold().map_err(|e| raise(py, &e))?;
        let workers = core.seats().map_err(|e| raise(py, &e))?;
        let group = if ordered { Group::in_order() } else { Group::as_completed() };
        let shared = Shared {
            core: core.clone(),
            group: Arc::new(group),
            function,
            chunk,
            sized,
            window: Window::new(workers, buffer.map(|items| items / chunk)),
            progress: Mutex::new(Progress { hold: Some(hold), ..Progress::default() }),
            changed: Condvar::new(),
        };
        let input = input.map(|input| Ok::<_, PyErr>(input.try_iter()?.unbind())).transpose()?;
        let stream = Self {
            _pool: pool,
            shared: Arc::new(shared),
            input: Mutex::new(input),
            rest: Mutex::default(),
        };
        stream.feed(py)?;
        Ok(stream)
    }

    /// Reads the input as far as there is room, if reading is the consumer's.
    fn feed(&self, py: Python<'_>) -> PyResult<()> {
        // Pickling may let another consumer in, which then finds that we are at it.
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(input) = input else { return Ok(()) };
        let fed = self.feed_from(input.bind(py).clone());
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = Some(input);
        fed
    }

    fn feed_from(&self, mut input: Bound<'_, PyIterator>) -> PyResult<()> {
        let shared = &self.shared;
        let room = {
            let progress = shared.progress();
            if progress.hold.is_none() { 0 } else { shared.room(&progress) }
        };
        for _ in 0..room {
            let items = PyList::empty(input.py());
            let mut failed = None;
            while items.len() < shared.chunk && failed.is_none() {
                match input.next() {
                    Some(Ok(item)) => items.append(item)?,
                    Some(Err(error)) => failed = Some(error),
                    None => break,
                }
            }
            // As in CPython, a chunk in which the input raised is not sent.
            let wanted = failed.is_some() || items.is_empty() || shared.put(input.py(), &items)?;
            if failed.is_some() || items.len() < shared.chunk {
                shared.end(failed, false);
                break;
            }
            if !wanted {
                break;
            }
        }
        Ok(())
    }

    /// Takes the next outcome and hands out its (first) result.
    fn advance<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if let Some(result) = self.rest().pop() {
            return Ok(Some(result.into_bound(py)));
        }
        self.shared.progress().advanced = true;
        self.feed(py)?;
        let shared = &self.shared;
        let next = match shared.group.next() {
            Next::Pending => interruptible(py, timeout, |slice| {
                shared.core.wait(&shared.group, Until::Next, Some(slice))?;
                Ok(match shared.group.next() {
                    Next::Pending => None,
                    next => Some(next),
                })
            })?,
            next => Some(next),
        };
        match next {
            Some(Next::Outcome(_, outcome)) => {
                shared.progress().taken += 1;
                shared.changed.notify_all();
                self.unpack(py, &outcome).map(Some)
            }
            Some(_) => Err(self.exhausted()),
            None => Ok(None),
        }
    }

    fn unpack<'py>(&self, py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyAny>> {
        let result = value(py, outcome, &self.shared.function)?;
        if self.shared.chunk == 1 {
            return Ok(result);
        }
        let mut results: Vec<_> =
            result.cast::<PyList>()?.iter().rev().map(Bound::unbind).collect();
        let first = results.pop().map(|first| first.into_bound(py));
        *self.rest() = results;
        first.ok_or_else(|| PyStopIteration::new_err(()))
    }

    fn rest(&self) -> MutexGuard<'_, Vec<Py<PyAny>>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are no more results: because the input ended, raised, or was not read to its end.
    fn exhausted(&self) -> PyErr {
        let mut progress = self.shared.progress();
        if let Some(error) = progress.error.take() {
            return error;
        }
        if progress.stopped {
            let read = progress.submitted as usize * self.shared.chunk;
            return PyValueError::new_err(format!(
                "the pool was joined when about {read} items of this input had been read"
            ));
        }
        PyStopIteration::new_err(())
    }
}

#[pymethods]
impl Stream {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self._pool)?;
        if let Ok(input) = self.input.try_lock() {
            visit.call(&*input)?;
        }
        if let Ok(rest) = self.rest.try_lock() {
            rest.iter().try_for_each(|result| visit.call(result))?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let rest = std::mem::take(&mut *self.rest());
        drop((input, rest));
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.advance(py, None)
    }

    /// The next result, or `multiprocessing.TimeoutError` after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn next<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.advance(py, timeout)?.ok_or_else(|| timeout_error(py))
    }

    /// The feeder's end.
    fn feeder(&self) -> Feeder {
        Feeder(self.shared.clone())
    }

    /// Is the input being read still?
    fn reading(&self) -> bool {
        self.shared.progress().hold.is_some()
    }

    /// Reads the whole input, whatever the bounds, if it is known to end or nobody has begun to
    /// take results; else returns false.
    fn drain(&self, py: Python<'_>) -> PyResult<bool> {
        {
            let mut progress = self.shared.progress();
            if progress.advanced && !self.shared.sized {
                return Ok(false);
            }
            progress.lifted = true;
        }
        self.shared.changed.notify_all();
        self.feed(py)?;
        Ok(true)
    }

    /// Reads no more of the input.
    fn stop(&self) {
        self.shared.end(None, true);
    }

    /// Reads no more of the input; what was read ahead is nobody's loss.
    fn abandon(&self) {
        self.stop();
        self.shared.group.abandon();
    }

    /// Reads no more of the input, and ends the tasks that have not ended, as `AsyncResult.cancel`.
    /// False: all had ended.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        self.abandon();
        let count = py.detach(|| self.shared.core.cancel(Some(&self.shared.group)));
        Ok(count.map_err(|e| raise(py, &e))? > 0)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// The other end of a [`Stream`], for a thread that reads an input which may block.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Feeder(Arc<Shared>);

#[pymethods]
impl Feeder {
    /// Submits a list of items, first waiting for room. False: nobody wants it any more.
    fn put(&self, py: Python<'_>, items: &Bound<'_, PyList>) -> PyResult<bool> {
        let shared = &self.0;
        interruptible(py, None, |slice| {
            let mut progress = shared.progress();
            while progress.hold.is_some() && shared.room(&progress) == 0 {
                let left = slice.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                let wait = shared.changed.wait_timeout(progress, left);
                progress = wait.unwrap_or_else(PoisonError::into_inner).0;
            }
            Ok(Some(()))
        })?;
        shared.put(py, items)
    }

    /// The input has ended, with this exception or with none.
    #[pyo3(signature = (error=None))]
    fn end(&self, error: Option<Bound<'_, PyAny>>) {
        self.0.end(error.map(PyErr::from_value), false);
    }
}
