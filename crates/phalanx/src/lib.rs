//! Process pools that never hang.

#![deny(unsafe_code)]

#[cfg(not(loom))]
mod api;
pub mod error;
#[cfg(not(loom))]
pub mod pool;
pub mod process;
#[allow(unsafe_code)] // one of the two rooms; see ARCHITECTURE.md
mod shm;
#[allow(unsafe_code)] // the other
mod sys;

#[cfg(not(loom))]
pub use api::{Builder, Handle, Imap, Pool, Process, Value, init};
pub use error::{Error, Result, WorkerDied};
pub use process::Exit;
