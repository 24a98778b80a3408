//! The memory of a line between two processes: a ring and a bell for each direction.
//!
//! ```text
//! | page of words | bytes from side 0 to side 1 | bytes from side 1 to side 0 |
//! ```
//!
//! All zeros is a new line. Whoever made the memory is side 0.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::Bell;
use super::ring::{Consumer, Counters, Home, Producer};
use crate::error::{Error, Result};
use crate::sys::{Mapping, Memory};

/// Bytes of each ring: what a line has touched stays in memory, and larger messages are cut.
const RING: usize = 64 << 10;
/// A multiple of every page size in use (64 KiB on some aarch64 kernels).
const PAGE: usize = 64 << 10;
const LINE: usize = PAGE + 2 * RING;

const _: () = assert!(size_of::<Words>() <= PAGE);

/// The words of a line. Index: the side that sleeps, or that pushes.
#[derive(Debug)]
#[repr(C)]
struct Words {
    bells: [CachePadded<Bell>; 2],
    rings: [Counters; 2],
}

/// The view that one side has of a line.
#[derive(Debug)]
pub(crate) struct Line {
    mapping: Mapping,
}

impl Line {
    /// A new line, and the memory to give to the other side.
    pub(crate) fn new() -> Result<(Arc<Self>, LineMemory)> {
        let memory = Memory::new("phalanx-line", LINE);
        let memory = memory.map_err(|e| Error::os("make memory for a line", e))?;
        Ok((Self::map(&memory)?, LineMemory(memory)))
    }

    /// The line whose memory the other side has sent.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Arc<Self>> {
        Self::map(&Memory::from_fd(fd).map_err(|e| Error::os("take over a line's memory", e))?)
    }

    fn map(memory: &Memory) -> Result<Arc<Self>> {
        let mapping = memory.map(0, LINE).map_err(|e| Error::os("map a line's memory", e))?;
        Ok(Arc::new(Self { mapping }))
    }

    fn words(&self) -> &Words {
        let words: NonNull<Words> = self.mapping.start().cast();
        // SAFETY: the mapping is `LINE` bytes, aligned to a page, and all of these words are
        // atomics, for which every bit pattern is a value.
        unsafe { words.as_ref() }
    }

    /// The bell of the side number `side`, 0 or 1.
    pub(crate) fn bell(&self, side: usize) -> &Bell {
        &self.words().bells[side]
    }

    /// Both ends of the rings that belong to `side`: what it pushes to, what it pops from.
    pub(crate) fn ends(self: &Arc<Self>, side: usize) -> (Producer<Half>, Consumer<Half>) {
        let half = |side| Half { line: self.clone(), side };
        (Producer::new(half(side)), Consumer::new(half(1 - side)))
    }
}

/// A line's memory, which lives on in its views.
#[derive(Debug)]
pub(crate) struct LineMemory(Memory);

impl AsFd for LineMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The ring that one side pushes to and the other pops from.
#[derive(Debug)]
pub(crate) struct Half {
    line: Arc<Line>,
    /// Who pushes, 0 or 1.
    side: usize,
}

// SAFETY: the bytes are `RING` ones inside the mapping, which lives as long as the line; only the
// two sides of this ring use them.
unsafe impl Home for Half {
    fn counters(&self) -> &Counters {
        &self.line.words().rings[self.side]
    }

    fn bytes(&self) -> *mut u8 {
        let at = PAGE + self.side * RING;
        // SAFETY: the mapping is `LINE` bytes, and `side` is 0 or 1.
        unsafe { self.line.mapping.start().as_ptr().add(at) }
    }

    fn capacity(&self) -> usize {
        RING
    }
}
