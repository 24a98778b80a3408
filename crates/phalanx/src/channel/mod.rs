//! What goes from process to process.

mod passing;
mod shared;

pub(crate) use passing::{Passed, Passing, Scope, Tickets};
