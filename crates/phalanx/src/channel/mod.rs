//! What goes from process to process.

mod duplex;
mod passing;

pub use duplex::{Duplex, Hangup, Outgoing};
pub(crate) use passing::{Passed, Passing, Scope, Tickets};
