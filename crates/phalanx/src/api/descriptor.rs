//! `Descriptor`: an open file, socket or pipe, as a value.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::channel::{Passed, Passing};

/// An open file, socket, pipe or anything else that has a descriptor, as a [value](crate::Value):
/// what reads it has a copy, as by dup(2).
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::{TcpListener, TcpStream};
///
/// fn greet(guest: phalanx::Descriptor) {
///     guest.into::<TcpStream>().write_all(b"hello").unwrap();
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let listener = TcpListener::bind("127.0.0.1:0").unwrap();
///     let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
///     let (guest, _) = listener.accept().unwrap();
///
///     phalanx::Process::spawn(greet, guest.into())?.join()?;
///     let mut text = String::new();
///     client.read_to_string(&mut text).unwrap();
///     assert_eq!(text, "hello");
///     Ok(())
/// }
/// ```
///
/// It can be part of a task's argument, of the result of a pool's task, and of what goes through
/// channels; written for anything else (a file, say) it is an error. The bytes hold a ticket: who
/// reads the value is handed the copy by the process that wrote it, which must still run then, and
/// be of the same user and network namespace. Otherwise reading the value fails and says so.
///
/// A descriptor that nobody reads is closed when the task has ended that it was sent to; one in a
/// result, when its worker ends.
#[derive(Debug)]
pub struct Descriptor(OwnedFd);

impl Descriptor {
    /// As a file, a socket, or what else can be made of a descriptor.
    #[must_use]
    pub fn into<T: From<OwnedFd>>(self) -> T {
        self.0.into()
    }
}

impl<T: Into<OwnedFd>> From<T> for Descriptor {
    fn from(owner: T) -> Self {
        Self(owner.into())
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Passing(self.as_fd()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Passed::deserialize(deserializer).map(|Passed(fd)| Self(fd))
    }
}
