//! A supervisor without a language: it watches children, ends them, and says when one is to start.
//!
//! One thread, the *supervisor's*, belongs to whoever uses this. It calls [`errand`](Supervisor::errand)
//! in a loop, does what needs the language, and answers: [`started`](Supervisor::started) or
//! [`refused`](Supervisor::refused) for a [`Errand::Start`], [`buried`](Supervisor::buried) for an
//! [`Errand::Bury`]. All else, signals, their time, who is next, is decided in `supervision.rs`, and done
//! here by the same thread or by the one that asks.
//!
//! | who dies | what the others find |
//! | --- | --- |
//! | a child | its pidfd: the supervisor's thread goes by the rules |
//! | the process that supervises | each child's lifeline closes: the kernel kills it |
//! | a child with `tree` | what it has started is killed by the kernel, see `sys/linux/lifeline.rs` |
//! | the process forks | in the child a `Supervisor` is an error that says so |

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};

use super::child::Child;
use super::exit::Exit;
use super::supervision::{Command, Id, Refusal, State, Supervision};
pub use super::supervision::{Restart, Strategy};
use crate::error::{ChildDied, Error, Result, SupervisorFailed};
use crate::sys::{Event, ForkClosed, Poller, fork, lifeline};

/// Deaths that are told at the end, at the most.
const TOLD: usize = 100;

/// How a child is to be kept.
#[derive(Clone, Debug)]
pub struct Care {
    /// The child's name, which no sibling has.
    pub name: String,
    /// When it is restarted.
    pub restart: Restart,
    /// How long it may take to end after SIGTERM, before SIGKILL: `None` is for ever, and zero is
    /// SIGKILL at once.
    pub shutdown: Option<Duration>,
    /// What it has started ends with it.
    pub tree: bool,
}

/// How a child is, at this instant.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it is kept.
    pub care: Care,
    /// What it is about.
    pub status: Status,
    /// Its process id, while it runs.
    pub pid: Option<u32>,
    /// How often it was started after the first time.
    pub restarts: u64,
    /// How its last process ended, if one has.
    pub exit: Option<Exit>,
}

/// What a child is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It runs.
    Running,
    /// It is being started, or will be when its turn comes.
    Starting,
    /// It has been told to end.
    Stopping,
    /// It does not run, and will not unless somebody says so.
    Down,
}

/// What the supervisor's thread has to do.
#[derive(Debug)]
pub enum Errand {
    /// Start a process.
    Start(Order),
    /// A child's process has ended; see [`Supervisor::buried`].
    Bury(u64),
    /// The child is not known any more.
    Forget(u64),
}

/// A start that was asked for.
#[derive(Debug)]
pub struct Order {
    /// Which child.
    pub child: u64,
    /// To be passed on: see [`keep_to`](super::keep_to).
    pub lifeline: OwnedFd,
    /// The process is to be the head of its tree.
    pub tree: bool,
    owner: ForkClosed,
}

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    name: String,
    intensity: usize,
    period: Duration,
    generation: u32,
    event: Event,
    poller: Poller,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    rules: Supervision,
    children: BTreeMap<Id, Person>,
    errands: VecDeque<Errand>,
    deaths: VecDeque<(Instant, ChildDied)>,
}

#[derive(Debug)]
struct Person {
    care: Care,
    process: Option<(Arc<Child>, ForkClosed)>,
    starts: u64,
    exit: Option<Exit>,
    /// Why it could not be started the last time.
    trouble: Option<Error>,
}

const EVENT: u64 = u64::MAX;

impl Supervisor {
    /// A supervisor without children.
    ///
    /// # Errors
    ///
    /// If descriptors are short.
    pub fn new(
        name: impl Into<String>,
        strategy: Strategy,
        intensity: usize,
        period: Duration,
    ) -> Result<Self> {
        let doing = "make a supervisor";
        let event = Event::new().map_err(|e| Error::os(doing, e))?;
        let poller = Poller::new().map_err(|e| Error::os(doing, e))?;
        poller.add(&event, EVENT).map_err(|e| Error::os(doing, e))?;
        let rules = Supervision::new(strategy, intensity, period);
        let (children, errands, deaths) = Default::default();
        let inner = Mutex::new(Inner { rules, children, errands, deaths });
        let (name, generation, changed) = (name.into(), fork::generation(), Condvar::new());
        Ok(Self { name, intensity, period, generation, event, poller, inner, changed })
    }

    // -- the supervisor's thread

    /// Waits for the next errand. `None`: the supervisor has ended.
    ///
    /// # Errors
    ///
    /// If the system refuses to watch, and in a forked child, as all that follow.
    pub fn errand(&self) -> Result<Option<Errand>> {
        let mut tokens = Vec::new();
        loop {
            let alarm = {
                let mut inner = self.lock()?;
                inner.look(&self.poller, &tokens);
                if tokens.contains(&EVENT) {
                    self.event.clear();
                }
                inner.rules.wake(Instant::now());
                inner.obey();
                self.changed.notify_all();
                match inner.errands.pop_front() {
                    Some(errand) => return Ok(Some(errand)),
                    None if inner.rules.is_over() => return Ok(None),
                    None => inner.rules.alarm(),
                }
            };
            tokens.clear();
            let timeout = alarm.map(|at| at.saturating_duration_since(Instant::now()));
            let waited = self.poller.wait(&mut tokens, timeout);
            waited.map_err(|e| Error::os("watch children", e))?;
        }
    }

    /// The process that was asked for has been started.
    ///
    /// # Errors
    ///
    /// If it cannot be watched; it is killed then, and this counts as a refusal.
    pub fn started(&self, order: Order, child: Arc<Child>) -> Result<()> {
        let (id, owner) = (order.child, order.owner);
        drop(order.lifeline);
        let watched = self.poller.add(child.as_fd(), id);
        let watched = watched.map_err(|e| Error::os("watch a child", e));
        let tied = if order.tree { child.take_tree_along(&owner) } else { Ok(()) };
        let mut inner = self.lock()?;
        if let Err(error) = watched.and(tied) {
            self.poller.remove(child.as_fd());
            let _ = child.signal(libc::SIGKILL);
            inner.refused(id, error.clone());
            return Err(error);
        }
        if let Some(person) = inner.children.get_mut(&id) {
            person.process = Some((child, owner));
            person.starts += 1;
            person.trouble = None;
        }
        inner.rules.started(id, Instant::now());
        Ok(())
    }

    /// The process that was asked for could not be started.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn refused(&self, child: u64, why: Error) -> Result<()> {
        self.lock()?.refused(child, why);
        Ok(())
    }

    /// As [`refused`](Self::refused), for what went wrong outside of the engine.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn refused_because(&self, child: u64, why: &str) -> Result<()> {
        self.refused(child, Error::invalid(why))
    }

    /// The end of a child's process is known, and the reason as far as it could be learned: a
    /// traceback, or nothing. Now the rules apply.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn buried(&self, child: u64, trace: String) -> Result<()> {
        let mut inner = self.lock()?;
        let Some(person) = inner.children.get_mut(&child) else { return Ok(()) };
        // With the lifeline goes what is left of its tree.
        let Some((process, _lifeline)) = person.process.take() else { return Ok(()) };
        let (name, pid, exit) = (person.care.name.clone(), Some(process.pid()), person.exit);
        let well = exit.is_some_and(Exit::is_success);
        let death = ChildDied { child: name, pid, exit, trace };
        let unasked = inner.rules.ended(child, well, Instant::now());
        if unasked {
            inner.tell(death.clone());
        }
        let failed = self.failure(&inner).filter(|_| unasked);
        // Who listens may do anything, so no lock is held.
        drop(inner);
        if unasked {
            warn!(supervisor = self.name, %death, "a child has died");
        } else {
            debug!(supervisor = self.name, pid, "a child has ended");
        }
        if let Some(why) = failed {
            error!(%why, "a supervisor gives up");
        }
        Ok(())
    }

    // -- everybody else

    /// Adds a child after all that are there, to be started; its number.
    ///
    /// # Errors
    ///
    /// If there is one of that name, or the supervisor has ended.
    pub fn add(&self, care: Care) -> Result<u64> {
        let mut inner = self.lock()?;
        if inner.known().any(|(_, person)| person.care.name == care.name) {
            return Err(Error::invalid(format!(
                "supervisor `{}` has a child `{}` already: delete that one first, or take another name",
                self.name, care.name
            )));
        }
        let added = inner.rules.add(care.restart, care.shutdown, Instant::now());
        let id = added.map_err(|refusal| self.refusal(&inner, refusal, &care.name))?;
        let (process, starts, exit, trouble) = Default::default();
        inner.children.insert(id, Person { care, process, starts, exit, trouble });
        self.leave(inner);
        Ok(id)
    }

    /// Stops a child, which stays known unless it is temporary; its number, for
    /// [`wait_down`](Self::wait_down).
    ///
    /// # Errors
    ///
    /// If there is no such child.
    pub fn terminate(&self, name: &str) -> Result<u64> {
        let mut inner = self.lock()?;
        let id = self.find(&inner, name)?;
        let asked = inner.rules.terminate(id, Instant::now());
        asked.map_err(|refusal| self.refusal(&inner, refusal, name))?;
        self.leave(inner);
        Ok(id)
    }

    /// Waits until a child does not run. False: the deadline has passed.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn wait_down(&self, child: u64, deadline: Option<Instant>) -> Result<bool> {
        self.wait(deadline, |inner| {
            inner.rules.state(child).is_none_or(|state| state == State::Down).then_some(Ok(()))
        })
    }

    /// Starts a child that is down; its number, for [`wait_started`](Self::wait_started).
    ///
    /// # Errors
    ///
    /// If there is no such child, if it runs, or if the supervisor has ended.
    pub fn restart(&self, name: &str) -> Result<u64> {
        let mut inner = self.lock()?;
        let id = self.find(&inner, name)?;
        let asked = inner.rules.restart(id, Instant::now());
        asked.map_err(|refusal| self.refusal(&inner, refusal, name))?;
        self.leave(inner);
        Ok(id)
    }

    /// Forgets a child that is down.
    ///
    /// # Errors
    ///
    /// If there is no such child, or if it runs.
    pub fn delete(&self, name: &str) -> Result<()> {
        let mut inner = self.lock()?;
        let id = self.find(&inner, name)?;
        let asked = inner.rules.delete(id);
        asked.map_err(|refusal| self.refusal(&inner, refusal, name))?;
        self.leave(inner);
        Ok(())
    }

    /// Waits until a child that was to start has been started. False: the deadline has passed.
    ///
    /// # Errors
    ///
    /// Why it could not be started.
    pub fn wait_started(&self, child: u64, deadline: Option<Instant>) -> Result<bool> {
        self.wait(deadline, |inner| match inner.rules.state(child) {
            Some(State::Starting) => None,
            Some(State::Down) if !inner.rules.is_at_rest(child) => None,
            Some(State::Down) => {
                let person = inner.children.get_mut(&child);
                Some(person.and_then(|person| person.trouble.take()).map_or(Ok(()), Err))
            }
            // It has come and gone, or it never came.
            None => {
                let person = inner.children.remove(&child);
                Some(person.and_then(|person| person.trouble).map_or(Ok(()), Err))
            }
            Some(_) => Some(Ok(())),
        })
    }

    /// All children in the order in which they were added.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn children(&self) -> Result<Vec<Report>> {
        let inner = self.lock()?;
        Ok(inner.known().map(|(id, person)| inner.report(*id, person)).collect())
    }

    /// Stops all children, the last one first, and the supervisor. Does not wait.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn stop(&self) -> Result<()> {
        let mut inner = self.lock()?;
        inner.rules.stop(Instant::now());
        self.leave(inner);
        Ok(())
    }

    /// Waits until no child runs and none is about to: each has ended for good, or the supervisor
    /// has. False: the deadline has passed.
    ///
    /// # Errors
    ///
    /// [`SupervisorFailed`], if it has.
    pub fn wait_idle(&self, deadline: Option<Instant>) -> Result<bool> {
        self.wait(deadline, |inner| {
            inner.rules.is_idle().then(|| self.failure(inner).map_or(Ok(()), Err))
        })
    }

    /// Why it has ended, if too many deaths have ended it.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn failed(&self) -> Result<Option<Error>> {
        let inner = self.lock()?;
        Ok(self.failure(&inner).filter(|_| inner.rules.is_over()))
    }

    // -- inside

    fn lock(&self) -> Result<MutexGuard<'_, Inner>> {
        if self.generation != fork::generation() {
            return Err(Error::closed(format!(
                "supervisor `{}` belongs to the process that this one was forked from",
                self.name
            )));
        }
        Ok(self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does what is to be done, and wakes the supervisor's thread, which has the rest to do.
    fn leave(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.obey();
        self.event.ring();
    }

    fn wait(
        &self,
        deadline: Option<Instant>,
        mut done: impl FnMut(&mut Inner) -> Option<Result<()>>,
    ) -> Result<bool> {
        let mut inner = self.lock()?;
        loop {
            if let Some(result) = done(&mut inner) {
                return result.map(|()| true);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            inner = match left {
                Some(Duration::ZERO) => return Ok(false),
                Some(left) => {
                    let waited = self.changed.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn find(&self, inner: &Inner, name: &str) -> Result<Id> {
        let found = inner.known().find(|(_, person)| person.care.name == name);
        found.map(|(id, _)| *id).ok_or_else(|| self.refusal(inner, Refusal::Unknown, name))
    }

    fn refusal(&self, inner: &Inner, refusal: Refusal, child: &str) -> Error {
        let name = &self.name;
        match refusal {
            Refusal::Unknown => {
                Error::invalid(format!("supervisor `{name}` has no child `{child}`"))
            }
            Refusal::Running => Error::invalid(format!(
                "the child `{child}` of supervisor `{name}` runs, or is about to: terminate it first"
            )),
            Refusal::Over => self
                .failure(inner)
                .unwrap_or_else(|| Error::closed(format!("supervisor `{name}` has been stopped"))),
        }
    }

    fn failure(&self, inner: &Inner) -> Option<Error> {
        let Self { name, intensity, period, .. } = self;
        let last = inner.deaths.back()?.0;
        inner.rules.has_failed().then(|| {
            let recent = |(then, _): &&(Instant, ChildDied)| {
                last.saturating_duration_since(*then) <= *period
            };
            let deaths = inner.deaths.iter().filter(recent).map(|(_, death)| death.clone());
            let (name, intensity, period) = (name.clone(), *intensity, *period);
            SupervisorFailed { name, intensity, period, deaths: deaths.collect() }.into()
        })
    }
}

impl Inner {
    fn known(&self) -> impl Iterator<Item = (&Id, &Person)> {
        self.children.iter().filter(|(id, _)| self.rules.state(**id).is_some())
    }

    /// Sees who has ended.
    fn look(&mut self, poller: &Poller, tokens: &[u64]) {
        for id in tokens.iter().filter(|token| **token != EVENT) {
            let Some(person) = self.children.get_mut(id) else { continue };
            if let Some((child, _)) = &person.process
                && let Ok(Some(exit)) = child.try_exit()
            {
                poller.remove(child.as_fd());
                person.exit = Some(exit);
                self.errands.push_back(Errand::Bury(*id));
            }
        }
    }

    /// Does what the rules ask for, as far as it needs no language.
    fn obey(&mut self) {
        while let Some(command) = self.rules.next() {
            match command {
                Command::Start(id) => self.launch(id),
                Command::Terminate(id) => self.signal(id, libc::SIGTERM),
                Command::Kill(id) => self.signal(id, libc::SIGKILL),
                Command::Forget(id) => {
                    // If it never came, somebody waits to be told why.
                    if self.children.get(&id).is_some_and(|person| person.trouble.is_none()) {
                        self.children.remove(&id);
                    }
                    self.errands.push_back(Errand::Forget(id));
                }
            }
        }
    }

    fn launch(&mut self, id: Id) {
        let tree = self.children.get(&id).is_some_and(|person| person.care.tree);
        match lifeline() {
            Ok((owner, lifeline)) => {
                let order = Order { child: id, lifeline, tree, owner };
                self.errands.push_back(Errand::Start(order));
            }
            Err(error) => self.refused(id, Error::os("make a lifeline", error)),
        }
    }

    fn signal(&self, id: Id, signal: i32) {
        let process = self.children.get(&id).and_then(|person| person.process.as_ref());
        // One that may not be signalled any more has changed its user; its lifeline ends it.
        process.iter().for_each(|(child, _)| drop(child.signal(signal)));
    }

    fn refused(&mut self, id: Id, why: Error) {
        let Some(person) = self.children.get_mut(&id) else { return };
        let (name, trace) = (person.care.name.clone(), why.to_string());
        person.trouble = Some(why);
        if self.rules.refused(id, Instant::now()) {
            self.tell(ChildDied { child: name, pid: None, exit: None, trace });
        }
    }

    fn tell(&mut self, death: ChildDied) {
        self.deaths.push_back((Instant::now(), death));
        if self.deaths.len() > TOLD {
            self.deaths.pop_front();
        }
    }

    fn report(&self, id: Id, person: &Person) -> Report {
        let status = match self.rules.state(id) {
            Some(State::Up) => Status::Running,
            Some(State::Stopping { .. } | State::Killed) => Status::Stopping,
            Some(State::Starting) => Status::Starting,
            Some(State::Down) if !self.rules.is_at_rest(id) => Status::Starting,
            Some(State::Down) | None => Status::Down,
        };
        let pid = person.process.as_ref().map(|(child, _)| child.pid());
        let restarts = person.starts.saturating_sub(1);
        Report { care: person.care.clone(), status, pid, restarts, exit: person.exit }
    }
}
