//! Memory under Python's buffer protocol, and the other way round: the one file of the glue with
//! `unsafe`.
//!
//! Python code reads and writes buffers as it likes, `memoryview`, ctypes and numpy alike, while
//! other processes do the same. That is theirs to order; here it is only seen to that the memory
//! stays where it is as long as somebody has a view of it.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use phalanx::pool::{Buffer, Kept, LARGE, Loan, Store};
use phalanx::shared::{Memory, advise_huge};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};
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
        // SAFETY: this object keeps its memory mapped at that address.
        unsafe { fill_in(slf, view, memory.as_ptr() as usize, memory.len(), flags) }
    }
}

/// Fills in a view of bytes that may be written to.
///
/// # Safety
///
/// `view` points to a `Py_buffer` that may be written; the bytes stay where they are as long as `owner`
/// does, and Rust code has no references to them.
unsafe fn fill_in<T>(
    owner: &Bound<'_, T>,
    view: *mut ffi::Py_buffer,
    start: usize,
    len: usize,
    flags: c_int,
) -> PyResult<()> {
    // Cannot overflow: no allocation is larger than `isize::MAX`.
    let len = len as ffi::Py_ssize_t;
    // SAFETY: the view keeps the owner, which keeps the bytes at that address.
    let result = unsafe {
        ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start as *mut c_void, len, 0, flags)
    };
    if result == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}

/// Bytes of a Python object in one piece. Until this is dropped they stay where they are.
pub struct Held {
    bytes: PyBuffer<u8>,
    /// Whose they are, if they will not change.
    snapshot: Option<Py<Snapshot>>,
}

impl Held {
    /// Of anything that has the buffer protocol and is in one piece, whatever it is made of.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        // A `PickleBuffer` has its object's type, say float64; `raw` is its bytes in one piece.
        let raw = object.getattr_opt(intern!(py, "raw"))?;
        let raw = raw.map(|raw| raw.call0()).transpose()?;
        let bytes = PyBuffer::<u8>::get(raw.as_ref().unwrap_or(object))?;
        let owner = match raw {
            Some(raw) if bytes.len_bytes() >= LARGE => {
                raw.getattr(intern!(py, "obj"))?.cast_into().ok()
            }
            _ => None,
        };
        Ok(Self { bytes, snapshot: owner.map(Bound::unbind) })
    }

    pub fn len(&self) -> usize {
        self.bytes.len_bytes()
    }

    /// Tells these bytes from all others that are held now.
    pub fn place(&self) -> (usize, usize) {
        (self.bytes.buf_ptr() as usize, self.len())
    }

    /// Appends a copy of the bytes.
    pub fn append_to(&self, py: Python<'_>, to: &mut Vec<u8>) -> PyResult<()> {
        let start = to.len();
        to.try_reserve_exact(self.len()).map_err(|_| PyMemoryError::new_err(()))?;
        to.resize(start + self.len(), 0);
        self.bytes.copy_to_slice(py, &mut to[start..])
    }

    /// The bytes as what is sent, without a copy if others see them already.
    pub fn known(&self, py: Python<'_>, store: &Store) -> PyResult<Option<Buffer>> {
        let (start, len) = self.place();
        if let Some(lent) = store.lent(start, len) {
            return Ok(Some(lent));
        }
        self.snapshot.as_ref().map(|it| it.get().buffer(py, store, self)).transpose()
    }
}

/// Bytes that stay as they are and are sent again and again: copied once for each store.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Snapshot {
    start: usize,
    bytes: Vec<u8>,
    kept: Mutex<Vec<Kept>>,
}

impl Snapshot {
    pub fn new(mut bytes: Vec<u8>) -> Self {
        Self { start: bytes.as_mut_ptr() as usize, bytes, kept: Mutex::default() }
    }

    fn buffer(&self, py: Python<'_>, store: &Store, held: &Held) -> PyResult<Buffer> {
        let find = || {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(|kept| !kept.is_gone());
            kept.iter().find_map(|kept| kept.buffer(store))
        };
        if let Some(buffer) = find() {
            return Ok(buffer);
        }
        // Others run meanwhile, and may do the same: then there are two.
        let buffer = fill(py, store, &[Part::Held(held)])?;
        let kept = store.keep(buffer.clone());
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        Ok(buffer)
    }
}

#[pymethods]
impl Snapshot {
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
        let Self { start, bytes, .. } = slf.get();
        // SAFETY: this object keeps its bytes where they are, and nothing here looks at them.
        unsafe { fill_in(slf, view, *start, bytes.len(), flags) }
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
    // New pages take longer than the copy.
    let mut room = py.detach(|| store.room(len)).map_err(|e| raise(py, &e))?;
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

/// New bytes, zeros, which are then filled: on huge pages if there are many.
pub fn bytes_with(
    py: Python<'_>,
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> PyResult<()>,
) -> PyResult<Bound<'_, PyBytes>> {
    let size = ffi::Py_ssize_t::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
    // SAFETY: without a source, it makes bytes that are not filled, or raises.
    let bytes = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) };
    // SAFETY: a new object, or null.
    let bytes = unsafe { Bound::from_owned_ptr_or_err(py, bytes) }?.cast_into::<PyBytes>()?;
    // SAFETY: these are bytes.
    let start = unsafe { ffi::PyBytes_AsString(bytes.as_ptr()) }.cast::<MaybeUninit<u8>>();
    // SAFETY: as many bytes are there, which nobody else knows yet.
    let room = unsafe { std::slice::from_raw_parts_mut(start, len) };
    advise_huge(room);
    room.fill(MaybeUninit::new(0));
    // SAFETY: the same bytes, all of which were written just now.
    fill(unsafe { std::slice::from_raw_parts_mut(start.cast(), len) })?;
    Ok(bytes)
}

/// Bytes that Rust code has, as a Python object; they may be written to.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Piece {
    start: usize,
    len: usize,
    _keep: Box<dyn Send + Sync>,
}

impl Piece {
    /// A memoryview of a piece of a message.
    pub fn view(py: Python<'_>, mut piece: phalanx::pool::Piece) -> PyResult<Bound<'_, PyAny>> {
        let (start, len) = (piece.start() as usize, piece.len());
        let piece = Bound::new(py, Self { start, len, _keep: Box::new(piece) })?;
        Ok(PyMemoryView::from(piece.as_any())?.into_any())
    }

    /// Bytes that can be sent as they are.
    pub fn lent(loan: Loan) -> Self {
        let (start, len) = (loan.start() as usize, loan.len());
        Self { start, len, _keep: Box::new(loan) }
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
        // SAFETY: this object keeps the bytes at that address; they are this process's own, or a
        // private view, or lent to whoever has this.
        unsafe { fill_in(slf, view, *start, *len, flags) }
    }
}
