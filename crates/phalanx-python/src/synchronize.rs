//! Locks: the glue between `phalanx::sync` and `phalanx._phalanx`.
//!
//! What each thread holds is known by this process alone, as in CPython's `SemLock`: who has the
//! lock in its name, and how often. That lives here; the engine knows processes.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use phalanx::OwnerDied;
use phalanx::sync::{self as engine, Acquired, Shared, Unmet};
use pyo3::exceptions::{PyAssertionError, PyOSError, PyOverflowError, PyValueError};
use pyo3::prelude::*;

use crate::wait::interruptible;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Arena>()?;
    m.add_class::<Lock>()?;
    m.add_class::<RLock>()?;
    m.add_class::<Semaphore>()?;
    m.add_class::<Event>()?;
    m.add_class::<Waiters>()?;
    m.add_class::<Turn>()?;
    m.add_class::<Gathering>()
}

fn os(error: phalanx::Error) -> PyErr {
    match error.os_error().and_then(std::io::Error::raw_os_error) {
        Some(errno) => PyOSError::new_err((errno, error.to_string())),
        None => PyOSError::new_err(error.to_string()),
    }
}

/// How long one waits, of Python's `acquire(block=True, timeout=None)`.
pub enum Patience {
    None,
    Seconds(f64),
    Endless,
}

impl Patience {
    fn new(block: Option<&Bound<'_, PyAny>>, timeout: Option<f64>) -> PyResult<Self> {
        if let Some(block) = block
            && !block.is_truthy()?
        {
            return Ok(Self::None);
        }
        Ok(match timeout {
            None => Self::Endless,
            Some(seconds) if seconds <= 0.0 => Self::None,
            Some(seconds) => Self::Seconds(seconds),
        })
    }

    /// Waits in slices, so that Python sees its signals; `None` when the time was over.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        mut wait: impl FnMut(Option<Instant>) -> Result<T, Unmet> + Send,
    ) -> PyResult<Option<T>> {
        let timeout = match self {
            Self::None => return Ok(None),
            Self::Seconds(seconds) => Some(*seconds),
            Self::Endless => None,
        };
        interruptible(py, timeout, |slice| Ok(wait(Some(slice)).ok()))
    }
}

/// What is done when a holder was dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnAbandoned {
    Warn,
    Raise,
    Ignore,
}

impl OnAbandoned {
    const ALL: [(&str, Self); 3] =
        [("warn", Self::Warn), ("raise", Self::Raise), ("ignore", Self::Ignore)];

    fn new(name: &str) -> PyResult<Self> {
        let known = Self::ALL.into_iter().find(|(known, _)| *known == name);
        known.map(|(_, policy)| policy).ok_or_else(|| {
            let why = format!("on_abandoned is 'warn', 'raise' or 'ignore', not '{name}'");
            PyValueError::new_err(why)
        })
    }

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}

/// Tells of a dead holder, as the object that was acquired is to.
#[cold]
fn tell(object: &Bound<'_, PyAny>, died: OwnerDied) -> PyResult<()> {
    let exitcode = died.exit.map(phalanx::Exit::code);
    object.call_method1("_abandoned", (died.pid, exitcode)).map(drop)
}

/// Memory that shared objects lie in.
#[pyclass(frozen, weakref, module = "phalanx._phalanx")]
pub struct Arena(pub engine::Arena);

#[pymethods]
impl Arena {
    #[staticmethod]
    fn adopt(fd: RawFd) -> PyResult<Self> {
        let failed = |error: std::io::Error| PyOSError::new_err(error.to_string());
        engine::Arena::adopt(fd).map(Self).map_err(failed)
    }

    fn fileno(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn place((arena, offset): (engine::Arena, usize)) -> (Arena, usize) {
    (Arena(arena), offset)
}

/// A new lock, or that of another process.
fn hold(place: Option<(PyRef<'_, Arena>, usize)>) -> PyResult<engine::Hold> {
    let hold = match place {
        None => engine::Hold::new(),
        Some((arena, offset)) => engine::Hold::open(&arena.0, offset),
    };
    hold.map_err(os)
}

/// A lock of processes.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub struct Lock {
    hold: engine::Hold,
    on_abandoned: OnAbandoned,
    /// Of the thread of this process that holds it; else anything.
    thread: AtomicUsize,
}

impl Lock {
    fn holds(&self) -> bool {
        self.thread.load(Ordering::Relaxed) == engine::this_thread() && self.hold.is_ours()
    }

    /// What follows an acquisition; it is undone if telling fails.
    #[inline]
    fn acquired(slf: &Bound<'_, Self>, acquired: Acquired) -> PyResult<()> {
        let this = slf.get();
        this.thread.store(engine::this_thread(), Ordering::Relaxed);
        if let Acquired::Abandoned(died) = acquired {
            tell(slf, died).inspect_err(|_| _ = this.hold.release())?;
        }
        Ok(())
    }

    pub fn take(slf: &Bound<'_, Self>, patience: &Patience) -> PyResult<bool> {
        let hold = &slf.get().hold;
        let acquired = match hold.try_acquire() {
            None => patience.wait(slf.py(), |deadline| hold.acquire(deadline))?,
            acquired => acquired,
        };
        acquired.map_or(Ok(false), |acquired| Self::acquired(slf, acquired).map(|()| true))
    }
}

const RELEASED: &str = "semaphore or lock released too many times";

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (*, ctx=None, on_abandoned="warn", place=None))]
    fn new(
        ctx: Option<&Bound<'_, PyAny>>,
        on_abandoned: &str,
        place: Option<(PyRef<'_, Arena>, usize)>,
    ) -> PyResult<Self> {
        let _ = ctx;
        let on_abandoned = OnAbandoned::new(on_abandoned)?;
        Ok(Self { hold: hold(place)?, on_abandoned, thread: AtomicUsize::new(0) })
    }

    #[getter]
    fn _on_abandoned(&self) -> &'static str {
        self.on_abandoned.name()
    }

    #[pyo3(signature = (block=None, timeout=None))]
    fn acquire(
        slf: &Bound<'_, Self>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        Self::take(slf, &Patience::new(block, timeout)?)
    }

    pub fn release(&self) -> PyResult<()> {
        if self.hold.release() { Ok(()) } else { Err(PyValueError::new_err(RELEASED)) }
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::take(slf, &Patience::Endless)
    }

    #[pyo3(signature = (_kind=None, _value=None, _trace=None))]
    fn __exit__(
        &self,
        _kind: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _trace: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.release()
    }

    fn locked(&self) -> bool {
        self.hold.is_held()
    }

    fn _place(&self) -> (Arena, usize) {
        place(self.hold.place())
    }

    fn _is_mine(&self) -> bool {
        self.holds()
    }

    fn _is_ours(&self) -> bool {
        self.hold.is_ours()
    }

    fn _count(&self) -> u32 {
        u32::from(self.hold.is_ours())
    }

    fn _get_value(&self) -> u32 {
        u32::from(!self.hold.is_held())
    }
}

/// A lock that its holder can acquire again.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub struct RLock {
    hold: engine::Hold,
    on_abandoned: OnAbandoned,
    /// Of the thread of this process that holds it; else anything.
    thread: AtomicUsize,
    /// How often that thread has it. Written by the holder alone.
    count: AtomicU32,
}

impl RLock {
    fn holds(&self) -> bool {
        self.thread.load(Ordering::Relaxed) == engine::this_thread() && self.hold.is_ours()
    }

    pub fn take(slf: &Bound<'_, Self>, patience: &Patience) -> PyResult<bool> {
        let this = slf.get();
        if this.holds() {
            let count = this.count.load(Ordering::Relaxed);
            this.count.store(count + 1, Ordering::Relaxed);
            return Ok(true);
        }
        let acquired = match this.hold.try_acquire() {
            None => patience.wait(slf.py(), |deadline| this.hold.acquire(deadline))?,
            acquired => acquired,
        };
        let Some(acquired) = acquired else { return Ok(false) };
        this.thread.store(engine::this_thread(), Ordering::Relaxed);
        this.count.store(1, Ordering::Relaxed);
        if let Acquired::Abandoned(died) = acquired {
            tell(slf, died).inspect_err(|_| _ = this.hold.release())?;
        }
        Ok(true)
    }
}

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*, ctx=None, on_abandoned="warn", place=None))]
    fn new(
        ctx: Option<&Bound<'_, PyAny>>,
        on_abandoned: &str,
        place: Option<(PyRef<'_, Arena>, usize)>,
    ) -> PyResult<Self> {
        let _ = ctx;
        let on_abandoned = OnAbandoned::new(on_abandoned)?;
        let (thread, count) = Default::default();
        Ok(Self { hold: hold(place)?, on_abandoned, thread, count })
    }

    #[getter]
    fn _on_abandoned(&self) -> &'static str {
        self.on_abandoned.name()
    }

    #[pyo3(signature = (block=None, timeout=None))]
    fn acquire(
        slf: &Bound<'_, Self>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        Self::take(slf, &Patience::new(block, timeout)?)
    }

    pub fn release(&self) -> PyResult<()> {
        if !self.holds() {
            let why = "attempt to release recursive lock not owned by thread";
            return Err(PyAssertionError::new_err(why));
        }
        let count = self.count.load(Ordering::Relaxed);
        if count > 1 {
            self.count.store(count - 1, Ordering::Relaxed);
        } else {
            self.thread.store(0, Ordering::Relaxed);
            self.hold.release();
        }
        Ok(())
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::take(slf, &Patience::Endless)
    }

    #[pyo3(signature = (_kind=None, _value=None, _trace=None))]
    fn __exit__(
        &self,
        _kind: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _trace: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.release()
    }

    fn locked(&self) -> bool {
        self.hold.is_held()
    }

    fn _place(&self) -> (Arena, usize) {
        place(self.hold.place())
    }

    fn _is_mine(&self) -> bool {
        self.holds()
    }

    fn _is_ours(&self) -> bool {
        self.hold.is_ours()
    }

    fn _count(&self) -> u32 {
        if self.hold.is_ours() { self.count.load(Ordering::Relaxed) } else { 0 }
    }

    fn _get_value(&self) -> u32 {
        u32::from(!self.hold.is_held())
    }
}

/// Units that processes acquire and release.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub struct Semaphore {
    units: engine::Semaphore,
    on_abandoned: OnAbandoned,
}

impl Semaphore {
    fn take(slf: &Bound<'_, Self>, patience: &Patience) -> PyResult<bool> {
        let units = &slf.get().units;
        let acquired = match units.try_acquire_raw() {
            None => patience.wait(slf.py(), |deadline| units.acquire_raw(deadline))?,
            acquired => acquired,
        };
        if let Some(Acquired::Abandoned(died)) = acquired {
            tell(slf, died).inspect_err(|_| _ = units.release())?;
        }
        Ok(acquired.is_some())
    }

    /// As many as Python's number says, if there can be so many.
    fn count(value: &Bound<'_, PyAny>) -> PyResult<u32> {
        let most = engine::Semaphore::MOST;
        // Numbers beyond 64 bits are not units either.
        let count = match value.extract::<i64>() {
            Ok(count) => u32::try_from(count).ok().filter(|count| *count <= most),
            Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => None,
            Err(error) => return Err(error),
        };
        count.ok_or_else(|| {
            let why = format!("a semaphore begins with 0 to {most} units, not {value}");
            PyValueError::new_err(why)
        })
    }
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (value=None, *, ctx=None, on_abandoned="warn", bounded=false, place=None))]
    fn new(
        value: Option<&Bound<'_, PyAny>>,
        ctx: Option<&Bound<'_, PyAny>>,
        on_abandoned: &str,
        bounded: bool,
        place: Option<(PyRef<'_, Arena>, usize)>,
    ) -> PyResult<Self> {
        let _ = ctx;
        let on_abandoned = OnAbandoned::new(on_abandoned)?;
        let units = if let Some((arena, offset)) = place {
            engine::Semaphore::open(&arena.0, offset)
        } else {
            let value = value.map_or(Ok(1), Self::count)?;
            engine::Semaphore::new(value, bounded.then_some(value))
        };
        Ok(Self { units: units.map_err(os)?, on_abandoned })
    }

    #[getter]
    fn _on_abandoned(&self) -> &'static str {
        self.on_abandoned.name()
    }

    #[pyo3(signature = (block=None, timeout=None))]
    fn acquire(
        slf: &Bound<'_, Self>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        Self::take(slf, &Patience::new(block, timeout)?)
    }

    fn release(&self) -> PyResult<()> {
        if self.units.release() { Ok(()) } else { Err(PyValueError::new_err(RELEASED)) }
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::take(slf, &Patience::Endless)
    }

    #[pyo3(signature = (_kind=None, _value=None, _trace=None))]
    fn __exit__(
        &self,
        _kind: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _trace: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.release()
    }

    fn locked(&self) -> bool {
        self.units.value() == 0
    }

    fn get_value(&self) -> u32 {
        self.units.value()
    }

    #[getter]
    fn maxvalue(&self) -> u32 {
        self.units.bound()
    }

    fn _place(&self) -> (Arena, usize) {
        place(self.units.place())
    }

    fn _get_value(&self) -> u32 {
        self.units.value()
    }
}

/// A flag that processes wait for.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub struct Event(engine::Event);

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*, ctx=None, place=None))]
    fn new(
        ctx: Option<&Bound<'_, PyAny>>,
        place: Option<(PyRef<'_, Arena>, usize)>,
    ) -> PyResult<Self> {
        let _ = ctx;
        let event = match place {
            None => engine::Event::new(),
            Some((arena, offset)) => engine::Event::open(&arena.0, offset),
        };
        event.map(Self).map_err(os)
    }

    fn is_set(&self) -> bool {
        self.0.is_set()
    }

    fn set(&self) {
        self.0.set();
    }

    fn clear(&self) {
        self.0.clear();
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let before = self.0.now();
        let patience = timeout.map_or(Patience::Endless, Patience::Seconds);
        let met = patience.wait(py, |deadline| self.0.wait_since(before, deadline))?;
        Ok(met.is_some())
    }

    fn _place(&self) -> (Arena, usize) {
        place(self.0.place())
    }
}

/// Who waits to be notified.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Waiters(engine::Waiters);

/// A wait that has begun.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Turn(engine::Turn);

#[pymethods]
impl Waiters {
    #[new]
    #[pyo3(signature = (place=None))]
    fn new(place: Option<(PyRef<'_, Arena>, usize)>) -> PyResult<Self> {
        let waiters = match place {
            None => engine::Waiters::new(),
            Some((arena, offset)) => engine::Waiters::open(&arena.0, offset),
        };
        waiters.map(Self).map_err(os)
    }

    fn come(&self) -> Turn {
        Turn(self.0.come())
    }

    /// The turn is over after this, whatever comes of it.
    fn wait(&self, py: Python<'_>, turn: &Turn, timeout: Option<f64>) -> PyResult<bool> {
        let patience = timeout.map_or(Patience::Endless, Patience::Seconds);
        match patience.wait(py, |deadline| self.0.wait(turn.0, deadline)) {
            Ok(Some(())) => Ok(true),
            Ok(None) => Ok(self.0.leave(turn.0)),
            Err(error) => {
                // A notification that came at the last moment is another's.
                if self.0.leave(turn.0) {
                    self.0.notify(1);
                }
                Err(error)
            }
        }
    }

    fn notify(&self, most: usize) -> usize {
        self.0.notify(most)
    }

    fn count(&self) -> usize {
        self.0.count()
    }

    fn _place(&self) -> (Arena, usize) {
        place(self.0.place())
    }
}

/// Who has come to a barrier, and how the barrier stands.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Gathering(engine::Gathering);

#[pymethods]
impl Gathering {
    #[new]
    #[pyo3(signature = (place=None))]
    fn new(place: Option<(PyRef<'_, Arena>, usize)>) -> PyResult<Self> {
        let gathering = match place {
            None => engine::Gathering::new(),
            Some((arena, offset)) => engine::Gathering::open(&arena.0, offset),
        };
        gathering.map(Self).map_err(os)
    }

    #[getter]
    fn state(&self) -> i32 {
        self.0.state()
    }

    #[setter]
    fn set_state(&self, state: i32) {
        self.0.set_state(state);
    }

    fn come(&self) {
        self.0.come();
    }

    fn leave(&self) {
        self.0.leave();
    }

    fn count(&self) -> u32 {
        self.0.count()
    }

    fn settle(&self) -> Option<u32> {
        self.0.settle().map(|died| died.pid)
    }

    fn _place(&self) -> (Arena, usize) {
        place(self.0.place())
    }
}
