//! A flag that processes wait for.
//!
//! One word counts how often the flag has changed: it is odd while the flag is set. So one who
//! waits sees that the flag was set even if it is cleared again before it looks.
//!
//! | step | by | what a death after it leaves |
//! | --- | --- | --- |
//! | sleepers + 1 | one who is going to sleep | wake-ups that wake nobody |
//! | word + 1 | one who sets or clears | sleepers that nobody wakes: they look after a slice |
//! | wake all | one who sets | nothing |

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::{Unmet, is_over, slice};
use crate::shm::{Arena, Placed, words};
use crate::sys::futex::{self, Woken};

words! {
    struct Words {
        word: AtomicU32,
        sleepers: AtomicU32,
    }
}

/// A flag in a block of shared memory.
#[derive(Debug)]
pub struct Event(Placed<Words>);

impl Event {
    /// A flag that is not set.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> io::Result<Self> {
        Placed::new().map(Self)
    }

    /// The flag of another process.
    ///
    /// # Errors
    ///
    /// If there is none at that place.
    pub fn open(arena: &Arena, offset: usize) -> io::Result<Self> {
        Placed::open(arena, offset).map(Self)
    }

    /// Where it is, for [`open`](Self::open).
    #[must_use]
    pub fn place(&self) -> (Arena, usize) {
        self.0.expose()
    }

    /// Is the flag set?
    #[must_use]
    #[inline]
    pub fn is_set(&self) -> bool {
        // Acquire: pairs with the Release in `set`.
        self.0.word.load(Ordering::Acquire) % 2 == 1
    }

    /// Sets the flag, and wakes all who wait.
    pub fn set(&self) {
        self.change(0);
        if self.0.sleepers.load(Ordering::SeqCst) > 0 {
            futex::wake_many(&self.0.word, u32::MAX);
        }
    }

    /// Clears the flag.
    pub fn clear(&self) {
        self.change(1);
    }

    fn change(&self, from: u32) {
        let next = |word: u32| (word % 2 == from).then(|| word.wrapping_add(1));
        // Release, and a full fence as is the sleeper's addition: either it sees the change, or
        // we see the sleeper.
        let _ = self.0.word.fetch_update(Ordering::SeqCst, Ordering::Relaxed, next);
    }

    /// Waits until the flag is set, or was for a moment.
    ///
    /// # Errors
    ///
    /// When the deadline comes first, or a signal.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<(), Unmet> {
        self.wait_since(self.now(), deadline)
    }

    /// What [`wait_since`](Self::wait_since) compares with: for a wait in several parts.
    #[must_use]
    pub fn now(&self) -> u32 {
        self.0.word.load(Ordering::Acquire)
    }

    /// As [`wait`](Self::wait), for a wait that began when [`now`](Self::now) was `before`.
    ///
    /// # Errors
    ///
    /// As `wait`.
    pub fn wait_since(&self, before: u32, deadline: Option<Instant>) -> Result<(), Unmet> {
        if before % 2 == 1 {
            return Ok(());
        }
        self.0.sleepers.fetch_add(1, Ordering::SeqCst);
        let met = loop {
            if self.0.word.load(Ordering::Acquire) != before {
                break Ok(());
            }
            match futex::wait(&self.0.word, before, Some(slice(deadline))) {
                Woken::Look => {}
                Woken::Interrupted => break Err(Unmet::Interrupted),
                Woken::TimedOut if is_over(deadline) => break Err(Unmet::TimedOut),
                Woken::TimedOut => {}
            }
        };
        self.0.sleepers.fetch_sub(1, Ordering::Relaxed);
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flag_that_was_set_for_a_moment_ends_a_wait() {
        let event = Event::new().unwrap();
        assert_eq!(
            event.wait(Some(Instant::now() + Duration::from_millis(5))),
            Err(Unmet::TimedOut)
        );
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| event.wait(None));
            while event.0.sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            event.set();
            event.set();
            event.clear();
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
        assert!(!event.is_set());
        event.set();
        assert!(event.is_set() && event.wait(None).is_ok());
    }
}
