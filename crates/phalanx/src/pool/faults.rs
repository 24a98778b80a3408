//! Deaths inside of a worker: real processes that are killed where `fault` says so, and what their
//! owner makes of it.

use std::ffi::CString;
use std::os::fd::{AsRawFd, RawFd};
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
use crate::sync::faults::{TOLD, told};

const NOWHERE: &str = "nowhere";
/// Sizes of arguments and results: in one frame, in several, in a slot.
const SIZES: [usize; 3] = [10, LARGE - 1, 1 << 20];
/// Tasks, the first of which is run by the worker that dies.
const TASKS: u64 = 4;

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

/// What the started process does: it returns what it gets. Not a test of its own.
#[test]
fn started() {
    let Some(told) = told() else { return };
    let [_, _, seat, memory, event, lifeline] = &told[..] else { panic!("{told:?}") };
    let fd = |number: &str| number.parse::<RawFd>().unwrap();
    let seat = seat.parse().unwrap();
    let mut worker = Worker::sit(fd(memory), fd(event), fd(lifeline), seat, false).unwrap();
    worker.ready(None, false);
    loop {
        match worker.duty().unwrap() {
            Duty::Run(_, _, arguments) => {
                let stream = arguments.into_stream().unwrap();
                fault("a task runs");
                worker.finish(End::Returned, stream, Vec::new());
            }
            Duty::Idle => worker.sleep(soon()),
            Duty::Leave => std::process::exit(0),
            Duty::Define(..) => unreachable!("no task here has code of its own"),
        }
    }
}

/// Has a process sit down that is killed at `place`.
fn hire(core: &Core, seat: usize, place: &str) -> Arc<Child> {
    let seating = core.prepare(seat, false).unwrap().expect("the pool is open");
    let (memory, event) = core.descriptors();
    let fds = [memory.as_raw_fd(), event.as_raw_fd(), seating.lifeline.as_raw_fd()];
    let [memory, event, lifeline] = fds;
    let told = format!("{TOLD}=work|{place}|{seat}|{memory}|{event}|{lifeline}");
    let string = |text: &str| CString::new(text).unwrap();
    let name = std::env::current_exe().unwrap();
    let arguments =
        [name.to_str().unwrap(), "--exact", "pool::faults::started", "--nocapture", "--quiet"];
    let arguments = arguments.map(string);
    let child = Child::spawn(c"/proc/self/exe", &arguments, Some(&[string(&told)]), &fds);
    let child = Arc::new(child.unwrap());
    core.seat(seating, child.clone()).unwrap();
    child
}

fn body(index: u64, size: usize) -> Vec<u8> {
    vec![index as u8 + 1; size]
}

/// What becomes of tasks whose first worker is killed at `place`, by index: the process id of the
/// worker whose death lost it, if that is what became of it.
fn outcomes(place: &str, size: usize, terms: Terms) -> Vec<Option<u32>> {
    let case = format!("{place}, {size} bytes");
    let core = Core::new(1, terms, Limits::default()).unwrap();
    let group = Arc::new(Group::as_completed());
    for index in 0..TASKS {
        core.submit(&group, index, Task::new(None, 0, body(index, size))).unwrap();
    }
    group.expect(TASKS);
    let doomed = hire(&core, 0, place);
    assert_eq!(doomed.wait_until(soon()).unwrap().unwrap().signal(), Some(9), "{case}");
    assert_eq!(core.errand(soon()).unwrap(), Some(Errand::Staff(0)), "{case}");
    hire(&core, 0, NOWHERE);
    let mut lost = vec![None; TASKS as usize];
    loop {
        assert!(core.wait(&group, Until::Next, soon()).unwrap(), "{case}: not all tasks end");
        let Next::Outcome(index, outcome) = group.next() else { break };
        match outcome {
            Outcome::Returned(parcel) => {
                assert!(parcel.into_stream().unwrap() == body(index, size), "{case}: {index}");
            }
            Outcome::Lost(death) => {
                assert_eq!(death.exit.unwrap().signal(), Some(9), "{case}");
                lost[index as usize] = Some(death.pid);
            }
            other => panic!("{case}: {other:?}"),
        }
    }
    core.assert_at_rest();
    core.close().unwrap();
    assert!(core.wait_ended(soon()).unwrap(), "{case}: the pool does not end");
    assert!(lost.iter().flatten().all(|pid| *pid == doomed.pid()), "{case}");
    lost
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
    for size in SIZES {
        for (place, loses) in PLACES {
            let lost = outcomes(place, size, Terms::ABRUPT);
            let count = lost.iter().flatten().count();
            assert_eq!(count, usize::from(loses), "{place}, {size} bytes: {lost:?}");
            assert_eq!(lost[0].is_some(), loses, "{place}, {size} bytes");
        }
    }
}

#[test]
fn a_worker_killed_between_the_frames_of_an_outcome_loses_it_whole() {
    let lost = outcomes("worker: an outcome is pushed in part", SIZES[1], Terms::ABRUPT);
    assert_eq!(lost.iter().flatten().count(), 1, "{lost:?}");
    assert!(lost[0].is_some());
}

#[test]
fn with_another_try_nothing_is_lost_at_any_line() {
    let terms = Terms { retries: 1, ..Terms::ABRUPT };
    for size in SIZES {
        for (place, _) in PLACES {
            assert_eq!(outcomes(place, size, terms), [None; TASKS as usize], "{place}");
        }
    }
}

#[test]
fn a_worker_killed_while_it_leaves_keeps_nobody() {
    let core = Core::new(1, Terms::ABRUPT, Limits::default()).unwrap();
    let doomed = hire(&core, 0, "worker: it leaves");
    core.close().unwrap();
    assert!(core.wait_ended(soon()).unwrap());
    assert_eq!(doomed.wait_until(soon()).unwrap().unwrap().signal(), Some(9));
    assert!(core.broken().unwrap().is_none());
}
