//! Deaths inside of a pool: real processes that are killed where `fault` says so, and what the others
//! make of it.
//!
//! | who dies | where | what the others find |
//! | --- | --- | --- |
//! | worker | before it claims a task, after it has pushed the outcome | nothing is lost; what waits is run by its successor |
//! | worker | in between | that one task is lost, and is told so |
//! | worker | when it is to leave, at any line until its exit | the pool ends as if it had left |
//! | worker | when it retires after its last task | the outcome; what waits is run by its successor |
//! | owner | at any line of close, terminate, join and drop | the kernel ends the workers, busy or not; memory has no name |
//!
//! Each point's toll is taken: `sync/toll.rs`.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::Terms;
use super::core::{Core, Errand};
use super::group::{Group, Next, Until};
use super::limits::Limits;
use super::store::LARGE;
use super::task::{Outcome, Task};
use super::worker::{Duty, End, Worker};
use crate::process::Child;
use crate::sync::fault;
use crate::sync::faults::{arguments, say, story, told};
use crate::sync::toll::{alone, toll};
use crate::sys::monotonic;

const STARTED: &str = "pool::faults::started";
const NOWHERE: &str = "nowhere";
/// Sizes of arguments and results: in one frame, in several, in a slot.
const SIZES: [usize; 3] = [10, LARGE - 1, 1 << 20];
/// Tasks, the first of which is run by the worker that dies.
const TASKS: u64 = 4;
/// A task that does not end.
const ENDLESS: &[u8] = b"endless";

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

/// What the started processes do. Not a test of its own.
#[test]
fn started() {
    match told().as_deref() {
        Some([who, _, seat, memory, event, lifeline, life]) if who == "work" => {
            let fds = [memory, event, lifeline].map(|number| number.parse().unwrap());
            work(seat.parse().unwrap(), fds, life.parse().ok());
        }
        Some([who, _, how]) if who == "own" => own(how),
        None => {}
        other => panic!("{other:?}"),
    }
}

/// It returns what it gets, or never returns.
fn work(seat: usize, [memory, event, lifeline]: [RawFd; 3], life: Option<u64>) {
    let mut worker = Worker::sit(memory, event, lifeline, seat, false).unwrap();
    worker.ready(life, false);
    loop {
        match worker.duty().unwrap() {
            Duty::Run(_, _, arguments) => {
                let stream = arguments.into_stream().unwrap();
                if stream == ENDLESS {
                    loop {
                        std::thread::park();
                    }
                }
                fault("a task runs");
                worker.finish(End::Returned, stream, Vec::new());
            }
            Duty::Idle => worker.sleep(soon()),
            Duty::Leave => {
                fault("a worker has left, before its exit");
                std::process::exit(0)
            }
            Duty::Define(..) => unreachable!("no task here has code of its own"),
        }
    }
}

/// Has a process sit down that is killed at `place`, or leaves after so many tasks.
fn hire(core: &Core, seat: usize, place: &str, life: Option<u64>) -> Arc<Child> {
    let seating = core.prepare(seat, false).unwrap().expect("the pool is open");
    let (memory, event) = core.descriptors();
    let fds = [memory.as_raw_fd(), event.as_raw_fd(), seating.lifeline.as_raw_fd()];
    let [memory, event, lifeline] = fds;
    let life = life.map_or(String::new(), |life| life.to_string());
    let told = format!("work|{place}|{seat}|{memory}|{event}|{lifeline}|{life}");
    let (arguments, env) = arguments(STARTED, &told);
    let child = Child::spawn(c"/proc/self/exe", &arguments, Some(&env), &fds);
    let child = Arc::new(child.unwrap());
    core.seat(seating, child.clone()).unwrap();
    child
}

fn body(index: u64, size: usize) -> Vec<u8> {
    vec![index as u8 + 1; size]
}

/// What becomes of tasks whose first worker is killed at `place`, by index: the process id of the
/// worker whose death lost it, if that is what became of it. And when its owner knew of the death: when a
/// task was told to be lost, and a successor asked for.
fn outcomes(place: &str, size: usize, terms: Terms) -> (Vec<Option<u32>>, Duration) {
    let case = format!("{place}, {size} bytes");
    let core = Core::new(1, terms, Limits::default()).unwrap();
    let group = submit(&core, (0..TASKS).map(|index| body(index, size)));
    let doomed = hire(&core, 0, place, None);
    assert_eq!(core.errand(soon()).unwrap(), Some(Errand::Staff(0)), "{case}");
    let mut known = monotonic();
    assert_eq!(doomed.wait_until(soon()).unwrap().unwrap().signal(), Some(9), "{case}");
    let mut successor = None;
    let mut lost = vec![None; TASKS as usize];
    loop {
        // What the death has lost is told without a successor.
        let first = successor.is_none() && group.has(Until::Next);
        if !first {
            successor.get_or_insert_with(|| hire(&core, 0, NOWHERE, None));
        }
        assert!(core.wait(&group, Until::Next, soon()).unwrap(), "{case}: not all tasks end");
        let Next::Outcome(index, outcome) = group.next() else { break };
        match outcome {
            Outcome::Returned(parcel) => {
                assert!(parcel.into_stream().unwrap() == body(index, size), "{case}: {index}");
            }
            Outcome::Lost(death) => {
                assert!(first, "{case}: {index} was told late");
                known = monotonic();
                assert_eq!(death.exit.unwrap().signal(), Some(9), "{case}");
                lost[index as usize] = Some(death.pid);
            }
            other => panic!("{case}: {other:?}"),
        }
    }
    core.assert_at_rest();
    core.close().unwrap();
    assert!(core.wait_ended(soon()).unwrap(), "{case}: the pool does not end");
    core.assert_given_back();
    assert!(lost.iter().flatten().all(|pid| *pid == doomed.pid()), "{case}");
    (lost, known)
}

/// A worker's way through a task, and whether a death there loses it.
const PLACES: [(&str, bool); 8] = [
    ("worker: it sits, and is not ready", false),
    ("worker: it is ready, before the bell", false),
    ("worker: a task is popped, and not claimed", false),
    ("worker: a task is claimed, and not noted", true),
    ("a task runs", true),
    ("worker: an outcome is packed, and not lent", true),
    ("worker: an outcome is noted, and not pushed", true),
    ("worker: an outcome is pushed, before the bell", false),
];

#[test]
fn a_worker_killed_at_any_line_loses_the_task_that_it_had_claimed_and_no_other() {
    alone(|| {
        for size in SIZES {
            for (place, loses) in PLACES {
                let case = format!("{place}, {size} bytes");
                toll(&case, || {
                    let (lost, known) = outcomes(place, size, Terms::ABRUPT);
                    let count = lost.iter().flatten().count();
                    assert_eq!(count, usize::from(loses), "{case}: {lost:?}");
                    assert_eq!(lost[0].is_some(), loses, "{case}");
                    known
                });
            }
        }
    });
}

#[test]
fn a_worker_killed_between_the_frames_of_an_outcome_loses_it_whole() {
    alone(|| {
        let place = "worker: an outcome is pushed in part";
        toll(place, || {
            let (lost, known) = outcomes(place, SIZES[1], Terms::ABRUPT);
            assert_eq!(lost.iter().flatten().count(), 1, "{lost:?}");
            assert!(lost[0].is_some());
            known
        });
    });
}

#[test]
fn with_another_try_nothing_is_lost_at_any_line() {
    alone(|| {
        let terms = Terms { retries: 1, ..Terms::ABRUPT };
        for size in SIZES {
            for (place, _) in PLACES {
                toll(format!("{place}, {size} bytes"), || {
                    let (lost, known) = outcomes(place, size, terms);
                    assert_eq!(lost, [None; TASKS as usize], "{place}");
                    known
                });
            }
        }
    });
}

#[test]
fn a_worker_killed_while_it_leaves_keeps_nobody() {
    alone(|| {
        for place in ["worker: it leaves", "a worker has left, before its exit"] {
            toll(place, || {
                let core = Core::new(1, Terms::ABRUPT, Limits::default()).unwrap();
                let doomed = hire(&core, 0, place, None);
                core.close().unwrap();
                assert!(core.wait_ended(soon()).unwrap(), "{place}");
                let known = monotonic();
                assert_eq!(
                    doomed.wait_until(soon()).unwrap().unwrap().signal(),
                    Some(9),
                    "{place}"
                );
                assert!(core.broken().unwrap().is_none(), "{place}");
                core.assert_given_back();
                known
            });
        }
    });
}

#[test]
fn a_worker_killed_while_it_retires_loses_nothing() {
    alone(|| {
        for place in ["worker: it retires", "a worker has left, before its exit"] {
            toll(place, || {
                let core = Core::new(1, Terms::ABRUPT, Limits::default()).unwrap();
                let group = submit(&core, (0..TASKS).map(|index| body(index, 10)));
                let doomed = hire(&core, 0, place, Some(1));
                assert_eq!(core.errand(soon()).unwrap(), Some(Errand::Staff(0)), "{place}");
                let known = monotonic();
                assert_eq!(
                    doomed.wait_until(soon()).unwrap().unwrap().signal(),
                    Some(9),
                    "{place}"
                );
                hire(&core, 0, NOWHERE, None);
                assert_eq!(returned(&core, &group), TASKS, "{place}");
                core.assert_at_rest();
                core.close().unwrap();
                assert!(core.wait_ended(soon()).unwrap(), "{place}");
                core.assert_given_back();
                known
            });
        }
    });
}

fn submit(core: &Core, bodies: impl Iterator<Item = Vec<u8>>) -> Arc<Group> {
    let group = Arc::new(Group::as_completed());
    let mut count = 0;
    for body in bodies {
        core.submit(&group, count, Task::new(None, 0, body)).unwrap();
        count += 1;
    }
    group.expect(count);
    group
}

/// Waits for all, and counts those that have returned.
fn returned(core: &Core, group: &Group) -> u64 {
    let mut count = 0;
    loop {
        assert!(core.wait(group, Until::Next, soon()).unwrap(), "not all tasks end");
        match group.next() {
            Next::Outcome(_, Outcome::Returned(_)) => count += 1,
            Next::Outcome(..) => {}
            _ => return count,
        }
    }
}

/// Two workers, of whom each has something to do, and the end of their pool.
fn own(how: &str) {
    let core = Core::new(2, Terms::ABRUPT, Limits::default()).unwrap();
    (0..2).for_each(|seat| drop(hire(&core, seat, NOWHERE, None)));
    if how == "close" {
        let group = submit(&core, (0..TASKS).map(|index| body(index, 10)));
        core.close().unwrap();
        assert_eq!(returned(&core, &group), TASKS);
    } else {
        let group = submit(&core, [ENDLESS.to_vec(), ENDLESS.to_vec()].into_iter());
        while core.stats().unwrap().iter().any(|worker| worker.running.is_none()) {
            std::thread::yield_now();
        }
        if how == "drop" {
            drop(core);
            return say("it came by");
        }
        core.terminate("it is over").unwrap();
        assert_eq!(returned(&core, &group), 0);
    }
    assert!(core.wait_ended(soon()).unwrap());
    say("it came by");
}

#[test]
fn an_owner_killed_at_any_line_of_its_pools_end_leaves_no_worker() {
    alone(|| {
        for (how, place) in [
            ("close", "pool: it is closed, and nobody has looked"),
            ("close", "pool: nothing is left to do, and no worker is told"),
            ("close", "pool: workers are to leave, before the bells"),
            ("close", "pool: its end is awaited"),
            ("close", "pool: a worker's end is seen, and not noted"),
            ("terminate", "pool: it has failed, and no task is told"),
            ("terminate", "pool: tasks are let down, and no worker is told"),
            ("terminate", "pool: workers are told to leave, before the signals"),
            ("terminate", "pool: workers have got a signal, before the bells"),
            ("terminate", "pool: its end is awaited"),
            ("terminate", "pool: a worker's end is seen, and not noted"),
            ("drop", "pool: workers are killed, and not gone"),
        ] {
            toll(format!("{how}: {place}"), || {
                let story = story(STARTED, &format!("own|{place}|{how}"));
                assert_eq!((story.lines, story.end.signal()), (vec![], Some(9)), "{how}: {place}");
                story.over
            });
        }
        for how in ["close", "terminate", "drop"] {
            let story = story(STARTED, &format!("own|{NOWHERE}|{how}"));
            assert_eq!(
                (story.lines, story.end.code()),
                (vec!["it came by".into()], Some(0)),
                "{how}"
            );
        }
    });
}
