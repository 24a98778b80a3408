//! The scheduler against simulated workers: they die at any step, and nothing is lost.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// Workers that exist only here. What a real pool does with commands, this does in memory.
struct Simulation {
    scheduler: Scheduler,
    now: Instant,
    /// Per worker: what lies in its inbox; the first is being run.
    inboxes: Vec<VecDeque<TaskId>>,
    /// Per worker: tasks left before it leaves.
    lives: Vec<Option<u64>>,
    here: Vec<bool>,
    ended: HashSet<TaskId>,
    lost: HashSet<TaskId>,
    submitted: TaskId,
}

impl Simulation {
    fn new(workers: usize) -> Self {
        Self {
            scheduler: Scheduler::new(workers),
            now: Instant::now(),
            inboxes: vec![VecDeque::new(); workers],
            lives: vec![None; workers],
            here: vec![false; workers],
            ended: HashSet::new(),
            lost: HashSet::new(),
            submitted: 0,
        }
    }

    fn obey(&mut self) {
        while let Some(command) = self.scheduler.next() {
            match command {
                Command::Send { worker, task } => {
                    assert!(self.here[worker], "a task for a worker that is not there");
                    assert!(!self.ended.contains(&task) && !self.lost.contains(&task));
                    if let Some(life) = &mut self.lives[worker] {
                        assert!(*life > 0, "more tasks than the worker lives for");
                        *life -= 1;
                    }
                    self.inboxes[worker].push_back(task);
                    assert!(self.inboxes[worker].len() <= MOST);
                }
                Command::Revoke { worker, task } => {
                    let at = self.inboxes[worker].iter().position(|&it| it == task);
                    if let Some(at) = at.filter(|&at| at > 0) {
                        self.inboxes[worker].remove(at);
                        if let Some(life) = &mut self.lives[worker] {
                            *life += 1;
                        }
                        self.scheduler.revoked(worker, task, self.now);
                    }
                }
            }
        }
    }

    fn arrive(&mut self, worker: usize, life: Option<u64>) {
        if !self.here[worker] {
            (self.here[worker], self.lives[worker]) = (true, life);
            self.scheduler.arrived(worker, life, self.now);
            self.obey();
        }
    }

    fn submit(&mut self) {
        self.submitted += 1;
        self.scheduler.submit(self.submitted, self.now);
        self.obey();
    }

    fn finish(&mut self, worker: usize, took: Duration) {
        if let Some(task) = self.inboxes[worker].pop_front() {
            self.now += took;
            assert!(self.ended.insert(task), "a task was run twice");
            self.scheduler.finished(worker, task, took, self.now);
            self.obey();
            self.scheduler.wake(self.now);
            self.obey();
        }
    }

    fn die(&mut self, worker: usize, running: bool) {
        if self.here[worker] {
            self.here[worker] = false;
            let inbox = std::mem::take(&mut self.inboxes[worker]);
            let lost: Vec<_> = inbox.front().copied().filter(|_| running).into_iter().collect();
            self.lost.extend(&lost);
            self.scheduler.died(worker, &lost, self.now);
            self.obey();
        }
    }

    /// Nobody wants the task any more that is there in the backlog.
    fn withdraw(&mut self, at: usize) {
        let there = self.scheduler.backlog.get(at).copied();
        if let Some(task) = there.filter(|task| !self.scheduler.ghosts.contains(task)) {
            self.lost.insert(task);
            self.scheduler.withdraw(task);
            self.obey();
        }
    }

    /// Everybody comes back and works until nothing is left.
    fn finish_all(&mut self) {
        let mut steps = 0;
        while self.scheduler.outstanding() > 0 {
            for worker in 0..self.inboxes.len() {
                if self.lives[worker] == Some(0) && self.inboxes[worker].is_empty() {
                    self.die(worker, false);
                }
                self.arrive(worker, None);
                self.finish(worker, Duration::from_micros(50));
            }
            steps += 1;
            assert!(steps < 1_000_000, "tasks are stuck");
        }
        assert_eq!(self.ended.len() + self.lost.len(), self.submitted as usize);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(usize, Option<u64>),
    Submit(usize),
    Finish(usize, u64),
    Die(usize, bool),
    Wait(u64),
    Withdraw(usize),
}

fn step(workers: usize) -> impl Strategy<Value = Step> {
    let worker = 0..workers;
    prop_oneof![
        2 => (worker.clone(), prop::option::of(1u64..5)).prop_map(|(w, life)| Step::Arrive(w, life)),
        3 => (1usize..20).prop_map(Step::Submit),
        6 => (worker.clone(), 1u64..5_000_000).prop_map(|(w, took)| Step::Finish(w, took)),
        1 => (worker, any::<bool>()).prop_map(|(w, running)| Step::Die(w, running)),
        1 => (1u64..3_000_000).prop_map(Step::Wait),
        1 => (0usize..40).prop_map(Step::Withdraw),
    ]
}

proptest! {
    #[test]
    fn every_task_ends_once_or_is_lost_with_its_worker(
        steps in prop::collection::vec(step(5), 0..400),
    ) {
        let mut it = Simulation::new(5);
        for step in steps {
            match step {
                Step::Arrive(worker, life) => it.arrive(worker, life),
                Step::Submit(n) => (0..n).for_each(|_| it.submit()),
                Step::Finish(worker, took) => it.finish(worker, Duration::from_nanos(took)),
                Step::Die(worker, running) => it.die(worker, running),
                Step::Withdraw(at) => it.withdraw(at),
                Step::Wait(nanos) => {
                    it.now += Duration::from_nanos(nanos);
                    it.scheduler.wake(it.now);
                    it.obey();
                }
            }
            let backlog = it.scheduler.backlog();
            let queued: usize = it.inboxes.iter().map(VecDeque::len).sum();
            prop_assert_eq!(it.scheduler.outstanding(), queued + backlog);
            prop_assert!(backlog > 0 || it.scheduler.backlog.is_empty(), "a ghost at the front");
            let behind: usize = it.inboxes.iter().map(|q| q.len().saturating_sub(1)).sum();
            prop_assert_eq!(it.scheduler.behind, behind);
            let busy = it.inboxes.iter().filter(|inbox| !inbox.is_empty()).count();
            prop_assert_eq!(it.scheduler.busy(), busy);
        }
        it.finish_all();
    }
}

#[test]
fn ten_thousand_workers_with_deaths_at_any_step() {
    let workers = 10_000;
    let mut it = Simulation::new(workers);
    let mut random = 88_172_645_463_325_252u64;
    let mut roll = |sides: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % sides as u64) as usize
    };
    for worker in 0..workers {
        it.arrive(worker, None);
    }
    for _ in 0..300_000 {
        let worker = roll(workers);
        match roll(10) {
            0 => it.die(worker, true),
            1 => it.die(worker, false),
            2 | 3 => it.arrive(worker, None),
            4..=6 => it.submit(),
            _ => it.finish(worker, Duration::from_micros(roll(3000) as u64)),
        }
    }
    it.finish_all();
}

#[test]
fn an_idle_worker_gets_the_next_task_at_once() {
    let mut it = Simulation::new(3);
    (0..3).for_each(|worker| it.arrive(worker, None));
    (0..3).for_each(|_| it.submit());
    assert!(it.inboxes.iter().all(|inbox| inbox.len() == 1));
}

#[test]
fn small_tasks_are_sent_in_advance_and_long_ones_are_not() {
    let mut it = Simulation::new(1);
    it.arrive(0, None);
    (0..2000).for_each(|_| it.submit());
    assert_eq!(it.inboxes[0].len(), 2, "nothing is known of the tasks yet");
    (0..100).for_each(|_| it.finish(0, Duration::from_micros(1)));
    assert!(it.inboxes[0].len() > 200);
    (0..1000).for_each(|_| it.finish(0, Duration::from_secs(1)));
    assert_eq!(it.inboxes[0].len(), 2);
}

#[test]
fn what_waits_behind_a_long_task_goes_to_whoever_is_idle() {
    let mut it = Simulation::new(2);
    (0..2).for_each(|worker| it.arrive(worker, None));
    (0..4).for_each(|_| it.submit());
    assert_eq!((it.inboxes[0].len(), it.inboxes[1].len()), (2, 2));
    (0..2).for_each(|_| it.finish(1, Duration::from_millis(1)));
    assert_eq!((it.inboxes[0].len(), it.inboxes[1].len()), (1, 1));
}

#[test]
fn what_waits_behind_a_long_task_among_short_ones_goes_elsewhere_after_a_moment() {
    let mut it = Simulation::new(2);
    (0..2).for_each(|worker| it.arrive(worker, None));
    (0..400).for_each(|_| it.submit());
    (0..200).for_each(|_| it.finish(1, Duration::from_micros(1)));
    while !it.inboxes[1].is_empty() {
        it.finish(1, Duration::from_micros(1));
    }
    assert!(it.inboxes[0].len() > 1, "short tasks are not taken back at once");
    for _ in 0..20 {
        it.now = it.scheduler.alarm().unwrap_or(it.now);
        it.scheduler.wake(it.now);
        it.obey();
        while !it.inboxes[1].is_empty() {
            it.finish(1, Duration::from_micros(1));
        }
    }
    assert_eq!(it.inboxes[0].len(), 1, "only what it is running");
}

#[test]
fn a_worker_is_sent_no_more_tasks_than_it_lives_for() {
    let mut it = Simulation::new(1);
    it.arrive(0, Some(3));
    (0..10).for_each(|_| it.submit());
    (0..3).for_each(|_| it.finish(0, Duration::from_micros(1)));
    assert!(it.inboxes[0].is_empty());
    it.die(0, false);
    it.arrive(0, Some(3));
    assert_eq!(it.inboxes[0].len(), 3);
}

/// Two workers that have had nothing but short tasks, and have nothing now.
fn used_to_short_tasks() -> Simulation {
    let mut it = Simulation::new(2);
    (0..2).for_each(|worker| it.arrive(worker, None));
    for _ in 0..100 {
        it.submit();
        (0..2).for_each(|worker| it.finish(worker, Duration::from_micros(1)));
    }
    it
}

fn lengths(it: &Simulation) -> (usize, usize) {
    let (a, b) = (it.inboxes[0].len(), it.inboxes[1].len());
    (a.max(b), a.min(b))
}

#[test]
fn no_worker_is_woken_for_short_tasks_that_another_will_have_done_by_then() {
    let mut it = used_to_short_tasks();
    (0..40).for_each(|_| it.submit());
    assert_eq!(lengths(&it), (40, 0));
    (0..20).for_each(|_| it.submit());
    let (most, least) = lengths(&it);
    assert_eq!(most + least, 60);
    assert!(least > 0, "it has more to do than waking the other takes");
}

#[test]
fn what_a_worker_has_ended_does_not_count_even_if_word_of_it_has_not_come() {
    let mut it = used_to_short_tasks();
    (0..50).for_each(|_| it.submit());
    assert_eq!(lengths(&it), (50, 0));
    let worker = it.scheduler.doubted().expect("it has much to do, as far as is known");
    it.scheduler.has_left(worker, 3);
    assert_eq!(it.scheduler.doubted(), None);
    (0..40).for_each(|_| it.submit());
    assert_eq!(lengths(&it), (90, 0));
}

#[test]
fn long_tasks_after_short_ones_wait_behind_each_other_for_a_moment_only() {
    let mut it = used_to_short_tasks();
    (0..2).for_each(|_| it.submit());
    assert_eq!(lengths(&it), (2, 0), "they are taken for short ones");
    it.now = it.scheduler.alarm().expect("somebody must look");
    it.scheduler.wake(it.now);
    it.obey();
    assert_eq!(lengths(&it), (1, 1));
    (0..2).for_each(|_| it.submit());
    assert_eq!(lengths(&it), (2, 2), "it is known now that they are long");
}
