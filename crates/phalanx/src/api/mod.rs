//! The Rust API: typed tasks over the engine's bytes.
//!
//! | file | what it is |
//! | --- | --- |
//! | `start` | this program, run again: how a child learns what it is to do |
//! | `value` | arguments and results as bytes |
//! | `task` | a function and its types as bytes, and how it is called |
//! | `failure` | how a task failed, panics above all |
//! | `descriptor` | an open file as a value |
//! | `pipe` | two ends for messages |
//! | `pool`, `map`, `stream`, `handle` | what a caller sees |
//! | `process`, `process_builder` | one process for one task |
//! | `supervisor` | processes that are started again when they die |

mod descriptor;
mod failure;
#[cfg(test)]
mod fuzz;
mod handle;
mod map;
pub mod pipe;
mod pool;
mod process;
mod process_builder;
mod start;
mod stream;
pub mod supervisor;
mod task;
mod value;
mod worker;

pub use descriptor::Descriptor;
pub use handle::Handle;
pub use pool::{Builder, Pool};
pub use process::Process;
pub use process_builder::{ProcessBuilder, Stdio};
pub use start::init;
pub use stream::Imap;
pub use supervisor::Supervisor;
pub use value::Value;
