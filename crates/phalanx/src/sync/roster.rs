//! How many of something each process has: so that what the dead have can be given back.
//!
//! A table of lines, each a process and its count. A process has at most one line, which it takes
//! when it first has something; the line of a process that has ended is anybody's to settle.
//!
//! | step | by | what a death after it leaves |
//! | --- | --- | --- |
//! | process: 0 -> own | one who has its first | a line with a count of 0, which is free again |
//! | count + n | its process | what it counts is had by the dead, and is settled |
//! | count -> 0 | one who settles | nothing: what it settled is its to give back at once |
//! | process: a dead one's -> 0 | one who settles | nothing |

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::OwnerDied;
use crate::shm::words;
use crate::sys::{Fate, ProcessId};

words! {
    pub(crate) struct Line {
        process: AtomicU64,
        count: AtomicU32,
        /// Keeps lines aligned.
        _spare: AtomicU32,
    }
}

#[cfg(test)]
impl Line {
    /// As if that process had one.
    pub(super) fn leave_to(&self, process: ProcessId) {
        self.process.store(process.bits(), Ordering::Relaxed);
        self.count.store(1, Ordering::Relaxed);
    }
}

/// The table.
pub(crate) struct Roster<'a>(pub(crate) &'a [Line]);

impl<'a> Roster<'a> {
    /// The line of a process; a free one is taken if it has none.
    fn line(&self, process: ProcessId, take: bool) -> Option<&'a Line> {
        let bits = process.bits();
        let own = |line: &&Line| line.process.load(Ordering::Relaxed) == bits;
        if let Some(line) = self.0.iter().find(own) {
            return Some(line);
        }
        let free = |line: &&Line| {
            let order = Ordering::Relaxed;
            line.process.compare_exchange(0, bits, order, order).is_ok()
        };
        if take { self.0.iter().find(free) } else { None }
    }

    /// This process has one more. False if there is no line left to say so.
    pub(crate) fn add(&self) -> bool {
        let line = self.line(ProcessId::own(), true);
        line.is_some_and(|line| {
            line.count.fetch_add(1, Ordering::AcqRel);
            true
        })
    }

    /// This process has one less. False if it had none.
    pub(crate) fn remove(&self) -> bool {
        let line = self.line(ProcessId::own(), false);
        line.is_some_and(|line| {
            let less = |count: u32| count.checked_sub(1);
            line.count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less).is_ok()
        })
    }

    /// How many all processes have.
    pub(crate) fn total(&self) -> u32 {
        let counts = self.0.iter().map(|line| line.count.load(Ordering::Acquire));
        counts.fold(0, u32::saturating_add)
    }

    /// Nobody has anything.
    pub(super) fn clear(&self) {
        for line in self.0 {
            line.count.store(0, Ordering::Relaxed);
            line.process.store(0, Ordering::Release);
        }
    }

    /// Frees the lines of those who have none, where nobody else adds or frees at this time.
    pub(super) fn put_away_the_idle(&self) {
        for line in self.0.iter().filter(|line| line.count.load(Ordering::Acquire) == 0) {
            line.process.store(0, Ordering::Relaxed);
        }
    }

    /// Takes what one process has that has ended: how many, and whose they were.
    ///
    /// A process that has ended is found by this once; its line is free after it.
    pub(crate) fn settle(&self) -> Option<(u32, OwnerDied)> {
        self.0.iter().find_map(|line| {
            let bits = line.process.load(Ordering::Relaxed);
            let process = ProcessId::from_bits(bits)?;
            if process == ProcessId::own() {
                return None;
            }
            let Fate::Ended(status) = process.fate() else { return None };
            let count = line.count.swap(0, Ordering::AcqRel);
            let order = Ordering::Relaxed;
            let _ = line.process.compare_exchange(bits, 0, order, order);
            (count > 0).then(|| (count, OwnerDied::new(process.pid(), status)))
        })
    }
}
