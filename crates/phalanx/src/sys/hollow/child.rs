//! Children, of which there are none.

use std::ffi::{CStr, CString};

use super::*;

pub(crate) fn is_stopped(pid: u32) -> bool {
    false
}

pub(crate) fn resident(pid: u32) -> Option<u64> {
    None
}

pub(crate) fn unshared(pid: u32) -> Option<u64> {
    None
}

pub(crate) fn private(pid: u32) -> Option<u64> {
    None
}

pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    unsupported()
}

pub(crate) fn try_reap(pidfd: impl AsFd) -> io::Result<Option<i32>> {
    unsupported()
}

pub(crate) fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    unsupported()
}

/// Touches no process: none is ours.
pub(crate) fn kill_and_reap(pid: u32) {}

#[derive(Debug, Default)]
pub(crate) struct Surroundings<'a> {
    pub(crate) directory: Option<&'a CStr>,
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
    pub(crate) held: bool,
}

pub(crate) fn spawn(
    path: &CStr,
    args: &[CString],
    env: Option<&[CString]>,
    keep: &[RawFd],
    surroundings: &Surroundings<'_>,
) -> io::Result<u32> {
    unsupported()
}
