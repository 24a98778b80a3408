//! What goes to a worker and what comes back.

use std::sync::Arc;

use super::control::Terms;
use super::parcel::Parcel;
use super::store::Buffer;
use crate::channel::Tickets;
use crate::error::{Ended, Error, WorkerDied};

/// Code that tasks run, as the runner of a worker understands it: sent to each worker once.
#[derive(Debug)]
pub struct Code {
    pub(crate) id: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Code {
    /// Code for workers to keep. Ids are unique in a process.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), bytes })
    }

    /// Workers keep so many codes; a new one takes the place of the one with the same slot.
    pub(crate) const SLOTS: usize = 64;

    pub(crate) fn slot(id: u64) -> usize {
        (id % Self::SLOTS as u64) as usize
    }
}

/// A task, before it is submitted.
#[derive(Debug)]
pub struct Task {
    /// The code to run, kept by workers; without one, all is in the payload.
    pub code: Option<Arc<Code>>,
    /// How the payload is to be read: known to those who submit and to the runner.
    pub shape: u8,
    /// The arguments.
    pub payload: Vec<u8>,
    /// The large ones among them, if they lie apart.
    pub buffers: Vec<Buffer>,
    /// What is agreed upon for it; without that, its pool's terms.
    pub terms: Option<Terms>,
    /// For the descriptors in the payload, until the task has ended.
    pub(crate) tickets: Tickets,
}

impl Task {
    /// A task whose payload holds no descriptors.
    #[must_use]
    pub fn new(code: Option<Arc<Code>>, shape: u8, payload: Vec<u8>) -> Self {
        let (buffers, terms, tickets) = (Vec::new(), None, Tickets::default());
        Self { code, shape, payload, buffers, terms, tickets }
    }

    /// Bytes of its arguments.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payload.len() + self.buffers.iter().map(Buffer::len).sum::<usize>()
    }
}

/// How a task ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It returned; this is its result.
    Returned(Parcel),
    /// It failed; this tells how.
    Failed(Parcel),
    /// The worker died that was running it.
    Lost(WorkerDied),
    /// It was never run, or not to its end, because its pool ended first.
    Broken(Error),
    /// It was to end before it did so itself.
    Ended(Ended),
}

/// The kinds of frames that an owner sends.
pub(crate) mod to_worker {
    /// `extra` is the code's id, the body its bytes.
    pub(crate) const DEFINE: u8 = 1;
    /// `extra` is the code's id or 0, `flags` the shape, the body the payload.
    pub(crate) const RUN: u8 = 2;
}

/// The kinds of frames that a worker sends.
pub(crate) mod to_owner {
    /// The worker is ready. `extra` is the number of tasks after which it leaves, or 0; `flags` is 1 if
    /// it answers the signal that wants a trace.
    pub(crate) const READY: u8 = 1;
    /// `extra` is the time that the task took, in nanoseconds; the body is its result. If that is
    /// in pieces, `claim` is the loan.
    pub(crate) const RETURNED: u8 = 2;
    /// As `RETURNED`, but the body tells how it failed; `flags` is 1 if another try is worth while.
    pub(crate) const FAILED: u8 = 3;
    /// The worker could not be readied; the body tells how.
    pub(crate) const UNFIT: u8 = 4;
    /// A note for the owner's language; `task` is what the worker runs, or 0.
    pub(crate) const NOTE: u8 = 5;
}

/// Set in `kind`: the body is a message in pieces; see `parcel.rs`.
pub(crate) const PIECES: u8 = 0x40;

/// Set in `kind`: another frame continues the body.
pub(crate) const MORE: u8 = 0x80;
