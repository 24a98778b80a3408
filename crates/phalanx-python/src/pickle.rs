//! Objects to bytes and back, with the reducers that other libraries registered.
//!
//! `ForkingPickler.dumps` makes a pickler with a dispatch table of its own for each object, about
//! two microseconds; here a pickler and its buffer are kept and used again.

use std::sync::{Mutex, PoisonError};

use pyo3::buffer::PyBuffer;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict};

/// What a pickler writes to.
#[pyclass(frozen)]
struct Sink(Mutex<Vec<u8>>);

impl Sink {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Sink {
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            self.bytes().extend_from_slice(bytes.as_bytes());
            return Ok(bytes.as_bytes().len());
        }
        let buffer = PyBuffer::<u8>::get(data)?;
        let mut bytes = self.bytes();
        let start = bytes.len();
        bytes.resize(start + buffer.len_bytes(), 0);
        buffer.copy_to_slice(py, &mut bytes[start..])?;
        Ok(buffer.len_bytes())
    }
}

struct Kept {
    sink: Py<Sink>,
    pickler: Py<PyAny>,
    /// How many reducers the pickler's table was made from.
    reducers: (usize, usize),
}

/// Picklers that nobody is using: pickling may come back here, and other threads come too.
static IDLE: Mutex<Vec<Kept>> = Mutex::new(Vec::new());
/// What was written once may be large; a buffer of more than this is not kept.
const KEEP: usize = 1 << 20;

struct Names {
    pickler: Py<PyAny>,
    loads: Py<PyAny>,
    extra: Py<PyDict>,
    copyreg: Py<PyDict>,
}

fn names(py: Python<'_>) -> PyResult<&Names> {
    static NAMES: PyOnceLock<Names> = PyOnceLock::new();
    NAMES.get_or_try_init(py, || {
        let pickle = py.import("pickle")?;
        let forking = py.import("multiprocessing.reduction")?.getattr("ForkingPickler")?;
        Ok(Names {
            pickler: pickle.getattr("Pickler")?.unbind(),
            loads: pickle.getattr("loads")?.unbind(),
            extra: forking.getattr("_extra_reducers")?.cast_into::<PyDict>()?.unbind(),
            copyreg: py
                .import("copyreg")?
                .getattr("dispatch_table")?
                .cast_into::<PyDict>()?
                .unbind(),
        })
    })
}

impl Kept {
    fn new(py: Python<'_>) -> PyResult<Self> {
        const PROTOCOL: u8 = 5;
        let sink = Py::new(py, Sink(Mutex::default()))?;
        let pickler = names(py)?.pickler.bind(py).call1((&sink, PROTOCOL))?.unbind();
        Ok(Self { sink, pickler, reducers: (usize::MAX, 0) })
    }

    fn dump(&mut self, py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        let Names { extra, copyreg, .. } = names(py)?;
        let (extra, copyreg) = (extra.bind(py), copyreg.bind(py));
        let pickler = self.pickler.bind(py);
        let reducers = (extra.len(), copyreg.len());
        if self.reducers != reducers {
            let table = copyreg.copy()?;
            table.update(extra.as_mapping())?;
            pickler.setattr("dispatch_table", table)?;
            self.reducers = reducers;
        }
        pickler.call_method1(intern!(py, "dump"), (object,))?;
        pickler.call_method0(intern!(py, "clear_memo"))?;
        let mut buffer = self.sink.get().bytes();
        if buffer.capacity() > KEEP {
            return Ok(std::mem::take(&mut *buffer));
        }
        let bytes = buffer.as_slice().to_vec();
        buffer.clear();
        Ok(bytes)
    }
}

fn idle() -> std::sync::MutexGuard<'static, Vec<Kept>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pickle of an object.
pub fn dumps(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let kept = idle().pop();
    let mut kept = match kept {
        Some(kept) => kept,
        None => Kept::new(py)?,
    };
    // A pickler that raised may hold half an object: it is not kept.
    let bytes = kept.dump(py, object)?;
    idle().push(kept);
    Ok(bytes)
}

/// The object of a pickle.
pub fn loads<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    load(py, &PyBytes::new(py, bytes))
}

/// The object of a pickle that Python has as an object.
pub fn load<'py>(py: Python<'py>, bytes: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    names(py)?.loads.bind(py).call1((bytes,))
}

/// A function of `phalanx._carry`, where the rare cases are dealt with.
pub fn carry<'py>(
    py: Python<'py>,
    function: &str,
    args: impl pyo3::call::PyCallArgs<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    py.import("phalanx._carry")?.getattr(function)?.call1(args)
}

/// The pickle of an object that goes to a worker.
pub struct Pickled {
    pub bytes: Vec<u8>,
    /// Something in it has no name that the worker can import.
    pub by_value: bool,
}

/// The pickle of the arguments of a call, by value where it cannot be by reference.
///
/// `what` is how the caller names the object, for the error that says which part cannot be sent.
/// With `main_by_value`, what belongs to `__main__` cannot be imported by workers.
pub fn dumps_argument(
    py: Python<'_>,
    object: &Bound<'_, PyAny>,
    what: &str,
    main_by_value: bool,
) -> PyResult<Pickled> {
    const MAIN: &[u8] = b"__main__";
    let bytes = match dumps(py, object) {
        Ok(bytes) if main_by_value && bytes.windows(MAIN.len()).any(|part| part == MAIN) => {
            carry(py, "dumps_by_value", (object, what))?
        }
        Ok(bytes) => return Ok(Pickled { bytes, by_value: false }),
        Err(error) => carry(py, "dumps_again", (object, what, error.value(py)))?,
    };
    Ok(Pickled { bytes: bytes.cast::<PyBytes>()?.as_bytes().to_vec(), by_value: true })
}
