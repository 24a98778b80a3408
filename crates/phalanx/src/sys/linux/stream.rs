//! Bytes over a descriptor that others may have, too: recvmsg(2), sendmsg(2), preadv2(2), poll(2).
//!
//! The flags of an open socket or pipe belong to everybody who has it, so they are left alone:
//! that a call is not to wait is said call by call.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2, read, write};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair,
};

/// What a pipe that poll(2) calls writable takes at once: the kernel's PIPE_BUF.
const PIPE_BUF: usize = 4096;

/// Two connected ends, for bytes in both directions.
///
/// A socket for one direction, too: at the sizes that both have by default it moves a megabyte
/// faster than a pipe does (10 and 7 GB/s), and larger buffers fall out of the cache.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Which calls a descriptor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    Socket,
    Pipe,
}

impl Calls {
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
        Ok(if kind == FileType::Socket { Self::Socket } else { Self::Pipe })
    }
}

/// Reads what is there: 0 at the end of the stream, `WouldBlock` if there is nothing yet.
pub(crate) fn try_read(fd: BorrowedFd<'_>, calls: Calls, bytes: &mut [u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    let done = retry(|| match calls {
        Calls::Socket => recv(fd, &mut *bytes, RecvFlags::DONTWAIT).map(|(len, _)| len),
        Calls::Pipe => preadv2(fd, &mut [io::IoSliceMut::new(bytes)], u64::MAX, NOWAIT),
    });
    match done {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if ready(fd, PollFlags::IN)? => {
            Ok(retry(|| read(fd, &mut *bytes))?)
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::WouldBlock.into()),
        other => Ok(other?),
    }
}

/// Writes what there is room for, of one part after the other; `WouldBlock` if there is none.
pub(crate) fn try_write(
    fd: BorrowedFd<'_>,
    calls: Calls,
    parts: &[IoSlice<'_>],
) -> io::Result<usize> {
    const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
    let written = retry(|| match calls {
        Calls::Socket => sendmsg(fd, parts, &mut SendAncillaryBuffer::default(), FLAGS),
        Calls::Pipe => pwritev2(fd, parts, u64::MAX, NOWAIT),
    });
    match written {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if ready(fd, PollFlags::OUT)? => {
            let part = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
            Ok(retry(|| write(fd, &part[..part.len().min(PIPE_BUF)]))?)
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::WouldBlock.into()),
        other => Ok(other?),
    }
}

const NOWAIT: ReadWriteFlags = ReadWriteFlags::NOWAIT;

fn ready(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<bool> {
    let now = Some(Timespec { tv_sec: 0, tv_nsec: 0 });
    Ok(retry(|| poll(&mut [PollFd::new(&fd, flags)], now.as_ref()))? > 0)
}

/// Waits until `fd` can be read, or written, or has hung up; `false` when the time was over.
///
/// A signal handler that ran ends the wait early, so that the caller can see to what it left.
///
/// # Errors
///
/// EBADF: there is no such descriptor.
pub(crate) fn wait(fd: BorrowedFd<'_>, writing: bool, until: Instant) -> io::Result<bool> {
    let flags = if writing { PollFlags::OUT } else { PollFlags::IN };
    let fds = &mut [PollFd::new(&fd, flags)];
    let ready = sleep(fds, until)?;
    if ready && fds[0].revents().contains(PollFlags::NVAL) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(ready)
}

/// Waits until one of several can be read, has hung up or is not open; tells which, in their
/// order. None when the time was over or a signal handler ran.
pub(crate) fn wait_each(fds: &[RawFd], until: Instant) -> io::Result<Vec<usize>> {
    let fds: Vec<_> = fds.iter().map(|fd| super::socket::borrow(*fd)).collect::<Result<_, _>>()?;
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    if !sleep(&mut fds, until)? {
        return Ok(Vec::new());
    }
    let ready = fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty());
    Ok(ready.map(|(index, _)| index).collect())
}

fn sleep(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    match poll(fds, Some(&timespec(until.saturating_duration_since(Instant::now())))) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(1 << 31).cast_signed(),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Lets whoever waits for this core have it.
pub(crate) fn yield_now() {
    rustix::thread::sched_yield();
}

/// Closes the descriptor of this number, whoever had it.
///
/// # Errors
///
/// EBADF: it is not open.
pub(crate) fn close(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller owns the number, as it says; a number that is not open is an error.
    match unsafe { libc::close(fd) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
