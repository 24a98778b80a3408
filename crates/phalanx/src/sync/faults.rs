//! Deaths inside of operations: real processes that are killed where [`fault`] says so.
//!
//! A test starts this test binary again, which opens the objects, does one thing, and is killed by
//! SIGKILL in the middle of it; the test then sees what is left.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

use super::{Arena, Barrier, Condvar, Event, Lock, RwLock, Semaphore, Shared};
use crate::error::Result;
use crate::sys::socket::wait_readable;

/// What a started process is told: the operation, where to die, and the object's place.
pub(crate) const TOLD: &str = "PHALANX_FAULT";

static ARMED: OnceLock<String> = OnceLock::new();

/// Ends the process by SIGKILL if it was told to end here.
pub(crate) fn fault(place: &'static str) {
    if ARMED.get().is_some_and(|armed| armed == place) {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// In a process that [`start_test`] has started: what it was told, operation and place first. It
/// dies at the place from now on.
pub(crate) fn told() -> Option<Vec<String>> {
    let told: Vec<String> = std::env::var(TOLD).ok()?.split('|').map(str::to_string).collect();
    ARMED.set(told[1].clone()).expect("once a process");
    Some(told)
}

/// This test binary, to run one test and be killed in it.
pub(crate) fn command(test: &str, told: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(TOLD, told).stdout(Stdio::null());
    command
}

pub(crate) fn start_test(test: &str, told: &str) -> std::process::Child {
    command(test, told).spawn().unwrap()
}

/// As [`command`], for one whom the engine starts: its arguments and its environment.
pub(crate) fn arguments(test: &str, told: &str) -> (Vec<CString>, [CString; 1]) {
    let string = |text: &str| CString::new(text).unwrap();
    let name = std::env::current_exe().unwrap();
    let name = name.to_str().unwrap();
    let arguments = [name, "--exact", test, "--nocapture", "--quiet", "--test-threads=1"];
    (arguments.map(string).to_vec(), [string(&format!("{TOLD}={told}"))])
}

/// Of a started process: tells the test a line, in one call, so that it stays apart from those of others.
pub(crate) fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Runs one test in a process, and awaits the end of all that it has started: of whoever has its standard
/// error. Returns what they [`say`], sorted, and how the first of them ended.
pub(crate) fn story(test: &str, told: &str) -> (Vec<String>, ExitStatus) {
    let mut child = command(test, told).stderr(Stdio::piped()).spawn().unwrap();
    let (mut pipe, mut text, deadline) = (child.stderr.take().unwrap(), Vec::new(), in_time());
    let mut bytes = [0; 1000];
    loop {
        let readable = wait_readable(&pipe, Some(deadline)).unwrap();
        assert!(readable, "{told}: a process is left: {}", String::from_utf8_lossy(&text));
        match pipe.read(&mut bytes).unwrap() {
            0 => break,
            len => text.extend_from_slice(&bytes[..len]),
        }
    }
    let text = String::from_utf8(text).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_string).collect();
    lines.sort();
    (lines, child.wait().unwrap())
}

/// A file by whose path a started process opens a descriptor of ours.
pub(crate) fn path_of(fd: impl AsFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_fd().as_raw_fd())
}

pub(crate) fn open(path: &str) -> OwnedFd {
    File::options().read(true).write(true).open(path).unwrap().into()
}

/// What the started process does. Not a test of its own.
#[test]
fn started() {
    let Some(told) = told() else { return };
    let [operation, place, file, offset] = &told[..] else { panic!("{told:?}") };
    let arena = Arena::open(open(file)).unwrap();
    act(operation, &arena, offset.parse().unwrap()).unwrap();
    panic!("{operation} came by {place} alive");
}

fn act(operation: &str, arena: &Arena, offset: usize) -> Result<()> {
    match operation {
        "lock" => drop(Lock::open(arena, offset)?.lock()),
        "permit" => drop(Semaphore::open(arena, offset)?.acquire()),
        "read" => drop(RwLock::open(arena, offset)?.read()),
        "set" => Event::open(arena, offset)?.set(),
        "meet" => drop(Barrier::open(arena, offset)?.wait()),
        "notify" => {
            let lock = Lock::new()?;
            Condvar::open(arena, offset)?.notify_one(&lock.lock().unwrap());
        }
        _ => unreachable!("{operation}"),
    }
    Ok(())
}

/// A process that does `operation` with `object`, and is killed at `place`.
fn start(operation: &str, place: &str, object: &impl Shared) -> std::process::Child {
    let (arena, offset) = object.place();
    let file = path_of(arena);
    start_test("sync::faults::started", &format!("{operation}|{place}|{file}|{offset}"))
}

pub(crate) fn killed(mut child: std::process::Child) {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(9), "killed at its place");
}

fn in_time() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn one_killed_between_release_and_wake_up_leaves_a_free_lock_to_those_who_sleep() {
    let lock = Lock::new().unwrap();
    let held = lock.lock().unwrap();
    let dying = start("lock", "hold: released, before the wake-up", &lock);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lock.lock_until(in_time()).expect("in time").is_ok());
        drop(held);
        killed(dying);
        assert!(waiting.join().unwrap(), "it was released, not abandoned");
    });
}

#[test]
fn one_killed_when_it_was_woken_takes_no_wake_up_with_it() {
    let lock = Lock::new().unwrap();
    let held = lock.lock().unwrap();
    let dying = start("lock", "hold: woken, before it is acquired", &lock);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drop(lock.lock_until(in_time()).expect("in time")));
        killed(dying); // by the end of its first slice of sleep at the latest
        drop(held);
        waiting.join().unwrap();
    });
    assert!(!lock.is_locked());
}

#[test]
fn one_killed_between_giving_a_unit_and_the_wake_up_has_given_it() {
    let permits = Semaphore::new(1, Some(1)).unwrap();
    let held = permits.acquire().unwrap();
    let dying = start("permit", "semaphore: released, before the wake-up", &permits);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drop(permits.acquire_until(in_time()).expect("in time")));
        drop(held);
        killed(dying);
        waiting.join().unwrap();
    });
    assert_eq!(permits.value(), 1);
}

#[test]
fn a_flag_whose_setter_is_killed_before_the_wake_up_is_seen() {
    let event = Event::new().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| event.wait_until(in_time()));
        killed(start("set", "event: set, before the wake-up", &event));
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn one_who_was_notified_by_a_killed_process_wakes() {
    let (lock, changed) = (Lock::new().unwrap(), Condvar::new().unwrap());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| changed.wait_until(lock.lock().unwrap(), in_time()).1);
        while changed.waiting() == 0 {
            std::thread::yield_now();
        }
        killed(start("notify", "waiters: one is notified, before the wake-up", &changed));
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn readers_killed_on_their_way_in_or_out_keep_no_writer_out() {
    let ways = [
        ("rwlock: a reader counted, before it lets go", false),
        ("rwlock: a reader left, before the wake-up", true),
    ];
    for (place, is_clean) in ways {
        let lock = RwLock::new().unwrap();
        killed(start("read", place, &lock));
        let written = lock.write_until(in_time()).expect("in time");
        assert_eq!(written.is_ok(), is_clean, "{place}");
    }
}

#[test]
fn a_party_killed_at_any_step_breaks_the_barrier_or_lets_all_go() {
    // The only party of two that comes; then the last of two.
    let barrier = Barrier::new(2).unwrap();
    killed(start("meet", "barrier: one has come, before it lets go", &barrier));
    assert!(barrier.wait_until(in_time()).is_err());
    let ways = [
        ("barrier: its outcome is known, before its end", false),
        ("barrier: at its end, before the wake-up", true),
    ];
    for (place, all_came) in ways {
        let barrier = Barrier::new(2).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| barrier.wait_until(in_time()));
            while barrier.waiting() == 0 {
                std::thread::yield_now();
            }
            killed(start("meet", place, &barrier));
            assert_eq!(waiting.join().unwrap().is_ok(), all_came, "{place}");
        });
        assert!(barrier.wait_until(in_time()).is_err(), "the dead one had it in its hands");
        barrier.reset();
        assert!(!barrier.is_broken());
    }
}
