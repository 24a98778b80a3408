//! A connected socket's fast way: messages through shared memory, in both directions.
//!
//! Two processes of one machine that have met over a `AF_UNIX` stream agree to go on through
//! memory: one [offers](Duplex::offer), which makes the memory and sends its descriptor over the
//! socket, the other [accepts](Duplex::accept). From then on messages lie in a pair of rings, and
//! the socket carries two things only: a byte to wake a side that sleeps, and the end of a side
//! that closed or died, which ends every wait of the other at once.
//!
//! ```text
//!     side 0                                              side 1
//!     push --------------------- ring ------------------> pop
//!     pop  <-------------------- ring ------------------- push
//!     sleep in poll(socket) <--- a byte, if bell is armed, or the end
//! ```
//!
//! | who dies, where | what the other finds |
//! | --- | --- |
//! | before or inside a push | the end of the socket; nothing was sent |
//! | after a push | the message, whole, and then the end |
//! | between two pieces of a large message | the end; the pieces are dropped |
//! | after a push, before the bell | the message: the end of the socket wakes whoever sleeps |
//!
//! A side that waits spins a moment before it sleeps, for a sleeper is woken only after tens of
//! microseconds; at most one thread less than there are cores spins in a process, and a side whose
//! waits are long soon spins only now and then.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::pace::cores;
use crate::error::{Error, Result};
use crate::shm::{Consumer, Half, Head, Line, Producer, Sleeper};
use crate::sys::socket::{drain, duplicate, nudge, send, shutdown, try_receive, wait_readable};
use crate::sys::{ForkClosed, monotonic};

/// Set on every piece of a message but the last.
const MORE: u8 = 1;
/// What goes over the socket with the memory: the layout's number.
const LAYOUT: u8 = 1;
/// How long the memory may be on its way, from a peer that has announced it.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// One side of a line; see the module.
#[derive(Debug)]
pub struct Duplex {
    line: Arc<Line>,
    side: usize,
    outbox: Producer<Half>,
    inbox: Consumer<Half>,
    socket: Arc<ForkClosed>,
    /// The pieces so far of a message whose last one has not come.
    partial: Vec<u8>,
    patience: Patience,
}

/// A message that is being sent.
#[derive(Debug)]
pub struct Outgoing<'a>(Option<&'a [u8]>);

impl<'a> Outgoing<'a> {
    /// A message of any length, of which nothing has been sent.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self(Some(message))
    }
}

impl Duplex {
    /// Makes the memory and sends it over the socket, of which a copy is made and kept.
    ///
    /// # Errors
    ///
    /// If there is no memory or no descriptor left, or the peer is gone.
    pub fn offer(socket: RawFd) -> Result<Self> {
        let (line, memory) = Line::new()?;
        let copy = duplicate(socket).map_err(|e| Error::os("copy a socket", e))?;
        send(&copy, &[LAYOUT], &[memory.as_fd()], true)
            .map_err(|e| Error::os("send a line's memory", e))?;
        Ok(Self::new(line, 0, copy))
    }

    /// Takes the memory that the other side has [offered](Self::offer).
    ///
    /// # Errors
    ///
    /// If it does not come, or is not what it should be.
    pub fn accept(socket: RawFd) -> Result<Self> {
        let doing = "receive a line's memory";
        let copy = duplicate(socket).map_err(|e| Error::os("copy a socket", e))?;
        let there = wait_readable(&copy, Some(Instant::now() + HANDSHAKE));
        if !there.map_err(|e| Error::os(doing, e))? {
            return Err(Error::timed_out("a line's memory"));
        }
        let mut byte = [0];
        let mut received = try_receive(&copy, &mut byte).map_err(|e| Error::os(doing, e))?;
        match received.fds.pop() {
            Some(fd) if byte == [LAYOUT] => Ok(Self::new(Line::from_fd(fd)?, 1, copy)),
            _ => Err(Error::corrupt("the offer of a line")),
        }
    }

    fn new(line: Arc<Line>, side: usize, socket: std::os::fd::OwnedFd) -> Self {
        let (outbox, inbox) = line.ends(side);
        let socket = Arc::new(ForkClosed::new(socket));
        Self { line, side, outbox, inbox, socket, partial: Vec::new(), patience: Patience(0) }
    }

    /// What ends every wait of both sides, from any thread.
    #[must_use]
    pub fn hangup(&self) -> Hangup {
        Hangup(self.socket.clone())
    }

    /// Is this the process that made it, and not one forked from that?
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.socket.is_ours()
    }

    /// Sends what there is room for, and tells whether that was all of the message.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn try_send(&mut self, message: &mut Outgoing<'_>) -> Result<bool> {
        self.check()?;
        let largest = self.outbox.largest();
        while let Some(rest) = message.0 {
            let (piece, more) = rest.split_at(rest.len().min(largest));
            let flags = if more.is_empty() { 0 } else { MORE };
            if !self.outbox.push(Head { flags, ..Head::default() }, piece) {
                return Ok(false);
            }
            message.0 = (!more.is_empty()).then_some(more);
            self.ring();
        }
        Ok(true)
    }

    /// Sends a message; `None` if the deadline came first, and it can be gone on with.
    ///
    /// # Errors
    ///
    /// [Closed](Error::is_closed) if the other side has gone.
    pub fn send(&mut self, message: &mut Outgoing<'_>, deadline: Instant) -> Result<Option<()>> {
        while !self.try_send(message)? {
            let room = |this: &Self| this.outbox.has_room();
            if !self.wait(deadline, room)? {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    /// The next message, if it is there whole.
    ///
    /// # Errors
    ///
    /// If the other side wrote nonsense, and in a forked child.
    pub fn try_receive(&mut self) -> Result<Option<Vec<u8>>> {
        self.check()?;
        while let Some(head) = self.inbox.pop(&mut self.partial)? {
            // Whoever sends may be waiting for this room.
            self.ring();
            if head.flags & MORE == 0 {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
        Ok(None)
    }

    /// The next message; `None` if the deadline came first.
    ///
    /// # Errors
    ///
    /// [Closed](Error::is_closed) if the other side has gone and has left nothing more.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(Some(message));
            }
            if !self.wait(deadline, |this| !this.inbox.is_empty())? {
                return Ok(None);
            }
        }
    }

    fn check(&self) -> Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(Error::closed("this line belongs to the process that this one was forked from"))
    }

    /// Waits until `there`; false if the deadline came first.
    fn wait(&mut self, deadline: Instant, there: impl Fn(&Self) -> bool) -> Result<bool> {
        let mut patience = self.patience;
        let found = patience.spin(|| there(self));
        self.patience = patience;
        if found {
            return Ok(true);
        }
        let bell = self.line.bell(self.side);
        bell.arm(Sleeper::InPoller);
        let slept = if there(self) { Ok(true) } else { self.sleep(deadline) };
        bell.disarm();
        match slept {
            Ok(true) => Ok(true),
            Ok(false) if there(self) => Ok(true),
            Ok(false) => Ok(false),
            // What was pushed before the end is there to be read.
            Err(_) if there(self) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Sleeps until a byte comes: true; or until the deadline or a signal: false.
    fn sleep(&self, deadline: Instant) -> Result<bool> {
        let socket = self.socket.get().map_err(|e| Error::os("wait on a line", e))?;
        let woken = wait_readable(socket, Some(deadline));
        if !woken.map_err(|e| Error::os("wait on a line", e))? {
            return Ok(false);
        }
        match drain(socket) {
            Ok(true) => Ok(true),
            Ok(false) | Err(_) => Err(Error::closed("the other side of the line is gone")),
        }
    }

    fn ring(&self) {
        // A sleeper sleeps in poll, whatever it says of itself.
        if self.line.bell(1 - self.side).ring().is_some()
            && let Ok(socket) = self.socket.get()
        {
            nudge(socket);
        }
    }
}

impl AsFd for Duplex {
    /// # Panics
    ///
    /// In a forked child, which does not have the descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Ends a line from any thread: both sides find it closed.
#[derive(Clone, Debug)]
pub struct Hangup(Arc<ForkClosed>);

impl Hangup {
    /// Closes the conversation; the descriptor lives until the [`Duplex`] is dropped.
    pub fn hang_up(&self) {
        if let Ok(socket) = self.0.get() {
            // It may be closed from the other end already.
            let _ = shutdown(socket);
        }
    }

    /// The number of the socket's descriptor; `None` in a forked child.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        self.0.get().ok().map(|socket| socket.as_raw_fd())
    }
}

/// How long to spin at a time.
const SPIN: Duration = Duration::from_micros(40);
/// After so many waits in a row that spinning did not end, it is tried less and less often.
const TRIES: u32 = 4;
/// ... but once in so many waits, as a power of two.
const SELDOM: u32 = 6;
/// Threads of this process that spin now.
static SPINNERS: AtomicUsize = AtomicUsize::new(0);

/// Waits in a row that spinning did not end.
#[derive(Clone, Copy, Debug)]
struct Patience(u32);

impl Patience {
    /// Spins until `there`, if that is worth trying, and tells whether it is.
    fn spin(&mut self, there: impl Fn() -> bool) -> bool {
        let waits = self.0;
        let rest = (1 << waits.saturating_sub(TRIES).min(SELDOM)) - 1;
        if waits & rest == 0 && SPINNERS.fetch_add(1, Ordering::Relaxed) < cores() - 1 {
            let end = monotonic() + SPIN;
            while !there() && monotonic() < end {
                (0..20).for_each(|_| std::hint::spin_loop());
            }
        }
        if waits & rest == 0 {
            SPINNERS.fetch_sub(1, Ordering::Relaxed);
        }
        let found = there();
        self.0 = if found { 0 } else { waits.wrapping_add(1).max(1) };
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::stream_pair;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn line() -> (Duplex, Duplex) {
        let (left, right) = stream_pair().unwrap();
        let offered = Duplex::offer(left.as_raw_fd()).unwrap();
        (offered, Duplex::accept(right.as_raw_fd()).unwrap())
    }

    fn put(side: &mut Duplex, message: &[u8]) {
        assert_eq!(side.send(&mut Outgoing::new(message), soon()).unwrap(), Some(()));
    }

    #[test]
    fn messages_of_any_length_arrive_whole_and_in_order() {
        let (mut here, mut there) = line();
        let lengths = [0, 1, RING_PIECE, RING_PIECE + 1, 3 << 20, 5];
        let echo = std::thread::spawn(move || {
            for _ in lengths {
                let message = there.receive(soon()).unwrap().unwrap();
                put(&mut there, &message);
            }
        });
        for len in lengths {
            let message: Vec<u8> = (0..len).map(|n| n as u8).collect();
            put(&mut here, &message);
            assert_eq!(here.receive(soon()).unwrap().unwrap(), message);
        }
        echo.join().unwrap();
    }

    const RING_PIECE: usize = (64 << 10) / 4 - 24;

    #[test]
    fn what_was_sent_before_the_end_is_read_and_then_the_end() {
        let (mut here, mut there) = line();
        put(&mut there, b"last words");
        drop(there);
        assert_eq!(here.receive(soon()).unwrap().unwrap(), b"last words");
        assert!(here.receive(soon()).unwrap_err().is_closed());
    }

    #[test]
    fn a_sender_that_waits_for_room_is_told_of_the_end() {
        let (mut here, there) = line();
        let waiter = std::thread::spawn(move || {
            let message = vec![0; 1 << 20];
            here.send(&mut Outgoing::new(&message), soon()).unwrap_err().is_closed()
        });
        there.hangup().hang_up();
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn a_sleeper_is_woken() {
        let (mut here, mut there) = line();
        let waiter = std::thread::spawn(move || here.receive(soon()).unwrap());
        while there.line.bell(0).ring().is_none() {
            std::thread::yield_now();
        }
        // We have taken its wake-up and owe it now.
        put(&mut there, b"morning");
        nudge(there.as_fd());
        assert_eq!(waiter.join().unwrap().unwrap(), b"morning");
    }

    #[test]
    fn something_that_is_no_offer_is_refused() {
        let (left, right) = stream_pair().unwrap();
        send(&left, &[LAYOUT], &[], true).unwrap();
        assert!(Duplex::accept(right.as_raw_fd()).is_err());
        drop(left);
        assert!(Duplex::accept(right.as_raw_fd()).is_err());
    }
}
