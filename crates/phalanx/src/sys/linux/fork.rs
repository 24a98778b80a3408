//! What a forked child must not keep: pthread_atfork(3).
//!
//! The host program may fork at any line, in any thread, and know nothing of us. A handler that
//! runs in the child counts the fork and closes the descriptors that only the parent may hold.
//! It takes no lock and allocates nothing, so it may run whatever the other threads were doing:
//! the registry is a list of slots that are claimed and freed by single stores, and never shrinks.
//! A fork that falls between the birth of a descriptor and its claim leaves a copy in that child.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Once, OnceLock};

static GENERATION: AtomicU32 = AtomicU32::new(0);
static REGISTRY: Chunk = Chunk::new();

/// How many forks lie between this process and the one that loaded the library.
///
/// A value remembers the generation that it was made in, and so knows a copy of itself in a
/// forked child.
pub(crate) fn generation() -> u32 {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the handler only uses atomics and close(2), which may run in a forked child.
        let failed = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        assert!(failed == 0, "no memory for a fork handler");
    });
    GENERATION.load(Ordering::Relaxed)
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    let mut chunk = Some(&REGISTRY);
    while let Some(Chunk { slots, next }) = chunk {
        for slot in slots {
            let fd = slot.swap(FREE, Ordering::Relaxed);
            if fd != FREE {
                // SAFETY: the child's copy of a descriptor whose `ForkClosed` will not touch it
                // again in this process, as its generation has passed.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        chunk = next.get().map(|next| &**next);
    }
}

const FREE: RawFd = -1;

/// Slots for descriptors, `FREE` or in use, and more of them when these are full.
struct Chunk {
    slots: [AtomicI32; 64],
    next: OnceLock<Box<Chunk>>,
}

impl Chunk {
    const fn new() -> Self {
        Self { slots: [const { AtomicI32::new(FREE) }; 64], next: OnceLock::new() }
    }

    fn claim(&'static self, fd: RawFd) -> &'static AtomicI32 {
        let free = |slot: &&AtomicI32| {
            slot.compare_exchange(FREE, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        match self.slots.iter().find(free) {
            Some(slot) => slot,
            None => self.next.get_or_init(|| Box::new(Self::new())).claim(fd),
        }
    }
}

/// A descriptor that no forked child keeps: closed there before anybody can use it.
#[derive(Debug)]
pub(crate) struct ForkClosed {
    fd: RawFd,
    slot: &'static AtomicI32,
    generation: u32,
}

impl ForkClosed {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let generation = generation();
        let fd = std::os::fd::IntoRawFd::into_raw_fd(fd);
        Self { fd, slot: REGISTRY.claim(fd), generation }
    }

    /// Are we in the process that made this, and not in one forked from it?
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == generation()
    }

    /// The descriptor, or an error in a forked child.
    pub(crate) fn get(&self) -> io::Result<BorrowedFd<'_>> {
        if !self.is_ours() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: open until `drop`, since we are in the process that owns it.
        Ok(unsafe { BorrowedFd::borrow_raw(self.fd) })
    }
}

impl AsFd for ForkClosed {
    /// # Panics
    ///
    /// In a forked child, which does not have the descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get().expect("a descriptor of the process that this one was forked from")
    }
}

impl AsRawFd for ForkClosed {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for ForkClosed {
    fn drop(&mut self) {
        if self.is_ours() {
            self.slot.store(FREE, Ordering::Relaxed);
            // SAFETY: ours alone since `new`, and in this process nobody closed it.
            drop(unsafe { OwnedFd::from_raw_fd(self.fd) });
        }
    }
}
