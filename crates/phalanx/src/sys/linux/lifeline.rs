//! Workers die with their owner, however it died.
//!
//! A lifeline is a pipe that nobody writes to. The owner holds the only write end; the worker
//! asks the kernel to send it SIGKILL when something happens on the read end (`F_SETSIG` in
//! fcntl(2)), and the only thing that can happen is that the owner is gone. Unlike
//! `PR_SET_PDEATHSIG` this needs no parenthood, and does not follow the *thread* that forked.
//! It costs the worker one descriptor, and no thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};

use super::fork::ForkClosed;
use super::socket::wait_readable;

/// The owner's end and the worker's end.
pub(crate) fn lifeline() -> io::Result<(ForkClosed, OwnedFd)> {
    let (worker, owner) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((ForkClosed::new(owner), worker))
}

/// A pipe whose write end forked children inherit, and whose read end they do not: once its maker
/// has closed the write end, the read end is readable when the last of them has ended, or runs
/// another program.
pub(crate) fn heirloom() -> io::Result<(ForkClosed, OwnedFd)> {
    let (owner, heirs) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((ForkClosed::new(owner), heirs))
}

/// From now on the kernel kills this process when the owner's end of `lifeline` closes.
///
/// If it is closed already, the process ends here.
pub(crate) fn die_with_owner(lifeline: OwnedFd) -> io::Result<()> {
    static KEPT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

    let pid = std::process::id().cast_signed();
    let fd = lifeline.as_raw_fd();
    // SAFETY: an integer argument, on a descriptor that we own.
    check(unsafe { libc::fcntl(fd, libc::F_SETOWN, pid) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGKILL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) })?;
    // An owner that died before the line above rings no more, so look once.
    if wait_readable(&lifeline, Some(Instant::now()))? {
        std::process::exit(1);
    }
    KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(lifeline);
    Ok(())
}

const F_SETSIG: libc::c_int = 10; // linux/fcntl.h; libc has it for some targets only

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
