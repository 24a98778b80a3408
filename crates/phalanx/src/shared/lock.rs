//! The lock of a shared value: the engine's, held by a guard.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::place::{Placed, Placing};
use crate::error::{OwnerDied, Result};
use crate::sync::{Acquired, Hold, Shared as _};

#[derive(Debug)]
pub(super) struct Lock(Hold);

/// Has the lock until dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    lock: &'a Hold,
    /// The process that had it, if it ended meanwhile.
    pub(super) abandoned: Option<OwnerDied>,
}

impl Lock {
    pub(super) fn new() -> Result<Self> {
        Hold::new().map(Self)
    }

    pub(super) fn try_clone(&self) -> Result<Self> {
        let (arena, offset) = self.0.place();
        Hold::open(&arena, offset).map(Self)
    }

    /// Waits until the lock is free, or its holder has ended.
    #[inline]
    pub(super) fn hold(&self) -> Held<'_> {
        loop {
            match self.0.acquire(None) {
                Ok(Acquired::Free) => return Held { lock: &self.0, abandoned: None },
                Ok(Acquired::Abandoned(died)) => {
                    return Held { lock: &self.0, abandoned: Some(died) };
                }
                Err(_) => {} // a signal; there is no deadline
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // A forked child has a copy of its parent's guard, and not the lock.
        if self.lock.is_ours() {
            self.lock.release();
        }
    }
}

impl Serialize for Lock {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let (arena, offset) = self.0.place();
        Placing::new(&arena, offset).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Lock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let Placed { arena, offset } = Placed::deserialize(deserializer)?;
        Hold::open(&arena, offset).map(Self).map_err(de::Error::custom)
    }
}
