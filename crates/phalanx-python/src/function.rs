//! What a task calls, and how it gets to the worker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use phalanx::pool::{Code, Store, Task, Terms};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::pickle::{Pickled, carry, dumps, dumps_argument};
use crate::repeats::Repeats;

/// How a task's payload is to be read: the low bits of its shape.
pub mod shape {
    /// `x`: call `f(x)`.
    pub const ONE: u8 = 1;
    /// A sequence: call `f(*args)`.
    pub const ARGS: u8 = 2;
    /// `(args, kwargs)`: call `f(*args, **kwargs)`.
    pub const CALL: u8 = 3;
    /// A sequence: call `f(x)` for each, and return a list.
    pub const EACH: u8 = 4;
    /// A sequence of sequences: call `f(*args)` for each, and return a list.
    pub const STAR: u8 = 5;
    /// Set if a result that cannot be sent is told by the pickler's own exception.
    pub const OWN_ERROR: u8 = 0x20;
    /// Set if the payload is `(f, payload)`: the function is not kept.
    pub const WITH_FUNCTION: u8 = 0x40;
    /// Set if the function went by value: then so may what it returns.
    pub const BY_VALUE: u8 = 0x80;
}

/// A function, ready to be put into tasks.
#[derive(Clone)]
pub struct Function {
    /// Kept by workers; without it, the object goes with each task.
    code: Option<Arc<Code>>,
    object: Arc<Py<PyAny>>,
    by_value: bool,
    /// What goes by value if it belongs to `__main__`.
    main_by_value: bool,
    /// Of each of its tasks, in this call.
    pub terms: Terms,
}

impl Function {
    /// A task of this function, one of several of one call with `repeats`.
    pub fn task(
        &self,
        py: Python<'_>,
        store: &Store,
        shape: u8,
        payload: &Bound<'_, PyAny>,
        what: &str,
        repeats: Option<&mut Repeats>,
    ) -> PyResult<Task> {
        let mut terms = self.terms;
        if let Some(timeout) = &mut terms.timeout
            && matches!(shape, shape::EACH | shape::STAR)
        {
            *timeout = timeout.saturating_mul(payload.len()? as u32); // it is that of an item
        }
        let mut shape = shape | if self.by_value { shape::BY_VALUE } else { 0 };
        let Pickled { pickle, by_value } = if self.code.is_some() {
            dumps_argument(py, payload, what, self.main_by_value)?
        } else {
            shape |= shape::WITH_FUNCTION;
            let pair = (self.object.bind(py), payload).into_pyobject(py)?;
            dumps_argument(py, &pair, "(function, arguments)", self.main_by_value)?
        };
        if by_value {
            shape |= shape::BY_VALUE;
        }
        let (payload, buffers) = pickle.pack(py, store, repeats)?;
        let mut task = Task::new(self.code.clone(), shape, payload);
        task.buffers = buffers;
        task.terms = Some(terms);
        Ok(task)
    }

    /// Its name, for who asks what a lost task was: `module.name`.
    pub fn name(&self, py: Python<'_>) -> Option<String> {
        let object = self.object.bind(py);
        let name =
            object.getattr("__qualname__").or_else(|_| object.get_type().getattr("__qualname__"));
        let module = object.getattr("__module__").ok().filter(|module| !module.is_none());
        let name = name.ok()?.to_string();
        Some(module.map_or(name.clone(), |module| format!("{module}.{name}")))
    }
}

/// The functions that were used last: each goes to a worker once.
#[derive(Default)]
pub struct Functions {
    /// By identity, for those whose pickle is their name; the object is held, so that the
    /// identity stays its own.
    by_reference: Mutex<HashMap<usize, Function>>,
    /// By their bytes: a closure may have changed since it was sent.
    by_value: Mutex<HashMap<Vec<u8>, Arc<Code>>>,
    main_by_value: bool,
}

/// Functions of each kind that are remembered.
const KEPT: usize = 64;

impl Functions {
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        let importable = carry(py, "main_is_importable", ())?.extract::<bool>()?;
        Ok(Self { main_by_value: !importable, ..Self::default() })
    }

    /// The function of a call, on these terms.
    pub fn get(
        &self,
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        terms: Terms,
    ) -> PyResult<Function> {
        Ok(Function { terms, ..self.known(py, object)? })
    }

    fn known(&self, py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Function> {
        let terms = Terms::default();
        let key = object.as_ptr() as usize;
        if let Some(function) = lock(&self.by_reference).get(&key) {
            return Ok(function.clone());
        }
        if !object.is_callable() {
            let kind = object.get_type().qualname()?;
            return Err(PyTypeError::new_err(format!("'{kind}' object is not callable")));
        }
        let main_by_value = self.main_by_value;
        let held = Arc::new(object.clone().unbind());
        if !carry(py, "is_by_reference", (object,))?.extract::<bool>()? {
            let by_value = false;
            return Ok(Function { code: None, object: held, by_value, main_by_value, terms });
        }
        let what = "the function";
        let (bytes, by_value) = match dumps(py, object) {
            Ok(bytes) if !main_by_value => (bytes, false),
            _ => {
                let Pickled { pickle, by_value } = dumps_argument(py, object, what, main_by_value)?;
                (pickle.stream, by_value)
            }
        };
        if by_value {
            let code = keep(&mut lock(&self.by_value), bytes.clone(), || Code::new(bytes));
            return Ok(Function { code: Some(code), object: held, by_value, main_by_value, terms });
        }
        carry(py, "note", (object,))?;
        let code = Some(Code::new(bytes));
        let function = Function { code, object: held, by_value, main_by_value, terms };
        Ok(keep(&mut lock(&self.by_reference), key, || function))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks a value up or adds it, forgetting all others when there are too many.
fn keep<K: std::hash::Hash + Eq, V: Clone>(
    map: &mut HashMap<K, V>,
    key: K,
    make: impl FnOnce() -> V,
) -> V {
    if map.len() >= KEPT && !map.contains_key(&key) {
        // What is dropped here may be Python objects, whose destructors run anything.
        let forgotten = std::mem::take(map);
        drop(forgotten);
    }
    map.entry(key).or_insert_with(make).clone()
}
