//! How quick the scheduler decides, and how evenly it deals out: `make bench` runs this.
//!
//! Workers and their time exist only here; what is measured is the scheduler's own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::{Command, Scheduler, TaskId};

const TASKS: u64 = 10_000_000;

/// Nanoseconds that a task takes: a millisecond on average, exponentially distributed; one of a
/// thousand is a hundred milliseconds.
fn length(task: TaskId) -> u64 {
    // SplitMix64 (Steele, Lea and Flood 2014).
    let mut bits = task.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    if bits.is_multiple_of(1000) {
        return 100_000_000;
    }
    let uniform = ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64;
    (-uniform.ln() * 1e6) as u64
}

struct Simulation {
    scheduler: Scheduler,
    began: Instant,
    /// Nanoseconds since then.
    now: u64,
    inboxes: Vec<VecDeque<TaskId>>,
    /// When which worker ends what is first in its inbox.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    decisions: u64,
}

impl Simulation {
    fn at(&self, nanos: u64) -> Instant {
        self.began + Duration::from_nanos(nanos)
    }

    fn start(&mut self, worker: usize) {
        if let Some(&task) = self.inboxes[worker].front() {
            self.ends.push(Reverse((self.now + length(task), worker)));
        }
    }

    fn obey(&mut self) {
        while let Some(command) = self.scheduler.next() {
            self.decisions += 1;
            match command {
                Command::Send { worker, task } => {
                    self.inboxes[worker].push_back(task);
                    if self.inboxes[worker].len() == 1 {
                        self.start(worker);
                    }
                }
                Command::Revoke { worker, task } => {
                    let at = self.inboxes[worker].iter().rposition(|&it| it == task);
                    if let Some(at) = at.filter(|&at| at > 0) {
                        self.inboxes[worker].remove(at);
                        self.scheduler.revoked(worker, task, self.at(self.now));
                    }
                }
            }
        }
    }

    /// Runs all tasks; returns the nanoseconds until the last has ended.
    fn run(workers: usize) -> (Self, u64) {
        let mut it = Self {
            scheduler: Scheduler::new(workers),
            began: Instant::now(),
            now: 0,
            inboxes: vec![VecDeque::new(); workers],
            ends: BinaryHeap::new(),
            decisions: 0,
        };
        for worker in 0..workers {
            it.scheduler.arrived(worker, None, it.began);
        }
        for task in 0..TASKS {
            it.scheduler.submit(task, it.began);
            it.obey();
        }
        while let Some(Reverse((end, worker))) = it.ends.pop() {
            if let Some(alarm) = it.scheduler.alarm().filter(|&alarm| alarm < it.at(end)) {
                it.now = u64::try_from((alarm - it.began).as_nanos()).unwrap();
                it.ends.push(Reverse((end, worker)));
                it.scheduler.wake(alarm);
                it.obey();
                continue;
            }
            it.now = end;
            let task = it.inboxes[worker].pop_front().unwrap();
            it.start(worker);
            let (took, now) = (Duration::from_nanos(length(task)), it.at(end));
            it.scheduler.finished(worker, task, took, now);
            it.obey();
        }
        assert_eq!(it.scheduler.outstanding(), 0);
        let end = it.now;
        (it, end)
    }
}

#[test]
#[ignore = "a measurement, of half a minute: make bench"]
fn decisions_a_second_and_balance() {
    let (total, longest) = (0..TASKS)
        .fold((0, 0), |(total, longest), task| (total + length(task), length(task).max(longest)));
    for workers in [1, 10, 100, 1_000, 10_000] {
        let clock = Instant::now();
        let (it, end) = Simulation::run(workers);
        let seconds = clock.elapsed().as_secs_f64();
        let ideal = (total / workers as u64).max(longest);
        println!(
            "{{\"workers\": {workers}, \"tasks\": {TASKS}, \"decisions\": {}, \"seconds\": {seconds}, \
             \"end\": {}, \"ideal\": {}}}",
            it.decisions,
            end as f64 / 1e9,
            ideal as f64 / 1e9,
        );
    }
}
