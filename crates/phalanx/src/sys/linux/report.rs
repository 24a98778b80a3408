//! A pipe at which neither side ever waits: pipe(7) with `O_NONBLOCK`.
//!
//! What is written into a full one is dropped; what was written stays when its writer has died.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::read;
use rustix::pipe::{PipeFlags, pipe_with};

use super::fork::{ForkClosed, undivided};

/// The end that is read.
#[derive(Debug)]
pub(crate) struct Report(ForkClosed);

/// Both ends.
pub(crate) fn report() -> io::Result<(Report, OwnedFd)> {
    undivided(|| {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok((Report(ForkClosed::new(reader)), writer))
    })
}

impl Report {
    /// Takes what there is.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut part = [0; 4096];
        // A pipe holds a megabyte at the most; who writes faster than we read is not waited for.
        while let (Ok(fd), true) = (self.0.get(), all.len() < 1 << 20) {
            match read(fd, &mut part) {
                Ok(len) if len > 0 => all.extend_from_slice(&part[..len]),
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
        all
    }
}
