//! How a task failed in its worker, told to its caller.
//!
//! A panic is caught around the task; its place and backtrace are seen only by the panic hook, which
//! leaves them here for the thread that catches.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What a worker says of a task that did not return.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Panic {
        message: String,
        place: String,
        trace: String,
    },
    /// The argument arrived and could not be read.
    Argument {
        why: String,
    },
    /// The result could not be written.
    Result {
        why: String,
    },
    /// There is no such function here.
    Place,
}

impl Failure {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // Strings into memory: there is nothing that could fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let why = |error: postcard::Error| Self::Result { why: error.to_string() };
        postcard::from_bytes(bytes).unwrap_or_else(why)
    }

    /// What the caller of `task` is told.
    pub(crate) fn of_task(self, task: &str) -> Error {
        match self {
            Self::Panic { message, place, trace } => {
                Error::task(format!("`{task}` panicked{}: {message}", at(&place)), trace)
            }
            Self::Argument { why } => {
                Error::codec("read an argument", format!("of `{task}`: {why}"))
            }
            Self::Result { why } => Error::codec("write a result", format!("of `{task}`: {why}")),
            Self::Place => Error::invalid(format!("the worker has no task `{task}`")),
        }
    }

    /// Message and backtrace, for one who does not know the task's name.
    pub(crate) fn into_text(self) -> (String, String) {
        match self {
            Self::Panic { message, place, trace } => {
                (format!("it panicked{}: {message}", at(&place)), trace)
            }
            Self::Argument { why } => {
                (format!("its argument could not be read: {why}"), String::new())
            }
            Self::Result { why } => {
                (format!("its result could not be written: {why}"), String::new())
            }
            Self::Place => ("it is not in this program".into(), String::new()),
        }
    }
}

fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(" at {place}") }
}

/// Where a panic happened, as the hook saw it.
struct Seen {
    place: String,
    trace: Option<Backtrace>,
}

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// Sets the hook that sees where a task panics. With `silent`, it prints nothing: the caller is told.
pub(crate) fn watch_panics(silent: bool) {
    let before = panic::take_hook();
    let wanted = std::env::var_os("RUST_BACKTRACE").is_none_or(|value| value != "0");
    panic::set_hook(Box::new(move |info| {
        if IN_TASK.get() {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let trace = wanted.then(Backtrace::force_capture);
            SEEN.set(Some(Seen { place, trace }));
        }
        // Where a panic aborts there is nobody to tell the caller.
        if !IN_TASK.get() || !silent || cfg!(panic = "abort") {
            before(info);
        }
    }));
}

/// Runs a task, and catches its panic.
pub(crate) fn caught<T>(task: impl FnOnce() -> T) -> Result<T, Failure> {
    SEEN.take();
    IN_TASK.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(task));
    IN_TASK.set(false);
    result.map_err(|payload| {
        let message = message(&*payload);
        // Dropping it could panic again.
        std::mem::forget(payload);
        match SEEN.take() {
            Some(Seen { place, trace }) => {
                let trace = trace.map(|trace| trimmed(&trace.to_string())).unwrap_or_default();
                Failure::Panic { message, place, trace }
            }
            None => Failure::Panic { message, place: String::new(), trace: String::new() },
        }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(with a value that is no text)".into())
}

/// Of where a worker is, the part that is its task's own.
pub(crate) fn below_task(trace: &Backtrace) -> String {
    trimmed(&trace.to_string())
}

/// The frames between those of the panic itself, or of the handler that looks, and ours.
fn trimmed(trace: &str) -> String {
    let lines: Vec<&str> = trace.lines().collect();
    let is_frame = |line: &&str| line.trim_start().starts_with(|c: char| c.is_ascii_digit());
    let frames: Vec<usize> = (0..lines.len()).filter(|at| is_frame(&lines[*at])).collect();
    let first = frames.iter().rposition(|at| LOOKING.iter().any(|name| lines[*at].contains(name)));
    let start = first.and_then(|frame| frames.get(frame + 1)).copied().unwrap_or(0);
    // A frame has its file on the line after its name, if that is known.
    let ours =
        lines.iter().skip(start).position(|line| OURS.iter().any(|name| line.contains(name)));
    let end = ours.map_or(lines.len(), |line| {
        frames.iter().copied().rfind(|frame| *frame <= start + line).unwrap_or(0)
    });
    // A task that the compiler has put into its caller has no frame but that one.
    let next = frames.iter().copied().find(|frame| *frame > start).unwrap_or(lines.len());
    lines.get(start..end.max(next)).unwrap_or(&lines).join("\n")
}

/// What is in the frames between a panic and its hook, or a task and the handler that looks at it.
const LOOKING: [&str; 7] = [
    "phalanx::sys::linux::stack::",
    "__restore_rt",
    "rust_begin_unwind",
    "core::panicking::",
    "core::option::expect_failed",
    "core::option::unwrap_failed",
    "core::result::unwrap_failed",
];

/// What is in the frames of whoever calls a task.
const OURS: [&str; 2] = ["phalanx::sys::linux::code::", "phalanx/src/sys/linux/code.rs"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_backtrace_the_part_that_is_the_tasks_own_is_kept() {
        let trace = "   0: std::backtrace\n   1: __rustc::rust_begin_unwind\n   2: core::panicking::panic\n             \
                     at /rustc/panicking.rs:1\n   3: app::f\n             at src/main.rs:1\n   4: run<fn()>\n             \
                     at phalanx/src/sys/linux/code.rs:9\n   5: main";
        assert_eq!(trimmed(trace), "   3: app::f\n             at src/main.rs:1");
        assert_eq!(trimmed("   0: something\n   1: else"), "   0: something\n   1: else");
        let inlined =
            "   0: core::panicking::panic\n   1: phalanx::sys::linux::code::entry\n   2: main";
        assert_eq!(trimmed(inlined), "   1: phalanx::sys::linux::code::entry");
        assert_eq!(trimmed(""), "");
    }

    #[test]
    fn a_panic_is_caught_with_its_message() {
        let failure = caught(|| panic!("of {}", "sorts")).unwrap_err();
        assert!(matches!(&failure, Failure::Panic { message, .. } if message == "of sorts"));
        let error = Failure::from_bytes(&failure.to_bytes()).of_task("f");
        assert!(error.is_task_failure() && error.to_string().ends_with(": of sorts"), "{error}");
    }
}
