//! The values of `Value` and `Array`: taking the lock, and reading or writing, in one call.
//!
//! What has a ctypes object in shared memory is read and written by ctypes, whose errors and
//! conversions are what programs know. The plain cases - an `int` into a `c_int`, a `float` out of a
//! `c_double` - are done here, with the same result and no way through Python.

use std::sync::OnceLock;

use phalanx::shared::{Memory, Plain};
use pyo3::PyTraverseError;
use pyo3::PyVisit;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyMemoryView, PySlice, PyTuple};

use crate::buffer::Block;
use crate::errors::raise;
use crate::synchronize::{Lock, Patience, RLock};

/// What an element is, by its letter in ctypes and `array`.
#[derive(Clone, Copy)]
enum Kind {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
    Bool,
    Char,
}

impl Kind {
    fn new(letter: char) -> Option<Self> {
        Some(match letter {
            'b' => Self::I8,
            'B' => Self::U8,
            'h' => Self::I16,
            'H' => Self::U16,
            'i' => Self::I32,
            'I' => Self::U32,
            'l' | 'q' => Self::I64,
            'L' | 'Q' => Self::U64,
            'f' => Self::F32,
            'd' => Self::F64,
            '?' => Self::Bool,
            'c' => Self::Char,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool | Self::Char => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The element whose bytes these are.
    fn object<'py>(self, py: Python<'py>, word: u64) -> Bound<'py, PyAny> {
        match self {
            Self::I8 => PyInt::new(py, word as i8).into_any(),
            Self::U8 => PyInt::new(py, word as u8).into_any(),
            Self::I16 => PyInt::new(py, word as i16).into_any(),
            Self::U16 => PyInt::new(py, word as u16).into_any(),
            Self::I32 => PyInt::new(py, word as i32).into_any(),
            Self::U32 => PyInt::new(py, word as u32).into_any(),
            Self::I64 => PyInt::new(py, word as i64).into_any(),
            Self::U64 => PyInt::new(py, word).into_any(),
            Self::F32 => PyFloat::new(py, f32::from_bits(word as u32).into()).into_any(),
            Self::F64 => PyFloat::new(py, f64::from_bits(word)).into_any(),
            Self::Bool => PyBool::new(py, word as u8 != 0).to_owned().into_any(),
            Self::Char => PyBytes::new(py, &[word as u8]).into_any(),
        }
    }

    /// The bytes of an element, in the low bits; `None` for what is left to ctypes.
    fn word(self, value: &Bound<'_, PyAny>) -> Option<u64> {
        match self {
            Self::F32 => float(value).map(|float| u64::from((float as f32).to_bits())),
            Self::F64 => float(value).map(f64::to_bits),
            Self::Bool => Some(value.cast::<PyBool>().ok()?.is_true().into()),
            Self::Char => match value.cast::<PyBytes>().ok()?.as_bytes() {
                [byte] => Some(u64::from(*byte)),
                _ => None,
            },
            // As in C, what is too large for the type loses its high bits.
            _ => value.cast::<PyInt>().ok()?.extract::<i64>().ok().map(|int| int as u64),
        }
    }

    fn load(self, memory: &Memory, at: usize) -> Option<u64> {
        fn load<T: Plain + Into<u64>>(memory: &Memory, at: usize) -> Option<u64> {
            memory.load::<T>(at).ok().map(Into::into)
        }
        match self.size() {
            1 => load::<u8>(memory, at),
            2 => load::<u16>(memory, at),
            4 => load::<u32>(memory, at),
            _ => load::<u64>(memory, at),
        }
    }

    fn store(self, memory: &Memory, at: usize, word: u64) -> Option<()> {
        match self.size() {
            1 => memory.store(at, word as u8),
            2 => memory.store(at, word as u16),
            4 => memory.store(at, word as u32),
            _ => memory.store(at, word),
        }
        .ok()
    }
}

fn float(value: &Bound<'_, PyAny>) -> Option<f64> {
    if let Ok(float) = value.cast::<PyFloat>() {
        return Some(float.value());
    }
    value.cast::<PyInt>().ok()?.extract().ok()
}

/// The lock of a value.
enum Guard {
    /// One of ours, which needs no call.
    Lock(Py<Lock>),
    RLock(Py<RLock>),
    /// Whatever has `acquire` and `release`.
    Foreign {
        acquire: Py<PyAny>,
        release: Py<PyAny>,
    },
}

impl Guard {
    fn new(lock: &Bound<'_, PyAny>, is_ours: bool) -> PyResult<Self> {
        if is_ours {
            if let Ok(lock) = lock.cast::<RLock>() {
                return Ok(Self::RLock(lock.clone().unbind()));
            } else if let Ok(lock) = lock.cast::<Lock>() {
                return Ok(Self::Lock(lock.clone().unbind()));
            }
        }
        let acquire = lock.getattr(intern!(lock.py(), "acquire"))?.unbind();
        let release = lock.getattr(intern!(lock.py(), "release"))?.unbind();
        Ok(Self::Foreign { acquire, release })
    }

    #[inline]
    fn with<T>(&self, py: Python<'_>, call: impl FnOnce() -> T) -> PyResult<T> {
        match self {
            Self::Lock(lock) => Lock::take(lock.bind(py), &Patience::Endless).map(drop)?,
            Self::RLock(lock) => RLock::take(lock.bind(py), &Patience::Endless).map(drop)?,
            Self::Foreign { acquire, .. } => acquire.call0(py).map(drop)?,
        }
        let result = call();
        match self {
            Self::Lock(lock) => lock.get().release()?,
            Self::RLock(lock) => lock.get().release()?,
            Self::Foreign { release, .. } => release.call0(py).map(drop)?,
        }
        Ok(result)
    }

    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Lock(lock) => visit.call(lock),
            Self::RLock(lock) => visit.call(lock),
            Self::Foreign { acquire, release } => {
                visit.call(acquire)?;
                visit.call(release)
            }
        }
    }
}

/// A ctypes object with a lock.
struct Guarded {
    lock: Guard,
    object: Py<PyAny>,
    /// Where the object is, if it is nothing but elements of one kind.
    elements: Option<Elements>,
}

struct Elements {
    block: Py<Block>,
    kind: Kind,
    letter: char,
    count: usize,
}

impl Guarded {
    fn new(
        lock: Guard,
        object: Py<PyAny>,
        block: Option<Py<Block>>,
        letter: char,
    ) -> PyResult<Self> {
        let elements = block.zip(Kind::new(letter)).map(|(block, kind)| {
            let count = block.get().memory().len() / kind.size();
            Elements { block, kind, letter, count }
        });
        Ok(Self { lock, object, elements })
    }

    /// The element at `index`, if it is one.
    fn get<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some((elements, at)) = self.find(index) else { return Ok(None) };
        let memory = elements.block.get().memory();
        let word = self.lock.with(py, || elements.kind.load(memory, at))?;
        Ok(word.map(|word| elements.kind.object(py, word)))
    }

    /// Sets the element at `index`; false if that is left to ctypes.
    fn set(&self, py: Python<'_>, index: isize, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some((elements, at)) = self.find(index) else { return Ok(false) };
        let Some(word) = elements.kind.word(value) else { return Ok(false) };
        let memory = elements.block.get().memory();
        let done = self.lock.with(py, || elements.kind.store(memory, at, word))?;
        Ok(done.is_some())
    }

    fn find(&self, index: isize) -> Option<(&Elements, usize)> {
        let elements = self.elements.as_ref()?;
        let count = elements.count;
        let index = if index < 0 { count.checked_add_signed(index)? } else { index as usize };
        (index < count).then(|| (elements, index * elements.kind.size()))
    }

    /// The elements of a slice, as a list or `bytes`.
    fn get_slice<'py>(
        &self,
        py: Python<'py>,
        slice: &Bound<'py, PySlice>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(Elements { block, kind, letter, count }) = &self.elements else {
            return Ok(None);
        };
        let slice = slice.indices(isize::try_from(*count)?)?;
        let (memory, size) = (block.get().memory(), kind.size());
        let fill = |bytes: &mut [u8]| {
            if slice.step == 1 {
                return memory.read(slice.start as usize * size, bytes);
            }
            let at = |i: usize| (slice.start + i as isize * slice.step) as usize * size;
            let mut each = bytes.chunks_exact_mut(size).enumerate();
            each.try_for_each(|(i, element)| memory.read(at(i), element))
        };
        let bytes = self.lock.with(py, || {
            PyBytes::new_with(py, slice.slicelength * size, |bytes| {
                fill(bytes).map_err(|e| raise(py, &e))
            })
        })??;
        if let Kind::Char = kind {
            return Ok(Some(bytes.into_any()));
        }
        // Python's own loop makes numbers faster than calls from here do.
        let view = PyMemoryView::from(&bytes)?;
        let cast = view.call_method1(intern!(py, "cast"), (*letter,))?;
        cast.call_method0(intern!(py, "tolist")).map(Some)
    }

    /// Sets the elements of a slice; false if that is left to ctypes.
    fn set_slice(
        &self,
        py: Python<'_>,
        slice: &Bound<'_, PySlice>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let Some(Elements { block, kind, count, .. }) = &self.elements else { return Ok(false) };
        let slice = slice.indices(isize::try_from(*count)?)?;
        let words: Option<Vec<u64>> = if let Ok(list) = value.cast::<PyList>() {
            list.iter().map(|value| kind.word(&value)).collect()
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            tuple.iter_borrowed().map(|value| kind.word(&value)).collect()
        } else {
            None
        };
        let Some(words) = words.filter(|words| words.len() == slice.slicelength) else {
            return Ok(false);
        };
        let (memory, size) = (block.get().memory(), kind.size());
        let at = |i: usize| (slice.start + i as isize * slice.step) as usize * size;
        let done = self.lock.with(py, || {
            let mut each = words.iter().enumerate();
            each.try_for_each(|(i, word)| kind.store(memory, at(i), *word))
        })?;
        Ok(done.is_some())
    }

    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.lock.visit(visit)?;
        visit.call(&self.object)
    }
}

/// What `__init__` has to give, once.
type Slot = OnceLock<Guarded>;

fn fill(slot: &Slot, guarded: Guarded) -> PyResult<()> {
    slot.set(guarded).map_err(|_| PyRuntimeError::new_err("initialised twice"))
}

fn filled(slot: &Slot) -> PyResult<&Guarded> {
    slot.get().ok_or_else(|| PyValueError::new_err("__init__ of SynchronizedBase was not called"))
}

/// The inside of `Synchronized`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub struct Cell(Slot);

#[pymethods]
impl Cell {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self(Slot::new())
    }

    fn _bind(
        &self,
        lock: (Bound<'_, PyAny>, bool),
        object: Py<PyAny>,
        block: Option<Py<Block>>,
        letter: char,
    ) -> PyResult<()> {
        fill(&self.0, Guarded::new(Guard::new(&lock.0, lock.1)?, object, block, letter)?)
    }

    #[getter]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let guarded = filled(&self.0)?;
        if let Some(value) = guarded.get(py, 0)? {
            return Ok(value);
        }
        let object = guarded.object.bind(py);
        guarded.lock.with(py, || object.getattr(intern!(py, "value")))?
    }

    #[setter]
    fn set_value(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let guarded = filled(&self.0)?;
        if guarded.set(py, 0, value)? {
            return Ok(());
        }
        let object = guarded.object.bind(py);
        guarded.lock.with(py, || object.setattr(intern!(py, "value"), value))?
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.get().map_or(Ok(()), |guarded| guarded.visit(&visit))
    }
}

/// The inside of `SynchronizedArray`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub struct Cells(Slot);

#[pymethods]
impl Cells {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self(Slot::new())
    }

    fn _bind(
        &self,
        lock: (Bound<'_, PyAny>, bool),
        object: Py<PyAny>,
        block: Option<Py<Block>>,
        letter: char,
    ) -> PyResult<()> {
        fill(&self.0, Guarded::new(Guard::new(&lock.0, lock.1)?, object, block, letter)?)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        filled(&self.0)?.object.bind(py).len()
    }

    fn __getitem__<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (py, guarded) = (key.py(), filled(&self.0)?);
        let found = if let Ok(index) = key.cast::<PyInt>() {
            index.extract().map_or(Ok(None), |index| guarded.get(py, index))?
        } else if let Ok(slice) = key.cast::<PySlice>() {
            guarded.get_slice(py, slice)?
        } else {
            None
        };
        match found {
            Some(found) => Ok(found),
            None => guarded.lock.with(py, || guarded.object.bind(py).get_item(key))?,
        }
    }

    fn __setitem__(&self, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, guarded) = (key.py(), filled(&self.0)?);
        let done = if let Ok(index) = key.cast::<PyInt>() {
            index.extract().map_or(Ok(false), |index| guarded.set(py, index, value))?
        } else if let Ok(slice) = key.cast::<PySlice>() {
            guarded.set_slice(py, slice, value)?
        } else {
            false
        };
        if done {
            return Ok(());
        }
        guarded.lock.with(py, || guarded.object.bind(py).set_item(key, value))?
    }

    fn __delitem__(&self, _key: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err("an array in shared memory doesn't support item deletion"))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.get().map_or(Ok(()), |guarded| guarded.visit(&visit))
    }
}
