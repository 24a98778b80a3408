//! A semaphore that knows who holds its units.
//!
//! A unit that can be given back has a *slot*: a word that is 0 while the unit is free, and names the
//! process that holds it. So a unit changes hands by one compare-and-swap, and there is no moment
//! at which a death could lose or double it. Units beyond the slots are *loose*: counted only.
//!
//! | step | by | what a death after it leaves |
//! | --- | --- | --- |
//! | slot: 0 -> own, or loose - 1 | the acquirer | a unit of the dead: the next one takes it over |
//! | sleepers + 1 | one who is going to sleep | wake-ups that wake nobody |
//! | slot: own -> 0, or loose + 1 | the releaser | sleepers that nobody wakes: they look after a slice |
//! | epoch + 1, wake one | the releaser | nothing |
//! | slot: a dead holder's -> own | one who waits, after a look at the holder | a dead holder again |
//!
//! What the dead hold is given back where holding means something. In a bounded semaphore each unit
//! is released for one that was acquired. In another one, units may also be signals: acquired by one
//! process and released by another, for which a dead process holds nothing. It is taken for that
//! kind if it began at 0, and from the first release on by a process that held none.

use std::sync::atomic::AtomicU32 as Hint;
use std::time::Instant;

use super::hold::{Acquired, is_due};
use super::word::{AtomicU32, AtomicU64, Ordering, Placed, Woken, fence, futex, words};
use super::{Abandoned, Locked, Unmet, fault, finally, is_over, slice};
#[cfg(not(loom))]
use super::{Arena, Shared};
use crate::error::{Error, OwnerDied, Result};
use crate::sys::{Fate, ProcessId};

const SPINS: u32 = 100;

/// Most semaphores have few units. Both sizes begin alike.
#[cfg(not(loom))]
const FEW: usize = 29;
#[cfg(not(loom))]
const MANY: usize = 1021;
#[cfg(loom)]
const FEW: usize = 1;
#[cfg(loom)]
const MANY: usize = 2;

words! {
    struct Head {
        /// Counts releases that somebody slept for.
        epoch: AtomicU32,
        sleepers: AtomicU32,
        /// Units without a slot that are free now.
        loose: AtomicU32,
        /// How many units it began with, and how many of them have slots.
        first: AtomicU32,
        slots: AtomicU32,
        /// 1 if there are never more units than at first.
        is_bounded: AtomicU32,
        /// 1 if what the dead hold is not given back.
        signals: AtomicU32,
        _spare: AtomicU32,
    }
}

words! {
    struct Few {
        head: Head,
        slots: [AtomicU64; FEW],
    }
}

words! {
    struct Many {
        head: Head,
        slots: [AtomicU64; MANY],
    }
}

#[derive(Debug)]
enum Inner {
    Few(Placed<Few>),
    Many(Placed<Many>),
}

/// Units that processes acquire and release, in a block of shared memory.
///
/// ```
/// # fn main() -> phalanx::Result<()> {
/// let permits = phalanx::sync::Semaphore::new(2, Some(2))?;
/// let first = permits.acquire();
/// let second = permits.acquire();
/// assert!(permits.try_acquire().is_none());
/// drop((first, second)); // released
/// assert_eq!(permits.value(), 2);
/// # Ok(()) }
/// ```
///
/// | what happens | what follows |
/// | --- | --- |
/// | a process ends that holds units | who waits has them within 100 ms, and is told: [`Abandoned`]; see [`new`](Self::new) for which |
/// | a process ends in the middle of an operation | the unit is free or the dead one's, never neither and never twice |
/// | one is released that nobody acquired | false from [`release`](Self::release) if there is a bound |
/// | more units at first than [`MOST`](Self::MOST) | an [invalid](Error::is_invalid) argument |
#[derive(Debug)]
pub struct Semaphore {
    inner: Inner,
    /// The slot that this process used last.
    hint: Hint,
}

/// A unit of a [`Semaphore`], which is released when this is dropped.
#[derive(Debug)]
#[must_use = "a permit that is dropped is released"]
pub struct Permit<'a>(&'a Semaphore);

impl Permit<'_> {
    /// Keeps the unit acquired: it is no longer released by itself.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Semaphore {
    /// The most units that there can be.
    pub const MOST: u32 = i32::MAX as u32;

    /// A semaphore of so many units at first. With a bound, which is the same number, there are
    /// never more.
    ///
    /// Units of a process that ends are given back if there is a bound; else if it began above 0 and
    /// nobody ever released a unit who held none. (Then units are signals, which the dead has had.)
    /// Beyond 1021 units, those that are used last are not given back.
    ///
    /// # Errors
    ///
    /// If there are too many, or the bound is another number; if there is no descriptor or no memory
    /// for one more arena of shared blocks.
    pub fn new(units: u32, bound: Option<u32>) -> Result<Self> {
        if units > Self::MOST || bound.is_some_and(|bound| bound != units) {
            return Err(Error::invalid(format!(
                "a semaphore begins with 0 to {} units, and a bound is as many: not {units}, {bound:?}",
                Self::MOST
            )));
        }
        let failed = |error| Error::os("make a semaphore", error);
        let inner = if units as usize <= FEW {
            Inner::Few(Placed::new().map_err(failed)?)
        } else {
            Inner::Many(Placed::new().map_err(failed)?)
        };
        let this = Self { inner, hint: Hint::new(0) };
        let (head, slots) = this.parts();
        let slots = units.min(slots.len() as u32);
        let relaxed = Ordering::Relaxed;
        head.first.store(units, relaxed);
        head.slots.store(slots, relaxed);
        head.loose.store(units - slots, relaxed);
        head.is_bounded.store(bound.is_some().into(), relaxed);
        head.signals.store((bound.is_none() && units == 0).into(), relaxed);
        Ok(this)
    }

    fn parts(&self) -> (&Head, &[AtomicU64]) {
        match &self.inner {
            Inner::Few(words) => (&words.head, &words.slots),
            Inner::Many(words) => (&words.head, &words.slots),
        }
    }

    fn head(&self) -> &Head {
        self.parts().0
    }

    /// Those in use. What others wrote is no more than there are.
    fn slots(&self) -> &[AtomicU64] {
        let (head, slots) = self.parts();
        let used = head.slots.load(Ordering::Relaxed) as usize;
        &slots[..used.min(slots.len())]
    }

    fn is_bounded(&self) -> bool {
        self.head().is_bounded.load(Ordering::Relaxed) != 0
    }

    fn are_signals(&self) -> bool {
        self.head().signals.load(Ordering::Relaxed) != 0
    }

    /// How many units are free; those of the dead are not yet.
    #[must_use]
    pub fn value(&self) -> u32 {
        let free = |slot: &&AtomicU64| slot.load(Ordering::Relaxed) == 0;
        let slots = self.slots().iter().filter(free).count() as u32;
        slots.saturating_add(self.head().loose.load(Ordering::Relaxed))
    }

    /// The most units that can be free.
    #[must_use]
    pub fn bound(&self) -> u32 {
        if self.is_bounded() { self.head().first.load(Ordering::Relaxed) } else { Self::MOST }
    }

    /// Acquires a unit if one is free, or its holder is dead.
    pub fn try_acquire(&self) -> Option<Locked<Permit<'_>>> {
        self.try_acquire_raw().map(|acquired| self.permit(acquired))
    }

    /// Acquires a unit.
    ///
    /// # Errors
    ///
    /// [`Abandoned`], with the unit in it, if its holder died.
    pub fn acquire(&self) -> Locked<Permit<'_>> {
        let acquired = finally(None, |deadline| self.acquire_raw(deadline));
        self.permit(acquired.expect("a wait without a deadline"))
    }

    /// As [`acquire`](Self::acquire); `None` if the deadline comes first.
    pub fn acquire_until(&self, deadline: Instant) -> Option<Locked<Permit<'_>>> {
        let acquired = finally(Some(deadline), |deadline| self.acquire_raw(deadline));
        acquired.map(|acquired| self.permit(acquired))
    }

    fn permit(&self, acquired: Acquired) -> Locked<Permit<'_>> {
        Abandoned::unless_free(Permit(self), acquired)
    }

    /// As [`try_acquire`](Self::try_acquire); releasing is the caller's.
    #[inline]
    pub fn try_acquire_raw(&self) -> Option<Acquired> {
        if self.take() {
            return Some(Acquired::Free);
        }
        if is_due(std::ptr::from_ref(self.head()).addr()) { self.take_over() } else { None }
    }

    /// As [`acquire`](Self::acquire); releasing is the caller's.
    ///
    /// # Errors
    ///
    /// When the deadline comes first, or a signal.
    pub fn acquire_raw(&self, deadline: Option<Instant>) -> std::result::Result<Acquired, Unmet> {
        for _ in 0..SPINS {
            if self.take() {
                return Ok(Acquired::Free);
            }
            if is_over(deadline) {
                break;
            }
            std::hint::spin_loop();
        }
        self.head().sleepers.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either we see the unit, or the releaser sees us.
        fence(Ordering::SeqCst);
        let acquired = self.wait(deadline);
        self.head().sleepers.fetch_sub(1, Ordering::Relaxed);
        acquired
    }

    #[cold]
    fn wait(&self, deadline: Option<Instant>) -> std::result::Result<Acquired, Unmet> {
        loop {
            let epoch = self.head().epoch.load(Ordering::Acquire);
            if self.take() {
                return Ok(Acquired::Free);
            }
            match futex::wait(&self.head().epoch, epoch, Some(slice(deadline))) {
                Woken::Look => {}
                Woken::Interrupted => return Err(Unmet::Interrupted),
                Woken::TimedOut => {
                    if let Some(acquired) = self.take_over() {
                        return Ok(acquired);
                    }
                    if is_over(deadline) {
                        let taken = self.take();
                        return if taken { Ok(Acquired::Free) } else { Err(Unmet::TimedOut) };
                    }
                }
            }
        }
    }

    #[inline]
    fn take(&self) -> bool {
        let own = ProcessId::own().bits();
        self.turn(0, own) || self.take_loose()
    }

    /// Turns one slot from `from` into `to`, the one used last if it can be that.
    #[inline]
    fn turn(&self, from: u64, to: u64) -> bool {
        // A taker's Acquire pairs with the Release of the last releaser.
        let turn = |slot: &AtomicU64| {
            slot.load(Ordering::Relaxed) == from
                && slot.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slots = self.slots();
        let hint = self.hint.load(std::sync::atomic::Ordering::Relaxed) as usize;
        if slots.get(hint).is_some_and(turn) {
            return true;
        }
        let found = slots.iter().position(turn);
        if let Some(found) = found {
            self.hint.store(found as u32, std::sync::atomic::Ordering::Relaxed);
        }
        found.is_some()
    }

    fn take_loose(&self) -> bool {
        let less = |units: u32| units.checked_sub(1);
        let loose = &self.head().loose;
        loose.load(Ordering::Relaxed) > 0
            && loose.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less).is_ok()
    }

    /// Takes a unit of a process that has ended.
    #[cold]
    fn take_over(&self) -> Option<Acquired> {
        if self.are_signals() {
            return None;
        }
        let own = ProcessId::own();
        let mut alive = own; // most slots are of few processes
        self.slots().iter().find_map(|slot| {
            let seen = slot.load(Ordering::Relaxed);
            if seen == 0 || seen == alive.bits() || seen == own.bits() {
                return None;
            }
            // Nonsense in the word is nobody, who cannot release it either.
            let (pid, fate) = match ProcessId::from_bits(seen) {
                Some(holder) => (holder.pid(), holder.fate()),
                None => (0, Fate::Ended(None)),
            };
            let Fate::Ended(status) = fate else {
                alive = ProcessId::from_bits(seen)?;
                return None;
            };
            let mine = slot.compare_exchange(seen, own.bits(), Ordering::AcqRel, Ordering::Relaxed);
            mine.is_ok().then(|| Acquired::Abandoned(OwnerDied::new(pid, status)))
        })
    }

    /// Releases a unit; false if there are as many as there can be.
    pub fn release(&self) -> bool {
        let released = self.put();
        fault("semaphore: released, before the wake-up");
        if released {
            self.wake();
        }
        released
    }

    fn put(&self) -> bool {
        self.turn(ProcessId::own().bits(), 0) || self.put_for_another()
    }

    /// Releases a unit that this process has not acquired, or that has no slot.
    #[cold]
    fn put_for_another(&self) -> bool {
        let head = self.head();
        let first = head.first.load(Ordering::Relaxed);
        let missing = first.saturating_sub(self.slots().len() as u32);
        if self.put_loose(missing) {
            return true;
        }
        if self.is_bounded() {
            return self.slots().iter().any(|slot| slot.swap(0, Ordering::AcqRel) != 0);
        }
        head.signals.store(1, Ordering::Relaxed);
        self.put_loose(Self::MOST)
    }

    fn put_loose(&self, most: u32) -> bool {
        let more = |units: u32| (units < most).then(|| units + 1);
        self.head().loose.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    #[inline]
    fn wake(&self) {
        // Pairs with the fence in `acquire_raw`.
        fence(Ordering::SeqCst);
        let head = self.head();
        if head.sleepers.load(Ordering::Relaxed) > 0 {
            head.epoch.fetch_add(1, Ordering::Release);
            futex::wake(&head.epoch);
        }
    }
}

#[cfg(not(loom))]
impl Shared for Semaphore {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        let failed = |error| Error::os("open a semaphore", error);
        let few = Placed::<Few>::open(arena, offset).map_err(failed)?;
        let inner = if few.head.first.load(Ordering::Relaxed) as usize <= FEW {
            Inner::Few(few)
        } else {
            Inner::Many(Placed::open(arena, offset).map_err(failed)?)
        };
        Ok(Self { inner, hint: Hint::new(0) })
    }

    fn place(&self) -> (Arena, usize) {
        match &self.inner {
            Inner::Few(words) => words.expose(),
            Inner::Many(words) => words.expose(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::tests::{nobody, soon};

    #[test]
    fn units_are_taken_and_given_back() {
        let semaphore = Semaphore::new(2, None).unwrap();
        assert_eq!(semaphore.try_acquire_raw(), Some(Acquired::Free));
        assert_eq!(semaphore.acquire_raw(soon()), Ok(Acquired::Free));
        assert_eq!((semaphore.try_acquire_raw(), semaphore.value()), (None, 0));
        assert_eq!(semaphore.acquire_raw(soon()), Err(Unmet::TimedOut));
        assert!(semaphore.release() && semaphore.release() && semaphore.release());
        assert_eq!(semaphore.value(), 3);
    }

    #[test]
    fn a_bound_is_kept() {
        let semaphore = Semaphore::new(1, Some(1)).unwrap();
        assert!(!semaphore.release());
        assert!(semaphore.try_acquire_raw().is_some() && semaphore.release());
        assert_eq!(semaphore.value(), 1);
        assert!(Semaphore::new(1, Some(2)).is_err() && Semaphore::new(1 << 31, None).is_err());
    }

    #[test]
    fn any_number_of_units_is_kept_count_of() {
        for units in [FEW as u32, FEW as u32 + 1, MANY as u32, MANY as u32 + 5] {
            let semaphore = Semaphore::new(units, Some(units)).unwrap();
            let (arena, offset) = semaphore.place();
            let other = Semaphore::open(&arena, offset).unwrap();
            for left in (0..units).rev() {
                assert!(semaphore.try_acquire_raw().is_some());
                assert_eq!(other.value(), left);
            }
            assert_eq!(other.try_acquire_raw(), None);
            assert!((0..units).all(|_| other.release()) && !other.release());
            assert_eq!(semaphore.value(), units);
        }
    }

    #[test]
    fn a_unit_of_the_dead_is_acquired_by_one_who_waits_and_by_one_who_tries() {
        let (semaphore, nobody) = (Semaphore::new(2, None).unwrap(), nobody());
        let abandon =
            || semaphore.slots().iter().for_each(|s| s.store(nobody.bits(), Ordering::Relaxed));
        abandon();
        assert!(
            matches!(semaphore.acquire_raw(None), Ok(Acquired::Abandoned(died)) if died.pid == nobody.pid())
        );
        let start = Instant::now();
        while semaphore.try_acquire_raw().is_none() {
            assert!(start.elapsed() < std::time::Duration::from_millis(100));
        }
        assert!(semaphore.release() && semaphore.release());
        assert!(semaphore.release(), "one more than it began with is a signal");
        while semaphore.try_acquire_raw().is_some() {}
        abandon();
        assert_eq!(semaphore.acquire_raw(soon()), Err(Unmet::TimedOut));
    }

    #[test]
    fn a_release_wakes_a_thread_that_waits() {
        let semaphore = Semaphore::new(0, None).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| semaphore.acquire_raw(None));
            while semaphore.head().sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(semaphore.release());
            assert_eq!(waiting.join().unwrap(), Ok(Acquired::Free));
        });
        assert_eq!(semaphore.head().sleepers.load(Ordering::SeqCst), 0);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// A sleep that nobody ends is a deadlock, which loom sees.
    fn no_wake_up_is_lost(units: u32, bound: Option<u32>) {
        loom::model(move || {
            let semaphore = Arc::new(Semaphore::new(units, bound).unwrap());
            if units > 0 {
                assert!(semaphore.take());
            }
            let waiting = {
                let semaphore = semaphore.clone();
                thread::spawn(move || {
                    semaphore.head().sleepers.fetch_add(1, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    assert_eq!(semaphore.wait(None), Ok(Acquired::Free));
                })
            };
            assert!(semaphore.release());
            waiting.join().unwrap();
            assert_eq!(semaphore.value(), 0);
        });
    }

    #[test]
    fn no_wake_up_for_a_unit_with_a_slot_is_lost() {
        no_wake_up_is_lost(1, Some(1));
    }

    #[test]
    fn no_wake_up_for_a_loose_unit_is_lost() {
        no_wake_up_is_lost(0, None);
    }
}
