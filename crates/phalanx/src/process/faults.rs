//! Deaths while a template is asked for a child: real processes, killed where `fault` says so.
//!
//! | who dies | where | what its owner finds | how often the child runs |
//! | --- | --- | --- | --- |
//! | template | a request has come, in part or whole; a child is forked; its answer is not sent | EPIPE, so it asks another template | once, by that one |
//! | template | an answer is sent; an end is not reported | a child whose code is lost: 255 | once |
//! | template, by its owner | it is stopped anywhere, and stays so | as if it had been killed there | as above |
//! | child | on either side of its gate | a child that was killed: -9 | never |
//! | owner | before all of a request is sent | | never |
//! | owner | a request is sent; its answer is read | | never |
//! | owner | a gate is open | | once |
//! | owner | anywhere, while the template is stopped | | as above |
//!
//! Nothing is left in any case: all that the story has is a pipe, standard error, that ends with the
//! last process that has it. And none of those who go on holds more than before (`sync/toll.rs`).

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::child::Child;
use super::template::Template;
use super::template_server::{Next, TemplateServer};
use crate::error::Result;
use crate::sync::fault;
use crate::sync::faults::{self, STOPPED, say, say_known, told};
use crate::sync::toll::{Holdings, alone, toll};
use crate::sys::fork::fork;

const STARTED: &str = "process::faults::started";
const NOWHERE: &str = "nowhere";
/// Descriptors for a child: more than two messages take.
const MANY: usize = 600;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// What the started processes do. Not a test of its own.
#[test]
fn started() {
    match told().as_deref() {
        Some([who, _]) if who == "template" => serve(),
        Some([who, _, place, stop]) if who == "owner" => own(place, stop),
        None => {}
        other => panic!("{other:?}"),
    }
}

fn serve() {
    let socket = std::env::args().next_back().unwrap().parse().unwrap();
    let mut server = Some(TemplateServer::new(socket).unwrap());
    loop {
        let serving = server.as_mut().unwrap();
        let request = match serving.wait_request(soon()).unwrap() {
            Some(Next::Request(request)) => request,
            Some(Next::End) => std::process::exit(0),
            None => continue, // a signal
        };
        let child = fork(|| {
            drop(server.take());
            if request.is_known() {
                say(&format!("{} descriptors", request.into_fds().1.len()));
            }
            0
        });
        server.as_mut().unwrap().launched(child.unwrap()).unwrap();
    }
}

fn template(place: &str) -> Template {
    let (arguments, env) = faults::arguments(STARTED, &format!("template|{place}"));
    Template::start(c"/proc/self/exe", &arguments, Some(&env)).unwrap()
}

fn launch(template: &Template) -> Result<Child> {
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut launch = template.launch(b"payload", &[file.as_raw_fd(); MANY], b"")?;
    Ok(launch.wait_until(soon())?.expect("an answer in time"))
}

fn code(child: &Child) -> i32 {
    child.wait_until(Some(soon())).unwrap().expect("an end in time").code()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Asks a template for a child, and if it dies another one, as Python's `forkserver` does.
fn own(place: &str, stop: &str) {
    let before = Holdings::now();
    let doomed = template(place);
    if !stop.is_empty() {
        if stop == SERVING {
            assert_eq!(code(&launch(&doomed).unwrap()), 0);
        }
        doomed.process().signal(libc::SIGSTOP).unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", doomed.process().pid()));
        while !stat().unwrap().contains(") T ") {
            std::thread::yield_now();
        }
        fault("the template is stopped");
        if stop == FULL {
            return fill(&doomed);
        }
    }
    match launch(&doomed) {
        Ok(child) => {
            let code = code(&child);
            say_known();
            say(&format!("it ended with {code}"));
        }
        Err(error) => {
            say_known();
            say(&format!("{:?}", error.os_error().and_then(std::io::Error::raw_os_error)));
            let other = template(NOWHERE);
            say(&format!("another ended with {}", code(&launch(&other).unwrap())));
            other.stop(Duration::from_secs(20)).unwrap();
        }
    }
    if place.starts_with("child") {
        let pid = doomed.process().pid();
        let one = descriptors(pid);
        for _ in 0..3 {
            assert_eq!(code(&launch(&doomed).unwrap()), -9);
        }
        assert_eq!(descriptors(pid), one, "the template keeps something of a dead child");
        doomed.stop(Duration::from_secs(20)).unwrap();
    } else {
        assert_eq!(code(doomed.process()), -9, "killed at {place}");
    }
    drop(doomed);
    before.assert_kept(&place);
}

/// Asks until there is no room for one more request.
fn fill(stopped: &Template) {
    let mut launches = Vec::new();
    let error = loop {
        match stopped.launch(b"payload", &[], &[0; 4000]) {
            Ok(launch) => launches.push(launch),
            Err(error) => break error,
        }
    };
    assert!(launches.len() > 10, "only {} had room: {error}", launches.len());
    for mut launch in launches {
        assert!(launch.wait_until(soon()).is_err());
    }
    say(&format!("{:?}", error.os_error().and_then(std::io::Error::raw_os_error)));
}

/// Tells what was said until all processes had ended, in no order, and the signal that ended the owner;
/// and returns when the owner knew, or else when all had ended.
fn story(owner: &str, template: &str, stop: &str) -> (Vec<String>, Option<i32>, Duration) {
    let told = format!("owner|{owner}|{template}|{stop}");
    let story = faults::story(STARTED, &told);
    (story.lines, story.end.signal(), story.known.unwrap_or(story.over))
}

/// What a child says that runs.
const RAN: &str = "600 descriptors";
/// When a template is stopped.
const SERVING: &str = "while it serves";
const AT_ONCE: &str = "at once";
const FULL: &str = "while it is asked again and again";

/// Where a template dies, and what then becomes of the child that it was asked for.
fn places() -> [(&'static str, [&'static str; 3]); 6] {
    let asks_again = [RAN, "Some(32)", "another ended with 0"];
    let has_one_that_runs = [RAN, "it ended with 255", ""];
    [
        ("template: a request has come in part", asks_again),
        ("template: a request has come", asks_again),
        ("template: a child is forked, and not watched", asks_again),
        ("template: an answer is written, and not sent", asks_again),
        ("template: an answer is sent", has_one_that_runs),
        ("template: an end is known, and not reported", has_one_that_runs),
    ]
}

#[test]
fn a_child_whose_template_is_killed_runs_if_and_only_if_its_owner_has_it() {
    alone(|| {
        for (place, expected) in places() {
            toll(place, || {
                let (lines, signal, known) = story(NOWHERE, place, "");
                assert!(
                    lines.iter().eq(expected.iter().filter(|line| !line.is_empty())),
                    "{place}"
                );
                assert_eq!(signal, None, "{place}");
                known
            });
        }
    });
}

#[test]
fn a_template_that_stays_stopped_is_given_up_and_its_child_runs_once() {
    std::thread::scope(|scope| {
        for (place, expected) in places() {
            scope.spawn(move || {
                let (lines, signal, _) = story(NOWHERE, &format!("{STOPPED}{place}"), "");
                let expected = expected.iter().filter(|line| !line.is_empty());
                assert!(lines.iter().eq(expected), "{place}: {lines:?}");
                assert_eq!(signal, None, "{place}");
            });
        }
        let (lines, signal, _) = story(NOWHERE, NOWHERE, FULL);
        assert_eq!((lines, signal), (vec!["Some(32)".into()], None));
    });
}

#[test]
fn a_child_that_is_killed_at_its_gate_is_told_to_its_owner() {
    alone(|| {
        for place in ["child: it is forked, before its gate", "child: it has passed its gate"] {
            toll(place, || {
                let (lines, signal, known) = story(NOWHERE, place, "");
                assert_eq!((lines, signal), (vec!["it ended with -9".into()], None), "{place}");
                known
            });
        }
    });
}

#[test]
fn an_owner_that_is_killed_leaves_no_template_and_no_child() {
    alone(|| {
        for (place, runs) in [
            ("owner: a request is made, and not sent", 0),
            ("owner: a request is sent in part", 0),
            ("owner: a request is sent, and not noted", 0),
            ("owner: an answer is read, before the gate", 0),
            ("owner: a gate is open", 1),
        ] {
            toll(place, || {
                let (lines, signal, over) = story(place, NOWHERE, "");
                assert_eq!(signal, Some(9), "{place}");
                assert_eq!(lines, vec![RAN; runs], "{place}");
                over
            });
        }
    });
}

#[test]
fn a_stopped_template_ends_with_its_owner() {
    alone(|| {
        for (stop, ran) in [(SERVING, vec![RAN.to_string()]), (AT_ONCE, vec![])] {
            let place = "the template is stopped";
            toll(format!("{place} {stop}"), || {
                let (lines, signal, over) = story(place, NOWHERE, stop);
                assert_eq!((lines, signal), (ran.clone(), Some(9)), "{stop}");
                over
            });
        }
    });
}
