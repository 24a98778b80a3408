//! What goes from process to process.

pub mod connection;
mod duplex;
mod pace;
mod passing;
mod shared;
mod wire;

pub use duplex::{Duplex, Hangup, Outgoing};
pub(crate) use passing::{Handing, Passed, Passing, Scope, Tickets};
