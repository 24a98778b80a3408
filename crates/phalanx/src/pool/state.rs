//! What a pool knows: its phase, its tasks, who sits where. All of it is under one lock.
//!
//! What is here happens to the state and returns; nothing waits. What is owed to others when the
//! lock is released, wakers and errands, is collected on the way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::core::Errand;
use super::group::Group;
use super::parcel::Packed;
use super::scheduler::{Command, Scheduler};
use super::staff::{Desk, Freight, Mail, Staff};
use super::task::{Outcome, Task, to_owner};
use super::worker::LINGER;
use crate::error::{Error, Result, WorkerDied};
use crate::process::Exit;
use crate::shm::{Order, Region, heirs};

/// After so many workers in a row that died before they were ready, the pool gives up...
const STILLBORN: u32 = 3;
/// ... or after so many, if it has had one that was ready: then something from outside kills them.
const BESET: u32 = 20;

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) scheduler: Scheduler,
    tasks: Slab<Entry>,
    /// Makes task ids unique: the upper half of an id.
    serial: u64,
    pub(super) desks: Vec<Desk>,
    /// A waiting thread reads the outboxes.
    pub(super) driven: bool,
    pub(super) errands: VecDeque<Errand>,
    /// Inputs that are still being read: a pool that closes waits for what they will submit.
    pub(super) holds: usize,
    /// Workers that may have to be woken when the lock is released.
    pub(super) touched: Vec<usize>,
    /// Wakers to call when the lock is released.
    pub(super) wakers: Vec<Waker>,
    stillborn: u32,
    /// There has been a worker that was ready.
    proven: bool,
    pub(super) incarnations: u32,
    /// When the engine thread came last.
    pub(super) visited: Option<Instant>,
    /// The alarm that the engine thread was told last.
    pub(super) alarm: Option<Instant>,
    /// When to look for what workers have sent without ringing: see [`LINGER`].
    look: Option<Instant>,
    /// That look found nothing: from now on, everything is rung for.
    quiet: bool,
    /// Somebody has driven since the engine thread came last, and is likely to do so again.
    pub(super) drove: bool,
    /// The engine thread comes soon by itself: nobody has to ring for it.
    pub(super) expected: bool,
    /// Threads that wait while another one drives.
    pub(super) bystanders: usize,
    /// When to look whether memory can be given back that large pieces needed.
    tidy: Option<Instant>,
    /// The number of the span that was given to a worker last.
    span: u32,
}

/// Memory that large pieces needed goes back when none was sent for so long, or twice as long.
const TIDY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) enum Phase {
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
    packed: Packed,
    group: Arc<Group>,
    index: u64,
}

impl State {
    pub(super) fn new(desks: Vec<Desk>) -> Self {
        Self {
            phase: Phase::Open,
            scheduler: Scheduler::new(desks.len()),
            tasks: Slab::new(),
            serial: 0,
            desks,
            driven: false,
            errands: VecDeque::new(),
            holds: 0,
            touched: Vec::new(),
            wakers: Vec::new(),
            stillborn: 0,
            proven: false,
            incarnations: 0,
            visited: None,
            alarm: None,
            look: None,
            quiet: false,
            drove: false,
            expected: false,
            bystanders: 0,
            tidy: None,
            span: 0,
        }
    }

    fn id(&self, key: usize) -> u64 {
        self.tasks[key].serial << 32 | key as u64
    }

    fn entry(tasks: &Slab<Entry>, id: u64) -> Option<&Entry> {
        tasks.get((id & 0xffff_ffff) as usize).filter(|entry| entry.serial == id >> 32)
    }

    fn freight(tasks: &Slab<Entry>, id: u64) -> Option<Freight<'_>> {
        let Entry { task: Task { code, shape, .. }, packed, .. } = Self::entry(tasks, id)?;
        let (payload, pieces) = (&packed.bytes[..], packed.slots.is_some());
        Some(Freight { code: code.as_ref(), shape: *shape, payload, pieces })
    }

    fn packed(tasks: &mut Slab<Entry>, id: u64) -> Option<&mut Packed> {
        let entry = tasks.get_mut((id & 0xffff_ffff) as usize);
        entry.filter(|entry| entry.serial == id >> 32).map(|entry| &mut entry.packed)
    }

    pub(super) fn submit(&mut self, group: &Arc<Group>, index: u64, task: Task, packed: Packed) {
        // 28 bits: ids keep two bits free for a claim's state, and wrap after 2^28 reuses.
        self.serial = (self.serial + 1) & 0x0fff_ffff;
        let entry = Entry { serial: self.serial, task, packed, group: group.clone(), index };
        let key = self.tasks.insert(entry);
        self.scheduler.submit(self.id(key));
    }

    /// Does what the scheduler asks, and wakes the workers that got something.
    fn settle(&mut self) {
        while let Some(command) = self.scheduler.next() {
            match command {
                Command::Send { worker, task } => {
                    if !self.desks[worker].may_hold()
                        && let Some(packed) = Self::packed(&mut self.tasks, task)
                    {
                        *packed = std::mem::take(packed).inside();
                    }
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
        if entry.packed.slots.is_some() {
            self.tidy_later();
        }
        let arrival = entry.group.arrive(entry.index, outcome, took);
        self.wakers.extend(arrival.waker);
        self.errands.extend(arrival.announce.map(Errand::Done));
    }

    /// Gives the worker that comes to a seat a span of its own.
    pub(super) fn lend(&mut self, seat: usize, region: &Region) {
        self.span = Region::span_after(self.span).max(1);
        if let Some(span) = region.span(self.span) {
            self.desks[seat].lend(self.span, span);
        }
    }

    fn tidy_later(&mut self) {
        self.tidy.get_or_insert_with(|| Instant::now() + TIDY);
    }

    /// When the pool wants to be looked at, if nothing happens before.
    pub(super) fn alarm(&self) -> Option<Instant> {
        [self.scheduler.alarm(), self.tidy].into_iter().flatten().min()
    }

    /// Is it time to give memory back? If so, the caller does it and says whether to come again.
    pub(super) fn is_tidying_due(&mut self, now: Instant) -> bool {
        let due = self.tidy.is_some_and(|at| at <= now);
        if due {
            let held = self.desks.iter_mut().fold(false, |held, desk| desk.sweep() | held);
            let held = heirs::sweep() | held;
            self.tidy = None;
            if held {
                self.tidy_later();
            }
        }
        due
    }

    pub(super) fn tidy_again(&mut self) {
        self.tidy_later();
    }

    /// Before a sleep: when to look for what workers have not rung for, if they may have.
    pub(super) fn linger(&mut self) -> Option<Instant> {
        let may_have = !self.quiet && self.scheduler.is_behind();
        self.look = may_have.then(|| Instant::now() + LINGER);
        self.look
    }

    /// After a sleep, and before a look at the outboxes.
    pub(super) fn wake(&mut self, now: Instant) {
        self.quiet |= self.look.is_some_and(|at| at <= now);
        self.scheduler.wake(now);
    }

    /// Reads what a worker has sent.
    pub(super) fn read(&mut self, worker: usize) {
        self.quiet = false;
        let _ = self.desks[worker].sweep();
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
    pub(super) fn catch_up(&mut self, worker: usize) -> bool {
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
                (self.stillborn, self.proven) = (0, true);
                if let Some(staff) = &mut self.desks[worker].staff
                    && !std::mem::replace(&mut staff.ready, true)
                {
                    let life = (mail.extra > 0).then_some(mail.extra);
                    self.scheduler.arrived(worker, life, now);
                }
            }
            to_owner::RETURNED | to_owner::FAILED => {
                let tasks = &mut self.tasks;
                let slots = || Self::packed(tasks, mail.task)?.slots.take();
                if !self.desks[worker].ended(mail.task, slots) {
                    return;
                }
                let took = mail.took();
                self.scheduler.finished(worker, mail.task, took, now);
                let failed = mail.kind == to_owner::FAILED;
                let outcome = if failed { Outcome::Failed } else { Outcome::Returned };
                self.finish(mail.task, outcome(mail.body), took);
            }
            to_owner::UNFIT => {
                let body = mail.body.whole().unwrap_or_default();
                let (message, trace) = super::worker::read_unfit(body);
                self.fail(Error::initializer(message, trace));
            }
            _ => {}
        }
    }

    /// Ends the pool before its time: everything that has not ended is told why.
    pub(super) fn fail(&mut self, why: Error) {
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
    pub(super) fn progress(&mut self) {
        self.settle();
        if matches!(self.phase, Phase::Closing)
            && self.scheduler.outstanding() == 0
            && self.holds == 0
        {
            self.phase = Phase::Leaving;
            self.dismiss();
        }
        self.ring();
    }

    /// A process has ended: what it had begun is lost, the rest runs elsewhere.
    pub(super) fn ended(&mut self, worker: usize, staff: &Staff, exit: Option<Exit>) {
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
            if self.stillborn >= if self.proven { BESET } else { STILLBORN } {
                self.fail(WorkerDied::new(pid, exit, "starting").into());
            }
        }
        let tasks = self.scheduler.outstanding() > 0;
        if matches!(self.phase, Phase::Open) || matches!(self.phase, Phase::Closing) && tasks {
            self.errands.push_back(Errand::Staff(worker));
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Leaving | Phase::Broken(_))
            && self.desks.iter().all(|desk| desk.staff.is_none())
    }

    pub(super) fn check_open(&self, held: bool) -> Result<()> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closing if held => Ok(()),
            Phase::Closing | Phase::Leaving => Err(Error::closed("Pool not running")),
            Phase::Broken(why) => Err(why.clone()),
        }
    }
}
