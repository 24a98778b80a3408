//! Objects to bytes and back, with the reducers that other libraries registered.
//!
//! `ForkingPickler.dumps` makes a pickler with a dispatch table of its own for each object, about
//! two microseconds; here a pickler and its buffer are kept and used again.

use std::mem::take;
use std::sync::{Mutex, PoisonError};

use phalanx::pool::{Buffer, LARGE, Parcel, Store};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyList};

use crate::buffer::{Held, Part, Piece, Snapshot, fill};
use crate::errors::raise;
use crate::plain;
use crate::repeats::Repeats;

/// What a pickler writes to: a stream, and what stays outside of it.
#[pyclass(frozen)]
struct Sink(Mutex<Written>);

#[derive(Default)]
struct Written {
    stream: Vec<u8>,
    /// Large pieces of the stream that were not copied into it, and where they belong.
    large: Vec<(usize, Held)>,
    /// Buffers that do not belong into it: pickle protocol 5, PEP 574.
    buffers: Vec<Held>,
    /// All is to be copied into the stream.
    whole: bool,
}

impl Sink {
    fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Sink {
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let mut written = self.written();
            let bytes = bytes.as_bytes();
            if bytes.len() < LARGE || written.whole {
                written.stream.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
        }
        let held = Held::new(data)?;
        let (len, mut written) = (held.len(), self.written());
        if len < LARGE || written.whole {
            held.append_to(py, &mut written.stream)?;
        } else {
            let at = written.stream.len();
            written.large.push((at, held));
        }
        Ok(len)
    }

    /// The pickler asks, of something that could stay outside: does it belong into the stream?
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        if self.written().whole {
            return Ok(true);
        }
        let held = Held::new(buffer)?;
        let inside = held.len() < LARGE;
        if !inside {
            self.written().buffers.push(held);
        }
        Ok(inside)
    }
}

/// An object's pickle, of which the large parts are where they were.
pub struct Loose {
    pub stream: Vec<u8>,
    large: Vec<(usize, Held)>,
    buffers: Vec<Held>,
}

impl Loose {
    pub fn plain(stream: Vec<u8>) -> Self {
        Self { stream, large: Vec::new(), buffers: Vec::new() }
    }

    /// Copies the large parts to where others can see them, unless they are there: the stream if it
    /// is small, and all buffers.
    pub fn pack(
        self,
        py: Python<'_>,
        store: &Store,
        mut repeats: Option<&mut Repeats>,
    ) -> PyResult<(Vec<u8>, Vec<Buffer>)> {
        let Self { stream, large, buffers } = self;
        let each = buffers.into_iter().map(|held| match (held.known(py, store)?, &mut repeats) {
            (Some(buffer), _) => Ok(buffer),
            (None, Some(repeats)) => repeats.buffer(py, store, held),
            (None, None) => fill(py, store, &[Part::Held(&held)]),
        });
        let buffers = each.collect::<PyResult<Vec<_>>>()?;
        if large.is_empty() {
            return Ok((stream, buffers));
        }
        let (mut parts, mut from) = (Vec::new(), 0);
        for (at, held) in &large {
            parts.extend([Part::Bytes(&stream[from..*at]), Part::Held(held)]);
            from = *at;
        }
        parts.push(Part::Bytes(&stream[from..]));
        let stream = fill(py, store, &parts)?;
        Ok((Vec::new(), std::iter::once(stream).chain(buffers).collect()))
    }

    /// A copy of all of it, which stays as it is: the stream, and the buffers.
    pub fn snapshot(self, py: Python<'_>) -> PyResult<(Snapshot, Vec<Snapshot>)> {
        let mut stream = Vec::new();
        let mut from = 0;
        for (at, held) in &self.large {
            stream.extend_from_slice(&self.stream[from..*at]);
            held.append_to(py, &mut stream)?;
            from = *at;
        }
        stream.extend_from_slice(&self.stream[from..]);
        let copy = |held: &Held| {
            let mut bytes = Vec::new();
            held.append_to(py, &mut bytes)?;
            Ok(Snapshot::new(bytes))
        };
        let buffers = self.buffers.iter().map(copy).collect::<PyResult<_>>()?;
        Ok((Snapshot::new(stream), buffers))
    }
}

struct Kept {
    sink: Py<Sink>,
    pickler: Py<PyAny>,
    /// Its methods.
    dump: Py<PyAny>,
    clear_memo: Py<PyAny>,
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
        let (imports, callback) = (true, &sink);
        let args = (&sink, PROTOCOL, imports, callback);
        let pickler = names(py)?.pickler.bind(py).call1(args)?;
        let (dump, clear_memo) = (pickler.getattr("dump")?, pickler.getattr("clear_memo")?);
        let (dump, clear_memo) = (dump.unbind(), clear_memo.unbind());
        Ok(Self { sink, pickler: pickler.unbind(), dump, clear_memo, reducers: (usize::MAX, 0) })
    }

    fn dump(&mut self, py: Python<'_>, object: &Bound<'_, PyAny>, whole: bool) -> PyResult<Loose> {
        let Names { extra, copyreg, .. } = names(py)?;
        let (extra, copyreg) = (extra.bind(py), copyreg.bind(py));
        let reducers = (extra.len(), copyreg.len());
        if self.reducers != reducers {
            let table = copyreg.copy()?;
            table.update(extra.as_mapping())?;
            self.pickler.bind(py).setattr("dispatch_table", table)?;
            self.reducers = reducers;
        }
        self.sink.get().written().whole = whole;
        self.dump.bind(py).call1((object,))?;
        self.clear_memo.bind(py).call0()?;
        let mut written = self.sink.get().written();
        let (large, buffers) = (take(&mut written.large), take(&mut written.buffers));
        if written.stream.capacity() > KEEP {
            return Ok(Loose { stream: take(&mut written.stream), large, buffers });
        }
        let stream = written.stream.as_slice().to_vec();
        written.stream.clear();
        Ok(Loose { stream, large, buffers })
    }
}

fn idle() -> std::sync::MutexGuard<'static, Vec<Kept>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pickle of an object.
pub fn dumps(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    Ok(dump(py, object, true)?.stream)
}

/// The pickle of an object, of which the large parts stay where they are.
pub fn dumps_loose(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Loose> {
    dump(py, object, false)
}

fn dump(py: Python<'_>, object: &Bound<'_, PyAny>, whole: bool) -> PyResult<Loose> {
    if let Some(stream) = plain::write(object) {
        return Ok(Loose::plain(stream));
    }
    let kept = idle().pop();
    let mut kept = match kept {
        Some(kept) => kept,
        None => Kept::new(py)?,
    };
    // A pickler that raised may hold half an object: it is not kept.
    let pickle = kept.dump(py, object, whole)?;
    idle().push(kept);
    Ok(pickle)
}

/// The object of a pickle.
pub fn loads<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match plain::read(py, bytes) {
        Some(value) => Ok(value),
        None => load(py, &PyBytes::new(py, bytes)),
    }
}

/// The object of a pickle that Python has as an object.
pub fn load<'py>(py: Python<'py>, bytes: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    names(py)?.loads.bind(py).call1((bytes,))
}

/// The object that a message holds.
pub fn loads_parcel<'py>(py: Python<'py>, parcel: &Parcel) -> PyResult<Bound<'py, PyAny>> {
    if let Some(bytes) = parcel.whole() {
        return loads(py, bytes);
    }
    let pieces = parcel.pieces().map(|piece| Piece::view(py, piece.map_err(|e| raise(py, &e))?));
    let mut pieces = pieces.collect::<PyResult<Vec<_>>>()?.into_iter().peekable();
    // A stream that is a large one is the first of the buffers, and there is nothing before it.
    let mut stream = pieces.next();
    if stream.as_ref().is_some_and(|stream| stream.len().is_ok_and(|len| len == 0)) {
        stream = pieces.next();
    }
    let buffers = PyList::new(py, pieces.collect::<Vec<_>>())?;
    let kwargs = [("buffers", buffers)].into_py_dict(py)?;
    names(py)?.loads.bind(py).call((stream,), Some(&kwargs))
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
    pub pickle: Loose,
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
    let names_main = |stream: &[u8]| stream.windows(MAIN.len()).any(|part| part == MAIN);
    let bytes = match dumps_loose(py, object) {
        Ok(pickle) if main_by_value && names_main(&pickle.stream) => {
            carry(py, "dumps_by_value", (object, what))?
        }
        Ok(pickle) => return Ok(Pickled { pickle, by_value: false }),
        Err(error) => carry(py, "dumps_again", (object, what, error.value(py)))?,
    };
    let pickle = Loose::plain(bytes.cast::<PyBytes>()?.as_bytes().to_vec());
    Ok(Pickled { pickle, by_value: true })
}
