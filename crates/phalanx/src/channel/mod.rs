//! What goes from process to process.

pub mod connection;
mod pace;
mod passing;
mod wire;

pub(crate) use passing::{Handing, Passed, Passing, Scope, Tickets};
