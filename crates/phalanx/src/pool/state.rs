//! What a pool knows: its phase, its tasks, who sits where. All of it is under one lock.
//!
//! What is here happens to the state and returns; nothing waits. What is owed to others when the
//! lock is released, wakers and errands, is collected on the way.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::control::{Control, Terms};
use super::core::Errand;
use super::group::Group;
use super::limits::{Limits, Watch};
use super::parcel::Packed;
use super::scheduler::{Command, ROOMY, Scheduler};
use super::staff::{Desk, Freight, Mail, Staff};
use super::task::{Code, Outcome, Task, to_owner};
use super::vacancies::Vacancies;
use super::worker::LINGER;
use crate::channel::Tickets;
use crate::error::{Error, Result, WorkerDied, is_shortage};
use crate::process::Exit;
use crate::shm::{Order, Region, heirs};
use crate::sync::fault;

/// After so many workers in a row that died before they were ready, the pool gives up...
const STILLBORN: u32 = 3;
/// ... or after so many, if it has had one that was ready: then something from outside kills them.
const BESET: u32 = 20;

/// After more tasks than this at a time, the allocator is asked to give back what it keeps.
const FLOOD: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) scheduler: Scheduler,
    tasks: Slab<Entry>,
    pub(super) control: Control,
    pub(super) watch: Watch,
    /// Makes task ids unique: the upper half of an id.
    serial: u64,
    pub(super) desks: Vec<Desk>,
    /// How many workers each seat has had.
    pub(super) hired: Vec<u64>,
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
    /// Seats for which something was short.
    pub(super) vacancies: Vacancies,
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
    /// When to look whether memory can be given back that large pieces, or many tasks, needed.
    tidy: Option<Instant>,
    /// There were many tasks since that was done last.
    pub(super) flooded: bool,
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
pub(super) struct Entry {
    serial: u64,
    code: Option<Arc<Code>>,
    shape: u8,
    packed: Packed,
    group: Arc<Group>,
    index: u64,
    /// `None`: nothing is agreed upon.
    pub(super) terms: Option<Box<Terms>>,
    _tickets: Tickets,
    /// The deaths of workers that ran it.
    pub(super) deaths: Vec<WorkerDied>,
}

impl Entry {
    fn terms(&self) -> Terms {
        self.terms.as_deref().copied().unwrap_or_default()
    }
}

impl State {
    pub(super) fn new(desks: Vec<Desk>, limits: Limits) -> Self {
        Self {
            phase: Phase::Open,
            scheduler: Scheduler::new(desks.len()),
            tasks: Slab::new(),
            control: Control::default(),
            watch: Watch::new(limits),
            serial: 0,
            hired: vec![0; desks.len()],
            desks,
            driven: false,
            errands: VecDeque::new(),
            holds: 0,
            touched: Vec::new(),
            wakers: Vec::new(),
            stillborn: 0,
            proven: false,
            vacancies: Vacancies::default(),
            incarnations: 0,
            visited: None,
            alarm: None,
            look: None,
            quiet: false,
            drove: false,
            expected: false,
            bystanders: 0,
            tidy: None,
            flooded: false,
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
        let Entry { code, shape, packed, .. } = Self::entry(tasks, id)?;
        let (payload, pieces) = (&packed.bytes[..], packed.slots.is_some());
        Some(Freight { code: code.as_ref(), shape: *shape, payload, pieces })
    }

    pub(super) fn entry_mut(&mut self, id: u64) -> Option<&mut Entry> {
        let entry = self.tasks.get_mut((id & 0xffff_ffff) as usize);
        entry.filter(|entry| entry.serial == id >> 32)
    }

    pub(super) fn terms(&self, id: u64) -> Option<Terms> {
        Self::entry(&self.tasks, id).map(Entry::terms)
    }

    /// The tasks of a group, or all.
    pub(super) fn tasks_of(&self, group: Option<&Arc<Group>>) -> HashSet<u64> {
        let wanted = |entry: &Entry| group.is_none_or(|group| Arc::ptr_eq(group, &entry.group));
        let ids = self.tasks.iter().filter(|(_, entry)| wanted(entry));
        ids.map(|(key, entry)| entry.serial << 32 | key as u64).collect()
    }

    /// Groups that have tasks, and whose end is not announced.
    pub(super) fn unannounced(&self) -> usize {
        let groups = self.tasks.iter().map(|(_, entry)| &entry.group);
        let known: HashSet<_> = groups.filter(|it| !it.is_announced()).map(Arc::as_ptr).collect();
        known.len()
    }

    fn packed(tasks: &mut Slab<Entry>, id: u64) -> Option<&mut Packed> {
        let entry = tasks.get_mut((id & 0xffff_ffff) as usize);
        entry.filter(|entry| entry.serial == id >> 32).map(|entry| &mut entry.packed)
    }

    /// Adds a task, and tells its id.
    pub(super) fn submit(
        &mut self,
        group: &Arc<Group>,
        index: u64,
        task: Task,
        packed: Packed,
    ) -> u64 {
        // 28 bits: ids keep two bits free for a claim's state, and wrap after 2^28 reuses.
        self.serial = (self.serial + 1) & 0x0fff_ffff;
        let Task { code, shape, terms, tickets: _tickets, .. } = task;
        let terms = terms.unwrap_or_default();
        let key = self.tasks.insert(Entry {
            serial: self.serial,
            code,
            shape,
            packed,
            group: group.clone(),
            index,
            terms: (terms != Terms::default()).then(|| Box::new(terms)),
            _tickets,
            deaths: Vec::new(),
        });
        let id = self.id(key);
        self.control.agree(id, &terms);
        self.watch.open_eyes();
        if let Some(worker) = self.scheduler.doubted() {
            self.scheduler.has_left(worker, self.desks[worker].left());
        }
        self.scheduler.submit(id, Instant::now());
        id
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

    /// Forgets a task that is nowhere any more.
    pub(super) fn forget(&mut self, task: u64) -> Option<Entry> {
        Self::entry(&self.tasks, task)?;
        let entry = self.tasks.remove((task & 0xffff_ffff) as usize);
        if self.tasks.is_empty() && self.tasks.capacity() > ROOMY {
            if self.tasks.capacity() > FLOOD {
                self.flooded = true;
                self.tidy_later();
            }
            self.tasks.shrink_to_fit();
        }
        self.control.forget(task, &entry.terms());
        if entry.packed.slots.is_some() {
            self.tidy_later();
        }
        Some(entry)
    }

    pub(super) fn finish(&mut self, task: u64, outcome: Outcome, took: Duration) {
        let Some(entry) = self.forget(task) else { return };
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
        self.urgent().into_iter().chain(self.tidy).min()
    }

    /// As [`alarm`](Self::alarm), for what does not wait for the engine thread.
    pub(super) fn urgent(&self) -> Option<Instant> {
        let alarms = [self.scheduler.alarm(), self.control.alarm(), self.watch.alarm()];
        alarms.into_iter().flatten().min()
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

    /// Has somebody else's task made it necessary to look, when the sleeper saw no reason to?
    pub(super) fn wants_look(&mut self) -> bool {
        self.look.is_none() && self.linger().is_some()
    }

    /// After a sleep, and before a look at the outboxes.
    pub(super) fn wake(&mut self, now: Instant) {
        self.quiet |= self.look.is_some_and(|at| at <= now);
        self.scheduler.wake(now);
        self.keep_terms(now);
        self.keep_limits(now);
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
                    self.desks[worker].silence();
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
                    && staff.since.is_none()
                {
                    staff.since = Some(now);
                    self.watch.arrived(now);
                    staff.traces = mail.flags != 0;
                    let life = (mail.extra > 0).then_some(mail.extra);
                    self.scheduler.arrived(worker, life, now);
                }
            }
            to_owner::RETURNED | to_owner::FAILED => {
                let slots = Self::packed(&mut self.tasks, mail.task).map(|it| it.slots.clone());
                let slots = slots.flatten();
                if slots.is_some() {
                    self.tidy_later();
                }
                if !self.desks[worker].ended(mail.task, slots) {
                    return;
                }
                let took = mail.took();
                self.scheduler.finished(worker, mail.task, took, now);
                self.look_after(worker, took, now);
                let failed = mail.kind == to_owner::FAILED;
                let outcome = if failed { Outcome::Failed } else { Outcome::Returned };
                let outcome = self.outcome_of(worker, mail.task, outcome(mail.body));
                let again = mail.flags != 0 && matches!(outcome, Outcome::Failed(_));
                if !(again && self.try_again(mail.task, None, now)) {
                    self.finish(mail.task, outcome, took);
                }
            }
            to_owner::NOTE => {
                let note = mail.body.whole().unwrap_or_default().to_vec();
                self.errands.push_back(Errand::Note(mail.task, note));
            }
            to_owner::UNFIT => {
                let body = mail.body.whole().unwrap_or_default();
                let (message, trace) = super::worker::read_unfit(body);
                self.fail(Error::initializer(message, trace));
            }
            _ => {}
        }
    }

    /// Ends the pool before its time: everything that has not ended is told why. Says how much of that
    /// somebody wanted.
    pub(super) fn fail(&mut self, why: Error) -> usize {
        if matches!(self.phase, Phase::Broken(_)) {
            return 0;
        }
        self.phase = Phase::Broken(why.clone());
        fault("pool: it has failed, and no task is told");
        let wanted = self.let_down(&why);
        fault("pool: tasks are let down, and no worker is told");
        self.dismiss();
        wanted
    }

    /// Tells everything that has not ended why it will not. Says how much of that somebody wanted.
    fn let_down(&mut self, why: &Error) -> usize {
        self.scheduler.abandon();
        let wanted = self.tasks.iter().filter(|(_, entry)| !entry.group.is_abandoned()).count();
        for task in self.tasks_of(None) {
            self.finish(task, Outcome::Broken(why.clone()), Duration::ZERO);
        }
        self.control = Control::default();
        wanted
    }

    /// No worker could be started in a seat, which is offered again for some time: without an end, if
    /// it is that something is short.
    pub(super) fn vacant(&mut self, seat: usize, why: Error) {
        if matches!(self.phase, Phase::Leaving | Phase::Broken(_)) {
            return;
        }
        if !self.vacancies.failed(seat, Instant::now()) {
            return;
        }
        if !why.os_error().is_some_and(is_shortage) {
            self.fail(why);
        } else if self.desks.iter().all(|desk| desk.staff.is_none()) {
            self.let_down(&why);
        }
    }

    fn dismiss(&mut self) {
        self.desks.iter_mut().for_each(|desk| desk.order(Order::Leave));
        self.touched.extend(0..self.desks.len());
        self.errands.retain(|errand| !matches!(errand, Errand::Staff(_)));
        self.vacancies.clear();
    }

    /// After anything has happened: is it time to leave?
    pub(super) fn progress(&mut self) {
        self.settle();
        if matches!(self.phase, Phase::Closing)
            && self.scheduler.outstanding() == 0
            && !self.control.is_waiting()
            && self.holds == 0
        {
            self.phase = Phase::Leaving;
            fault("pool: nothing is left to do, and no worker is told");
            self.dismiss();
            fault("pool: workers are to leave, before the bells");
        }
        self.ring();
    }

    /// A process has ended: what it had begun is lost, the rest runs elsewhere. True: it has left, or
    /// was killed, by the pool's own rules.
    pub(super) fn ended(&mut self, worker: usize, staff: &Staff, exit: Option<Exit>) -> bool {
        self.read(worker);
        let desk = &mut self.desks[worker];
        let (lost, pid, now) = (desk.begun(), staff.child.pid(), Instant::now());
        desk.clear();
        self.scheduler.died(worker, &lost, now);
        let left = lost.is_empty() && (staff.retired || exit.is_some_and(Exit::is_success));
        let told = left || lost.iter().any(|&task| self.control.is_ending(task));
        lost.into_iter().for_each(|task| self.lose(task, staff, exit, now));
        if staff.since.is_none() && matches!(self.phase, Phase::Open | Phase::Closing) {
            self.stillborn += 1;
            if self.stillborn >= if self.proven { BESET } else { STILLBORN } {
                self.fail(WorkerDied::new(pid, exit, "starting").into());
            }
        }
        if !told {
            self.count_death(worker, staff, exit);
        }
        let tasks = self.scheduler.outstanding() > 0 || self.control.is_waiting();
        if matches!(self.phase, Phase::Open) || matches!(self.phase, Phase::Closing) && tasks {
            self.errands.push_back(Errand::Staff(worker));
        }
        told
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Leaving | Phase::Broken(_))
            && self.desks.iter().all(|desk| desk.staff.is_none())
    }

    #[cfg(test)]
    pub(super) fn assert_at_rest(&mut self) {
        assert!(self.tasks.is_empty(), "{:?}", self.tasks);
        assert!(self.scheduler.outstanding() == 0 && !self.scheduler.is_behind());
        assert!(!self.control.is_waiting() && self.control.alarm().is_none());
        self.desks.iter_mut().for_each(Desk::assert_at_rest);
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
