//! A pool of workers: the scheduler, the engine thread, the worker's loop.
//!
//! [`Core`] is a pool without a language: it moves bytes to workers and back, and says when a
//! worker is wanted. [`Worker`] is the other side. What is in the bytes, and how a process is
//! started, is the business of whoever uses them.

mod chunk;
mod control;
mod core;
mod engine;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fuzz;
mod group;
mod limits;
mod outbox;
mod parcel;
mod scheduler;
mod shared;
mod size;
mod spin;
mod staff;
mod state;
mod store;
mod task;
mod vacancies;
mod worker;

pub use self::core::{Core, Errand, Hold, Seating, WorkerStats};
pub use chunk::{Chunks, Window};
pub use control::Terms;
pub use group::{Group, Next, Until};
pub use limits::Limits;
pub use outbox::Voice;
pub use parcel::{Parcel, Piece, Seen};
pub use size::default_processes;
pub use store::{Again, Buffer, Kept, LARGE, Loan, Room, Store};
pub use task::{Code, Outcome, Task};
pub use worker::{Duty, Ear, End, Worker, trace_signal};
