//! Workers die with their owner, however it died.
//!
//! A lifeline is a pipe that nobody writes to. The owner holds the only write end; the worker
//! asks the kernel to send it SIGKILL when something happens on the read end (`F_SETSIG` in
//! fcntl(2)), and the only thing that can happen is that the owner is gone. Unlike
//! `PR_SET_PDEATHSIG` this needs no parenthood, and does not follow the *thread* that forked.
//! It costs the worker one descriptor, and no thread.
//!
//! # The tree below a worker
//!
//! Where what a worker has started is to end with it, the worker leads a process group of its own,
//! and the same pipe carries the signal to all of it. Each end names the group as its owner, by the
//! kernel's own reference to it and not by a number that somebody else may have later:
//!
//! | who ends | what the kernel does |
//! | --- | --- |
//! | the owner | the read end has lost its last writer: SIGKILL to the group, worker and all |
//! | the worker, and nobody else has the read end | the write end has lost its last reader: SIGKILL to what is left of the group |
//! | the worker, whose forked child has the read end, too | nothing yet; the owner sees the end, and closes the write end: as in the first line |
//!
//! The kernel signals a group under the lock under which fork(2) adds to it, and a process that has
//! SIGKILL pending cannot fork: so there is no race between looking and killing. Who leaves the group
//! (`setsid`) stays: that is how a program says that it is to go on.
//!
//! # A template
//!
//! The owner of a template ties it from outside, so that it ends even if it never comes to run a line of
//! ours. It has imported other people's modules, whose exit handlers are to run as long as it can run
//! them. So the signal is another while it waits for work: a SIGCONT, which does nothing to a process
//! that runs, and which lets one that was stopped read the end of its socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getpgrp, getpid, setpgid};

use super::fork::{ForkClosed, undivided};
use super::socket::wait_readable;

/// The owner's end and the worker's end.
pub(crate) fn lifeline() -> io::Result<(ForkClosed, OwnedFd)> {
    undivided(|| {
        let (worker, owner) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((ForkClosed::new(owner), worker))
    })
}

/// A pipe whose write end forked children inherit, and whose read end they do not: once its maker
/// has closed the write end, the read end is readable when the last of them has ended, or runs
/// another program.
pub(crate) fn heirloom() -> io::Result<(ForkClosed, OwnedFd)> {
    undivided(|| {
        let (owner, heirs) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((ForkClosed::new(owner), heirs))
    })
}

/// From now on the kernel kills this process when the owner's end of `lifeline` closes; with `tree`,
/// all of the process group that it leads from now on.
///
/// If it is closed already, the process ends here.
pub(crate) fn die_with_owner(lifeline: OwnedFd, tree: bool) -> io::Result<()> {
    static KEPT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

    let pid = std::process::id().cast_signed();
    // A session's leader leads its group, and is not asked.
    if tree && getpgrp() != getpid() {
        setpgid(None, None)?;
    }
    kill_when_closed(&lifeline, if tree { -pid } else { pid }, libc::O_NONBLOCK)?;
    // An owner that died before the line above rings no more, so look once.
    if wait_readable(&lifeline, Some(Instant::now()))? {
        std::process::exit(1);
    }
    KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(lifeline);
    Ok(())
}

/// From now on the kernel kills the process group that `leader` leads, or will lead, when the worker's
/// end of the lifeline closes. The caller knows that `leader` has not ended, or lets go again.
pub(crate) fn kill_tree_of(leader: u32, owner: &ForkClosed) -> io::Result<()> {
    kill_when_closed(owner, -leader.cast_signed(), 0)
}

/// As [`die_with_owner`], for another process: from now on the kernel kills `pid` when our end of
/// `lifeline` closes. The caller knows that `pid` has not ended, or lets go again.
pub(crate) fn kill_with_owner(pid: u32, lifeline: &OwnedFd) -> io::Result<()> {
    kill_when_closed(lifeline, pid.cast_signed(), libc::O_NONBLOCK)
}

/// What the kernel sends, in place of SIGKILL, to the one who is tied to an end of a lifeline.
pub(crate) fn send_when_closed(signal: i32, end: &OwnedFd) -> io::Result<()> {
    // SAFETY: an integer argument, on a descriptor that our caller owns.
    check(unsafe { libc::fcntl(end.as_raw_fd(), F_SETSIG, signal) })
}

/// Takes back what [`kill_tree_of`] or [`kill_with_owner`] did with this end of a lifeline.
pub(crate) fn let_be(end: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: an integer argument, on a descriptor that our caller owns.
    check(unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFL, 0) })
}

/// SIGKILL for a process, or for the group of a negative number, when the other end closes.
fn kill_when_closed(fd: &impl AsRawFd, whom: i32, flags: libc::c_int) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    // SAFETY: an integer argument, on a descriptor that our caller owns.
    check(unsafe { libc::fcntl(fd, libc::F_SETOWN, whom) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGKILL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | flags) })
}

const F_SETSIG: libc::c_int = 10; // linux/fcntl.h; libc has it for some targets only

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
