//! Processes: the glue between `phalanx::process` and `phalanx._phalanx`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use phalanx::process::{self as engine, Next, OwnPidfd};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::raise;
use crate::wait::interruptible;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Child>()?;
    m.add_class::<Template>()?;
    m.add_class::<TemplateServer>()?;
    m.add_class::<Request>()?;
    m.add_class::<Tie>()?;
    m.add_function(wrap_pyfunction!(keep_to, m)?)?;
    m.add_function(wrap_pyfunction!(spawn, m)?)?;
    m.add_function(wrap_pyfunction!(child_of, m)?)?;
    m.add_function(wrap_pyfunction!(self_pidfd, m)?)
}

/// Our end of a lifeline: who keeps to the other end is killed when this is gone.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct Tie {
    _inner: engine::Tie,
}

#[pymethods]
impl Tie {
    /// A lifeline: our end, and a child's, which is the caller's to close.
    #[staticmethod]
    fn make(py: Python<'_>) -> PyResult<(Self, RawFd)> {
        let (inner, child) = engine::Tie::new().map_err(|e| raise(py, &e))?;
        Ok((Self { _inner: inner }, child.into_raw_fd()))
    }
}

/// In a child: from now on it ends with the process at the other end of the lifeline.
#[pyfunction]
fn keep_to(py: Python<'_>, lifeline: RawFd, tree: bool) -> PyResult<()> {
    engine::keep_to(lifeline, tree).map_err(|e| raise(py, &e))
}

/// A child process, watched by its pidfd.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Child {
    pid: u32,
    child: Mutex<Option<Arc<engine::Child>>>,
}

impl Child {
    fn new(child: engine::Child) -> Self {
        Self { pid: child.pid(), child: Mutex::new(Some(Arc::new(child))) }
    }

    /// The engine's own, unless this was closed.
    pub fn inner(&self) -> PyResult<Arc<engine::Child>> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.clone().ok_or_else(|| PyValueError::new_err("this child is closed"))
    }
}

#[pymethods]
impl Child {
    #[getter]
    fn pid(&self) -> u32 {
        self.pid
    }

    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.inner()?.as_fd().as_raw_fd())
    }

    fn poll(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        let child = self.inner()?;
        let exit = py.detach(|| child.try_exit()).map_err(|e| raise(py, &e))?;
        Ok(exit.map(engine::Exit::code))
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let child = self.inner()?;
        let exit = interruptible(py, timeout, |slice| child.wait_until(Some(slice)))?;
        Ok(exit.map(engine::Exit::code))
    }

    fn send_signal(&self, py: Python<'_>, signal: i32) -> PyResult<()> {
        self.inner()?.signal(signal).map_err(|e| raise(py, &e))
    }

    fn close(&self) {
        drop(self.child.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Runs a program; see `Child::spawn`.
#[pyfunction]
#[pyo3(signature = (path, args, env=None, fds=Vec::new()))]
fn spawn(
    py: Python<'_>,
    path: Vec<u8>,
    args: Vec<Vec<u8>>,
    env: Option<Vec<Vec<u8>>>,
    fds: Vec<RawFd>,
) -> PyResult<Child> {
    let (path, args, env) = (c_string(path)?, c_strings(args)?, env.map(c_strings).transpose()?);
    py.detach(|| engine::Child::spawn(&path, &args, env.as_deref(), &fds))
        .map(Child::new)
        .map_err(|e| raise(py, &e))
}

/// The child that the caller has just forked.
#[pyfunction]
fn child_of(py: Python<'_>, pid: u32) -> PyResult<Child> {
    engine::Child::of_pid(pid).map(Child::new).map_err(|e| raise(py, &e))
}

/// A descriptor of this process, for its children to see its end by. Opened once, and kept.
#[pyfunction]
fn self_pidfd(py: Python<'_>) -> PyResult<RawFd> {
    static OPENED: Mutex<Option<OwnPidfd>> = Mutex::new(None);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(parents) = opened.take_if(|own| !own.is_ours()) {
        // The parent's, which is this process's `parent_process().sentinel`.
        std::mem::forget(parents);
    }
    if opened.is_none() {
        *opened = Some(OwnPidfd::open().map_err(|e| raise(py, &e))?);
    }
    Ok(opened.as_ref().map_or(-1, |own| own.as_fd().as_raw_fd()))
}

/// A warm process that forks when asked.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct Template(engine::Template);

#[pymethods]
impl Template {
    #[staticmethod]
    #[pyo3(signature = (path, args, env=None))]
    fn start(
        py: Python<'_>,
        path: Vec<u8>,
        args: Vec<Vec<u8>>,
        env: Option<Vec<Vec<u8>>>,
    ) -> PyResult<Self> {
        let (path, args, env) =
            (c_string(path)?, c_strings(args)?, env.map(c_strings).transpose()?);
        py.detach(|| engine::Template::start(&path, &args, env.as_deref()))
            .map(Self)
            .map_err(|e| raise(py, &e))
    }

    #[getter]
    fn pid(&self) -> u32 {
        self.0.process().pid()
    }

    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// `None`: the template has ended. That is no exception, so that nobody is interrupted while he
    /// handles one, and tells of both.
    #[pyo3(signature = (payload, fds, hint=None))]
    fn launch(
        &self,
        py: Python<'_>,
        payload: &[u8],
        fds: Vec<RawFd>,
        hint: Option<&[u8]>,
    ) -> PyResult<Option<Child>> {
        let has_ended = |error: &phalanx::Error| {
            let errno = error.os_error().and_then(std::io::Error::raw_os_error);
            errno == Some(libc::EPIPE)
        };
        let mut launch = match self.0.launch(payload, &fds, hint.unwrap_or_default()) {
            Err(error) if has_ended(&error) => return Ok(None),
            launch => launch.map_err(|e| raise(py, &e))?,
        };
        let child = interruptible(py, None, |slice| match launch.wait_until(slice) {
            Err(error) if has_ended(&error) => Ok(Some(None)),
            child => child.map(|child| child.map(Some)),
        })?;
        let child = child.ok_or_else(|| PyValueError::new_err("asked twice"))?;
        Ok(child.map(Child::new))
    }

    fn stop(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout = Duration::try_from_secs_f64(timeout).unwrap_or_default();
        py.detach(|| self.0.stop(timeout)).map_err(|e| raise(py, &e))
    }
}

/// The template's own side.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct TemplateServer(Mutex<Option<engine::TemplateServer>>);

impl TemplateServer {
    fn with<T>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut engine::TemplateServer) -> phalanx::Result<T>,
    ) -> PyResult<T> {
        let mut server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let server = server.as_mut().ok_or_else(|| PyValueError::new_err("closed"))?;
        call(server).map_err(|e| raise(py, &e))
    }
}

#[pymethods]
impl TemplateServer {
    #[new]
    fn new(py: Python<'_>, fd: RawFd) -> PyResult<Self> {
        let server = engine::TemplateServer::new(fd).map_err(|e| raise(py, &e))?;
        Ok(Self(Mutex::new(Some(server))))
    }

    fn next(&self, py: Python<'_>) -> PyResult<Option<Request>> {
        let mut server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let server = server.as_mut().ok_or_else(|| PyValueError::new_err("closed"))?;
        match interruptible(py, None, |slice| server.wait_request(slice))? {
            Some(Next::Request(request)) => Ok(Some(Request(Mutex::new(Some(request))))),
            Some(Next::End) | None => Ok(None),
        }
    }

    fn launched(&self, py: Python<'_>, pid: u32) -> PyResult<()> {
        self.with(py, |server| server.launched(pid))
    }

    fn refused(&self, py: Python<'_>, errno: i32) -> PyResult<()> {
        self.with(py, |server| {
            server.refused(errno);
            Ok(())
        })
    }

    fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A child that the template was asked for.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct Request(Mutex<Option<engine::Request>>);

#[pymethods]
impl Request {
    #[getter]
    fn hint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let request = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        PyBytes::new(py, request.as_ref().map_or(&[], engine::Request::hint))
    }

    fn is_known(&self) -> bool {
        let request = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        request.as_ref().is_some_and(engine::Request::is_known)
    }

    fn take(&self) -> PyResult<(RawFd, Vec<RawFd>)> {
        let request = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        request.map(engine::Request::into_fds).ok_or_else(|| PyValueError::new_err("taken already"))
    }

    fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn c_string(bytes: Vec<u8>) -> PyResult<CString> {
    CString::new(bytes).map_err(|_| PyValueError::new_err("embedded null byte"))
}

fn c_strings(all: Vec<Vec<u8>>) -> PyResult<Vec<CString>> {
    all.into_iter().map(c_string).collect()
}
