//! Pipes: two connected ends for messages, which a process and another share.
//!
//! On the wire they are what Python's `multiprocessing.Pipe` makes, so a Rust program and a Python
//! program can share one: an `End<Vec<u8>>` here is a `Connection` there with `send_bytes` and
//! `recv_bytes`; see [`End::from`].
//!
//! | what | the call |
//! | --- | --- |
//! | nobody has the other end any more, or its last process has died | `recv` gives what had been sent, then [`Error::is_end`]; `send` fails at once with EPIPE |
//! | the other side dies in the middle of a message | `recv` fails at once: `is_end` and [`is_end_inside`](Error::is_end_inside) |
//! | bytes that are no message | an error of the operating system's kind `InvalidData`; nothing can be received after it |
//! | a message that is no `R` | [`Error::is_codec`]; the next one can be received |
//! | a value that cannot be written | `is_codec`; nothing is sent |
//! | a length that is a lie | memory is taken as the bytes come |
//! | an end sent to a process that died before it ran | the other side ends once the [`Process`](crate::Process) is joined or dropped |

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value::{Value, decode, encode};
use crate::channel::connection::{Connection, pair};
use crate::channel::{Handing, Passed, Scope};
use crate::error::{Error, Result};

/// Nobody waits longer than this in one system call; it bounds nothing but that.
const SLICE: Duration = Duration::from_secs(3600);
/// How much memory is taken for bytes that have not come.
const STEP: usize = 4 << 20;

/// Two connected ends: what one sends, the other receives.
///
/// ```
/// use phalanx::pipe::{End, pipe};
///
/// fn shout(mut end: End<String>) {
///     while let Ok(text) = end.recv() {
///         end.send(text.to_uppercase()).unwrap();
///     }
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let (mut here, there) = pipe()?;
///     let process = phalanx::Process::spawn(shout, there)?;
///     here.send("hello".to_string())?;
///     assert_eq!(here.recv()?, "HELLO");
///     drop(here); // so there is nothing more to receive
///     process.join()
/// }
/// ```
///
/// # Errors
///
/// If no more descriptors can be had.
pub fn pipe<A: Value, B: Value>() -> Result<(End<A, B>, End<B, A>)> {
    let (one, other) = pair()?;
    Ok((End::from(one), End::from(other)))
}

/// One end of a pipe: sends values of type `S` and receives values of type `R`.
///
/// It is a [value](Value) itself: it can be (part of) the argument of a [`Process`](crate::Process)
/// or of a pool's task, and go through another pipe. It is then handed over: one process has it.
///
/// Bytes, numbers in vectors and strings go over the wire as they are, and with them every other
/// type as serde's postcard.
pub struct End<S, R = S> {
    fd: OwnedFd,
    messages: Connection,
    types: PhantomData<fn(S) -> R>,
}

impl<S: Value, R: Value> End<S, R> {
    /// Sends a value; waits while there is no room.
    ///
    /// # Errors
    ///
    /// The operating system's EPIPE: nobody has the other end any more. [`Error::is_codec`]: the
    /// value cannot be written.
    pub fn send(&mut self, value: S) -> Result<()> {
        let (bytes, _) = Scope::Once.run(|| encode(value, 0));
        let bytes = bytes.map_err(|why| Error::codec("write a value for a pipe", why))?;
        let mut sending = self.messages.send(bytes.len())?;
        let mut rest = bytes.as_slice();
        while sending.write_until(&mut rest, Instant::now() + SLICE)?.is_none() {}
        Ok(())
    }

    /// Waits for a value.
    ///
    /// # Errors
    ///
    /// [`Error::is_end`]: there are no more, and nobody has the other end any more.
    /// [`Error::is_codec`]: what came is no `R`.
    pub fn recv(&mut self) -> Result<R> {
        let mut receiving = self.messages.receive()?;
        let length = loop {
            if let Some(length) = receiving.length_until(Instant::now() + SLICE)? {
                break length;
            }
        };
        let (mut bytes, mut filled) = (Vec::new(), 0);
        while filled < length {
            // Twice as much each time, so that what moves is not more than what comes.
            bytes.resize(length.min(filled.max(STEP / 2) * 2), 0);
            let until = Instant::now() + SLICE;
            while receiving.read_until(&mut bytes, &mut filled, until)?.is_none() {}
        }
        drop(receiving);
        decode(bytes).map_err(|why| Error::codec("read a value from a pipe", why))
    }

    /// As [`recv`](Self::recv), if a value has begun to come; else `None`.
    ///
    /// # Errors
    ///
    /// As `recv`.
    pub fn try_recv(&mut self) -> Result<Option<R>> {
        self.recv_timeout(Duration::ZERO)
    }

    /// As [`recv`](Self::recv), if a value begins to come within that time; else `None`.
    ///
    /// # Errors
    ///
    /// As `recv`.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<R>> {
        if self.poll(timeout)? { self.recv().map(Some) } else { Ok(None) }
    }
}

impl<S, R> End<S, R> {
    /// Waits for so long at the most until there is something to receive, or nobody has the other
    /// end any more.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn poll(&self, timeout: Duration) -> Result<bool> {
        let end = Instant::now().checked_add(timeout);
        loop {
            let slice = Instant::now() + SLICE;
            let until = end.map_or(slice, |end| end.min(slice));
            if self.messages.readable_until(until)?.is_some() {
                return Ok(true);
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return Ok(false);
            }
        }
    }

    /// The same end once more, for another thread to use the other direction.
    ///
    /// # Errors
    ///
    /// If no more descriptors can be had.
    pub fn try_clone(&self) -> Result<Self> {
        self.fd.try_clone().map(Self::from).map_err(|e| Error::os("copy the end of a pipe", e))
    }
}

/// The end behind a stream socket or a pipe whose other side keeps to the wire.
impl<S, R> From<OwnedFd> for End<S, R> {
    fn from(fd: OwnedFd) -> Self {
        let messages = Connection::new(Some(fd.as_raw_fd()));
        Self { fd, messages, types: PhantomData }
    }
}

impl<S, R> From<End<S, R>> for OwnedFd {
    fn from(end: End<S, R>) -> Self {
        end.fd
    }
}

impl<S, R> AsFd for End<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<S, R> fmt::Debug for End<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("End").field(&self.fd).finish()
    }
}

impl<S, R> Serialize for End<S, R> {
    fn serialize<T: Serializer>(&self, serializer: T) -> std::result::Result<T::Ok, T::Error> {
        Handing(self.as_fd()).serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for End<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Passed::deserialize(deserializer).map(|Passed(fd)| Self::from(fd))
    }
}
