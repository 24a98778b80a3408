//! What a pool is made of, apart from the language that uses it.
//!
//! All that changes is [`State`], under one lock, held for microseconds and never while waiting.
//! Whoever holds it moves the pool on: a caller that submits, a caller that waits (the *driver*:
//! one at a time, it reads the outboxes itself and so saves a change of threads), or the engine
//! thread, which serves when nobody waits, and sees deaths.
//!
//! A death, line by line: see `ARCHITECTURE.md`, "Where each kind of death is handled".

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::engine::{Engine, Token};
use super::group::{Group, Until};
use super::scheduler::{Command, Scheduler};
use super::staff::{Desk, Freight, Mail, Staff};
use super::task::{Outcome, Task, to_owner};
use crate::error::{Error, Result, WorkerDied};
use crate::process::Child;
use crate::shm::{Control, Order, Region, Sleeper};
use crate::sys::futex::Woken;
use crate::sys::{Event, ForkClosed, fork, lifeline};

/// After so many workers in a row that died before they were ready, the pool gives up.
const STILLBORN: u32 = 3;
/// So many outcomes at once mean that more are coming: the engine thread then looks again after
/// [`SOON`] instead of being woken for each.
const BURST: usize = 16;
const SOON: Duration = Duration::from_micros(500);
/// How long the status of a child may lag behind its death.
const STATUS_LAG: Duration = Duration::from_millis(50);

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

#[derive(Debug)]
pub(crate) struct Shared {
    generation: u32,
    region: Region,
    control: Control,
    /// Wakes the engine thread.
    event: Event,
    state: Mutex<State>,
    /// Something that `ended` or `errand` waits for has happened.
    changed: Condvar,
    engine: Arc<Engine>,
    pool: u32,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    scheduler: Scheduler,
    tasks: Slab<Entry>,
    /// Makes task ids unique: the upper half of an id.
    serial: u64,
    desks: Vec<Desk>,
    /// A waiting thread reads the outboxes.
    driven: bool,
    errands: VecDeque<Errand>,
    /// Inputs that are still being read: a pool that closes waits for what they will submit.
    holds: usize,
    /// Workers that may have to be woken when the lock is released.
    touched: Vec<usize>,
    /// Wakers to call when the lock is released.
    wakers: Vec<Waker>,
    stillborn: u32,
    incarnations: u32,
    /// Outcomes since the engine thread looked last.
    arrivals: usize,
}

#[derive(Clone, Debug)]
enum Phase {
    Open,
    /// No new tasks; the workers leave after the last.
    Closing,
    /// All tasks have ended; workers are leaving.
    Leaving,
    /// Ended before its time: by `terminate`, or because its workers cannot be readied.
    Broken(Error),
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    task: Task,
    group: Arc<Group>,
    index: u64,
}

impl State {
    fn id(&self, key: usize) -> u64 {
        self.tasks[key].serial << 32 | key as u64
    }

    fn entry(tasks: &Slab<Entry>, id: u64) -> Option<&Entry> {
        tasks.get((id & 0xffff_ffff) as usize).filter(|entry| entry.serial == id >> 32)
    }

    fn freight(tasks: &Slab<Entry>, id: u64) -> Option<Freight<'_>> {
        let Task { code, shape, payload } = &Self::entry(tasks, id)?.task;
        Some(Freight { code: code.as_ref(), shape: *shape, payload })
    }

    fn submit(&mut self, group: &Arc<Group>, index: u64, task: Task) {
        // 28 bits: ids keep two bits free for a claim's state, and wrap after 2^28 reuses.
        self.serial = (self.serial + 1) & 0x0fff_ffff;
        let entry = Entry { serial: self.serial, task, group: group.clone(), index };
        let key = self.tasks.insert(entry);
        self.scheduler.submit(self.id(key));
    }

    /// Does what the scheduler asks, and wakes the workers that got something.
    fn settle(&mut self) {
        while let Some(command) = self.scheduler.next() {
            match command {
                Command::Send { worker, task } => {
                    if let Some(freight) = Self::freight(&self.tasks, task) {
                        self.desks[worker].send(task, &freight);
                        self.touched.push(worker);
                    }
                }
                Command::Revoke { worker, task } => {
                    if self.desks[worker].revoke(task) {
                        self.scheduler.revoked(worker, task, Instant::now());
                    }
                }
            }
        }
    }

    fn ring(&mut self) {
        while let Some(worker) = self.touched.pop() {
            self.desks[worker].ring();
        }
    }

    fn finish(&mut self, task: u64, outcome: Outcome, took: Duration) {
        if Self::entry(&self.tasks, task).is_none() {
            return;
        }
        let entry = self.tasks.remove((task & 0xffff_ffff) as usize);
        let arrival = entry.group.arrive(entry.index, outcome, took);
        self.wakers.extend(arrival.waker);
        self.errands.extend(arrival.announce.map(Errand::Done));
        self.arrivals += 1;
    }

    /// Reads what a worker has sent.
    fn read(&mut self, worker: usize) {
        loop {
            match self.desks[worker].read() {
                Ok(Some(mail)) => self.receive(worker, mail),
                Ok(None) => break,
                // It writes nonsense: what it was running is lost, and so is it.
                Err(_) => {
                    self.desks[worker].staff.iter().for_each(|staff| {
                        let _ = staff.child.signal(libc::SIGKILL);
                    });
                    break;
                }
            }
        }
        self.touched.push(worker);
        self.desks[worker].made_room();
    }

    /// Pushes what is late for a worker, and tells whether any of it went.
    fn catch_up(&mut self, worker: usize) -> bool {
        let went = self.desks[worker].push(|task| Self::freight(&self.tasks, task));
        if went {
            self.touched.push(worker);
        }
        went
    }

    fn receive(&mut self, worker: usize, mail: Mail) {
        let now = Instant::now();
        match mail.kind {
            to_owner::READY => {
                self.stillborn = 0;
                if let Some(staff) = &mut self.desks[worker].staff
                    && !std::mem::replace(&mut staff.ready, true)
                {
                    let life = (mail.extra > 0).then_some(mail.extra);
                    self.scheduler.arrived(worker, life, now);
                }
            }
            to_owner::RETURNED | to_owner::FAILED => {
                if self.desks[worker].ended(mail.task) {
                    self.scheduler.finished(worker, mail.task, mail.took(), now);
                    let failed = mail.kind == to_owner::FAILED;
                    let outcome = if failed { Outcome::Failed } else { Outcome::Returned };
                    let took = mail.took();
                    self.finish(mail.task, outcome(mail.body), took);
                }
            }
            to_owner::UNFIT => {
                let (message, trace) = super::worker::read_unfit(&mail.body);
                self.fail(Error::initializer(message, trace));
            }
            _ => {}
        }
    }

    /// Ends the pool before its time: everything that has not ended is told why.
    fn fail(&mut self, why: Error) {
        if matches!(self.phase, Phase::Broken(_)) {
            return;
        }
        self.phase = Phase::Broken(why.clone());
        for task in self.scheduler.abandon() {
            self.finish(task, Outcome::Broken(why.clone()), Duration::ZERO);
        }
        self.dismiss();
    }

    fn dismiss(&mut self) {
        self.desks.iter_mut().for_each(|desk| desk.order(Order::Leave));
        self.touched.extend(0..self.desks.len());
        self.errands.retain(|errand| !matches!(errand, Errand::Staff(_)));
    }

    /// After anything has happened: is it time to leave?
    fn progress(&mut self) {
        self.settle();
        if matches!(self.phase, Phase::Closing) && self.scheduler.outstanding() == 0 && self.holds == 0
        {
            self.phase = Phase::Leaving;
            self.dismiss();
        }
        self.ring();
    }

    /// A process has ended: what it had begun is lost, the rest runs elsewhere.
    fn ended(&mut self, worker: usize, staff: &Staff, exit: Option<crate::process::Exit>) {
        self.read(worker);
        let desk = &mut self.desks[worker];
        let (lost, pid) = (desk.begun(), staff.child.pid());
        desk.clear();
        self.scheduler.died(worker, &lost, Instant::now());
        for task in lost {
            let died = WorkerDied::new(pid, exit, "running a task");
            self.finish(task, Outcome::Lost(died), Duration::ZERO);
        }
        if !staff.ready && matches!(self.phase, Phase::Open | Phase::Closing) {
            self.stillborn += 1;
            if self.stillborn >= STILLBORN {
                self.fail(WorkerDied::new(pid, exit, "starting").into());
            }
        }
        let tasks = self.scheduler.outstanding() > 0;
        if matches!(self.phase, Phase::Open) || matches!(self.phase, Phase::Closing) && tasks {
            self.errands.push_back(Errand::Staff(worker));
        }
    }

    fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Leaving | Phase::Broken(_))
            && self.desks.iter().all(|desk| desk.staff.is_none())
    }

    fn check_open(&self, held: bool) -> Result<()> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closing if held => Ok(()),
            Phase::Closing | Phase::Leaving => Err(Error::closed("Pool not running")),
            Phase::Broken(why) => Err(why.clone()),
        }
    }
}

impl Shared {
    /// # Errors
    ///
    /// In a forked child, which has nothing of this pool but the value.
    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        if self.generation != fork::generation() {
            return Err(Error::closed(
                "this pool belongs to the process that this one was forked from; make one here",
            ));
        }
        // A panic under the lock is a bug; there is nothing better than to go on.
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Releases the lock, and tells everybody who must know.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        state.progress();
        let wakers = std::mem::take(&mut state.wakers);
        let notify = !state.errands.is_empty() || state.is_ended();
        drop(state);
        if notify {
            self.changed.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes the driver, or the engine thread.
    fn nudge(&self) {
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
        state.scheduler.wake(now);
        let mut soon = None;
        if state.driven {
            state.progress();
        } else {
            loop {
                Self::serve(&mut state);
                if std::mem::take(&mut state.arrivals) >= BURST {
                    self.control.doorbell().disarm();
                    soon = Some(now + SOON);
                    break;
                }
                if self.arm(&mut state, Sleeper::InPoller) {
                    break;
                }
            }
        }
        let alarm = state.scheduler.alarm();
        self.unlock(state);
        [soon, alarm].into_iter().flatten().min()
    }

    /// The engine thread has seen the end of a process.
    pub(crate) fn saw_end(&self, worker: usize, incarnation: u32) {
        let Ok(mut state) = self.lock() else { return };
        let current = |staff: &mut Staff| staff.incarnation == incarnation;
        let Some(staff) = state.desks[worker].staff.take_if(current) else { return };
        self.engine.unwatch(staff.child.as_fd());
        let exit = staff.child.wait_until(Some(Instant::now() + STATUS_LAG)).ok().flatten();
        state.ended(worker, &staff, exit);
        let driven = state.driven;
        self.unlock(state);
        if driven {
            self.nudge();
        }
    }

    /// Waits until `group` has `what`, reading outboxes if nobody else does.
    ///
    /// Returns early, with false, at the deadline or when a signal handler has run.
    fn wait(&self, group: &Group, what: Until, deadline: Option<Instant>) -> Result<bool> {
        loop {
            if group.has(what) {
                return Ok(true);
            }
            let mut state = self.lock()?;
            if state.driven {
                drop(state);
                group.sleep(what, deadline);
                if !group.has(what) && deadline.is_some_and(|at| at <= Instant::now()) {
                    return Ok(false);
                }
                continue;
            }
            state.driven = true;
            self.control.doorbell().disarm();
            return Ok(self.drive(state, group, what, deadline));
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
            if !self.arm(&mut state, Sleeper::OnWord) {
                continue;
            }
            let alarm = state.scheduler.alarm();
            let next = [alarm, deadline].into_iter().flatten().min();
            self.unlock(state);
            let woken = self.control.doorbell().sleep(next);
            state = match self.lock() {
                Ok(state) => state,
                // Forked while asleep: not ours to drive.
                Err(_) => return false,
            };
            self.control.doorbell().disarm();
            let now = Instant::now();
            state.scheduler.wake(now);
            if woken == Woken::Interrupted || deadline.is_some_and(|at| at <= now) {
                Self::serve(&mut state);
                break group.has(what);
            }
        };
        state.driven = false;
        // From here on the engine thread serves; what came meanwhile is ours to read.
        while !self.arm(&mut state, Sleeper::InPoller) {}
        let alarm = state.scheduler.alarm().is_some();
        self.unlock(state);
        if alarm {
            self.event.ring();
        }
        found
    }
}

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
        let event = Event::new().map_err(|e| Error::os("make a pool's event", e))?;
        let state = State {
            phase: Phase::Open,
            scheduler: Scheduler::new(workers),
            tasks: Slab::new(),
            serial: 0,
            desks,
            driven: false,
            errands: VecDeque::new(),
            holds: 0,
            touched: Vec::new(),
            wakers: Vec::new(),
            stillborn: 0,
            incarnations: 0,
            arrivals: 0,
        };
        let engine = Engine::current()?;
        let shared = Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
            generation: fork::generation(),
            region,
            control,
            event,
            state: Mutex::new(state),
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
        state.incarnations += 1;
        let incarnation = state.incarnations;
        let staff = Staff::new(child.clone(), seating.owner, incarnation);
        state.desks[seating.seat].staff = Some(staff);
        let token = Token::end(self.0.pool, seating.seat, incarnation);
        let watched = self.0.engine.watch(child.as_fd(), token);
        if watched.is_err() {
            state.desks[seating.seat].staff = None;
            let _ = child.signal(libc::SIGKILL);
        }
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

    fn submit_as(&self, held: bool, group: &Arc<Group>, index: u64, task: Task) -> Result<()> {
        let mut state = self.0.lock()?;
        state.check_open(held)?;
        state.submit(group, index, task);
        let alarm = state.scheduler.alarm().is_some();
        self.0.unlock(state);
        if alarm {
            self.0.event.ring();
        }
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

    /// Waits until `group` has `what`. False: the deadline has passed, or a signal handler ran.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn wait(&self, group: &Group, what: Until, deadline: Option<Instant>) -> Result<bool> {
        self.0.wait(group, what, deadline)
    }

    /// How long a task takes here, as measured; `None` before the first has ended.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn pace(&self) -> Result<Option<Duration>> {
        Ok(self.0.lock()?.scheduler.pace())
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

impl Shared {
    fn sleep<'a>(
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

impl Drop for Core {
    fn drop(&mut self) {
        // In a forked child there is nothing to end.
        if self.terminate("the pool was dropped").is_ok() {
            let _ = self.kill();
            let _ = self.wait_ended(Some(Instant::now() + Duration::from_secs(5)));
            self.0.engine.unwatch(self.0.event.as_fd());
            self.0.engine.dismiss(self.0.pool);
        }
    }
}
