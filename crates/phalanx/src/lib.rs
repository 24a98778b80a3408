//! Process pools that never hang.
//!
//! A process has memory of its own. What it leaks is given back when it ends, what it corrupts is
//! its own, and when it is killed, aborts or segfaults, the others go on. phalanx makes that as
//! easy to use as threads: a [`Pool`] of processes runs functions of your program, and a death is
//! an error for the call that it struck.
//!
//! ```
//! fn square(n: u64) -> u64 {
//!     n * n
//! }
//!
//! fn main() -> phalanx::Result<()> {
//!     phalanx::init(); // a worker is this program again: it stays in here
//!     let pool = phalanx::Pool::new(3)?;
//!     assert_eq!(pool.map(square, [1, 2, 3, 4, 5])?, [1, 4, 9, 16, 25]);
//!     assert_eq!(pool.submit(|s: String| s.len(), "phalanx".to_string()).wait()?, 7);
//!     Ok(())
//! }
//! ```
//!
//! # Tasks
//!
//! A task is any function, or a closure that captures nothing; there is nothing to register. It is
//! known to the worker by its place in the executable, which is the same in both. A closure that
//! captures does not compile, and the message says so: pass what it needs as its argument, several
//! things as a tuple. Arguments and results are [values](Value) that serde can write; bytes, numbers
//! in vectors, and strings travel as they are, without a look at each.
//!
//! | | |
//! | --- | --- |
//! | [`Pool::map`] | all results in order, or the first failure; chunks are made by measure |
//! | [`Pool::try_map`] | what became of each item |
//! | [`Pool::imap`], [`Pool::imap_unordered`] | an iterator over results, lazy at both ends |
//! | [`Pool::submit`] | a [`Handle`], to be waited for or awaited |
//! | [`pipe::pipe`] | two ends for messages, between processes, also with a Python program |
//! | [`Process::spawn`], [`Process::builder`] | a process for one task; environment, streams, limits |
//! | [`channel::bounded`], [`channel::unbounded`] | a channel with any number of senders and receivers |
//!
//! # Failures
//!
//! ```
//! fn divide((a, b): (u32, u32)) -> u32 {
//!     a / b
//! }
//!
//! fn main() -> phalanx::Result<()> {
//!     phalanx::init();
//!     let pool = phalanx::Pool::new(2)?;
//!
//!     // A panic arrives with its message, its place and its backtrace; the worker goes on.
//!     let error = pool.submit(divide, (1, 0)).wait().unwrap_err();
//!     assert!(error.is_task_failure());
//!     assert!(error.to_string().contains("attempt to divide by zero"));
//!
//!     // A death arrives as what it was; the task is lost, nothing else is, and a new worker comes.
//!     let error = pool.submit(|code: i32| -> () { std::process::exit(code) }, 3).wait().unwrap_err();
//!     assert_eq!(error.worker_died().unwrap().exit.unwrap().code(), 3);
//!     assert_eq!(pool.submit(divide, (6, 2)).wait()?, 3);
//!     Ok(())
//! }
//! ```
//!
//! A worker that dies is seen at once, and whoever waits for its task is told. Tasks that waited
//! behind that one run elsewhere, each once. Workers die with the process that owns them, however
//! that ends: the kernel sees to it.
//!
//! # Supervision
//!
//! A [`Supervisor`] keeps named processes running: it restarts those that die, alone or with their
//! siblings, and gives up, with a list of the deaths, when they die too often.
//!
//! # Waiting
//!
//! A [`Handle`] is a [future](std::future::Future) for whatever executor you use, and needs none:
//! a thread that waits reads the results itself. Any number of tasks may be in flight; each takes
//! some memory and no descriptor.
//!
//! # Sharing
//!
//! [`shared`] has values and arrays in memory that processes share, [`sync`] locks and what else
//! they wait for: a lock whose holder died is acquired by the next one, which is told. Like the ends
//! of a [`channel`] or a [`pipe`] and an open file ([`Descriptor`]), they can be (part of) what a
//! task is given and returns.
//!
//! # Tests
//!
//! `cargo test` runs a program without a `main` of yours, so write [`enable_tests!`] once in each
//! test crate.
//!
//! # The engine
//!
//! The [`pool`] and [`process`] modules are what this is built on, and what the Python package
//! is built on: pools that move bytes, for a language to be put on top.

#![deny(unsafe_code)]

#[cfg(not(loom))]
mod api;
#[cfg(not(loom))]
pub mod channel;
pub mod error;
#[cfg(all(test, not(loom)))]
mod fuzz;
#[cfg(not(loom))]
pub mod pool;
pub mod process;
#[cfg(not(loom))]
pub mod shared;
#[allow(unsafe_code)] // one of the two rooms; see ARCHITECTURE.md
mod shm;
pub mod sync;
#[allow(unsafe_code)] // the other
mod sys;

#[cfg(not(loom))]
pub use api::{
    Builder, Descriptor, Handle, Imap, Pool, Process, ProcessBuilder, Stdio, Supervisor, Value,
    init,
};
#[cfg(not(loom))]
pub use api::{pipe, supervisor};
#[cfg(not(loom))]
pub use channel::connection;
pub use error::{ChildDied, Ended, Error, OwnerDied, Result, SupervisorFailed, Why, WorkerDied};
#[cfg(not(loom))]
pub use pool::{Limits, Terms, WorkerStats};
pub use process::Exit;
pub use sys::limits::Resource;
