//! A place where parties meet.
//!
//! All of it is changed under a [`HoldWord`]; who waits sleeps on the number of the meeting.
//!
//! | step | by | what a death after it leaves |
//! | --- | --- | --- |
//! | hold acquired | whoever comes or looks | a dead holder: the next one breaks the barrier |
//! | roster + 1 | one who comes | a dead party, which those who wait find when they look |
//! | outcome, roster emptied, meeting + 1 | the last to come, or one who breaks it | as the first row |
//! | wake all | the same | sleepers that look for themselves after a slice |

use std::fmt;
use std::time::Instant;

use super::hold::{Acquired, HoldWord};
use super::roster::{Line, Roster};
use super::word::{AtomicU32, Ordering, Placed, Woken, futex, words};
use super::{Arena, Shared, fault, finally, is_over, slice};
use crate::error::{Error, OwnerDied, Result};

/// How many processes can be parties; each with any number of threads.
const LINES: usize = 254;

words! {
    struct Words {
        hold: HoldWord,
        parties: AtomicU32,
        /// The number of this meeting.
        meeting: AtomicU32,
        /// How the last ones ended, the latest in the lowest bit: 1 if all came.
        outcomes: AtomicU32,
        /// 1 until it is reset.
        is_broken: AtomicU32,
        lines: [Line; LINES],
    }
}

/// A place where a number of parties wait for each other, again and again.
///
/// ```
/// # fn main() -> phalanx::Result<()> {
/// let barrier = phalanx::sync::Barrier::new(2)?;
/// let last = std::thread::scope(|scope| {
///     let other = scope.spawn(|| barrier.wait());
///     [barrier.wait().unwrap(), other.join().unwrap().unwrap()]
/// });
/// assert!(last[0] != last[1]); // one of them came last
/// # Ok(()) }
/// ```
///
/// | what happens | what follows |
/// | --- | --- |
/// | a process ends that waits at it | it is broken: within 100 ms all others are told, [`Broken`] |
/// | a process ends in the middle of coming or leaving | the same |
/// | one's deadline passes | it is broken |
/// | it is broken | everybody who comes is told at once, until a [`reset`](Self::reset) |
/// | more than 254 processes come to one meeting | the last ones find it [broken](Broken) |
/// | no parties | an [invalid](Error::is_invalid) argument |
#[derive(Debug)]
pub struct Barrier(Placed<Words>);

/// A barrier at which not all parties came together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The party that ended while it waited, if it was that, for the one who found it.
    pub died: Option<OwnerDied>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the barrier is broken")?;
        match self.died {
            Some(died) => write!(f, ", since process {} ended at it", died.pid),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Broken {}

/// The right to change the barrier.
struct Inside<'a>(&'a Words);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.hold.release();
    }
}

impl Inside<'_> {
    fn roster(&self) -> Roster<'_> {
        Roster(&self.0.lines)
    }

    fn is_broken(&self) -> bool {
        self.0.is_broken.load(Ordering::Relaxed) != 0
    }

    /// Ends the meeting.
    fn end(&self, all_came: bool) {
        let outcomes = self.0.outcomes.load(Ordering::Relaxed);
        self.0.outcomes.store(outcomes << 1 | u32::from(all_came), Ordering::Relaxed);
        fault("barrier: its outcome is known, before its end");
        self.roster().clear();
        self.0.meeting.fetch_add(1, Ordering::Release);
        fault("barrier: at its end, before the wake-up");
        futex::wake_many(&self.0.meeting, u32::MAX);
    }

    fn break_it(&self, died: Option<OwnerDied>) -> Broken {
        self.0.is_broken.store(1, Ordering::Relaxed);
        self.end(false);
        Broken { died }
    }

    /// How a meeting ended that has; `None` if it has not.
    fn outcome(&self, meeting: u32) -> Option<bool> {
        let later = self.0.meeting.load(Ordering::Relaxed).wrapping_sub(meeting);
        if later == 0 {
            return None;
        }
        let outcomes = self.0.outcomes.load(Ordering::Relaxed);
        Some(outcomes.checked_shr(later - 1).is_some_and(|outcomes| outcomes & 1 == 1))
    }
}

impl Barrier {
    /// A barrier for so many parties: threads, of whichever processes.
    ///
    /// # Errors
    ///
    /// If there are none; if there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new(parties: u32) -> Result<Self> {
        if parties == 0 {
            return Err(Error::invalid("a barrier has at least one party"));
        }
        let words = Placed::<Words>::new().map_err(|error| Error::os("make a barrier", error))?;
        words.parties.store(parties, Ordering::Relaxed);
        Ok(Self(words))
    }

    fn inside(&self) -> Inside<'_> {
        let acquired = finally(None, |deadline| self.0.hold.acquire(deadline));
        let inside = Inside(&self.0);
        if let Some(Acquired::Abandoned(died)) = acquired {
            inside.break_it(Some(died)); // it may be half changed
        }
        inside
    }

    /// Waits until all parties have come; true for the one who came last.
    ///
    /// # Errors
    ///
    /// If not all will.
    pub fn wait(&self) -> std::result::Result<bool, Broken> {
        self.wait_by(None)
    }

    /// As [`wait`](Self::wait); if the deadline comes first, the barrier is broken.
    ///
    /// # Errors
    ///
    /// As `wait`.
    pub fn wait_until(&self, deadline: Instant) -> std::result::Result<bool, Broken> {
        self.wait_by(Some(deadline))
    }

    fn wait_by(&self, deadline: Option<Instant>) -> std::result::Result<bool, Broken> {
        let inside = self.inside();
        if inside.is_broken() {
            return Err(Broken { died: None });
        }
        if !inside.roster().add() {
            return Err(inside.break_it(None));
        }
        fault("barrier: one has come, before it lets go");
        if inside.roster().total() >= self.0.parties.load(Ordering::Relaxed) {
            inside.end(true);
            return Ok(true);
        }
        let meeting = self.0.meeting.load(Ordering::Relaxed);
        drop(inside);
        loop {
            let woken = futex::wait(&self.0.meeting, meeting, Some(slice(deadline)));
            let ended = self.0.meeting.load(Ordering::Acquire) != meeting;
            if !ended && woken != Woken::TimedOut {
                continue;
            }
            let inside = self.inside();
            if let Some(all_came) = inside.outcome(meeting) {
                return if all_came { Ok(false) } else { Err(Broken { died: None }) };
            }
            if let Some((_, died)) = inside.roster().settle() {
                return Err(inside.break_it(Some(died)));
            }
            if is_over(deadline) {
                return Err(inside.break_it(None));
            }
        }
    }

    /// Breaks the barrier: all who wait are told, and all who come.
    pub fn abort(&self) {
        self.inside().break_it(None);
    }

    /// Makes the barrier as it was when it was new. Who waits is told that it was broken.
    pub fn reset(&self) {
        let inside = self.inside();
        if inside.roster().total() > 0 {
            inside.end(false);
        }
        self.0.is_broken.store(0, Ordering::Relaxed);
    }

    /// Is it broken?
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.is_broken.load(Ordering::Relaxed) != 0
    }

    /// How many wait at it.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        Roster(&self.0.lines).total()
    }
}

impl Shared for Barrier {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Placed::open(arena, offset).map(Self).map_err(|error| Error::os("open a barrier", error))
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
    fn all_go_together_again_and_again() {
        let barrier = Barrier::new(3).unwrap();
        let rounds = || (0..200).filter(|_| barrier.wait().unwrap()).count();
        let last: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(rounds)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((last, barrier.waiting()), (200, 0));
        assert!(Barrier::new(0).is_err());
    }

    #[test]
    fn a_dead_party_or_a_deadline_breaks_it_until_it_is_reset() {
        let barrier = Barrier::new(3).unwrap();
        let nobody = nobody();
        barrier.0.lines[0].leave_to(nobody);
        assert_eq!(barrier.wait().unwrap_err().died.unwrap().pid, nobody.pid());
        assert!(barrier.is_broken() && barrier.wait().is_err());
        barrier.reset();
        assert!(barrier.wait_until(soon().unwrap()).is_err());
        assert!(barrier.is_broken());
        barrier.reset();
        barrier.0.hold.leave_to(nobody);
        assert!(barrier.wait().is_err());
    }
}
