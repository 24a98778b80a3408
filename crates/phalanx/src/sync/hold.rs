//! A lock that knows its holder.
//!
//! One word:
//!
//! | word | meaning |
//! | --- | --- |
//! | 0 | free |
//! | a [`ProcessId`] | held by that process |
//! | and its spare bit | perhaps somebody sleeps on the word |
//!
//! | step | by | what a death after it leaves |
//! | --- | --- | --- |
//! | 0 -> own | the acquirer | a dead holder: the next one takes the word over |
//! | spare bit set | one who is going to sleep | a wake-up too many |
//! | own -> 0 | the releaser | sleepers that nobody wakes: they look for themselves after a slice |
//! | wake one | the releaser | nothing |
//! | a dead holder's -> own | one who waits, after a look at the holder | a dead holder again |
//!
//! Who is woken has no claim on the word: whoever comes first has it (as with "Mutex, Take 2" of
//! Drepper, Futexes Are Tricky). It sets the spare bit again, for it does not know who else sleeps.

use std::sync::atomic;
use std::time::{Duration, Instant};

use super::word::{AtomicU64, Ordering, Placed, Woken, futex, words};
#[cfg(not(loom))]
use super::{Arena, Shared};
use super::{GLANCE, SLICE, Unmet, fault, is_over, sooner};
use crate::error::{Error, OwnerDied, Result};
use crate::sys::{Fate, ProcessId, monotonic};

/// Looks at a word that is held, before the first sleep. A holder that is about to release is
/// waited for in less time than a sleep and a wake-up take.
const SPINS: u32 = 100;

/// For how long one who only tries believes that the holder it has looked at still lives.
const TRUST: Duration = Duration::from_millis(10);

words! {
    /// The word; see the module.
    pub(crate) struct HoldWord {
        word: AtomicU64,
    }
}

/// How something was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what a dead process has left may be half changed"]
pub enum Acquired {
    /// From nobody.
    Free,
    /// From a process that had ended while it held it.
    Abandoned(OwnerDied),
}

impl HoldWord {
    /// Acquires the lock for this process if it is free, or its holder is dead.
    pub(crate) fn try_acquire(&self) -> Option<Acquired> {
        let own = ProcessId::own();
        if self.take(own) {
            return Some(Acquired::Free);
        }
        let seen = self.word.load(Ordering::Relaxed);
        if seen == 0 || !is_due(std::ptr::from_ref(&self.word).addr()) {
            return None;
        }
        self.take_over(seen, own.bits() | seen & ProcessId::SPARE)
    }

    /// Acquires the lock for this process.
    ///
    /// # Errors
    ///
    /// When the deadline comes first, or a signal.
    pub(crate) fn acquire(
        &self,
        deadline: Option<Instant>,
    ) -> std::result::Result<Acquired, Unmet> {
        let own = ProcessId::own();
        if self.take(own) {
            return Ok(Acquired::Free);
        }
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if self.word.load(Ordering::Relaxed) == 0 && self.take(own) {
                return Ok(Acquired::Free);
            }
        }
        self.wait(own, deadline)
    }

    #[cold]
    fn wait(
        &self,
        own: ProcessId,
        deadline: Option<Instant>,
    ) -> std::result::Result<Acquired, Unmet> {
        let own = own.bits() | ProcessId::SPARE;
        let mut sleep = GLANCE;
        loop {
            let seen = self.word.load(Ordering::Relaxed);
            if seen == 0 {
                if self.replace(0, own) {
                    return Ok(Acquired::Free);
                }
                continue;
            }
            let awaited = seen | ProcessId::SPARE;
            if seen != awaited && !self.replace(seen, awaited) {
                continue;
            }
            let woken = futex::wait_lower(&self.word, awaited, Some(sooner(sleep, deadline)));
            sleep = SLICE;
            match woken {
                Woken::Look => {}
                Woken::Interrupted => return Err(Unmet::Interrupted),
                Woken::TimedOut => {
                    if let Some(acquired) = self.take_over(awaited, own) {
                        return Ok(acquired);
                    }
                    if is_over(deadline) {
                        let taken = self.replace(0, own);
                        return if taken { Ok(Acquired::Free) } else { Err(Unmet::TimedOut) };
                    }
                }
            }
            fault("hold: woken, before it is acquired");
        }
    }

    /// Releases the lock, whoever in this process or another has acquired it; false if it is free.
    pub(crate) fn release(&self) -> bool {
        // Release: pairs with the Acquire of the next holder, who sees what this one has done.
        let held = self.word.swap(0, Ordering::Release);
        fault("hold: released, before the wake-up");
        if held & ProcessId::SPARE != 0 {
            futex::wake_lower(&self.word);
        }
        held != 0
    }

    /// The process that holds the lock, dead or alive.
    pub(crate) fn holder(&self) -> Option<ProcessId> {
        ProcessId::from_bits(self.word.load(Ordering::Relaxed))
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.holder() == Some(ProcessId::own())
    }

    /// As if that process held it.
    #[cfg(all(test, not(loom)))]
    pub(super) fn leave_to(&self, process: ProcessId) {
        self.word.store(process.bits(), Ordering::Relaxed);
    }

    fn take(&self, own: ProcessId) -> bool {
        self.replace(0, own.bits())
    }

    fn replace(&self, seen: u64, new: u64) -> bool {
        // Acquire: pairs with the Release in `release`.
        self.word.compare_exchange(seen, new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Makes `new` the holder in the place of `seen`, if that one has ended.
    #[cold]
    fn take_over(&self, seen: u64, new: u64) -> Option<Acquired> {
        // Nonsense in the word is nobody, who cannot release it either.
        let (pid, fate) = match ProcessId::from_bits(seen) {
            Some(holder) => (holder.pid(), holder.fate()),
            None => (0, Fate::Ended(None)),
        };
        let Fate::Ended(status) = fate else { return None };
        let died = OwnerDied::new(pid, status);
        self.replace(seen, new).then_some(Acquired::Abandoned(died))
    }
}

/// Whether it is time to look after the holder of the word at `place`: a look costs more than a try.
pub(super) fn is_due(place: usize) -> bool {
    /// When words were looked at last, in nanoseconds; several share a place.
    static LOOKED: [atomic::AtomicU64; 64] = [const { atomic::AtomicU64::new(0) }; 64];
    let looked = &LOOKED[(place / 64) % LOOKED.len()];
    let now = monotonic().as_nanos() as u64;
    // By chance a little sooner or later, so that of two words in one place, tried in turn, not
    // the same one always comes when it is time.
    let chance = ((now.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) * TRUST.as_nanos() as u64) >> 16;
    let trust = TRUST.as_nanos() as u64 / 2 + chance;
    let due = now.saturating_sub(looked.load(atomic::Ordering::Relaxed)) >= trust;
    if due {
        looked.store(now, atomic::Ordering::Relaxed);
    }
    due
}

/// A lock of processes, in a block of shared memory.
///
/// It is not recursive, and does not tell the threads of a process from one another. Whoever waits
/// for a holder that has ended acquires the lock within 100 ms, and is told.
#[derive(Debug)]
pub struct Hold(Placed<HoldWord>);

impl Hold {
    /// A free lock.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> Result<Self> {
        Placed::new().map(Self).map_err(|error| Error::os("make a lock", error))
    }

    /// Acquires the lock if that takes no wait.
    #[inline]
    pub fn try_acquire(&self) -> Option<Acquired> {
        self.0.try_acquire()
    }

    /// Acquires the lock.
    ///
    /// # Errors
    ///
    /// When the deadline comes first, or a signal.
    #[inline]
    pub fn acquire(&self, deadline: Option<Instant>) -> std::result::Result<Acquired, Unmet> {
        self.0.acquire(deadline)
    }

    /// Releases the lock; false if nobody held it.
    #[inline]
    pub fn release(&self) -> bool {
        self.0.release()
    }

    /// Is it held, and by this process?
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.0.holder() == Some(ProcessId::own())
    }

    /// Is it held?
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.holder().is_some()
    }
}

#[cfg(not(loom))]
impl Shared for Hold {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Placed::open(arena, offset).map(Self).map_err(|error| Error::os("open a lock", error))
    }

    fn place(&self) -> (Arena, usize) {
        self.0.expose()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::tests::{nobody, soon};

    #[test]
    fn a_lock_is_held_by_one_and_free_when_released() {
        let lock = Hold::new().unwrap();
        assert!(!lock.release(), "nobody holds it");
        assert_eq!(lock.try_acquire(), Some(Acquired::Free));
        assert!(lock.is_held() && lock.is_ours());
        assert_eq!(lock.try_acquire(), None);
        assert_eq!(lock.acquire(soon()), Err(Unmet::TimedOut));
        assert!(lock.release() && !lock.is_held());
        assert_eq!(lock.acquire(soon()), Ok(Acquired::Free));
    }

    #[test]
    fn a_lock_of_the_dead_is_acquired_by_one_who_waits_and_by_one_who_tries() {
        let (lock, nobody) = (Hold::new().unwrap(), nobody());
        let died = |acquired| match acquired {
            Some(Acquired::Abandoned(died)) => died.pid == nobody.pid(),
            _ => false,
        };
        lock.0.word.store(nobody.bits(), Ordering::Relaxed);
        let start = Instant::now();
        assert!(died(lock.acquire(None).ok()));
        assert!(start.elapsed() < Duration::from_millis(100));
        lock.0.word.store(nobody.bits(), Ordering::Relaxed);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) && lock.0.holder() == Some(nobody) {
            assert!(lock.try_acquire().is_none_or(|acquired| died(Some(acquired))));
        }
        assert!(lock.is_ours());
    }

    #[test]
    fn nonsense_in_the_word_is_held_by_nobody() {
        let lock = Hold::new().unwrap();
        lock.0.word.store(7 << 40, Ordering::Relaxed);
        assert!(matches!(lock.acquire(None), Ok(Acquired::Abandoned(_))));
    }

    #[test]
    fn threads_that_contend_are_alone_inside() {
        let lock = Hold::new().unwrap();
        let inside = AtomicU64::new(0);
        let total = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        assert_eq!(lock.acquire(None), Ok(Acquired::Free));
                        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                        total.store(total.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        inside.fetch_sub(1, Ordering::Relaxed);
                        assert!(lock.release());
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 80_000);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32;
    use loom::thread;

    /// A sleep that nobody ends is a deadlock, which loom sees.
    #[test]
    fn one_is_inside_and_no_wake_up_is_lost() {
        loom::model(|| {
            let lock = Arc::new(Hold::new().unwrap());
            let inside = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (lock, inside) = (lock.clone(), inside.clone());
                    thread::spawn(move || {
                        let own = ProcessId::own();
                        if !lock.0.take(own) {
                            assert_eq!(lock.0.wait(own, None), Ok(Acquired::Free));
                        }
                        // Relaxed: the lock orders them.
                        let seen = inside.load(Ordering::Relaxed);
                        inside.store(seen + 1, Ordering::Relaxed);
                        assert!(lock.release());
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert_eq!(inside.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn one_of_two_takes_over_from_the_dead() {
        loom::model(|| {
            let lock = Arc::new(Hold::new().unwrap());
            let dead = 7 << 40; // no process, and so none that lives
            lock.0.word.store(dead, Ordering::Relaxed);
            let own = ProcessId::own().bits();
            let other = {
                let lock = lock.clone();
                thread::spawn(move || lock.0.take_over(dead, own).is_some())
            };
            let mine = lock.0.take_over(dead, own).is_some();
            assert!(other.join().unwrap() != mine);
        });
    }
}
