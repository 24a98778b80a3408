//! The rules against children that exist only here, and against OTP's own way to say them.

use super::{Command, Id, Refusal, Restart, State, Strategy, Supervision};
use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(5);
const SHUTDOWN: Duration = Duration::from_secs(1);

/// Processes that exist only here, and do what they are told at once or when the test says so.
struct Simulation {
    rules: Supervision,
    now: Instant,
    /// Child to process number.
    running: BTreeMap<Id, u32>,
    processes: u32,
    /// Asked for and not answered.
    asked: Option<Id>,
    /// What has happened: `+1` started, `~1` SIGTERM, `!1` SIGKILL, `-1` forgotten.
    journal: Vec<String>,
    /// A child ends at once when it gets SIGTERM, and starts at once when it is to.
    prompt: bool,
    /// Starts that will be refused.
    refusals: u32,
}

impl Simulation {
    fn new(strategy: Strategy, intensity: usize, prompt: bool) -> Self {
        Self {
            rules: Supervision::new(strategy, intensity, PERIOD),
            now: Instant::now(),
            running: BTreeMap::new(),
            processes: 0,
            asked: None,
            journal: Vec::new(),
            prompt,
            refusals: 0,
        }
    }

    fn obey(&mut self) {
        while let Some(command) = self.rules.next() {
            match command {
                Command::Start(id) => {
                    self.check_start(id);
                    self.asked = Some(id);
                    if self.prompt {
                        self.answer();
                    }
                }
                Command::Terminate(id) => {
                    self.check_stop(id);
                    self.journal.push(format!("~{id}"));
                    if self.prompt {
                        self.end(id, false);
                    }
                }
                // It was told before, when it may have been the only one to go.
                Command::Kill(id) => {
                    assert!(self.running.contains_key(&id), "a signal for nobody");
                    self.journal.push(format!("!{id}"));
                    self.end(id, false);
                }
                Command::Forget(id) => {
                    assert!(!self.running.contains_key(&id), "forgotten while it runs");
                    self.journal.push(format!("-{id}"));
                }
            }
        }
    }

    fn check_start(&self, id: Id) {
        assert!(self.asked.is_none(), "two starts at a time");
        assert!(!self.running.contains_key(&id), "a second process for one child");
        assert!(self.rules.members.iter().all(|member| !member.doomed), "somebody has to go first");
    }

    fn check_stop(&self, id: Id) {
        assert!(self.running.contains_key(&id), "a signal for nobody");
        let later = self.rules.members.iter().filter(|member| member.id > id);
        assert!(later.clone().all(|member| !member.doomed), "one that was added later goes first");
    }

    fn answer(&mut self) {
        let Some(id) = self.asked.take() else { return };
        if self.refusals > 0 {
            self.refusals -= 1;
            self.rules.refused(id, self.now);
        } else {
            self.processes += 1;
            self.running.insert(id, self.processes);
            self.journal.push(format!("+{id}"));
            self.rules.started(id, self.now);
        }
        self.obey();
    }

    fn add(&mut self, restart: Restart) -> Option<Id> {
        let id = self.rules.add(restart, Some(SHUTDOWN), self.now).ok();
        self.obey();
        id
    }

    fn end(&mut self, id: Id, well: bool) {
        if self.running.remove(&id).is_some() {
            self.rules.ended(id, well, self.now);
            self.obey();
        }
    }

    fn after(&mut self, time: Duration) {
        self.now += time;
        self.rules.wake(self.now);
        self.obey();
    }

    fn took(&mut self) -> String {
        std::mem::take(&mut self.journal).join(" ")
    }

    fn family(strategy: Strategy, intensity: usize) -> Self {
        let mut it = Self::new(strategy, intensity, true);
        for restart in [Restart::Permanent; 3] {
            it.add(restart);
        }
        assert_eq!(it.took(), "+1 +2 +3");
        it
    }
}

#[test]
fn one_for_one_restarts_the_one() {
    let mut it = Simulation::family(Strategy::OneForOne, 1);
    it.end(2, false);
    assert_eq!(it.took(), "+2");
}

#[test]
fn one_for_all_stops_the_others_backwards_and_starts_all_forwards() {
    let mut it = Simulation::family(Strategy::OneForAll, 1);
    it.end(2, false);
    assert_eq!(it.took(), "~3 ~1 +1 +2 +3");
}

#[test]
fn rest_for_one_leaves_those_before_alone() {
    let mut it = Simulation::family(Strategy::RestForOne, 1);
    it.end(2, false);
    assert_eq!(it.took(), "~3 +2 +3");
}

#[test]
fn a_transient_child_that_ended_well_stays_down_until_a_sibling_takes_it_along() {
    let mut it = Simulation::new(Strategy::OneForAll, 1, true);
    it.add(Restart::Transient);
    it.add(Restart::Permanent);
    it.end(1, true);
    assert_eq!(it.took(), "+1 +2");
    it.end(2, true);
    assert_eq!(it.took(), "+1 +2");
    it.end(1, false);
    assert!(it.rules.has_failed() && it.rules.is_over());
}

#[test]
fn a_temporary_child_is_forgotten_at_its_end() {
    let mut it = Simulation::new(Strategy::OneForAll, 1, true);
    it.add(Restart::Temporary);
    it.add(Restart::Temporary);
    it.add(Restart::Permanent);
    it.end(1, false);
    assert_eq!(it.took(), "+1 +2 +3 -1");
    it.end(3, false);
    assert_eq!(it.took(), "~2 -2 +3");
}

#[test]
fn one_restart_too_many_within_the_period_ends_all() {
    let mut it = Simulation::family(Strategy::OneForOne, 2);
    it.end(1, false);
    it.end(2, false);
    it.after(PERIOD + Duration::from_millis(1));
    it.end(3, false); // the first two are old
    it.end(3, false);
    assert_eq!(it.took(), "+1 +2 +3 +3");
    assert!(!it.rules.has_failed());
    it.end(1, false);
    assert_eq!(it.took(), "~3 ~2");
    assert!(it.rules.has_failed() && it.rules.is_over());
}

#[test]
fn a_stubborn_child_is_killed_when_its_time_is_over_and_holds_up_those_before_it() {
    let mut it = Simulation::new(Strategy::OneForOne, 1, false);
    for _ in 0..2 {
        it.add(Restart::Permanent);
        it.answer();
    }
    it.rules.stop(it.now);
    it.obey();
    assert_eq!(it.took(), "+1 +2 ~2");
    assert_eq!(it.rules.alarm(), Some(it.now + SHUTDOWN));
    it.after(SHUTDOWN);
    assert_eq!(it.took(), "!2 ~1");
    it.end(1, true);
    assert!(it.rules.is_over() && !it.rules.has_failed());
}

#[test]
fn a_refused_first_start_is_not_tried_again() {
    let mut it = Simulation::new(Strategy::OneForOne, 1, true);
    it.refusals = 1;
    let id = it.add(Restart::Permanent).unwrap();
    assert_eq!(it.took(), "-1");
    assert_eq!(it.rules.restart(id, it.now), Err(Refusal::Unknown));
}

#[test]
fn refused_restarts_count_until_it_is_too_many() {
    let mut it = Simulation::family(Strategy::OneForOne, 3);
    it.refusals = 2;
    it.end(2, false);
    assert_eq!(it.took(), "+2");
    it.refusals = 1;
    it.end(2, false);
    assert!(it.rules.is_over() && it.rules.has_failed());
}

#[test]
fn what_runs_is_neither_deleted_nor_started_a_second_time() {
    let mut it = Simulation::family(Strategy::OneForOne, 1);
    assert_eq!(it.rules.delete(2), Err(Refusal::Running));
    assert_eq!(it.rules.restart(2, it.now), Err(Refusal::Running));
    it.rules.terminate(2, it.now).unwrap();
    it.obey();
    it.rules.restart(2, it.now).unwrap();
    it.obey();
    it.rules.terminate(2, it.now).unwrap();
    it.obey();
    it.rules.delete(2).unwrap();
    it.obey();
    assert_eq!(it.took(), "~2 +2 ~2 -2");
}

/// The rules as OTP has them: one thing after the other, and nothing happens in between.
struct Model {
    strategy: Strategy,
    intensity: usize,
    /// Child, its restart, whether it runs.
    children: Vec<(Id, Restart, bool)>,
    restarts: Vec<Instant>,
    over: bool,
}

impl Model {
    fn ended(&mut self, id: Id, well: bool, now: Instant) {
        let Some(at) = self.children.iter().position(|child| child.0 == id && child.2) else {
            return;
        };
        self.children[at].2 = false;
        match self.children[at].1 {
            Restart::Temporary => drop(self.children.remove(at)),
            Restart::Transient if well => {}
            _ => self.again(at, now),
        }
    }

    fn again(&mut self, at: usize, now: Instant) {
        self.restarts.push(now);
        self.restarts.retain(|then| now - *then <= PERIOD);
        if self.restarts.len() > self.intensity {
            self.over = true;
            self.children.retain(|child| child.1 != Restart::Temporary);
            self.children.iter_mut().for_each(|child| child.2 = false);
            return;
        }
        let (from, to) = match self.strategy {
            Strategy::OneForOne => (at, at + 1),
            Strategy::OneForAll => (0, self.children.len()),
            Strategy::RestForOne => (at, self.children.len()),
        };
        let after = self.children.split_off(to);
        let group = self.children.split_off(from);
        let stay = group.into_iter().filter(|child| child.1 != Restart::Temporary);
        self.children.extend(stay.map(|(id, restart, _)| (id, restart, true)));
        self.children.extend(after);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(Restart),
    End(usize, bool),
    Terminate(usize),
    Restart(usize),
    Delete(usize),
    Pass(u64),
    /// Not for the model: answer what was asked for; refuse the next start; end one that was told to.
    Answer,
    Refuse,
    Obey(usize),
    Stop,
}

fn restart() -> impl Generator<Value = Restart> {
    prop_oneof![Just(Restart::Permanent), Just(Restart::Transient), Just(Restart::Temporary)]
}

fn strategy() -> impl Generator<Value = Strategy> {
    prop_oneof![Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)]
}

fn plain_step() -> impl Generator<Value = Step> {
    prop_oneof![
        2 => restart().prop_map(Step::Add),
        4 => (0..6usize, any::<bool>()).prop_map(|(at, well)| Step::End(at, well)),
        1 => (0..6usize).prop_map(Step::Terminate),
        1 => (0..6usize).prop_map(Step::Restart),
        1 => (0..6usize).prop_map(Step::Delete),
        2 => (0..4000u64).prop_map(Step::Pass),
    ]
}

fn any_step() -> impl Generator<Value = Step> {
    prop_oneof![
        8 => plain_step(),
        5 => Just(Step::Answer),
        1 => Just(Step::Refuse),
        4 => (0..6usize).prop_map(Step::Obey),
        1 => Just(Step::Stop),
    ]
}

fn nth(of: &Simulation, at: usize) -> Option<Id> {
    of.rules.members.get(at % of.rules.members.len().max(1)).map(|member| member.id)
}

proptest! {
    /// If nothing happens in between, the outcome of every event is OTP's.
    #[test]
    fn does_what_otp_does(
        strategy in strategy(),
        intensity in 0..5usize,
        steps in prop::collection::vec(plain_step(), 1..60),
    ) {
        let mut it = Simulation::new(strategy, intensity, true);
        let (children, restarts) = Default::default();
        let mut model = Model { strategy, intensity, children, restarts, over: false };
        for step in steps {
            match step {
                Step::Add(restart) => {
                    if let Some(id) = it.add(restart) {
                        model.children.push((id, restart, true));
                    }
                }
                Step::Pass(ms) => it.after(Duration::from_millis(ms)),
                Step::End(at, well) => {
                    let Some(id) = nth(&it, at) else { continue };
                    model.ended(id, well, it.now);
                    it.end(id, well);
                }
                Step::Terminate(at) => {
                    let Some(id) = nth(&it, at) else { continue };
                    it.rules.terminate(id, it.now).unwrap();
                    it.obey();
                    model.children.retain(|child| child.0 != id || child.1 != Restart::Temporary);
                    model.children.iter_mut().for_each(|child| child.2 &= child.0 != id);
                }
                Step::Restart(at) => {
                    let Some(id) = nth(&it, at) else { continue };
                    let ok = it.rules.restart(id, it.now).is_ok();
                    it.obey();
                    let child = model.children.iter_mut().find(|child| child.0 == id).unwrap();
                    prop_assert_eq!(ok, !child.2 && !model.over);
                    child.2 |= ok;
                }
                Step::Delete(at) => {
                    let Some(id) = nth(&it, at) else { continue };
                    let ok = it.rules.delete(id).is_ok();
                    it.obey();
                    let at = model.children.iter().position(|child| child.0 == id).unwrap();
                    prop_assert_eq!(ok, !model.children[at].2);
                    if ok {
                        model.children.remove(at);
                    }
                }
                Step::Answer | Step::Refuse | Step::Obey(_) | Step::Stop => {}
            }
            let ours: Vec<_> = it.rules.members.iter()
                .map(|member| (member.id, member.restart, member.state == State::Up)).collect();
            prop_assert_eq!(&ours, &model.children);
            prop_assert_eq!(it.rules.has_failed(), model.over);
        }
    }

    /// Whatever happens in between: the order is kept, no child has two processes, and a stop ends all.
    #[test]
    fn keeps_the_order_and_comes_to_rest(
        strategy in strategy(),
        intensity in 0..8usize,
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let mut it = Simulation::new(strategy, intensity, false);
        for step in steps {
            match step {
                Step::Add(restart) => drop(it.add(restart)),
                Step::Pass(ms) => it.after(Duration::from_millis(ms)),
                Step::Answer => it.answer(),
                Step::Refuse => it.refusals = 1,
                Step::Stop => it.rules.stop(it.now),
                Step::End(at, well) => {
                    let Some(id) = nth(&it, at) else { continue };
                    it.end(id, well);
                }
                Step::Obey(at) => {
                    let told: Vec<_> = it.rules.members.iter()
                        .filter(|member| matches!(member.state, State::Stopping { .. }))
                        .map(|member| member.id).collect();
                    if let Some(&id) = told.get(at % told.len().max(1)) {
                        it.end(id, true);
                    }
                }
                Step::Terminate(at) => {
                    let Some(id) = nth(&it, at) else { continue };
                    it.rules.terminate(id, it.now).unwrap();
                }
                Step::Restart(at) => {
                    let Some(id) = nth(&it, at) else { continue };
                    let _ = it.rules.restart(id, it.now);
                }
                Step::Delete(at) => {
                    let Some(id) = nth(&it, at) else { continue };
                    let _ = it.rules.delete(id);
                }
            }
            it.obey();
            for member in &it.rules.members {
                let up = !matches!(member.state, State::Down | State::Starting);
                prop_assert_eq!(up, it.running.contains_key(&member.id));
            }
        }
        it.rules.stop(it.now);
        it.obey();
        let most = 2 * it.rules.members.len() + 2;
        for _ in 0..most {
            it.answer();
            it.after(SHUTDOWN);
        }
        prop_assert!(it.rules.is_over(), "not over after {most} rounds: {:?}", it.rules);
        prop_assert!(it.running.is_empty());
    }
}
