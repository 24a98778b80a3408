//! Who waits to be notified, in the order of their coming: the inside of a condition variable.
//!
//! A table of places. One who waits takes a place, with the number of its turn in it, and sleeps on
//! the place's own word, so that it is known who was notified, and nobody is who was not meant. All
//! of it but the sleep happens under the lock of the condition's user, except where it says so.
//!
//! | state | by | what a death leaves |
//! | --- | --- | --- |
//! | `FREE` -> `WAITING` | one who comes | a place of the dead, which is notified in vain |
//! | `WAITING` -> `NOTIFIED` | the notifier | nothing |
//! | `WAITING` -> `FREE` | one who gives up (without the lock) | nothing |
//! | `NOTIFIED` -> `FREE` | one who was notified (without the lock) | a notification that nobody has had |
//! | a dead one's `NOTIFIED` -> `FREE` | another who waits (without the lock) | as the row above |
//!
//! The last row is how nobody stays behind for a dead process: who waits looks, after each slice
//! of its sleep, for a notification that was meant for one who is dead, and younger than its own
//! wait, and has it in its place.
//!
//! Who finds no place waits for any notification at all, and so may be woken too early, as with
//! other condition variables (POSIX calls it spurious); that is for more than [`PLACES`] at a time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::{Shared, Unmet, fault, is_over, slice};
use crate::error::{Error, Result};
use crate::shm::{Arena, Placed, words};
use crate::sys::ProcessId;
use crate::sys::futex::{self, Woken};

/// How many can wait with a place of their own.
const PLACES: usize = 62;

const FREE: u32 = 0;
const WAITING: u32 = 1;
const NOTIFIED: u32 = 2;

words! {
    struct Seat {
        process: AtomicU64,
        state: AtomicU32,
        /// When it came, or was notified: by the count of both.
        moment: AtomicU32,
    }
}

words! {
    struct Words {
        /// Counts comings and notifications.
        moments: AtomicU32,
        /// Of those without a place.
        crowd: AtomicU32,
        /// Counts notifications of the crowd.
        calls: AtomicU32,
        _spare: AtomicU32,
        seats: [Seat; PLACES],
    }
}

/// A wait that has begun.
#[derive(Clone, Copy, Debug)]
#[must_use = "a wait that has begun has to be waited for or left"]
pub struct Turn {
    /// A place, or none: then the count of calls.
    seat: Option<usize>,
    calls: u32,
    moment: u32,
}

/// Who waits to be notified, in a block of shared memory.
#[derive(Debug)]
pub struct Waiters(Placed<Words>);

impl Waiters {
    /// Nobody waits.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> Result<Self> {
        Placed::new().map(Self).map_err(|error| Error::os("make a condition variable", error))
    }

    /// How many wait, the dead who did included.
    #[must_use]
    pub fn count(&self) -> usize {
        let waiting = |seat: &&Seat| seat.state.load(Ordering::Relaxed) == WAITING;
        let crowd = self.0.crowd.load(Ordering::Relaxed) as usize;
        self.0.seats.iter().filter(waiting).count() + crowd
    }

    fn moment(&self) -> u32 {
        self.0.moments.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins a wait. Under the lock.
    pub fn come(&self) -> Turn {
        let moment = self.moment();
        let seat = self.free_seat().or_else(|| {
            self.put_away_the_dead();
            self.free_seat()
        });
        if let Some(at) = seat {
            let seat = &self.0.seats[at];
            seat.process.store(ProcessId::own().bits(), Ordering::Relaxed);
            seat.moment.store(moment, Ordering::Relaxed);
            seat.state.store(WAITING, Ordering::Release);
        } else {
            self.0.crowd.fetch_add(1, Ordering::Relaxed);
        }
        fault("waiters: one has come");
        Turn { seat, calls: self.0.calls.load(Ordering::Relaxed), moment }
    }

    fn free_seat(&self) -> Option<usize> {
        self.0.seats.iter().position(|seat| seat.state.load(Ordering::Relaxed) == FREE)
    }

    fn put_away_the_dead(&self) {
        for seat in &self.0.seats {
            if is_dead(seat) {
                seat.state.store(FREE, Ordering::Relaxed);
            }
        }
    }

    /// Waits to be notified. Without the lock. A turn that was notified is over.
    ///
    /// # Errors
    ///
    /// When the deadline comes first, or a signal: then wait again, or [leave](Self::leave).
    pub fn wait(&self, turn: Turn, deadline: Option<Instant>) -> std::result::Result<(), Unmet> {
        loop {
            if self.is_notified(turn) {
                return Ok(());
            }
            let (word, expected) = match turn.seat {
                Some(at) => (&self.0.seats[at].state, WAITING),
                None => (&self.0.calls, turn.calls),
            };
            match futex::wait(word, expected, Some(slice(deadline))) {
                Woken::Look => {}
                Woken::Interrupted => return Err(Unmet::Interrupted),
                Woken::TimedOut => {
                    if self.inherit(turn) {
                        return Ok(());
                    }
                    if is_over(deadline) {
                        return Err(Unmet::TimedOut);
                    }
                }
            }
        }
    }

    fn is_notified(&self, turn: Turn) -> bool {
        match turn.seat {
            // Acquire: pairs with the Release of the notifier.
            Some(at) => {
                let seat = &self.0.seats[at];
                let notified = seat.state.load(Ordering::Acquire) == NOTIFIED;
                if notified {
                    fault("waiters: one is notified, and has not gone");
                    seat.state.store(FREE, Ordering::Release);
                }
                notified
            }
            None => {
                let notified = self.0.calls.load(Ordering::Acquire) != turn.calls;
                if notified {
                    self.0.crowd.fetch_sub(1, Ordering::Relaxed);
                }
                notified
            }
        }
    }

    /// Takes the notification of one who is dead.
    fn inherit(&self, turn: Turn) -> bool {
        let younger = |seat: &&Seat| {
            let age = seat.moment.load(Ordering::Relaxed).wrapping_sub(turn.moment);
            seat.state.load(Ordering::Relaxed) == NOTIFIED && age < u32::MAX / 2 && is_dead(seat)
        };
        let Some(seat) = self.0.seats.iter().find(younger) else { return false };
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        if seat.state.compare_exchange(NOTIFIED, FREE, acquire, relaxed).is_err() {
            return false;
        }
        if self.leave(turn) {
            // Notified itself just now: the other notification is somebody else's.
            let _ = seat.state.compare_exchange(FREE, NOTIFIED, Ordering::Release, relaxed);
        }
        true
    }

    /// Ends a wait that was not notified. True if it was after all, at the last moment.
    pub fn leave(&self, turn: Turn) -> bool {
        let Some(at) = turn.seat else {
            self.0.crowd.fetch_sub(1, Ordering::Relaxed);
            return self.0.calls.load(Ordering::Acquire) != turn.calls;
        };
        let order = Ordering::Relaxed;
        let seat = &self.0.seats[at].state;
        if seat.compare_exchange(WAITING, FREE, Ordering::AcqRel, order).is_ok() {
            return false;
        }
        seat.store(FREE, Ordering::Release);
        true
    }

    /// Notifies the first `most` of those who wait. Under the lock. Returns how many it were.
    pub fn notify(&self, most: usize) -> usize {
        let mut notified = 0;
        while notified < most {
            let waiting = |seat: &&Seat| seat.state.load(Ordering::Relaxed) == WAITING;
            let now = self.0.moments.load(Ordering::Relaxed);
            let age = |seat: &&Seat| now.wrapping_sub(seat.moment.load(Ordering::Relaxed));
            let Some(first) = self.0.seats.iter().filter(waiting).max_by_key(age) else { break };
            first.moment.store(self.moment(), Ordering::Relaxed);
            let order = Ordering::Relaxed;
            // Release: pairs with the Acquire of the one who was notified.
            let mine = first.state.compare_exchange(WAITING, NOTIFIED, Ordering::Release, order);
            if mine.is_ok() {
                fault("waiters: one is notified, before the wake-up");
                futex::wake(&first.state);
                notified += 1;
            }
        }
        let crowd = self.0.crowd.load(Ordering::Relaxed) as usize;
        if notified < most && crowd > 0 {
            self.0.calls.fetch_add(1, Ordering::Release);
            futex::wake_many(&self.0.calls, u32::MAX);
            notified += crowd;
        }
        notified
    }
}

fn is_dead(seat: &Seat) -> bool {
    let process = ProcessId::from_bits(seat.process.load(Ordering::Relaxed));
    process.is_none_or(|process| !process.is_alive())
}

impl Shared for Waiters {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Placed::open(arena, offset)
            .map(Self)
            .map_err(|error| Error::os("open a condition variable", error))
    }

    fn place(&self) -> (Arena, usize) {
        self.0.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(5))
    }

    #[test]
    fn those_who_came_first_are_notified_first_and_nobody_else_is() {
        let waiters = Waiters::new().unwrap();
        let turns: Vec<Turn> = (0..5).map(|_| waiters.come()).collect();
        assert_eq!(waiters.count(), 5);
        assert_eq!(waiters.notify(2), 2);
        let met = turns.iter().map(|turn| waiters.wait(*turn, soon()).is_ok());
        assert_eq!(met.collect::<Vec<_>>(), [true, true, false, false, false]);
        assert!(!waiters.leave(turns[2]));
        assert_eq!(waiters.notify(usize::MAX), 2);
        assert!(waiters.leave(turns[3]), "it was notified at the last moment");
        assert_eq!(waiters.wait(turns[4], None), Ok(()));
        assert_eq!((waiters.count(), waiters.notify(1)), (0, 0));
    }

    #[test]
    fn the_notification_of_a_dead_process_goes_to_one_who_lives() {
        let waiters = Waiters::new().unwrap();
        let (dead, live) = (waiters.come(), waiters.come());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let bits = u64::from(child.id()) | 1 << 23;
        child.wait().unwrap();
        waiters.0.seats[dead.seat.unwrap()].process.store(bits, Ordering::Relaxed);
        assert_eq!(waiters.notify(1), 1);
        assert_eq!(waiters.wait(live, None), Ok(()));
        let late = waiters.come();
        assert_eq!(waiters.wait(late, soon()), Err(Unmet::TimedOut));
        assert!(!waiters.leave(late));
        assert_eq!(waiters.count(), 0);
    }

    #[test]
    fn more_than_there_are_places_for_are_all_notified() {
        let waiters = Waiters::new().unwrap();
        let turns: Vec<Turn> = (0..PLACES + 3).map(|_| waiters.come()).collect();
        assert_eq!(waiters.count(), PLACES + 3);
        assert_eq!(waiters.notify(usize::MAX), PLACES + 3);
        assert!(turns.iter().all(|turn| waiters.wait(*turn, None).is_ok()));
        assert_eq!(waiters.count(), 0);
    }
}
