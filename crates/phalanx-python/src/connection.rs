//! Connections: the glue between `phalanx::connection` and `phalanx._phalanx`.

use std::io;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use phalanx::Error;
use phalanx::connection::{self as engine, Receiving};
use pyo3::exceptions::{PyMemoryError, PyOSError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyTuple};

use crate::buffer::bytes_with;
use crate::errors::raise;
use crate::pickle;
use crate::slice::slice;
use crate::wait::interruptible;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Connection>()?;
    m.add_function(wrap_pyfunction!(stream_pair, m)?)?;
    m.add_function(wrap_pyfunction!(wait_readable, m)?)
}

/// A message longer than this takes memory as it comes, so that a wrong length costs none.
const LONG: usize = 64 << 20;
/// How much is copied at once from or to an object whose memory is not ours to wait with.
const PIECE: usize = 256 << 10;

/// Two connected descriptors, not inherited by programs that are run.
#[pyfunction]
fn stream_pair(py: Python<'_>) -> PyResult<(RawFd, RawFd)> {
    let (one, other) = engine::pair().map_err(|e| raise(py, &e))?;
    Ok((one.into_raw_fd(), other.into_raw_fd()))
}

/// The places of the descriptors that can be read, in order.
#[pyfunction]
#[pyo3(signature = (fds, timeout=None))]
fn wait_readable(py: Python<'_>, fds: Vec<RawFd>, timeout: Option<f64>) -> PyResult<Vec<usize>> {
    if fds.is_empty() && timeout.is_none() {
        return Ok(Vec::new());
    }
    let ready = interruptible(py, timeout, |slice| engine::wait_until(&fds, slice))?;
    Ok(ready.unwrap_or_default())
}

/// What `phalanx.connection.Connection` inherits from.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
struct Connection {
    end: engine::Connection,
    readable: AtomicBool,
    writable: AtomicBool,
}

#[pymethods]
impl Connection {
    /// A closed one; `__init__` is Python's.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        let (readable, writable) = (AtomicBool::new(true), AtomicBool::new(true));
        Self { end: engine::Connection::new(None), readable, writable }
    }

    #[getter]
    fn _handle(&self) -> Option<RawFd> {
        self.end.fd()
    }

    #[setter(_handle)]
    fn set_handle(&self, handle: Option<RawFd>) {
        self.end.set_fd(handle);
    }

    #[getter]
    fn _readable(&self) -> bool {
        self.readable.load(Relaxed)
    }

    #[setter(_readable)]
    fn set_readable(&self, readable: &Bound<'_, PyAny>) -> PyResult<()> {
        self.readable.store(readable.is_truthy()?, Relaxed);
        Ok(())
    }

    #[getter]
    fn _writable(&self) -> bool {
        self.writable.load(Relaxed)
    }

    #[setter(_writable)]
    fn set_writable(&self, writable: &Bound<'_, PyAny>) -> PyResult<()> {
        self.writable.store(writable.is_truthy()?, Relaxed);
        Ok(())
    }

    #[getter]
    fn closed(&self) -> bool {
        self.end.fd().is_none()
    }

    #[getter]
    fn readable(&self) -> bool {
        self._readable()
    }

    #[getter]
    fn writable(&self) -> bool {
        self._writable()
    }

    fn fileno(&self) -> PyResult<RawFd> {
        self.end.fd().ok_or_else(closed)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.end.close().map_err(|e| raise(py, &e))
    }

    fn send(&self, py: Python<'_>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        self.check_writable()?;
        self.send_whole(py, &pickle::dumps(py, obj)?)
    }

    #[pyo3(signature = (buf, offset=0, size=None))]
    fn send_bytes(
        &self,
        py: Python<'_>,
        buf: &Bound<'_, PyAny>,
        offset: isize,
        size: Option<isize>,
    ) -> PyResult<()> {
        self.check_writable()?;
        if let Ok(bytes) = buf.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            let (start, end) = part(bytes.len(), offset, size)?;
            return self.send_whole(py, &bytes[start..end]);
        }
        let view = byte_view(buf)?;
        let (mut at, end) = part(view.len()?, offset, size)?;
        let mut sending = self.end.send(end - at).map_err(|e| raise(py, &e))?;
        loop {
            let next = end.min(at + PIECE);
            let piece =
                view.get_item(slice(py, at, next)?)?.call_method0(intern!(py, "tobytes"))?;
            let mut rest = piece.cast::<PyBytes>()?.as_bytes();
            interruptible(py, None, |slice| sending.write_until(&mut rest, slice))?;
            at = next;
            if at == end {
                return Ok(());
            }
        }
    }

    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.check_readable()?;
        let mut receiving = self.end.receive().map_err(|e| raise(py, &e))?;
        let length = self.length(py, &mut receiving)?;
        pickle::load(py, &whole(py, receiving, length)?)
    }

    #[pyo3(signature = (maxlength=None))]
    fn recv_bytes<'py>(
        &self,
        py: Python<'py>,
        maxlength: Option<isize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.check_readable()?;
        let max = maxlength.map(usize::try_from).transpose();
        let max = max.map_err(|_| PyValueError::new_err("negative maxlength"))?;
        let mut receiving = self.end.receive().map_err(|e| raise(py, &e))?;
        let length = self.length(py, &mut receiving)?;
        if max.is_some_and(|max| length > max) {
            return Err(self.bad_length(py));
        }
        whole(py, receiving, length)
    }

    #[pyo3(signature = (buf, offset=0))]
    fn recv_bytes_into(
        &self,
        py: Python<'_>,
        buf: &Bound<'_, PyAny>,
        offset: isize,
    ) -> PyResult<usize> {
        self.check_readable()?;
        let view = byte_view(buf)?;
        if view.getattr(intern!(py, "readonly"))?.is_truthy()? {
            return Err(PyTypeError::new_err("a writable bytes-like object is required"));
        }
        let offset =
            usize::try_from(offset).map_err(|_| PyValueError::new_err("negative offset"))?;
        let room = view.len()?.checked_sub(offset);
        let room = room.ok_or_else(|| PyValueError::new_err("offset too large"))?;
        let mut receiving = self.end.receive().map_err(|e| raise(py, &e))?;
        let length = self.length(py, &mut receiving)?;
        if length > room {
            let message = whole(py, receiving, length)?;
            let class = py.import("multiprocessing.context")?.getattr("BufferTooShort")?;
            return Err(PyErr::from_value(class.call1((message,))?));
        }
        let mut at = offset;
        while at < offset + length {
            let next = (offset + length).min(at + PIECE);
            let piece = bytes_with(py, next - at, |bytes| fill(py, &mut receiving, bytes))?;
            view.set_item(slice(py, at, next)?, piece)?;
            at = next;
        }
        Ok(length)
    }

    #[pyo3(signature = (timeout=Some(0.0)), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.check_readable()?;
        Ok(interruptible(py, timeout, |slice| self.end.readable_until(slice))?.is_some())
    }
}

impl Connection {
    fn check_readable(&self) -> PyResult<()> {
        self.fileno()?;
        let check = self._readable().then_some(());
        check.ok_or_else(|| PyOSError::new_err("connection is write-only"))
    }

    fn check_writable(&self) -> PyResult<()> {
        self.fileno()?;
        let check = self._writable().then_some(());
        check.ok_or_else(|| PyOSError::new_err("connection is read-only"))
    }

    fn send_whole(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        let mut sending = self.end.send(bytes.len()).map_err(|e| raise(py, &e))?;
        let mut rest = bytes;
        interruptible(py, None, |slice| sending.write_until(&mut rest, slice))?;
        Ok(())
    }

    fn length(&self, py: Python<'_>, receiving: &mut Receiving<'_>) -> PyResult<usize> {
        let mut bad = false;
        let length = interruptible(py, None, |slice| {
            let length = receiving.length_until(slice);
            bad = length.as_ref().is_err_and(is_bad_length);
            length
        });
        match length {
            Err(_) if bad => Err(self.bad_length(py)),
            other => Ok(other?.unwrap_or_default()),
        }
    }

    /// What comes next is unknown: nothing is received any more.
    fn bad_length(&self, py: Python<'_>) -> PyErr {
        self.readable.store(false, Relaxed);
        if !self._writable()
            && let Err(error) = self.close(py)
        {
            return error;
        }
        PyOSError::new_err("bad message length")
    }
}

fn is_bad_length(error: &Error) -> bool {
    error.os_error().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

fn closed() -> PyErr {
    PyOSError::new_err("handle is closed")
}

/// From where to where a part of `len` bytes goes.
fn part(len: usize, offset: isize, size: Option<isize>) -> PyResult<(usize, usize)> {
    let start = usize::try_from(offset).map_err(|_| PyValueError::new_err("offset is negative"))?;
    if len < start {
        return Err(PyValueError::new_err("buffer length < offset"));
    }
    let size = size.map_or(Ok(len - start), usize::try_from);
    let size = size.map_err(|_| PyValueError::new_err("size is negative"))?;
    if size > len - start {
        return Err(PyValueError::new_err("buffer length < offset + size"));
    }
    Ok((start, start + size))
}

/// An object's memory as bytes, whatever it holds.
fn byte_view<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let view = PyMemoryView::from(object)?.into_any();
    let py = object.py();
    let is_bytes = view.getattr(intern!(py, "format"))?.eq("B")?
        && view.getattr(intern!(py, "ndim"))?.eq(1)?;
    if is_bytes && view.getattr(intern!(py, "c_contiguous"))?.is_truthy()? {
        return Ok(view);
    }
    if view.getattr(intern!(py, "nbytes"))?.eq(0)? {
        // What is empty cannot be cast.
        return Ok(PyMemoryView::from(&PyByteArray::new(py, &[]))?.into_any());
    }
    view.call_method1(intern!(py, "cast"), ("B",))
}

fn fill(py: Python<'_>, receiving: &mut Receiving<'_>, into: &mut [u8]) -> PyResult<()> {
    let mut filled = 0;
    interruptible(py, None, |slice| receiving.read_until(into, &mut filled, slice))?;
    Ok(())
}

/// The whole of a message.
fn whole<'py>(
    py: Python<'py>,
    mut receiving: Receiving<'_>,
    length: usize,
) -> PyResult<Bound<'py, PyAny>> {
    if length <= LONG {
        let bytes = bytes_with(py, length, |bytes| fill(py, &mut receiving, bytes))?;
        return Ok(bytes.into_any());
    }
    if isize::try_from(length).is_err() {
        return Err(PyMemoryError::new_err("a message longer than memory"));
    }
    // Its buffer grows where it is, by moving pages, and becomes the bytes without a copy.
    let buffer = py.import("io")?.getattr("BytesIO")?.call0()?;
    let mut piece = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        let size = left.min(piece.len());
        let piece = &mut piece[..size];
        fill(py, &mut receiving, piece)?;
        buffer.call_method1(intern!(py, "write"), (PyBytes::new(py, piece),))?;
        left -= size;
    }
    buffer.call_method0(intern!(py, "getvalue"))
}
