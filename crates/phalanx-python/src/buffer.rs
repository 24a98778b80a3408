//! Memory under Python's buffer protocol, and the other way round: the one file of the glue with
//! `unsafe`.
//!
//! Python code reads and writes buffers as it likes, `memoryview`, ctypes and numpy alike, while
//! other processes do the same. That is theirs to order; here it is only seen to that the memory
//! stays where it is as long as somebody has a view of it.

use std::ffi::{c_int, c_void};

use phalanx::pool::{Buffer, Store};
use phalanx::shared::Memory;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use pyo3::{ffi, intern};

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

/// Bytes of a Python object in one piece. Until this is dropped they stay where they are.
pub struct Held(PyBuffer<u8>);

impl Held {
    /// Of anything that has the buffer protocol and is in one piece, whatever it is made of.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        // A `PickleBuffer` has its object's type, say float64; `raw` is its bytes in one piece.
        let raw = object.getattr_opt(intern!(object.py(), "raw"))?;
        let raw = raw.map(|raw| raw.call0()).transpose()?;
        Ok(Self(PyBuffer::get(raw.as_ref().unwrap_or(object))?))
    }

    pub fn len(&self) -> usize {
        self.0.len_bytes()
    }

    /// Tells these bytes from all others that are held now.
    pub fn place(&self) -> (usize, usize) {
        (self.0.buf_ptr() as usize, self.len())
    }

    /// Appends a copy of the bytes.
    pub fn append_to(&self, py: Python<'_>, to: &mut Vec<u8>) -> PyResult<()> {
        let start = to.len();
        to.resize(start + self.len(), 0);
        self.0.copy_to_slice(py, &mut to[start..])
    }
}

/// A piece of what is to be copied into a room.
pub enum Part<'a> {
    Held(&'a Held),
    Bytes(&'a [u8]),
}

impl Part<'_> {
    fn place(&self) -> (usize, usize) {
        match self {
            Self::Held(held) => held.place(),
            Self::Bytes(bytes) => (bytes.as_ptr() as usize, bytes.len()),
        }
    }
}

/// Copies the parts into a room, one behind the other. Other threads run meanwhile.
pub fn fill(py: Python<'_>, store: &Store, parts: &[Part<'_>]) -> PyResult<Buffer> {
    let len = parts.iter().map(|part| part.place().1).sum();
    let mut room = store.room(len).map_err(|e| raise(py, &e))?;
    let parts: Vec<_> = parts.iter().map(Part::place).collect();
    py.detach(|| {
        let mut to = room.start();
        for (from, len) in parts {
            // SAFETY: the parts are held, and the room has as many bytes as all of them, which
            // nobody else knows yet. Python code that writes there meanwhile, in another thread,
            // spoils our copy and nothing else.
            unsafe { to.copy_from_nonoverlapping(from as *const u8, len) };
            to = to.wrapping_add(len);
        }
    });
    Ok(room.done())
}

/// A piece of a message, as a Python object: bytes that may be written to.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Piece {
    start: usize,
    len: usize,
    _piece: phalanx::pool::Piece,
}

impl Piece {
    /// A memoryview of it.
    pub fn view(py: Python<'_>, mut piece: phalanx::pool::Piece) -> PyResult<Bound<'_, PyAny>> {
        let (start, len) = (piece.start() as usize, piece.len());
        let piece = Bound::new(py, Self { start, len, _piece: piece })?;
        Ok(PyMemoryView::from(piece.as_any())?.into_any())
    }
}

#[pymethods]
impl Piece {
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
        let Self { start, len, .. } = slf.get();
        let (start, len) = (*start as *mut c_void, *len as ffi::Py_ssize_t);
        // SAFETY: the view keeps this object, which keeps the bytes at that address; they are this
        // process's own, or a private view, and Rust code does not look at them.
        let result = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 0, flags) };
        if result == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
