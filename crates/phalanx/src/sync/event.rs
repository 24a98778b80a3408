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

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::{Shared, Unmet, fault, finally, is_over, slice};
use crate::error::{Error, Result};
use crate::shm::{Arena, Placed, words};
use crate::sys::futex::{self, Woken};

words! {
    struct Words {
        word: AtomicU32,
        sleepers: AtomicU32,
    }
}

/// A flag that processes wait for, in a block of shared memory.
///
/// | what happens | what follows |
/// | --- | --- |
/// | it is set and cleared at once | all who waited then go on |
/// | a process ends in the middle of [`set`](Self::set) | who waits looks for itself within 100 ms |
/// | one who waits ends | nothing |
#[derive(Debug)]
pub struct Event(Placed<Words>);

impl Event {
    /// A flag that is not set.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> Result<Self> {
        Placed::new().map(Self).map_err(|error| Error::os("make an event", error))
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
        fault("event: set, before the wake-up");
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
    pub fn wait(&self) {
        let before = self.now();
        let _ = finally(None, |deadline| self.wait_since(before, deadline));
    }

    /// As [`wait`](Self::wait); false if the deadline comes first.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let before = self.now();
        finally(Some(deadline), |deadline| self.wait_since(before, deadline)).is_some()
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
    /// When the deadline comes first, or a signal.
    pub fn wait_since(
        &self,
        before: u32,
        deadline: Option<Instant>,
    ) -> std::result::Result<(), Unmet> {
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

impl Shared for Event {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Placed::open(arena, offset).map(Self).map_err(|error| Error::os("open an event", error))
    }

    fn place(&self) -> (Arena, usize) {
        self.0.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flag_that_was_set_for_a_moment_ends_a_wait() {
        let event = Event::new().unwrap();
        assert!(!event.wait_until(Instant::now() + Duration::from_millis(5)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| event.wait());
            while event.0.sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            event.set();
            event.set();
            event.clear();
            waiting.join().unwrap();
        });
        assert!(!event.is_set());
        event.set();
        assert!(event.is_set());
        event.wait();
    }
}
