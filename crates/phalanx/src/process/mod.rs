//! Processes: how they start, how they are watched, and how they end.
//!
//! A [`Child`] is watched by a descriptor of its own (a pidfd), whoever its parent is: this
//! process, which forked or spawned it, or a [`Template`], a warm process that forks when asked.

mod child;
mod exit;
#[cfg(all(test, not(loom)))]
mod faults;
#[cfg(all(test, not(loom)))]
mod fuzz;
mod supervision;
pub mod supervisor;
mod template;
mod template_server;
mod tie;
mod wire;

pub use child::{Child, OwnPidfd};
pub use exit::Exit;
pub use template::{Launch, Template};
pub use template_server::{Next, Request, TemplateServer};
pub use tie::{Tie, keep_to};
