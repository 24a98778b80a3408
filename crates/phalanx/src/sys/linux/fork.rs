//! What a forked child must not keep: pthread_atfork(3).
//!
//! The host program may fork at any line, in any thread, and know nothing of us. A handler that
//! runs in the child counts the fork and closes the descriptors that only the parent may hold.
//! It takes no lock and allocates nothing, so it may run whatever the other threads were doing:
//! the registry is a list of slots that are claimed and freed by single stores, and never shrinks.
//! A descriptor is born and closed [behind the gate](undivided), together with its slot: a fork copies
//! descriptors first and memory later, and would find one without the other. One that came from
//! elsewhere leaves a copy in a child that was forked before it was claimed.

use std::cell::{Cell, UnsafeCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Once, OnceLock};

use super::{futex, identity};

static GENERATION: AtomicU32 = AtomicU32::new(0);
/// How many children this process has forked off.
static CHILDREN: AtomicU64 = AtomicU64::new(0);
static GATE: Gate = Gate(AtomicU32::new(OPEN));
static REGISTRY: Chunk = Chunk::new();

/// How many forks lie between this process and the one that loaded the library.
///
/// A value remembers the generation that it was made in, and so knows a copy of itself in a
/// forked child.
pub(crate) fn generation() -> u32 {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the handlers only use atomics, futex(2) and close(2), which may run in a forked
        // child.
        let failed =
            unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
        assert!(failed == 0, "no memory for a fork handler");
    });
    GENERATION.load(Ordering::Relaxed)
}

/// How many children this process has forked off: what was made since the last cannot be known
/// to any of them.
pub(crate) fn children() -> u64 {
    generation(); // registers the handlers
    CHILDREN.load(Ordering::Relaxed)
}

extern "C" fn before_fork() {
    GATE.close();
    CHILDREN.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn in_parent() {
    GATE.open();
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    CHILDREN.store(0, Ordering::Relaxed);
    identity::forget();
    GATE.open(); // nobody waits at the child's copy: it has no other threads
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

/// Forks; the child does nothing but `child`, and ends with the code that this returns.
#[cfg(all(test, not(loom)))]
pub(crate) fn fork(child: impl FnOnce() -> i32) -> io::Result<u32> {
    // SAFETY: the caller's process has one thread, so the child may do what it could have done.
    match unsafe { libc::fork() } {
        0 => {
            let code = child();
            // SAFETY: it ends the process, and runs nothing that is the parent's to run.
            unsafe { libc::_exit(code) }
        }
        pid => u32::try_from(pid).map_err(|_| io::Error::last_os_error()),
    }
}

/// State of the process that a fork finds whole: whoever forks waits for those inside.
///
/// Short and simple work only, without a second `with`, a fork or foreign code inside.
pub(crate) struct Whole<T>(UnsafeCell<T>);

// SAFETY: the inside is reached through the gate, by one thread at a time.
unsafe impl<T: Send> Sync for Whole<T> {}

impl<T> Whole<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Runs `call` alone.
    ///
    /// # Panics
    ///
    /// Within another `with`.
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut T) -> R) -> R {
        assert!(!INSIDE.get(), "one at a time");
        // SAFETY: the gate is closed behind us, and `call` does not outlive this function.
        undivided(|| call(unsafe { &mut *self.0.get() }))
    }
}

thread_local! {
    /// This thread has closed the gate.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call`, short and simple, so that a fork falls before or after it.
pub(crate) fn undivided<R>(call: impl FnOnce() -> R) -> R {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE.set(false);
            GATE.open();
        }
    }
    if INSIDE.get() {
        return call();
    }
    generation(); // registers the handlers
    GATE.close();
    INSIDE.set(true);
    let _inside = Inside;
    call()
}

const OPEN: u32 = 0;
const CLOSED: u32 = 1;
/// Closed, and perhaps somebody sleeps in front of it.
const AWAITED: u32 = 2;

/// A lock that needs no guard, so that it can be closed in one fork handler and opened in another.
///
/// The three states are those of "Mutex, Take 2" (Drepper, Futexes Are Tricky).
struct Gate(AtomicU32);

impl Gate {
    fn close(&self) {
        // Acquire: pairs with the Release in `open`.
        if self.0.compare_exchange(OPEN, CLOSED, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.0.swap(AWAITED, Ordering::Acquire) != OPEN {
                futex::wait(&self.0, AWAITED, None);
            }
        }
    }

    fn open(&self) {
        // Release: pairs with the Acquire in `close`.
        if self.0.swap(OPEN, Ordering::Release) == AWAITED {
            futex::wake(&self.0);
        }
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
            undivided(|| {
                self.slot.store(FREE, Ordering::Relaxed);
                // SAFETY: ours alone since `new`, and in this process nobody closed it.
                drop(unsafe { OwnedFd::from_raw_fd(self.fd) });
            });
        }
    }
}
