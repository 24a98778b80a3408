//! A pool of workers: the scheduler, the engine thread, the worker's loop.
//!
//! [`Core`] is a pool without a language: it moves bytes to workers and back, and says when a
//! worker is wanted. [`Worker`] is the other side. What is in the bytes, and how a process is
//! started, is the business of whoever uses them.

mod chunk;
mod core;
mod engine;
mod group;
mod parcel;
mod scheduler;
mod shared;
mod spin;
mod staff;
mod state;
mod task;
mod worker;

pub use self::core::{Core, Errand, Hold, Seating};
pub use chunk::{Chunks, Window};
pub use group::{Group, Next, Until};
pub use parcel::{Buffer, LARGE, Parcel, Piece, Room, Seen, Store};
pub use task::{Code, Outcome, Task};
pub use worker::{Duty, Worker};
