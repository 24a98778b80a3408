//! Which worker gets which task: a pure state machine.
//!
//! Events come in as calls, [`Command`]s go out through [`next`](Scheduler::next), and the clock
//! is an argument; so a test plays ten thousand workers without starting one.
//!
//! - Tasks wait in the *backlog* in the order of their submission. An idle worker gets the next
//!   one at once; a busy one gets some in advance, as many as its *credit* allows: about
//!   [`HORIZON`] of work by the measured pace, so many small tasks and one long one.
//! - As long as tasks are short, the worker that got the last one gets the next, too, until it has as
//!   much to do as waking another would take; so no more workers are awake than there is work for.
//! - When the backlog is empty and a worker has nothing to do, tasks that lie behind others in
//!   another worker's queue are *revoked* and given to it. So a long task delays nobody.
//! - A task that is withdrawn from the backlog stays there as a *ghost* until it comes to the front, so
//!   that this costs the same wherever it is. A ghost is never at the front.
//! - When a worker dies, what it had not begun goes back to the front of the backlog.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Names a task for as long as it is known here.
pub(crate) type TaskId = u64;

/// A worker gets about so much work in advance.
const HORIZON: Duration = Duration::from_millis(1);
/// Tasks in advance at the most; below the number of claims of a seat.
const MOST: usize = 512;
/// Tasks shorter than this are not revoked at once: the worker that has them is done with them
/// sooner than another would get them.
const WORTH_REVOKING: Duration = Duration::from_micros(20);
/// A worker that is at one task for so long, with short ones behind it, is helped all the same.
const PATIENCE: Duration = Duration::from_millis(1);
/// About what it takes until a worker that slept has begun something.
const WAKING: Duration = Duration::from_micros(50);

/// Memory for more tasks than this goes back when there are none.
pub(super) const ROOMY: usize = 4096;

/// What the scheduler asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Send {
        worker: usize,
        task: TaskId,
    },
    /// Take the task back if the worker has not begun it, and say so with
    /// [`revoked`](Scheduler::revoked); if it has, nothing is to be said.
    Revoke {
        worker: usize,
        task: TaskId,
    },
}

#[derive(Debug, Default)]
struct Worker {
    /// It is there and takes tasks.
    here: bool,
    /// Tasks that it may still be sent before it leaves; `None` is any number.
    life: Option<u64>,
    /// What it has been sent and has not finished, in order.
    queue: VecDeque<TaskId>,
    /// It stands in `hungry`.
    hungry: bool,
    /// It stands in `idle`.
    idle: bool,
    /// What it was at when the alarm was set.
    seen: Option<TaskId>,
    /// Those of its tasks that it has ended, as far as is known; word of each is on its way.
    ended: usize,
}

impl Worker {
    fn takes(&self, credit: usize) -> bool {
        self.here && self.life != Some(0) && self.queue.len() < credit
    }

    /// It has little to do: fewer tasks than that.
    fn is_short_of(&self, few: usize) -> bool {
        self.queue.len() < few + self.ended
    }

    /// It has been at the same task since the alarm was set, and others wait behind that.
    fn is_stuck(&self) -> bool {
        self.queue.len() > 1 && self.queue.front() == self.seen.as_ref()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    backlog: VecDeque<TaskId>,
    ghosts: HashSet<TaskId>,
    workers: Vec<Worker>,
    /// Workers with an empty queue; the last one was busy last, its caches are warm.
    idle: Vec<usize>,
    /// Workers with fewer tasks than their credit; served in turn.
    hungry: VecDeque<usize>,
    /// The worker that got the last task.
    last: usize,
    /// Tasks in the backlog and the queues.
    outstanding: usize,
    /// Tasks that lie behind another in a queue.
    behind: usize,
    /// How long a task takes: a moving average.
    pace: Option<Duration>,
    commands: VecDeque<Command>,
    /// When to look at stragglers.
    alarm: Option<Instant>,
    /// Where to look for the next straggler.
    cursor: usize,
}

impl Scheduler {
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Worker::default()).collect(), ..Self::default() }
    }

    /// The next thing to do; `None` when all is done until the next event.
    pub(crate) fn next(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`wake`](Self::wake) wants to be called, if at all.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// Tasks that have not ended.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Tasks that are in no worker's queue.
    pub(crate) fn backlog(&self) -> usize {
        self.backlog.len() - self.ghosts.len()
    }

    /// Workers that have something to do.
    pub(crate) fn busy(&self) -> usize {
        self.outstanding - self.backlog() - self.behind
    }

    /// Do tasks wait behind others in a worker's queue?
    pub(crate) fn is_behind(&self) -> bool {
        self.behind > 0
    }

    /// A task to be run.
    pub(crate) fn submit(&mut self, task: TaskId, now: Instant) {
        self.outstanding += 1;
        self.backlog.push_back(task);
        self.deal();
        self.help(now);
    }

    /// The worker that would get another short task, but for those that it has: it may have ended some
    /// of them, and that is to be said with [`has_left`](Self::has_left).
    pub(crate) fn doubted(&self) -> Option<usize> {
        let (few, it) = (self.few(), &self.workers[self.last]);
        (few > 0 && it.here && !it.is_short_of(few)).then_some(self.last)
    }

    /// So many of its tasks a worker has not ended, by its own account.
    pub(crate) fn has_left(&mut self, worker: usize, left: usize) {
        let it = &mut self.workers[worker];
        it.ended = it.queue.len().saturating_sub(left);
    }

    /// A worker has come; it leaves of its own after `life` tasks.
    pub(crate) fn arrived(&mut self, worker: usize, life: Option<u64>, now: Instant) {
        let it = &mut self.workers[worker];
        debug_assert!(it.queue.is_empty());
        (it.here, it.life) = (true, life);
        self.rest(worker, now);
    }

    /// A worker is to leave: it is sent nothing more.
    pub(crate) fn retired(&mut self, worker: usize) {
        self.workers[worker].here = false;
    }

    /// A worker has finished a task that it was sent.
    pub(crate) fn finished(&mut self, worker: usize, task: TaskId, took: Duration, now: Instant) {
        if !self.remove(worker, task) {
            return;
        }
        self.outstanding -= 1;
        if self.outstanding == 0 {
            self.backlog.shrink_to(ROOMY);
        }
        self.pace = Some(self.pace.map_or(took, |pace| (pace * 7 + took) / 8));
        self.rest(worker, now);
    }

    /// A task has been taken back from a worker, as a command asked.
    pub(crate) fn revoked(&mut self, worker: usize, task: TaskId, now: Instant) {
        if self.remove(worker, task) {
            if let Some(life) = &mut self.workers[worker].life {
                *life += 1;
            }
            self.backlog.push_front(task);
            self.deal();
            self.help(now);
        }
    }

    /// Takes a task out of the backlog, in which it is.
    pub(crate) fn withdraw(&mut self, task: TaskId) {
        self.outstanding -= 1;
        self.ghosts.insert(task);
        self.lay_ghosts();
    }

    fn lay_ghosts(&mut self) {
        while !self.ghosts.is_empty()
            && self.backlog.front().is_some_and(|task| self.ghosts.remove(task))
        {
            self.backlog.pop_front();
        }
    }

    /// Those of the tasks that workers have been sent, with their workers.
    pub(crate) fn queued(&self, tasks: &HashSet<TaskId>) -> Vec<(usize, TaskId)> {
        let queues = self.workers.iter().enumerate();
        let each = queues.flat_map(|(worker, it)| it.queue.iter().map(move |&task| (worker, task)));
        each.filter(|(_, task)| tasks.contains(task)).collect()
    }

    /// A task has been taken back from a worker, and is not to be run.
    pub(crate) fn dropped(&mut self, worker: usize, task: TaskId, now: Instant) {
        if self.remove(worker, task) {
            self.outstanding -= 1;
            if let Some(life) = &mut self.workers[worker].life {
                *life += 1;
            }
            self.rest(worker, now);
        }
    }

    /// A worker is gone. Of what it was sent, `lost` will never end; the rest runs elsewhere.
    pub(crate) fn died(&mut self, worker: usize, lost: &[TaskId], now: Instant) {
        let it = &mut self.workers[worker];
        it.here = false;
        let queue = std::mem::take(&mut it.queue);
        it.ended = 0;
        self.behind -= queue.len().saturating_sub(1);
        for &task in queue.iter().rev() {
            if lost.contains(&task) {
                self.outstanding -= 1;
            } else {
                self.backlog.push_front(task);
            }
        }
        self.deal();
        self.help(now);
    }

    /// The alarm has rung.
    pub(crate) fn wake(&mut self, now: Instant) {
        if self.alarm.is_some_and(|alarm| alarm <= now) {
            self.alarm = None;
            if self.workers.iter().any(Worker::is_stuck) {
                // They are not so short, those that are being run now.
                self.pace = self.pace.max(Some(PATIENCE));
                self.revoke_for_the_idle();
            }
            self.help(now);
        }
    }

    /// Everything that has not ended, which is forgotten here.
    pub(crate) fn abandon(&mut self) -> Vec<TaskId> {
        let mut tasks: Vec<_> = self.backlog.drain(..).collect();
        for worker in &mut self.workers {
            tasks.extend(worker.queue.drain(..));
        }
        (self.outstanding, self.behind, self.alarm) = (0, 0, None);
        self.commands.clear();
        self.ghosts.clear();
        tasks
    }

    fn credit(&self) -> usize {
        let pace = self.pace.map_or(HORIZON, |pace| pace.max(Duration::from_nanos(1)));
        ((HORIZON.as_nanos() / pace.as_nanos()) as usize).clamp(2, MOST)
    }

    /// So many short tasks are done before another worker is awake; none, if they are not short.
    fn few(&self) -> usize {
        let short = self.pace.filter(|&pace| pace < WORTH_REVOKING);
        short.map_or(0, |pace| (WAKING.as_nanos() / pace.as_nanos().max(1)) as usize).min(MOST)
    }

    fn remove(&mut self, worker: usize, task: TaskId) -> bool {
        let queue = &mut self.workers[worker].queue;
        let Some(at) = queue.iter().position(|&queued| queued == task) else { return false };
        queue.remove(at);
        self.behind -= usize::from(!queue.is_empty());
        let it = &mut self.workers[worker];
        it.ended = it.ended.saturating_sub(1);
        true
    }

    /// A worker has room: it waits for tasks in the place that its queue tells.
    fn rest(&mut self, worker: usize, now: Instant) {
        let credit = self.credit();
        let it = &mut self.workers[worker];
        if it.queue.is_empty() {
            if !std::mem::replace(&mut it.idle, true) {
                self.idle.push(worker);
            }
        // Half a credit at a time, so that a burst of small tasks is one visit.
        } else if it.queue.len() * 2 <= credit && !std::mem::replace(&mut it.hungry, true) {
            self.hungry.push_back(worker);
        }
        self.deal();
        self.help(now);
    }

    /// Gives the backlog to workers that have room.
    fn deal(&mut self) {
        while !self.backlog.is_empty() {
            let Some(worker) = self.taker() else { return };
            let task = self.backlog.pop_front().expect("looked above");
            self.lay_ghosts();
            let it = &mut self.workers[worker];
            it.life = it.life.map(|life| life - 1);
            self.behind += usize::from(!it.queue.is_empty());
            it.queue.push_back(task);
            self.last = worker;
            if !std::mem::replace(&mut it.hungry, true) {
                self.hungry.push_back(worker);
            }
            self.commands.push_back(Command::Send { worker, task });
        }
    }

    /// A worker that takes another task: if it is a short one, the last that has little to do; else an
    /// idle one before the others, those in turn.
    fn taker(&mut self) -> Option<usize> {
        let (credit, last) = (self.credit(), &self.workers[self.last]);
        if last.is_short_of(self.few()) && last.takes(credit) {
            return Some(self.last);
        }
        while let Some(worker) = self.idle.pop() {
            let it = &mut self.workers[worker];
            it.idle = false;
            if it.queue.is_empty() && it.takes(1) {
                return Some(worker);
            }
        }
        while let Some(worker) = self.hungry.pop_front() {
            let it = &mut self.workers[worker];
            it.hungry = false;
            if it.takes(credit) {
                return Some(worker);
            }
        }
        None
    }

    /// Sees to it that no worker idles while tasks wait behind others.
    fn help(&mut self, now: Instant) {
        if !self.backlog.is_empty() || self.behind == 0 || self.idle.is_empty() {
            return;
        }
        if self.pace.is_none_or(|pace| pace >= WORTH_REVOKING) {
            self.revoke_for_the_idle();
        }
        if self.behind > 0 && self.alarm.is_none() {
            self.alarm = Some(now + PATIENCE);
            self.workers.iter_mut().for_each(|it| it.seen = it.queue.front().copied());
        }
    }

    fn revoke_for_the_idle(&mut self) {
        if !self.backlog.is_empty() || self.behind == 0 {
            return;
        }
        let idle = std::mem::take(&mut self.idle);
        let (idle, gone): (Vec<_>, Vec<_>) = idle.into_iter().partition(|&worker| {
            let it = &self.workers[worker];
            it.queue.is_empty() && it.takes(1)
        });
        gone.into_iter().for_each(|worker| self.workers[worker].idle = false);
        // What each straggler has behind its first task is shared with those who have nothing.
        let mut wanted = idle.len();
        self.idle = idle;
        for _ in 0..self.workers.len() {
            if wanted == 0 {
                return;
            }
            self.cursor = (self.cursor + 1) % self.workers.len();
            let queue = &self.workers[self.cursor].queue;
            let worker = self.cursor;
            let spare = queue.len().saturating_sub(1).div_ceil(2);
            let last = queue.len();
            for at in (last - spare..last).rev() {
                let task = self.workers[worker].queue[at];
                self.commands.push_back(Command::Revoke { worker, task });
            }
            wanted = wanted.saturating_sub(spare);
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
