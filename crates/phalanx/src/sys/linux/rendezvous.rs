//! Meeting a process that is no relative: an abstract socket, unix(7), open to one's own user.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    getsockname, listen as os_listen, socket_with,
};

/// A listening socket, and the name that the kernel gave it, which goes with the socket.
pub(crate) fn listen() -> io::Result<(OwnedFd, Vec<u8>)> {
    let listener = socket()?;
    // Without a name of ours the kernel finds a free one ("autobind").
    bind(&listener, &SocketAddrUnix::new_unnamed())?;
    os_listen(&listener, 128)?;
    let address = SocketAddrUnix::try_from(getsockname(&listener)?)?;
    let name = address.abstract_name().ok_or(io::ErrorKind::AddrNotAvailable)?.to_vec();
    Ok((listener, name))
}

/// The next who comes; others than one's own user are turned away.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let guest = accept_with(listener, SocketFlags::CLOEXEC)?;
    of_one_user(guest)
}

/// Comes to the listener of that name.
pub(crate) fn meet(name: &[u8]) -> io::Result<OwnedFd> {
    let host = socket()?;
    connect(&host, &SocketAddrUnix::new_abstract_name(name)?)?;
    of_one_user(host)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn of_one_user(socket: OwnedFd) -> io::Result<OwnedFd> {
    if socket_peercred(&socket)?.uid != rustix::process::geteuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a process of another user"));
    }
    Ok(socket)
}
