//! What goes from process to process.

mod passing;

pub(crate) use passing::{Passed, Passing, Scope, Tickets};
