//! Queues: the glue between `phalanx::channel` and `phalanx._phalanx`.
//!
//! What is small is copied with the interpreter attached, which takes less time than to detach;
//! whoever has to wait, or has much to copy, detaches.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use phalanx::channel::{self as engine, Body, Frame, Pushed};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyInt, PyList, PyString, PyTuple};

use crate::buffer::bytes_with;
use crate::errors::raise;
use crate::pickle;
use crate::wait::{deadline, interruptible, interruptible_until};

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Queue>()?;
    m.add_class::<SimpleQueue>()
}

/// More bytes than this are copied with the interpreter detached.
const MUCH: usize = 32 << 10;
/// For how long one who does not want to wait waits for another who is inside: as long as it takes
/// to see that it is dead.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a frame's body is.
mod kind {
    pub const PICKLE: u32 = 0;
    pub const BYTES: u32 = 1;
    pub const STR: u32 = 2;
    pub const INT: u32 = 3;
}

/// An object on its way into a queue.
enum Written<'py> {
    Pickle(Vec<u8>),
    Bytes(Bound<'py, PyBytes>),
    Str(Bound<'py, PyString>),
    Int([u8; 8]),
}

impl<'py> Written<'py> {
    /// Objects of these very types need no pickler, and nothing could be registered for them.
    fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast_exact::<PyBytes>() {
            return Ok(Self::Bytes(bytes.clone()));
        }
        if let Ok(text) = object.cast_exact::<PyString>() {
            // Not so with lone surrogates.
            if text.to_str().is_ok() {
                return Ok(Self::Str(text.clone()));
            }
        } else if object.is_exact_instance_of::<PyInt>()
            && let Ok(number) = object.extract::<i64>()
        {
            return Ok(Self::Int(number.to_ne_bytes()));
        }
        pickle::dumps(object.py(), object).map(Self::Pickle)
    }

    fn frame(&self) -> PyResult<(u32, &[u8])> {
        Ok(match self {
            Self::Pickle(bytes) => (kind::PICKLE, bytes),
            Self::Bytes(bytes) => (kind::BYTES, bytes.as_bytes()),
            Self::Str(text) => (kind::STR, text.to_str()?.as_bytes()),
            Self::Int(number) => (kind::INT, number),
        })
    }
}

/// What was in a frame, to be made an object of when the queue is nobody's concern any more.
struct Taken<'py> {
    kind: u32,
    body: Bound<'py, PyBytes>,
}

impl<'py> Taken<'py> {
    fn new(py: Python<'py>, frame: Frame, copy: Body<'_>) -> PyResult<Self> {
        let body = bytes_with(py, frame.len, |to| {
            let copied = if to.len() > MUCH { py.detach(|| copy(to)) } else { copy(to) };
            copied.map_err(|error| raise(py, &error))
        })?;
        Ok(Self { kind: frame.kind, body })
    }

    fn object(self) -> PyResult<Bound<'py, PyAny>> {
        let py = self.body.py();
        let bytes = self.body.as_bytes();
        match self.kind {
            kind::PICKLE => pickle::load(py, &self.body),
            kind::BYTES => Ok(self.body.into_any()),
            kind::STR => Ok(PyString::from_bytes(py, bytes)?.into_any()),
            kind::INT => {
                let number = bytes.try_into().map(i64::from_ne_bytes);
                let number = number.map_err(|_| nonsense())?;
                Ok(number.into_pyobject(py)?.into_any())
            }
            _ => Err(nonsense()),
        }
    }
}

fn nonsense() -> PyErr {
    PyRuntimeError::new_err("another process wrote nonsense into a queue")
}

/// An error of either side.
enum Failed {
    Engine(phalanx::Error),
    Python(PyErr),
}

impl From<phalanx::Error> for Failed {
    fn from(error: phalanx::Error) -> Self {
        Self::Engine(error)
    }
}

impl Failed {
    fn raise(self, py: Python<'_>) -> PyErr {
        match self {
            Self::Engine(error) => raise(py, &error),
            Self::Python(error) => error,
        }
    }
}

/// `queue.Full` or `queue.Empty`.
fn unmet(py: Python<'_>, name: &str) -> PyErr {
    static NAMES: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    let names = NAMES.get_or_try_init(py, || {
        let module = py.import("queue")?;
        Ok::<_, PyErr>((module.getattr("Full")?.unbind(), module.getattr("Empty")?.unbind()))
    });
    let raised =
        names.and_then(
            |(full, empty)| {
                if name == "Full" { full.bind(py).call0() } else { empty.bind(py).call0() }
            },
        );
    raised.map_or_else(|error| error, PyErr::from_value)
}

/// Until when to wait: `None` is for ever.
fn end(block: bool, timeout: Option<f64>) -> PyResult<Option<Instant>> {
    if block { deadline(timeout) } else { Ok(Some(Instant::now())) }
}

/// What both kinds of queue are.
#[derive(Default)]
struct Core {
    queue: OnceLock<engine::Queue>,
    closed: AtomicBool,
    /// Has this process put something?
    used: AtomicBool,
}

impl Core {
    fn queue(&self) -> PyResult<&engine::Queue> {
        self.queue
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("the queue's __init__ was not called"))
    }

    fn create(&self, py: Python<'_>, bound: Option<u64>) -> PyResult<()> {
        let queue = engine::Queue::new(bound).map_err(|error| raise(py, &error))?;
        self.queue.set(queue).map_err(|_| PyRuntimeError::new_err("the queue is there already"))
    }

    fn open(&self, py: Python<'_>, memory: RawFd, event: RawFd) -> PyResult<()> {
        let queue = engine::Queue::open_copies(memory, event).map_err(|error| raise(py, &error))?;
        self.queue.set(queue).map_err(|_| PyRuntimeError::new_err("the queue is there already"))
    }

    fn descriptors(&self) -> PyResult<(RawFd, RawFd)> {
        let (memory, event) = self.queue()?.descriptors();
        Ok((memory.as_raw_fd(), event.as_raw_fd()))
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Puts frames; how many there was room for until the end of the wait.
    fn put(
        &self,
        py: Python<'_>,
        frames: &[(u32, &[u8])],
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let queue = self.queue()?;
        self.used.store(true, Ordering::Relaxed);
        let all = frames.len();
        let len = frames.iter().map(|(_, body)| body.len()).sum::<usize>();
        let tried = if len > MUCH {
            // Who does not want to wait waits as long as for something small.
            let len = if block && timeout.is_none() { len } else { 0 };
            py.detach(|| {
                queue.pace(len);
                queue.try_put(frames)
            })
        } else {
            queue.try_put(frames)
        };
        let mut put = match tried.map_err(|error| raise(py, &error))? {
            Pushed::Some(put) if put == all => return Ok(put),
            Pushed::Some(put) => put,
            Pushed::Full if !block => return Ok(0),
            Pushed::Full | Pushed::Busy => 0,
        };
        let end = end(block, timeout)?;
        let step = |slice: Instant| {
            let patient = slice.max(Instant::now() + PATIENCE);
            match queue.put(&frames[put..], patient)? {
                Pushed::Some(more) => put += more,
                Pushed::Full if block => drop(queue.wait_room(slice)),
                Pushed::Full => return Ok(Some(())),
                Pushed::Busy => {}
            }
            Ok((put == all).then_some(()))
        };
        interruptible_until(py, end, step)?;
        Ok(put)
    }

    /// Takes up to `most` frames, at least one unless the wait ends without.
    fn take<'py>(
        &self,
        py: Python<'py>,
        most: usize,
        block: bool,
        timeout: Option<f64>,
        mut each: impl FnMut(Taken<'py>),
    ) -> PyResult<usize> {
        let queue = self.queue()?;
        let mut until = None;
        loop {
            if !queue.is_empty() {
                let front = match queue.try_front() {
                    Some(front) => Some(front),
                    None => {
                        let patient = Some(Instant::now() + PATIENCE);
                        interruptible_until(py, patient, |slice| Ok(queue.front(slice)))?
                    }
                };
                if let Some(front) = front {
                    let taken = front.take(most, |frame, copy| {
                        each(Taken::new(py, frame, copy).map_err(Failed::Python)?);
                        Ok(())
                    });
                    let taken = taken.map_err(|failed: Failed| failed.raise(py))?;
                    if taken > 0 {
                        return Ok(taken);
                    }
                }
            }
            if !block {
                return Ok(0);
            }
            let end = match until {
                Some(end) => end,
                None => *until.insert(deadline(timeout)?),
            };
            let there =
                interruptible_until(py, end, |slice| Ok(queue.wait_frame(slice).then_some(())))?;
            if there.is_none() {
                return Ok(0);
            }
        }
    }

    fn take_one<'py>(
        &self,
        py: Python<'py>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut taken = None;
        self.take(py, 1, block, timeout, |one| taken = Some(one))?;
        taken.map(Taken::object).transpose()
    }

    fn take_many<'py>(
        &self,
        py: Python<'py>,
        most: usize,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Taken<'py>>> {
        let mut taken = Vec::new();
        self.take(py, most, block, timeout, |one| taken.push(one))?;
        Ok(taken)
    }

    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let queue = self.queue()?;
        if !queue.is_empty() {
            return Ok(true);
        }
        if timeout == Some(0.0) {
            return Ok(false);
        }
        let there = interruptible(py, timeout, |slice| Ok(queue.wait_frame(slice).then_some(())))?;
        Ok(there.is_some())
    }

    fn watch(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.queue()?.watch().map_err(|error| raise(py, &error))?.as_raw_fd())
    }
}

/// What `Queue` and `JoinableQueue` stand on.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
struct Queue(Core);

impl Queue {
    fn check(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.get().0.is_closed() {
            return Err(PyValueError::new_err(format!("Queue {} is closed", slf.repr()?)));
        }
        Ok(())
    }

    /// The object's frame; nothing if it has none and a hook was told so.
    fn write<'py>(
        slf: &Bound<'py, Self>,
        object: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Written<'py>>> {
        let py = slf.py();
        match Written::new(object) {
            Ok(written) => Ok(Some(written)),
            Err(error) => {
                slf.call_method1("_unwritable", (error.value(py), object))?;
                Ok(None)
            }
        }
    }
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self(Core::default())
    }

    fn _create(&self, py: Python<'_>, maxsize: u64) -> PyResult<()> {
        self.0.create(py, (maxsize > 0).then_some(maxsize))
    }

    fn _open(&self, py: Python<'_>, memory: RawFd, event: RawFd) -> PyResult<()> {
        self.0.open(py, memory, event)
    }

    fn _descriptors(&self) -> PyResult<(RawFd, RawFd)> {
        self.0.descriptors()
    }

    #[getter]
    fn _closed(&self) -> bool {
        self.0.is_closed()
    }

    #[getter]
    fn _maxsize(&self) -> PyResult<u64> {
        Ok(self.0.queue()?.bound().unwrap_or(i32::MAX as u64))
    }

    #[pyo3(signature = (obj, block=true, timeout=None))]
    fn put(
        slf: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        Self::check(slf)?;
        let Some(written) = Self::write(slf, obj)? else { return Ok(()) };
        if slf.get().0.put(slf.py(), &[written.frame()?], block, timeout)? == 0 {
            return Err(unmet(slf.py(), "Full"));
        }
        Ok(())
    }

    #[pyo3(signature = (items, block=true, timeout=None))]
    fn put_many(
        slf: &Bound<'_, Self>,
        items: &Bound<'_, PyAny>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        Self::check(slf)?;
        let mut all = Vec::new();
        for item in items.try_iter()? {
            all.extend(Self::write(slf, &item?)?);
        }
        let frames = all.iter().map(Written::frame).collect::<PyResult<Vec<_>>>()?;
        let put = slf.get().0.put(slf.py(), &frames, block, timeout)?;
        if put == 0 && !frames.is_empty() {
            return Err(unmet(slf.py(), "Full"));
        }
        Ok(put)
    }

    fn put_nowait(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::put(slf, obj, false, None)
    }

    #[pyo3(signature = (block=true, timeout=None))]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::check(slf)?;
        let taken = slf.get().0.take_one(slf.py(), block, timeout)?;
        taken.ok_or_else(|| unmet(slf.py(), "Empty"))
    }

    #[pyo3(signature = (max, block=true, timeout=None))]
    fn get_many<'py>(
        slf: &Bound<'py, Self>,
        max: usize,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        Self::check(slf)?;
        if max == 0 {
            return Err(PyValueError::new_err("max must be at least 1"));
        }
        let py = slf.py();
        let taken = slf.get().0.take_many(py, max, block, timeout)?;
        if taken.is_empty() {
            return Err(unmet(py, "Empty"));
        }
        let objects = taken.into_iter().map(Taken::object).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, objects)
    }

    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::get(slf, false, None)
    }

    fn qsize(&self) -> PyResult<u64> {
        Ok(self.0.queue()?.len())
    }

    fn empty(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let core = &slf.get().0;
        if core.is_closed() && core.used.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err(format!("Queue {} is closed", slf.repr()?)));
        }
        Ok(core.queue()?.is_empty())
    }

    fn full(&self) -> PyResult<bool> {
        Ok(self.0.queue()?.is_full())
    }

    fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }

    fn _unfinished(&self) -> PyResult<u64> {
        Ok(self.0.queue()?.unfinished())
    }

    fn _done(&self) -> PyResult<bool> {
        Ok(self.0.queue()?.done())
    }

    #[pyo3(signature = (timeout=None))]
    fn _join(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let queue = self.0.queue()?;
        let done = interruptible(py, timeout, |slice| Ok(queue.wait_done(slice).then_some(())))?;
        Ok(done.is_some())
    }

    fn _watch(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.0.watch(py)
    }

    fn _poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.0.poll(py, timeout)
    }

    fn _take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.take_one(py, true, None)
    }

    fn _put_pickle(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        self.0.put(py, &[(kind::PICKLE, bytes)], true, None).map(drop)
    }
}

/// What `SimpleQueue` stands on.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
struct SimpleQueue(Core);

impl SimpleQueue {
    fn check(&self) -> PyResult<()> {
        if self.0.is_closed() {
            return Err(PyOSError::new_err("handle is closed"));
        }
        Ok(())
    }
}

#[pymethods]
impl SimpleQueue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self(Core::default())
    }

    fn _create(&self, py: Python<'_>) -> PyResult<()> {
        self.0.create(py, None)
    }

    fn _open(&self, py: Python<'_>, memory: RawFd, event: RawFd) -> PyResult<()> {
        self.0.open(py, memory, event)
    }

    fn _descriptors(&self) -> PyResult<(RawFd, RawFd)> {
        self.0.descriptors()
    }

    #[getter]
    fn _closed(&self) -> bool {
        self.0.is_closed()
    }

    fn put(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        self.check()?;
        let written = Written::new(obj)?;
        self.0.put(obj.py(), &[written.frame()?], true, None).map(drop)
    }

    fn get<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.check()?;
        self.0.take_one(py, true, None)
    }

    fn empty(&self) -> PyResult<bool> {
        self.check()?;
        Ok(self.0.queue()?.is_empty())
    }

    fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }

    fn _watch(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.0.watch(py)
    }

    fn _poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.0.poll(py, timeout)
    }

    fn _take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.take_one(py, true, None)
    }

    fn _put_pickle(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        self.0.put(py, &[(kind::PICKLE, bytes)], true, None).map(drop)
    }
}
