//! Tasks that are to end before they do so themselves, and tasks that are to be run again.
//!
//! A task has [`Terms`]. When its time is over, or nobody wants it any more, it is *withdrawn* if it has
//! not begun: the claim (`shm/claim.rs`) decides, so it either never runs or has begun. If it has, it
//! is ended step by step, and only it: what lies behind it in the worker's inbox runs in any case.
//!
//! | step | who writes what | what a death at this line leaves |
//! | --- | --- | --- |
//! | tell | the owner writes task and reason into the seat, then signals (`SIGURG`) | worker: as always, and the task's caller is told why it ended |
//! | heard | the interpreter calls the handler between two instructions. It writes the stack into a pipe, and if the word names the task that is being run it writes that it has heard, and raises | worker: as above, with the stack |
//! | outcome | the worker pushes it as always; if it had heard, the owner puts the reason in its place | worker: nothing |
//! | trace | after the grace, if it has not heard: another signal, whose handler writes the stack at once, in the middle of whatever it is | as heard |
//! | terminate | if it has heard, or a moment later: SIGTERM | nothing: the worker's end is awaited |
//! | kill | after as long as the grace again: SIGKILL | as above |
//!
//! A task that ends by itself before it has heard has ended by itself: its outcome counts, and the word
//! in the seat then names a task that is not run any more, which nobody heeds. `SIGURG` is ignored by
//! those who have no handler, as Go's runtime found out first (proposal 24543, 2019). The other signal
//! is for workers only that have said that they answer it: to look at an interpreter in the middle of
//! an instruction is not always safe (`faulthandler` may crash), so it is the last but one resort.
//!
//! When a task begins, the worker writes so into its seat; nobody is rung for that. The owner looks at
//! the seats when the next task may be over: not later than the shortest timeout from now.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Group;
use super::scheduler::TaskId;
use super::staff::Staff;
use super::state::State;
use super::task::Outcome;
use crate::error::{Ended, Why, WorkerDied};
use crate::process::Exit;
use crate::sys::{CRASHES, monotonic, trace_signal};

/// What is agreed upon for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long it may run, from the moment a worker begins it.
    pub timeout: Option<Duration>,
    /// How long it may wait for that moment.
    pub start_timeout: Option<Duration>,
    /// How long after each step towards its end the next one is taken.
    pub grace: Duration,
    /// So often it is run again when its worker died.
    pub retries: u32,
    /// It is run again so long after a death, and twice as long after each one more.
    pub backoff: Duration,
    /// So it is, of the same number of times, when it failed: in Rust, when it panicked.
    pub retry_failed: bool,
}

impl Terms {
    /// Any time, once; and no grace: who is to end and cannot be told so gets SIGTERM at once.
    pub const ABRUPT: Self = Self {
        timeout: None,
        start_timeout: None,
        grace: Duration::ZERO,
        retries: 0,
        backoff: Duration::ZERO,
        retry_failed: false,
    };
}

impl Default for Terms {
    /// Any time, once; and two seconds from each step to the next.
    fn default() -> Self {
        Self { grace: Duration::from_secs(2), ..Self::ABRUPT }
    }
}

/// A worker that was sent SIGTERM has at least so long.
const LEAST: Duration = Duration::from_millis(100);
/// And so much longer if it was asked for a trace before, which it finishes first: that of a program with
/// much debug information takes two tenths of a second (`sys/linux/stack.rs`).
const TRACE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Trace,
    Terminate,
    Kill,
}

/// Why a task that has begun is to end; with bytes of memory, in use and allowed, if that is why.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reason {
    pub(super) why: Why,
    pub(super) memory: Option<(u64, u64)>,
}

impl From<Why> for Reason {
    fn from(why: Why) -> Self {
        Self { why, memory: None }
    }
}

/// A task that has begun and is to end.
#[derive(Debug)]
struct Ending {
    worker: usize,
    task: TaskId,
    reason: Reason,
    grace: Duration,
    /// It was asked for a trace.
    traced: bool,
    next: Option<(Instant, Step)>,
}

impl Ending {
    /// The step that is due, if one is; a trace is taken if the worker `can`.
    fn step(&mut self, now: Instant, can: bool) -> Option<Step> {
        let (_, step) = self.next.filter(|(at, _)| *at <= now)?;
        let step = if step == Step::Trace && !can { Step::Terminate } else { step };
        let trace = if self.traced { TRACE } else { Duration::ZERO };
        self.traced |= step == Step::Trace;
        self.next = match step {
            Step::Trace => Some((now + LEAST, Step::Terminate)),
            Step::Terminate => Some((now + self.grace.max(LEAST) + trace, Step::Kill)),
            Step::Kill => None,
        };
        Some(step)
    }
}

/// What a pool knows of such tasks.
#[derive(Debug, Default)]
pub(super) struct Control {
    endings: Vec<Ending>,
    /// Tasks that must have begun by then.
    starts: BTreeSet<(Instant, TaskId)>,
    /// Tasks that are to be run again then.
    retries: BTreeSet<(Instant, TaskId)>,
    /// Tasks there are that have a timeout, and the shortest that one of them may have.
    timed: usize,
    shortest: Duration,
    /// When to look whether one has run for too long.
    look: Option<Instant>,
}

impl Control {
    /// Whether tasks are to be run again.
    pub(super) fn is_waiting(&self) -> bool {
        !self.retries.is_empty()
    }

    pub(super) fn alarm(&self) -> Option<Instant> {
        let steps = self.endings.iter().filter_map(|ending| Some(ending.next?.0));
        let first = |set: &BTreeSet<(Instant, TaskId)>| Some(set.first()?.0);
        steps.chain(self.look).chain(first(&self.starts)).chain(first(&self.retries)).min()
    }

    /// A task was submitted.
    pub(super) fn agree(&mut self, task: TaskId, terms: &Terms) {
        if terms.timeout.is_none() && terms.start_timeout.is_none() {
            return;
        }
        let now = Instant::now();
        if let Some(at) = terms.start_timeout.and_then(|limit| now.checked_add(limit)) {
            self.starts.insert((at, task));
        }
        let Some(timeout) = terms.timeout else { return };
        self.shortest = if self.timed == 0 { timeout } else { self.shortest.min(timeout) };
        self.timed += 1;
        let at = now.checked_add(timeout);
        self.look = [self.look, at].into_iter().flatten().min();
    }

    /// A task is not known any more.
    pub(super) fn forget(&mut self, task: TaskId, terms: &Terms) {
        if terms.timeout.is_some() {
            self.timed -= 1;
            self.look = self.look.filter(|_| self.timed > 0);
        }
        if terms.start_timeout.is_some() {
            self.starts.retain(|(_, waiting)| *waiting != task);
        }
    }

    pub(super) fn is_ending(&self, task: TaskId) -> bool {
        self.endings.iter().any(|ending| ending.task == task)
    }

    fn take_ending(&mut self, task: TaskId) -> Option<Ending> {
        let at = self.endings.iter().position(|ending| ending.task == task)?;
        Some(self.endings.swap_remove(at))
    }
}

/// Takes what is due from a set.
fn due(set: &mut BTreeSet<(Instant, TaskId)>, now: Instant) -> Vec<TaskId> {
    let mut due = Vec::new();
    while let Some(&(at, task)) = set.first()
        && at <= now
    {
        set.pop_first();
        due.push(task);
    }
    due
}

impl State {
    /// Does what is due.
    pub(super) fn keep_terms(&mut self, now: Instant) {
        if self.control.alarm().is_none_or(|at| at > now) {
            return;
        }
        for task in due(&mut self.control.retries, now) {
            self.scheduler.submit(task, now);
        }
        let late = due(&mut self.control.starts, now);
        for task in self.withdraw(&late.into_iter().collect()) {
            let limit = self.terms(task).and_then(|terms| terms.start_timeout);
            let ended = Outcome::Ended(Ended::waiting(Why::NotBegun, limit));
            self.finish(task, ended, Duration::ZERO);
        }
        if self.control.look.is_some_and(|at| at <= now) {
            self.control.look = self.look_for_overtime(now);
        }
        let desks = &self.desks;
        let step = |ending: &mut Ending| {
            let desk = &desks[ending.worker];
            let traces = desk.staff.as_ref().is_some_and(|staff| staff.traces);
            let can = traces && !desk.has_heard(ending.task);
            Some((ending.worker, ending.step(now, can)?))
        };
        let steps: Vec<_> = self.control.endings.iter_mut().filter_map(step).collect();
        for (worker, step) in steps {
            let signal = match step {
                Step::Trace => trace_signal(),
                Step::Terminate => libc::SIGTERM,
                Step::Kill => libc::SIGKILL,
            };
            self.signal(worker, signal);
        }
    }

    fn signal(&self, worker: usize, signal: i32) {
        let staff = self.desks[worker].staff.as_ref();
        // It may be gone: then its end is on the way to us.
        staff.into_iter().for_each(|staff| drop(staff.child.signal(signal)));
    }

    /// Ends what has run for too long, and says when to look again.
    fn look_for_overtime(&mut self, now: Instant) -> Option<Instant> {
        let clock = monotonic();
        let mut next = now.checked_add(self.control.shortest);
        for worker in 0..self.desks.len() {
            let Some((task, since)) = self.desks[worker].account().running else { continue };
            let Some(timeout) = self.terms(task).and_then(|terms| terms.timeout) else { continue };
            match timeout.saturating_sub(clock.saturating_sub(since)) {
                Duration::ZERO => self.end(worker, task, Why::TimedOut.into(), now),
                left => next = [next, now.checked_add(left)].into_iter().flatten().min(),
            }
        }
        next.filter(|_| self.control.timed > 0)
    }

    /// Begins to end a task that runs.
    pub(super) fn end(&mut self, worker: usize, task: TaskId, reason: Reason, now: Instant) {
        let Some(mut grace) = self.terms(task).map(|terms| terms.grace) else { return };
        if self.control.is_ending(task) {
            return;
        }
        if reason.memory.is_some() {
            grace = grace.min(LEAST); // it may go on growing
        }
        let next = now.checked_add(grace).map(|at| (at, Step::Trace));
        self.control.endings.push(Ending { worker, task, reason, grace, traced: false, next });
        self.desks[worker].tell(task, reason.why);
        self.signal(worker, libc::SIGURG);
    }

    /// Takes back those of the tasks that have not begun, and says which.
    fn withdraw(&mut self, tasks: &HashSet<TaskId>) -> Vec<TaskId> {
        let queued = self.scheduler.queued(tasks);
        let mut elsewhere: HashSet<_> = queued.iter().map(|(_, task)| *task).collect();
        let mut withdrawn = Vec::new();
        self.control.retries.retain(|(_, task)| {
            let wanted = !tasks.contains(task);
            if !wanted {
                elsewhere.insert(*task);
                withdrawn.push(*task);
            }
            wanted
        });
        for &task in tasks.difference(&elsewhere) {
            if self.terms(task).is_some() {
                self.scheduler.withdraw(task);
                withdrawn.push(task);
            }
        }
        // At last, since workers that have nothing to do are given what the backlog still has.
        for (worker, task) in queued {
            if self.desks[worker].revoke(task) {
                self.scheduler.dropped(worker, task, Instant::now());
                withdrawn.push(task);
            }
        }
        withdrawn
    }

    /// Takes a task back that has not begun, and forgets it: no outcome of it arrives. False: it has
    /// begun, or ended.
    pub(super) fn take_back(&mut self, task: TaskId) -> bool {
        let withdrawn = !self.withdraw(&HashSet::from([task])).is_empty();
        if withdrawn {
            self.forget(task);
        }
        withdrawn
    }

    /// Does a worker run this task?
    pub(super) fn has_begun(&self, task: TaskId) -> bool {
        let queued = self.scheduler.queued(&HashSet::from([task]));
        queued.into_iter().any(|(worker, task)| self.desks[worker].has_begun(task))
    }

    /// Ends the tasks of a group, or all: those that have not begun vanish, the others are ended step
    /// by step. Says how many there were.
    pub(super) fn cancel(&mut self, group: Option<&Arc<Group>>) -> usize {
        let tasks: HashSet<TaskId> = self.tasks_of(group);
        for task in self.withdraw(&tasks) {
            let ended = Outcome::Ended(Ended::waiting(Why::Cancelled, None));
            self.finish(task, ended, Duration::ZERO);
        }
        let now = Instant::now();
        for (worker, task) in self.scheduler.queued(&tasks) {
            self.end(worker, task, Why::Cancelled.into(), now);
        }
        tasks.len()
    }

    /// How a task ended that has sent an outcome: by itself, or because it was told to.
    pub(super) fn outcome_of(&mut self, worker: usize, task: TaskId, outcome: Outcome) -> Outcome {
        let Some(ending) = self.control.take_ending(task) else { return outcome };
        if !self.desks[worker].has_heard(task) {
            return outcome;
        }
        self.ended_by(&ending, self.desks[worker].staff.as_ref(), None)
    }

    /// A death has lost a task that had begun.
    pub(super) fn lose(&mut self, task: TaskId, staff: &Staff, exit: Option<Exit>, now: Instant) {
        if let Some(ending) = self.control.take_ending(task) {
            let outcome = self.ended_by(&ending, Some(staff), exit);
            return self.finish(task, outcome, Duration::ZERO);
        }
        let mut died = WorkerDied::new(staff.child.pid(), exit, "running a task");
        // A stack that is there after any other end is that of a child of the worker's.
        if exit.and_then(Exit::signal).is_some_and(|signal| CRASHES.contains(&signal)) {
            died.stack = staff.stack();
        }
        if self.try_again(task, Some(&died), now) {
            return;
        }
        let Some(entry) = self.entry_mut(task) else { return };
        died.earlier = std::mem::take(&mut entry.deaths);
        self.finish(task, Outcome::Lost(died), Duration::ZERO);
    }

    /// Has a task run again that a death has lost, or that failed, if its terms say so.
    pub(super) fn try_again(
        &mut self,
        task: TaskId,
        died: Option<&WorkerDied>,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.entry_mut(task) else { return false };
        let Some(terms) = entry.terms.as_deref_mut() else { return false };
        let Some(left) = terms.retries.checked_sub(1) else { return false };
        if died.is_none() && !terms.retry_failed {
            return false;
        }
        let wait = terms.backoff;
        (terms.retries, terms.backoff) = (left, wait.saturating_mul(2));
        entry.deaths.extend(died.cloned());
        // A time that never comes is one at which its pool ends it.
        let at = now.checked_add(wait).unwrap_or(now + Duration::from_secs(1 << 32));
        self.control.retries.insert((at, task));
        true
    }

    fn ended_by(&self, ending: &Ending, staff: Option<&Staff>, exit: Option<Exit>) -> Outcome {
        let limit = self.terms(ending.task).and_then(|terms| terms.timeout);
        Outcome::Ended(Ended {
            why: ending.reason.why,
            limit: limit.filter(|_| ending.reason.why == Why::TimedOut),
            memory: ending.reason.memory,
            pid: staff.map(|staff| staff.child.pid()),
            exit,
            stack: staff.map(Staff::stack).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_taken_once_and_after_its_grace() {
        let grace = Duration::from_secs(3);
        let start = Instant::now();
        let next = Some((start + grace, Step::Trace));
        let reason = Why::Cancelled.into();
        let mut ending = Ending { worker: 0, task: 1, reason, grace, traced: false, next };
        assert_eq!(ending.step(start, false), None);
        assert_eq!(ending.step(start + grace, false), Some(Step::Terminate));
        assert_eq!(ending.step(start + grace, false), None);
        assert_eq!(ending.step(start + 2 * grace, false), Some(Step::Kill));
        assert_eq!(ending.step(start + 9 * grace, false), None);
        ending.next = next;
        assert_eq!(ending.step(start + grace, true), Some(Step::Trace));
        assert_eq!(ending.step(start + grace, true), None);
        assert_eq!(ending.step(start + grace + LEAST, true), Some(Step::Terminate));
        assert_eq!(ending.step(start + 2 * grace + LEAST, true), None);
        assert_eq!(ending.step(start + 2 * grace + LEAST + TRACE, true), Some(Step::Kill));
    }

    #[test]
    fn the_alarm_is_the_first_of_all_that_is_awaited() {
        let mut control = Control::default();
        let terms = |timeout, start: Option<u64>| Terms {
            timeout: Some(Duration::from_secs(timeout)),
            start_timeout: start.map(Duration::from_secs),
            ..Terms::default()
        };
        assert_eq!(control.alarm(), None);
        control.agree(1, &terms(50, None));
        let first = control.alarm().unwrap();
        control.agree(2, &terms(90, Some(10)));
        assert!(control.alarm().unwrap() < first);
        control.forget(2, &terms(90, Some(10)));
        assert_eq!(control.alarm(), Some(first));
        control.forget(1, &terms(50, None));
        assert_eq!(control.alarm(), None);
    }
}
