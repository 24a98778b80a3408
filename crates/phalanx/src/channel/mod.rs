//! What goes from process to process.

pub mod connection;
mod pace;
mod passing;
mod wire;

pub(crate) use passing::{Handing, Passed, Passing, Scope, Tickets};
mod queue;
mod stream;
mod typed;

pub(crate) use passing::{Passed, Passing, Scope, Tickets};
pub use queue::{Body, Front, Pushed, Queue};
pub use stream::Frame;
pub use typed::{Receiver, Select, Sender, bounded, unbounded};
