//! Supervisors: the glue between `phalanx::process::supervisor` and `phalanx._phalanx`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use phalanx::process::supervisor::{self as engine, Care, Errand, Restart, Status, Strategy};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::raise;
use crate::process::Child;
use crate::wait::interruptible;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Supervisor>()?;
    m.add_class::<StartOrder>()
}

/// A start that was asked for.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct StartOrder {
    #[pyo3(get)]
    child: u64,
    #[pyo3(get)]
    lifeline: RawFd,
    #[pyo3(get)]
    tree: bool,
    order: Mutex<Option<engine::Order>>,
}

/// A child as it is: name, status, process id, restarts, exit code.
type Report = (String, &'static str, Option<u32>, u64, Option<i32>);

/// The engine's part of a supervisor.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct Supervisor(engine::Supervisor);

#[pymethods]
impl Supervisor {
    #[new]
    fn new(
        py: Python<'_>,
        name: &str,
        strategy: &str,
        intensity: usize,
        period: f64,
    ) -> PyResult<Self> {
        let strategy = match strategy {
            "one_for_one" => Strategy::OneForOne,
            "one_for_all" => Strategy::OneForAll,
            "rest_for_one" => Strategy::RestForOne,
            _ => return Err(no_such("strategy", strategy)),
        };
        let supervisor = engine::Supervisor::new(name, strategy, intensity, seconds(period)?);
        supervisor.map(Self).map_err(|e| raise(py, &e))
    }

    /// Waits for what needs Python: `("start", StartOrder)`, `("bury", child)` or
    /// `("forget", child)`; `None` when the supervisor has ended.
    fn errand<'py>(&self, py: Python<'py>) -> PyResult<Option<(&'static str, Bound<'py, PyAny>)>> {
        // In a thread of its own, which sees no signals.
        let errand = py.detach(|| self.0.errand()).map_err(|e| raise(py, &e))?;
        Ok(match errand {
            None => None,
            Some(Errand::Start(order)) => {
                let (child, lifeline) = (order.child, order.lifeline.as_raw_fd());
                let (tree, order) = (order.tree, Mutex::new(Some(order)));
                let order = Bound::new(py, StartOrder { child, lifeline, tree, order })?;
                Some(("start", order.into_any()))
            }
            Some(Errand::Bury(child)) => Some(("bury", child.into_pyobject(py)?.into_any())),
            Some(Errand::Forget(child)) => Some(("forget", child.into_pyobject(py)?.into_any())),
        })
    }

    fn started(&self, py: Python<'_>, order: &StartOrder, child: &Child) -> PyResult<()> {
        let order = order.order.lock().unwrap_or_else(PoisonError::into_inner).take();
        let order = order.ok_or_else(|| PyValueError::new_err("this has been started"))?;
        self.0.started(order, child.inner()?).map_err(|e| raise(py, &e))
    }

    fn refused(&self, py: Python<'_>, child: u64, why: &str) -> PyResult<()> {
        self.0.refused_because(child, why).map_err(|e| raise(py, &e))
    }

    fn buried(&self, py: Python<'_>, child: u64, trace: String) -> PyResult<()> {
        self.0.buried(child, trace).map_err(|e| raise(py, &e))
    }

    fn add(
        &self,
        py: Python<'_>,
        name: String,
        restart: &str,
        shutdown: Option<f64>,
        tree: bool,
    ) -> PyResult<u64> {
        let restart = match restart {
            "permanent" => Restart::Permanent,
            "transient" => Restart::Transient,
            "temporary" => Restart::Temporary,
            _ => return Err(no_such("restart", restart)),
        };
        let shutdown = shutdown.map(seconds).transpose()?;
        self.0.add(Care { name, restart, shutdown, tree }).map_err(|e| raise(py, &e))
    }

    fn wait_started(&self, py: Python<'_>, child: u64) -> PyResult<()> {
        let wait = |slice| Ok(self.0.wait_started(child, Some(slice))?.then_some(()));
        interruptible(py, None, wait).map(drop)
    }

    #[pyo3(signature = (name, timeout=None))]
    fn terminate(&self, py: Python<'_>, name: &str, timeout: Option<f64>) -> PyResult<bool> {
        let child = self.0.terminate(name).map_err(|e| raise(py, &e))?;
        let wait = |slice| Ok(self.0.wait_down(child, Some(slice))?.then_some(()));
        Ok(interruptible(py, timeout, wait)?.is_some())
    }

    fn restart(&self, py: Python<'_>, name: &str) -> PyResult<u64> {
        self.0.restart(name).map_err(|e| raise(py, &e))
    }

    fn delete(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        self.0.delete(name).map_err(|e| raise(py, &e))
    }

    fn children(&self, py: Python<'_>) -> PyResult<Vec<Report>> {
        let reports = self.0.children().map_err(|e| raise(py, &e))?;
        Ok(reports
            .into_iter()
            .map(|report| {
                let status = match report.status {
                    Status::Running => "running",
                    Status::Starting => "starting",
                    Status::Stopping => "stopping",
                    Status::Down => "down",
                };
                let exit = report.exit.map(phalanx::process::Exit::code);
                (report.care.name, status, report.pid, report.restarts, exit)
            })
            .collect())
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.0.stop().map_err(|e| raise(py, &e))
    }

    /// Why it has ended, if too many deaths have ended it.
    fn failed(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let failed = self.0.failed().map_err(|e| raise(py, &e))?;
        Ok(failed.map(|why| raise(py, &why).into_value(py).into_any()))
    }

    #[pyo3(signature = (timeout=None))]
    fn wait_idle(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let wait = |slice| Ok(self.0.wait_idle(Some(slice))?.then_some(()));
        Ok(interruptible(py, timeout, wait)?.is_some())
    }
}

fn no_such(what: &str, name: &str) -> PyErr {
    PyValueError::new_err(format!("there is no {what} {name:?}"))
}

fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{seconds} is no number of seconds")))
}
