//! A death costs the task that was being run, and nothing else.

use std::fs::{self, File};
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use phalanx::{Pool, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

use crate::alone::{Beginnings, alone, hang};

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("a process id")
}

#[test]
fn a_killed_worker_loses_only_its_own_task_and_it_is_told_soon() {
    alone(|| {
        let (pool, beginnings) = (Pool::new(2).unwrap(), Beginnings::new());
        let victim = pool.submit(hang, beginnings.name.clone());
        let worker = beginnings.wait();
        let others: Vec<_> = (0..100_u64).map(|n| pool.submit(|n| n, n)).collect();
        let killed = Instant::now();
        kill_process(pid(worker), Signal::KILL).unwrap();
        let error = victim.wait().unwrap_err();
        let told = killed.elapsed();
        assert!(told < Duration::from_millis(100), "told after {told:?}");
        let died = error.worker_died().unwrap();
        assert_eq!((died.pid, died.exit.unwrap().signal_name()), (worker, Some("SIGKILL")));
        assert!(error.to_string().contains("`it::alone::hang`"), "{error}");
        for (n, other) in (0..).zip(others) {
            assert_eq!(other.wait().unwrap(), n);
        }
        // And its place is filled again: two tasks run at a time.
        let together = [(); 2].map(|()| pool.submit(hang, beginnings.name.clone()));
        assert_ne!(beginnings.wait(), beginnings.wait());
        drop((pool, together));
    });
}

fn end(how: u8) -> u8 {
    match how {
        0 => std::process::abort(),
        1 => kill_process(getpid(), Signal::SEGV).expect("a signal"),
        2 => std::process::exit(3),
        3 => panic!("told to"),
        _ => return how,
    }
    how
}

#[test]
fn every_end_is_told_as_what_it_was() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let results = pool.try_map(end, 0..6).unwrap();
        let code = |at: usize| {
            let error: &phalanx::Error = results[at].as_ref().unwrap_err();
            error.worker_died().map(|died| died.exit.unwrap().code())
        };
        assert_eq!([0, 1, 2, 3].map(code), [Some(-6), Some(-11), Some(3), None]);
        assert!(results[3].as_ref().unwrap_err().is_task_failure());
        assert_eq!([4, 5].map(|at: usize| *results[at].as_ref().unwrap()), [4, 5]);
    });
}

#[test]
fn an_idle_worker_that_dies_costs_nothing() {
    alone(|| {
        let pool = Pool::new(1).unwrap();
        let first = pool.submit(|()| std::process::id(), ()).wait().unwrap();
        kill_process(pid(first), Signal::KILL).unwrap();
        let second = pool.submit(|()| std::process::id(), ()).wait();
        // It was killed before it began; if it had begun, that would be told.
        assert!(second.is_ok_and(|second| second != first));
    });
}

#[test]
fn tasks_that_waited_in_a_dead_worker_run_elsewhere_exactly_once() {
    alone(|| {
        let path = std::env::temp_dir().join(format!("phalanx-{}", std::process::id()));
        File::create(&path).unwrap();
        let leave_a_mark = |(path, n): (std::path::PathBuf, u32)| {
            let mut file = File::options().append(true).open(path).unwrap();
            file.write_all(format!("{n}\n").as_bytes()).unwrap();
            if n % 100 == 50 {
                kill_process(getpid(), Signal::KILL).unwrap();
                thread::sleep(Duration::from_secs(600));
            }
        };
        let pool = Pool::new(2).unwrap();
        let results = pool.try_map(leave_a_mark, (0..1000).map(|n| (path.clone(), n))).unwrap();
        let lost: Vec<_> = (0..1000).filter(|n| results[*n].is_err()).collect();
        assert_eq!(lost, (50..1000).step_by(100).collect::<Vec<_>>());
        let marks = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let mut marks: Vec<u32> = marks.lines().map(|line| line.parse().unwrap()).collect();
        marks.sort_unstable();
        assert_eq!(marks, (0..1000).collect::<Vec<_>>());
    });
}

#[test]
fn a_panic_arrives_with_message_place_and_backtrace_and_the_worker_lives_on() {
    alone(|| {
        fn unlucky_function(n: u32) -> u32 {
            assert!(n != 13, "the number was {n}");
            std::process::id()
        }
        let pool = Pool::new(1).unwrap();
        let worker = pool.submit(unlucky_function, 1).wait().unwrap();
        let error = pool.submit(unlucky_function, 13).wait().unwrap_err();
        let text = error.to_string();
        assert!(error.is_task_failure());
        assert!(text.contains("the number was 13") && text.contains("deaths.rs:"), "{text}");
        assert!(text.contains("unlucky_function` panicked at "), "{text}");
        assert!(error.trace().contains("unlucky_function"), "{}", error.trace());
        assert!(!error.trace().contains("rust_begin_unwind"), "{}", error.trace());
        assert!(!error.trace().contains("catch_unwind"), "{}", error.trace());
        assert_eq!(pool.submit(unlucky_function, 2).wait().unwrap(), worker);
        // In a chunk as well, where it is the map that fails.
        assert!(pool.map(unlucky_function, 0..100).unwrap_err().is_task_failure());
    });
}

#[test]
fn a_panic_with_any_value_is_an_error() {
    alone(|| {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("twice");
            }
        }
        let pool = Pool::new(1).unwrap();
        let error = pool.submit(|()| -> () { std::panic::panic_any(Bomb) }, ()).wait().unwrap_err();
        assert!(error.is_task_failure());
        assert_eq!(pool.submit(|n: u8| n, 1).wait().unwrap(), 1);
    });
}

#[test]
fn workers_end_with_their_owner_within_a_second() {
    alone(|| {
        let beginnings = Beginnings::new();
        let owner = |name: String| {
            let pool = Pool::new(2).unwrap();
            pool.map(hang, [name.clone(), name]).unwrap();
        };
        let owner = Process::spawn(owner, beginnings.name.clone()).unwrap();
        let workers = [beginnings.wait(), beginnings.wait()];
        let ends =
            workers.map(|worker| pidfd_open(pid(worker), PidfdFlags::empty()).expect("a worker"));
        owner.kill().unwrap();
        assert!(owner.join().unwrap_err().worker_died().is_some());
        for end in ends {
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&second)).unwrap();
            assert_eq!(ready, 1, "a worker lived on");
        }
    });
}

#[inline(never)]
fn give_up(_: u8) {
    std::process::abort();
}

#[inline(never)]
fn be_sent_a_signal(_: u8) {
    kill_process(getpid(), Signal::SEGV).expect("a signal");
}

/// Fills the stack.
#[inline(never)]
#[allow(unconditional_recursion)]
fn sink(depth: u8) {
    let frame = std::hint::black_box([depth; 4096]);
    sink(frame[17]);
    std::hint::black_box(frame);
}

#[test]
fn a_crash_says_where() {
    let pool = Pool::new(1).unwrap();
    for (handle, name, signal) in [
        (pool.submit(give_up, 0), "give_up", Signal::ABORT),
        (pool.submit(be_sent_a_signal, 0), "be_sent_a_signal", Signal::SEGV),
        (pool.submit(sink, 0), "sink", Signal::SEGV),
    ] {
        let error = handle.wait().unwrap_err();
        let died = error.worker_died().unwrap();
        assert_eq!(died.exit.unwrap().signal(), Some(signal.as_raw()), "{name}");
        assert!(died.stack.contains(&format!("deaths::{name}")), "{name}: {}", died.stack);
        assert!(!died.stack.contains("phalanx::sys"), "{name}: {}", died.stack);
    }
    let killed = pool.submit(|_| kill_process(getpid(), Signal::KILL).unwrap(), 0_u8);
    assert_eq!(killed.wait().unwrap_err().worker_died().unwrap().stack, "");
}
