//! Queues of bytes between processes: a [`Stream`], and how one waits for it.
//!
//! Whoever has nothing to do spins a moment, if that has been of use lately and nobody else does,
//! and then sleeps on a word of the stream (futex(2)). Who makes a step looks for sleepers after it,
//! and wakes as many as there is something for.
//!
//! | dies | what the others find |
//! | --- | --- |
//! | one who sleeps | a sleeper that no wake-up finds; after some in vain, sleepers are counted anew |
//! | one who was woken, or was going to wake | a wake-up is missing: nobody sleeps longer than [`SLICE`] |
//! | the holder of a lock, anywhere | the lock, after a slice at most; see [`Stream`] |
//! | one who has popped and not called `done` | a task that is never done: [`Queue::wait_done`] goes on |
//!
//! Where others poll for frames together with other descriptors, there is an eventfd. It is left
//! alone until somebody asks for it; from then on it is readable exactly while there is a frame: it
//! is rung and cleared under the tail's lock only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::pace::cores;
use super::stream::{Frame, Frames, Popper, Pusher, Sleepers, Stream, Words, count};
use crate::error::{Error, Result};
use crate::shm::SEGMENT;
use crate::sync::fault;
use crate::sys::futex::{sleep_lower, wake_counted};
use crate::sys::socket::borrow;
use crate::sys::{Event, monotonic};

/// For how long one sleeps without a look of one's own.
const SLICE: Duration = Duration::from_millis(40);
/// For how long one spins before.
const SPIN: Duration = Duration::from_micros(30);
/// How many segments lie between the ends before who puts much looks whether others keep up: 4 MiB.
const PACE: u64 = 64;
/// For how long it then waits for them, at least.
const PATIENCE: Duration = Duration::from_millis(2);
/// Nobody has put anything for so long: what was kept for more of it goes back to the system.
const IDLE: Duration = Duration::from_secs(1);
/// How much luck with spinning is remembered, and how many spins go without any.
const LUCK: u32 = 8;

/// A queue of bytes, in memory that processes share.
#[derive(Debug)]
pub struct Queue {
    stream: Stream,
    event: Event,
    /// Whether spinning has been of use lately: to this process, as others have other cores.
    luck: AtomicU32,
    /// The step of the front at which [`pace`](Queue::pace) has waited in vain.
    paced: AtomicU64,
    /// The step of the tail that those who wait for frames have found at last, and when.
    found: AtomicU64,
    since: AtomicU64,
}

/// What became of frames that were to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// So many of them are in the queue, from the first on.
    Some(usize),
    /// There is no room.
    Full,
    /// Somebody else is putting something.
    Busy,
}

/// Copies a frame's body to where it is told.
pub type Body<'a> = &'a (dyn Fn(&mut [u8]) -> Result<()> + Sync);

/// The right to take frames: nobody else does meanwhile.
#[must_use]
pub struct Front<'a> {
    queue: &'a Queue,
    popper: Popper<'a>,
}

impl Queue {
    /// An empty queue, with room for `bound` frames.
    ///
    /// # Errors
    ///
    /// If there is no descriptor, or no address space.
    pub fn new(bound: Option<u64>) -> Result<Self> {
        let failed = |source| Error::os("make a queue", source);
        let stream = Stream::new(bound.unwrap_or(u64::MAX)).map_err(failed)?;
        Ok(Self::with(stream, Event::new().map_err(failed)?))
    }

    fn with(stream: Stream, event: Event) -> Self {
        let (luck, paced) = (LUCK.into(), u64::MAX.into());
        Self {
            stream,
            event,
            luck,
            paced,
            found: AtomicU64::default(),
            since: AtomicU64::default(),
        }
    }

    /// The queue of another process, by copies of its [descriptors](Self::descriptors).
    ///
    /// # Errors
    ///
    /// If these are not a queue's.
    pub fn open(memory: OwnedFd, event: OwnedFd) -> Result<Self> {
        let stream = Stream::open(memory).map_err(|source| Error::os("open a queue", source))?;
        Ok(Self::with(stream, Event::from_fd(event)))
    }

    /// As [`open`](Self::open), by descriptors that stay their owner's.
    ///
    /// # Errors
    ///
    /// If these are not a queue's.
    pub fn open_copies(memory: RawFd, event: RawFd) -> Result<Self> {
        let copy = |fd| borrow(fd)?.try_clone_to_owned();
        let failed = |source| Error::os("open a queue", source);
        Self::open(copy(memory).map_err(failed)?, copy(event).map_err(failed)?)
    }

    /// What another process needs to open the queue: its memory, and its event.
    #[must_use]
    pub fn descriptors(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.stream.as_fd(), self.event.as_fd())
    }

    /// How many frames there are, at this instant.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.stream.len()
    }

    #[cfg(test)]
    pub(super) fn assert_whole(&self, case: &str) {
        self.stream.assert_whole(case);
    }

    /// Is there no frame, at this instant?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stream.is_empty()
    }

    /// The most frames that there can be.
    #[must_use]
    pub fn bound(&self) -> Option<u64> {
        let bound = self.stream.bound.load(Ordering::Relaxed);
        (bound != u64::MAX).then_some(bound)
    }

    /// Are there as many frames as there can be, at this instant?
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= self.stream.bound.load(Ordering::Relaxed)
    }

    /// Puts as many of the frames as there is room for, together, without a wait.
    ///
    /// # Errors
    ///
    /// If there is no memory for them: nothing was put.
    pub fn try_put<B: AsRef<[u8]>>(&self, frames: &[(u32, B)]) -> Result<Pushed> {
        match self.stream.try_push()? {
            Some(pusher) => self.push(pusher, frames),
            None => Ok(Pushed::Busy),
        }
    }

    /// Puts as many of the frames as there is room for, waiting for others who put something.
    ///
    /// # Errors
    ///
    /// If there is no memory for them: nothing was put.
    pub fn put<B: AsRef<[u8]>>(&self, frames: &[(u32, B)], deadline: Instant) -> Result<Pushed> {
        match self.stream.push(deadline)? {
            Some(pusher) => self.push(pusher, frames),
            None => Ok(Pushed::Busy),
        }
    }

    fn push<B: AsRef<[u8]>>(&self, pusher: Pusher<'_>, frames: &[(u32, B)]) -> Result<Pushed> {
        let room = usize::try_from(pusher.room()).unwrap_or(usize::MAX).min(frames.len());
        if room == 0 && !frames.is_empty() {
            return Ok(Pushed::Full);
        }
        let mut batch = pusher.batch();
        for (kind, body) in &frames[..room] {
            batch.write(&pusher, *kind, body.as_ref())?;
        }
        batch.publish();
        self.show(&pusher);
        drop(pusher);
        fault("queue: a frame is put, before the wake-up");
        let tail = &self.stream.tail.step;
        wake(tail, &self.stream.for_frames, u32::try_from(room).unwrap_or(u32::MAX));
        Ok(Pushed::Some(room))
    }

    /// Gives those who take a moment to keep up: to be called before something large is put, of `len`
    /// bytes. It takes no longer than the new memory would that is needed otherwise.
    ///
    /// Memory that was just read from is in the caches and has its pages; new memory costs more than
    /// such a wait. Nobody is waited for who takes nothing.
    pub fn pace(&self, len: usize) {
        let front = &self.stream.front.step;
        let step = front.load(Ordering::Relaxed);
        // One such item may be read while the next one is written.
        let most = PACE.max((len / SEGMENT) as u64 + 2);
        if self.stream.stretch() < most || step == self.paced.load(Ordering::Relaxed) {
            return;
        }
        // A gigabyte of new memory a second.
        let soon = Instant::now() + PATIENCE.max(Duration::from_nanos(len as u64));
        let kept = self.wait(front, &self.stream.for_room, soon, || self.stream.stretch() < most);
        if !kept && front.load(Ordering::Relaxed) == step {
            self.paced.store(step, Ordering::Relaxed);
        }
    }

    /// Waits until there is room, or the deadline. Somebody else may have it by then.
    #[must_use]
    pub fn wait_room(&self, deadline: Instant) -> bool {
        let front = &self.stream.front.step;
        self.wait(front, &self.stream.for_room, deadline, || !self.is_full())
    }

    /// Waits until there is a frame, or the deadline. Somebody else may have it by then.
    #[must_use]
    pub fn wait_frame(&self, deadline: Instant) -> bool {
        self.wait_frame_or(deadline, || false)
    }

    pub(super) fn words(&self) -> &Words {
        &self.stream
    }

    /// As [`wait_room`](Self::wait_room), or until `other` is true.
    pub(super) fn wait_room_or(&self, deadline: Instant, other: impl Fn() -> bool) -> bool {
        let front = &self.stream.front.step;
        self.wait(front, &self.stream.for_room, deadline, || !self.is_full() || other())
    }

    /// As [`wait_frame`](Self::wait_frame), or until `other` is true.
    pub(super) fn wait_frame_or(&self, deadline: Instant, other: impl Fn() -> bool) -> bool {
        let tail = &self.stream.tail.step;
        let there = || !self.is_empty() || other();
        let found = self.wait(tail, &self.stream.for_frames, deadline, there);
        if !found {
            self.rest();
        }
        found
    }

    /// Somebody has waited for a frame in vain: if nobody has put one for a while, memory that was kept
    /// for more goes back to the system.
    fn rest(&self) {
        let (now, step) = (monotonic(), self.stream.tail.step.load(Ordering::Relaxed));
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        if self.found.swap(step, Ordering::Relaxed) != step {
            self.since.store(now, Ordering::Relaxed);
        } else if now.saturating_sub(self.since.load(Ordering::Relaxed)) >= IDLE.as_millis() as u64
        {
            self.since.store(u64::MAX, Ordering::Relaxed);
            // Whoever is putting something has a use for it; and what is wrong is told to others.
            if let Ok(Some(pusher)) = self.stream.try_push() {
                let _ = pusher.rest();
            }
        }
    }

    /// Wakes all who wait for frames, as none will come.
    pub(super) fn wake_for_frames(&self) {
        wake(&self.stream.tail.step, &self.stream.for_frames, u32::MAX);
    }

    /// Wakes all who wait for room, as nobody will make some.
    pub(super) fn wake_for_room(&self) {
        wake(&self.stream.front.step, &self.stream.for_room, u32::MAX);
    }

    /// Waits until all frames that were put are [done](Self::done), or the deadline.
    #[must_use]
    pub fn wait_done(&self, deadline: Instant) -> bool {
        let done = &self.stream.done;
        self.wait(done, &self.stream.for_done, deadline, || self.unfinished() == 0)
    }

    /// How many frames were put and are not done.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        let done = self.stream.done.load(Ordering::Acquire);
        count(self.stream.tail.step.load(Ordering::Acquire)).saturating_sub(done)
    }

    /// One more frame was dealt with; false if all were before.
    #[must_use]
    pub fn done(&self) -> bool {
        let (done, order) = (&self.stream.done, Ordering::AcqRel);
        let put = || count(self.stream.tail.step.load(Ordering::Acquire));
        let more = |done: u64| (done < put()).then(|| done + 1);
        let was = done.fetch_update(order, Ordering::Acquire, more);
        if was.is_ok_and(|was| was + 1 >= put()) {
            wake(done, &self.stream.for_done, u32::MAX);
        }
        was.is_ok()
    }

    /// The right to take frames, if nobody else has it.
    #[must_use]
    pub fn try_front(&self) -> Option<Front<'_>> {
        let popper = self.stream.try_pop()?;
        Some(Front { queue: self, popper })
    }

    /// The right to take frames, or nothing when the deadline comes first, or a signal.
    #[must_use]
    pub fn front(&self, deadline: Instant) -> Option<Front<'_>> {
        let popper = self.stream.pop(deadline)?;
        Some(Front { queue: self, popper })
    }

    /// A descriptor that is readable exactly while there is a frame, to be polled.
    ///
    /// From now on each put costs a system call.
    ///
    /// # Errors
    ///
    /// If the queue's memory holds nonsense.
    pub fn watch(&self) -> Result<BorrowedFd<'_>> {
        if self.stream.watched.swap(1, Ordering::SeqCst) == 0 {
            self.look()?;
        }
        Ok(self.event.as_fd())
    }

    /// Shows what there is to those who poll.
    fn look(&self) -> Result<()> {
        let deadline = Instant::now() + 5 * SLICE;
        if let Some(pusher) = self.stream.push(deadline)? {
            self.show(&pusher);
        }
        Ok(())
    }

    fn show(&self, _pusher: &Pusher<'_>) {
        if self.stream.watched.load(Ordering::SeqCst) == 0 {
            return;
        }
        if self.is_empty() { self.event.clear() } else { self.event.ring() }
    }

    fn taken(&self, frames: u64, collect: bool) -> Result<()> {
        fault("queue: a frame is taken, before the wake-up");
        let most = u32::try_from(frames).unwrap_or(u32::MAX);
        wake(&self.stream.front.step, &self.stream.for_room, most);
        if self.stream.watched.load(Ordering::SeqCst) != 0 && self.is_empty() {
            self.look()?;
        }
        if collect {
            // Who is putting something collects, too.
            if let Some(pusher) = self.stream.try_push()? {
                pusher.settle()?;
            }
        }
        Ok(())
    }

    /// Waits until `there`, for which `word` changes.
    fn wait(
        &self,
        word: &AtomicU64,
        sleepers: &Sleepers,
        deadline: Instant,
        there: impl Fn() -> bool,
    ) -> bool {
        if there() || self.spin(sleepers, deadline, &there) {
            return true;
        }
        loop {
            sleepers.count.fetch_add(1, Ordering::SeqCst);
            // Pairs with the fence in `wake`: we see the step, or it sees us.
            fence(Ordering::SeqCst);
            let seen = word.load(Ordering::Acquire);
            let ready = there();
            let left = deadline.saturating_duration_since(Instant::now());
            let woken = !ready && !left.is_zero() && sleep_lower(word, seen, left.min(SLICE));
            if !woken {
                less(&sleepers.count, 1);
            }
            if ready || there() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    /// Spins a little, if a core can be spared.
    fn spin(&self, sleepers: &Sleepers, deadline: Instant, there: impl Fn() -> bool) -> bool {
        let luck = self.luck.load(Ordering::Relaxed);
        if luck == 0 || cores() < 2 {
            // Times change: one try in a while.
            self.luck.store(u32::from(monotonic().subsec_nanos() & 31 == 0), Ordering::Relaxed);
            return false;
        }
        let now = monotonic();
        let end = now + SPIN.min(deadline.saturating_duration_since(Instant::now()));
        let lease = &sleepers.lease;
        if !lease.take(now, end) {
            return false;
        }
        loop {
            if there() {
                lease.release(end);
                self.luck.store((luck + 2).min(LUCK), Ordering::Relaxed);
                return true;
            }
            if monotonic() >= end {
                self.luck.store(luck - 1, Ordering::Relaxed);
                return false;
            }
            (0..20).for_each(|_| std::hint::spin_loop());
        }
    }
}

impl Front<'_> {
    /// Takes up to `most` frames, each when `read` has returned for it: it is given the frame and
    /// what copies its body. Frames for which it fails, and those after, stay in the queue.
    ///
    /// # Errors
    ///
    /// What `read` returns if that was for the first frame; or if the queue's memory holds nonsense.
    pub fn take<E: From<Error>>(
        self,
        most: usize,
        mut read: impl FnMut(Frame, Body<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<usize, E> {
        let Self { queue, popper } = self;
        let mut taken = 0;
        let mut frames: Frames<'_> = popper.frames();
        while taken < most {
            let mut next = frames.clone();
            let Some(frame) = next.next()? else { break };
            match read(frame, &|to| next.read(to)) {
                Ok(()) => (frames, taken) = (next, taken + 1),
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            }
        }
        let collect = taken > 0 && frames.pop();
        let look = popper.abandoned;
        drop(popper);
        if look {
            queue.look()?;
        }
        if taken > 0 {
            queue.taken(taken as u64, collect)?;
        }
        Ok(taken)
    }
}

impl std::fmt::Debug for Front<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").finish_non_exhaustive()
    }
}

fn less(count: &AtomicU32, by: u32) {
    let less = |count: u32| Some(count.saturating_sub(by));
    let _ = count.fetch_update(Ordering::SeqCst, Ordering::Relaxed, less);
}

/// Wakes up to `most` of those who sleep on a word that has just changed.
fn wake(word: &AtomicU64, sleepers: &Sleepers, most: u32) {
    /// So many wake-ups may find nobody before those who are counted are taken for dead.
    const VAIN: u32 = 16;
    // Pairs with the fence in `wait`.
    fence(Ordering::SeqCst);
    if sleepers.count.load(Ordering::Relaxed) == 0 {
        return;
    }
    let woken = wake_counted(word, most);
    if woken > 0 {
        // Once here, not by each of them: who puts more meanwhile need not wake them again.
        less(&sleepers.count, woken);
        sleepers.vain.store(0, Ordering::Relaxed);
    } else if sleepers.vain.fetch_add(1, Ordering::Relaxed) >= VAIN {
        sleepers.count.store(0, Ordering::SeqCst);
        sleepers.vain.store(0, Ordering::Relaxed);
    }
}
