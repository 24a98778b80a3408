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

use std::backtrace::Backtrace;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

pub(crate) use fork::ForkClosed;

fn unsupported<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "phalanx runs on Linux only so far"))
}

pub(crate) mod futex {
    use std::sync::atomic::{AtomicU32, AtomicU64};
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

    pub(crate) fn wait_lower(word: &AtomicU64, expected: u64, deadline: Option<Instant>) -> Woken {
        Woken::Look
    }

    pub(crate) fn wake(word: &AtomicU32) {}
    pub(crate) fn wake_many(word: &AtomicU32, most: u32) {}
    pub(crate) fn wake_lower(word: &AtomicU64) {}
    pub(crate) fn sleep_lower(word: &AtomicU64, expected: u64, left: std::time::Duration) -> bool {
        false
    }

    pub(crate) fn wake_counted(word: &AtomicU64, most: u32) -> u32 {
        0
    }
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

    pub(crate) fn identity(&self) -> io::Result<(u64, u64, usize)> {
        match *self {}
    }

    pub(crate) fn physical() -> usize {
        0
    }

    pub(crate) fn backed(&self) -> io::Result<u64> {
        match *self {}
    }

    pub(crate) fn back(&self, offset: usize, len: usize) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn discard(&self, offset: usize, len: usize) {
        match *self {}
    }

    pub(crate) fn map(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        match *self {}
    }

    pub(crate) fn map_inherited(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        match *self {}
    }

    pub(crate) fn map_private(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        match *self {}
    }

    pub(crate) fn copy(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        match *self {}
    }
}

pub(crate) fn total_memory() -> u64 {
    u64::MAX
}

pub(crate) mod cpus {
    use std::path::Path;

    pub(crate) fn in_affinity() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    pub(crate) fn quota(root: &Path) -> Option<f64> {
        None
    }
}

pub(crate) mod named {
    use super::*;

    pub(crate) fn create(name: &str, len: usize) -> io::Result<Memory> {
        unsupported()
    }

    pub(crate) fn open(name: &str) -> io::Result<Memory> {
        unsupported()
    }

    pub(crate) fn remove(name: &str) -> io::Result<()> {
        unsupported()
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
    pub(crate) fn back(&self, memory: &Memory, offset: usize, len: usize) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        match *self {}
    }
    pub(crate) fn len(&self) -> usize {
        match *self {}
    }
    pub(crate) fn revert(&self) -> io::Result<()> {
        match *self {}
    }
}

/// A process by its pid alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId(std::num::NonZeroU64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Alive,
    Ended(Option<i32>),
}

impl ProcessId {
    pub(crate) fn own() -> Self {
        let pid = std::num::NonZeroU64::new(std::process::id().into());
        Self(pid.expect("a process's pid is not 0"))
    }

    pub(crate) const SPARE: u64 = 1 << 32;

    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        std::num::NonZeroU64::new(bits & !Self::SPARE).map(Self)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn pid(self) -> u32 {
        self.bits() as u32
    }

    /// Nobody is seen to end: no word of another process's can be reached.
    pub(crate) fn fate(self) -> Fate {
        Fate::Alive
    }

    pub(crate) fn is_alive(self) -> bool {
        true
    }
}

/// No time passes where nothing runs.
pub(crate) fn monotonic() -> std::time::Duration {
    std::time::Duration::ZERO
}

/// Nothing to give back: no worker runs.
pub(crate) fn trim() {}
pub(crate) fn advise_huge(_room: &mut [std::mem::MaybeUninit<u8>]) {}

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

    pub(crate) fn children() -> u64 {
        0
    }

    /// State of one thread at a time; what a fork finds is not looked after.
    pub(crate) struct Whole<T>(std::sync::Mutex<T>);

    impl<T> Whole<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub(crate) fn with<R>(&self, call: impl FnOnce(&mut T) -> R) -> R {
            call(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
        }
    }

    pub(crate) fn undivided<R>(call: impl FnOnce() -> R) -> R {
        call()
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

#[derive(Debug)]
pub(crate) struct Report;

pub(crate) fn report() -> io::Result<(Report, OwnedFd)> {
    unsupported()
}

impl Report {
    pub(crate) fn take(&self) -> Vec<u8> {
        Vec::new()
    }
}

pub(crate) fn heirloom() -> io::Result<(ForkClosed, OwnedFd)> {
    unsupported()
}

pub(crate) fn die_with_owner(lifeline: OwnedFd, tree: bool) -> io::Result<()> {
    unsupported()
}

pub(crate) fn kill_tree_of(leader: u32, owner: &ForkClosed) -> io::Result<()> {
    unsupported()
}

pub(crate) fn kill_with_owner(pid: u32, lifeline: &OwnedFd) -> io::Result<()> {
    unsupported()
}

pub(crate) fn send_when_closed(signal: i32, end: &OwnedFd) -> io::Result<()> {
    unsupported()
}

pub(crate) fn let_be(end: &impl AsRawFd) -> io::Result<()> {
    unsupported()
}

pub(crate) fn trace_signal() -> i32 {
    0
}

pub(crate) const CRASHES: [i32; 0] = [];

pub(crate) fn answer_trace(report: OwnedFd, text: fn(&Backtrace) -> String) -> io::Result<()> {
    unsupported()
}

/// Blocks none: the engine's thread, which needs it, has no [`Poller`] to begin with.
pub(crate) fn block_signals<T>(start: impl FnOnce() -> T) -> T {
    start()
}

pub(crate) mod child;

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

pub(crate) mod thread {
    pub(crate) fn current() -> usize {
        thread_local!(static HERE: u8 = const { 0 });
        HERE.with(|here| std::ptr::from_ref(here).addr())
    }
}

pub(crate) mod limits {
    use super::*;

    /// What of a process can be limited.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum Resource {
        /// Bytes of address space (RLIMIT_AS): allocations beyond it fail.
        Memory,
        /// Seconds of processor time (RLIMIT_CPU): SIGXCPU ends the process then.
        CpuTime,
        /// Descriptors (RLIMIT_NOFILE): one more than the highest number.
        OpenFiles,
        /// Bytes of a file that the process writes (RLIMIT_FSIZE): SIGXFSZ ends it beyond.
        FileSize,
        /// Bytes of a core file (RLIMIT_CORE); 0 for none.
        CoreSize,
        /// Processes and threads of its user (RLIMIT_NPROC).
        Processes,
        /// Bytes of the main thread's stack (RLIMIT_STACK).
        Stack,
        /// Bytes of memory that is kept from being swapped (RLIMIT_MEMLOCK).
        LockedMemory,
    }

    pub(crate) fn most(resource: Resource) -> String {
        "unlimited".into()
    }

    pub(crate) fn largest_file() -> u64 {
        0
    }

    pub(crate) fn set_niceness(pid: u32, niceness: i32) -> io::Result<()> {
        unsupported()
    }

    pub(crate) fn set_cpus(pid: u32, cpus: &[usize]) -> io::Result<()> {
        unsupported()
    }

    pub(crate) fn limit(pid: u32, resource: Resource, most: u64) -> io::Result<()> {
        unsupported()
    }
}

pub(crate) mod rendezvous {
    use super::*;

    pub(crate) fn listen() -> io::Result<(OwnedFd, Vec<u8>)> {
        unsupported()
    }

    pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
        unsupported()
    }

    pub(crate) fn meet(name: &[u8]) -> io::Result<OwnedFd> {
        unsupported()
    }
}

pub(crate) mod stream {
    use std::io::IoSlice;
    use std::time::Instant;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Calls {
        Socket,
        Pipe,
    }

    impl Calls {
        pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
            unsupported()
        }
    }

    pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
        unsupported()
    }

    pub(crate) fn try_read(
        fd: BorrowedFd<'_>,
        calls: Calls,
        bytes: &mut [u8],
    ) -> io::Result<usize> {
        unsupported()
    }

    pub(crate) fn try_write(
        fd: BorrowedFd<'_>,
        calls: Calls,
        parts: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        unsupported()
    }

    pub(crate) fn wait(fd: BorrowedFd<'_>, writing: bool, until: Instant) -> io::Result<bool> {
        unsupported()
    }

    pub(crate) fn wait_each(fds: &[RawFd], until: Instant) -> io::Result<Vec<usize>> {
        unsupported()
    }

    pub(crate) fn yield_now() {}

    pub(crate) fn close(fd: RawFd) -> io::Result<()> {
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
