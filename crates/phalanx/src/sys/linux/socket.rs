//! Messages with descriptors between relatives: socketpair(2), SCM_RIGHTS in unix(7).

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg,
    sendmsg, socketpair,
};

use super::memory;

/// How many descriptors fit into one message: the kernel's SCM_MAX_FD is 253.
pub(crate) const MESSAGE_FDS: usize = 250;

/// Two connected ends that keep the borders of messages.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Two connected ends of a stream.
#[cfg(test)]
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message. `wait` says whether to wait for room; without it, `WouldBlock`.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let flags = if wait { SendFlags::empty() } else { SendFlags::DONTWAIT };
    retry(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL))?;
    Ok(())
}

/// What arrived: nothing at the end of the stream.
pub(crate) struct Received {
    pub(crate) len: usize,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Receives one message, or fails with `WouldBlock`.
pub(crate) fn try_receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = retry(|| recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags))?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        // The kernel gives what fits under RLIMIT_NOFILE and drops the rest.
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok(Received { len: message.bytes, fds })
}

/// Makes the other end of a stream readable; it learns nothing else.
pub(crate) fn nudge(socket: impl AsFd) {
    // No room: it is readable. No peer: whoever waits for it finds that out.
    let _ = rustix::net::send(socket, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Reads away what [`nudge`] wrote; false at the end of the stream.
pub(crate) fn drain(socket: impl AsFd) -> io::Result<bool> {
    let mut bytes = [0; 64];
    match retry(|| recv(&socket, &mut bytes[..], RecvFlags::DONTWAIT)) {
        Ok((len, _)) => Ok(len > 0),
        Err(Errno::AGAIN) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Borrows a descriptor that the caller named by its number.
pub(crate) fn borrow<'a>(fd: RawFd) -> io::Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is used in system calls alone, and for these a closed number is an error.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Bytes of any number behind a descriptor whose reader starts at the first; nobody can change them.
pub(crate) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memory::create("phalanx-payload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    io::Seek::rewind(&mut file)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file.into())
}

/// Waits until `fd` can be read or has hung up; `false` when the time was over.
///
/// Without a deadline it waits for ever. With one, a signal handler that ran ends the wait early,
/// so that the caller can see to what the handler left behind.
pub(crate) fn wait_readable(fd: impl AsFd, deadline: Option<Instant>) -> io::Result<bool> {
    let fd = fd.as_fd();
    Ok(wait_any(&mut [PollFd::new(&fd, PollFlags::IN)], deadline)? > 0)
}

/// Waits until `socket` has room or `other` can be read, as [`wait_readable`].
pub(crate) fn wait_writable_or(
    socket: impl AsFd,
    other: impl AsFd,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let (socket, other) = (socket.as_fd(), other.as_fd());
    let fds = &mut [PollFd::new(&socket, PollFlags::OUT), PollFd::new(&other, PollFlags::IN)];
    wait_any(fds, deadline)?;
    Ok(())
}

fn wait_any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match poll(fds, left.map(timespec).as_ref()) {
            Ok(ready) => return Ok(ready),
            Err(Errno::INTR) if deadline.is_some() => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(1 << 31).cast_signed(),
        tv_nsec: duration.subsec_nanos().into(),
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

/// Ends the conversation: both ends read the end of the stream.
pub(crate) fn shutdown(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Both)?)
}

/// A copy of the descriptor with the number `fd`, closed on exec.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    borrow(fd)?.try_clone_to_owned()
}

/// A descriptor of our own for one that exec left to us under the number `fd`, which it closes.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    let copy = duplicate(fd)?;
    if fd > 2 {
        // SAFETY: exec left it to us, and the caller names it once; nothing else here owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(copy)
}
