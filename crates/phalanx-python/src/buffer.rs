//! Shared memory under Python's buffer protocol: the one file of the glue with `unsafe`.
//!
//! Python code reads and writes buffers as it likes, `memoryview`, ctypes and numpy alike, while
//! other processes do the same. That is theirs to order; here it is only seen to that the memory
//! stays where it is as long as somebody has a view of it.

use std::ffi::c_int;

use phalanx::shared::Memory;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::errors::raise;
use crate::synchronize::Arena;

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
    #[pyo3(signature = (size, place=None))]
    fn new(
        py: Python<'_>,
        size: usize,
        place: Option<(PyRef<'_, Arena>, usize)>,
    ) -> PyResult<Self> {
        let memory = match place {
            None => Memory::new(size),
            Some((arena, offset)) => Memory::at(&arena.0, offset, size),
        };
        memory.map(Self).map_err(|e| raise(py, &e))
    }

    fn _place(&self) -> Option<(Arena, usize)> {
        self.0.place().map(|(arena, offset)| (Arena(arena), offset))
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
