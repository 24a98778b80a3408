//! Sleeping on a word of shared memory: futex(2).

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Somebody woke us, or the word no longer had the value; look again.
    Look,
    TimedOut,
    /// A signal handler ran in this thread.
    Interrupted,
}

/// Sleeps while `word` is `expected`, until a [`wake`], the deadline, or a signal.
///
/// The word may lie in memory that other processes map, so the futex is not private.
pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Woken {
    let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
        Some(Duration::ZERO) => return Woken::TimedOut,
        // The kernel's seconds are signed; a century is as good as for ever.
        Some(left) => Some(left.min(Duration::from_secs(3_000_000_000)).try_into().unwrap()),
        None => None,
    };
    match futex::wait(word, futex::Flags::empty(), expected, timeout.as_ref()) {
        Err(Errno::TIMEDOUT) => Woken::TimedOut,
        Err(Errno::INTR) => Woken::Interrupted,
        Ok(()) | Err(_) => Woken::Look,
    }
}

/// As [`wait`], while the lower 32 bits of `word` are those of `expected`.
pub(crate) fn wait_lower(word: &AtomicU64, expected: u64, deadline: Option<Instant>) -> Woken {
    wait(lower(word), expected as u32, deadline)
}

/// Wakes one thread that sleeps on `word`, in whichever process it is.
pub(crate) fn wake(word: &AtomicU32) {
    wake_many(word, 1);
}

/// Wakes `most` threads that sleep on `word`.
pub(crate) fn wake_many(word: &AtomicU32, most: u32) {
    // Waking cannot fail on an address that we can name. The kernel's count is signed.
    let _ = futex::wake(word, futex::Flags::empty(), most.min(i32::MAX as u32));
}

/// As [`wait_lower`], and tells whether this sleeper was woken, so that its waker counted it.
pub(crate) fn sleep_lower(word: &AtomicU64, expected: u64, left: Duration) -> bool {
    let timeout = left.min(Duration::from_secs(3600)).try_into().unwrap();
    futex::wait(lower(word), futex::Flags::empty(), expected as u32, Some(&timeout)).is_ok()
}

/// Wakes `most` threads that sleep on the lower half of `word`, and tells how many those were.
pub(crate) fn wake_counted(word: &AtomicU64, most: u32) -> u32 {
    let most = most.min(i32::MAX as u32);
    futex::wake(lower(word), futex::Flags::empty(), most).unwrap_or(0) as u32
}

/// Wakes one thread that sleeps on the lower half of `word`.
pub(crate) fn wake_lower(word: &AtomicU64) {
    wake(lower(word));
}

/// The half of a word that the kernel looks at; nobody here reads or writes through it.
fn lower(word: &AtomicU64) -> &AtomicU32 {
    let half = usize::from(cfg!(target_endian = "big"));
    let word = std::ptr::from_ref(word).cast::<AtomicU32>().wrapping_add(half);
    // SAFETY: inside the word, aligned, and alive as long as it.
    unsafe { &*word }
}
