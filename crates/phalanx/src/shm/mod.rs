//! What lives in memory that other processes write: the second of the two rooms that hold
//! `unsafe`.
//!
//! Every structure here takes its storage from outside: memory of this process in tests, a
//! [`Mapping`](crate::sys::Mapping) in production. What is read from it is input.

#[cfg(not(loom))]
mod arena;
mod atomic;
mod bell;
mod claim;
#[cfg(all(test, not(loom)))]
mod fuzz;
#[cfg(not(loom))]
pub(crate) mod heirs;
#[cfg(not(loom))]
mod lease;
#[cfg(not(loom))]
mod line;
#[cfg(not(loom))]
mod placed;
#[cfg(not(loom))]
mod plain;
mod ring;
#[cfg(not(loom))]
mod seat;
#[cfg(not(loom))]
mod slab;
#[cfg(not(loom))]
mod store;

#[cfg(not(loom))]
pub use arena::Arena;
pub(crate) use bell::{Bell, Sleeper};
pub(crate) use claim::Claim;
#[cfg(not(loom))]
pub(crate) use lease::Lease;
#[cfg(not(loom))]
pub(crate) use line::{Half, Line};
#[cfg(not(loom))]
pub(crate) use placed::{Placed, Words, words};
#[cfg(not(loom))]
pub(crate) use plain::Plain;
pub(crate) use ring::{Consumer, Head, Producer};
#[cfg(not(loom))]
pub(crate) use seat::{Account, Control, Order, Region, Seat, SeatInbox, SeatOutbox};
#[cfg(not(loom))]
pub(crate) use slab::{Slab, Slot, Span, View};
#[cfg(not(loom))]
pub(crate) use store::{SEGMENT, Store};
