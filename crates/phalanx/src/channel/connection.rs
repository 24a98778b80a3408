//! Messages over a socket or a pipe, on CPython's wire; see `wire`.
//!
//! An end never reads ahead, since its descriptor may be another's as well: a process that was
//! forked, or a `Connection` of the standard library. A message goes out with its header in one
//! call and comes in where it is to stay. No lock is held while anything waits, and nothing of an
//! end lies in shared memory: a fork in the middle of a call leaves a whole end in the child.
//!
//! # What happens when
//!
//! | what | the call |
//! | --- | --- |
//! | the other end is closed, or its last process has died, between two messages | receiving ends: [`Error::is_end`] |
//! | ... in the middle of a message | receiving ends at once, and says that it was inside a message |
//! | ... with messages of ours unread (ECONNRESET) | receiving ends, as above; what had arrived is received first |
//! | ... while we send | EPIPE at once |
//! | no header is like the one that arrived | an error of kind `InvalidData` |
//! | the header lies about the length | the message goes on until as much has come; memory is the caller's care |
//! | a call is given up inside a message, by a signal handler that raised | later calls in that direction fail and say why, since the borders are lost |
//! | this end is closed by another thread during a call | EBADF within the slice in which that waits |

use std::io::{self, IoSlice};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::wire::{Header, Length, Reader};
use crate::error::{Error, Result};
use crate::sync::fault;
use crate::sys::socket::borrow;
use crate::sys::stream::{self, Calls, try_read, try_write};

const SEND: &str = "send a message";
const RECEIVE: &str = "receive a message";
const NONE: RawFd = -1;
/// How long to look for an answer before sleeping.
const MOMENT: Duration = Duration::from_micros(40);

/// Two connected ends, for messages in both directions.
///
/// # Errors
///
/// If no more descriptors can be had.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    stream::stream_pair().map_err(|e| Error::os("make a pipe", e))
}

/// One end, by the number of its descriptor.
///
/// The number is taken as it is: it may be wrong, which the first call finds out, it may be set,
/// and dropping the end does not close it. That is how Python's objects are.
#[derive(Debug)]
pub struct Connection {
    fd: AtomicI32,
    is_pipe: AtomicBool,
    /// A message was given up in the middle, going out or coming in.
    torn_out: AtomicBool,
    torn_in: AtomicBool,
    pace: Pace,
}

impl Connection {
    /// The end behind a descriptor, if there is one.
    #[must_use]
    pub fn new(fd: Option<RawFd>) -> Self {
        let (torn_out, torn_in) = (AtomicBool::new(false), AtomicBool::new(false));
        let is_pipe = AtomicBool::new(false);
        let pace = Pace::new(MOMENT, true);
        let new = Self { fd: AtomicI32::new(NONE), is_pipe, torn_out, torn_in, pace };
        new.set_fd(fd);
        new
    }

    /// The descriptor's number, until the end is closed.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        Some(self.fd.load(Relaxed)).filter(|fd| *fd != NONE)
    }

    /// Takes another descriptor, or none. The one before is not closed.
    pub fn set_fd(&self, fd: Option<RawFd>) {
        let calls = fd.and_then(|fd| borrow(fd).and_then(Calls::of).ok());
        self.is_pipe.store(calls == Some(Calls::Pipe), Relaxed);
        self.torn_in.store(false, Relaxed);
        self.torn_out.store(false, Relaxed);
        self.fd.store(fd.unwrap_or(NONE), Relaxed);
    }

    /// Closes the descriptor. A closed end can be closed again.
    ///
    /// # Errors
    ///
    /// EBADF: it was closed behind our back.
    pub fn close(&self) -> Result<()> {
        match self.fd.swap(NONE, Relaxed) {
            NONE => Ok(()),
            fd => stream::close(fd).map_err(|e| Error::os("close a connection", e)),
        }
    }

    /// Begins a message of `len` bytes.
    ///
    /// # Errors
    ///
    /// A message before it was given up in the middle.
    pub fn send(&self, len: usize) -> Result<Sending<'_>> {
        if self.torn_out.load(Relaxed) {
            return Err(Error::os(SEND, io::Error::other("the one before was interrupted")));
        }
        let header = Header::of(len);
        Ok(Sending { end: self, header, header_sent: 0, left: len, failed: false })
    }

    /// Begins to receive a message.
    ///
    /// # Errors
    ///
    /// A message before it was given up in the middle.
    pub fn receive(&self) -> Result<Receiving<'_>> {
        if self.torn_in.load(Relaxed) {
            return Err(Error::os(RECEIVE, io::Error::other("the one before was interrupted")));
        }
        Ok(Receiving { end: self, header: Reader::default(), left: None, failed: false })
    }

    /// Waits until there is something to receive, or the other end is closed; `None` when the
    /// time was over or a signal handler ran.
    ///
    /// # Errors
    ///
    /// EBADF: the descriptor is not open.
    pub fn readable_until(&self, until: Instant) -> Result<Option<()>> {
        const POLL: &str = "wait for a message";
        let look = |until| {
            let ready = self.ours().and_then(|fd| stream::wait(borrow(fd)?, false, until));
            ready.map_err(|e| Error::os(POLL, e))
        };
        let now = Instant::now();
        if look(now)? {
            return Ok(Some(()));
        }
        if until <= now {
            return Ok(None);
        }
        let found = self.pace.spin(|| look(now).map(|ready| ready.then_some(())).transpose());
        match found {
            Some(found) => found.map(Some),
            None => Ok(look(until)?.then_some(())),
        }
    }

    fn ours(&self) -> io::Result<RawFd> {
        self.fd().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn calls(&self) -> Calls {
        if self.is_pipe.load(Relaxed) { Calls::Pipe } else { Calls::Socket }
    }

    /// Repeats a call that does not wait until it succeeds; `None` when the time was over.
    fn repeat(
        &self,
        writing: bool,
        until: Instant,
        mut call: impl FnMut(RawFd) -> io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        let mut attempt = || match self.ours().and_then(&mut call) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => Some(other),
        };
        loop {
            if let Some(done) = attempt().or_else(|| self.pace.spin(&mut attempt)) {
                return done.map(Some);
            }
            if !stream::wait(borrow(self.ours()?)?, writing, until)? {
                return Ok(None);
            }
        }
    }

    fn read(&self, bytes: &mut [u8], until: Instant) -> io::Result<Option<usize>> {
        let calls = self.calls();
        match self.repeat(false, until, |fd| try_read(borrow(fd)?, calls, bytes)) {
            // The other end has gone without having read all that we sent; nothing more comes.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(0)),
            other => other,
        }
    }

    fn write(&self, parts: &[IoSlice<'_>], until: Instant) -> io::Result<Option<usize>> {
        let calls = self.calls();
        match self.repeat(true, until, |fd| try_write(borrow(fd)?, calls, parts)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(io::Error::from_raw_os_error(libc::EPIPE))
            }
            other => other,
        }
    }
}

/// A message on its way out. Dropping it before its end leaves the end useless for sending.
#[derive(Debug)]
pub struct Sending<'a> {
    end: &'a Connection,
    header: Header,
    header_sent: usize,
    /// How much of the message is still to be sent.
    left: usize,
    failed: bool,
}

impl Sending<'_> {
    /// Sends the next `part` of the message, or all of it; what was sent is taken off its front.
    /// `None` when the time was over before that, or a signal handler ran.
    ///
    /// # Errors
    ///
    /// EPIPE: nobody has the other end any more.
    pub fn write_until(&mut self, part: &mut &[u8], until: Instant) -> Result<Option<()>> {
        fault("connection: a message is begun, and not sent");
        loop {
            let header = &self.header.bytes()[self.header_sent..];
            if header.is_empty() && part.is_empty() {
                fault("connection: a message is sent");
                return Ok(Some(()));
            }
            let parts = [IoSlice::new(header), IoSlice::new(part)];
            let parts = if header.is_empty() { &parts[1..] } else { &parts[..] };
            let sent = self.end.write(parts, until).map_err(|error| {
                self.failed = true;
                Error::os(SEND, error)
            })?;
            let Some(sent) = sent else { return Ok(None) };
            let of_header = sent.min(header.len());
            self.header_sent += of_header;
            self.left -= sent - of_header;
            *part = &part[sent - of_header..];
            fault("connection: some of a message is sent");
        }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let whole = self.header_sent == self.header.bytes().len() && self.left == 0;
        if self.header_sent > 0 && !whole && !self.failed {
            self.end.torn_out.store(true, Relaxed);
        }
    }
}

/// A message that comes in. Dropping it before its end leaves the end useless for receiving.
#[derive(Debug)]
pub struct Receiving<'a> {
    end: &'a Connection,
    header: Reader,
    /// How much of the message is still to come, once that is known.
    left: Option<usize>,
    failed: bool,
}

impl Receiving<'_> {
    /// Waits for the message and tells its length in bytes; `None` when the time was over before
    /// that, or a signal handler ran.
    ///
    /// # Errors
    ///
    /// [`Error::is_end`]: there will be no more messages. The operating system's `InvalidData`:
    /// what arrived is no message.
    pub fn length_until(&mut self, until: Instant) -> Result<Option<usize>> {
        loop {
            match self.header.length() {
                Length::Known(length) => {
                    fault("connection: a header is received");
                    self.left = Some(length);
                    return Ok(Some(length));
                }
                Length::Bad => {
                    self.failed = true;
                    let bad = io::Error::new(io::ErrorKind::InvalidData, "bad message length");
                    return Err(Error::os(RECEIVE, bad));
                }
                Length::Unknown => {}
            }
            fault("connection: a message is awaited");
            let read = self.end.read(self.header.missing(), until);
            match self.some(read)? {
                Some(read) => self.header.advance(read),
                None => return Ok(None),
            }
        }
    }

    /// Receives the next part of the message, which fills `into` from `filled` on; `None` when the
    /// time was over before that, or a signal handler ran.
    ///
    /// # Errors
    ///
    /// [`Error::is_end`]: the other end was closed in the middle of the message.
    ///
    /// # Panics
    ///
    /// The message is not as long as that.
    pub fn read_until(
        &mut self,
        into: &mut [u8],
        filled: &mut usize,
        until: Instant,
    ) -> Result<Option<()>> {
        while *filled < into.len() {
            let read = self.end.read(&mut into[*filled..], until);
            match self.some(read)? {
                Some(read) => {
                    *filled += read;
                    self.left = Some(self.left.unwrap_or(0).checked_sub(read).expect("its length"));
                    fault("connection: some of a message is received");
                }
                None => return Ok(None),
            }
        }
        fault("connection: a message is received");
        Ok(Some(()))
    }

    fn some(&mut self, read: io::Result<Option<usize>>) -> Result<Option<usize>> {
        match read {
            Ok(Some(0)) => {
                self.failed = true;
                Err(Error::end(self.header.has_begun()))
            }
            Ok(read) => Ok(read),
            Err(error) => {
                self.failed = true;
                Err(Error::os(RECEIVE, error))
            }
        }
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        if self.header.has_begun() && self.left != Some(0) && !self.failed {
            self.end.torn_in.store(true, Relaxed);
        }
    }
}

/// Waits until one of several descriptors can be read, has hung up or is not open; the places of
/// those that are, in order. `None` when the time was over or a signal handler ran.
///
/// # Errors
///
/// EINVAL: they are more than this process may have open.
pub fn wait_until(fds: &[RawFd], until: Instant) -> Result<Option<Vec<usize>>> {
    let ready = stream::wait_each(fds, until).map_err(|e| Error::os("wait for descriptors", e))?;
    Ok(Some(ready).filter(|ready| !ready.is_empty()))
}
