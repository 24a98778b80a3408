//! Memory that processes share.

mod memory;

pub use memory::{Memory, Plain};
