//! Bytes that other processes write at any time, as plain data.
//!
//! There is no reference into them, ever: what is read is copied out first, what is written is
//! copied in. Copies are made of atomic loads and stores, of the largest words that fit. So
//!
//! - two threads of this process that copy at once are no data race;
//! - what another process writes meanwhile is, for the compiler, as what a thread writes;
//! - a scalar of up to 8 bytes at a multiple of its size is copied in one access, so whoever reads
//!   it sees the old value or the new one, and a death in the middle of a copy leaves one of both.
//!
//! Any bits may be found there, so only a type of which every bit pattern is a value is read, and
//! only one without padding, which has no value to copy, is written.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use bytemuck::{AnyBitPattern, NoUninit, Zeroable};

use super::arena::{Arena, Block};
use crate::sys::{Mapping, Memory};

/// Shared bytes; see the module.
#[derive(Debug)]
pub(crate) struct Plain {
    start: NonNull<u8>,
    len: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Block(Block),
    Mapping { _mapping: Mapping },
}

// SAFETY: the bytes are reached by atomic accesses only, and belong to the process.
unsafe impl Send for Plain {}
// SAFETY: as above.
unsafe impl Sync for Plain {}

impl Plain {
    /// Zeros.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        Ok(Self::of(Block::new(len)?, len))
    }

    /// Those that another process made.
    pub(crate) fn open(arena: &Arena, offset: usize, len: usize) -> io::Result<Self> {
        Ok(Self::of(Block::open(arena, offset, len)?, len))
    }

    fn of(block: Block, len: usize) -> Self {
        Self { start: block.start(), len, storage: Storage::Block(block) }
    }

    /// A view of all of `memory`, which a forked child has too.
    pub(crate) fn map(memory: &Memory) -> io::Result<Self> {
        let (mapping, len) = (memory.map_inherited(0, memory.len())?, memory.len());
        Ok(Self { start: mapping.start(), len, storage: Storage::Mapping { _mapping: mapping } })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Where they are, for [`open`](Self::open) in another process; `None` for a file's.
    pub(crate) fn expose(&self) -> Option<(Arena, usize)> {
        match &self.storage {
            Storage::Block(block) => Some(block.expose()),
            Storage::Mapping { .. } => None,
        }
    }

    /// The address of `len` bytes from `at`; `None` if they are not all inside.
    #[inline]
    fn range(&self, at: usize, len: usize) -> Option<NonNull<u8>> {
        let inside = at <= self.len && len <= self.len - at;
        // SAFETY: the offset is at most the length of the bytes, which are one allocation.
        inside.then(|| unsafe { self.start.add(at) })
    }

    /// A copy of the value at `at`; `None` if it is not all inside.
    #[inline]
    pub(crate) fn load<T: AnyBitPattern + NoUninit>(&self, at: usize) -> Option<T> {
        let mut value = T::zeroed();
        let from = self.range(at, size_of::<T>())?;
        copy_out(from, bytemuck::bytes_of_mut(&mut value));
        Some(value)
    }

    /// Writes a value at `at`; `None` if there is no room for it.
    #[inline]
    pub(crate) fn store<T: NoUninit>(&self, at: usize, value: T) -> Option<()> {
        let to = self.range(at, size_of::<T>())?;
        copy_in(bytemuck::bytes_of(&value), to);
        Some(())
    }

    /// Copies bytes from `at` on; `None` if they are not all inside.
    pub(crate) fn read(&self, at: usize, into: &mut [u8]) -> Option<()> {
        copy_out(self.range(at, into.len())?, into);
        Some(())
    }

    /// Writes bytes from `at` on; `None` if there is no room for them.
    pub(crate) fn write(&self, at: usize, from: &[u8]) -> Option<()> {
        copy_in(from, self.range(at, from.len())?);
        Some(())
    }
}

/// An unsigned number that is accessed at once.
trait Word: NoUninit + AnyBitPattern + Zeroable {
    fn load(from: NonNull<Self>) -> Self;
    fn store(self, to: NonNull<Self>);
}

macro_rules! unsigned {
    ($($word:ty, $atomic:ty;)*) => {$(
        impl Word for $word {
            #[inline]
            fn load(from: NonNull<Self>) -> Self {
                // SAFETY: `copy_out` gives an aligned address inside of mapped bytes, and nothing
                // but atomic accesses reaches them.
                let word = unsafe { <$atomic>::from_ptr(from.as_ptr()) };
                // Relaxed: locks order what has to be ordered.
                word.load(Ordering::Relaxed)
            }

            #[inline]
            fn store(self, to: NonNull<Self>) {
                // SAFETY: as in `load`, from `copy_in`.
                let word = unsafe { <$atomic>::from_ptr(to.as_ptr()) };
                word.store(self, Ordering::Relaxed);
            }
        }
    )*};
}

unsigned! {
    u8, AtomicU8;
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
}

/// The bytes of the largest word that begins at `address` and has at most `left` bytes, and how
/// many bytes to copy in such words.
#[inline]
fn run(address: NonNull<u8>, left: usize) -> (usize, usize) {
    let aligned = 1 << (address.addr().get() | 8).trailing_zeros();
    let word = usize::min(aligned, 1 << left.ilog2());
    (word, if word == 8 { left / 8 * 8 } else { word })
}

/// Copies shared bytes, all of which are mapped.
#[inline]
fn copy_out(from: NonNull<u8>, into: &mut [u8]) {
    fn words<W: Word>(from: NonNull<u8>, into: &mut [u8]) {
        let each = into.chunks_exact_mut(size_of::<W>());
        for (i, piece) in each.enumerate() {
            // SAFETY: the pieces are of bytes that are there, one after the other.
            let at = unsafe { from.cast::<W>().add(i) };
            piece.copy_from_slice(bytemuck::bytes_of(&W::load(at)));
        }
    }
    let mut done = 0;
    while done < into.len() {
        // SAFETY: `done` is less than the number of bytes there.
        let at = unsafe { from.add(done) };
        let (word, len) = run(at, into.len() - done);
        let piece = &mut into[done..done + len];
        match word {
            8 => words::<u64>(at, piece),
            4 => words::<u32>(at, piece),
            2 => words::<u16>(at, piece),
            _ => words::<u8>(at, piece),
        }
        done += len;
    }
}

/// Copies into shared bytes, all of which are mapped.
#[inline]
fn copy_in(from: &[u8], to: NonNull<u8>) {
    fn words<W: Word>(from: &[u8], to: NonNull<u8>) {
        for (i, piece) in from.chunks_exact(size_of::<W>()).enumerate() {
            // SAFETY: the pieces are of bytes that are there, one after the other.
            let at = unsafe { to.cast::<W>().add(i) };
            bytemuck::pod_read_unaligned::<W>(piece).store(at);
        }
    }
    let mut done = 0;
    while done < from.len() {
        // SAFETY: `done` is less than the number of bytes there.
        let at = unsafe { to.add(done) };
        let (word, len) = run(at, from.len() - done);
        let piece = &from[done..done + len];
        match word {
            8 => words::<u64>(piece, at),
            4 => words::<u32>(piece, at),
            2 => words::<u16>(piece, at),
            _ => words::<u8>(piece, at),
        }
        done += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_at_any_place_and_of_any_length() {
        let plain = Plain::new(64).unwrap();
        let bytes: Vec<u8> = (1..=64).collect();
        for at in 0..20 {
            for len in 0..=40 {
                plain.write(0, &[0; 64]).unwrap();
                plain.write(at, &bytes[..len]).unwrap();
                let mut all = [0; 64];
                plain.read(0, &mut all).unwrap();
                assert_eq!(&all[at..at + len], &bytes[..len]);
                assert_eq!(all.iter().filter(|byte| **byte != 0).count(), len);
                let mut part = vec![0; len];
                plain.read(at, &mut part).unwrap();
                assert_eq!(part, bytes[..len]);
            }
        }
    }

    #[test]
    fn what_is_not_all_inside_is_not_touched() {
        let plain = Plain::new(12).unwrap();
        assert_eq!(plain.load::<u64>(8), None);
        assert_eq!(plain.store(5, 0u64), None);
        assert_eq!(plain.load::<u8>(usize::MAX), None);
        assert_eq!(plain.write(13, &[]), None);
        assert_eq!(plain.write(12, &[]), Some(()));
        assert_eq!(plain.load::<u32>(8), Some(0));
    }

    #[test]
    fn a_scalar_is_never_seen_half_written() {
        let plain = Plain::new(64).unwrap();
        let values = [0u64, u64::MAX];
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200_000).for_each(|i| plain.store(8, values[i % 2]).unwrap()));
            for _ in 0..200_000 {
                assert!(values.contains(&plain.load(8).unwrap()));
            }
        });
    }
}
