//! The results of one `apply` or `map`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phalanx::pool::{Chunks, Core, Errand, Group, Next, Outcome, Until};
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyBaseException, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyType};

use crate::errors::{raise, timeout_error};
use crate::function::{Function, shape};
use crate::outcome::value;
use crate::repeats::Repeats;
use crate::slice::slice;
use crate::wait::interruptible;

/// The results of one call, which several threads may wait for.
#[pyclass(frozen, name = "AsyncResult", module = "phalanx.pool")]
pub struct Handle {
    core: Arc<Core>,
    /// The pool, which must not be collected while its results are awaited.
    _pool: Py<PyAny>,
    callbacks: Option<Callbacks>,
    group: Arc<Group>,
    function: Function,
    state: Mutex<State>,
}

/// What is called before anybody else sees the end.
struct Callbacks {
    token: u64,
    on_result: Option<Py<PyAny>>,
    on_error: Option<Py<PyAny>>,
    called: Mutex<bool>,
    changed: Condvar,
}

/// What a call's end is announced by: a token, the callback and the error callback if there are any.
pub type Announced = (u64, Option<Py<PyAny>>, Option<Py<PyAny>>);

/// What belongs to a call, apart from the function and its arguments: the pool, and how to announce
/// its end.
pub type Extras = (Py<PyAny>, Option<Announced>);

/// Bytes of arguments that `map` sends ahead of the results.
const AHEAD: usize = 256 << 20;

/// How a sequence becomes tasks.
pub struct Cut {
    /// So many items a piece, or as many as is best.
    pub chunk: Option<usize>,
    /// An item is a sequence of arguments.
    pub star: bool,
    /// The first pieces are measured, and the others cut while these are being run.
    pub wait: bool,
}

struct State {
    /// Where each piece begins and ends in the list of results; `None`: the one result is no
    /// list.
    pieces: Option<Vec<(usize, usize)>>,
    results: Option<Py<PyList>>,
    /// Pieces whose results are in their place.
    placed: usize,
    /// How the call ended, once that is known.
    end: Option<Result<Py<PyAny>, Py<PyBaseException>>>,
    /// What was raised first, told when all have ended.
    raised: Option<Py<PyBaseException>>,
}

impl Handle {
    fn new(
        core: Arc<Core>,
        group: Group,
        function: Function,
        pieces: Option<Vec<(usize, usize)>>,
        (pool, callbacks): Extras,
    ) -> Self {
        let state = State { pieces, results: None, placed: 0, end: None, raised: None };
        let callbacks = callbacks.map(|(token, on_result, on_error)| Callbacks {
            token,
            on_result,
            on_error,
            called: Mutex::new(false),
            changed: Condvar::new(),
        });
        let state = Mutex::new(state);
        Self { core, _pool: pool, callbacks, group: Arc::new(group), function, state }
    }

    /// Submits one call.
    pub fn apply(
        py: Python<'_>,
        core: Arc<Core>,
        function: Function,
        kind: u8,
        payload: &Bound<'_, PyAny>,
        extras: Extras,
    ) -> PyResult<Self> {
        let task = function.task(py, core.store(), kind, payload, "args", None)?;
        let handle = Self::new(core, Group::in_order(), function, None, extras);
        handle.group.expect(1);
        handle.core.submit(&handle.group, 0, task).map_err(|e| raise(py, &e))?;
        Ok(handle)
    }

    /// Submits a call for each item of a sequence (it can be sliced).
    pub fn map(
        py: Python<'_>,
        core: Arc<Core>,
        function: Function,
        items: &Bound<'_, PyAny>,
        Cut { chunk, star, wait }: Cut,
        extras: Extras,
    ) -> PyResult<Self> {
        let len = items.len()?;
        let results =
            PyList::new(py, [py.None()])?.as_sequence().repeat(len)?.cast_into::<PyList>()?;
        let handle = Self::new(core, Group::as_completed(), function, Some(Vec::new()), extras);
        handle.state().results = Some(results.unbind());
        let (mut next, mut repeats, mut bytes) = (0, Repeats::default(), 0);
        // Closed or broken is told even if there is nothing to submit.
        let hold = handle.core.hold().map_err(|e| raise(py, &e))?;
        let mut send = |index: usize, size: usize| -> PyResult<usize> {
            let (task, start) = (handle.piece(py, items, next, size, star, &mut repeats)?, next);
            bytes += task.size();
            if let Some(pieces) = &mut handle.state().pieces {
                pieces.push((start, start + size));
            }
            next += size;
            hold.submit(&handle.group, index as u64, task).map_err(|e| raise(py, &e))?;
            Ok(bytes)
        };
        let workers = handle.core.seats().map_err(|e| raise(py, &e))?;
        let mut count = 0;
        if let (None, true) = (chunk, wait) {
            let mut chunks = Chunks::new(len, workers);
            while chunks.left() > 0 {
                let (done, spent) = handle.group.arrived();
                if count - done as usize >= chunks.ahead() {
                    if !handle.place_next(py, None)? || handle.ended(py).is_some() {
                        break;
                    }
                    continue;
                }
                let items = handle.items_in(done as usize);
                let size = chunks.next((items > 0).then(|| spent / items as u32));
                send(count, size)?;
                count += 1;
            }
        } else {
            let size = chunk.unwrap_or_else(|| Chunks::blind(len, workers));
            'all: for start in (0..len).step_by(size) {
                let bytes = send(count, size.min(len - start))?;
                count += 1;
                // So many as take that much memory are sent ahead of their results, at least two to
                // a worker.
                let ahead = (AHEAD / (bytes / count).max(1)).max(2 * workers);
                while wait && count - handle.group.arrived().0 as usize > ahead {
                    if !handle.place_next(py, None)? || handle.ended(py).is_some() {
                        break 'all;
                    }
                }
            }
        }
        handle.group.expect(count as u64);
        Ok(handle)
    }

    fn piece(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
        start: usize,
        size: usize,
        star: bool,
        repeats: &mut Repeats,
    ) -> PyResult<phalanx::pool::Task> {
        let (what, store) = (format!("iterable[{start}]"), self.core.store());
        if size == 1 {
            let kind = if star { shape::ARGS } else { shape::ONE };
            return self.function.task(
                py,
                store,
                kind,
                &items.get_item(start)?,
                &what,
                Some(repeats),
            );
        }
        let kind = if star { shape::STAR } else { shape::EACH };
        let what = format!("iterable[{start}:{}]", start + size);
        self.function.task(
            py,
            store,
            kind,
            &items.get_item(slice(py, start, start + size)?)?,
            &what,
            Some(repeats),
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many items the first `pieces` pieces have: about as many as are done.
    fn items_in(&self, pieces: usize) -> usize {
        let state = self.state();
        let cut = state.pieces.as_deref().unwrap_or_default();
        cut.get(..pieces).and_then(<[_]>::last).map_or(0, |&(_, end)| end)
    }

    fn ended<'py>(&self, py: Python<'py>) -> Option<PyResult<Bound<'py, PyAny>>> {
        let state = self.state();
        Some(match state.end.as_ref()? {
            Ok(value) => Ok(value.bind(py).clone()),
            Err(error) => Err(PyErr::from_value(error.bind(py).clone().into_any())),
        })
    }

    /// Puts the next outcome in its place, waiting for it. False: `timeout` seconds have passed.
    fn place_next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let outcome = interruptible(py, timeout, |slice| {
            Ok(match self.group.next() {
                Next::Outcome(index, outcome) => Some(Some((index, outcome))),
                Next::End => {
                    // Another thread is placing the last ones.
                    std::thread::sleep(Duration::from_millis(1));
                    Some(None)
                }
                Next::Pending => {
                    self.core.wait(&self.group, Until::Next, Some(slice))?;
                    None
                }
            })
        })?;
        match outcome {
            None => return Ok(false),
            Some(None) => {}
            Some(Some((index, outcome))) => self.place(py, index as usize, &outcome)?,
        }
        Ok(true)
    }

    fn place(&self, py: Python<'_>, index: usize, outcome: &Outcome) -> PyResult<()> {
        // Unpickling runs anybody's code: no lock is held.
        let result = value(py, outcome, &self.function).map_err(|error| error.into_value(py));
        let mut state = self.state();
        state.placed += 1;
        let State { pieces, results, placed, end, raised } = &mut *state;
        let Some((pieces, results)) = pieces.as_ref().zip(results.as_ref()) else {
            *end = Some(result.map(Bound::unbind));
            return Ok(());
        };
        let results = results.bind(py);
        let complete = self.group.is_done() && *placed == pieces.len();
        match result {
            // All that is after the first failure is not asked for any more.
            Ok(_) if raised.is_some() => {}
            Ok(part) => {
                let (start, stop) = pieces[index];
                match stop - start {
                    1 => results.set_item(start, part)?,
                    _ => results.set_slice(start, stop, &part)?,
                }
            }
            Err(error) if matches!(outcome, Outcome::Lost(_) | Outcome::Broken(_)) => {
                *end = Some(Err(error));
                return Ok(());
            }
            Err(error) => *raised = raised.take().or(Some(error)),
        }
        if complete && end.is_none() {
            *end = Some(match raised.take() {
                Some(error) => Err(error),
                None => Ok(results.clone().into_any().unbind()),
            });
        }
        Ok(())
    }

    /// Waits for the end. `None`: `timeout` seconds have passed.
    pub fn wait_end<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let began = std::time::Instant::now();
        loop {
            if let Some(end) = self.ended(py) {
                return end.map(Some);
            }
            if self.is_empty() {
                let results =
                    self.state().results.as_ref().map(|list| list.clone_ref(py).into_any());
                self.state().end = results.map(Ok);
                continue;
            }
            let left = timeout.map(|timeout| timeout - began.elapsed().as_secs_f64());
            if !self.place_next(py, left)? {
                return Ok(None);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.state().pieces.as_ref().is_some_and(Vec::is_empty)
    }
}

impl Handle {
    /// Has everything happened, callbacks included?
    fn is_over(&self) -> bool {
        self.group.is_done() && self.callbacks.as_ref().is_none_or(Callbacks::were_called)
    }

    /// Waits for everything. False: `timeout` seconds have passed.
    fn wait_over(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.core.check().map_err(|e| raise(py, &e))?;
        let over = interruptible(py, timeout, |slice| {
            if !self.group.is_done() && !self.core.wait(&self.group, Until::Done, Some(slice))? {
                return Ok(None);
            }
            Ok(self.callbacks.as_ref().is_none_or(|it| it.wait(slice)).then_some(()))
        })?;
        Ok(over.is_some())
    }
}

impl Callbacks {
    fn called(&self) -> MutexGuard<'_, bool> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn were_called(&self) -> bool {
        *self.called()
    }

    fn wait(&self, deadline: Instant) -> bool {
        let mut called = self.called();
        while !*called {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            called =
                self.changed.wait_timeout(called, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[pymethods]
impl Handle {
    // An exception that was raised knows the frames that it came through, and one of them may
    // know this object.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self._pool)?;
        for callback in self.callbacks.iter().flat_map(|it| [&it.on_result, &it.on_error]) {
            visit.call(callback)?;
        }
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        match &state.end {
            Some(Ok(value)) => visit.call(value)?,
            Some(Err(error)) => visit.call(error)?,
            None => {}
        }
        visit.call(&state.results)?;
        visit.call(&state.raised)
    }

    fn __clear__(&self) {
        let garbage = {
            let mut state = self.state();
            (state.results.take(), state.end.take(), state.raised.take())
        };
        // Destructors run anybody's code: no lock is held.
        drop(garbage);
    }

    /// For annotations: `AsyncResult[int]`.
    #[classmethod]
    fn __class_getitem__<'py>(
        cls: &Bound<'py, PyType>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        cls.py().import("types")?.getattr("GenericAlias")?.call1((cls, key))
    }

    /// The pieces of the call that have not ended, for those who tell how far it is.
    #[getter]
    fn _number_left(&self) -> u64 {
        self.group.left()
    }

    /// Waits until the call has ended, or one of its tasks is lost, or `timeout` seconds have passed.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        self.wait_over(py, timeout).map(drop)
    }

    /// Ends the call's tasks: those that have not begun vanish, others are ended as `Pool` says. False:
    /// all had ended.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        let count = py.detach(|| self.core.cancel(Some(&self.group)));
        Ok(count.map_err(|e| raise(py, &e))? > 0)
    }

    /// Has the call ended?
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        self.core.check().map_err(|e| raise(py, &e))?;
        Ok(self.is_over())
    }

    /// Did it end without an exception?
    fn successful(slf: &Bound<'_, Self>) -> PyResult<bool> {
        if !slf.get().ready(slf.py())? {
            return Err(PyValueError::new_err(format!("{} not ready", slf.repr()?)));
        }
        Ok(slf.get().wait_end(slf.py(), None).is_ok())
    }

    /// What the call returned; what it raised is raised here.
    #[pyo3(signature = (timeout=None))]
    fn get<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        if self.callbacks.is_some() && !self.wait_over(py, timeout)? {
            return Err(timeout_error(py));
        }
        self.wait_end(py, timeout)?.ok_or_else(|| timeout_error(py))
    }

    /// Sees to it that the end becomes an errand of the pool, if there is a callback.
    fn announce(&self, py: Python<'_>) -> PyResult<()> {
        let Some(Callbacks { token, .. }) = self.callbacks else { return Ok(()) };
        let heard = if self.group.announce(token) {
            self.core.heed()
        } else {
            self.core.post(Errand::Done(token))
        };
        heard.map_err(|e| raise(py, &e))
    }

    /// Calls the callback that fits the end. For the thread that runs the pool's errands.
    fn call_back(&self, py: Python<'_>) -> PyResult<()> {
        let Some(callbacks) = &self.callbacks else { return Ok(()) };
        let called = match self.wait_end(py, None) {
            Ok(value) => callbacks.on_result.as_ref().map(|call| call.call1(py, (value,))),
            Err(error) => {
                callbacks.on_error.as_ref().map(|call| call.call1(py, (error.value(py),)))
            }
        };
        *callbacks.called() = true;
        callbacks.changed.notify_all();
        called.transpose().map(drop)
    }
}
