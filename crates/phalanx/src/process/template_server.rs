//! The template's side: requests in, answers and exit reports out.
//!
//! The host language forks between [`TemplateServer::wait_request`] and
//! [`TemplateServer::launched`]; everything else is here. Children are watched by pidfd and reaped
//! one by one, so a child that a preloaded module started is left alone, and no signal handler
//! is needed. Sending never waits: an owner that does not read must not stop the template.
//!
//! An owner whose template dies asks the next one for what it has had no answer to. So a child does
//! nothing before its owner has it: it waits at its *gate*, whose other end goes with the answer that
//! tells of it, and which its owner opens. At any line the template may die, a child runs if, and only
//! if, its owner has it:
//!
//! | the template dies | what its child does | what its owner does |
//! | --- | --- | --- |
//! | after the fork | its gate closes, and it ends | asks again |
//! | after the answer was sent | runs, when its gate is opened | opens it |
//!
//! And the owner may die. Its socket tells the template, which then ends in order; or its lifeline, if it
//! does not listen:
//!
//! | the template | what the kernel sends it |
//! | --- | --- |
//! | starts, imports, forks: anything may take long there, or hang | SIGKILL |
//! | waits for a request | SIGCONT: it goes on if it was stopped, and finds the end of the socket |

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Instant;

use super::wire::{HINT_LEN, LEN, Message};
use crate::error::{Error, Result};
use crate::sync::fault;
use crate::sys::{Poller, child as os, send_when_closed, socket};

/// A template's end of the conversation with its owner.
#[derive(Debug)]
pub struct TemplateServer {
    socket: OwnedFd,
    /// Tied to us by our owner. It comes with the first message.
    lifeline: Option<OwnedFd>,
    poller: Poller,
    /// The children that run, by the request's id, which is also their token in `poller`.
    running: HashMap<u64, OwnedFd>,
    outbox: VecDeque<Letter>,
    /// The request whose descriptors are still arriving, and how many are to come in all.
    arriving: Option<(Request, usize)>,
    /// The request that is being forked for, and our end of its child's gate.
    forking: Option<(u64, OwnedFd)>,
}

/// What is to be sent.
#[derive(Debug)]
struct Letter {
    message: Message,
    fds: Vec<OwnedFd>,
}

impl From<Message> for Letter {
    fn from(message: Message) -> Self {
        Self { message, fds: Vec::new() }
    }
}

/// A child to be forked: what it is to be given.
#[derive(Debug)]
pub struct Request {
    id: u64,
    hint: Vec<u8>,
    /// Where its child waits.
    gate: Option<OwnedFd>,
    /// The payload, then the descriptors in the order of the request.
    fds: Vec<OwnedFd>,
}

impl Request {
    /// What the owner wrote for the template itself.
    #[must_use]
    pub fn hint(&self) -> &[u8] {
        &self.hint
    }

    /// In the child, which has let go of the server: waits until the owner knows of it. False: it never
    /// will, so there is to be no child.
    #[must_use]
    pub fn is_known(&self) -> bool {
        let Some(gate) = &self.gate else { return false };
        fault("child: it is forked, before its gate");
        let known =
            socket::wait_readable(gate, None).is_ok() && socket::drain(gate).unwrap_or(false);
        fault("child: it has passed its gate");
        known
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
        let (lifeline, arriving, forking) = Default::default();
        Ok(Self { socket, lifeline, poller, running, outbox, arriving, forking })
    }

    /// Waits for a request, and reports ends meanwhile; `None` when the deadline came first.
    ///
    /// # Errors
    ///
    /// When the system refuses to wait.
    pub fn wait_request(&mut self, deadline: Instant) -> Result<Option<Next>> {
        match self.serve(deadline) {
            // It ended with messages of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(Next::End)),
            served => served.map_err(|e| Error::os("serve a template's owner", e)),
        }
    }

    /// What we are sent when our owner has gone.
    fn expect(&self, signal: i32) -> io::Result<()> {
        self.lifeline.as_ref().map_or(Ok(()), |lifeline| send_when_closed(signal, lifeline))
    }

    fn serve(&mut self, deadline: Instant) -> io::Result<Option<Next>> {
        loop {
            self.expect(libc::SIGCONT)?;
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
                // At the end it is left as it is: the owner's lifeline may close after its socket.
                if matches!(next, Next::Request(_)) {
                    self.expect(libc::SIGKILL)?;
                }
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
        let Some((id, gate)) = self.forking.take() else {
            return Err(Error::invalid("no request is being forked for"));
        };
        fault("template: a child is forked, and not watched");
        match self.watch(id, pid) {
            Ok(copy) => {
                let message = Message::Launched { id, pid };
                self.outbox.push_back(Letter { message, fds: vec![copy, gate] });
            }
            Err(error) => {
                self.refuse(id, &error);
                os::kill_and_reap(pid);
            }
        }
        Ok(())
    }

    /// The last request could not be forked for.
    pub fn refused(&mut self, errno: i32) {
        if let Some((id, _)) = self.forking.take() {
            self.outbox.push_back(Message::Refused { id, errno }.into());
        }
    }

    fn refuse(&mut self, id: u64, why: &io::Error) {
        let errno = why.raw_os_error().unwrap_or(libc::EIO);
        self.outbox.push_back(Message::Refused { id, errno }.into());
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
        fault("template: an end is known, and not reported");
        self.poller.remove(pidfd);
        self.running.remove(&id);
        self.outbox.push_back(Message::Exited { id, status }.into());
        Ok(())
    }

    /// Sends what the owner has room for; `false` if there is no owner.
    fn flush(&mut self) -> io::Result<bool> {
        while let Some(letter) = self.outbox.front() {
            let fds: Vec<_> = letter.fds.iter().map(AsFd::as_fd).collect();
            fault("template: an answer is written, and not sent");
            match socket::send(&self.socket, &letter.message.encode(), &fds, false) {
                Ok(()) => {
                    fault("template: an answer is sent");
                    self.outbox.pop_front();
                }
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
                // Its end would be taken for a word of the owner's.
                (Some(Message::Request { id: OWNER, .. }), _) => return Ok(Some(Next::End)),
                (Some(Message::Request { id, fds }), _) => {
                    let hint = bytes[LEN..received.len].to_vec();
                    (Request { id, hint, gate: None, fds: Vec::new() }, fds)
                }
                (Some(Message::Rest { id }), Some((request, total))) if request.id == id => {
                    (request, total)
                }
                (Some(Message::Unwatched { id }), arriving) => {
                    self.arriving = arriving;
                    if let Some(pidfd) = self.running.get(&id) {
                        os::signal(pidfd, libc::SIGKILL)?;
                    }
                    return Ok(None);
                }
                (Some(Message::Lifeline), arriving) => {
                    (self.lifeline, self.arriving) = (received.fds.into_iter().next(), arriving);
                    return Ok(None);
                }
                // The rest of a request that was refused.
                (Some(Message::Rest { .. }), _) => return Ok(None),
                _ => return Ok(Some(Next::End)),
            };
        request.fds.extend(received.fds);
        if request.fds.len() < total {
            fault("template: a request has come in part");
            self.arriving = Some((request, total));
            return Ok(None);
        }
        fault("template: a request has come");
        match socket::pair() {
            Ok((theirs, ours)) => {
                self.forking = Some((request.id, ours));
                Ok(Some(Next::Request(Request { gate: Some(theirs), ..request })))
            }
            Err(error) => {
                self.refuse(request.id, &error);
                Ok(None)
            }
        }
    }

    /// More descriptors arrived than this process may have open.
    fn refuse_descriptors(&mut self, bytes: &[u8]) -> io::Result<Option<Next>> {
        self.arriving = None;
        if let Some(Message::Request { id, .. } | Message::Rest { id }) = Message::decode(bytes) {
            self.outbox.push_back(Message::Refused { id, errno: libc::EMFILE }.into());
        }
        Ok(None)
    }
}

impl AsRawFd for TemplateServer {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// A template that was asked for a child, the request, and the owner's end.
    fn asked() -> (TemplateServer, Request, OwnedFd) {
        let (owner, template) = socket::pair().unwrap();
        let mut server = TemplateServer::new(template.into_raw_fd()).unwrap();
        let payload = socket::sealed(b"payload").unwrap();
        let message = Message::Request { id: 1, fds: 1 };
        socket::send(&owner, &message.encode(), &[payload.as_fd()], true).unwrap();
        let soon = Instant::now() + Duration::from_secs(20);
        let Some(Next::Request(request)) = server.wait_request(soon).unwrap() else {
            panic!("no request")
        };
        (server, request, owner)
    }

    #[test]
    fn a_child_of_a_template_that_dies_before_it_answers_is_none() {
        let (server, request, _owner) = asked();
        drop(server);
        assert!(!request.is_known());
        let (mut server, request, _owner) = asked();
        let mut child = Command::new("true").spawn().unwrap();
        server.launched(child.id()).unwrap();
        drop(server);
        assert!(!request.is_known(), "the answer was not sent yet");
        let _ = child.wait();
    }

    #[test]
    fn a_child_begins_when_its_owner_says_so() {
        let (mut server, request, owner) = asked();
        let mut child = Command::new("true").spawn().unwrap();
        server.launched(child.id()).unwrap();
        let _ = server.wait_request(Instant::now()).unwrap();
        drop(server);
        let answer = socket::try_receive(&owner, &mut [0; LEN]).unwrap();
        let [_pidfd, gate] = answer.fds.try_into().unwrap();
        assert!(
            !socket::wait_readable(request.gate.as_ref().unwrap(), Some(Instant::now())).unwrap()
        );
        socket::nudge(gate);
        assert!(request.is_known());
        let _ = child.wait(); // if the template has not
    }
}
