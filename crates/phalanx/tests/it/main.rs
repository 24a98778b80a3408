//! The integration tests, in one binary: one file a promise.

mod tidy;
