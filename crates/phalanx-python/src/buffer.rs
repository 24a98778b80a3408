//! Shared memory under Python's buffer protocol: the one file of the glue with `unsafe`.
//!
//! Python code reads and writes buffers as it likes, `memoryview`, ctypes and numpy alike, while
//! other processes do the same. That is theirs to order; here it is only seen to that the memory
//! stays where it is as long as somebody has a view of it.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use phalanx::shared::Memory;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::errors::raise;

/// A block of shared memory without a name.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Block(Memory);

impl Block {
    pub fn memory(&self) -> &Memory {
        &self.0
    }
}

#[pymethods]
impl Block {
    #[new]
    fn new(py: Python<'_>, size: usize) -> PyResult<Self> {
        Memory::new(size).map(Self).map_err(|e| raise(py, &e))
    }

    #[staticmethod]
    fn open(py: Python<'_>, fd: RawFd, offset: usize, size: usize) -> PyResult<Self> {
        if fd < 0 {
            return Err(PyValueError::new_err(format!("{fd} is no descriptor")));
        }
        // SAFETY: it is not -1, and the copy is made before anybody could close it: we hold the
        // interpreter. One that is not open gives an error.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let copy = fd.try_clone_to_owned().map_err(|e| PyOSError::new_err(e.raw_os_error()))?;
        Memory::from_place(copy, offset, size).map(Self).map_err(|e| raise(py, &e))
    }

    fn place(&self) -> (RawFd, usize) {
        let (fd, offset) = self.0.place();
        (fd.as_raw_fd(), offset)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// Fills in a view of all the bytes.
    ///
    /// # Safety
    ///
    /// `view` points to a `Py_buffer` that may be written.
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let memory = &slf.get().0;
        // Cannot overflow: no allocation is larger than `isize::MAX`.
        let len = memory.len() as ffi::Py_ssize_t;
        // SAFETY: the view keeps this object, which keeps its memory mapped at that address.
        let result = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), memory.as_ptr().cast(), len, 0, flags)
        };
        if result == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
