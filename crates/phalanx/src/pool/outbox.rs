//! A worker's way to its owner: messages in order, from whichever of its threads.
//!
//! | line | what a death after it leaves |
//! | --- | --- |
//! | some frames of a message pushed | a part, which the owner forgets with the worker |
//! | the last frame pushed | the message: the owner reads it |

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::task::{MORE, to_owner};
use super::worker::sleep;
use crate::shm::{Control, Head, Producer, Seat, SeatOutbox, Sleeper};
use crate::sync::fault;
use crate::sys::{Event, fork};

#[derive(Debug)]
pub(super) struct Outbox {
    seat: Arc<Seat>,
    pub(super) control: Control,
    event: Event,
    generation: u32,
    /// Held for a whole message, so that no other comes between its frames.
    frames: Mutex<Producer<SeatOutbox>>,
}

impl Outbox {
    pub(super) fn new(seat: Arc<Seat>, control: Control, event: Event) -> Self {
        let frames = Mutex::new(Producer::new(SeatOutbox(seat.clone())));
        Self { seat, control, event, generation: fork::generation(), frames }
    }

    /// False in a fork of the worker, which has none of its memory.
    pub(super) fn is_here(&self) -> bool {
        self.generation == fork::generation()
    }

    /// For the thread that runs tasks. Waits if the owner is slow to read.
    pub(super) fn push(&self, head: Head, body: &[u8]) {
        self.push_frames(head, body, || {
            sleep(self.seat.bell(), None, || !self.seat.is_blocked());
        });
    }

    /// `wait` is called when there is no room, and again until there is.
    fn push_frames(&self, head: Head, body: &[u8], wait: impl Fn()) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = frames.largest();
        let mut rest = body;
        loop {
            let (piece, more) = rest.split_at(rest.len().min(largest));
            let kind = head.kind | if more.is_empty() { 0 } else { MORE };
            let head = Head { kind, ..head };
            while !frames.push(head, piece) {
                // Say that we wait for room, and look again: it may have been made meanwhile.
                self.seat.set_blocked();
                self.ring();
                if frames.push(head, piece) {
                    break;
                }
                wait();
            }
            rest = more;
            if rest.is_empty() {
                break;
            }
            fault("worker: an outcome is pushed in part");
        }
    }

    pub(super) fn ring(&self) {
        if self.control.doorbell().ring_and_wake() == Some(Sleeper::InPoller) {
            self.event.ring();
        }
    }
}

/// What any thread of a worker can say to the owner, at any time: see [`Errand::Note`](super::Errand).
#[derive(Clone, Debug)]
pub struct Voice(pub(super) Arc<Outbox>);

impl Voice {
    /// Sends a note. Waits if the owner is slow to read. False: this is a fork of the worker, whose owner
    /// knows nothing of it.
    pub fn say(&self, note: &[u8]) -> bool {
        /// The bell for room is the other thread's.
        const LOOK: Duration = Duration::from_millis(1);

        let outbox = &self.0;
        if !outbox.is_here() {
            return false;
        }
        let task = outbox.seat.account().running.map_or(0, |(task, _)| task);
        let head = Head { kind: to_owner::NOTE, task, ..Head::default() };
        outbox.push_frames(head, note, || std::thread::sleep(LOOK));
        outbox.ring();
        true
    }
}
