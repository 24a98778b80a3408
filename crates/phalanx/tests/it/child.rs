//! A child is seen to end, with its code, whoever is its parent and whoever looks.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use phalanx::process::{Child, Exit, Next, Template, TemplateServer};

const PATIENCE: Duration = Duration::from_secs(20);

fn soon() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

fn strings(words: &[&str]) -> Vec<CString> {
    words.iter().map(|word| CString::new(*word).expect("no NUL")).collect()
}

fn shell(script: &str, fds: &[RawFd]) -> Child {
    let args = strings(&["sh", "-c", script]);
    Child::spawn(c"/bin/sh", &args, None, fds).expect("a shell")
}

fn code(child: &Child) -> i32 {
    child.wait_until(soon()).expect("waiting").expect("an end").code()
}

#[test]
fn an_exit_code_arrives_and_is_remembered() {
    let child = shell("exit 7", &[]);
    assert_eq!(code(&child), 7);
    assert_eq!(child.try_exit().expect("asking").map(Exit::code), Some(7));
}

#[test]
fn a_signal_ends_a_child_and_is_nothing_to_a_dead_one() {
    let child = shell("exec sleep 600", &[]);
    assert_eq!(child.try_exit().expect("asking"), None);
    assert_eq!(child.wait_until(Some(Instant::now())).expect("waiting"), None);
    child.signal(libc::SIGTERM).expect("signalling");
    assert_eq!(code(&child), -libc::SIGTERM);
    child.signal(libc::SIGTERM).expect("signalling the dead");
    assert!(child.signal(0).is_ok() && shell("exit", &[]).signal(1000).is_err());
}

#[test]
fn many_threads_learn_the_same_end() {
    let child = Arc::new(shell("sleep 0.1; exit 3", &[]));
    let waiters: Vec<_> = (0..8)
        .map(|_| {
            let child = Arc::clone(&child);
            thread::spawn(move || code(&child))
        })
        .collect();
    for waiter in waiters {
        assert_eq!(waiter.join().expect("a waiter"), 3);
    }
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let error = Child::spawn(c"/nowhere", &strings(&["nowhere"]), None, &[]).expect_err("no such");
    assert_eq!(error.os_error().and_then(std::io::Error::raw_os_error), Some(libc::ENOENT));
}

#[test]
fn only_the_named_descriptors_are_inherited() {
    let (kept, closed) = (tempfile(), tempfile());
    let script = format!("test -e /proc/self/fd/{}", kept.as_raw_fd());
    assert_eq!(code(&shell(&script, &[kept.as_raw_fd()])), 0);
    let script = format!("test -e /proc/self/fd/{}", closed.as_raw_fd());
    assert_eq!(code(&shell(&script, &[])), 1);
    let error = Child::spawn(c"/bin/sh", &strings(&["sh"]), None, &[9999]).expect_err("not open");
    assert_eq!(error.os_error().and_then(std::io::Error::raw_os_error), Some(libc::EBADF));
}

fn tempfile() -> std::fs::File {
    std::fs::File::open("/dev/null").expect("/dev/null")
}

/// The template of the tests below, in a process of its own: its payloads are shell scripts.
///
/// Started among the other tests it is none of them, and returns.
#[test]
fn the_template_itself() {
    let Some(fd) = std::env::args().next_back().and_then(|word| word.parse().ok()) else { return };
    let mut server = TemplateServer::new(fd).expect("a server");
    loop {
        match server.wait_request(Instant::now() + PATIENCE).expect("serving") {
            Some(Next::Request(request)) => {
                let count = request.hint().len();
                let (payload, fds) = request.into_fds();
                let script = std::fs::read_to_string(format!("/proc/self/fd/{payload}"));
                let script = script.expect("a payload");
                if script == "refuse" {
                    server.refused(libc::EAGAIN);
                    continue;
                }
                let script = format!("hint={count}; fds={}; {script}", fds.len());
                let child = std::process::Command::new("sh").args(["-c", &script]).spawn();
                server.launched(child.expect("a shell").id()).expect("launched");
            }
            Some(Next::End) => std::process::exit(0),
            None => {}
        }
    }
}

fn template() -> Template {
    let exe = std::env::current_exe().expect("ourselves");
    let path = CString::new(exe.to_str().expect("UTF-8")).expect("no NUL");
    let args = ["it", "--exact", "child::the_template_itself", "--nocapture", "--test-threads=1"];
    Template::start(&path, &strings(&args), None).expect("a template")
}

fn launch(template: &Template, script: &str, fds: &[RawFd], hint: &[u8]) -> phalanx::Result<Child> {
    let mut launch = template.launch(script.as_bytes(), fds, hint)?;
    Ok(launch.wait_until(Instant::now() + PATIENCE)?.expect("an answer"))
}

#[test]
fn a_template_reports_how_its_children_ended() {
    let template = template();
    let slow = launch(&template, "sleep 0.2; exit 5", &[], &[]).expect("a child");
    let killed = launch(&template, "kill -KILL $$", &[], &[]).expect("a child");
    // The report of an end may come with the answer itself.
    for _ in 0..20 {
        assert_eq!(code(&launch(&template, "exit 2", &[], &[]).expect("a child")), 2);
    }
    assert_eq!((code(&slow), code(&killed)), (5, -libc::SIGKILL));
}

#[test]
fn a_template_is_given_any_number_of_descriptors_and_a_hint() {
    let template = template();
    let file = tempfile();
    let script = "test $fds = 600 && test $hint = 3";
    let child = launch(&template, script, &[file.as_raw_fd(); 600], b"abc").expect("a child");
    assert_eq!(code(&child), 0);
    assert!(launch(&template, "", &[], &[0; 5000]).expect_err("too long").is_invalid());
}

#[test]
fn a_refusal_is_an_error_of_that_launch_alone() {
    let template = template();
    let error = launch(&template, "refuse", &[], &[]).expect_err("refused");
    assert_eq!(error.os_error().and_then(std::io::Error::raw_os_error), Some(libc::EAGAIN));
    assert_eq!(code(&launch(&template, "exit 1", &[], &[]).expect("a child")), 1);
}

#[test]
fn the_children_of_a_dead_template_are_still_seen_to_end() {
    let template = template();
    let child = launch(&template, "exec sleep 600", &[], &[]).expect("a child");
    template.process().signal(libc::SIGKILL).expect("a signal");
    assert_eq!(code(template.process()), -libc::SIGKILL);
    assert!(!template.is_alive());
    let error = launch(&template, "exit 0", &[], &[]).expect_err("no template");
    assert_eq!(error.os_error().and_then(std::io::Error::raw_os_error), Some(libc::EPIPE));
    assert_eq!(child.try_exit().expect("asking"), None);
    child.signal(libc::SIGKILL).expect("a signal");
    assert_eq!(code(&child), 255);
    assert!(child.as_fd().as_raw_fd() > 2);
}

#[test]
fn a_stopped_template_is_gone() {
    let template = template();
    template.stop(PATIENCE).expect("stopping");
    assert_eq!(template.process().try_exit().expect("asking").map(Exit::code), Some(0));
}

#[test]
fn a_launch_that_nobody_waits_for_is_killed() {
    let template = template();
    let marker = std::env::temp_dir().join(format!("phalanx-forgotten-{}", std::process::id()));
    let script = format!("sleep 1; touch {}", marker.display());
    drop(template.launch(script.as_bytes(), &[], &[]).expect("a launch"));
    // Its answer is read by the next who asks.
    assert_eq!(code(&launch(&template, "sleep 1.5", &[], &[]).expect("a child")), 0);
    assert!(!marker.exists());
}
