//! Locks and what else processes wait for, as words of shared memory that threads sleep on
//! (futex(2)).
//!
//! | file | what it is | waits for |
//! | --- | --- | --- |
//! | `hold` | the word that names its holder | the holder |
//! | `roster` | how many of something each process has | nobody |
//! | `semaphore` | units, and who holds how many | a unit |
//! | `waiters` | who waits, in order: the inside of a condition variable | being notified |
//! | `gathering` | who has come to a barrier | nobody |
//! | `event` | a flag | the flag |
//!
//! # What a death leaves
//!
//! Nobody can be asked to tidy up after a SIGKILL, so those who wait look after the dead: nobody
//! sleeps longer than [`SLICE`] without a look at whom they wait for. A wake-up that was lost, as
//! its sender or the one who was woken died between two instructions, costs one slice as well.
//!
//! Each of these is [placed](crate::shm::Placed) in a block of shared memory. A forked child has it
//! too; any other process opens it by the block's descriptor and offset.

mod event;
mod gathering;
mod hold;
mod roster;
mod semaphore;
mod waiters;

use std::time::{Duration, Instant};

pub use crate::shm::Arena;
pub use event::Event;
pub use gathering::Gathering;
pub(crate) use hold::HoldWord;
pub use hold::{Acquired, Hold};
pub(crate) use roster::{Line, Roster};
pub use semaphore::Semaphore;
pub use waiters::{Turn, Waiters};

/// For how long one sleeps without a look at whether those live that one waits for.
const SLICE: Duration = Duration::from_millis(40);

/// Why a wait ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The deadline came first.
    TimedOut,
    /// A signal handler ran in this thread; wait again if you want.
    Interrupted,
}

/// The end of a sleep that begins now: the deadline, or earlier.
fn slice(deadline: Option<Instant>) -> Instant {
    let end = Instant::now() + SLICE;
    deadline.map_or(end, |deadline| deadline.min(end))
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}
