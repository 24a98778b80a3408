//! Deaths inside of operations: real processes that are killed where [`fault`] says so.
//!
//! A test starts this test binary again, which opens the objects, does one thing, and is killed by
//! SIGKILL in the middle of it; the test then sees what is left, and when: see `toll.rs`.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

use super::toll::{WORDS, alone, last_words, toll, words_path};
use super::{Arena, Barrier, Condvar, Event, Lock, Locked, RwLock, Semaphore, Shared};
use crate::error::Result;
use crate::sys::monotonic;
use crate::sys::socket::wait_readable;

/// What a started process is told: the operation, where to die, and the object's place.
pub(crate) const TOLD: &str = "PHALANX_FAULT";

static ARMED: OnceLock<String> = OnceLock::new();

/// Before a place, it says that the process is to be stopped there instead.
pub(crate) const STOPPED: &str = "stopped at ";

/// Ends the process by SIGKILL if it was told to end here; or stops it.
pub(crate) fn fault(place: &'static str) {
    let Some(armed) = ARMED.get() else { return };
    if armed == place {
        last_words();
        let _ = kill_process(getpid(), Signal::KILL);
    } else if armed.strip_prefix(STOPPED) == Some(place) {
        let _ = kill_process(getpid(), Signal::STOP);
        loop {
            std::thread::park(); // it may have been another thread that got it first
        }
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
    command.args(["--exact", test, "--nocapture"]).env(TOLD, told).env(WORDS, words_path());
    command.stdout(Stdio::null());
    command
}

pub(crate) fn start_test(test: &str, told: &str) -> std::process::Child {
    command(test, told).spawn().unwrap()
}

/// As [`command`], for one whom the engine starts: its arguments and its environment.
pub(crate) fn arguments(test: &str, told: &str) -> (Vec<CString>, [CString; 2]) {
    let string = |text: &str| CString::new(text).unwrap();
    let name = std::env::current_exe().unwrap();
    let name = name.to_str().unwrap();
    let arguments = [name, "--exact", test, "--nocapture", "--quiet", "--test-threads=1"];
    let variables = [format!("{TOLD}={told}"), format!("{WORDS}={}", words_path())];
    (arguments.map(string).to_vec(), variables.map(|each| string(&each)))
}

/// Of a started process: tells the test a line, in one call, so that it stays apart from those of others.
pub(crate) fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// As [`say`]: when it knew, as [`monotonic`] has it.
pub(crate) fn say_known() {
    say(&format!("{KNEW}{}", monotonic().as_nanos()));
}

const KNEW: &str = "it knew at ";

/// What a process and all that it had started have told.
pub(crate) struct Story {
    /// What they said, sorted.
    pub(crate) lines: Vec<String>,
    /// When one of them knew, if it said so; when the last of them had ended.
    pub(crate) known: Option<Duration>,
    pub(crate) over: Duration,
    /// How the first of them ended.
    pub(crate) end: ExitStatus,
}

/// Runs one test in a process, and awaits the end of all that it has started: of whoever has its standard
/// error.
pub(crate) fn story(test: &str, told: &str) -> Story {
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
    let over = monotonic();
    let text = String::from_utf8(text).unwrap();
    let (knew, said): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with(KNEW));
    let known = knew.first().map(|line| Duration::from_nanos(line[KNEW.len()..].parse().unwrap()));
    let mut lines: Vec<_> = said.into_iter().map(str::to_string).collect();
    lines.sort();
    Story { lines, known, over, end: child.wait().unwrap() }
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
        "lock" => {
            let lock = Lock::open(arena, offset)?;
            let _held = lock.lock();
            fault("a lock is held");
        }
        "permit" => {
            let permits = Semaphore::open(arena, offset)?;
            let _held = permits.acquire();
            fault("a unit is held");
        }
        "read" => {
            let lock = RwLock::open(arena, offset)?;
            let _inside = lock.read();
            fault("a reader is inside");
        }
        "write" => {
            let lock = RwLock::open(arena, offset)?;
            let _inside = lock.write();
            fault("a writer is inside");
        }
        "set" => Event::open(arena, offset)?.set(),
        "meet" => drop(Barrier::open(arena, offset)?.wait()),
        "notify" => {
            let lock = Lock::new()?;
            Condvar::open(arena, offset)?.notify_one(&lock.lock().unwrap());
        }
        "wait" => {
            let lock = Lock::new()?;
            let _ = Condvar::open(arena, offset)?.wait(lock.lock().unwrap());
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
fn one_killed_while_it_holds_something_is_told_to_the_next_who_has_it() {
    fn next<G>(place: &str, taken: Option<Locked<G>>, free: impl Fn() -> bool) -> Duration {
        let known = monotonic();
        assert!(taken.expect("in time").is_err(), "{place}: it was abandoned");
        assert!(free(), "{place}: it was told once");
        known
    }
    alone(|| {
        let place = "a lock is held";
        toll(place, || {
            let lock = Lock::new().unwrap();
            killed(start("lock", place, &lock));
            next(place, lock.lock_until(in_time()), || lock.try_lock().is_some_and(|it| it.is_ok()))
        });
        let place = "a unit is held";
        toll(place, || {
            let permits = Semaphore::new(1, Some(1)).unwrap();
            killed(start("permit", place, &permits));
            let free = || permits.value() == 1;
            next(place, permits.acquire_until(in_time()), free)
        });
        let place = "a writer is inside";
        toll(place, || {
            let lock = RwLock::new().unwrap();
            killed(start("write", place, &lock));
            next(place, lock.read_until(in_time()), || {
                lock.try_write().is_some_and(|it| it.is_ok())
            })
        });
        let place = "a reader is inside";
        toll(place, || {
            let lock = RwLock::new().unwrap();
            killed(start("read", place, &lock));
            assert!(lock.write_until(in_time()).expect("in time").is_ok(), "it has spoilt nothing");
            monotonic()
        });
    });
}

#[test]
fn one_killed_while_it_waits_takes_no_notification_with_it() {
    let places = ["waiters: one has come", "waiters: one is notified, and has not gone"];
    alone(|| {
        for (place, is_notified) in places.into_iter().zip([false, true]) {
            toll(place, || {
                let (lock, changed) = (Lock::new().unwrap(), Condvar::new().unwrap());
                let dying = start("wait", place, &changed);
                let wait_for = |count| {
                    while changed.waiting() < count {
                        std::thread::yield_now();
                    }
                };
                wait_for(1);
                std::thread::scope(|scope| {
                    let waiting = scope.spawn(|| {
                        let notified = changed.wait_until(lock.lock().unwrap(), in_time()).1;
                        (notified, monotonic())
                    });
                    wait_for(2);
                    if is_notified {
                        changed.notify_one(&lock.lock().unwrap());
                        killed(dying);
                    } else {
                        killed(dying);
                        changed.notify_one(&lock.lock().unwrap()); // to the one that came first
                    }
                    let (notified, known) = waiting.join().unwrap();
                    assert!(notified, "{place}");
                    known
                })
            });
        }
    });
}

#[test]
fn one_killed_between_release_and_wake_up_leaves_a_free_lock_to_those_who_sleep() {
    alone(|| {
        let place = "hold: released, before the wake-up";
        toll(place, || {
            let lock = Lock::new().unwrap();
            let held = lock.lock().unwrap();
            let dying = start("lock", place, &lock);
            let (released, known) = std::thread::scope(|scope| {
                let waiting = scope
                    .spawn(|| (lock.lock_until(in_time()).expect("in time").is_ok(), monotonic()));
                drop(held);
                killed(dying);
                waiting.join().unwrap()
            });
            assert!(released, "it was released, not abandoned");
            assert!(!lock.is_locked());
            known
        });
    });
}

#[test]
fn one_killed_when_it_was_woken_takes_no_wake_up_with_it() {
    alone(|| {
        let place = "hold: woken, before it is acquired";
        toll(place, || {
            let lock = Lock::new().unwrap();
            let held = lock.lock().unwrap();
            let dying = start("lock", place, &lock);
            let known = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    drop(lock.lock_until(in_time()).expect("in time"));
                    monotonic()
                });
                killed(dying); // by the end of its first slice of sleep at the latest
                drop(held);
                waiting.join().unwrap()
            });
            assert!(!lock.is_locked());
            known
        });
    });
}

#[test]
fn one_killed_between_giving_a_unit_and_the_wake_up_has_given_it() {
    alone(|| {
        let place = "semaphore: released, before the wake-up";
        toll(place, || {
            let permits = Semaphore::new(1, Some(1)).unwrap();
            let held = permits.acquire().unwrap();
            let dying = start("permit", place, &permits);
            let known = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    drop(permits.acquire_until(in_time()).expect("in time"));
                    monotonic()
                });
                drop(held);
                killed(dying);
                waiting.join().unwrap()
            });
            assert_eq!(permits.value(), 1);
            known
        });
    });
}

#[test]
fn a_flag_whose_setter_is_killed_before_the_wake_up_is_seen() {
    alone(|| {
        let place = "event: set, before the wake-up";
        toll(place, || {
            let event = Event::new().unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| (event.wait_until(in_time()), monotonic()));
                killed(start("set", place, &event));
                let (set, known) = waiting.join().unwrap();
                assert!(set);
                known
            })
        });
    });
}

#[test]
fn one_who_was_notified_by_a_killed_process_wakes() {
    alone(|| {
        let place = "waiters: one is notified, before the wake-up";
        toll(place, || {
            let (lock, changed) = (Lock::new().unwrap(), Condvar::new().unwrap());
            let known = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let notified = changed.wait_until(lock.lock().unwrap(), in_time()).1;
                    (notified, monotonic())
                });
                while changed.waiting() == 0 {
                    std::thread::yield_now();
                }
                killed(start("notify", place, &changed));
                let (notified, known) = waiting.join().unwrap();
                assert!(notified);
                known
            });
            assert_eq!(changed.waiting(), 0);
            known
        });
    });
}

#[test]
fn readers_killed_on_their_way_in_or_out_keep_no_writer_out() {
    alone(|| {
        for (place, is_clean) in [
            ("rwlock: a reader counted, before it lets go", false),
            ("rwlock: a reader left, before the wake-up", true),
        ] {
            toll(place, || {
                let lock = RwLock::new().unwrap();
                killed(start("read", place, &lock));
                let written = lock.write_until(in_time()).expect("in time");
                let known = monotonic();
                assert_eq!(written.is_ok(), is_clean, "{place}");
                drop(written);
                assert!(
                    lock.write_until(in_time()).expect("in time").is_ok(),
                    "{place}: told once"
                );
                known
            });
        }
    });
}

#[test]
fn a_party_killed_at_any_step_breaks_the_barrier_or_lets_all_go() {
    alone(|| {
        // The only party of two that comes; then the last of two.
        let place = "barrier: one has come, before it lets go";
        toll(place, || {
            let barrier = Barrier::new(2).unwrap();
            killed(start("meet", place, &barrier));
            assert!(barrier.wait_until(in_time()).is_err());
            monotonic()
        });
        for (place, all_came) in [
            ("barrier: its outcome is known, before its end", false),
            ("barrier: at its end, before the wake-up", true),
        ] {
            toll(place, || {
                let barrier = Barrier::new(2).unwrap();
                let known = std::thread::scope(|scope| {
                    let waiting = scope.spawn(|| (barrier.wait_until(in_time()), monotonic()));
                    while barrier.waiting() == 0 {
                        std::thread::yield_now();
                    }
                    killed(start("meet", place, &barrier));
                    let (met, known) = waiting.join().unwrap();
                    assert_eq!(met.is_ok(), all_came, "{place}");
                    known
                });
                assert!(barrier.wait_until(in_time()).is_err(), "the dead one had it in its hands");
                barrier.reset();
                assert!(!barrier.is_broken() && barrier.waiting() == 0);
                known
            });
        }
    });
}
