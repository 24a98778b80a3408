//! Large pieces of messages: written once by whoever sends, seen without a copy by whoever gets.
//!
//! A *span* is a range of a pool's memory that one process writes. It cuts *slots* from it, which
//! are used again and again: their pages are there and mapped, so that a copy runs at the speed of
//! memory. Who gets a piece has a private *view* of it: what he writes there is his alone (copy on
//! write, page by page). A view that is let go of stays mapped for the next piece at its place, without
//! what was written into it: to map and unmap pages takes longer than to read them.
//!
//! When a slot may be written again is not known here but by whoever keeps [`Slot`]: when he drops
//! it. Slots of one size class are used last in, first out. What is kept for later is bounded by
//! [`KEPT`], and [`Slab::trim`] gives all of it back to the system.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::heirs::Presence;
use crate::sys::{Mapping, Memory, fork};

/// The smallest slot; all are powers of two, of which only what is used has pages.
const SMALLEST: usize = 64 << 10;
/// Bytes of slots that nobody uses are kept up to this for the next message.
pub(crate) const KEPT: usize = 512 << 20;
/// Bytes of a span that stay mapped while nobody has a view of them.
const MAPPED: usize = 256 << 20;

/// A range of a pool's memory.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
    unseen: Arc<Unseen>,
}

/// Private views that nobody has, each with its place; what was let go of last is at the end.
#[derive(Debug)]
struct Unseen {
    /// A forked child has the mappings and no part in this.
    generation: u32,
    views: Mutex<VecDeque<(usize, Mapping)>>,
}

impl Unseen {
    fn views(&self) -> Option<MutexGuard<'_, VecDeque<(usize, Mapping)>>> {
        let ours = self.generation == fork::generation();
        ours.then(|| self.views.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, start: usize, len: usize) -> Option<Mapping> {
        let mut views = self.views()?;
        let found = views.iter().position(|(at, _)| *at == start)?;
        let (_, mapping) = views.remove(found).expect("it was just found");
        drop(views);
        (mapping.len() >= len).then_some(mapping)
    }

    fn put(&self, start: usize, mapping: Mapping) {
        if self.generation != fork::generation() || mapping.revert().is_err() {
            return;
        }
        let Some(mut views) = self.views() else { return };
        views.push_back((start, mapping));
        let mut mapped = views.iter().map(|(_, mapping)| mapping.len()).sum::<usize>();
        let mut old = Vec::new();
        while mapped > MAPPED {
            let (_, mapping) = views.pop_front().expect("there are some");
            mapped -= mapping.len();
            old.push(mapping);
        }
        drop(views);
    }
}

impl Span {
    pub(super) fn new(memory: Arc<Memory>, start: usize, len: usize) -> Self {
        let unseen = Unseen { generation: fork::generation(), views: Mutex::default() };
        Self { memory, start, len, unseen: Arc::new(unseen) }
    }

    fn place(&self, at: u64, len: u64) -> io::Result<(usize, usize)> {
        let end = at.checked_add(len).filter(|end| *end <= self.len as u64);
        // Whoever tells of a piece has written it. A length that is a lie must not take memory here.
        if end.is_none() || len > self.memory.backed()? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a piece outside its span"));
        }
        Ok((self.start + at as usize, len as usize))
    }

    /// A private view of `len` bytes; `at` is a multiple of the page size. `keep` is dropped when
    /// nobody can see them any more.
    ///
    /// # Errors
    ///
    /// If there is no such place, or no memory or descriptor for a view.
    pub(crate) fn view(&self, at: u64, len: u64, keep: Box<dyn Send + Sync>) -> io::Result<View> {
        let (start, len) = self.place(at, len)?;
        let presence = Presence::begin()?;
        let mapping = match self.unseen.take(start, len) {
            Some(mapping) => Ok(mapping),
            None => self.memory.map_private(start, len),
        };
        match mapping {
            Ok(mapping) => {
                let (inner, end) = (Some((mapping, self.unseen.clone())), Some((presence, keep)));
                Ok(View { inner, start, len, end })
            }
            Err(error) => {
                presence.end(keep);
                Err(error)
            }
        }
    }

    /// A copy of `len` bytes.
    ///
    /// # Errors
    ///
    /// If there is no such place, or no memory for a copy.
    pub(crate) fn read(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let (start, len) = self.place(at, len)?;
        self.memory.copy(start, len)
    }

    /// Gives all pages back: nobody writes here any more, and there is no view.
    pub(crate) fn discard(&self) {
        self.memory.discard(self.start, self.len);
    }
}

/// Bytes of another process, seen as they are; what is written here stays here.
pub(crate) struct View {
    inner: Option<(Mapping, Arc<Unseen>)>,
    /// Where in its memory it begins, and how long it is: the mapping may be longer.
    start: usize,
    len: usize,
    end: Option<(Presence, Box<dyn Send + Sync>)>,
}

impl View {
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.inner.as_ref().expect("taken by `drop` only").0.start()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("View").field(&self.inner).finish()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some((mapping, unseen)) = self.inner.take() {
            unseen.put(self.start, mapping);
        }
        if let Some((presence, keep)) = self.end.take() {
            presence.end(keep);
        }
    }
}

/// The slots of a span, for the process that writes it.
#[derive(Debug)]
pub(crate) struct Slab {
    span: Span,
    generation: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where nothing was cut yet.
    next: usize,
    /// Slots with pages that nobody uses, by size.
    idle: BTreeMap<usize, Vec<Room>>,
    /// Bytes of pages that these have.
    kept: usize,
    /// Where slots without pages are, by size.
    bare: BTreeMap<usize, Vec<usize>>,
    /// Something was taken since the last `trim`.
    used: bool,
}

#[derive(Debug)]
struct Room {
    at: usize,
    mapping: Mapping,
    /// How many of its bytes have pages.
    backed: usize,
}

impl Slab {
    pub(crate) fn new(span: Span) -> Self {
        Self { span, generation: fork::generation(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for `len` bytes, with all its pages; what is in it is whatever it is.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> io::Result<Slot> {
        let size = len.checked_next_power_of_two().ok_or(io::ErrorKind::OutOfMemory)?;
        let size = size.max(SMALLEST);
        if len > Memory::physical() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut state = self.state();
        state.used = true;
        if let Some(room) = state.idle.get_mut(&size).and_then(Vec::pop) {
            state.kept -= room.backed;
            drop(state);
            return self.fill_up(room, len);
        }
        let at = match state.bare.get_mut(&size).and_then(Vec::pop) {
            Some(at) => at,
            None if size > self.span.len - state.next => {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            None => {
                state.next += size;
                state.next - size
            }
        };
        drop(state);
        match self.span.memory.map(self.span.start + at, size) {
            Ok(mapping) => self.fill_up(Room { at, mapping, backed: 0 }, len),
            Err(error) => {
                self.state().bare.entry(size).or_default().push(at);
                Err(error)
            }
        }
    }

    fn fill_up(self: &Arc<Self>, mut room: Room, len: usize) -> io::Result<Slot> {
        let mut backed = Ok(());
        if room.backed < len {
            let (from, to) = (room.backed, len.next_multiple_of(SMALLEST).min(room.mapping.len()));
            backed = room.mapping.back(&self.span.memory, from, to - from);
            room.backed = to;
        }
        let slot = Slot { slab: self.clone(), room: Some(room), len };
        backed.map(|()| slot)
    }

    fn put_back(&self, room: Room) {
        let mut state = self.state();
        if state.kept + room.backed > KEPT {
            drop(state);
            self.strip(room);
        } else {
            state.kept += room.backed;
            state.idle.entry(room.mapping.len()).or_default().push(room);
        }
    }

    /// Gives the pages of a slot back.
    fn strip(&self, Room { at, mapping, .. }: Room) {
        let size = mapping.len();
        drop(mapping);
        self.span.memory.discard(self.span.start + at, size);
        self.state().bare.entry(size).or_default().push(at);
    }

    /// Gives the pages of all slots back that nobody uses, unless one was taken since the last time.
    /// True: there is something left to come back for.
    pub(crate) fn trim(&self) -> bool {
        let mut state = self.state();
        if std::mem::take(&mut state.used) {
            return true;
        }
        state.kept = 0;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        idle.into_values().flatten().for_each(|room| self.strip(room));
        false
    }

    /// Is there no slot but free ones, each once?
    #[cfg(test)]
    pub(crate) fn is_whole(&self) -> bool {
        let state = self.state();
        let idle = state.idle.values().flatten().map(|room| room.mapping.len());
        let bare = state.bare.iter().map(|(size, places)| size * places.len());
        idle.chain(bare).sum::<usize>() == state.next
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.state().kept
    }
}

/// A piece of a span, to be written by this process and seen by others. Dropped when no other can
/// see it any more.
#[derive(Debug)]
pub(crate) struct Slot {
    slab: Arc<Slab>,
    room: Option<Room>,
    len: usize,
}

impl Slot {
    fn room(&self) -> &Room {
        self.room.as_ref().expect("taken by `drop` only")
    }

    /// Where it is, for [`Span::view`], and how long.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.room().at as u64, self.len as u64)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.room().mapping.start()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies `bytes` to its start; they fit.
    pub(crate) fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "more bytes than the slot has");
        // SAFETY: as many bytes are mapped, which only this process writes.
        unsafe { self.start().as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies what is in `other`, which is as long.
    pub(crate) fn copy_from(&self, other: &Slot) {
        assert!(self.len == other.len, "slots of different lengths");
        // SAFETY: as many bytes are mapped in both, which are not the same; of the other one somebody
        // may write some meanwhile, who then has spoilt the copy and nothing else.
        unsafe {
            self.start().as_ptr().copy_from_nonoverlapping(other.start().as_ptr(), self.len);
        }
    }

    /// What was put into it.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: as many bytes are mapped.
        unsafe { self.start().as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), self.len) };
        bytes
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let room = self.room.take().expect("taken here only");
        // A forked child does not have the mapping, and the slot is its parent's.
        if self.slab.generation == fork::generation() {
            self.slab.put_back(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slab() -> Arc<Slab> {
        let memory = Arc::new(Memory::new("test", 1 << 40).unwrap());
        Arc::new(Slab::new(Span::new(memory, 0, 1 << 40)))
    }

    fn see(slot: &Slot) -> View {
        let (at, len) = slot.place();
        slot.slab.span.view(at, len, Box::new(())).unwrap()
    }

    fn byte(view: &View, at: usize) -> u8 {
        assert!(at < view.len());
        // SAFETY: inside the view.
        let byte = unsafe { view.start().as_ptr().add(at) };
        // SAFETY: as above, and views are readable.
        unsafe { byte.read() }
    }

    #[test]
    fn what_is_written_into_a_view_is_its_own() {
        let slab = slab();
        let slot = slab.take(100_000).unwrap();
        slot.fill(&[7; 100_000]);
        let (one, other) = (see(&slot), see(&slot));
        assert_eq!((byte(&one, 0), byte(&one, 99_999)), (7, 7));
        // SAFETY: inside the view.
        unsafe { one.start().as_ptr().write(9) };
        assert_eq!((byte(&one, 0), byte(&other, 0), slot.to_vec()[0]), (9, 7, 7));
        let (at, len) = slot.place();
        assert_eq!(slab.span.read(at, len).unwrap(), vec![7; 100_000]);
    }

    fn write(view: &View, at: usize, byte: u8) {
        assert!(at < view.len());
        // SAFETY: inside the view.
        let place = unsafe { view.start().as_ptr().add(at) };
        // SAFETY: as above, and views are writable.
        unsafe { place.write(byte) };
    }

    #[test]
    fn a_view_that_is_used_again_shows_what_is_there_whatever_was_written_into_it() {
        const LEN: usize = 5 << 20;
        let slab = slab();
        let slot = slab.take(LEN).unwrap();
        let mut address = None;
        // Every page, every other, none, the first and the last.
        for (round, step) in [(1, 4096), (2, 8192), (3, LEN), (4, LEN - 1), (5, LEN)] {
            slot.fill(&vec![round; LEN]);
            let view = see(&slot);
            assert!((0..LEN).all(|at| byte(&view, at) == round), "round {round}");
            assert_eq!(*address.get_or_insert(view.start()), view.start(), "it was mapped anew");
            (0..LEN).step_by(step).for_each(|at| write(&view, at, 99));
        }
        let (first, other) = (see(&slot), see(&slot));
        assert_ne!(first.start(), other.start(), "two have one view");
        write(&first, 7, 98);
        assert_eq!((byte(&other, 7), byte(&first, 8)), (5, 5));
    }

    #[test]
    fn views_of_one_place_may_have_any_lengths() {
        let slab = slab();
        for len in [1 << 20, 600_000, (1 << 20) - 1, 1 << 20] {
            let slot = slab.take(len).unwrap();
            slot.fill(&vec![3; len]);
            let view = see(&slot);
            assert_eq!((view.len(), byte(&view, len - 1)), (len, 3));
        }
    }

    #[test]
    fn what_stays_mapped_has_a_bound() {
        let slab = slab();
        let slots: Vec<_> = (0..6).map(|_| slab.take(64 << 20).unwrap()).collect();
        slots.iter().map(see).collect::<Vec<_>>().into_iter().for_each(drop);
        let views = slab.span.unseen.views().unwrap();
        assert_eq!(views.iter().map(|(_, mapping)| mapping.len()).sum::<usize>(), MAPPED);
    }

    #[test]
    fn a_slot_is_used_again_and_no_two_have_the_same_place() {
        let slab = slab();
        let (one, other) = (slab.take(1 << 20).unwrap(), slab.take(1 << 20).unwrap());
        let place = one.place();
        assert_ne!(place, other.place());
        drop(one);
        assert_eq!(slab.take(1 << 20).unwrap().place(), place);
    }

    #[test]
    fn what_nobody_uses_goes_back_to_the_system() {
        let slab = slab();
        drop(slab.take(3 << 20).unwrap());
        assert_eq!(slab.kept(), 3 << 20);
        assert!(slab.trim(), "it was used just now");
        assert_eq!(slab.kept(), 3 << 20);
        assert!(!slab.trim());
        assert_eq!(slab.kept(), 0);
        drop((slab.take(KEPT - 4096).unwrap(), slab.take(8192).unwrap()));
        assert!(slab.kept() <= KEPT);
    }

    #[test]
    fn a_place_outside_the_span_is_an_error() {
        let slab = slab();
        for (at, len) in [(0, 1 << 41), (u64::MAX, 1), (1 << 40, 1)] {
            assert!(slab.span.view(at, len, Box::new(())).is_err());
            assert!(slab.span.read(at, len).is_err());
        }
        assert!(slab.take(usize::MAX).is_err());
    }

    #[test]
    fn a_piece_that_nobody_can_have_written_is_an_error() {
        let slab = slab();
        let slot = slab.take(1 << 20).unwrap();
        let (at, len) = slot.place();
        assert!(slab.span.view(at, len, Box::new(())).is_ok());
        assert!(slab.span.view(at, 2 * len, Box::new(())).is_err());
        assert!(slab.span.read(at, 2 * len).is_err());
    }
}
