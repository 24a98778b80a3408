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

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Unmet, is_over, slice};
use crate::error::OwnerDied;
use crate::shm::{Arena, Placed, words};
use crate::sys::futex::{self, Woken};
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
        if seen == 0 || !is_due(&self.word) {
            return None;
        }
        self.take_over(seen, own.bits() | seen & ProcessId::SPARE)
    }

    /// Acquires the lock for this process.
    ///
    /// # Errors
    ///
    /// When the deadline comes first, or a signal.
    pub(crate) fn acquire(&self, deadline: Option<Instant>) -> Result<Acquired, Unmet> {
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
    fn wait(&self, own: ProcessId, deadline: Option<Instant>) -> Result<Acquired, Unmet> {
        let own = own.bits() | ProcessId::SPARE;
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
            match futex::wait_lower(&self.word, awaited, Some(slice(deadline))) {
                Woken::Look => {}
                Woken::Interrupted => return Err(Unmet::Interrupted),
                Woken::TimedOut => {
                    if let Some(acquired) = self.take_over(awaited, own) {
                        return Ok(acquired);
                    }
                    if is_over(deadline) {
                        return Err(Unmet::TimedOut);
                    }
                }
            }
        }
    }

    /// Releases the lock, whoever in this process or another has acquired it; false if it is free.
    pub(crate) fn release(&self) -> bool {
        // Release: pairs with the Acquire of the next holder, who sees what this one has done.
        let held = self.word.swap(0, Ordering::Release);
        if held & ProcessId::SPARE != 0 {
            futex::wake_lower(&self.word);
        }
        held != 0
    }

    /// The process that holds the lock, dead or alive.
    pub(crate) fn holder(&self) -> Option<ProcessId> {
        ProcessId::from_bits(self.word.load(Ordering::Relaxed))
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

/// Whether it is time to look after the holder of this word again: a look costs more than a try.
fn is_due(word: &AtomicU64) -> bool {
    /// When words were looked at last, in nanoseconds; several share a place.
    static LOOKED: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    let place = (std::ptr::from_ref(word).addr() / 64) % LOOKED.len();
    let now = monotonic().as_nanos() as u64;
    let looked = LOOKED[place].load(Ordering::Relaxed);
    let due = now.saturating_sub(looked) >= TRUST.as_nanos() as u64;
    if due {
        LOOKED[place].store(now, Ordering::Relaxed);
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
    pub fn new() -> io::Result<Self> {
        Placed::new().map(Self)
    }

    /// The lock of another process.
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
    pub fn acquire(&self, deadline: Option<Instant>) -> Result<Acquired, Unmet> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that has ended and was reaped.
    fn nobody() -> ProcessId {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let bits = u64::from(child.id()) | 1 << 23;
        child.wait().unwrap();
        ProcessId::from_bits(bits).unwrap()
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(5))
    }

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
