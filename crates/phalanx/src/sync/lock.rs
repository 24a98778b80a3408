//! A lock with a guard.

use std::time::Instant;

use super::hold::{Acquired, Hold};
use super::{Abandoned, Arena, Locked, Shared, finally};
use crate::error::Result;

/// A lock of processes that knows its holder.
///
/// It is not recursive, and is not passed on in order. What it protects is for its users to know:
/// something in shared memory, a file, a device.
///
/// | what happens | what follows |
/// | --- | --- |
/// | the holder ends | who waits has the lock within 100 ms, and is told: [`Abandoned`] |
/// | one who waits ends | nothing |
/// | the holder ends in the middle of its release | the lock is free, or abandoned |
/// | the process that made it ends | nothing: its memory lives as long as somebody has it |
/// | the holder forks | the child holds nothing; a guard that it drops releases nothing |
#[derive(Debug)]
pub struct Lock(Hold);

/// Holding a [`Lock`]; it is released when this is dropped.
#[derive(Debug)]
#[must_use = "a lock is released when its guard is dropped"]
pub struct LockGuard<'a>(&'a Lock);

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        if self.0.is_ours() {
            self.0.0.release();
        }
    }
}

impl<'a> LockGuard<'a> {
    pub(super) fn lock(&self) -> &'a Lock {
        self.0
    }
}

impl Lock {
    /// A free lock.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> Result<Self> {
        Hold::new().map(Self)
    }

    fn guard(&self, acquired: Acquired) -> Locked<LockGuard<'_>> {
        Abandoned::unless_free(LockGuard(self), acquired)
    }

    /// Acquires the lock.
    ///
    /// # Errors
    ///
    /// [`Abandoned`], with the guard in it, if its last holder ended with it.
    pub fn lock(&self) -> Locked<LockGuard<'_>> {
        let acquired = finally(None, |deadline| self.0.acquire(deadline));
        self.guard(acquired.expect("a wait without a deadline"))
    }

    /// As [`lock`](Self::lock); `None` if the deadline comes first.
    pub fn lock_until(&self, deadline: Instant) -> Option<Locked<LockGuard<'_>>> {
        let acquired = finally(Some(deadline), |deadline| self.0.acquire(deadline));
        acquired.map(|acquired| self.guard(acquired))
    }

    /// As [`lock`](Self::lock); `None` if that would take a wait. That a holder has ended is seen
    /// within 100 ms.
    pub fn try_lock(&self) -> Option<Locked<LockGuard<'_>>> {
        self.0.try_acquire().map(|acquired| self.guard(acquired))
    }

    /// Does a process hold it?
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.0.is_held()
    }

    /// Does this process hold it?
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.0.is_ours()
    }
}

impl Shared for Lock {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Hold::open(arena, offset).map(Self)
    }

    fn place(&self) -> (Arena, usize) {
        self.0.place()
    }
}
