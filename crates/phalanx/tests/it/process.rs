//! A process runs one task, and its end tells all.

use std::thread;
use std::time::Duration;

use phalanx::Process;
use phalanx::sync::Event;

use crate::alone::{Beginnings, PATIENCE, alone, begin, eventually, hang};

#[test]
fn a_process_returns_what_its_task_returns() {
    alone(|| {
        let process = Process::spawn(|(a, b): (u32, u32)| a + b, (1, 2)).unwrap();
        assert_ne!(process.pid(), std::process::id());
        assert_eq!(process.wait_timeout(PATIENCE).unwrap(), 3);
        assert!(!process.is_alive() && process.exit().unwrap().is_success());
        assert_eq!(process.join().unwrap(), 3);
    });
}

#[test]
fn neither_side_waits_for_the_other_to_read() {
    alone(|| {
        let turn = |mut bytes: Vec<u8>| {
            bytes.reverse();
            bytes
        };
        let process = Process::spawn(turn, vec![7; 32 << 20]).unwrap();
        eventually(|| !process.is_alive(), || "a process whose result nobody reads".into());
        assert_eq!(process.join().unwrap().len(), 32 << 20);
    });
}

#[test]
fn a_panic_is_an_error_and_exit_code_101() {
    alone(|| {
        let process = Process::spawn(|n: u32| assert_eq!(n, 2), 1).unwrap();
        let error = process.wait_timeout(PATIENCE).unwrap_err();
        assert!(error.is_task_failure() && error.to_string().contains("process.rs:"), "{error}");
        assert!(error.trace().contains("process::"), "{}", error.trace());
        assert_eq!(process.exit().unwrap().code(), 101);
    });
}

#[test]
fn a_death_is_told_with_its_code_or_signal() {
    alone(|| {
        let exits = Process::spawn(|code: i32| -> () { std::process::exit(code) }, 4).unwrap();
        let error = exits.join().unwrap_err();
        assert_eq!(error.worker_died().unwrap().exit.unwrap().code(), 4);
        let aborts = Process::spawn(|()| -> () { std::process::abort() }, ()).unwrap();
        assert!(aborts.join().unwrap_err().to_string().contains("SIGABRT"));
    });
}

#[test]
fn a_process_can_be_waited_for_in_time_and_killed() {
    alone(|| {
        let beginnings = Beginnings::new();
        let process = Process::spawn(hang, beginnings.name.clone()).unwrap();
        assert_eq!(beginnings.wait(), process.pid());
        assert!(process.wait_timeout(Duration::from_millis(20)).unwrap_err().is_timeout());
        assert!(process.is_alive() && process.exit().is_none());
        process.kill().unwrap();
        let error = process.wait_timeout(PATIENCE).unwrap_err();
        assert_eq!(error.worker_died().unwrap().exit, process.exit());
        assert_eq!(process.exit().unwrap().signal_name(), Some("SIGKILL"));
        process.kill().unwrap();
    });
}

#[test]
fn a_dropped_process_runs_on_and_is_reaped_by_the_next() {
    alone(|| {
        let (beginnings, dropped) = (Beginnings::new(), Event::new().unwrap());
        let body = |(name, dropped): (String, Event)| {
            dropped.wait();
            begin(&name);
        };
        drop(Process::spawn(body, (beginnings.name.clone(), dropped.clone())).unwrap());
        dropped.set();
        // Not before it has ended, so that there is something to reap.
        let stat = format!("/proc/{}/stat", beginnings.wait());
        let is_over = || std::fs::read_to_string(&stat).unwrap().contains(") Z ");
        eventually(is_over, || "its end".into());
        Process::spawn(|()| (), ()).unwrap().join().unwrap();
    });
}

#[test]
fn a_process_outlives_the_one_that_started_it() {
    alone(|| {
        let beginnings = Beginnings::new();
        let parent = |name: String| {
            let child = |name: String| {
                begin(&name);
                // The parent ends now.
                thread::sleep(Duration::from_millis(100));
                begin(&name);
            };
            Process::spawn(child, name).unwrap().pid()
        };
        let parent = Process::spawn(parent, beginnings.name.clone()).unwrap();
        let child = parent.join().unwrap();
        assert_eq!([beginnings.wait(), beginnings.wait()], [child, child]);
    });
}
