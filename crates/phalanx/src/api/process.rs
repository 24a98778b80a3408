//! `Process`: one process for one task.
//!
//! The argument waits in memory that nobody can change any more, the result is written into memory
//! that the parent reads after the end. So neither side ever waits for the other to read.
//!
//! | the result's first byte, which is written last | meaning |
//! | --- | --- |
//! | 0, or not there | the process died before its task had ended and all was written |
//! | `RETURNED` | the bytes after it are the result |
//! | `FAILED` | the bytes after it tell how the task failed |

use std::fmt;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::failure::watch_panics;
use super::process_builder::ProcessBuilder;
use super::start::Tie;
use super::task;
use super::value::Value;
use super::worker::{read_from, run as run_task};
use crate::channel::Tickets;
use crate::error::{Error, Result, WorkerDied};
use crate::pool::{Outcome, Parcel};
use crate::process::keep_to;
use crate::process::{Child, Exit};

const RETURNED: u8 = 1;
const FAILED: u8 = 2;

/// The exit code of a process whose task panicked, as that of a program whose `main` did.
const PANICKED: i32 = 101;

/// A process that runs one task.
///
/// ```
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let process = phalanx::Process::spawn(|n: u64| (1..=n).product::<u64>(), 20)?;
///     assert_eq!(process.join()?, 2_432_902_008_176_640_000);
///     Ok(())
/// }
/// ```
///
/// It is like a [`std::thread`] with memory of its own: it prints a panic to stderr and ends with
/// code 101, and [`join`](Self::join) gives the panic as an error. It is like a
/// [`std::process::Child`] in its end: it is neither killed nor waited for when the `Process` is dropped,
/// and it outlives its parent. (Workers of a [`Pool`](crate::Pool) do not.) It leaves no zombie: one
/// that was dropped is reaped when the next is spawned.
pub struct Process<R> {
    pub(super) child: Option<Arc<Child>>,
    /// Where its result is.
    pub(super) output: File,
    pub(super) task: &'static str,
    /// For the descriptors in its argument.
    pub(super) tickets: Tickets,
    pub(super) stdin: Option<PipeWriter>,
    pub(super) stdout: Option<PipeReader>,
    pub(super) stderr: Option<PipeReader>,
    pub(super) result: PhantomData<fn() -> R>,
}

/// Processes that were dropped while they ran.
static DROPPED: Mutex<Vec<(Arc<Child>, Tickets)>> = Mutex::new(Vec::new());

impl<R: Value> Process<R> {
    /// Starts a process that calls `task` with `argument`.
    ///
    /// # Errors
    ///
    /// If [`init`](crate::init) has not been called, if the argument cannot be written, or if the
    /// system refuses.
    pub fn spawn<F, A>(task: F, argument: A) -> Result<Self>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
    {
        Process::builder().spawn(task, argument)
    }

    /// Waits for the end of the process and returns what the task returned.
    ///
    /// # Errors
    ///
    /// If the task panicked, or the process died without its result: then the error tells
    /// [how](crate::WorkerDied).
    pub fn join(self) -> Result<R> {
        self.wait_until(None)
    }

    /// As [`join`](Self::join), but for so long at the most. It can be called again, also after the
    /// result has come.
    ///
    /// # Errors
    ///
    /// As `join`, or a [timeout](Error::is_timeout).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<R> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<R> {
        loop {
            // A signal handler may end the wait early.
            if let Some(exit) = self.child().wait_until(deadline)? {
                return task::result(self.outcome(exit)?, self.task);
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(Error::timed_out("a process"));
            }
        }
    }

    fn outcome(&self, exit: Exit) -> Result<Outcome> {
        Ok(match read_from(&self.output, 0, Some(1))?.first() {
            Some(&RETURNED) => Outcome::Returned(Parcel::plain(read_from(&self.output, 1, None)?)),
            Some(&FAILED) => Outcome::Failed(Parcel::plain(read_from(&self.output, 1, None)?)),
            _ => Outcome::Lost(WorkerDied::new(self.pid(), Some(exit), "running its task")),
        })
    }
}

/// Readable from the process's end on: to be waited for among other things, as by
/// [`Select`](crate::channel::Select).
impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child().as_fd()
    }
}

impl Process<()> {
    /// A process that is described step by step: environment, directory, standard streams,
    /// niceness, CPUs, limits.
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::default()
    }
}

impl<R> Process<R> {
    /// The other end of the standard input, if it was to be [piped](crate::Stdio::piped) and was
    /// not taken yet.
    pub fn take_stdin(&mut self) -> Option<PipeWriter> {
        self.stdin.take()
    }

    /// The other end of the standard output, as [`take_stdin`](Self::take_stdin).
    pub fn take_stdout(&mut self) -> Option<PipeReader> {
        self.stdout.take()
    }

    /// The other end of the standard error, as [`take_stdin`](Self::take_stdin).
    pub fn take_stderr(&mut self) -> Option<PipeReader> {
        self.stderr.take()
    }

    pub(super) fn child(&self) -> &Arc<Child> {
        self.child.as_ref().expect("taken by drop only")
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child().pid()
    }

    /// Does the process still run?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.exit().is_none()
    }

    /// How the process ended; `None` while it runs.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.child().try_exit().ok().flatten()
    }

    /// Ends the process with SIGKILL; nothing happens if it has ended.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn kill(&self) -> Result<()> {
        self.child().signal(libc::SIGKILL)
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Process");
        debug.field("pid", &self.pid()).field("task", &self.task).finish_non_exhaustive()
    }
}

impl<R> Drop for Process<R> {
    fn drop(&mut self) {
        let running = self.child.take().filter(|child| matches!(child.try_exit(), Ok(None)));
        dropped().extend(running.map(|child| (child, std::mem::take(&mut self.tickets))));
    }
}

/// Reaps those of the dropped that have ended.
pub(super) fn reap_dropped() {
    dropped().retain(|(child, _)| matches!(child.try_exit(), Ok(None)));
}

fn dropped() -> std::sync::MutexGuard<'static, Vec<(Arc<Child>, Tickets)>> {
    DROPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The child's part. Returns the exit code.
pub(super) fn run(tie: Option<Tie>, fds: Vec<OwnedFd>) -> Result<i32> {
    let mut fds = fds.into_iter().map(File::from);
    let (Some(payload), Some(output)) = (fds.next(), fds.next()) else {
        return Err(Error::corrupt("a process's orders"));
    };
    if let Some(Tie { tree }) = tie {
        let lifeline = fds.next().ok_or_else(|| Error::corrupt("a child's orders"))?;
        keep_to(lifeline.as_raw_fd(), tree)?;
    }
    if let Some(mut ready) = fds.next() {
        // Nothing comes if the parent could not set us up, or has ended.
        let mut byte = [0];
        if ready.read_exact(&mut byte).is_err() {
            return Ok(1);
        }
    }
    let bytes = read_from(&payload, 0, None)?;
    drop(payload);
    watch_panics(false);
    let (bytes, first, code) = match run_task(bytes) {
        Ok(result) => (result, RETURNED, 0),
        Err(failure) => (failure, FAILED, PANICKED),
    };
    let written = output.write_all_at(&bytes, 1).and_then(|()| output.write_all_at(&[first], 0));
    written.map_err(|e| Error::os("write a result", e))?;
    Ok(code)
}
