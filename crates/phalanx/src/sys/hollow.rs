//! Systems that are not supported yet: every name of a platform, and no insides.
//!
//! The names are those of `sys/linux`, with the same signatures, so that the layers above compile
//! without a `cfg` of their own. What can fail does, and says why. What exists only after
//! something here succeeded is a type without values, so that its methods have nothing to do; the
//! few types that can be made of a descriptor hold that one. Nothing else happens.
//!
//! `--cfg phalanx_hollow` picks this on Linux, where `make check` compiles it.

#![forbid(unsafe_code)]
#![allow(dead_code, reason = "what nobody can reach here is reached on other platforms")]
#![allow(unused_variables, clippy::ptr_arg, reason = "signatures read as on other platforms")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

pub(crate) use fork::ForkClosed;

fn unsupported<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "phalanx runs on Linux only so far"))
}

pub(crate) mod futex {
    use std::sync::atomic::AtomicU32;
    use std::time::Instant;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Woken {
        Look,
        TimedOut,
        Interrupted,
    }

    /// Does not sleep: a word to sleep on lies in [`Memory`](super::Memory), and there is none.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Woken {
        Woken::Look
    }

    pub(crate) fn wake(word: &AtomicU32) {}
}

#[derive(Debug)]
pub(crate) enum Memory {}

impl Memory {
    pub(crate) fn new(name: &str, len: usize) -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn len(&self) -> usize {
        match *self {}
    }

    pub(crate) fn map(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        match *self {}
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum Mapping {}

impl Mapping {
    pub(crate) fn start(&self) -> NonNull<u8> {
        match *self {}
    }
}

/// No time passes where nothing runs.
pub(crate) fn monotonic() -> std::time::Duration {
    std::time::Duration::ZERO
}

/// Nothing to give back: no worker runs.
pub(crate) fn trim() {}

/// A descriptor that somebody took for an event; there is none that rings.
#[derive(Debug)]
pub(crate) struct Event(OwnedFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn ring(&self) {}

    pub(crate) fn clear(&self) {}
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
pub(crate) enum Poller {}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn remove(&self, fd: impl AsFd) {
        match *self {}
    }

    pub(crate) fn wait(&self, tokens: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        match *self {}
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}

pub(crate) mod fork {
    use super::*;

    /// Forks are not counted: no value exists that a forked child could mistake for its own.
    pub(crate) fn generation() -> u32 {
        0
    }

    /// A descriptor that a forked child keeps all the same.
    #[derive(Debug)]
    pub(crate) struct ForkClosed(OwnedFd);

    impl ForkClosed {
        pub(crate) fn new(fd: OwnedFd) -> Self {
            Self(fd)
        }

        pub(crate) fn is_ours(&self) -> bool {
            true
        }

        pub(crate) fn get(&self) -> io::Result<BorrowedFd<'_>> {
            Ok(self.0.as_fd())
        }
    }

    impl AsFd for ForkClosed {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl AsRawFd for ForkClosed {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }
}

pub(crate) fn lifeline() -> io::Result<(ForkClosed, OwnedFd)> {
    unsupported()
}

pub(crate) fn die_with_owner(lifeline: OwnedFd) -> io::Result<()> {
    unsupported()
}

/// Blocks none: the engine's thread, which needs it, has no [`Poller`] to begin with.
pub(crate) fn block_signals<T>(start: impl FnOnce() -> T) -> T {
    start()
}

pub(crate) mod child {
    use std::ffi::{CStr, CString};

    use super::*;

    pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
        unsupported()
    }

    pub(crate) fn try_reap(pidfd: impl AsFd) -> io::Result<Option<i32>> {
        unsupported()
    }

    pub(crate) fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
        unsupported()
    }

    /// Touches no process: none is ours.
    pub(crate) fn kill_and_reap(pid: u32) {}

    pub(crate) fn spawn(
        path: &CStr,
        args: &[CString],
        env: Option<&[CString]>,
        keep: &[RawFd],
    ) -> io::Result<u32> {
        unsupported()
    }
}

pub(crate) mod socket {
    use std::time::Instant;

    use super::*;

    /// Not 0, for lists of descriptors are cut into pieces of this length.
    pub(crate) const MESSAGE_FDS: usize = 1;

    pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        unsupported()
    }

    pub(crate) fn send(
        socket: impl AsFd,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        wait: bool,
    ) -> io::Result<()> {
        unsupported()
    }

    pub(crate) struct Received {
        pub(crate) len: usize,
        pub(crate) fds: Vec<OwnedFd>,
    }

    pub(crate) fn try_receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Received> {
        unsupported()
    }

    pub(crate) fn nudge(socket: impl AsFd) {}

    pub(crate) fn drain(socket: impl AsFd) -> io::Result<bool> {
        unsupported()
    }

    pub(crate) fn borrow<'a>(fd: RawFd) -> io::Result<BorrowedFd<'a>> {
        unsupported()
    }

    pub(crate) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
        unsupported()
    }

    pub(crate) fn wait_readable(fd: impl AsFd, deadline: Option<Instant>) -> io::Result<bool> {
        unsupported()
    }

    pub(crate) fn wait_writable_or(
        socket: impl AsFd,
        other: impl AsFd,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        unsupported()
    }

    pub(crate) fn shutdown(socket: impl AsFd) -> io::Result<()> {
        unsupported()
    }

    pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
        unsupported()
    }

    pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
        unsupported()
    }
}

pub(crate) mod code {
    use std::marker::PhantomData;

    pub(crate) type Reply = Result<Vec<u8>, Vec<u8>>;

    pub(crate) type Entry = fn(Vec<u8>) -> Reply;

    pub(crate) trait Shape<F> {
        fn run(function: F, payload: Vec<u8>) -> Reply;
    }

    pub(crate) struct Captures<F>(PhantomData<F>);

    impl<F> Captures<F> {
        /// Has its inside here, too: what is a task must not depend on the system.
        pub(crate) const NOTHING: () = assert!(
            size_of::<F>() == 0,
            "a task runs in another process, so it cannot capture anything (nor be a function \
             pointer): pass what it needs as its argument"
        );
    }

    /// Nowhere. Every function has it, so that what fails is the start of a process, which can
    /// say why.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Place;

    impl Place {
        pub(crate) const LEN: usize = 8;

        pub(crate) fn of<F: Copy + 'static, S: Shape<F>>(function: F) -> Option<Self> {
            let () = Captures::<F>::NOTHING;
            Some(Self)
        }

        pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
            [0; Self::LEN]
        }

        pub(crate) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
            Self
        }

        pub(crate) fn entry(self) -> Option<Entry> {
            None
        }
    }
}

pub(crate) mod again {
    use std::fs::File;

    use super::*;

    pub(crate) fn scratch() -> io::Result<File> {
        unsupported()
    }

    /// None was left for us: nobody has started us as a child.
    pub(crate) fn take_variable(name: &str) -> Option<String> {
        None
    }

    /// Lets the tests of a crate start processes, on a system that is supported; here it does
    /// nothing.
    ///
    /// ```
    /// #[cfg(test)]
    /// phalanx::enable_tests!();
    /// # fn main() {}
    /// ```
    #[macro_export]
    macro_rules! enable_tests {
        () => {};
    }
}
