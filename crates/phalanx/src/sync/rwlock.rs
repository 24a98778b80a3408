//! A lock of many readers or one writer.
//!
//! A writer holds a [`HoldWord`] for as long as it writes, a reader only for a moment, to come in.
//! So nobody comes in while a writer is there, and who waits for the word looks after the dead.
//! Readers inside are counted by process.
//!
//! | step | by | what a death after it leaves |
//! | --- | --- | --- |
//! | hold acquired | whoever comes | a dead holder, which the next one takes over from |
//! | roster + 1, hold released | a reader | a dead reader: the next writer settles it |
//! | roster - 1, epoch + 1, wake | a reader that leaves | a writer that looks for itself after a slice |
//! | roster is empty | the writer, which is inside then | a dead writer: the next one is told |

use std::time::Instant;

use super::hold::{Acquired, HoldWord};
use super::roster::{Line, Roster};
use super::word::{AtomicU32, Ordering, Placed, futex, words};
use super::{Abandoned, Arena, Locked, Shared, fault, finally, is_over, slice};
use crate::error::{Error, Result};

/// How many processes can read at a time; more than that wait.
const READERS: usize = 62;

words! {
    struct Words {
        hold: HoldWord,
        /// Counts readers that left.
        epoch: AtomicU32,
        _spare: AtomicU32,
        readers: [Line; READERS],
    }
}

/// A lock of processes: many read, or one writes.
///
/// ```
/// # fn main() -> phalanx::Result<()> {
/// let lock = phalanx::sync::RwLock::new()?;
/// let (one, two) = (lock.read(), lock.read());
/// assert!(lock.try_write().is_none());
/// drop((one, two));
/// assert!(lock.try_write().is_some());
/// # Ok(()) }
/// ```
///
/// Who comes while a writer waits, waits behind it: so a thread that reads and reads again may wait
/// for itself. Up to 62 processes read at a time, with any number of threads; more wait.
///
/// | what happens | what follows |
/// | --- | --- |
/// | a writer ends, or one who waits to write | the next one is inside within 100 ms, and is told: [`Abandoned`] |
/// | a reader ends | who waits to write is inside within 100 ms; nobody is told, as readers change nothing |
/// | one who holds it forks | the child holds nothing; a guard that it drops releases nothing |
#[derive(Debug)]
pub struct RwLock(Placed<Words>);

/// Reading under an [`RwLock`], until dropped.
#[derive(Debug)]
#[must_use = "a lock is released when its guard is dropped"]
pub struct ReadGuard<'a>(&'a RwLock);

/// Writing under an [`RwLock`], until dropped.
#[derive(Debug)]
#[must_use = "a lock is released when its guard is dropped"]
pub struct WriteGuard<'a>(&'a RwLock);

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        let words = &self.0.0;
        // In a forked child there is nothing to remove: its parent reads.
        if self.0.readers().remove() {
            fault("rwlock: a reader left, before the wake-up");
            // Release: pairs with the Acquire in `wait_for_readers`.
            words.epoch.fetch_add(1, Ordering::Release);
            futex::wake(&words.epoch);
        }
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl RwLock {
    /// A free lock.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> Result<Self> {
        Placed::new().map(Self).map_err(|error| Error::os("make a lock", error))
    }

    fn readers(&self) -> Roster<'_> {
        Roster(&self.0.readers)
    }

    /// Releases the word, if it is this process that holds it.
    fn let_go(&self) {
        if self.0.hold.is_ours() {
            self.0.hold.release();
        }
    }

    /// Waits until nobody writes.
    ///
    /// # Errors
    ///
    /// [`Abandoned`], with the guard in it, if the last writer ended while it wrote.
    pub fn read(&self) -> Locked<ReadGuard<'_>> {
        self.read_by(None).expect("a wait without a deadline")
    }

    /// As [`read`](Self::read); `None` if the deadline comes first.
    pub fn read_until(&self, deadline: Instant) -> Option<Locked<ReadGuard<'_>>> {
        self.read_by(Some(deadline))
    }

    /// As [`read`](Self::read); `None` if that would take a wait.
    pub fn try_read(&self) -> Option<Locked<ReadGuard<'_>>> {
        let acquired = self.0.hold.try_acquire()?;
        let has_come = self.come_to_read();
        self.let_go();
        has_come.then(|| Abandoned::unless_free(ReadGuard(self), acquired))
    }

    fn read_by(&self, deadline: Option<Instant>) -> Option<Locked<ReadGuard<'_>>> {
        let mut told = Acquired::Free;
        loop {
            let acquired = finally(deadline, |deadline| self.0.hold.acquire(deadline))?;
            if acquired != Acquired::Free {
                told = acquired;
            }
            let epoch = self.0.epoch.load(Ordering::Acquire);
            let has_come = self.come_to_read();
            fault("rwlock: a reader counted, before it lets go");
            self.let_go();
            if has_come {
                return Some(Abandoned::unless_free(ReadGuard(self), told));
            }
            if is_over(deadline) {
                return None;
            }
            let _ = futex::wait(&self.0.epoch, epoch, Some(slice(deadline)));
        }
    }

    /// Counts this process among the readers; false if there are too many. Under the word.
    fn come_to_read(&self) -> bool {
        let readers = self.readers();
        readers.add() || {
            while readers.settle().is_some() {}
            readers.put_away_the_idle();
            readers.add()
        }
    }

    /// Waits until nobody reads or writes.
    ///
    /// # Errors
    ///
    /// [`Abandoned`], with the guard in it, if the last writer ended while it wrote.
    pub fn write(&self) -> Locked<WriteGuard<'_>> {
        self.write_by(None).expect("a wait without a deadline")
    }

    /// As [`write`](Self::write); `None` if the deadline comes first.
    pub fn write_until(&self, deadline: Instant) -> Option<Locked<WriteGuard<'_>>> {
        self.write_by(Some(deadline))
    }

    /// As [`write`](Self::write); `None` if that would take a wait.
    pub fn try_write(&self) -> Option<Locked<WriteGuard<'_>>> {
        let acquired = self.0.hold.try_acquire()?;
        let guard = WriteGuard(self);
        while self.readers().total() > 0 {
            self.readers().settle()?;
        }
        Some(Abandoned::unless_free(guard, acquired))
    }

    fn write_by(&self, deadline: Option<Instant>) -> Option<Locked<WriteGuard<'_>>> {
        let acquired = finally(deadline, |deadline| self.0.hold.acquire(deadline))?;
        let guard = WriteGuard(self); // lets go if the deadline comes first
        if acquired != Acquired::Free {
            while self.readers().settle().is_some() {} // it may have come to read
        }
        loop {
            // Acquire: pairs with the Release of a reader that leaves.
            let epoch = self.0.epoch.load(Ordering::Acquire);
            if self.readers().total() == 0 {
                return Some(Abandoned::unless_free(guard, acquired));
            }
            if is_over(deadline) {
                return None;
            }
            let woken = futex::wait(&self.0.epoch, epoch, Some(slice(deadline)));
            if woken == futex::Woken::TimedOut {
                while self.readers().settle().is_some() {}
            }
        }
    }
}

impl Shared for RwLock {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Placed::open(arena, offset).map(Self).map_err(|error| Error::os("open a lock", error))
    }

    fn place(&self) -> (Arena, usize) {
        self.0.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::tests::{nobody, soon};

    #[test]
    fn readers_share_it_and_a_writer_does_not() {
        let lock = RwLock::new().unwrap();
        let (one, two) = (lock.read().unwrap(), lock.try_read().unwrap().unwrap());
        assert!(lock.try_write().is_none() && lock.write_until(soon().unwrap()).is_none());
        drop(one);
        assert!(lock.try_write().is_none());
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| drop(lock.write().unwrap()));
            drop(two);
            writing.join().unwrap();
        });
        let writing = lock.write().unwrap();
        assert!(lock.try_read().is_none() && lock.read_until(soon().unwrap()).is_none());
        drop(writing);
        drop(lock.read().unwrap());
    }

    #[test]
    fn dead_readers_are_forgotten_and_a_dead_writer_is_told_of() {
        let lock = RwLock::new().unwrap();
        for line in &lock.0.readers {
            line.leave_to(nobody());
        }
        drop(lock.write().unwrap());
        for line in &lock.0.readers {
            line.leave_to(nobody());
        }
        drop(lock.read().unwrap());
        let nobody = nobody();
        lock.0.hold.leave_to(nobody);
        assert_eq!(lock.read().unwrap_err().died().pid, nobody.pid());
        lock.0.hold.leave_to(nobody);
        assert_eq!(lock.write().unwrap_err().died().pid, nobody.pid());
        drop(lock.write().unwrap());
    }
}
