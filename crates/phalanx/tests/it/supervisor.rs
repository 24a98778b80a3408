//! A supervisor keeps its children running, in order, and says when it cannot.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx::supervisor::{ChildSpec, Restart, Status, Strategy};
use phalanx::{Process, Supervisor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::alone::{Beginnings, alone, eventually, hang};

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("a process id")
}

fn kill(process: u32) {
    kill_process(pid(process), Signal::KILL).unwrap();
}

/// What becomes readable when a process ends.
fn end_of(process: u32) -> std::os::fd::OwnedFd {
    pidfd_open(pid(process), PidfdFlags::empty()).expect("a process")
}

fn ends_soon(end: &std::os::fd::OwnedFd) -> bool {
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&patience)).unwrap() == 1
}

/// A supervisor of "a", "b" and "c", and their processes.
fn family(strategy: Strategy, beginnings: &Beginnings) -> (Supervisor, [u32; 3]) {
    let child = |name| ChildSpec::new(name, hang, beginnings.name.clone());
    let builder = Supervisor::builder().strategy(strategy).intensity(3, Duration::from_secs(60));
    let supervisor = builder.child(child("a")).child(child("b")).child(child("c")).start().unwrap();
    let pids = pids(&supervisor);
    for _ in pids {
        beginnings.wait();
    }
    (supervisor, pids)
}

/// When all three run: a child may tell that it has begun before its supervisor has taken note.
fn pids(supervisor: &Supervisor) -> [u32; 3] {
    all_run(supervisor);
    let children = supervisor.children().unwrap();
    let pids: Vec<_> = children.iter().map(|child| child.pid.unwrap()).collect();
    pids.try_into().expect("three children")
}

fn all_run(supervisor: &Supervisor) {
    let run = || supervisor.children().unwrap().iter().all(|it| it.status == Status::Running);
    eventually(run, || format!("all to run: {supervisor:?}"));
}

#[test]
fn each_strategy_restarts_those_that_it_says() {
    alone(|| {
        for (strategy, restarted) in [
            (Strategy::OneForOne, [false, true, false]),
            (Strategy::OneForAll, [true, true, true]),
            (Strategy::RestForOne, [false, true, true]),
        ] {
            let beginnings = Beginnings::new();
            let (supervisor, before) = family(strategy, &beginnings);
            kill(before[1]);
            for _ in restarted.iter().filter(|it| **it) {
                beginnings.wait();
            }
            let after = pids(&supervisor);
            for child in 0..3 {
                assert_eq!(before[child] != after[child], restarted[child], "{strategy:?}");
            }
            let b = &supervisor.children().unwrap()[1];
            assert_eq!((b.restarts, b.status), (1, Status::Running));
            assert_eq!(b.exit.unwrap().signal_name(), Some("SIGKILL"));
            supervisor.stop().unwrap();
        }
    });
}

#[test]
fn too_many_deaths_end_all_and_are_told() {
    alone(|| {
        let beginnings = Beginnings::new();
        let (supervisor, _) = family(Strategy::OneForOne, &beginnings);
        for _ in 0..3 {
            kill(pids(&supervisor)[0]);
            beginnings.wait();
        }
        let last = pids(&supervisor);
        kill(last[1]);
        let error = supervisor.join().unwrap_err();
        let failed = error.supervisor_failed().unwrap();
        let told: Vec<_> = failed.deaths.iter().map(|death| death.child.as_str()).collect();
        assert_eq!(told, ["a", "a", "a", "b"]);
        assert_eq!(failed.deaths[3].pid, Some(last[1]));
        assert!(error.to_string().contains("was killed by SIGKILL (9)"), "{error}");
        assert_eq!(supervisor.count().unwrap(), 0);
        assert!(supervisor.restart_child("a").unwrap_err().supervisor_failed().is_some());
        assert!(supervisor.stop().is_err());
    });
}

#[test]
fn a_panic_is_told_with_its_message_and_backtrace() {
    alone(|| {
        fn unlucky(n: u32) {
            assert!(n == 0, "the number was {n}");
        }
        let supervisor = Supervisor::builder()
            .name("numbers")
            .intensity(0, Duration::from_secs(5))
            .child(ChildSpec::new("unlucky", unlucky, 13))
            .start()
            .unwrap();
        let error = supervisor.join().unwrap_err();
        assert!(error.to_string().contains("`numbers`"), "{error}");
        assert!(error.to_string().contains("the number was 13"), "{error}");
        let death = &error.supervisor_failed().unwrap().deaths[0];
        assert_eq!(death.exit.unwrap().code(), 101);
        assert!(death.trace.contains("unlucky"), "{}", death.trace);
    });
}

#[test]
fn transient_and_temporary_children_end_for_good() {
    alone(|| {
        let exit = |code: i32| -> () { std::process::exit(code) };
        let supervisor = Supervisor::builder().start().unwrap();
        let transient = ChildSpec::new("transient", |(): ()| (), ()).restart(Restart::Transient);
        supervisor.start_child(transient).unwrap();
        let temporary = ChildSpec::new("temporary", exit, 3).restart(Restart::Temporary);
        supervisor.start_child(temporary).unwrap();
        supervisor.join().unwrap();
        let left = supervisor.children().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].care.name.as_str(), left[0].status), ("transient", Status::Down));
        supervisor.stop().unwrap();
    });
}

#[test]
fn children_are_added_terminated_restarted_and_deleted_by_name() {
    alone(|| {
        let beginnings = Beginnings::new();
        let (supervisor, pids) = family(Strategy::OneForOne, &beginnings);
        let ended = end_of(pids[1]);
        supervisor.terminate_child("b").unwrap();
        assert!(ends_soon(&ended));
        assert_eq!(supervisor.count().unwrap(), 2);
        let again = ChildSpec::new("b", hang, beginnings.name.clone());
        assert!(supervisor.start_child(again).unwrap_err().to_string().contains("already"));
        supervisor.restart_child("b").unwrap();
        beginnings.wait();
        assert!(supervisor.delete_child("b").unwrap_err().to_string().contains("terminate"));
        assert!(supervisor.restart_child("b").is_err());
        supervisor.terminate_child("b").unwrap();
        supervisor.delete_child("b").unwrap();
        assert!(supervisor.restart_child("b").unwrap_err().to_string().contains("no child `b`"));
        supervisor.start_child(ChildSpec::new("b", hang, beginnings.name.clone())).unwrap();
        let names: Vec<_> =
            supervisor.children().unwrap().into_iter().map(|child| child.care.name).collect();
        assert_eq!(names, ["a", "c", "b"]);
    });
}

#[test]
fn a_child_that_cannot_be_started_is_an_error_and_forgotten() {
    alone(|| {
        let nowhere = || Process::builder().current_dir("/nowhere");
        let lost = || ChildSpec::in_process("lost", nowhere, |(): ()| (), ());
        let supervisor = Supervisor::builder().start().unwrap();
        let error = supervisor.start_child(lost()).unwrap_err();
        assert!(error.to_string().contains("directory"), "{error}");
        assert!(supervisor.children().unwrap().is_empty());
        assert!(supervisor.start_child(lost()).unwrap_err().to_string().contains("directory"));
        assert!(Supervisor::builder().child(lost()).start().is_err());
    });
}

#[test]
fn one_that_ignores_sigterm_is_killed_when_its_time_is_over() {
    alone(|| {
        let beginnings = Beginnings::new();
        let time = Duration::from_millis(50);
        let spec = ChildSpec::new("deaf", hang, beginnings.name.clone()).shutdown(Some(time));
        let supervisor = Supervisor::builder().child(spec).start().unwrap();
        let child = beginnings.wait();
        let ended = end_of(child);
        // Stopped, it does not even see the signal.
        kill_process(pid(child), Signal::STOP).unwrap();
        let stat = || fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        eventually(|| stat().contains(") T "), || format!("it to be stopped: {}", stat()));
        let began = Instant::now();
        supervisor.stop().unwrap();
        assert!(began.elapsed() >= time && ends_soon(&ended));
    });
}

#[test]
fn children_end_with_the_process_that_supervises() {
    alone(|| {
        let beginnings = Beginnings::new();
        let owner = |name: String| {
            let child = |each: &str| ChildSpec::new(each, hang, name.clone());
            let builder = Supervisor::builder().child(child("a")).child(child("b"));
            builder.start().unwrap().join().unwrap();
        };
        let owner = Process::spawn(owner, beginnings.name.clone()).unwrap();
        let ends = [beginnings.wait(), beginnings.wait()].map(end_of);
        owner.kill().unwrap();
        assert!(owner.join().unwrap_err().worker_died().is_some());
        assert!(ends.iter().all(ends_soon), "a child lived on");
    });
}

/// Starts a program, tells its process, and hangs.
fn parent((name, detached): (String, bool)) {
    use std::os::unix::process::CommandExt as _;

    let mut program = Command::new("sleep");
    program.arg("600");
    if detached {
        program.process_group(0);
    }
    let mut program = program.spawn().unwrap();
    tell(&name, program.id());
    program.wait().unwrap();
    hang(name);
}

fn tell(name: &str, process: u32) {
    use std::io::Write as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixStream};

    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    stream.write_all(&process.to_ne_bytes()).unwrap();
}

#[test]
fn kill_tree_ends_what_a_child_had_started_however_the_child_ends() {
    alone(|| {
        let beginnings = Beginnings::new();
        let supervisor =
            Supervisor::builder().intensity(10, Duration::from_secs(60)).start().unwrap();
        let spec = ChildSpec::new("parent", parent, (beginnings.name.clone(), false));
        supervisor.start_child(spec.kill_tree(true)).unwrap();
        for signal in [Signal::KILL, Signal::TERM, Signal::SEGV] {
            let ended = end_of(beginnings.wait());
            all_run(&supervisor);
            kill_process(pid(supervisor.children().unwrap()[0].pid.unwrap()), signal).unwrap();
            assert!(ends_soon(&ended), "its program lived on after {signal:?}");
        }
        let ended = end_of(beginnings.wait());
        supervisor.stop().unwrap();
        assert!(ends_soon(&ended), "its program lived on after a stop");
    });
}

#[test]
fn kill_tree_leaves_alone_what_has_left_the_group() {
    alone(|| {
        let beginnings = Beginnings::new();
        let spec = ChildSpec::new("parent", parent, (beginnings.name.clone(), true));
        let supervisor = Supervisor::builder().child(spec.kill_tree(true)).start().unwrap();
        let program = beginnings.wait();
        let ended = end_of(program);
        supervisor.stop().unwrap();
        let ready = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&Timespec::default()));
        assert_eq!(ready.unwrap(), 0);
        kill(program);
        assert!(ends_soon(&ended));
    });
}

#[test]
fn kill_tree_holds_when_the_supervising_process_is_killed() {
    alone(|| {
        let beginnings = Beginnings::new();
        let owner = |name: String| {
            let spec = ChildSpec::new("parent", parent, (name, false)).kill_tree(true);
            Supervisor::builder().child(spec).start().unwrap().join().unwrap();
        };
        let owner = Process::spawn(owner, beginnings.name.clone()).unwrap();
        let ended = end_of(beginnings.wait());
        owner.kill().unwrap();
        assert!(owner.join().unwrap_err().worker_died().is_some());
        assert!(ends_soon(&ended), "its program lived on");
    });
}

#[test]
fn a_pools_kill_tree_ends_what_its_tasks_had_started() {
    alone(|| {
        let beginnings = Beginnings::new();
        let pool = phalanx::Pool::builder().processes(1).kill_tree(true).build().unwrap();
        let lost = pool.submit(parent, (beginnings.name.clone(), false));
        let program = beginnings.wait();
        let ended = end_of(program);
        kill(
            rustix::process::getpgid(Some(pid(program)))
                .unwrap()
                .as_raw_nonzero()
                .get()
                .cast_unsigned(),
        );
        assert!(lost.wait().unwrap_err().worker_died().is_some());
        assert!(ends_soon(&ended), "its program lived on after its worker was killed");
        let _running = pool.submit(parent, (beginnings.name.clone(), false));
        let ended = end_of(beginnings.wait());
        drop(pool);
        assert!(ends_soon(&ended), "its program lived on after its pool was dropped");
    });
}

#[test]
fn dropping_it_stops_it() {
    alone(|| {
        let beginnings = Beginnings::new();
        let (supervisor, pids) = family(Strategy::OneForAll, &beginnings);
        let ends = pids.map(end_of);
        drop(supervisor);
        assert!(ends.iter().all(ends_soon));
    });
}
