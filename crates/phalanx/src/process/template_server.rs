//! The template's side: requests in, answers and exit reports out.
//!
//! The host language forks between [`TemplateServer::wait_request`] and
//! [`TemplateServer::launched`]; everything else is here. Children are watched by pidfd and reaped
//! one by one, so a child that a preloaded module started is left alone, and no signal handler
//! is needed. Sending never waits: an owner that does not read must not stop the template.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Instant;

use super::wire::{HINT_LEN, LEN, Message};
use crate::error::{Error, Result};
use crate::sys::{Poller, child as os, socket};

/// A template's end of the conversation with its owner.
#[derive(Debug)]
pub struct TemplateServer {
    socket: OwnedFd,
    poller: Poller,
    /// The children that run, by the request's id, which is also their token in `poller`.
    running: HashMap<u64, OwnedFd>,
    outbox: VecDeque<(Message, Option<OwnedFd>)>,
    /// The request whose descriptors are still arriving, and how many are to come in all.
    arriving: Option<(Request, usize)>,
    /// The request that is being forked for.
    forking: Option<u64>,
}

/// A child to be forked: what it is to be given.
#[derive(Debug)]
pub struct Request {
    id: u64,
    hint: Vec<u8>,
    /// The payload, then the descriptors in the order of the request.
    fds: Vec<OwnedFd>,
}

impl Request {
    /// What the owner wrote for the template itself.
    #[must_use]
    pub fn hint(&self) -> &[u8] {
        &self.hint
    }

    /// The payload's descriptor, at its first byte, and the others; the caller closes them.
    #[must_use]
    pub fn into_fds(self) -> (RawFd, Vec<RawFd>) {
        let mut fds = self.fds.into_iter().map(IntoRawFd::into_raw_fd);
        (fds.next().unwrap_or(-1), fds.collect())
    }
}

/// The socket's token; ids of requests start at 1.
const OWNER: u64 = 0;

/// What [`TemplateServer::wait_request`] ended with.
#[derive(Debug)]
pub enum Next {
    /// Fork, then call [`TemplateServer::launched`] or [`TemplateServer::refused`].
    Request(Request),
    /// The owner is gone: so should we.
    End,
}

impl TemplateServer {
    /// Serves the owner at the other end of `socket`, the number that this process was given.
    ///
    /// # Errors
    ///
    /// When it is not open, or there is no descriptor left.
    pub fn new(socket: RawFd) -> Result<Self> {
        let open = || -> io::Result<_> {
            // A copy of ours alone, closed on exec; the number that we were given goes.
            let copy = socket::adopt(socket)?;
            let poller = Poller::new()?;
            poller.add(&copy, OWNER)?;
            Ok((copy, poller))
        };
        let (socket, poller) = open().map_err(|e| Error::os("reach the template's owner", e))?;
        let (running, outbox) = Default::default();
        Ok(Self { socket, poller, running, outbox, arriving: None, forking: None })
    }

    /// Waits for a request, and reports ends meanwhile; `None` when the deadline came first.
    ///
    /// # Errors
    ///
    /// When the system refuses to wait.
    pub fn wait_request(&mut self, deadline: Instant) -> Result<Option<Next>> {
        self.serve(deadline).map_err(|e| Error::os("serve a template's owner", e))
    }

    fn serve(&mut self, deadline: Instant) -> io::Result<Option<Next>> {
        loop {
            if !self.flush()? {
                return Ok(Some(Next::End));
            }
            if !self.outbox.is_empty() {
                socket::wait_writable_or(&self.socket, &self.poller, Some(deadline))?;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut tokens = Vec::new();
            let patience = if self.outbox.is_empty() { left } else { std::time::Duration::ZERO };
            self.poller.wait(&mut tokens, Some(patience))?;
            for token in tokens.iter().filter(|token| **token != OWNER) {
                self.reap(*token)?;
            }
            if tokens.contains(&OWNER)
                && let Some(next) = self.receive()?
            {
                return Ok(Some(next));
            }
            if tokens.is_empty() && (left.is_zero() || self.outbox.is_empty()) {
                return Ok(None);
            }
        }
    }

    /// The process `pid` was forked for the last request.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left to watch it; it is killed then, and the owner told.
    pub fn launched(&mut self, pid: u32) -> Result<()> {
        let Some(id) = self.forking.take() else {
            return Err(Error::invalid("no request is being forked for"));
        };
        match self.watch(id, pid) {
            Ok(copy) => self.outbox.push_back((Message::Launched { id, pid }, Some(copy))),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.outbox.push_back((Message::Refused { id, errno }, None));
                os::kill_and_reap(pid);
            }
        }
        Ok(())
    }

    /// The last request could not be forked for.
    pub fn refused(&mut self, errno: i32) {
        if let Some(id) = self.forking.take() {
            self.outbox.push_back((Message::Refused { id, errno }, None));
        }
    }

    fn watch(&mut self, id: u64, pid: u32) -> io::Result<OwnedFd> {
        let pidfd = os::open(pid)?;
        let copy = pidfd.try_clone()?;
        self.poller.add(&pidfd, id)?;
        self.running.insert(id, pidfd);
        Ok(copy)
    }

    fn reap(&mut self, id: u64) -> io::Result<()> {
        let Some(pidfd) = self.running.get(&id) else { return Ok(()) };
        let status = match os::try_reap(pidfd) {
            Ok(None) => return Ok(()),
            Ok(Some(status)) => status,
            // Somebody's waitpid(-1) was quicker: code 255.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => 255 << 8,
            Err(error) => return Err(error),
        };
        self.poller.remove(pidfd);
        self.running.remove(&id);
        self.outbox.push_back((Message::Exited { id, status }, None));
        Ok(())
    }

    /// Sends what the owner has room for; `false` if there is no owner.
    fn flush(&mut self) -> io::Result<bool> {
        while let Some((message, fd)) = self.outbox.front() {
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            match socket::send(&self.socket, &message.encode(), &fds, false) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn receive(&mut self) -> io::Result<Option<Next>> {
        let mut bytes = [0; LEN + HINT_LEN];
        let received = match socket::try_receive(&self.socket, &mut bytes) {
            Ok(received) if received.len > 0 => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                return self.refuse_descriptors(&bytes);
            }
            Ok(_) | Err(_) => return Ok(Some(Next::End)),
        };
        let (mut request, total) =
            match (Message::decode(&bytes[..received.len]), self.arriving.take()) {
                (Some(Message::Request { id, fds }), _) => {
                    let hint = bytes[LEN..received.len].to_vec();
                    (Request { id, hint, fds: Vec::new() }, fds)
                }
                (Some(Message::Rest { id }), Some((request, total))) if request.id == id => {
                    (request, total)
                }
                // The rest of a request that was refused.
                (Some(Message::Rest { .. }), _) => return Ok(None),
                _ => return Ok(Some(Next::End)),
            };
        request.fds.extend(received.fds);
        if request.fds.len() < total {
            self.arriving = Some((request, total));
            return Ok(None);
        }
        self.forking = Some(request.id);
        Ok(Some(Next::Request(request)))
    }

    /// More descriptors arrived than this process may have open.
    fn refuse_descriptors(&mut self, bytes: &[u8]) -> io::Result<Option<Next>> {
        self.arriving = None;
        if let Some(Message::Request { id, .. } | Message::Rest { id }) = Message::decode(bytes) {
            self.outbox.push_back((Message::Refused { id, errno: libc::EMFILE }, None));
        }
        Ok(None)
    }
}

impl AsRawFd for TemplateServer {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
