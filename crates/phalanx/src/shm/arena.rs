//! Small blocks of shared memory, many to a descriptor.
//!
//! An arena is one memfd and one view of it; a block is a piece of it, cut off in order. So any
//! number of locks cost one descriptor, and what a process passes on to name a block is the
//! arena's descriptor, an offset and a length.
//!
//! | who | has a block by |
//! | --- | --- |
//! | its maker | [`Block::new`] |
//! | a forked child | inheritance: the view is inherited, at the same address |
//! | any other | [`Block::open`], by the arena and the offset that somebody passed on |
//!
//! Nobody counts the users of a block across processes, as one that is killed could not give its
//! share back. Instead the kernel counts: an arena's memory lives as long as a process maps it.
//! A piece is cut again only where nobody else can know it: its process never exposed it and has
//! not forked since. All other pieces return with their arena, once its process let go of the
//! last. A forked child cuts from arenas of its own, never from an inherited one, which its parent
//! cuts from.
//!
//! What a death leaves: a block has no state of its own in shared memory, so nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use crate::sys::fork::{self, Whole};
use crate::sys::socket::adopt;
use crate::sys::{Mapping, Memory};

/// What blocks are multiples of: a cache line, so that no two blocks share one.
pub(crate) const GRAIN: usize = 64;
const SMALLEST: usize = 64 << 10;
const LARGEST: usize = 4 << 20;

/// This process's arenas.
static TABLE: Whole<Table> = Whole::new(Table { current: None, known: BTreeMap::new() });

type Identity = (u64, u64, usize);

struct Table {
    current: Option<Current>,
    /// Every arena that this process maps, so that it maps none twice.
    known: BTreeMap<Identity, Weak<Inner>>,
}

/// The arena that new blocks are cut from.
struct Current {
    arena: Arena,
    generation: u32,
    /// Bytes that were cut off, from the start.
    used: usize,
    /// Pieces that came back, by length.
    free: BTreeMap<usize, Vec<usize>>,
}

impl Current {
    fn cut(&mut self, len: usize) -> Option<usize> {
        if let Some(offset) = self.free.get_mut(&len).and_then(Vec::pop) {
            return Some(offset);
        }
        let offset = self.used;
        let end = offset.checked_add(len).filter(|end| *end <= self.arena.0.memory.len())?;
        self.used = end;
        Some(offset)
    }
}

impl Table {
    /// An arena with `len` bytes to spare, and where they are.
    fn cut(&mut self, len: usize) -> io::Result<(Arena, usize)> {
        let mut size = SMALLEST;
        // An inherited arena is its maker's to cut from.
        if let Some(current) = self.current.as_mut().filter(|c| c.generation == fork::generation())
        {
            if let Some(offset) = current.cut(len) {
                return Ok((current.arena.clone(), offset));
            }
            // Where most of a full arena is in use, the next one is twice as large.
            let live = Arc::strong_count(&current.arena.0) - 1;
            let full = current.arena.0.memory.len();
            let busy = live * GRAIN * 2 >= full;
            size = if busy { full * 2 } else { full }.min(LARGEST);
        }
        if len > size / 4 {
            return Ok((self.map(Memory::new("phalanx-block", len.next_multiple_of(4096))?)?, 0));
        }
        let arena = self.map(Memory::new("phalanx-arena", size)?)?;
        let (generation, free) = (fork::generation(), BTreeMap::new());
        self.current = Some(Current { arena: arena.clone(), generation, used: len, free });
        Ok((arena, 0))
    }

    /// This process's only view of `memory`.
    fn map(&mut self, memory: Memory) -> io::Result<Arena> {
        let identity = memory.identity()?;
        if let Some(arena) = self.known.get(&identity).and_then(Weak::upgrade) {
            return Ok(Arena(arena));
        }
        self.known.retain(|_, arena| arena.strong_count() > 0);
        let mapping = memory.map_inherited(0, memory.len())?;
        let arena = Arc::new(Inner { memory, mapping });
        self.known.insert(identity, Arc::downgrade(&arena));
        Ok(Arena(arena))
    }
}

#[derive(Debug)]
struct Inner {
    memory: Memory,
    mapping: Mapping,
}

/// The memory that blocks are cut from, as this process has it. It stays while this does.
#[derive(Clone, Debug)]
pub struct Arena(Arc<Inner>);

impl Arena {
    /// The arena of another process, by its descriptor.
    ///
    /// # Errors
    ///
    /// If it is not that of an arena, or there is no memory to map it.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        let memory = Memory::from_fd(fd)?;
        TABLE.with(|table| table.map(memory))
    }

    /// As [`open`](Self::open), for a descriptor that was left to this process under a number.
    ///
    /// # Errors
    ///
    /// As `open`.
    pub fn adopt(fd: RawFd) -> io::Result<Self> {
        Self::open(adopt(fd)?)
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }
}

/// A piece of shared memory, at an address that is this process's own.
#[derive(Debug)]
pub(crate) struct Block {
    arena: Arena,
    offset: usize,
    /// As it was asked for.
    len: usize,
    /// Whether others may know it; a block that somebody passed on was exposed to us.
    exposed: AtomicBool,
    generation: u32,
    /// Of our children, how many were forked off before this block was made.
    children: u64,
}

fn grains(len: usize) -> Option<usize> {
    len.max(1).checked_next_multiple_of(GRAIN)
}

impl Block {
    /// `len` bytes of zeros, at a multiple of [`GRAIN`].
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let cut = grains(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let (arena, offset) = TABLE.with(|table| table.cut(cut))?;
        let (generation, children) = (fork::generation(), fork::children());
        Ok(Self { arena, offset, len, exposed: false.into(), generation, children })
    }

    /// The block that another process made.
    ///
    /// # Errors
    ///
    /// If no such block fits into the arena.
    pub(crate) fn open(arena: &Arena, offset: usize, len: usize) -> io::Result<Self> {
        let end = grains(len).and_then(|cut| offset.checked_add(cut));
        let whole = arena.0.memory.len();
        if !offset.is_multiple_of(GRAIN) || end.is_none_or(|end| end > whole) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a block outside its arena"));
        }
        let (arena, generation) = (arena.clone(), fork::generation());
        Ok(Self { arena, offset, len, exposed: true.into(), generation, children: 0 })
    }

    /// Where the block is, for another process. Its memory is not used for another block again.
    pub(crate) fn expose(&self) -> (Arena, usize) {
        self.exposed.store(true, Ordering::Relaxed);
        (self.arena.clone(), self.offset)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        // SAFETY: the offset was checked against the memory, all of which is mapped.
        unsafe { self.arena.0.mapping.start().add(self.offset) }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let unknown = !*self.exposed.get_mut()
            && (self.generation, self.children) == (fork::generation(), fork::children());
        if !unknown {
            return;
        }
        let cut = grains(self.len).expect("it was cut");
        let arena = &self.arena;
        let is_cut_from = |current: &&mut Current| Arc::ptr_eq(&current.arena.0, &arena.0);
        if TABLE.with(|table| table.current.as_mut().filter(is_cut_from).is_none()) {
            return; // nobody will cut it again: do not touch pages that nobody has touched
        }
        // SAFETY: the bytes are this block's alone, and whole grains were cut for it.
        unsafe { self.start().write_bytes(0, cut) };
        TABLE.with(|table| {
            if let Some(current) = table.current.as_mut().filter(is_cut_from) {
                current.free.entry(cut).or_default().push(self.offset);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reopen(block: &Block) -> io::Result<Block> {
        let (arena, offset) = block.expose();
        let arena = Arena::open(arena.as_fd().try_clone_to_owned()?)?;
        Block::open(&arena, offset, block.len())
    }

    fn byte(block: &Block, at: usize) -> u8 {
        assert!(at < block.len());
        let place = block.start().as_ptr().wrapping_add(at);
        // SAFETY: inside the block, which this test alone uses.
        unsafe { place.read() }
    }

    fn fill(block: &Block, with: u8) {
        // SAFETY: inside the block, which this test alone uses.
        unsafe { block.start().write_bytes(with, block.len()) };
    }

    #[test]
    fn a_block_is_zeros_and_has_cache_lines_to_itself() {
        let blocks: Vec<_> = (0..5000).map(|_| Block::new(40).unwrap()).collect();
        let mut places: Vec<_> = blocks.iter().map(|b| b.start().as_ptr() as usize).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= GRAIN));
        assert!(places.iter().all(|place| place % GRAIN == 0));
        assert!(blocks.iter().all(|block| (0..40).all(|at| byte(block, at) == 0)));
    }

    #[test]
    fn the_same_block_opened_again_is_the_same_memory() {
        let block = Block::new(100).unwrap();
        fill(&block, 7);
        let again = reopen(&block).unwrap();
        assert_eq!((again.start(), again.len()), (block.start(), 100));
        drop(block);
        assert_eq!(byte(&again, 99), 7);
    }

    #[test]
    fn a_block_that_nobody_else_knows_is_used_again_and_is_zeros_again() {
        let seen = (0..10_000).any(|_| {
            let block = Block::new(192).unwrap();
            let start = block.start();
            fill(&block, 1);
            drop(block);
            let again = Block::new(192).unwrap();
            assert!((0..192).all(|at| byte(&again, at) == 0));
            again.start() == start
        });
        assert!(seen);
    }

    #[test]
    fn an_exposed_block_is_not_used_again_while_its_arena_lives() {
        let keep = Block::new(64).unwrap();
        let known = Block::new(64).unwrap();
        let start = known.start();
        known.expose();
        drop(known);
        let later: Vec<_> = (0..100).map(|_| Block::new(64).unwrap()).collect();
        assert!(later.iter().all(|block| block.start() != start));
        drop(keep);
    }

    #[test]
    fn a_large_block_has_an_arena_of_its_own_that_goes_with_it() {
        let block = Block::new(1 << 20).unwrap();
        let arena = Arc::downgrade(&block.arena.0);
        fill(&block, 3);
        drop(block);
        assert!(arena.upgrade().is_none());
    }

    #[test]
    fn a_place_outside_its_arena_is_an_error() {
        let block = Block::new(64).unwrap();
        let (arena, _) = block.expose();
        for (offset, len) in [(1, 8), (0, usize::MAX), (1 << 30, 8), (usize::MAX - 63, 64)] {
            assert!(Block::open(&arena, offset, len).is_err(), "{offset} {len}");
        }
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Arena::open(file.into()).is_err());
    }
}
