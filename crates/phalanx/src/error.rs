//! One error for the whole crate.
//!
//! The kind is private, so that a new one breaks no caller; ask with the `is_` questions and
//! [`Error::worker_died`]. Every message has a verb and an object: what was being done, to what.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::process::Exit;

mod shortage;

pub use shortage::hint;
pub(crate) use shortage::{in_call, is_shortage};

/// What went wrong.
///
/// Clones are cheap: one failure may be told to many.
#[derive(Clone)]
pub struct Error(Arc<Kind>);

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

enum Kind {
    /// The operating system refused: "failed to map memory: ...".
    Os {
        doing: &'static str,
        source: io::Error,
        /// What is short, and how to have more of it.
        hint: Option<String>,
    },
    TimedOut {
        doing: &'static str,
    },
    Closed {
        what: String,
    },
    /// The other end of a connection is closed.
    End {
        inside: bool,
    },
    Invalid {
        why: String,
    },
    /// What another process wrote made no sense.
    Corrupt {
        what: &'static str,
    },
    WorkerDied(WorkerDied),
    Ended(Ended),
    /// A task of ours failed inside its worker and said why.
    Task {
        message: String,
        trace: String,
    },
    /// The code that readies a worker failed there.
    Initializer {
        message: String,
        trace: String,
    },
    Codec {
        doing: &'static str,
        why: String,
    },
    Supervisor(SupervisorFailed),
}

/// The end of a supervisor whose children died too often.
#[derive(Clone, Debug)]
pub struct SupervisorFailed {
    /// The supervisor's name.
    pub name: String,
    /// So many restarts were allowed...
    pub intensity: usize,
    /// ... within this time.
    pub period: Duration,
    /// The deaths within that time, the oldest first; the last one was one too many. Of more than a
    /// hundred, the last hundred.
    pub deaths: Vec<ChildDied>,
}

/// The death of a child, as its supervisor tells it.
#[derive(Clone, Debug)]
pub struct ChildDied {
    /// The child's name.
    pub child: String,
    /// The process id that it had; `None` where it could not even be started.
    pub pid: Option<u32>,
    /// How it ended; `None` where it could not be started.
    pub exit: Option<Exit>,
    /// What is known of the reason: a traceback, a panic, why it could not be started; or empty.
    pub trace: String,
}

impl fmt::Display for ChildDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.child)?;
        match (self.pid, self.exit) {
            (Some(pid), Some(exit)) => write!(f, " (pid {pid}) {exit}")?,
            _ => f.write_str(" could not be started")?,
        }
        match self.trace.trim_end().lines().next_back() {
            Some(line) => write!(f, ": {}", line.trim()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for SupervisorFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, intensity, period, deaths } = self;
        let seconds = period.as_secs_f64();
        write!(f, "supervisor `{name}` gave up: more than {intensity} restarts in {seconds} s")?;
        deaths.iter().try_for_each(|death| write!(f, "\n  {death}"))
    }
}

/// Why a task was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has run for too long.
    TimedOut,
    /// Nobody wants it any more.
    Cancelled,
    /// Its worker has more memory in use than it may have.
    OverMemory,
    /// It has waited for too long.
    NotBegun,
}

/// The end of a task that was to end.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Why it was to end.
    pub why: Why,
    /// The time that it had, if that is why.
    pub limit: Option<Duration>,
    /// Bytes of memory that its worker had in use, and how many it may have, if that is why.
    pub memory: Option<(u64, u64)>,
    /// The worker that had begun it.
    pub pid: Option<u32>,
    /// How that worker ended, if nothing else helped.
    pub exit: Option<Exit>,
    /// Where the task was when it was told to end, if that is known. In Rust that is a backtrace, which a
    /// worker may fail to write, and without debug information has names at the most.
    pub stack: String,
}

impl Ended {
    /// As it is told to the task itself.
    #[must_use]
    pub fn here(why: Why) -> Self {
        Self { pid: Some(std::process::id()), ..Self::waiting(why, None) }
    }

    /// Of a task that had not begun.
    pub(crate) fn waiting(why: Why, limit: Option<Duration>) -> Self {
        Self { why, limit, memory: None, pid: None, exit: None, stack: String::new() }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.limit.unwrap_or_default().as_secs_f64();
        match (self.why, self.pid) {
            (Why::OverMemory, pid) => match self.memory {
                None => f.write_str("this task has more memory in use than its worker may have")?,
                Some((used, allowed)) => write!(
                    f,
                    "a task had {used} bytes of memory in use, more than {allowed}, in worker {}",
                    pid.unwrap_or(0)
                )?,
            },
            (Why::Cancelled, None) => f.write_str("a task was cancelled before it began")?,
            (Why::Cancelled, Some(pid)) => write!(f, "a task was cancelled in worker {pid}")?,
            (Why::NotBegun, _) => write!(f, "a task did not begin within {seconds} s")?,
            (Why::TimedOut, _) if self.limit.is_none() => {
                f.write_str("this task's time is over")?
            }
            (Why::TimedOut, pid) => {
                write!(f, "a task ran for more than {seconds} s in worker {}", pid.unwrap_or(0))?;
            }
        }
        match self.exit {
            Some(exit) => write!(f, ", which {exit} for it"),
            None => Ok(()),
        }
    }
}

/// The death of a worker, as the task that it was running is told.
#[derive(Clone, Debug)]
pub struct WorkerDied {
    /// The process id that the worker had.
    pub pid: u32,
    /// How it ended; `None` where that could not be learned.
    pub exit: Option<Exit>,
    /// What it was doing: "running a task", "starting".
    pub doing: &'static str,
    /// The name of the task, where it is known.
    pub task: Option<&'static str>,
    /// The deaths of the workers that had run the task before, the oldest first.
    pub earlier: Vec<WorkerDied>,
    /// Where its threads were, if it crashed and could write that down as it died; else empty. In Rust that
    /// is the backtrace of the thread that crashed; where its stack was full that thread was the task's.
    pub stack: String,
}

impl WorkerDied {
    pub(crate) fn new(pid: u32, exit: Option<Exit>, doing: &'static str) -> Self {
        Self { pid, exit, doing, task: None, earlier: Vec::new(), stack: String::new() }
    }

    pub(crate) fn at(self, task: &'static str) -> Self {
        Self { task: Some(task), ..self }
    }
}

impl fmt::Display for WorkerDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} ", self.pid)?;
        match self.exit {
            Some(exit) => write!(f, "{exit}")?,
            None => f.write_str("died")?,
        }
        write!(f, " while {}", self.doing)?;
        if let Some(task) = self.task {
            write!(f, ", `{task}`")?;
        }
        if self.exit.is_some_and(|exit| exit.signal() == Some(libc::SIGKILL)) {
            f.write_str(" (perhaps by the kernel's out-of-memory killer: see dmesg)")?;
        }
        for (count, died) in self.earlier.iter().rev().enumerate() {
            f.write_str(if count == 0 { ", as before it worker " } else { ", worker " })?;
            match died.exit {
                Some(exit) => write!(f, "{} {exit}", died.pid)?,
                None => write!(f, "{} died", died.pid)?,
            }
        }
        Ok(())
    }
}

/// The death of a process that held what another one has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerDied {
    /// The process id that the holder had.
    pub pid: u32,
    /// How it ended; `None` where that could not be learned, as its parent knows by now.
    pub exit: Option<Exit>,
}

impl OwnerDied {
    /// `status` as waitpid(2) gives it.
    pub(crate) fn new(pid: u32, status: Option<i32>) -> Self {
        Self { pid, exit: status.map(Exit::from_wait_status) }
    }
}

impl fmt::Display for OwnerDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ", self.pid)?;
        match self.exit {
            Some(exit) => write!(f, "{exit}")?,
            None => f.write_str("ended")?,
        }
        f.write_str(" while it held this; what it protects may be half changed")
    }
}

impl Error {
    fn new(kind: Kind) -> Self {
        Self(Arc::new(kind))
    }

    pub(crate) fn os(doing: &'static str, source: impl Into<io::Error>) -> Self {
        let (source, hint) = shortage::explain(source.into());
        Self::new(Kind::Os { doing, source, hint })
    }

    pub(crate) fn timed_out(doing: &'static str) -> Self {
        Self::new(Kind::TimedOut { doing })
    }

    pub(crate) fn closed(what: impl Into<String>) -> Self {
        Self::new(Kind::Closed { what: what.into() })
    }

    pub(crate) fn end(inside: bool) -> Self {
        Self::new(Kind::End { inside })
    }

    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self::new(Kind::Invalid { why: why.into() })
    }

    pub(crate) fn corrupt(what: &'static str) -> Self {
        Self::new(Kind::Corrupt { what })
    }

    pub(crate) fn task(message: String, trace: String) -> Self {
        Self::new(Kind::Task { message, trace })
    }

    pub(crate) fn initializer(message: String, trace: String) -> Self {
        Self::new(Kind::Initializer { message, trace })
    }

    pub(crate) fn codec(doing: &'static str, why: impl fmt::Display) -> Self {
        Self::new(Kind::Codec { doing, why: why.to_string() })
    }

    /// The operating system's error, if it is one.
    #[must_use]
    pub fn os_error(&self) -> Option<&io::Error> {
        match &*self.0 {
            Kind::Os { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Did a deadline pass first?
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match &*self.0 {
            Kind::TimedOut { .. } => true,
            Kind::Ended(ended) => matches!(ended.why, Why::TimedOut | Why::NotBegun),
            _ => false,
        }
    }

    /// Was the task cancelled?
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(&*self.0, Kind::Ended(ended) if ended.why == Why::Cancelled)
    }

    /// Was the task ended because its worker had more memory in use than it may have?
    #[must_use]
    pub fn is_over_memory(&self) -> bool {
        matches!(&*self.0, Kind::Ended(ended) if ended.why == Why::OverMemory)
    }

    /// How the task was ended, if it was: because its time was over, because it was cancelled, or
    /// because its worker had too much memory in use.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        match &*self.0 {
            Kind::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Was the object closed, or does it belong to the process that this one was forked from?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(&*self.0, Kind::Closed { .. })
    }

    /// Is there nothing more to receive, since nobody has the other end any more?
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(&*self.0, Kind::End { .. })
    }

    /// Did it end in the middle of a message?
    #[must_use]
    pub fn is_end_inside(&self) -> bool {
        matches!(&*self.0, Kind::End { inside: true })
    }

    /// Was an argument out of its range?
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(&*self.0, Kind::Invalid { .. })
    }

    /// Did the task itself fail: did it panic, or raise?
    #[must_use]
    pub fn is_task_failure(&self) -> bool {
        matches!(&*self.0, Kind::Task { .. })
    }

    /// Was there a value that could not be written for another process, or not be read there?
    #[must_use]
    pub fn is_codec(&self) -> bool {
        matches!(&*self.0, Kind::Codec { .. })
    }

    /// Did the initializer of a worker fail?
    #[must_use]
    pub fn is_initializer_failure(&self) -> bool {
        matches!(&*self.0, Kind::Initializer { .. })
    }

    /// The death that lost this task, if a death did.
    #[must_use]
    pub fn worker_died(&self) -> Option<&WorkerDied> {
        match &*self.0 {
            Kind::WorkerDied(died) => Some(died),
            _ => None,
        }
    }

    /// The deaths that ended a supervisor, if that is what this is.
    #[must_use]
    pub fn supervisor_failed(&self) -> Option<&SupervisorFailed> {
        match &*self.0 {
            Kind::Supervisor(failed) => Some(failed),
            _ => None,
        }
    }

    /// Where the task failed: its backtrace, as text; empty where there is none.
    #[must_use]
    pub fn trace(&self) -> &str {
        match &*self.0 {
            Kind::Task { trace, .. } | Kind::Initializer { trace, .. } => trace,
            _ => "",
        }
    }
}

impl From<WorkerDied> for Error {
    fn from(died: WorkerDied) -> Self {
        Self::new(Kind::WorkerDied(died))
    }
}

impl From<Ended> for Error {
    fn from(ended: Ended) -> Self {
        Self::new(Kind::Ended(ended))
    }
}

impl From<SupervisorFailed> for Error {
    fn from(failed: SupervisorFailed) -> Self {
        Self::new(Kind::Supervisor(failed))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Os { doing, source, hint } => {
                write!(f, "failed to {doing}: {source}")?;
                hint.iter().try_for_each(|hint| write!(f, ": {hint}"))
            }
            Kind::TimedOut { doing } => write!(f, "timed out waiting for {doing}"),
            Kind::Closed { what } => f.write_str(what),
            Kind::End { inside: false } => f.write_str("the other end is closed"),
            Kind::End { inside: true } => f.write_str("got end of file during message"),
            Kind::Invalid { why } => f.write_str(why),
            Kind::Corrupt { what } => write!(f, "another process wrote nonsense into {what}"),
            Kind::WorkerDied(died) => died.fmt(f),
            Kind::Ended(ended) => ended.fmt(f),
            Kind::Task { message, .. } => f.write_str(message),
            Kind::Initializer { message, .. } => {
                write!(f, "the initializer of a worker failed: {message}")
            }
            Kind::Codec { doing, why } => write!(f, "failed to {doing}: {why}"),
            Kind::Supervisor(failed) => failed.fmt(f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")?;
        if self.trace().is_empty() { Ok(()) } else { write!(f, "\n{}", self.trace()) }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            Kind::Os { source, .. } => Some(source),
            _ => None,
        }
    }
}
