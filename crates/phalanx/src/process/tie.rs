//! A child that ends with another process, however that ends.

use std::os::fd::{OwnedFd, RawFd};

use crate::error::{Error, Result};
use crate::sys::socket::duplicate;
use crate::sys::{ForkClosed, die_with_owner, lifeline};

/// This process's end of a lifeline: who [keeps to](keep_to) the other end is killed when this is
/// dropped, or with this process.
#[derive(Debug)]
pub struct Tie {
    _owner: ForkClosed,
}

impl Tie {
    /// A lifeline, and the child's end of it, to be passed on.
    ///
    /// # Errors
    ///
    /// If descriptors are short.
    pub fn new() -> Result<(Self, OwnedFd)> {
        let (owner, child) = lifeline().map_err(|e| Error::os("make a child's lifeline", e))?;
        Ok((Self { _owner: owner }, child))
    }
}

/// In a child: from now on it ends with the process at the other end of the lifeline, of which this
/// takes a copy; with `tree` it leads a process group of its own, which ends with it.
///
/// # Errors
///
/// If that is no lifeline.
pub fn keep_to(lifeline: RawFd, tree: bool) -> Result<()> {
    let doing = "tie a child to its parent";
    let lifeline = duplicate(lifeline).map_err(|e| Error::os(doing, e))?;
    die_with_owner(lifeline, tree).map_err(|e| Error::os(doing, e))
}
