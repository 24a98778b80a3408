//! A pool without a language: what its users call.
//!
//! A death, line by line: see `ARCHITECTURE.md`, "Where each kind of death is handled".

use std::mem::take;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use super::engine::{Engine, Token};
use super::group::{Group, Until};
use super::parcel::Store;
use super::shared::Shared;
use super::staff::{Desk, Staff};
use super::state::{Phase, State};
use super::task::Task;
use crate::error::{Error, Result};
use crate::process::Child;
use crate::shm::{Region, Sleeper};
use crate::sys::{Event, ForkClosed, fork, lifeline};

/// Something that a pool's user must do: it needs the user's language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Start a worker for this seat.
    Staff(usize),
    /// The group that was to be announced with this token is done.
    Done(u64),
}

/// What a new worker needs from its owner: descriptors to be passed on.
#[derive(Debug)]
pub struct Seating {
    /// The seat's number.
    pub seat: usize,
    /// The worker's end of its lifeline.
    pub lifeline: OwnedFd,
    owner: ForkClosed,
}

/// A pool of workers. Dropping it kills them.
#[derive(Debug)]
pub struct Core(Arc<Shared>);

impl Core {
    /// A pool with `workers` seats, all empty: each wants a [`Seating`].
    ///
    /// # Errors
    ///
    /// If `workers` is 0 or too many, or memory or descriptors are short.
    pub fn new(workers: usize) -> Result<Self> {
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
            store,
            event,
            state: Mutex::new(State::new(desks)),
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
    /// `None`: the pool has ended, or is about to.
    ///
    /// # Errors
    ///
    /// If the seat is taken, or descriptors are short.
    pub fn prepare(&self, seat: usize) -> Result<Option<Seating>> {
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
        let (owner, lifeline) = lifeline().map_err(|e| Error::os("make a lifeline", e))?;
        Ok(Some(Seating { seat, lifeline, owner }))
    }

    /// A process has been started in a seat.
    ///
    /// # Errors
    ///
    /// If it cannot be watched; it is killed then.
    pub fn seat(&self, seating: Seating, child: Arc<Child>) -> Result<()> {
        let mut state = self.0.lock()?;
        state.incarnations = Token::after(state.incarnations);
        let incarnation = state.incarnations;
        let staff = Staff::new(child.clone(), seating.owner, incarnation);
        state.desks[seating.seat].staff = Some(staff);
        let token = Token::end(self.0.pool, seating.seat, incarnation);
        let watched = self.0.engine.watch(child.as_fd(), token);
        if watched.is_err() {
            state.desks[seating.seat].staff = None;
            let _ = child.signal(libc::SIGKILL);
        }
        // It may have said that it is ready.
        state.read(seating.seat);
        self.0.unlock(state);
        watched
    }

    /// Submits a task, whose outcome will arrive in `group` under `index`.
    ///
    /// # Errors
    ///
    /// If the pool is closed, or broken.
    pub fn submit(&self, group: &Arc<Group>, index: u64, task: Task) -> Result<()> {
        self.submit_as(false, group, index, task)
    }

    /// Where large arguments go.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    fn submit_as(&self, held: bool, group: &Arc<Group>, index: u64, mut task: Task) -> Result<()> {
        let (payload, buffers) = (take(&mut task.payload), take(&mut task.buffers));
        let packed = self.0.store.pack(payload, buffers);
        let mut state = self.0.lock()?;
        state.check_open(held)?;
        state.submit(group, index, task, packed);
        self.0.unlock(state);
        Ok(())
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
        self.0.unlock(state);
        Ok(())
    }

    /// Ends the pool: tasks that have not ended are told `why`, workers get SIGTERM.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn terminate(&self, why: &str) -> Result<()> {
        let mut state = self.0.lock()?;
        state.fail(Error::closed(why));
        // Leaving or broken before: those who have not left yet are not waited for.
        let staff = state.desks.iter().filter_map(|desk| desk.staff.as_ref());
        staff.for_each(|staff| drop(staff.child.signal(libc::SIGTERM)));
        self.0.unlock(state);
        self.0.nudge();
        Ok(())
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
            state = self.0.sleep(state, deadline)?;
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
        while !state.is_ended() {
            match self.0.sleep(state, deadline) {
                Ok(next) => state = next,
                Err(error) if error.is_timeout() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
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
        self.0.submit_as(true, group, index, task)
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
            let _ = self.wait_ended(Some(Instant::now() + Duration::from_secs(5)));
            self.0.engine.unwatch(self.0.event.as_fd());
            self.0.engine.dismiss(self.0.pool);
            // Somebody may look at a result still, and so keep the rest.
            self.0.region.discard();
        }
    }
}
