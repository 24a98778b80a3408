//! What a worker is held to while it lives, and a pool by the deaths of its workers.
//!
//! A worker that has grown or aged too much *retires*: it is sent no more tasks, leaves before it would
//! begin another one, and what waits in it runs elsewhere. That is no death. If it has more memory
//! than it may have at all, the task that it runs is ended first, as `control.rs` says.
//!
//! Memory is looked at when a task has ended that was no short one, and every [`INTERVAL`] while there
//! are tasks. It is what the worker has for itself: the resident set without what it shares by
//! mapping (proc_pid_statm(5)), so neither large arguments, which lie in the pool's memory, nor
//! libraries. If that is too much, the pages are left out that it shares with the process it was
//! forked from (proc_pid_smaps(5)), which takes long to count and so is not done all the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::control::Reason;
use super::staff::Staff;
use super::state::{Phase, State};
use crate::error::{ChildDied, SupervisorFailed, Why};
use crate::process::Exit;
use crate::shm::Order;
use crate::sys::child::{private, unshared};

/// Limits of a pool's workers. By default there are none.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A worker that has more bytes of memory for itself leaves after the task that it runs.
    pub soft_memory: Option<u64>,
    /// Of a worker that has more, the task is ended; its grace is a tenth of a second at the most.
    pub hard_memory: Option<u64>,
    /// A worker that has been there for so long leaves after the task that it runs.
    pub lifetime: Option<Duration>,
    /// So many deaths of workers are made good...
    pub intensity: Option<usize>,
    /// ... within this time. One more, and the pool is at its end: its tasks are told of all of them.
    /// Workers that leave because they are told to, or are killed to end a task, do not count.
    pub period: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            soft_memory: None,
            hard_memory: None,
            lifetime: None,
            intensity: None,
            period: Duration::from_secs(5),
        }
    }
}

impl Limits {
    fn watches_memory(&self) -> bool {
        self.soft_memory.is_some() || self.hard_memory.is_some()
    }
}

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// A forked worker's pages are counted once in this time, unless it grows.
const RECOUNT: Duration = Duration::from_secs(1);
/// A shorter task's end is no reason for a look.
const SHORT: Duration = Duration::from_millis(1);
/// So many deaths are told at the most.
const TOLD: usize = 100;

/// What a pool knows of that.
#[derive(Debug, Default)]
pub(super) struct Watch {
    limits: Limits,
    /// When to look next.
    look: Option<Instant>,
    /// Those of late, the last one last.
    deaths: VecDeque<(Instant, ChildDied)>,
}

impl Watch {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub(super) fn alarm(&self) -> Option<Instant> {
        self.look
    }

    /// There are tasks.
    pub(super) fn open_eyes(&mut self) {
        if self.limits.watches_memory() {
            self.look_by(Instant::now() + INTERVAL);
        }
    }

    /// A worker has come.
    pub(super) fn arrived(&mut self, now: Instant) {
        let over = self.limits.lifetime.and_then(|life| now.checked_add(life));
        over.into_iter().for_each(|over| self.look_by(over));
    }

    fn look_by(&mut self, at: Instant) {
        self.look = Some(self.look.map_or(at, |look| look.min(at)));
    }

    /// One more death: all of those within the period, if that was one too many.
    fn died(&mut self, now: Instant, death: ChildDied) -> Option<SupervisorFailed> {
        let (intensity, period) = (self.limits.intensity?, self.limits.period);
        let old = |(at, _): &(Instant, ChildDied)| now.saturating_duration_since(*at) > period;
        while self.deaths.front().is_some_and(old) {
            self.deaths.pop_front();
        }
        self.deaths.push_back((now, death));
        if self.deaths.len() <= intensity {
            return None;
        }
        let skipped = self.deaths.len().saturating_sub(TOLD);
        let deaths = self.deaths.drain(..).skip(skipped).map(|(_, death)| death).collect();
        Some(SupervisorFailed { name: "pool".into(), intensity, period, deaths })
    }
}

impl Staff {
    /// Bytes of memory that the worker has for itself; if they are not above `least`, they may be less.
    fn memory(&mut self, least: u64, now: Instant) -> Option<u64> {
        let pid = self.child.pid();
        let most = unshared(pid)?;
        let recent = |(at, then): (Instant, u64)| now < at + RECOUNT && most <= then;
        if most <= least || self.counted.is_some_and(recent) {
            return Some(most.min(least));
        }
        let used = private(pid).map_or(most, |private| private.min(most));
        self.counted = (used <= least).then_some((now, most));
        Some(used)
    }
}

impl State {
    /// Looks at the workers, if it is time to.
    pub(super) fn keep_limits(&mut self, now: Instant) {
        if self.watch.look.is_none_or(|at| at > now) {
            return;
        }
        self.watch.look = None;
        for worker in 0..self.desks.len() {
            self.look_at_memory(worker, now);
            let Some(life) = self.watch.limits.lifetime else { continue };
            let since = self.desks[worker].staff.as_ref().and_then(|staff| staff.since);
            match since.and_then(|since| since.checked_add(life)) {
                Some(over) if over <= now => self.retire(worker),
                over => over.into_iter().for_each(|over| self.watch.look_by(over)),
            }
        }
        if self.scheduler.outstanding() > 0 {
            self.watch.open_eyes();
        }
    }

    /// A task has ended.
    pub(super) fn look_after(&mut self, worker: usize, took: Duration, now: Instant) {
        if took >= SHORT && self.watch.limits.watches_memory() {
            self.desks[worker].staff.iter_mut().for_each(|staff| staff.counted = None);
            self.look_at_memory(worker, now);
        }
    }

    fn look_at_memory(&mut self, worker: usize, now: Instant) {
        let Limits { soft_memory, hard_memory, .. } = self.watch.limits;
        let Some(least) = [soft_memory, hard_memory].into_iter().flatten().min() else { return };
        let Some(staff) = self.desks[worker].staff.as_mut() else { return };
        let Some(used) = staff.memory(least, now).filter(|used| *used > least) else { return };
        if let Some(allowed) = hard_memory.filter(|allowed| used > *allowed)
            && let Some((task, _)) = self.desks[worker].account().running
        {
            let memory = Some((used, allowed));
            self.end(worker, task, Reason { why: Why::OverMemory, memory }, now);
        }
        self.retire(worker);
    }

    /// The worker leaves as soon as it runs nothing.
    fn retire(&mut self, worker: usize) {
        let open = matches!(self.phase, Phase::Open | Phase::Closing);
        let serves = self.desks[worker].staff.as_mut().is_some_and(Staff::retire);
        if open && serves {
            self.desks[worker].order(Order::Retire);
            self.scheduler.retired(worker);
            self.touched.push(worker);
        }
    }

    /// A worker has ended unasked: counts it, and ends the pool if that was one too many.
    pub(super) fn count_death(&mut self, worker: usize, staff: &Staff, exit: Option<Exit>) {
        if !matches!(self.phase, Phase::Open | Phase::Closing) {
            return;
        }
        let (child, trace) = (format!("worker {worker}"), String::new());
        let death = ChildDied { child, pid: Some(staff.child.pid()), exit, trace };
        if let Some(failed) = self.watch.died(Instant::now(), death) {
            self.fail(failed.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_count_within_their_period_only_and_all_of_those_are_told() {
        let period = Duration::from_secs(5);
        let mut watch = Watch::new(Limits { intensity: Some(2), period, ..Limits::default() });
        let start = Instant::now();
        let death = |n: u32| ChildDied {
            child: format!("worker {n}"),
            pid: Some(n),
            exit: None,
            trace: String::new(),
        };
        assert!(watch.died(start, death(1)).is_none());
        assert!(watch.died(start + Duration::from_secs(1), death(2)).is_none());
        assert!(watch.died(start + Duration::from_secs(6), death(3)).is_none());
        let failed = watch.died(start + Duration::from_millis(6_001), death(4));
        assert!(failed.is_none(), "the second is just too old");
        let failed = watch.died(start + Duration::from_secs(7), death(5)).unwrap();
        assert_eq!(failed.deaths.iter().filter_map(|it| it.pid).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(failed.to_string().contains("more than 2 restarts in 5 s"), "{failed}");
    }

    #[test]
    fn a_life_span_that_is_long_delays_no_look_at_memory() {
        let (lifetime, hard_memory) = (Some(Duration::from_secs(3600)), Some(1));
        let mut watch = Watch::new(Limits { lifetime, hard_memory, ..Limits::default() });
        watch.arrived(Instant::now());
        watch.open_eyes();
        assert!(watch.alarm().unwrap() <= Instant::now() + INTERVAL);
    }

    #[test]
    fn nothing_is_looked_at_without_limits() {
        let mut watch = Watch::new(Limits::default());
        watch.open_eyes();
        watch.arrived(Instant::now());
        assert_eq!(watch.alarm(), None);
    }
}
