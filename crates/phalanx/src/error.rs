//! One error for the whole crate.
//!
//! The kind is private, so that a new one breaks no caller; ask with the `is_` questions and
//! [`Error::worker_died`]. Every message has a verb and an object: what was being done, to what.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::process::Exit;

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
}

impl WorkerDied {
    pub(crate) fn new(pid: u32, exit: Option<Exit>, doing: &'static str) -> Self {
        Self { pid, exit, doing, task: None }
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
        Self::new(Kind::Os { doing, source: source.into() })
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
        matches!(&*self.0, Kind::TimedOut { .. })
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Os { doing, source } => write!(f, "failed to {doing}: {source}"),
            Kind::TimedOut { doing } => write!(f, "timed out waiting for {doing}"),
            Kind::Closed { what } => f.write_str(what),
            Kind::End { inside: false } => f.write_str("the other end is closed"),
            Kind::End { inside: true } => f.write_str("got end of file during message"),
            Kind::Invalid { why } => f.write_str(why),
            Kind::Corrupt { what } => write!(f, "another process wrote nonsense into {what}"),
            Kind::WorkerDied(died) => died.fmt(f),
            Kind::Task { message, .. } => f.write_str(message),
            Kind::Initializer { message, .. } => {
                write!(f, "the initializer of a worker failed: {message}")
            }
            Kind::Codec { doing, why } => write!(f, "failed to {doing}: {why}"),
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
