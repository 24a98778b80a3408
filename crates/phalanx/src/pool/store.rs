//! Where a process puts the large pieces of what it sends, and what is sent more than once.
//!
//! A piece is copied once, into a slot (`shm/slab.rs`) that its receivers see as it is. A slot that
//! stays as it was may be sent again, to any number of tasks, without a copy:
//!
//! | what | is in its slot | until |
//! | --- | --- | --- |
//! | an argument | for one task | the task has ended and its worker has let go |
//! | [`Again`]: one that came twice in a call | from the second time on | the call is submitted |
//! | [`Kept`]: one that its owner keeps | for whom he names it to | he drops it |
//! | [`Loan`]: one that was written where it is | from the beginning | its borrower drops it |
//!
//! All of these are the sender's own memory of it: if he dies, his span dies with him.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::parcel::Packed;
use crate::error::{Error, Result};
use crate::shm::{Slab, Slot, Span};
use crate::sys::fork;

/// Pieces of at least so many bytes go into slots.
pub const LARGE: usize = 64 << 10;

/// A piece of a message that is to be sent: bytes, or a slot that was filled.
#[derive(Clone, Debug)]
pub struct Buffer(pub(super) Kind);

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Slot(Arc<Slot>),
    Bytes(Vec<u8>),
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Kind::Slot(slot) => slot.len(),
            Kind::Bytes(bytes) => bytes.len(),
        }
    }

    fn slot(&self) -> Option<&Arc<Slot>> {
        match &self.0 {
            Kind::Slot(slot) => Some(slot),
            Kind::Bytes(_) => None,
        }
    }

    /// A way to send it again, if there is one.
    #[must_use]
    pub fn again(&self) -> Option<Again> {
        self.slot().map(|slot| Again { first: Arc::downgrade(slot), kept: None })
    }
}

/// A buffer that was sent. The first time it is let go of when its receivers let go; from the second
/// time on it is kept for the next.
#[derive(Debug)]
pub struct Again {
    first: Weak<Slot>,
    kept: Option<Arc<Slot>>,
}

impl Again {
    /// The buffer, unless nobody has it any more.
    pub fn buffer(&mut self) -> Option<Buffer> {
        if self.kept.is_none() {
            self.kept = self.first.upgrade();
        }
        self.kept.clone().map(|slot| Buffer(Kind::Slot(slot)))
    }

    /// Has nobody got it any more?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.first.strong_count() == 0
    }
}

/// Room for a buffer, to be filled.
#[derive(Debug)]
pub struct Room(Kind);

impl Room {
    /// Where its bytes go: as many as were asked for.
    #[must_use]
    pub fn start(&mut self) -> *mut u8 {
        match &mut self.0 {
            Kind::Slot(slot) => slot.start().as_ptr(),
            Kind::Bytes(bytes) => bytes.as_mut_ptr(),
        }
    }

    /// It has been filled.
    #[must_use]
    pub fn done(self) -> Buffer {
        Buffer(self.0)
    }
}

/// Where a process puts the large pieces of what it sends.
#[derive(Clone, Debug)]
pub struct Store {
    slab: Option<Arc<Slab>>,
    shelf: Arc<Shelf>,
}

/// What a store has longer than for one message.
#[derive(Debug)]
struct Shelf {
    generation: u32,
    kept: Mutex<HashMap<u64, Buffer>>,
    /// By the address of their first byte.
    lent: Mutex<HashMap<usize, Weak<Slot>>>,
}

impl Shelf {
    fn new() -> Self {
        Self { generation: fork::generation(), kept: Mutex::default(), lent: Mutex::default() }
    }

    /// In a forked child all of it is the parent's.
    fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(crate) fn new(span: Option<Span>) -> Self {
        let slab = span.map(|span| Arc::new(Slab::new(span)));
        Self { slab, shelf: Arc::new(Shelf::new()) }
    }

    fn slot(&self, len: usize) -> Option<Arc<Slot>> {
        let slab = self.slab.as_ref().filter(|_| len >= LARGE && self.shelf.is_ours())?;
        slab.take(len).ok().map(Arc::new)
    }

    /// Room for a buffer of `len` bytes: in a slot, if it is large enough.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn room(&self, len: usize) -> Result<Room> {
        if let Some(slot) = self.slot(len) {
            return Ok(Room(Kind::Slot(slot)));
        }
        // No span, too many views, or no memory: then there may be none here, either.
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| {
            let error = io::Error::from(io::ErrorKind::OutOfMemory);
            Error::os("make room for a large argument or result", error)
        })?;
        bytes.resize(len, 0);
        Ok(Room(Kind::Bytes(bytes)))
    }

    #[cfg(test)]
    pub(crate) fn is_whole(&self) -> bool {
        self.slab.as_ref().is_none_or(|slab| slab.is_whole())
    }

    /// How many bytes of free slots have pages.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> u64 {
        self.slab.as_ref().map_or(0, |slab| slab.kept() as u64)
    }

    /// A slot of `len` bytes, to be written where it is; what is in it is whatever it is. `None`: it
    /// is too small to lie apart, or there is no room.
    #[must_use]
    pub fn loan(&self, len: usize) -> Option<Loan> {
        let slot = self.slot(len)?;
        let place = slot.start().as_ptr() as usize;
        lock(&self.shelf.lent).insert(place, Arc::downgrade(&slot));
        Some(Loan { slot, shelf: Arc::downgrade(&self.shelf) })
    }

    /// The buffer that was lent at this address and has this length.
    #[must_use]
    pub fn lent(&self, start: usize, len: usize) -> Option<Buffer> {
        let slot = lock(&self.shelf.lent).get(&start)?.upgrade()?;
        (slot.len() == len).then_some(Buffer(Kind::Slot(slot)))
    }

    /// The buffer as it is to stay: a copy of one that its borrower may write to.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn settled(&self, buffer: Buffer) -> Result<Buffer> {
        let Some(slot) = buffer.slot() else { return Ok(buffer) };
        let place = slot.start().as_ptr() as usize;
        if !lock(&self.shelf.lent).contains_key(&place) {
            return Ok(buffer);
        }
        let mut room = self.room(slot.len())?;
        match &mut room.0 {
            Kind::Slot(copy) => copy.copy_from(slot),
            Kind::Bytes(bytes) => *bytes = slot.to_vec(),
        }
        Ok(room.done())
    }

    /// Keeps a buffer to be sent again, until what this returns is dropped.
    #[must_use]
    pub fn keep(&self, buffer: Buffer) -> Kept {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        lock(&self.shelf.kept).insert(number, buffer);
        Kept { shelf: Arc::downgrade(&self.shelf), number }
    }

    /// A stream and its buffers as what goes through the ring, with its slots.
    pub(crate) fn pack(&self, stream: Vec<u8>, buffers: Vec<Buffer>) -> Packed {
        let slot = self.slot(stream.len());
        if slot.is_none() && buffers.is_empty() {
            return Packed::plain(stream);
        }
        let first = match slot {
            Some(slot) => {
                slot.fill(&stream);
                Kind::Slot(slot)
            }
            None => Kind::Bytes(stream),
        };
        Packed::new(std::iter::once(Buffer(first)).chain(buffers).collect())
    }

    /// Gives memory back that nobody uses. True: there is something to come back for.
    pub(crate) fn trim(&self) -> bool {
        self.slab.as_ref().is_some_and(|slab| slab.trim())
    }
}

/// Keeps a buffer in a store, if that is still there.
#[derive(Debug)]
pub struct Kept {
    shelf: Weak<Shelf>,
    number: u64,
}

impl Kept {
    /// The buffer, if `store` is the one that it is kept in.
    #[must_use]
    pub fn buffer(&self, store: &Store) -> Option<Buffer> {
        let ours = std::ptr::eq(self.shelf.as_ptr(), Arc::as_ptr(&store.shelf));
        lock(&store.shelf.kept).get(&self.number).filter(|_| ours).cloned()
    }

    /// Is the store gone?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shelf.strong_count() == 0
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(shelf) = self.shelf.upgrade().filter(|shelf| shelf.is_ours()) else { return };
        let buffer = lock(&shelf.kept).remove(&self.number);
        drop(buffer);
    }
}

/// A slot in the hands of one who writes it.
#[derive(Debug)]
pub struct Loan {
    slot: Arc<Slot>,
    shelf: Weak<Shelf>,
}

impl Loan {
    /// Its first byte; all of them are there until this is dropped.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.slot.start().as_ptr()
    }

    /// How many bytes there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // none is empty
    pub fn len(&self) -> usize {
        self.slot.len()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(shelf) = self.shelf.upgrade().filter(|shelf| shelf.is_ours()) else { return };
        lock(&shelf.lent).remove(&(self.start() as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::Region;

    const LEN: usize = LARGE + 8;

    fn store() -> Store {
        Store::new(Region::new(1).unwrap().span(0))
    }

    fn filled(store: &Store, with: u8) -> Buffer {
        let room = store.room(LEN).unwrap();
        let Kind::Slot(slot) = &room.0 else { panic!("there is room for slots") };
        slot.fill(&[with; LEN]);
        room.done()
    }

    fn place(buffer: &Buffer) -> (u64, u64) {
        buffer.slot().expect("a slot").place()
    }

    #[test]
    fn what_is_sent_again_is_there_while_somebody_has_it_and_kept_from_the_second_time_on() {
        let store = store();
        let first = filled(&store, 1);
        let (mut again, at) = (first.again().unwrap(), place(&first));
        drop(first);
        assert!(again.is_gone() && again.buffer().is_none());
        let first = filled(&store, 2);
        assert_eq!(place(&first), at, "nobody had it any more");
        again = first.again().unwrap();
        assert_eq!(place(&again.buffer().unwrap()), at);
        drop(first);
        assert_eq!(again.buffer().unwrap().slot().unwrap().to_vec(), [2; LEN]);
        drop(again);
        assert_eq!(place(&filled(&store, 3)), at);
    }

    #[test]
    fn what_is_kept_is_known_to_its_store_alone_and_until_it_is_dropped() {
        let (store, other) = (store(), self::store());
        let buffer = filled(&store, 1);
        let at = place(&buffer);
        let kept = store.keep(buffer);
        assert_eq!(place(&kept.buffer(&store).unwrap()), at);
        assert!(kept.buffer(&other).is_none() && !kept.is_gone());
        drop(kept);
        assert_eq!(place(&filled(&store, 2)), at);
        let kept = store.keep(filled(&store, 3));
        drop(store);
        assert!(kept.is_gone());
    }

    #[test]
    fn what_is_lent_is_sent_where_it_is_and_settled_by_a_copy() {
        let store = store();
        let loan = store.loan(LEN).unwrap();
        loan.slot.fill(&[5; LEN]);
        let start = loan.start() as usize;
        assert!(store.lent(start, LEN - 1).is_none() && store.lent(start + 1, LEN).is_none());
        let lent = store.lent(start, LEN).unwrap();
        assert_eq!(place(&lent), loan.slot.place());
        let copy = store.settled(lent).unwrap();
        assert_ne!(place(&copy), loan.slot.place());
        assert_eq!(copy.slot().unwrap().to_vec(), [5; LEN]);
        let lent = store.lent(start, LEN).unwrap();
        drop(loan);
        assert!(store.lent(start, LEN).is_none());
        let at = place(&lent);
        assert_eq!(place(&store.settled(lent).unwrap()), at, "nobody can write to it any more");
        assert!(store.loan(LARGE - 1).is_none());
    }
}
