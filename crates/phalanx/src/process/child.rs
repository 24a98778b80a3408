//! A child process, and the end of it.
//!
//! A child is watched through its pidfd, which becomes readable when it has ended and names no
//! other process ever. Its exit status is taken once, by whoever looks first, and remembered. The
//! status of a child that a template forked comes from there (see `template.rs`).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::exit::Exit;
use super::template::Link;
use crate::error::{Error, Result};
use crate::sys::child::{self as os, Surroundings};
use crate::sys::socket::wait_readable;
use crate::sys::{ForkClosed, fork, kill_tree_of, kill_with_owner, let_be};

/// A process that this one started, or had started.
///
/// Dropping it neither ends the process nor waits for it.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    parent: Parent,
    exit: OnceLock<Exit>,
    /// Held while the status is taken: the second of two threads would find no child.
    taking: Mutex<()>,
    generation: u32,
}

/// Who can take the exit status.
#[derive(Debug)]
pub(super) enum Parent {
    Us,
    Template { link: Arc<Link>, id: u64 },
}

/// How long a template may take to report an end that the pidfd shows already.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

impl Child {
    pub(super) fn new(pid: u32, pidfd: OwnedFd, parent: Parent) -> Self {
        let (exit, taking) = Default::default();
        Self { pid, pidfd, parent, exit, taking, generation: fork::generation() }
    }

    /// The child `pid`, which the caller has just forked and not waited for.
    ///
    /// # Errors
    ///
    /// When it is gone, or there is no descriptor left for it.
    pub fn of_pid(pid: u32) -> Result<Self> {
        let pidfd = os::open(pid).map_err(|e| Error::os("watch a child", e))?;
        Ok(Self::new(pid, pidfd, Parent::Us))
    }

    /// Runs the program `path` with the arguments `args` (the first is its name).
    ///
    /// Without `env` it gets this process's environment. The descriptors `fds` stay open there at
    /// their numbers; others above 2 are closed. SIGINT is blocked there: a Ctrl-C waits until the
    /// program is ready for it and unblocks it.
    ///
    /// # Errors
    ///
    /// When the program cannot be run, or there is no descriptor left to watch it.
    pub fn spawn(
        path: &CStr,
        args: &[CString],
        env: Option<&[CString]>,
        fds: &[RawFd],
    ) -> Result<Self> {
        Self::spawn_in(path, args, env, fds, &Surroundings { held: true, ..Default::default() })
    }

    /// As [`spawn`](Self::spawn), with other surroundings than ours.
    pub(crate) fn spawn_in(
        path: &CStr,
        args: &[CString],
        env: Option<&[CString]>,
        fds: &[RawFd],
        surroundings: &Surroundings<'_>,
    ) -> Result<Self> {
        let pid = os::spawn(path, args, env, fds, surroundings);
        let pid = pid.map_err(|e| Error::os("run a program", e))?;
        // Who is told that there is no child has none.
        Self::of_pid(pid).inspect_err(|_| os::kill_and_reap(pid))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How the process ended, or `None` while it runs.
    ///
    /// Where the status cannot be learned, as somebody else took it, the code is 255. Of one that has
    /// just ended, a template's report is awaited for a moment.
    ///
    /// # Errors
    ///
    /// When the system refuses to tell.
    pub fn try_exit(&self) -> Result<Option<Exit>> {
        self.exit_by(Instant::now() + REPORT_TIMEOUT)
    }

    /// How the process ended, if it has and that is known in time.
    fn exit_by(&self, deadline: Instant) -> Result<Option<Exit>> {
        if let Some(exit) = self.exit.get() {
            return Ok(Some(*exit));
        }
        if self.generation != fork::generation() {
            // A forked child is not the parent. Another thread may have held the lock at the fork.
            return Ok(self.has_ended()?.then_some(Exit::UNKNOWN));
        }
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = self.exit.get() {
            return Ok(Some(*exit));
        }
        let exit = match &self.parent {
            Parent::Us => self.reap()?,
            Parent::Template { .. } if !self.has_ended()? => None,
            Parent::Template { link, id } => link.wait_exit(*id, deadline)?,
        };
        Ok(exit.map(|exit| *self.exit.get_or_init(|| exit)))
    }

    /// Waits until the process has ended; `None` when the deadline came first, or a signal.
    ///
    /// Without a deadline it waits for ever, through signals. A template that does not report an end, as
    /// it was stopped, delays nobody beyond his deadline.
    ///
    /// # Errors
    ///
    /// As [`try_exit`](Self::try_exit).
    pub fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<Exit>> {
        loop {
            let soon = Instant::now() + REPORT_TIMEOUT;
            if let Some(exit) = self.exit_by(deadline.map_or(soon, |at| at.min(soon)))? {
                return Ok(Some(exit));
            }
            // The process itself may have ended long ago.
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(None);
            }
            if !wait_readable(&self.pidfd, deadline)
                .map_err(|e| Error::os("wait for a child", e))?
            {
                return Ok(None);
            }
        }
    }

    /// Sends it a signal; nothing happens if it has ended.
    ///
    /// # Errors
    ///
    /// When there is no such signal, or we may not send it.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if self.exit.get().is_some() {
            return Ok(());
        }
        os::signal(&self.pidfd, signal).map_err(|e| Error::os("send a signal", e))
    }

    /// What it starts in its process group ends with it, by the kernel's hand: see
    /// `sys/linux/lifeline.rs`. Nothing happens if it has ended.
    pub(crate) fn take_tree_along(&self, lifeline: &ForkClosed) -> Result<()> {
        self.tied(lifeline, kill_tree_of(self.pid, lifeline), "watch over a child's tree")
    }

    /// The kernel kills it when our end of the lifeline closes. Nothing happens if it has ended.
    pub(super) fn end_with_us(&self, lifeline: &OwnedFd) -> Result<()> {
        self.tied(lifeline, kill_with_owner(self.pid, lifeline), "tie a process to this one")
    }

    fn tied(&self, end: &impl AsRawFd, tied: io::Result<()>, doing: &'static str) -> Result<()> {
        // Alive after that, it was this process and no later bearer of its number that was meant.
        if tied.is_err() || self.has_ended()? {
            let _ = let_be(end);
        }
        match tied {
            Err(error) if !self.has_ended()? => Err(Error::os(doing, error)),
            _ => Ok(()),
        }
    }

    fn has_ended(&self) -> Result<bool> {
        wait_readable(&self.pidfd, Some(Instant::now()))
            .map_err(|e| Error::os("look after a child", e))
    }

    fn reap(&self) -> Result<Option<Exit>> {
        match os::try_reap(&self.pidfd) {
            Ok(status) => Ok(status.map(Exit::from_wait_status)),
            // Not ours to reap: somebody's waitpid(-1) took it, or SIGCHLD is ignored.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                Ok(self.has_ended()?.then_some(Exit::UNKNOWN))
            }
            Err(error) => Err(Error::os("wait for a child", error)),
        }
    }
}

impl AsFd for Child {
    /// The pidfd: readable from the end of the process on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Parent::Template { link, id } = &self.parent {
            link.forget(*id);
        }
    }
}

/// This process, as its children watch it: a descriptor that becomes readable when it ends.
#[derive(Debug)]
pub struct OwnPidfd {
    fd: OwnedFd,
    generation: u32,
}

impl OwnPidfd {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub fn open() -> Result<Self> {
        let generation = fork::generation();
        let fd = os::open(std::process::id()).map_err(|e| Error::os("watch this process", e))?;
        Ok(Self { fd, generation })
    }

    /// Is it this process, and not the one that this was forked from?
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }
}

impl AsFd for OwnPidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
