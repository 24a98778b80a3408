//! Waiting for many descriptors: eventfd(2) and epoll(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use crate::error::in_call;

/// A bell for a thread that waits in a [`Poller`].
#[derive(Debug)]
pub(crate) struct Event(OwnedFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Makes the descriptor readable until the next [`clear`](Self::clear).
    pub(crate) fn ring(&self) {
        // EAGAIN: the counter is full, so the descriptor is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A set of descriptors, each with a token, to wait for together.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Reports `token` whenever `fd` is readable, until [`remove`](Self::remove).
    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.0, fd, data, epoll::EventFlags::IN)
            .map_err(|error| in_call("epoll_ctl(2)", error))
    }

    pub(crate) fn remove(&self, fd: impl AsFd) {
        // It may have been removed before, by whoever saw it end first.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits until a descriptor is readable and appends the tokens of all that are.
    pub(crate) fn wait(&self, tokens: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs().min(1 << 31).cast_signed(),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.0, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        tokens.extend(events.iter().map(|event| event.data.u64()));
        Ok(())
    }
}

impl AsFd for Poller {
    /// Readable while one of its descriptors is.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
