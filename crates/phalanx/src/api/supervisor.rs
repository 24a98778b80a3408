//! Processes that are started again when they die.
//!
//! See [`Supervisor`].

use std::any::type_name;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::process::Process;
use super::process_builder::ProcessBuilder;
use super::start::Tie;
use super::task;
use super::value::Value;
use crate::error::{Error, Result};
use crate::pool::Task;
use crate::process::supervisor::{self as engine, Errand, Order};
pub use crate::process::supervisor::{Care, Report, Restart, Status, Strategy};
use crate::sys::block_signals;
use crate::sys::code::Captures;
use crate::sys::socket::sealed;

/// Describes a child of a [`Supervisor`]: a name, a task, and what becomes of it when it ends.
///
/// ```
/// use std::time::Duration;
/// use phalanx::supervisor::{ChildSpec, Restart};
///
/// fn serve(port: u16) {
///     # let _ = port;
///     loop { std::thread::park() }
/// }
///
/// let spec = ChildSpec::new("server", serve, 8080)
///     .restart(Restart::Transient)
///     .shutdown(Some(Duration::from_secs(1)))
///     .kill_tree(true);
/// ```
#[must_use = "a description does nothing until a supervisor has it"]
pub struct ChildSpec {
    care: Care,
    starter: Result<Starter>,
}

/// Starts the child's process, each time that it is asked to.
type Starter = Box<dyn Fn(&Order) -> Result<Box<dyn Kin>> + Send>;

/// The process of a child, whatever its task returns.
trait Kin: Send {
    fn process(&self) -> &Arc<crate::process::Child>;
    /// After its end: why, if it has said so.
    fn reason(&self) -> String;
}

impl<R: Value> Kin for Process<R> {
    fn process(&self) -> &Arc<crate::process::Child> {
        self.child()
    }

    fn reason(&self) -> String {
        match self.wait_timeout(Duration::ZERO) {
            // How it died is told beside this.
            Err(error) if error.worker_died().is_none() => format!("{}\n{error}", error.trace()),
            _ => String::new(),
        }
    }
}

impl ChildSpec {
    /// A child that calls `task` with `argument`. It is permanent and has 5 seconds to end.
    pub fn new<F, A, R>(name: impl Into<String>, task: F, argument: A) -> Self
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
    {
        Self::in_process(name, Process::builder, task, argument)
    }

    /// As [`new`](Self::new), in a process that `builder` describes each time that it is started:
    /// environment, directory, streams, limits.
    ///
    /// ```
    /// use phalanx::{Process, Stdio};
    /// use phalanx::supervisor::ChildSpec;
    ///
    /// let spec = ChildSpec::in_process(
    ///     "quiet",
    ///     || Process::builder().env("LEVEL", "3").stdout(Stdio::null()),
    ///     |(): ()| println!("nobody reads this"),
    ///     (),
    /// );
    /// ```
    pub fn in_process<F, A, R>(
        name: impl Into<String>,
        builder: impl Fn() -> ProcessBuilder + Send + 'static,
        task: F,
        argument: A,
    ) -> Self
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
    {
        let () = Captures::<F>::NOTHING;
        let (restart, shutdown) = (Restart::Permanent, Some(Duration::from_secs(5)));
        let care = Care { name: name.into(), restart, shutdown, tree: false };
        let starter = kept(task::call(task, argument)).map(|(payload, task)| -> Starter {
            Box::new(move |order| {
                let _descriptors_in_it = &task;
                let tie = Tie { tree: order.tree };
                let lifeline = Some((order.lifeline.as_fd(), tie));
                let process: Process<R> =
                    builder().run(payload.as_fd(), lifeline, type_name::<F>())?;
                Ok(Box::new(process))
            })
        });
        Self { care, starter }
    }

    /// When it is restarted; [always](Restart::Permanent) by default.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.care.restart = restart;
        self
    }

    /// How long it may take to end after SIGTERM, before SIGKILL: `None` is for ever, zero is SIGKILL
    /// at once. 5 seconds by default.
    pub fn shutdown(mut self, time: Option<Duration>) -> Self {
        self.care.shutdown = time;
        self
    }

    /// What the process has started ends with it, however it ends, unless it has left its process
    /// group (`setsid`). Not so by default.
    pub fn kill_tree(mut self, tree: bool) -> Self {
        self.care.tree = tree;
        self
    }
}

fn kept(task: Result<Task>) -> Result<(OwnedFd, Task)> {
    let task = task?;
    let payload = sealed(&task.payload).map_err(|e| Error::os("keep an argument", e))?;
    Ok((payload, task))
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec").field("care", &self.care).finish_non_exhaustive()
    }
}

/// Named processes that are kept running, by the rules of Erlang/OTP's `supervisor`.
///
/// ```
/// use std::time::Duration;
/// use phalanx::Supervisor;
/// use phalanx::supervisor::{ChildSpec, Strategy};
///
/// fn tick(ms: u64) {
///     loop { std::thread::sleep(Duration::from_millis(ms)) }
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let supervisor = Supervisor::builder()
///         .strategy(Strategy::RestForOne)
///         .intensity(3, Duration::from_secs(5))
///         .child(ChildSpec::new("clock", tick, 10))
///         .child(ChildSpec::new("display", tick, 20))
///         .start()?;
///     assert_eq!(supervisor.count()?, 2);
///     supervisor.stop() // "display" first, then "clock"
/// }
/// ```
///
/// - A child that ends is restarted if its [`Restart`] says so, and its siblings with it as the
///   [`Strategy`] says: they are stopped, the last one first, and started again in order.
/// - A child is stopped with SIGTERM, and with SIGKILL when its time is over.
/// - After more restarts than the intensity allows within the period, all children are stopped, and
///   [`join`](Self::join) and [`stop`](Self::stop) tell [all deaths](crate::SupervisorFailed).
/// - Children do not outlive the process that supervises them, however that ends: the kernel sees to
///   it.
/// - Dropping the supervisor stops it, and waits until it has ended.
/// - In a child that this process forks, the supervisor is an error that says so.
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    engine: engine::Supervisor,
    starters: Mutex<HashMap<u64, Starter>>,
}

impl Shared {
    fn starters(&self) -> MutexGuard<'_, HashMap<u64, Starter>> {
        self.starters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the supervisor has ended, or belongs to another process.
    fn run(&self) {
        let mut running: HashMap<u64, Box<dyn Kin>> = HashMap::new();
        while let Ok(Some(errand)) = self.engine.errand() {
            // What fails is told to the rules, or to those who wait.
            let _ = match errand {
                Errand::Start(order) => match self.start(&order) {
                    Ok(process) => {
                        let (id, child) = (order.child, process.process().clone());
                        running.insert(id, process);
                        self.engine.started(order, child)
                    }
                    Err(error) => self.engine.refused(order.child, error),
                },
                Errand::Bury(id) => {
                    let reason = running.remove(&id).map(|process| process.reason());
                    self.engine.buried(id, reason.unwrap_or_default())
                }
                Errand::Forget(id) => {
                    self.starters().remove(&id);
                    Ok(())
                }
            };
        }
    }

    fn start(&self, order: &Order) -> Result<Box<dyn Kin>> {
        match self.starters().get(&order.child) {
            Some(starter) => starter(order),
            None => Err(Error::invalid("there is no such child")),
        }
    }
}

/// Says what a [`Supervisor`] is to be like: see [`Supervisor::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it starts"]
pub struct Builder {
    name: String,
    strategy: Strategy,
    intensity: usize,
    period: Duration,
    children: Vec<ChildSpec>,
}

impl Builder {
    /// Who is restarted with a child; [that one alone](Strategy::OneForOne) by default.
    pub fn strategy(self, strategy: Strategy) -> Self {
        Self { strategy, ..self }
    }

    /// So many restarts are allowed within the period; 1 within 5 seconds by default.
    pub fn intensity(self, restarts: usize, period: Duration) -> Self {
        Self { intensity: restarts, period, ..self }
    }

    /// The supervisor's name, for messages and its thread.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// A child, to be started after those before.
    pub fn child(mut self, child: ChildSpec) -> Self {
        self.children.push(child);
        self
    }

    /// Starts the children, one after the other.
    ///
    /// # Errors
    ///
    /// As [`Supervisor::start_child`] for the first that cannot be started; those before it are
    /// stopped then.
    pub fn start(self) -> Result<Supervisor> {
        let Self { name, strategy, intensity, period, children } = self;
        let thread = std::thread::Builder::new().name(name.clone());
        let engine = engine::Supervisor::new(name, strategy, intensity, period)?;
        let shared = Arc::new(Shared { engine, starters: Mutex::default() });
        let run = {
            let shared = shared.clone();
            move || shared.run()
        };
        let thread = block_signals(|| thread.spawn(run));
        let thread = thread.map_err(|e| Error::os("start a supervisor's thread", e))?;
        let supervisor = Supervisor { shared, thread: Some(thread) };
        children.into_iter().try_for_each(|child| supervisor.start_child(child))?;
        Ok(supervisor)
    }
}

impl Supervisor {
    /// A supervisor that is described step by step.
    pub fn builder() -> Builder {
        let (name, strategy, children) = ("supervisor".into(), Strategy::OneForOne, Vec::new());
        Builder { name, strategy, intensity: 1, period: Duration::from_secs(5), children }
    }

    /// Adds a child after those that are there, and starts it.
    ///
    /// # Errors
    ///
    /// If there is a child of that name, if its argument cannot be written, if the supervisor has
    /// ended, or if the process cannot be started: then the child is forgotten.
    pub fn start_child(&self, child: ChildSpec) -> Result<()> {
        let starter = child.starter?;
        let id = {
            // Held until the starter is in its place: the thread waits for it.
            let mut starters = self.shared.starters();
            let id = self.shared.engine.add(child.care)?;
            starters.insert(id, starter);
            id
        };
        self.shared.engine.wait_started(id, None).map(drop)
    }

    /// Stops a child, and returns when it has ended. It can be [restarted](Self::restart_child), unless
    /// it is temporary; it is restarted with its siblings, too, if the strategy says so.
    ///
    /// # Errors
    ///
    /// If there is no such child.
    pub fn terminate_child(&self, name: &str) -> Result<()> {
        let id = self.shared.engine.terminate(name)?;
        self.shared.engine.wait_down(id, None).map(drop)
    }

    /// Starts a child that does not run.
    ///
    /// # Errors
    ///
    /// If there is no such child, if it runs, if the supervisor has ended, or if the process cannot
    /// be started.
    pub fn restart_child(&self, name: &str) -> Result<()> {
        let id = self.shared.engine.restart(name)?;
        self.shared.engine.wait_started(id, None).map(drop)
    }

    /// Forgets a child that does not run.
    ///
    /// # Errors
    ///
    /// If there is no such child, or if it runs.
    pub fn delete_child(&self, name: &str) -> Result<()> {
        self.shared.engine.delete(name)
    }

    /// All children, in the order in which they were added.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn children(&self) -> Result<Vec<Report>> {
        self.shared.engine.children()
    }

    /// How many children run.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn count(&self) -> Result<usize> {
        Ok(self.children()?.iter().filter(|child| child.pid.is_some()).count())
    }

    /// Waits until no child runs and none is about to: each has ended for good, or the supervisor
    /// has failed.
    ///
    /// # Errors
    ///
    /// [All deaths](Error::supervisor_failed), if it has failed.
    pub fn join(&self) -> Result<()> {
        self.shared.engine.wait_idle(None).map(drop)
    }

    /// As [`join`](Self::join), for so long at the most. False: the time is over.
    ///
    /// # Errors
    ///
    /// As `join`.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool> {
        self.shared.engine.wait_idle(Instant::now().checked_add(timeout))
    }

    /// Stops all children, the last one first, and waits until they have ended.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub fn stop(self) -> Result<()> {
        self.shared.engine.stop()?;
        self.join()
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("children", &self.children()).finish_non_exhaustive()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.shared.engine.stop().is_err() {
            // In a forked child neither the children nor the thread are ours.
            std::mem::forget(thread);
            return;
        }
        // It does not panic but by a bug, which has been told on stderr.
        let _ = thread.join();
    }
}
