//! A semaphore that knows who holds its units.
//!
//! | step | by | what a death after it leaves |
//! | --- | --- | --- |
//! | roster + 1 | the acquirer, before it takes | one unit too many, at most up to the bound, once it is settled |
//! | units - 1 | the acquirer | a unit of the dead: settled by one who waits |
//! | sleepers + 1 | one who is going to sleep | wake-ups that wake nobody |
//! | units + 1, roster - 1 | the releaser | as the first row |
//! | wake one | the releaser | nothing |
//!
//! What the dead hold is given back where holding means something. In a bounded semaphore each unit
//! is released by whoever acquired it. In another one, units may also be signals: acquired by one
//! process and released by another, for which a dead process holds nothing. It is taken for that
//! kind if it began at 0, or from the first release on by a process that held none.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::hold::Acquired;
use super::roster::{Line, Roster};
use super::{Unmet, is_over, slice};
use crate::shm::{Arena, Placed, words};
use crate::sys::futex::{self, Woken};

const SPINS: u32 = 100;

/// How many processes can hold units that are given back if they die. What others hold is not.
const HOLDERS: usize = 30;

words! {
    struct Words {
        units: AtomicU32,
        sleepers: AtomicU32,
        /// No more than so many units.
        bound: AtomicU32,
        /// 1 if what the dead hold is not given back.
        signals: AtomicU32,
        holders: [Line; HOLDERS],
    }
}

/// Units that processes acquire and release, in a block of shared memory.
#[derive(Debug)]
pub struct Semaphore(Placed<Words>);

impl Semaphore {
    /// The most units that there can be.
    pub const MOST: u32 = i32::MAX as u32;

    /// A semaphore of so many units. With a bound there are never more than that, and what dead
    /// processes hold is always given back.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new(units: u32, bound: Option<u32>) -> io::Result<Self> {
        let words = Placed::<Words>::new()?;
        words.units.store(units, Ordering::Relaxed);
        words.bound.store(bound.unwrap_or(Self::MOST), Ordering::Relaxed);
        words.signals.store(u32::from(bound.is_none() && units == 0), Ordering::Relaxed);
        Ok(Self(words))
    }

    /// The semaphore of another process.
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

    fn roster(&self) -> Roster<'_> {
        Roster(&self.0.holders)
    }

    /// How many units are free.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.0.units.load(Ordering::Relaxed)
    }

    /// The most units that can be free.
    #[must_use]
    pub fn bound(&self) -> u32 {
        self.0.bound.load(Ordering::Relaxed)
    }

    /// Takes a unit if one is free.
    pub fn try_acquire(&self) -> Option<Acquired> {
        if self.value() > 0 && self.take() {
            return Some(Acquired::Free);
        }
        None
    }

    /// Acquires a unit.
    ///
    /// # Errors
    ///
    /// When the deadline comes first, or a signal.
    pub fn acquire(&self, deadline: Option<Instant>) -> Result<Acquired, Unmet> {
        for _ in 0..SPINS {
            if self.value() > 0 && self.take() {
                return Ok(Acquired::Free);
            }
            if is_over(deadline) {
                break;
            }
            std::hint::spin_loop();
        }
        self.0.sleepers.fetch_add(1, Ordering::SeqCst);
        let acquired = self.wait(deadline);
        self.0.sleepers.fetch_sub(1, Ordering::Relaxed);
        acquired
    }

    #[cold]
    fn wait(&self, deadline: Option<Instant>) -> Result<Acquired, Unmet> {
        let mut acquired = Acquired::Free;
        loop {
            if self.value() > 0 && self.take() {
                return Ok(acquired);
            }
            match futex::wait(&self.0.units, 0, Some(slice(deadline))) {
                Woken::Look => {}
                Woken::Interrupted => return Err(Unmet::Interrupted),
                Woken::TimedOut => {
                    if self.0.signals.load(Ordering::Relaxed) == 0
                        && let Some((units, died)) = self.roster().settle()
                    {
                        self.give(units);
                        acquired = Acquired::Abandoned(died);
                    } else if is_over(deadline) {
                        return Err(Unmet::TimedOut);
                    }
                }
            }
        }
    }

    fn take(&self) -> bool {
        let signals = self.0.signals.load(Ordering::Relaxed) != 0;
        let counted = !signals && self.roster().add();
        let less = |units: u32| units.checked_sub(1);
        // Acquire: pairs with the Release in `give`.
        let taken = self.0.units.fetch_update(Ordering::Acquire, Ordering::Relaxed, less).is_ok();
        if counted && !taken {
            self.roster().remove();
        }
        taken
    }

    /// Releases a unit; false if there are as many as there can be.
    pub fn release(&self) -> bool {
        if self.value() >= self.bound() {
            return false;
        }
        if self.0.signals.load(Ordering::Relaxed) == 0
            && !self.roster().remove()
            && self.bound() == Self::MOST
        {
            self.0.signals.store(1, Ordering::Relaxed);
        }
        self.give(1)
    }

    fn give(&self, units: u32) -> bool {
        let bound = self.bound();
        let more = |free: u32| (free < bound).then(|| free.saturating_add(units).min(bound));
        // Release: pairs with the Acquire in `take`. And a full fence, as is the sleeper's addition:
        // either it sees the unit, or we see the sleeper.
        let given = self.0.units.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).is_ok();
        if self.0.sleepers.load(Ordering::SeqCst) > 0 {
            futex::wake_many(&self.0.units, units);
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(5))
    }

    #[test]
    fn units_are_taken_and_given_back() {
        let semaphore = Semaphore::new(2, None).unwrap();
        assert_eq!(semaphore.try_acquire(), Some(Acquired::Free));
        assert_eq!(semaphore.acquire(soon()), Ok(Acquired::Free));
        assert_eq!((semaphore.try_acquire(), semaphore.value()), (None, 0));
        assert_eq!(semaphore.acquire(soon()), Err(Unmet::TimedOut));
        assert!(semaphore.release() && semaphore.release() && semaphore.release());
        assert_eq!(semaphore.value(), 3);
    }

    #[test]
    fn a_bound_is_kept() {
        let semaphore = Semaphore::new(1, Some(1)).unwrap();
        assert!(!semaphore.release());
        assert!(semaphore.try_acquire().is_some() && semaphore.release());
        assert_eq!(semaphore.value(), 1);
    }

    #[test]
    fn a_release_wakes_a_thread_that_waits() {
        let semaphore = Semaphore::new(0, None).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| semaphore.acquire(None));
            while semaphore.0.sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(semaphore.release());
            assert_eq!(waiting.join().unwrap(), Ok(Acquired::Free));
        });
        assert_eq!(semaphore.0.sleepers.load(Ordering::SeqCst), 0);
    }
}
