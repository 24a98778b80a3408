//! The integration tests, in one binary: one file a promise.

mod alone;
mod builder;
mod channel;
mod child;
mod control;
mod deaths;
mod imap;
mod limits;
mod pipe;
mod pool;
mod process;
mod shared;
mod supervisor;
mod sync;
mod tidy;
mod values;

// Workers of these tests are this binary again.
phalanx::enable_tests!();
