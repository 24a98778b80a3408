//! The memory of a queue: words at its start, then any number of segments, each backed by pages
//! only while it is in use.
//!
//! A store is one memfd of a fixed, sparse size and one view of it, which forked children inherit.
//! Two tables of segment numbers stand between the words and the segments; what they mean is their
//! user's affair, who also says which segments are backed. Numbers read from the tables are input,
//! and looked at before they become an address.

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use super::placed::Words;
use crate::sys::{Mapping, Memory};

/// Bytes of a segment: small enough that a queue in little use is small, and large enough that
/// taking the next one is rare.
pub(crate) const SEGMENT: usize = 64 << 10;
const PAGE: usize = 4096;

/// Segments of the smallest store, where address space is short, and of the largest.
const FEWEST: u32 = 1 << 8;
const MOST: u32 = 1 << 22;

#[derive(Debug)]
pub(crate) struct Store<W> {
    memory: Memory,
    mapping: Mapping,
    segments: u32,
    words: PhantomData<W>,
}

/// Where the tables and the segments begin, and where all of it ends.
struct Layout {
    places: usize,
    spare: usize,
    first: usize,
    end: usize,
}

impl<W: Words> Store<W> {
    fn layout(segments: u32) -> Layout {
        let places = size_of::<W>().next_multiple_of(PAGE);
        let table = (segments as usize * size_of::<u32>()).next_multiple_of(PAGE);
        let spare = places + table;
        let first = (spare + table).next_multiple_of(SEGMENT);
        Layout { places, spare, first, end: first + segments as usize * SEGMENT }
    }

    /// A store of zeros, with as many segments as the machine has memory for.
    ///
    /// # Errors
    ///
    /// If there is no descriptor, or no address space for even a small one.
    pub(crate) fn new() -> io::Result<Self> {
        let all = u32::try_from(Memory::physical() / SEGMENT).unwrap_or(MOST);
        let mut segments = all.clamp(FEWEST, MOST / 2).next_power_of_two();
        loop {
            let memory = Memory::new("phalanx-queue", Self::layout(segments).end)?;
            match memory.map_inherited(0, memory.len()) {
                Ok(mapping) => {
                    let store = Self { memory, mapping, segments, words: PhantomData };
                    store.memory.back(0, size_of::<W>().next_multiple_of(PAGE))?;
                    return Ok(store);
                }
                // RLIMIT_AS, or many large queues: a smaller one may do.
                Err(_) if segments > FEWEST => segments /= 4,
                Err(error) => return Err(error),
            }
        }
    }

    /// The store that another process made.
    ///
    /// # Errors
    ///
    /// If the descriptor is not that of such a store, or it cannot be mapped.
    pub(crate) fn open(fd: OwnedFd) -> io::Result<Self> {
        let memory = Memory::from_fd(fd)?;
        let fits = |segments: &u32| Self::layout(*segments).end == memory.len();
        let segments = (0..32).map(|bit| 1 << bit).take_while(|n| *n <= MOST).find(fits);
        let Some(segments) = segments else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the memory of a queue"));
        };
        let mapping = memory.map_inherited(0, memory.len())?;
        Ok(Self { memory, mapping, segments, words: PhantomData })
    }

    /// How many segments there are: a power of two.
    pub(crate) fn segments(&self) -> u32 {
        self.segments
    }

    /// How many bytes have pages.
    pub(crate) fn backed(&self) -> io::Result<u64> {
        self.memory.backed()
    }

    fn table(&self, offset: usize) -> &[AtomicU32] {
        // SAFETY: the layout ends within the mapping.
        let start = unsafe { self.mapping.start().add(offset) }.cast::<AtomicU32>();
        let table = NonNull::slice_from_raw_parts(start, self.segments as usize);
        // SAFETY: a table of words begins there at a page, mapped as long as `self` lives; any bits
        // are a number.
        unsafe { table.as_ref() }
    }

    /// Which segment stands where in the stream: one number for each segment there is.
    pub(crate) fn places(&self) -> &[AtomicU32] {
        self.table(Self::layout(self.segments).places)
    }

    /// Which segments are free: as many numbers.
    pub(crate) fn spare(&self) -> &[AtomicU32] {
        self.table(Self::layout(self.segments).spare)
    }

    fn offset(&self, segment: u32) -> usize {
        assert!(segment < self.segments, "a segment outside its store");
        Self::layout(self.segments).first + segment as usize * SEGMENT
    }

    /// Takes the pages of `count` segments.
    ///
    /// # Errors
    ///
    /// If there is no memory left.
    pub(crate) fn back(&self, segment: u32, count: u32) -> io::Result<()> {
        let start = self.offset(segment);
        self.mapping.back(&self.memory, start, count as usize * SEGMENT)
    }

    /// Gives the pages of a segment back.
    pub(crate) fn discard(&self, segment: u32) {
        self.memory.discard(self.offset(segment), SEGMENT);
    }

    fn address(&self, segment: u32, at: usize, len: usize) -> NonNull<u8> {
        assert!(at <= SEGMENT && len <= SEGMENT - at, "bytes outside their segment");
        // SAFETY: within the segment, which is within the mapping.
        unsafe { self.mapping.start().add(self.offset(segment) + at) }
    }

    /// Copies bytes into a segment that is backed.
    pub(crate) fn copy_in(&self, segment: u32, at: usize, from: &[u8]) {
        let to = self.address(segment, at, from.len());
        // SAFETY: the range was checked. Other processes may write there, too, if they do not keep
        // to the protocol; then what they read is spoilt, and nothing else.
        unsafe { to.as_ptr().copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }

    /// Copies bytes out of a segment.
    pub(crate) fn copy_out(&self, segment: u32, at: usize, to: &mut [u8]) {
        let from = self.address(segment, at, to.len());
        // SAFETY: the range was checked; what another process does there meanwhile can only spoil
        // our copy.
        unsafe { from.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
    }
}

impl<W: Words> Deref for Store<W> {
    type Target = W;

    fn deref(&self) -> &W {
        // SAFETY: the store begins with a `W`, at a page, mapped as long as `self` lives; whatever
        // other processes write there is a valid `W`, by `Words`.
        unsafe { self.mapping.start().cast().as_ref() }
    }
}

impl<W> AsFd for Store<W> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    type Small = Store<[AtomicU64; 4]>;

    #[test]
    fn a_store_opened_again_is_the_same_memory() {
        let store = Small::new().unwrap();
        store[3].store(7, Ordering::Relaxed);
        store.back(5, 1).unwrap();
        store.copy_in(5, SEGMENT - 3, b"abc");
        let again = Small::open(store.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let mut read = [0; 3];
        again.copy_out(5, SEGMENT - 3, &mut read);
        assert_eq!((again[3].load(Ordering::Relaxed), &read), (7, b"abc"));
        assert_eq!(again.segments(), store.segments());
        assert_eq!(again.places().len(), store.segments() as usize);
        store.discard(5);
        again.copy_out(5, SEGMENT - 3, &mut read);
        assert_eq!(read, [0; 3]);
    }

    #[test]
    fn other_memory_is_refused() {
        let other = Memory::new("other", 1 << 20).unwrap();
        assert!(Small::open(other.as_fd().try_clone_to_owned().unwrap()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Small::open(file.into()).is_err());
    }
}
