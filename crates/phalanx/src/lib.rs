//! Process pools that never hang.

#![deny(unsafe_code)]

pub mod error;
#[cfg(not(loom))]
pub mod pool;
pub mod process;
#[allow(unsafe_code)] // one of the two rooms; see ARCHITECTURE.md
mod shm;
#[allow(unsafe_code)] // the other
mod sys;

pub use error::{Error, Result, WorkerDied};
