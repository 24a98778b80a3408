//! What goes from process to process: channels of values, and what they and the queues and
//! connections of other languages stand on.

pub mod connection;
mod duplex;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fuzz;
mod pace;
mod passing;
mod queue;
mod reading;
mod shared;
mod stream;
mod typed;
mod wire;

pub use duplex::{Duplex, Hangup, Outgoing};
pub(crate) use pace::{Pace, cores};
pub(crate) use passing::{Handing, Passed, Passing, Scope, Tickets};
pub use queue::{Body, Front, Pushed, Queue};
pub(crate) use reading::from_bytes;
pub use stream::Frame;
pub use typed::{Receiver, Select, Sender, bounded, unbounded};
