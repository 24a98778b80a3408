//! The worker's loop: take a task, unpickle, call, pickle, send.

use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use phalanx::pool::{Buffer, Duty, End, Parcel, Store, Voice, Worker as Engine};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::buffer::Piece;
use crate::errors::raise;
use crate::function::shape;
use crate::pickle::{Loose, carry, dumps, dumps_loose, loads, loads_parcel};
use crate::terms::{listen, was_worth};

/// A signal that arrives just before a worker sleeps is seen after so long at the latest.
const SLICE: Duration = Duration::from_secs(1);

/// A worker of a pool, in its own process.
#[pyclass(unsendable, module = "phalanx._phalanx")]
pub struct Worker {
    engine: Engine,
    /// What tasks call, by the slot of its id; an error if it could not be unpickled.
    functions: Vec<Option<(u64, PyResult<Py<PyAny>>)>>,
}

#[pymethods]
impl Worker {
    /// Takes a seat. The descriptors become the worker's own.
    #[new]
    fn new(
        py: Python<'_>,
        memory: RawFd,
        event: RawFd,
        lifeline: RawFd,
        seat: usize,
        tree: bool,
    ) -> PyResult<Self> {
        let engine = Engine::sit(memory, event, lifeline, seat, tree).map_err(|e| raise(py, &e))?;
        *STORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine.store().clone());
        *VOICE.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine.voice());
        listen(engine.ear());
        Ok(Self { engine, functions: (0..Engine::CODES).map(|_| None).collect() })
    }

    /// Says that this worker cannot be readied.
    fn unfit(&mut self, message: &str, traceback: &str) {
        self.engine.unfit(message, traceback);
    }

    /// Runs tasks until the pool says to leave, or `maxtasks` of them have been run.
    #[pyo3(signature = (maxtasks=None))]
    fn serve(&mut self, py: Python<'_>, maxtasks: Option<u64>) -> PyResult<()> {
        self.engine.ready(maxtasks, true);
        loop {
            match self.engine.duty().map_err(|e| raise(py, &e))? {
                Duty::Define(id, bytes) => {
                    let function = loads(py, &bytes).map(Bound::unbind);
                    self.functions[(id % Engine::CODES as u64) as usize] = Some((id, function));
                }
                Duty::Run(code, shape, arguments) => {
                    let (end, pickle) = self.run(py, code, shape, arguments);
                    if !self.engine.is_here() {
                        return Ok(());
                    }
                    let store = self.engine.store();
                    let (end, stream, buffers) = match settle(py, store, pickle) {
                        Ok((stream, buffers)) => (end, stream, buffers),
                        // No memory for a large result.
                        Err(error) => (End::Failed, describe(py, &error, false), Vec::new()),
                    };
                    self.engine.finish(end, stream, buffers);
                }
                Duty::Idle => {
                    let engine = &mut self.engine;
                    let slice = Instant::now() + SLICE;
                    py.detach(|| engine.sleep(Some(slice)));
                    py.check_signals()?;
                }
                Duty::Leave => return Ok(()),
            }
        }
    }
}

impl Worker {
    /// Runs a task: how it ended, and the pickle of its result or the envelope of its error.
    fn run(&self, py: Python<'_>, code: u64, kind: u8, arguments: Parcel) -> (End, Loose) {
        let by_value = kind & shape::BY_VALUE != 0;
        was_worth(); // what was said of an exception that a task has caught since does not count
        let result = match self.call(py, code, kind, arguments) {
            Ok(result) => result,
            Err(error) => {
                let end = if was_worth() { End::Unlucky } else { End::Failed };
                return (end, Loose::plain(describe(py, &error, by_value)));
            }
        };
        match dumps_loose(py, &result) {
            Ok(pickle) => (End::Returned, pickle),
            Err(error) => {
                let again = by_value
                    .then(|| carry(py, "dumps_by_value", (&result, "the result")).ok())
                    .flatten()
                    .and_then(|bytes| Some(bytes.cast::<PyBytes>().ok()?.as_bytes().to_vec()));
                if let Some(bytes) = again {
                    return (End::Returned, Loose::plain(bytes));
                }
                if kind & shape::OWN_ERROR != 0 {
                    return (End::Failed, Loose::plain(describe(py, &error, by_value)));
                }
                let envelope = carry(py, "describe_result", (error.value(py), result));
                (End::Failed, Loose::plain(envelope_bytes(py, envelope)))
            }
        }
    }

    fn call<'py>(
        &self,
        py: Python<'py>,
        code: u64,
        kind: u8,
        arguments: Parcel,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut payload = loads_parcel(py, &arguments)?;
        // Who goes on using large arguments holds on to them.
        drop(arguments);
        let function = if kind & shape::WITH_FUNCTION != 0 {
            let (function, rest) = payload.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>()?;
            payload = rest;
            function
        } else {
            match &self.functions[(code % Engine::CODES as u64) as usize] {
                Some((id, function)) if *id == code => match function {
                    Ok(function) => function.bind(py).clone(),
                    Err(error) => return Err(error.clone_ref(py)),
                },
                _ => return Err(PyRuntimeError::new_err("a task came before its function")),
            }
        };
        let sequence = |args: &Bound<'py, PyAny>| match args.cast::<PyTuple>() {
            Ok(args) => Ok(args.clone()),
            Err(_) => PyTuple::new(py, args.try_iter()?.collect::<PyResult<Vec<_>>>()?),
        };
        match kind & 0x1f {
            shape::ONE => function.call1((payload,)),
            shape::ARGS => function.call1(sequence(&payload)?),
            shape::CALL => {
                let (args, kwargs) =
                    payload.extract::<(Bound<'py, PyTuple>, Bound<'py, PyDict>)>()?;
                function.call(args, Some(&kwargs))
            }
            // The interpreter's own loops call faster than the stable ABI lets us.
            shape::EACH => {
                let each = names(py)?.map.bind(py).call1((function, payload))?;
                names(py)?.list.bind(py).call1((each,))
            }
            _ => {
                let each = names(py)?.starmap.bind(py).call1((function, payload))?;
                names(py)?.list.bind(py).call1((each,))
            }
        }
    }
}

/// Puts a result where its receiver can see it, and where nobody can change it any more.
fn settle(py: Python<'_>, store: &Store, pickle: Loose) -> PyResult<(Vec<u8>, Vec<Buffer>)> {
    let (stream, buffers) = pickle.pack(py, store, None)?;
    let buffers = buffers.into_iter().map(|buffer| store.settled(buffer));
    Ok((stream, buffers.collect::<Result<_, _>>().map_err(|e| raise(py, &e))?))
}

/// Where this process's results go, if it is a worker.
static STORE: Mutex<Option<Store>> = Mutex::new(None);

/// Room for `len` bytes of a result; `None` if this is no worker, or there is none.
#[pyfunction]
pub fn loan(len: usize) -> Option<Piece> {
    let store = STORE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    store.and_then(|store| store.loan(len)).map(Piece::lent)
}

/// What the threads of this process say to its owner, if it is a worker.
static VOICE: Mutex<Option<Voice>> = Mutex::new(None);

/// Sends the worker's owner a note, which comes as an errand there. False: this is no worker.
#[pyfunction]
pub fn say(py: Python<'_>, note: &[u8]) -> bool {
    let voice = VOICE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    voice.is_some_and(|voice| py.detach(|| voice.say(note)))
}

struct Names {
    list: Py<PyAny>,
    map: Py<PyAny>,
    starmap: Py<PyAny>,
}

fn names(py: Python<'_>) -> PyResult<&Names> {
    static NAMES: PyOnceLock<Names> = PyOnceLock::new();
    NAMES.get_or_try_init(py, || {
        let builtins = py.import("builtins")?;
        Ok(Names {
            list: builtins.getattr("list")?.unbind(),
            map: builtins.getattr("map")?.unbind(),
            starmap: py.import("itertools")?.getattr("starmap")?.unbind(),
        })
    })
}

fn describe(py: Python<'_>, error: &PyErr, by_value: bool) -> Vec<u8> {
    let value = error.value(py);
    // Before CPython 3.12 the two are kept apart.
    let traced = value.setattr("__traceback__", error.traceback(py));
    envelope_bytes(py, traced.and_then(|()| carry(py, "describe", (value, by_value))))
}

/// The bytes of an envelope; if even that failed, of one that says so.
fn envelope_bytes(py: Python<'_>, envelope: PyResult<Bound<'_, PyAny>>) -> Vec<u8> {
    let bytes = envelope.and_then(|envelope| envelope.extract::<Vec<u8>>());
    bytes.unwrap_or_else(|error| {
        let text = error.to_string();
        let plain = (py.None(), "RuntimeError", "an exception could not be described", text);
        plain.into_pyobject(py).and_then(|plain| dumps(py, plain.as_any())).unwrap_or_default()
    })
}
