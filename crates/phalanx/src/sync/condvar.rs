//! Waiting for a condition to change, under a lock.

use std::time::Instant;

use super::{Arena, LockGuard, Locked, Shared, Waiters, finally};
use crate::error::Result;

/// A condition variable: its users change something under a lock, and notify who waits for that.
///
/// ```
/// use std::time::Duration;
/// use phalanx::{Process, sync::{Condvar, Event, Lock}};
///
/// fn wait((lock, came, changed): (Lock, Event, Condvar)) {
///     let guard = lock.lock().unwrap();
///     came.set(); // whoever has the lock after this finds us waiting
///     drop(changed.wait(guard).unwrap());
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let all = (Lock::new()?, Event::new()?, Condvar::new()?);
///     let waiting = Process::spawn(wait, all.clone())?;
///     all.1.wait();
///     all.2.notify_one(&all.0.lock().unwrap());
///     waiting.join()
/// }
/// ```
///
/// Those who wait are notified in the order of their coming, and not without being notified as long
/// as no more than 62 wait at a time. Use one lock with it, always the same.
///
/// | what happens | what follows |
/// | --- | --- |
/// | one who waits ends, notified or not | a notification meant for it goes to the next one, within 100 ms |
/// | the notifier ends in the middle | those it has notified by then are awake within 100 ms |
/// | the lock's holder ends | who wakes has the lock, and is told: [`Abandoned`](super::Abandoned) |
#[derive(Debug)]
pub struct Condvar(Waiters);

impl Condvar {
    /// Nobody waits.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> Result<Self> {
        Waiters::new().map(Self)
    }

    /// Releases the lock, waits to be notified, and acquires the lock again.
    ///
    /// # Errors
    ///
    /// As [`Lock::lock`](super::Lock::lock).
    pub fn wait<'a>(&self, guard: LockGuard<'a>) -> Locked<LockGuard<'a>> {
        self.wait_by(guard, None).0
    }

    /// As [`wait`](Self::wait), at most until `deadline`; and whether it was notified.
    pub fn wait_until<'a>(
        &self,
        guard: LockGuard<'a>,
        deadline: Instant,
    ) -> (Locked<LockGuard<'a>>, bool) {
        self.wait_by(guard, Some(deadline))
    }

    fn wait_by<'a>(
        &self,
        guard: LockGuard<'a>,
        deadline: Option<Instant>,
    ) -> (Locked<LockGuard<'a>>, bool) {
        let lock = guard.lock();
        let turn = self.0.come();
        drop(guard);
        let met = finally(deadline, |deadline| self.0.wait(turn, deadline)).is_some();
        let notified = met || self.0.leave(turn);
        (lock.lock(), notified)
    }

    /// Wakes the one that has waited longest. The guard is that of the lock they wait with.
    pub fn notify_one(&self, _held: &LockGuard<'_>) {
        self.0.notify(1);
    }

    /// Wakes all who wait.
    pub fn notify_all(&self, _held: &LockGuard<'_>) {
        self.0.notify(usize::MAX);
    }

    /// How many wait, the dead who did included.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.count()
    }
}

impl Shared for Condvar {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Waiters::open(arena, offset).map(Self)
    }

    fn place(&self) -> (Arena, usize) {
        self.0.place()
    }
}
