//! A stream of frames in shared memory: any number of processes push, any number pop.
//!
//! # Where things are
//!
//! Frames follow each other in one endless row of bytes. The row is cut into segments, and a table
//! says which segment of the [`Store`] stands at which place of the row (`place % segments`). A frame
//! is a head of 16 bytes, its body, and what is missing to a multiple of 16, so that no head lies
//! across a border; bodies may.
//!
//! | side | its lock guards | it ends a step by |
//! | --- | --- | --- |
//! | tail | what is pushed, the table, the free segments | one store of `tail.step` |
//! | front | what is popped | one store of `front.step` |
//!
//! | bits of a step | meaning |
//! | --- | --- |
//! | 0 | in which of the two words `at` the byte stands that this end has come to |
//! | 1 to 63 | how many frames have ever passed this end |
//!
//! A step writes the other word `at` first, and then `step`, which so publishes both at once. How
//! many frames there are is the difference of two counts, exact at any instant, and not more than
//! the bound, as the tail's lock lets one pusher look at a time and poppers only make it less.
//!
//! # What a death leaves
//!
//! | dies | what it leaves |
//! | --- | --- |
//! | a pusher, before its store of `tail.step` | nothing: bytes beyond the end of the row |
//! | a pusher, after it | its frames, whole |
//! | a popper, before its store of `front.step` | the frames it was reading |
//! | a popper, after it | its frames went with it |
//! | whoever moves free segments | numbers that are lost or twice there: [`Stream::recover`] |
//!
//! The lock of the dead is taken over by the next one ([`HoldWord`]), who is told, and finds the
//! free segments again by what is sure: a segment is in use exactly if the table has it between the
//! front and `mapped`. All numbers below `fresh` were given out, all others never.
//!
//! # Memory
//!
//! A freed segment is the next one to be used (a stack), so a queue in steady use stays in the
//! same, cached bytes. Of free segments some stay backed, and the pages of others go back to the
//! system: as many stay as two frames like the largest of late take, at least [`KEEP`] and at most
//! [`MOST_KEPT`]. Each frame that needs less lets one of them go, and [`Pusher::rest`] all but `KEEP`.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Instant;

use super::typed::Owners;
use crate::error::{Error, Result};
use crate::shm::{Lease, SEGMENT, Store, words};
use crate::sync::{Acquired, HoldWord, fault};

/// Free segments that stay backed in any case: 8 MiB.
const KEEP: u32 = 128;
/// Free segments that stay backed for large frames: 256 MiB.
const MOST_KEPT: u32 = 4096;
const HEAD: usize = 16;

words! {
    /// The end that is pushed to. One cache line.
    pub(super) struct Tail {
        lock: HoldWord,
        /// How many frames were ever pushed, and where to; see the module.
        pub(super) step: AtomicU64,
        at: [AtomicU64; 2],
        /// Places of the row before this one have given their segments back.
        settled: AtomicU64,
        /// Places of the row before this one have had a segment.
        mapped: AtomicU64,
        /// How many free segments there are, and how many of these, from the first, have no pages.
        free: AtomicU32,
        cold: AtomicU32,
        /// Segments from this one on were never used.
        fresh: AtomicU32,
        /// How many free segments keep their pages.
        kept: AtomicU32,
    }
}

words! {
    /// The end that is popped from. One cache line.
    pub(super) struct Front {
        lock: HoldWord,
        /// How many frames were ever popped, and where from.
        pub(super) step: AtomicU64,
        at: [AtomicU64; 2],
        _spare: [AtomicU64; 4],
    }
}

words! {
    /// Those who sleep, and how often nobody was found who does. One cache line.
    pub(super) struct Sleepers {
        pub(super) count: AtomicU32,
        pub(super) vain: AtomicU32,
        /// The right to spin.
        pub(super) lease: Lease,
        _spare: [AtomicU64; 6],
    }
}

words! {
    pub(super) struct Words {
        /// The most frames that there can be.
        pub(super) bound: AtomicU64,
        /// Does anybody poll for frames?
        pub(super) watched: AtomicU32,
        pub(super) closed: AtomicU32,
        /// Frames that were popped and dealt with, for those who count them.
        pub(super) done: AtomicU64,
        _spare: [AtomicU64; 5],
        pub(super) tail: Tail,
        pub(super) front: Front,
        pub(super) for_frames: Sleepers,
        pub(super) for_room: Sleepers,
        pub(super) for_done: Sleepers,
        pub(super) senders: Owners,
        pub(super) receivers: Owners,
    }
}

/// A frame's head.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Bytes of the body.
    pub len: usize,
    /// What the body is: between those who push and those who pop.
    pub kind: u32,
}

/// The row of frames. What is said to be under a lock is so by a [`Pusher`] or a [`Popper`].
#[derive(Debug)]
pub(super) struct Stream(Store<Words>);

impl std::ops::Deref for Stream {
    type Target = Store<Words>;

    fn deref(&self) -> &Store<Words> {
        &self.0
    }
}

/// The count of a step.
pub(super) fn count(step: u64) -> u64 {
    step >> 1
}

/// Which of the two words a step speaks of.
fn which(step: u64) -> usize {
    (step & 1) as usize
}

/// The step after this one, so many frames further.
fn next_step(step: u64, frames: u64) -> u64 {
    ((count(step) + frames) << 1) | (step & 1 ^ 1)
}

fn place(at: u64) -> u64 {
    at / SEGMENT as u64
}

fn room(len: usize) -> Option<u64> {
    Some(len.checked_next_multiple_of(HEAD)?.checked_add(HEAD)? as u64)
}

fn out_of_memory(source: impl Into<io::Error>) -> Error {
    Error::os("find memory for what is put into a queue", source)
}

fn nonsense() -> Error {
    Error::corrupt("a queue")
}

impl Stream {
    pub(super) fn new(bound: u64) -> io::Result<Self> {
        let store = Store::<Words>::new()?;
        store.bound.store(bound, Ordering::Relaxed);
        Ok(Self(store))
    }

    pub(super) fn open(fd: std::os::fd::OwnedFd) -> io::Result<Self> {
        Ok(Self(Store::open(fd)?))
    }

    /// How many frames there are.
    pub(super) fn len(&self) -> u64 {
        loop {
            let popped = self.front.step.load(Ordering::Acquire);
            let pushed = self.tail.step.load(Ordering::Acquire);
            // Both counts at one instant: the first had not changed when the second was read.
            if self.front.step.load(Ordering::Acquire) == popped {
                return count(pushed).saturating_sub(count(popped));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let popped = count(self.front.step.load(Ordering::Acquire));
        popped == count(self.tail.step.load(Ordering::Acquire))
    }

    /// How many segments lie between the two ends, about.
    pub(super) fn stretch(&self) -> u64 {
        let front = &self.front;
        let at = front.at[which(front.step.load(Ordering::Acquire))].load(Ordering::Relaxed);
        self.tail.mapped.load(Ordering::Relaxed).saturating_sub(place(at))
    }

    /// Takes the tail's lock, if that needs no wait.
    pub(super) fn try_push(&self) -> Result<Option<Pusher<'_>>> {
        self.tail.lock.try_acquire().map(|acquired| Pusher::new(self, acquired)).transpose()
    }

    /// Takes the tail's lock, unless the deadline comes first, or a signal.
    pub(super) fn push(&self, deadline: Instant) -> Result<Option<Pusher<'_>>> {
        let acquired = self.tail.lock.acquire(Some(deadline)).ok();
        acquired.map(|acquired| Pusher::new(self, acquired)).transpose()
    }

    /// Takes the front's lock, if that needs no wait.
    pub(super) fn try_pop(&self) -> Option<Popper<'_>> {
        let acquired = self.front.lock.try_acquire()?;
        Some(Popper { stream: self, abandoned: acquired != Acquired::Free })
    }

    /// Takes the front's lock, unless the deadline comes first, or a signal.
    pub(super) fn pop(&self, deadline: Instant) -> Option<Popper<'_>> {
        let acquired = self.front.lock.acquire(Some(deadline)).ok()?;
        Some(Popper { stream: self, abandoned: acquired != Acquired::Free })
    }

    /// The segment at a place of the row.
    fn segment(&self, place: u64) -> Result<u32> {
        let places = self.places();
        let segment = places[(place % places.len() as u64) as usize].load(Ordering::Relaxed);
        if segment < self.segments() { Ok(segment) } else { Err(nonsense()) }
    }

    /// Calls `each` with the parts of a range of the row: segment, where in it, bytes of the range.
    fn parts(
        &self,
        at: u64,
        len: usize,
        mut each: impl FnMut(u32, usize, std::ops::Range<usize>),
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let now = at + done as u64;
            let inside = (now % SEGMENT as u64) as usize;
            let end = len.min(done + SEGMENT - inside);
            each(self.segment(place(now))?, inside, done..end);
            done = end;
        }
        Ok(())
    }

    /// Can somebody have written a body of that length? What is read of it takes as much memory.
    fn can_have(&self, len: usize) -> bool {
        len <= SEGMENT || self.backed().is_ok_and(|backed| len as u64 <= backed)
    }

    /// The byte that poppers have come to, as they publish it.
    fn popped_until(&self) -> Option<u64> {
        (0..1000).find_map(|_| {
            let step = self.front.step.load(Ordering::Acquire);
            let at = self.front.at[which(step)].load(Ordering::Relaxed);
            // Pairs with the Release of `at` in `pop`: had it been written since, so had the step.
            fence(Ordering::Acquire);
            (self.front.step.load(Ordering::Relaxed) == step).then_some(at)
        })
    }

    /// Finds the free segments again after a death that may have left nonsense. Under the tail's
    /// lock.
    #[cold]
    fn recover(&self) -> Result<()> {
        let tail = &self.tail;
        let fresh = tail.fresh.load(Ordering::Relaxed).min(self.segments());
        let mapped = tail.mapped.load(Ordering::Relaxed);
        let first = loop {
            // Poppers are never held up by us, so that this ends.
            if let Some(at) = self.popped_until() {
                break place(at).min(mapped);
            }
        };
        if mapped - first > u64::from(self.segments()) {
            return Err(nonsense());
        }
        let mut used = vec![false; fresh as usize];
        for place in first..mapped {
            *used.get_mut(self.segment(place)? as usize).ok_or_else(nonsense)? = true;
        }
        let mut free = 0;
        for (segment, _) in used.iter().enumerate().filter(|(_, used)| !**used) {
            self.spare()[free].store(segment as u32, Ordering::Relaxed);
            free += 1;
        }
        tail.settled.store(first, Ordering::Relaxed);
        tail.free.store(free as u32, Ordering::Relaxed);
        // Perhaps these have pages: taking them again does no harm.
        tail.cold.store(free as u32, Ordering::Relaxed);
        Ok(())
    }
}

/// What is to hold whenever nobody is at the tail.
#[cfg(test)]
impl Stream {
    /// Each segment that was ever given out stands at one place of the row or is free, and is so once.
    pub(super) fn assert_whole(&self, case: &str) {
        let pusher = self.try_push().unwrap().expect("nobody has the lock");
        pusher.settle().unwrap();
        let tail = &self.tail;
        let free = tail.free.load(Ordering::Relaxed);
        let free = self.spare()[..free as usize].iter().map(|spare| spare.load(Ordering::Relaxed));
        let row = tail.settled.load(Ordering::Relaxed)..tail.mapped.load(Ordering::Relaxed);
        let mut known: Vec<u32> =
            row.map(|place| self.segment(place).unwrap()).chain(free).collect();
        known.sort_unstable();
        assert!(
            known.iter().copied().eq(0..tail.fresh.load(Ordering::Relaxed)),
            "{case}: {known:?}"
        );
    }
}

/// Who holds the tail's lock.
#[must_use]
pub(super) struct Pusher<'a>(&'a Stream);

impl Drop for Pusher<'_> {
    fn drop(&mut self) {
        self.0.tail.lock.release();
    }
}

impl<'a> Pusher<'a> {
    fn new(stream: &'a Stream, acquired: Acquired) -> Result<Self> {
        let pusher = Self(stream);
        if acquired != Acquired::Free {
            stream.recover()?;
        }
        Ok(pusher)
    }

    /// How many more frames the bound allows.
    pub(super) fn room(&self) -> u64 {
        self.0.bound.load(Ordering::Relaxed).saturating_sub(self.0.len())
    }

    /// Begins frames that are published together.
    pub(super) fn batch(&self) -> Batch<'_> {
        let tail = &self.0.tail;
        let step = tail.step.load(Ordering::Relaxed);
        let at = tail.at[which(step)].load(Ordering::Relaxed);
        Batch { stream: self.0, step, frames: 0, at }
    }

    /// Collects what poppers have left behind.
    pub(super) fn settle(&self) -> Result<()> {
        let (stream, tail) = (self.0, &self.0.tail);
        let Some(at) = stream.popped_until() else { return Ok(()) };
        let mapped = tail.mapped.load(Ordering::Relaxed);
        let settled = tail.settled.load(Ordering::Relaxed);
        for place in settled..place(at).min(mapped) {
            let free = tail.free.load(Ordering::Relaxed);
            let spare = stream.spare().get(free as usize).ok_or_else(nonsense)?;
            spare.store(stream.segment(place)?, Ordering::Relaxed);
            fault("stream: a segment is noted as free, and not counted");
            tail.free.store(free + 1, Ordering::Relaxed);
            fault("stream: a segment is free, and not settled");
            tail.settled.store(place + 1, Ordering::Relaxed);
        }
        let free = tail.free.load(Ordering::Relaxed);
        let cold = tail.cold.load(Ordering::Relaxed);
        let kept = tail.kept.load(Ordering::Relaxed).clamp(KEEP, MOST_KEPT);
        if free.saturating_sub(cold) > kept {
            self.cool(cold, free - kept / 2)?;
        }
        Ok(())
    }

    /// A frame of so many segments is written: more like it may follow.
    fn expect_more(&self, segments: u64) {
        let kept = &self.0.tail.kept;
        let these = u32::try_from(2 * segments).unwrap_or(MOST_KEPT).min(MOST_KEPT);
        let others = kept.load(Ordering::Relaxed).saturating_sub(1);
        kept.store(these.max(others), Ordering::Relaxed);
    }

    /// Gives back what is kept for large frames.
    pub(super) fn rest(&self) -> Result<()> {
        self.0.tail.kept.store(KEEP, Ordering::Relaxed);
        self.settle()
    }

    /// Gives back the pages of the free segments that have been free for longest.
    #[cold]
    fn cool(&self, from: u32, until: u32) -> Result<()> {
        for index in from..until {
            let spare = self.0.spare().get(index as usize).ok_or_else(nonsense)?;
            let segment = spare.load(Ordering::Relaxed);
            if segment >= self.0.segments() {
                return Err(nonsense());
            }
            // First: a segment without pages that is thought to have some would be a SIGBUS.
            self.0.tail.cold.store(index + 1, Ordering::Relaxed);
            self.0.discard(segment);
        }
        Ok(())
    }

    /// A segment with pages.
    fn take(&self) -> Result<u32> {
        let (stream, tail) = (self.0, &self.0.tail);
        let free = tail.free.load(Ordering::Relaxed);
        let Some(last) = free.checked_sub(1) else {
            let fresh = tail.fresh.load(Ordering::Relaxed);
            if fresh >= stream.segments() {
                return Err(out_of_memory(io::ErrorKind::OutOfMemory));
            }
            stream.back(fresh, 1).map_err(out_of_memory)?;
            tail.fresh.store(fresh + 1, Ordering::Relaxed);
            return Ok(fresh);
        };
        let spare = stream.spare().get(last as usize).ok_or_else(nonsense)?;
        let segment = spare.load(Ordering::Relaxed);
        if segment >= stream.segments() {
            return Err(nonsense());
        }
        if tail.cold.load(Ordering::Relaxed) >= free {
            stream.back(segment, 1).map_err(out_of_memory)?;
            tail.cold.store(last, Ordering::Relaxed);
        }
        tail.free.store(last, Ordering::Relaxed);
        Ok(segment)
    }

    /// Gives all places of the row before `end` a segment.
    fn map(&self, end: u64) -> Result<()> {
        let tail = &self.0.tail;
        let places = self.0.places();
        while tail.mapped.load(Ordering::Relaxed) < end {
            self.settle()?;
            let mapped = tail.mapped.load(Ordering::Relaxed);
            let in_use = mapped.checked_sub(tail.settled.load(Ordering::Relaxed));
            if in_use.ok_or_else(nonsense)? >= places.len() as u64 {
                return Err(out_of_memory(io::ErrorKind::OutOfMemory));
            }
            let segment = self.take()?;
            fault("stream: a segment is taken, and not in the table");
            places[(mapped % places.len() as u64) as usize].store(segment, Ordering::Relaxed);
            // Release: pairs with the Acquire in `pop`.
            tail.mapped.store(mapped + 1, Ordering::Release);
        }
        Ok(())
    }
}

/// Frames that were written and are not published yet.
#[must_use]
pub(super) struct Batch<'a> {
    stream: &'a Stream,
    step: u64,
    frames: u64,
    at: u64,
}

impl Batch<'_> {
    /// Writes one more frame.
    ///
    /// # Errors
    ///
    /// If there is no memory for it: then it is not there, and those before it still are.
    pub(super) fn write(&mut self, pusher: &Pusher<'_>, kind: u32, body: &[u8]) -> Result<()> {
        let room = room(body.len());
        let end = room.and_then(|room| self.at.checked_add(room));
        let end = end.ok_or_else(|| out_of_memory(io::ErrorKind::OutOfMemory))?;
        // Frames are where there are segments: a place far behind these would take all memory.
        if place(self.at) > self.stream.tail.mapped.load(Ordering::Relaxed) {
            return Err(nonsense());
        }
        let after = place(end - 1) + 1;
        pusher.expect_more(after - place(self.at));
        pusher.map(after)?;
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&(body.len() as u64).to_ne_bytes());
        head[8..12].copy_from_slice(&kind.to_ne_bytes());
        let stream = self.stream;
        stream
            .parts(self.at, HEAD, |segment, at, range| stream.copy_in(segment, at, &head[range]))?;
        let start = self.at + HEAD as u64;
        stream.parts(start, body.len(), |segment, at, range| {
            stream.copy_in(segment, at, &body[range]);
        })?;
        (self.frames, self.at) = (self.frames + 1, end);
        Ok(())
    }

    /// Publishes the frames.
    pub(super) fn publish(self) {
        let tail = &self.stream.tail;
        let step = next_step(self.step, self.frames);
        fault("stream: frames are written, and not published");
        tail.at[which(step)].store(self.at, Ordering::Relaxed);
        fault("stream: frames are half published");
        // Release: pairs with the Acquire in `frames`, which then sees them.
        tail.step.store(step, Ordering::Release);
        fault("stream: frames are published, with the lock held");
    }
}

/// Who holds the front's lock.
#[must_use]
pub(super) struct Popper<'a> {
    stream: &'a Stream,
    /// Was it a dead one's?
    pub(super) abandoned: bool,
}

impl Drop for Popper<'_> {
    fn drop(&mut self) {
        self.stream.front.lock.release();
    }
}

impl<'a> Popper<'a> {
    /// The frames from the first one on.
    pub(super) fn frames(&self) -> Frames<'a> {
        let front = &self.stream.front;
        let step = front.step.load(Ordering::Relaxed);
        let at = front.at[which(step)].load(Ordering::Relaxed);
        // Acquire: pairs with the Release in `publish`.
        let end = count(self.stream.tail.step.load(Ordering::Acquire));
        Frames { stream: self.stream, step, end, read: 0, at, next: at }
    }
}

/// Frames that were read and are not popped yet.
#[derive(Clone)]
pub(super) struct Frames<'a> {
    stream: &'a Stream,
    step: u64,
    /// The count up to which frames are there.
    end: u64,
    /// How many were read.
    read: u64,
    /// Of the frame that was looked at last, and of the one after it.
    at: u64,
    next: u64,
}

impl Frames<'_> {
    /// The next frame, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Frame>> {
        if count(self.step) + self.read >= self.end {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        let stream = self.stream;
        self.at = self.next;
        // So a head lies in one segment.
        if !self.at.is_multiple_of(HEAD as u64) {
            return Err(nonsense());
        }
        stream.parts(self.at, HEAD, |segment, at, range| {
            stream.copy_out(segment, at, &mut head[range]);
        })?;
        let len = u64::from_ne_bytes(head[..8].try_into().expect("eight bytes"));
        let kind = u32::from_ne_bytes(head[8..12].try_into().expect("four bytes"));
        let len = usize::try_from(len).map_err(|_| nonsense())?;
        let next = room(len).and_then(|room| self.at.checked_add(room)).ok_or_else(nonsense)?;
        if place(next - 1) >= stream.tail.mapped.load(Ordering::Acquire) || !stream.can_have(len) {
            return Err(nonsense());
        }
        (self.read, self.next) = (self.read + 1, next);
        Ok(Some(Frame { len, kind }))
    }

    /// Copies the body of the frame that `next` has returned.
    pub(super) fn read(&self, to: &mut [u8]) -> Result<()> {
        let (stream, start) = (self.stream, self.at + HEAD as u64);
        stream.parts(start, to.len(), |segment, at, range| {
            stream.copy_out(segment, at, &mut to[range]);
        })
    }

    /// Pops all frames that `next` has returned. Tells whether segments should be collected.
    pub(super) fn pop(self) -> bool {
        let front = &self.stream.front;
        let step = next_step(self.step, self.read);
        // Release: after the step before; see `popped_until`.
        fault("stream: frames are read, and not popped");
        front.at[which(step)].store(self.next, Ordering::Release);
        fault("stream: frames are half popped");
        // Release: pairs with the Acquire of who uses the segments again.
        front.step.store(step, Ordering::Release);
        fault("stream: frames are popped, with the lock held");
        let settled = self.stream.tail.settled.load(Ordering::Relaxed);
        place(self.next).saturating_sub(settled) > u64::from(KEEP)
    }
}
