//! The futures of an executor: made when a task is submitted, completed in batches.
//!
//! All tasks of an executor have one group, and one thread waits for it (`run`). It takes whatever
//! has arrived while it waited, unpickles it, and completes the futures; the interpreter's lock is
//! taken once for all of it.
//!
//! A future of ours makes its lock when somebody asks for it (`phalanx/futures.py`), and most are
//! completed before anybody does. Such a future is completed here by two entries of its `__dict__`:
//! nobody can be waiting for it or have a callback, since that needs its lock, and nothing runs in
//! between, since the interpreter's lock is held and no Python code is called. All others are
//! completed by `Future.set_result`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx::pool::{Core, Group, Next, Outcome, Until};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::errors::raise;
use crate::function::{Function, Functions, shape};
use crate::outcome::value;
use crate::pool::Pool;

/// So many are completed before other threads of the interpreter are let in.
const BATCH: usize = 1024;

/// See the module.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub struct Futures {
    core: Arc<Core>,
    functions: Functions,
    group: Arc<Group>,
    /// Makes a future that has nothing yet.
    make: Py<PyAny>,
    /// Called with a future, its exception, and whether that is another's than the task's.
    fail: Py<PyAny>,
    table: Mutex<Table>,
    closed: AtomicBool,
    names: Names,
}

/// The names that a future's attributes have.
///
/// Made beforehand: `pyo3::intern!` lets other threads in when it makes one.
struct Names {
    dict: Py<PyString>,
    engine: Py<PyString>,
    name: Py<PyString>,
    condition: Py<PyString>,
    result: Py<PyString>,
    state: Py<PyString>,
    finished: Py<PyString>,
    set_result: Py<PyString>,
}

impl Names {
    fn new(py: Python<'_>) -> Self {
        let name = |name: &str| PyString::intern(py, name).unbind();
        Self {
            dict: name("__dict__"),
            engine: name("_engine"),
            name: name("_name"),
            condition: name("_condition"),
            result: name("_result"),
            state: name("_state"),
            finished: name("FINISHED"),
            set_result: name("set_result"),
        }
    }
}

#[derive(Default)]
struct Table {
    /// What the next future is called in the group.
    next: u64,
    waiting: HashMap<u64, Waiting>,
}

struct Waiting {
    future: Py<PyAny>,
    function: Function,
    task: u64,
}

#[pymethods]
impl Futures {
    #[new]
    fn new(py: Python<'_>, pool: &Pool, make: Py<PyAny>, fail: Py<PyAny>) -> PyResult<Self> {
        Ok(Self {
            core: pool.core(),
            functions: Functions::new(py)?,
            group: Arc::new(Group::as_completed()),
            make,
            fail,
            table: Mutex::default(),
            closed: AtomicBool::new(false),
            names: Names::new(py),
        })
    }

    /// Submits a call and returns its future. What cannot be sent fails the future.
    fn submit<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let future = this.make.bind(py).call0()?;
        let task = this.functions.get(py, function, this.core.terms()).and_then(|function| {
            let store = this.core.store();
            let task = if kwargs.is_empty() {
                function.task(py, store, shape::OWN_ERROR | shape::ARGS, args, "args", None)?
            } else {
                let both = (args, kwargs).into_pyobject(py)?;
                function.task(
                    py,
                    store,
                    shape::OWN_ERROR | shape::CALL,
                    &both,
                    "(args, kwargs)",
                    None,
                )?
            };
            Ok((function, task))
        });
        let (function, task) = match task {
            Ok(task) => task,
            Err(error) => {
                this.core.check().map_err(|e| raise(py, &e))?;
                this.fail.bind(py).call1((&future, error.into_value(py), false))?;
                return Ok(future);
            }
        };
        let name = {
            let mut table = this.table();
            table.next += 1;
            table.next
        };
        future.setattr(&this.names.engine, slf)?;
        future.setattr(&this.names.name, name)?;
        // Its outcome may arrive at once, but is looked at by who has the interpreter's lock.
        let task = this.core.submit(&this.group, name, task).map_err(|e| raise(py, &e))?;
        let waiting = Waiting { future: future.clone().unbind(), function, task };
        this.table().waiting.insert(name, waiting);
        Ok(future)
    }

    /// Takes a task back that no worker has begun: its future will not be completed here.
    fn withdraw(&self, py: Python<'_>, name: u64) -> PyResult<bool> {
        let Some(task) = self.table().waiting.get(&name).map(|it| it.task) else {
            return self.core.check().map(|()| false).map_err(|e| raise(py, &e));
        };
        let withdrawn = self.core.take_back(task).map_err(|e| raise(py, &e))?;
        if withdrawn {
            let forgotten = self.table().waiting.remove(&name);
            drop(forgotten);
            self.end(py)?;
        }
        Ok(withdrawn)
    }

    /// Is a worker running the task of this future?
    fn has_begun(&self, py: Python<'_>, name: u64) -> PyResult<bool> {
        let task = self.table().waiting.get(&name).map(|it| it.task);
        let begun = task.map(|task| self.core.has_begun(task)).transpose();
        begun.map(|begun| begun.unwrap_or(false)).map_err(|e| raise(py, &e))
    }

    /// The futures that are not completed, in the order of their submission.
    fn pending(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        let table = self.table();
        let mut pending: Vec<_> = table.waiting.iter().collect();
        pending.sort_unstable_by_key(|(name, _)| **name);
        pending.into_iter().map(|(_, it)| it.future.clone_ref(py)).collect()
    }

    /// Why the workers are of no more use, if they are not.
    fn broken(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let why = self.core.broken().map_err(|e| raise(py, &e))?;
        Ok(why.map(|why| why.to_string()))
    }

    /// Raises, in a forked child: its futures will never be completed.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.core.check().map_err(|e| raise(py, &e))
    }

    /// The number of tasks that have not ended.
    fn outstanding(&self, py: Python<'_>) -> PyResult<usize> {
        self.core.outstanding().map_err(|e| raise(py, &e))
    }

    /// Says that no future will be made any more: [`run`](Self::run) returns after the last.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.core.close().map_err(|e| raise(py, &e))?;
        self.closed.store(true, Ordering::Release);
        self.end(py)
    }

    /// Completes futures as outcomes arrive. For a thread that does nothing else.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let mut batch = Vec::new();
        loop {
            py.detach(|| self.collect(&mut batch)).map_err(|e| raise(py, &e))?;
            if batch.is_empty() {
                return Ok(());
            }
            for (name, outcome) in batch.drain(..) {
                if let Err(error) = self.complete(py, name, &outcome) {
                    // A callback's errors are logged by the future: this is somebody's `set_result`.
                    error.write_unraisable(py, None);
                }
            }
            self.end(py)?;
        }
    }
}

impl Futures {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the group if no outcome will arrive any more.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        if self.closed.load(Ordering::Acquire) && self.table().waiting.is_empty() {
            self.core.end(&self.group).map_err(|e| raise(py, &e))?;
        }
        Ok(())
    }

    /// Waits for outcomes and takes what is there: nothing at the end.
    fn collect(&self, batch: &mut Vec<(u64, Outcome)>) -> phalanx::Result<()> {
        loop {
            match self.group.next() {
                Next::Outcome(name, outcome) => {
                    batch.push((name, outcome));
                    if batch.len() == BATCH {
                        return Ok(());
                    }
                }
                Next::Pending if batch.is_empty() => {
                    self.core.wait(&self.group, Until::Next, None)?;
                }
                Next::Pending | Next::End => return Ok(()),
            }
        }
    }

    fn complete(&self, py: Python<'_>, name: u64, outcome: &Outcome) -> PyResult<()> {
        let Some(Waiting { future, function, .. }) = self.table().waiting.remove(&name) else {
            return Ok(());
        };
        let future = future.bind(py);
        match value(py, outcome, &function) {
            Ok(result) => self.succeed(future, result),
            Err(error) => {
                let lost = matches!(outcome, Outcome::Lost(_) | Outcome::Broken(_));
                self.fail.bind(py).call1((future, error.into_value(py), lost)).map(drop)
            }
        }
    }

    fn succeed(&self, future: &Bound<'_, PyAny>, result: Bound<'_, PyAny>) -> PyResult<()> {
        let names = &self.names;
        let own = future.getattr(&names.dict)?.cast_into::<PyDict>()?;
        own.del_item(&names.engine)?;
        if own.contains(&names.condition)? {
            return future.call_method1(&names.set_result, (result,)).map(drop);
        }
        own.set_item(&names.result, result)?;
        own.set_item(&names.state, &names.finished)
    }
}
