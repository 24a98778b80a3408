//! Who moves a pool on: one lock, and whoever holds it.
//!
//! All that changes is [`State`], under one lock, held for microseconds and never while waiting.
//! Whoever holds it moves the pool on: a caller that submits, a caller that waits (the *driver*:
//! one at a time, it reads the outboxes itself and so saves a change of threads), or the engine
//! thread, which serves when nobody waits, and sees deaths.
//!
//! Exactly one of driver and engine thread is awake or has armed the doorbell: the engine thread
//! arms it whenever it leaves, unless `driven` is set; the driver sets `driven`, arms it for itself
//! while it sleeps, and arms it for the engine thread when it leaves.
//!
//! A driver that has nothing to read looks at its bell for a moment before it sleeps, if a core is free
//! for that ([`LOOK`]).
//!
//! Two things save most of the bells. A worker with more to do does not ring for each outcome: see
//! [`LINGER`](super::worker::LINGER). And while threads drive again and again, as when results are
//! awaited one by one, the engine thread comes by itself every [`SOON`], so a driver that leaves
//! does not arm the doorbell for it (`expected`), unless others wait for it (`bystanders`).

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};

use super::control::Terms;
use super::engine::Engine;
use super::group::{Group, Until};
use super::staff::Staff;
use super::state::{Phase, State};
use super::store::Store;
use crate::channel::{Pace, cores};
use crate::error::{Error, Result};
use crate::shm::{Control, Region, Sleeper};
use crate::sync::fault;
use crate::sys::futex::Woken;
use crate::sys::{Event, fork, trim};

/// When outcomes come thick and fast and nobody waits for them, the engine thread looks again
/// after this instead of being woken for each.
const SOON: Duration = Duration::from_micros(500);
/// A driver looks for so long before it sleeps, if a core is free for that: a worker that was asleep
/// answers a short task within it.
pub(super) const LOOK: Duration = Duration::from_micros(100);
/// How long the status of a child may lag behind its death.
const STATUS_LAG: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) generation: u32,
    pub(super) region: Region,
    pub(super) control: Control,
    /// Wakes the engine thread.
    pub(super) event: Event,
    pub(super) state: Mutex<State>,
    /// Something that `ended` or `errand` waits for has happened.
    pub(super) changed: Condvar,
    /// Whether a driver looks before it sleeps.
    pub(super) pace: Pace,
    /// Where large arguments go.
    pub(super) store: Store,
    /// Of tasks that have none of their own.
    pub(super) terms: Terms,
    pub(super) engine: Arc<Engine>,
    pub(super) pool: u32,
}

impl Shared {
    /// # Errors
    ///
    /// In a forked child.
    pub(super) fn check(&self) -> Result<()> {
        if self.generation == fork::generation() {
            return Ok(());
        }
        Err(Error::closed(
            "this pool belongs to the process that this one was forked from; make one here",
        ))
    }

    /// # Errors
    ///
    /// In a forked child, which has nothing of this pool but the value.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, State>> {
        self.check()?;
        // A panic under the lock is a bug; there is nothing better than to go on.
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Releases the lock, and tells everybody who must know.
    pub(super) fn unlock(&self, state: MutexGuard<'_, State>) {
        if self.release(state, false).1 {
            // The engine thread keeps the alarms.
            self.event.ring();
        }
    }

    /// As [`unlock`](Self::unlock); returns the alarm, and whether the engine thread must be rung for
    /// because of it. It need not be told of an alarm that it `hears` from us.
    fn release(&self, mut state: MutexGuard<'_, State>, hears: bool) -> (Option<Instant>, bool) {
        state.progress();
        let wakers = std::mem::take(&mut state.wakers);
        let notify = !state.errands.is_empty() || state.is_ended();
        let alarm = state.alarm();
        let changed = std::mem::replace(&mut state.alarm, alarm) != alarm;
        let ring = changed && alarm.is_some() && !state.expected && !hears;
        state.expected |= ring;
        drop(state);
        if notify {
            self.changed.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
        (alarm, ring)
    }

    /// Wakes the driver, or the engine thread.
    pub(super) fn nudge(&self) {
        if self.control.doorbell().ring_and_wake() == Some(Sleeper::InPoller) {
            self.event.ring();
        }
    }

    /// Reads all mail and pushes what is late. False: there was nothing to do.
    fn serve(state: &mut State) -> bool {
        let mut done = false;
        for worker in 0..state.desks.len() {
            // A worker may be quicker to write than its owner is to write down who it is.
            if state.desks[worker].staff.is_some() && state.desks[worker].has_mail() {
                state.read(worker);
                done = true;
            }
            if state.desks[worker].is_late() {
                done |= state.catch_up(worker);
            }
        }
        state.progress();
        done
    }

    /// Announces a sleeper. False: it must not sleep, there was something to do meanwhile.
    fn arm(&self, state: &mut State, sleeper: Sleeper) -> bool {
        self.control.doorbell().arm(sleeper);
        let done = Self::serve(state);
        if done {
            self.control.doorbell().disarm();
        }
        !done
    }

    pub(crate) fn clear_event(&self) {
        self.event.clear();
    }

    /// The engine thread's visit. Returns when it wants to come again, if it is not rung for.
    pub(crate) fn visit(&self) -> Option<Instant> {
        let Ok(mut state) = self.lock() else { return None };
        let now = Instant::now();
        state.wake(now);
        let again = state.visited.is_some_and(|at| now < at + 2 * SOON);
        state.visited = Some(now);
        let alone = state.bystanders == 0;
        let mut active = std::mem::take(&mut state.drove) && alone;
        if state.driven {
            state.progress();
        } else {
            active |= Self::serve(&mut state) && again && alone;
            while !active && !self.arm(&mut state, Sleeper::InPoller) {}
        }
        let soon = active.then(|| now + SOON);
        // What is set here holds until the next visit, which is promised by what is returned.
        state.expected = soon.is_some();
        let tidying = state.is_tidying_due(now);
        let flooded = tidying && std::mem::take(&mut state.flooded);
        let look = if state.driven || soon.is_some() { None } else { state.linger() };
        let (mut alarm, _) = self.release(state, true);
        if flooded {
            trim();
        }
        if tidying && self.store.trim() {
            let Ok(mut state) = self.lock() else { return None };
            state.tidy_again();
            (alarm, _) = self.release(state, true);
        }
        [soon, look, alarm].into_iter().flatten().min()
    }

    /// Somebody waits who is not in [`wait`](Self::wait): the next outcome is rung for.
    pub(super) fn heed(&self) -> Result<()> {
        let mut state = self.lock()?;
        if !state.driven {
            while !self.arm(&mut state, Sleeper::InPoller) {}
            state.expected = false;
        }
        self.unlock(state);
        Ok(())
    }

    /// A thread has panicked at work on this pool: a bug of ours, which must not become a hang.
    pub(crate) fn give_up(&self) {
        let Ok(mut state) = self.lock() else { return };
        state.driven = false;
        state.fail(Error::closed("a bug in phalanx ended this pool; see the panic on stderr"));
        self.unlock(state);
        self.nudge();
    }

    /// The engine thread has seen the end of a process.
    pub(crate) fn saw_end(&self, worker: usize, incarnation: u32) {
        let child = {
            let Ok(state) = self.lock() else { return };
            let staff = state.desks[worker].staff.as_ref();
            let Some(staff) = staff.filter(|it| it.incarnation == incarnation) else { return };
            staff.child.clone()
        };
        self.engine.unwatch(child.as_fd());
        // That may take a while, so nobody else is to wait for it.
        let exit = child.wait_until(Some(Instant::now() + STATUS_LAG)).ok().flatten();
        fault("pool: a worker's end is seen, and not noted");
        let Ok(mut state) = self.lock() else { return };
        let current = |staff: &mut Staff| staff.incarnation == incarnation;
        let Some(staff) = state.desks[worker].staff.take_if(current) else { return };
        let was_broken = matches!(state.phase, Phase::Broken(_));
        let as_agreed = state.ended(worker, &staff, exit);
        let broken = match &state.phase {
            Phase::Broken(why) if !was_broken => Some(why.clone()),
            _ => None,
        };
        let driven = state.driven;
        self.unlock(state);
        if driven {
            self.nudge();
        }
        // Who listens may do anything, so no lock is held.
        let (pid, exit) = (staff.child.pid(), exit.map(tracing::field::display));
        if as_agreed || was_broken {
            debug!(pid, exit, "a worker has left");
        } else {
            warn!(pid, exit, "a worker has died");
        }
        if let Some(why) = broken {
            error!(%why, "a pool has ended before its time");
        }
    }

    /// Waits until `group` has `what`, reading outboxes if nobody else does.
    ///
    /// Returns early, with false, at the deadline or when a signal handler has run.
    pub(super) fn wait(
        &self,
        group: &Group,
        what: Until,
        deadline: Option<Instant>,
    ) -> Result<bool> {
        self.check()?;
        loop {
            if group.has(what) {
                return Ok(true);
            }
            let mut state = self.lock()?;
            if state.driven {
                state.bystanders += 1;
                drop(state);
                group.sleep(what, deadline);
                self.lock()?.bystanders -= 1;
                if !group.has(what) && deadline.is_some_and(|at| at <= Instant::now()) {
                    return Ok(false);
                }
                continue;
            }
            state.driven = true;
            self.control.doorbell().disarm();
            let drive = AssertUnwindSafe(|| self.drive(state, group, what, deadline));
            return Ok(catch_unwind(drive).unwrap_or_else(|panic| {
                self.give_up();
                resume_unwind(panic)
            }));
        }
    }

    fn drive<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        group: &Group,
        what: Until,
        deadline: Option<Instant>,
    ) -> bool {
        let found = loop {
            Self::serve(&mut state);
            if group.has(what) {
                break true;
            }
            let looks = state.scheduler.busy() < cores();
            let sleeper = if looks { Sleeper::Looking } else { Sleeper::OnWord };
            if !self.arm(&mut state, sleeper) {
                continue;
            }
            let next = [state.urgent(), deadline, state.linger()].into_iter().flatten().min();
            self.unlock(state);
            let rung = looks && self.look();
            let woken = if rung { Woken::Look } else { self.control.doorbell().sleep(next) };
            state = match self.lock() {
                Ok(state) => state,
                // Forked while asleep: not ours to drive.
                Err(_) => return false,
            };
            self.control.doorbell().disarm();
            let now = Instant::now();
            state.wake(now);
            if woken == Woken::Interrupted || deadline.is_some_and(|at| at <= now) {
                Self::serve(&mut state);
                break group.has(what);
            }
        };
        (state.driven, state.drove) = (false, true);
        // From here on the engine thread serves, unless we are back before it comes.
        let mut ring = false;
        if !state.expected || state.bystanders > 0 {
            while !self.arm(&mut state, Sleeper::InPoller) {}
            ring = state.linger().is_some();
            state.expected |= ring;
        }
        self.unlock(state);
        if ring {
            self.event.ring();
        }
        found
    }

    /// Looks at the doorbell for a moment. False: it was not rung, and is armed for one who sleeps.
    fn look(&self) -> bool {
        let bell = self.control.doorbell();
        let _ = self.pace.spin(|| bell.is_rung().then_some(()));
        !bell.doze()
    }

    pub(super) fn sleep<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>> {
        let Some(deadline) = deadline else {
            return Ok(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::timed_out("a pool"));
        }
        Ok(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }
}
