//! The integration tests, in one binary: one file a promise.

mod child;
mod tidy;
