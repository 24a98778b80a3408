//! Linux 5.10 and later, x86-64 and aarch64.

pub(crate) mod again;
pub(crate) mod child;
mod clock;
pub(crate) mod code;
pub(crate) mod cpus;
mod event;
pub(crate) mod fork;
pub(crate) mod futex;
mod identity;
mod lifeline;
pub(crate) mod limits;
mod memory;
pub(crate) mod named;
pub(crate) mod rendezvous;
mod report;
mod signals;
pub(crate) mod socket;
mod stack;
pub(crate) mod stream;
pub(crate) mod thread;

pub(crate) use clock::monotonic;
pub(crate) use event::{Event, Poller};
pub(crate) use fork::ForkClosed;
pub(crate) use identity::{Fate, ProcessId};
pub(crate) use lifeline::{
    die_with_owner, heirloom, kill_tree_of, kill_with_owner, let_be, lifeline, send_when_closed,
};
pub(crate) use memory::{Mapping, Memory, advise_huge, total_memory, trim};
pub(crate) use report::{Report, report};
pub(crate) use signals::{block_signals, trace_signal};
pub(crate) use stack::{CRASHES, answer_trace};
