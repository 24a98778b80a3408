//! Who has come to a barrier, and how the barrier stands: the inside of a barrier.
//!
//! The barrier's user changes both under a lock of its own. What a death leaves is a party that is
//! counted and will not leave: the others find it when they look, and break the barrier.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::roster::{Line, Roster};
use crate::error::OwnerDied;
use crate::shm::{Arena, Placed, words};

/// How many processes can come and be missed if they end. Others are counted only.
const LINES: usize = 254;

words! {
    struct Words {
        state: AtomicU32,
        /// Of those that found no line.
        others: AtomicU32,
        lines: [Line; LINES],
    }
}

/// Parties that have come, by process, and a state, in a block of shared memory.
#[derive(Debug)]
pub struct Gathering(Placed<Words>);

impl Gathering {
    /// Nobody has come, and the state is 0.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> io::Result<Self> {
        Placed::new().map(Self)
    }

    /// That of another process.
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

    /// How the barrier stands.
    #[must_use]
    pub fn state(&self) -> i32 {
        self.0.state.load(Ordering::Acquire).cast_signed()
    }

    /// Says how the barrier stands.
    pub fn set_state(&self, state: i32) {
        self.0.state.store(state.cast_unsigned(), Ordering::Release);
    }

    fn roster(&self) -> Roster<'_> {
        Roster(&self.0.lines)
    }

    /// A thread of this process has come.
    pub fn come(&self) {
        if !self.roster().add() {
            self.0.others.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// It leaves.
    pub fn leave(&self) {
        if !self.roster().remove() {
            let less = |others: u32| others.checked_sub(1);
            let _ = self.0.others.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        }
    }

    /// How many have come and not left.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.roster().total().saturating_add(self.0.others.load(Ordering::Acquire))
    }

    /// Has one come who has ended since? It is not counted any more.
    pub fn settle(&self) -> Option<OwnerDied> {
        self.roster().settle().map(|(_, died)| died)
    }
}
