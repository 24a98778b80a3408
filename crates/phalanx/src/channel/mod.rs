//! Messages between processes.

mod duplex;

pub use duplex::{Duplex, Hangup, Outgoing};
