//! A pool without a language: what its users call.
//!
//! A death, line by line: see `ARCHITECTURE.md`, "Where each kind of death is handled".

use std::io;
use std::mem::take;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use tracing::debug;

use super::control::Terms;
use super::engine::{Engine, Token};
use super::group::{Group, Until};
use super::limits::Limits;
use super::shared::{LOOK, Shared};
use super::staff::{Desk, Staff};
use super::state::{Phase, State};
use super::store::Store;
use super::task::Task;
use crate::channel::Pace;
use crate::error::{Error, Result, is_shortage};
use crate::process::Child;
use crate::shm::{Region, Sleeper};
use crate::sync::fault;
use crate::sys::child::resident;
use crate::sys::{Event, ForkClosed, Report, fork, lifeline, monotonic, report, trace_signal};

/// Something that a pool's user must do: it needs the user's language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Start a worker for this seat.
    Staff(usize),
    /// The group that was to be announced with this token is done.
    Done(u64),
    /// A worker has something to say: what it runs, or 0, and the note. What it said before a task ended
    /// comes before that task's [`Done`](Self::Done).
    Note(u64, Vec<u8>),
}

/// What a new worker needs from its owner: descriptors to be passed on.
#[derive(Debug)]
pub struct Seating {
    /// The seat's number.
    pub seat: usize,
    /// The worker's end of its lifeline.
    pub lifeline: OwnedFd,
    /// What the worker starts is to end with it.
    pub tree: bool,
    /// Where it may write what it is doing: the end of a pipe that is not waited at.
    pub report: OwnedFd,
    owner: (ForkClosed, Report),
    /// When it was prepared.
    begun: Instant,
}

/// What a worker has done and is doing.
#[derive(Clone, Copy, Debug)]
pub struct WorkerStats {
    /// Its process; `None` if it is gone and the next is not there yet.
    pub pid: Option<u32>,
    /// How many processes have been started in its place, it included.
    pub started: u64,
    /// Tasks of this process that returned.
    pub returned: u64,
    /// Tasks of this process that failed.
    pub failed: u64,
    /// How long those took.
    pub busy: Duration,
    /// How long it has been at a task.
    pub running: Option<Duration>,
    /// Tasks that wait in it.
    pub waiting: usize,
    /// Bytes of memory that it has in use (the resident set), if that can be learned.
    pub memory: Option<u64>,
    /// How long its start took, its initializer included; `None` if it is not ready yet.
    pub startup: Option<Duration>,
}

/// A pool of workers. Dropping it kills them.
#[derive(Debug)]
pub struct Core(Arc<Shared>);

impl Core {
    /// A pool with `workers` seats, all empty: each wants a [`Seating`]. Tasks that have no terms of
    /// their own have these, and all workers the limits.
    ///
    /// # Errors
    ///
    /// If `workers` is 0 or too many, or memory or descriptors are short.
    pub fn new(workers: usize, terms: Terms, limits: Limits) -> Result<Self> {
        if workers == 0 {
            return Err(Error::invalid("a pool needs at least one worker"));
        }
        let region = Region::new(workers)?;
        let control = region.control()?;
        let desks = (0..workers).map(|seat| Ok(Desk::new(region.seat(seat)?)));
        let desks = desks.collect::<Result<Vec<_>>>()?;
        let store = Store::new(region.span(0));
        let event = Event::new().map_err(|e| Error::os("make a pool's event", e))?;
        let engine = Engine::current()?;
        let shared = Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
            generation: fork::generation(),
            region,
            control,
            pace: Pace::new(LOOK, false),
            store,
            terms,
            event,
            state: Mutex::new(State::new(desks, limits)),
            changed: Condvar::new(),
            pool: engine.admit(weak.clone()),
            engine,
        });
        shared.control.doorbell().arm(Sleeper::InPoller);
        let core = Self(shared);
        core.0.engine.watch(core.0.event.as_fd(), Token::event(core.0.pool))?;
        Ok(core)
    }

    /// The number of seats.
    ///
    /// # Errors
    ///
    /// In a forked child, as all that follow.
    pub fn seats(&self) -> Result<usize> {
        Ok(self.0.lock()?.desks.len())
    }

    /// The memory that a worker maps, and the event that it rings: to be passed on to each.
    #[must_use]
    pub fn descriptors(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.0.region.as_fd(), self.0.event.as_fd())
    }

    /// Begins to seat a worker: prepare, start a process with it, then [`seat`](Self::seat).
    /// `None`: the pool has ended, or is about to. With `tree`, what the worker starts ends with it.
    ///
    /// # Errors
    ///
    /// If the seat is taken, or descriptors are short.
    pub fn prepare(&self, seat: usize, tree: bool) -> Result<Option<Seating>> {
        let mut state = self.0.lock()?;
        let desk = state.desks.get_mut(seat).ok_or_else(|| Error::invalid("no such seat"))?;
        if desk.staff.is_some() {
            return Err(Error::invalid(format!("seat {seat} is taken")));
        }
        desk.clear();
        if matches!(state.phase, Phase::Leaving | Phase::Broken(_)) {
            return Ok(None);
        }
        state.lend(seat, &self.0.region);
        let begun = Instant::now();
        let pipes = lifeline().and_then(|lifeline| Ok((lifeline, report()?)));
        let ((owner, lifeline), (reader, report)) =
            pipes.map_err(|e| Error::os("make a worker's pipes", e))?;
        Ok(Some(Seating { seat, lifeline, tree, report, owner: (owner, reader), begun }))
    }

    /// A process has been started in a seat.
    ///
    /// # Errors
    ///
    /// If it cannot be watched; it is killed then.
    pub fn seat(&self, seating: Seating, child: Arc<Child>) -> Result<()> {
        let (owner, report) = seating.owner;
        let begun = seating.begun;
        let tied = if seating.tree { child.take_tree_along(&owner) } else { Ok(()) };
        let mut state = self.0.lock()?;
        state.incarnations = Token::after(state.incarnations);
        let incarnation = state.incarnations;
        let staff = Staff::new(child.clone(), owner, report, begun, incarnation);
        state.desks[seating.seat].staff = Some(staff);
        state.vacancies.filled();
        state.hired[seating.seat] += 1;
        let token = Token::end(self.0.pool, seating.seat, incarnation);
        let watched = tied.and_then(|()| self.0.engine.watch(child.as_fd(), token));
        if watched.is_err() {
            state.desks[seating.seat].staff = None;
            let _ = child.signal(libc::SIGKILL);
        }
        // It may have said that it is ready.
        state.read(seating.seat);
        let driven = state.driven;
        self.0.unlock(state);
        if driven {
            self.0.nudge(); // that may have been its end
        }
        debug!(pid = child.pid(), seat = seating.seat, "a worker was started");
        watched
    }

    /// Submits a task, whose outcome will arrive in `group` under `index`; tells its id.
    ///
    /// # Errors
    ///
    /// If the pool is closed, or broken.
    pub fn submit(&self, group: &Arc<Group>, index: u64, task: Task) -> Result<u64> {
        self.submit_as(false, group, index, task)
    }

    /// The terms of tasks that have none of their own.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.0.terms
    }

    /// Where large arguments go.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    fn submit_as(&self, held: bool, group: &Arc<Group>, index: u64, mut task: Task) -> Result<u64> {
        let (payload, buffers) = (take(&mut task.payload), take(&mut task.buffers));
        let packed = self.0.store.pack(payload, buffers);
        task.terms.get_or_insert(self.0.terms);
        let mut state = self.0.lock()?;
        state.check_open(held)?;
        let id = state.submit(group, index, task, packed);
        let look = state.driven && state.wants_look();
        self.0.unlock(state);
        if look {
            self.0.nudge();
        }
        Ok(id)
    }

    /// Announces that tasks will be submitted bit by bit: see [`Hold`].
    ///
    /// # Errors
    ///
    /// If the pool is closed, or broken.
    pub fn hold(self: &Arc<Self>) -> Result<Hold> {
        let mut state = self.0.lock()?;
        state.check_open(false)?;
        state.holds += 1;
        Ok(Hold(self.clone()))
    }

    /// Is this pool of this process?
    ///
    /// # Errors
    ///
    /// In a forked child, which has nothing of this pool but the value.
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }

    /// Says that somebody waits otherwise than in [`wait`](Self::wait): with a waker, or for an
    /// announcement. To be called each time that one is left behind.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn heed(&self) -> Result<()> {
        self.0.heed()
    }

    /// Waits until `group` has `what`. False: the deadline has passed, or a signal handler ran.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn wait(&self, group: &Group, what: Until, deadline: Option<Instant>) -> Result<bool> {
        self.0.wait(group, what, deadline)
    }

    /// Ends the tasks of a group, or of all: those that have not begun vanish, the others are ended as
    /// their terms say. Says how many had not ended.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn cancel(&self, group: Option<&Arc<Group>>) -> Result<usize> {
        let mut state = self.0.lock()?;
        let count = state.cancel(group);
        let driven = state.driven;
        self.0.unlock(state);
        if driven {
            self.0.nudge();
        }
        Ok(count)
    }

    /// Takes a task back, by its id: it is never run, and no outcome of it arrives. False: a worker
    /// has begun it, or it has ended.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn take_back(&self, task: u64) -> Result<bool> {
        let mut state = self.0.lock()?;
        let taken = state.take_back(task);
        self.0.unlock(state);
        Ok(taken)
    }

    /// Does a worker run the task of this id?
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn has_begun(&self, task: u64) -> Result<bool> {
        Ok(self.0.lock()?.has_begun(task))
    }

    /// The number of tasks that have not ended.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn outstanding(&self) -> Result<usize> {
        Ok(self.0.lock()?.scheduler.outstanding())
    }

    /// The number of tasks that no worker has been given.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn backlog(&self) -> Result<usize> {
        Ok(self.0.lock()?.scheduler.backlog())
    }

    /// The number of groups with tasks that have not ended, without those whose end is announced.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn unannounced(&self) -> Result<usize> {
        Ok(self.0.lock()?.unannounced())
    }

    /// Says that nothing will arrive in a group any more, and wakes who waits for it.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn end(&self, group: &Group) -> Result<()> {
        // Under the lock: a driver has looked at the group and armed the bell, or will look.
        let state = self.0.lock()?;
        group.expect(0);
        self.0.nudge();
        self.0.unlock(state);
        Ok(())
    }

    /// What each worker has done and is doing, by its own account; one for each seat.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn stats(&self) -> Result<Vec<WorkerStats>> {
        let state = self.0.lock()?;
        let now = monotonic();
        let each = state.desks.iter().zip(&state.hired).map(|(desk, hired)| {
            let (account, pid) = (desk.account(), desk.staff.as_ref().map(|it| it.child.pid()));
            WorkerStats {
                pid,
                started: *hired,
                returned: account.returned,
                failed: account.failed,
                busy: account.busy,
                running: account.running.map(|(_, since)| now.saturating_sub(since)),
                waiting: desk.sent().saturating_sub(account.running.iter().count()),
                memory: pid.and_then(resident),
                startup: desk.staff.as_ref().and_then(Staff::startup),
            }
        });
        Ok(each.collect())
    }

    /// What each worker is doing, if it can say so in time: its process and its stack, as text.
    ///
    /// That is for workers that hear `SIGURG`, which tells them of their tasks' ends, too.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn stacks(&self, within: Duration) -> Result<Vec<(u32, String)>> {
        self.answers(within, |_| libc::SIGURG)
    }

    /// As [`stacks`](Self::stacks), for workers that answer [`trace_signal`] without a look at what they
    /// are in the middle of.
    pub(crate) fn traces(&self, within: Duration) -> Result<Vec<(u32, String)>> {
        // Before it is ready, that signal would kill it, and this one does nothing.
        self.answers(within, |staff| if staff.traces { trace_signal() } else { libc::SIGURG })
    }

    fn answers(
        &self,
        within: Duration,
        question: impl Fn(&Staff) -> i32,
    ) -> Result<Vec<(u32, String)>> {
        const QUIET: Duration = Duration::from_millis(10);
        let deadline = Instant::now() + within;
        let mut stacks: Vec<(u32, String, Instant)> = Vec::new();
        for staff in self.0.lock()?.desks.iter().filter_map(|desk| desk.staff.as_ref()) {
            drop(staff.stack()); // of earlier times
            if staff.child.signal(question(staff)).is_ok() {
                stacks.push((staff.child.pid(), String::new(), Instant::now()));
            }
        }
        loop {
            let now = Instant::now();
            let over =
                |(_, text, at): &(u32, String, Instant)| !text.is_empty() && now > *at + QUIET;
            if stacks.iter().all(over) || now > deadline {
                return Ok(stacks.into_iter().map(|(pid, text, _)| (pid, text)).collect());
            }
            std::thread::sleep(QUIET / 10);
            for staff in self.0.lock()?.desks.iter().filter_map(|desk| desk.staff.as_ref()) {
                let of = |(pid, ..): &&mut (u32, String, Instant)| *pid == staff.child.pid();
                if let Some((_, text, at)) = stacks.iter_mut().find(of) {
                    let more = staff.stack();
                    if !more.is_empty() {
                        text.push_str(&more);
                        *at = Instant::now();
                    }
                }
            }
        }
    }

    /// Accepts no more tasks. The workers leave when the last has ended.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn close(&self) -> Result<()> {
        let mut state = self.0.lock()?;
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Closing;
        }
        fault("pool: it is closed, and nobody has looked");
        self.0.unlock(state);
        Ok(())
    }

    /// Ends the pool: tasks that have not ended are told `why`, workers get SIGTERM. Says how many
    /// tasks there were.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn terminate(&self, why: &str) -> Result<usize> {
        let mut state = self.0.lock()?;
        let dropped = state.fail(Error::closed(why));
        // Leaving or broken before: those who have not left yet are not waited for.
        let staff = state.desks.iter().filter_map(|desk| desk.staff.as_ref());
        fault("pool: workers are told to leave, before the signals");
        staff.for_each(|staff| drop(staff.child.signal(libc::SIGTERM)));
        fault("pool: workers have got a signal, before the bells");
        self.0.unlock(state);
        self.0.nudge();
        Ok(dropped)
    }

    /// Ends the pool because it cannot go on: all that has not ended is told why.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn fail(&self, why: Error) -> Result<()> {
        let mut state = self.0.lock()?;
        state.fail(why);
        self.0.unlock(state);
        self.0.nudge();
        Ok(())
    }

    /// As [`refused`](Self::refused).
    pub(crate) fn vacant(&self, seat: usize, why: Error) -> Result<()> {
        let mut state = self.0.lock()?;
        state.vacant(seat, why);
        self.0.unlock(state);
        self.0.nudge();
        Ok(())
    }

    /// No process could be started in a seat that was an errand, says another language: `errno` is the
    /// system's error, if it was one. The seat becomes an errand again, a moment later. If something is
    /// short, the pool goes on with the workers that it has, and lets tasks down only while it has none
    /// at all; anything else ends the pool after some attempts.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn refused(&self, seat: usize, why: &str, errno: Option<i32>) -> Result<()> {
        let system = errno.map(io::Error::from_raw_os_error).filter(is_shortage);
        let system = system.map(|error| Error::os("start a worker", error));
        let other = || Error::closed(format!("no worker can be started: {why}"));
        self.vacant(seat, system.unwrap_or_else(other))
    }

    /// Kills the workers that are still there.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn kill(&self) -> Result<()> {
        let state = self.0.lock()?;
        let staff = state.desks.iter().filter_map(|desk| desk.staff.as_ref());
        staff.for_each(|staff| drop(staff.child.signal(libc::SIGKILL)));
        Ok(())
    }

    /// Adds an errand of the user's own.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn post(&self, errand: Errand) -> Result<()> {
        let mut state = self.0.lock()?;
        state.errands.push_back(errand);
        self.0.unlock(state);
        Ok(())
    }

    /// Takes the next errand, waiting for one until the deadline. `Ok(None)`: the pool has ended.
    ///
    /// # Errors
    ///
    /// At the deadline, or in a forked child.
    pub fn errand(&self, deadline: Option<Instant>) -> Result<Option<Errand>> {
        let mut state = self.0.lock()?;
        loop {
            if let Some(errand) = state.errands.pop_front() {
                return Ok(Some(errand));
            }
            if state.is_ended() {
                return Ok(None);
            }
            if let Some(seat) = state.vacancies.due(Instant::now()) {
                return Ok(Some(Errand::Staff(seat)));
            }
            let next = state.vacancies.next();
            let until = deadline.into_iter().chain(next).min();
            state = match self.0.sleep(state, until) {
                Err(error) if error.is_timeout() && until == next => self.0.lock()?,
                woken => woken?,
            };
        }
    }

    /// Waits until no worker is left, after [`close`](Self::close) or
    /// [`terminate`](Self::terminate). False: the deadline has passed.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn wait_ended(&self, deadline: Option<Instant>) -> Result<bool> {
        let mut state = self.0.lock()?;
        fault("pool: its end is awaited");
        while !state.is_ended() {
            match self.0.sleep(state, deadline) {
                Ok(next) => state = next,
                Err(error) if error.is_timeout() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Nothing is under way, and all that was used is free again.
    #[cfg(test)]
    pub(super) fn assert_at_rest(&self) {
        self.0.lock().unwrap().assert_at_rest();
        assert!(self.0.store.is_whole(), "a slot is taken still");
    }

    /// Of the memory of a pool that has ended, no more has pages than its seats and what is kept for the
    /// next large arguments: nothing of what its workers have sent, the dead ones' included.
    #[cfg(test)]
    pub(super) fn assert_given_back(&self) {
        let (used, kept) = (self.0.region.used_by_spans().unwrap(), self.0.store.kept());
        assert!(used <= kept, "{used} bytes are in use, and {kept} are kept");
    }

    /// Why the pool broke, if it did.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn broken(&self) -> Result<Option<Error>> {
        match &self.0.lock()?.phase {
            Phase::Broken(why) => Ok(Some(why.clone())),
            _ => Ok(None),
        }
    }
}

/// An input that is being read: until this is dropped, a pool that closes accepts its tasks and
/// keeps its workers.
#[derive(Debug)]
pub struct Hold(Arc<Core>);

impl Hold {
    /// As [`Core::submit`], also when the pool is closing.
    ///
    /// # Errors
    ///
    /// If the pool has ended.
    pub fn submit(&self, group: &Arc<Group>, index: u64, task: Task) -> Result<()> {
        self.0.submit_as(true, group, index, task).map(drop)
    }

    /// The pool.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // In a forked child there is nothing to release.
        if let Ok(mut state) = self.0.0.lock() {
            state.holds -= 1;
            self.0.0.unlock(state);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // In a forked child there is nothing to end.
        if self.terminate("the pool was dropped").is_ok() {
            let _ = self.kill();
            fault("pool: workers are killed, and not gone");
            let _ = self.wait_ended(Some(Instant::now() + Duration::from_secs(5)));
            self.0.engine.unwatch(self.0.event.as_fd());
            self.0.engine.dismiss(self.0.pool);
            // Somebody may look at a result still, and so keep the rest.
            self.0.region.discard();
        }
    }
}
