//! Locks and what else processes wait for, as words of shared memory that threads sleep on
//! (futex(2)).
//!
//! | file | what it is | waits for |
//! | --- | --- | --- |
//! | `hold` | the word that names its holder | the holder |
//! | `lock` | that word with a guard: [`Lock`] | the holder |
//! | `rwlock` | many readers or one writer: [`RwLock`] | all who have it |
//! | `semaphore` | units, and who holds them: [`Semaphore`] | a unit |
//! | `waiters`, `condvar` | who waits, in order: [`Condvar`] | being notified |
//! | `event` | a flag: [`Event`] | the flag |
//! | `barrier` | a place to meet: [`Barrier`] | the other parties |
//! | `once` | what is done once: [`Once`] | who does it |
//! | `roster` | how many of something each process has | nobody |
//! | `gathering` | who has come to Python's barrier | nobody |
//! | `word` | the system's atomics and futexes, or loom's models of them | |
//!
//! # What a death leaves
//!
//! Nobody can be asked to tidy up after a SIGKILL, so those who wait look after the dead: nobody
//! sleeps longer than 40 ms without a look at whom they wait for. A wake-up that was lost, as
//! its sender or the one who was woken died between two instructions, costs one slice as well.
//!
//! Each of these is in a block of shared memory. A forked child has it too; any other process has
//! it as a [value](crate::Value): as a task's argument, say, or a part of it.
//!
//! ```
//! use phalanx::{Process, sync::Lock};
//!
//! fn careless(lock: Lock) {
//!     let guard = lock.lock();
//!     std::mem::forget(guard); // and ends
//! }
//!
//! fn main() -> phalanx::Result<()> {
//!     phalanx::init();
//!     let lock = Lock::new()?;
//!     let careless = Process::spawn(careless, lock.clone())?;
//!     let pid = careless.pid();
//!     careless.join()?;
//!     let abandoned = lock.lock().unwrap_err();
//!     assert_eq!(abandoned.died().pid, pid);
//!     let guard = abandoned.into_inner(); // ours, whatever was left half done
//!     # drop(guard);
//!     Ok(())
//! }
//! ```

#[cfg(not(loom))]
mod barrier;
#[cfg(not(loom))]
mod condvar;
#[cfg(not(loom))]
mod event;
#[cfg(all(test, not(loom)))]
pub(crate) mod faults;
#[cfg(all(test, not(loom)))]
mod fuzz;
#[cfg(not(loom))]
mod gathering;
mod hold;
#[cfg(not(loom))]
mod lock;
#[cfg(not(loom))]
mod once;
#[cfg(not(loom))]
mod roster;
#[cfg(not(loom))]
mod rwlock;
mod semaphore;
#[cfg(all(test, not(loom)))]
pub(crate) mod toll;
#[cfg(not(loom))]
mod waiters;
mod word;

use std::fmt;
use std::time::{Duration, Instant};

use crate::error::OwnerDied;
#[cfg(not(loom))]
use crate::error::Result;
#[cfg(not(loom))]
pub use crate::shm::Arena;
#[cfg(not(loom))]
pub use barrier::{Barrier, Broken};
#[cfg(not(loom))]
pub use condvar::Condvar;
#[cfg(not(loom))]
pub use event::Event;
#[cfg(not(loom))]
pub use gathering::Gathering;
pub(crate) use hold::HoldWord;
pub use hold::{Acquired, Hold};
#[cfg(not(loom))]
pub use lock::{Lock, LockGuard};
#[cfg(not(loom))]
pub use once::Once;
#[cfg(not(loom))]
pub(crate) use roster::{Line, Roster};
#[cfg(not(loom))]
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use semaphore::{Permit, Semaphore};
#[cfg(not(loom))]
pub use waiters::{Turn, Waiters};

/// For how long one sleeps without a look at whether those live that one waits for.
const SLICE: Duration = Duration::from_millis(40);
/// And for how long one sleeps before the first look at the holder of a lock. What is changed under one
/// often lets others wait, too, so that a death costs this and a slice, and not two slices.
const GLANCE: Duration = Duration::from_millis(10);

/// The calling thread: no other that lives in this process has the number.
#[cfg(not(loom))]
#[must_use]
#[inline]
pub fn this_thread() -> usize {
    crate::sys::thread::current()
}

/// Why a wait ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The deadline came first.
    TimedOut,
    /// A signal handler ran in this thread; wait again if you want.
    Interrupted,
}

/// What other processes have too, and how they find it.
#[cfg(not(loom))]
pub trait Shared: Sized {
    /// The one that another process made.
    ///
    /// # Errors
    ///
    /// If there is no room for one at that place.
    fn open(arena: &Arena, offset: usize) -> Result<Self>;

    /// Where it is, for [`open`](Self::open).
    fn place(&self) -> (Arena, usize);
}

/// Another handle of the same object.
#[cfg(not(loom))]
macro_rules! handles {
    ($($name:ident)*) => { $(
        impl Clone for $name {
            /// The same one, not a copy of it.
            fn clone(&self) -> Self {
                let (arena, offset) = self.place();
                Self::open(&arena, offset).expect("it is at its place")
            }
        }
    )* };
}
#[cfg(not(loom))]
handles!(Barrier Condvar Event Lock Once RwLock Semaphore);

/// What was acquired; as an error if its last holder ended while it held it.
pub type Locked<G> = std::result::Result<G, Abandoned<G>>;

/// Something was acquired whose last holder ended while it held it: a guard, and who that was.
///
/// What it protects may be half changed. As with the standard library's `PoisonError`, the guard is
/// in here; but it is told once only.
pub struct Abandoned<G> {
    guard: G,
    died: OwnerDied,
}

impl<G> Abandoned<G> {
    fn unless_free(guard: G, acquired: Acquired) -> Locked<G> {
        match acquired {
            Acquired::Free => Ok(guard),
            Acquired::Abandoned(died) => Err(Self { guard, died }),
        }
    }

    /// Who held it, and how it ended.
    pub fn died(&self) -> OwnerDied {
        self.died
    }

    /// What was acquired.
    pub fn into_inner(self) -> G {
        self.guard
    }
}

impl<G> fmt::Debug for Abandoned<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Abandoned({})", self.died)
    }
}

impl<G> fmt::Display for Abandoned<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.died.fmt(f)
    }
}

impl<G> std::error::Error for Abandoned<G> {}

/// Waits on after signals; `None` if the deadline came first.
fn finally<T>(
    deadline: Option<Instant>,
    mut wait: impl FnMut(Option<Instant>) -> std::result::Result<T, Unmet>,
) -> Option<T> {
    loop {
        match wait(deadline) {
            Ok(met) => return Some(met),
            Err(Unmet::TimedOut) => return None,
            Err(Unmet::Interrupted) => {}
        }
    }
}

/// The end of a sleep that begins now: the deadline, or earlier.
fn slice(deadline: Option<Instant>) -> Instant {
    sooner(SLICE, deadline)
}

/// So long from now: the deadline, or earlier.
fn sooner(sleep: Duration, deadline: Option<Instant>) -> Instant {
    let end = Instant::now() + sleep;
    deadline.map_or(end, |deadline| deadline.min(end))
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// A moment at which tests kill the process.
#[cfg(all(test, not(loom)))]
pub(crate) use faults::fault;
#[cfg(any(not(test), loom))]
#[inline(always)]
pub(crate) fn fault(_: &'static str) {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::ProcessId;

    /// A process that has ended and was reaped.
    pub(super) fn nobody() -> ProcessId {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let bits = u64::from(child.id()) | 1 << 23;
        child.wait().unwrap();
        ProcessId::from_bits(bits).unwrap()
    }

    pub(super) fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(5))
    }
}
