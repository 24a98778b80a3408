//! Where something is in shared memory, on its way to another process.

use std::os::fd::AsFd;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::channel::{Passed, Passing};
use crate::shm::Arena;

/// A place, to be written.
#[derive(Debug, Serialize)]
pub(super) struct Placing<'a> {
    fd: Passing<'a>,
    offset: usize,
}

impl<'a> Placing<'a> {
    pub(super) fn new(arena: &'a Arena, offset: usize) -> Self {
        Self { fd: Passing(arena.as_fd()), offset }
    }
}

/// A place that was read.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) arena: Arena,
    pub(super) offset: usize,
}

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Read {
            fd: Passed,
            offset: usize,
        }
        let Read { fd, offset } = Read::deserialize(deserializer)?;
        Ok(Self { arena: Arena::open(fd.0).map_err(de::Error::custom)?, offset })
    }
}
