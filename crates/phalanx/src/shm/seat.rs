//! The memory that a pool shares with its workers: a control page, then a seat for each worker.
//!
//! ```text
//! | control page | seat 0: page of words | inbox | outbox | seat 1: ... | spans |
//! ```
//!
//! A span is a range of the same memory for large pieces of messages (`slab.rs`): span 0 holds
//! what the owner sends, and each worker has one for what it sends, which no other worker gets after
//! it. They are ranges of numbers and have pages only where something was written.
//!
//! A worker maps the control page and its own seat, so it cannot spoil another's. All zeros is a
//! seat that nobody has sat in: its owner clears it before each new worker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::ring::{Counters, Home};
use super::slab::Span;
use super::{Bell, Claim, Lease};
use crate::error::{Error, Result};
use crate::sys::{Mapping, Memory, limits};

/// Bytes of the inbox and of the outbox of a seat.
const RING: usize = 256 << 10;
/// Tasks that can lie in an inbox at a time.
const CLAIMS: usize = 1024;
/// A multiple of every page size in use (64 KiB on some aarch64 kernels).
const PAGE: usize = 64 << 10;
/// Workers that may spin at a time.
const LEASES: usize = 64;
const SEAT: usize = PAGE + 2 * RING;
/// Messages with large pieces of a worker that its owner has not let go of.
const LOANS: usize = 1024;
/// Bytes of a span, and of the whole.
const SPAN: usize = 1 << 40;
const WHOLE: usize = 1 << 60;
/// Spans are numbered below this; the seats have the place of the first.
const SPANS: u32 = (WHOLE / SPAN - 1) as u32;

const _: () = assert!(size_of::<Words>() <= PAGE && size_of::<ControlWords>() <= PAGE);

/// What the owner asks of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Serve,
    /// Leave when the inbox is empty.
    Leave,
    /// Leave before the next task.
    Retire,
}

/// The words of the control page.
#[derive(Debug)]
#[repr(C)]
struct ControlWords {
    /// Written by the owner before there is a worker.
    seats: AtomicU32,
    doorbell: CachePadded<Bell>,
    leases: [CachePadded<Lease>; LEASES],
}

/// The words of a seat.
#[derive(Debug)]
#[repr(C)]
struct Words {
    /// Written by the owner: an [`Order`].
    order: CachePadded<AtomicU32>,
    /// Written by both: 1 while the worker waits for room in its outbox.
    blocked: CachePadded<AtomicU32>,
    /// Written by both: 1 while the owner waits for room in the inbox.
    waiting: CachePadded<AtomicU32>,
    /// The worker's bell.
    bell: CachePadded<Bell>,
    inbox: Counters,
    outbox: Counters,
    claims: [Claim; CLAIMS],
    /// What the worker says of its work.
    log: CachePadded<Log>,
    /// Written by the owner: the task that is to end, and why.
    asked: CachePadded<AtomicU64>,
    /// Written by the owner: the worker's span, or 0 for none.
    span: AtomicU32,
    /// For each loan, the span that it is from until the owner has let go of it: written by the
    /// worker; the owner turns it into 0.
    loans: [AtomicU32; LOANS],
}

/// What a worker says of its work. Nobody else writes it.
#[derive(Debug, Default)]
#[repr(C)]
struct Log {
    /// The task that is being run, and a bit; 0 for none.
    running: AtomicU64,
    /// When it began, in nanoseconds of the monotonic clock.
    since: AtomicU64,
    /// The last task that was told to end, and a bit.
    told: AtomicU64,
    returned: AtomicU64,
    failed: AtomicU64,
    /// Nanoseconds that tasks took which have ended.
    busy: AtomicU64,
}

/// What a worker has done, by its own account.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    pub(crate) returned: u64,
    pub(crate) failed: u64,
    pub(crate) busy: Duration,
    /// The task that it runs, and since when on the monotonic clock.
    pub(crate) running: Option<(u64, Duration)>,
}

/// A task in a word that is 0 for none.
fn named(task: u64) -> u64 {
    task << 2 | 1
}

/// How many workers a pool may have. Each needs a process, three descriptors and a mapping, so that
/// other limits are met before.
const MOST: usize = 1 << 16;
const _: () = assert!(MOST * SEAT + PAGE <= SPAN);

/// The memory of a pool.
#[derive(Debug)]
pub(crate) struct Region {
    memory: Arc<Memory>,
}

impl Region {
    /// Room for `seats` workers. Memory is taken as it is used.
    pub(crate) fn new(seats: usize) -> Result<Self> {
        if seats > MOST {
            return Err(Error::invalid(format!(
                "{seats} workers are too many: a pool has at most {MOST}"
            )));
        }
        let len = seats * SEAT + PAGE;
        // Where files must be small (RLIMIT_FSIZE) there are no spans.
        let len = if limits::largest_file() >= WHOLE as u64 { WHOLE } else { len };
        let memory = Memory::new("phalanx-pool", len);
        let memory = memory.map_err(|e| Error::os("make memory for a pool", e))?;
        let region = Self { memory: Arc::new(memory) };
        region.control()?.words().seats.store(seats as u32, Ordering::Relaxed);
        Ok(region)
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let memory = Memory::from_fd(fd).map_err(|e| Error::os("take over a pool's memory", e))?;
        if memory.len() < PAGE {
            return Err(Error::corrupt("a pool's memory"));
        }
        Ok(Self { memory: Arc::new(memory) })
    }

    /// A span, if this memory has it: 0 is the owner's.
    pub(crate) fn span(&self, number: u32) -> Option<Span> {
        let there = number < SPANS && self.memory.len() == WHOLE;
        there.then(|| Span::new(self.memory.clone(), (number as usize + 1) * SPAN, SPAN))
    }

    /// The number of the span that follows another: after some 2^20 they are used again.
    pub(crate) fn span_after(number: u32) -> u32 {
        (number + 1) % SPANS.max(1)
    }

    /// The pool is gone: gives back what only its owner and its workers needed.
    pub(crate) fn discard(&self) {
        let end = if self.memory.len() == WHOLE { 2 * SPAN } else { self.memory.len() };
        self.memory.discard(0, end);
    }

    /// How many bytes have pages, those of the seats not counted.
    #[cfg(test)]
    pub(crate) fn used_by_spans(&self) -> Result<u64> {
        let all = self.memory.backed().map_err(|e| Error::os("measure a pool's memory", e))?;
        let seats = self.control()?.words().seats.load(Ordering::Relaxed) as usize;
        Ok(all.saturating_sub((PAGE + seats * SEAT) as u64))
    }

    fn map(&self, at: usize, len: usize) -> Result<Mapping> {
        self.memory.map(at, len).map_err(|e| Error::os("map a pool's memory", e))
    }

    pub(crate) fn control(&self) -> Result<Control> {
        Ok(Control { mapping: self.map(0, PAGE)? })
    }

    pub(crate) fn seat(&self, index: usize) -> Result<Arc<Seat>> {
        let seats = self.control()?.words().seats.load(Ordering::Relaxed) as usize;
        if index >= seats {
            return Err(Error::invalid(format!("seat {index} of {seats}")));
        }
        Ok(Arc::new(Seat { mapping: self.map(PAGE + index * SEAT, SEAT)? }))
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// The control page, which all of a pool's workers map.
#[derive(Debug)]
pub(crate) struct Control {
    mapping: Mapping,
}

impl Control {
    fn words(&self) -> &ControlWords {
        let words: NonNull<ControlWords> = self.mapping.start().cast();
        // SAFETY: the mapping is at least a page, aligned to a page, and all of these words are
        // atomics, for which every bit pattern is a value.
        unsafe { words.as_ref() }
    }

    /// The owner's bell, which workers ring.
    pub(crate) fn doorbell(&self) -> &Bell {
        &self.words().doorbell
    }

    /// The lease number `index`, below [`leases`](Self::leases).
    pub(crate) fn lease(&self, index: usize) -> &Lease {
        &self.words().leases[index]
    }

    pub(crate) const fn leases() -> usize {
        LEASES
    }
}

/// One worker's memory.
#[derive(Debug)]
pub(crate) struct Seat {
    mapping: Mapping,
}

impl Seat {
    fn words(&self) -> &Words {
        let words: NonNull<Words> = self.mapping.start().cast();
        // SAFETY: the mapping is `SEAT` bytes, aligned to a page, and all of these words are
        // atomics, for which every bit pattern is a value.
        unsafe { words.as_ref() }
    }

    /// The owner makes the seat as new. No worker sits in it.
    pub(crate) fn clear(&self) {
        let ours = std::mem::offset_of!(Words, loans);
        // SAFETY: the words begin the mapping, and the worker that shared them is gone. Of its loans
        // others may be letting go.
        unsafe { self.mapping.start().write_bytes(0, ours) };
        self.words().loans.iter().for_each(|loan| loan.store(0, Ordering::Relaxed));
    }

    pub(crate) fn set_span(&self, number: u32) {
        self.words().span.store(number, Ordering::Release);
    }

    /// The worker's span, as its owner has written it.
    pub(crate) fn span(&self) -> u32 {
        self.words().span.load(Ordering::Acquire)
    }

    /// How many loans there may be at a time.
    pub(crate) const fn loans() -> usize {
        LOANS
    }

    /// The worker, before it sends what it lends.
    pub(crate) fn lend(&self, loan: usize, span: u32) {
        self.words().loans[loan].store(span, Ordering::Relaxed); // published by the push
    }

    /// The worker asks: does its owner have it still?
    pub(crate) fn is_lent(&self, loan: usize) -> bool {
        self.words().loans[loan].load(Ordering::Acquire) != 0
    }

    /// The owner has let go of what a worker lent; if another sits here by now, it is not asked.
    pub(crate) fn give_back(&self, loan: usize, span: u32) {
        let loan = &self.words().loans[loan % LOANS];
        let _ = loan.compare_exchange(span, 0, Ordering::Release, Ordering::Relaxed);
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.words().bell
    }

    /// The claim number `index`, which wraps around.
    pub(crate) fn claim(&self, index: u16) -> &Claim {
        &self.words().claims[index as usize % CLAIMS]
    }

    /// How many tasks may lie in the inbox.
    pub(crate) const fn claims() -> usize {
        CLAIMS
    }

    /// The worker, when it has claimed a task.
    pub(crate) fn begin(&self, task: u64, now: Duration) {
        let log = &self.words().log;
        log.since.store(nanos(now), Ordering::Relaxed);
        log.running.store(named(task), Ordering::Release);
    }

    /// The worker, before it sends how the task ended.
    pub(crate) fn rest(&self, returned: bool, took: Duration) {
        let log = &self.words().log;
        log.running.store(0, Ordering::Release);
        let add = |word: &AtomicU64, n| {
            word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        };
        add(if returned { &log.returned } else { &log.failed }, 1);
        add(&log.busy, nanos(took));
    }

    pub(crate) fn account(&self) -> Account {
        let log = &self.words().log;
        let running = log.running.load(Ordering::Acquire);
        let since = Duration::from_nanos(log.since.load(Ordering::Relaxed));
        Account {
            returned: log.returned.load(Ordering::Relaxed),
            failed: log.failed.load(Ordering::Relaxed),
            busy: Duration::from_nanos(log.busy.load(Ordering::Relaxed)),
            running: (running != 0).then_some((running >> 2, since)),
        }
    }

    /// The owner wants a task to end, for a reason that is a number below 4.
    pub(crate) fn ask(&self, task: u64, why: u8) {
        debug_assert!(why < 4, "two bits");
        self.words().asked.store(task << 2 | u64::from(why & 3), Ordering::Release);
    }

    /// The worker: is the task that it runs to end? Told once, with the reason.
    pub(crate) fn hear(&self) -> Option<u8> {
        let (log, asked) = (&self.words().log, self.words().asked.load(Ordering::Acquire));
        let running = log.running.load(Ordering::Relaxed);
        let meant = running != 0 && running == named(asked >> 2) && asked & 3 != 0;
        if !meant || log.told.load(Ordering::Relaxed) == running {
            return None;
        }
        // Published by the push of the outcome.
        log.told.store(running, Ordering::Release);
        Some((asked & 3) as u8)
    }

    /// The owner: has the worker heard that this task is to end?
    pub(crate) fn has_heard(&self, task: u64) -> bool {
        self.words().log.told.load(Ordering::Acquire) == named(task)
    }

    pub(crate) fn set_order(&self, order: Order) {
        self.words().order.store(order as u32, Ordering::Release);
    }

    pub(crate) fn order(&self) -> Order {
        match self.words().order.load(Ordering::Acquire) {
            0 => Order::Serve,
            2 => Order::Retire,
            _ => Order::Leave,
        }
    }

    /// The worker says that it waits for room in its outbox.
    pub(crate) fn set_blocked(&self) {
        self.words().blocked.store(1, Ordering::SeqCst);
    }

    /// Does the worker wait still?
    pub(crate) fn is_blocked(&self) -> bool {
        self.words().blocked.load(Ordering::SeqCst) != 0
    }

    /// The owner asks, after it has popped, whether the worker waits for that.
    pub(crate) fn take_blocked(&self) -> bool {
        take(&self.words().blocked)
    }

    /// The owner says that it waits for room in the inbox.
    pub(crate) fn set_waiting(&self) {
        self.words().waiting.store(1, Ordering::SeqCst);
    }

    /// The worker asks, after it has popped, whether the owner waits for that.
    pub(crate) fn take_waiting(&self) -> bool {
        take(&self.words().waiting)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn take(word: &AtomicU32) -> bool {
    // SeqCst, as the store: whoever waits looks for room after it has said so, and whoever makes
    // room looks for waiters after it has made it.
    std::sync::atomic::fence(Ordering::SeqCst);
    word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::SeqCst) != 0
}

/// The ring to the worker.
#[derive(Debug)]
pub(crate) struct SeatInbox(pub Arc<Seat>);

/// The ring from the worker.
#[derive(Debug)]
pub(crate) struct SeatOutbox(pub Arc<Seat>);

// SAFETY: the inbox is `RING` bytes inside the mapping, which lives as long as the seat; only
// the two sides of this ring use them.
unsafe impl Home for SeatInbox {
    fn counters(&self) -> &Counters {
        &self.0.words().inbox
    }

    fn bytes(&self) -> *mut u8 {
        // SAFETY: the mapping is `SEAT` bytes.
        unsafe { self.0.mapping.start().as_ptr().add(PAGE) }
    }

    fn capacity(&self) -> usize {
        RING
    }
}

// SAFETY: as the inbox, for the bytes behind it.
unsafe impl Home for SeatOutbox {
    fn counters(&self) -> &Counters {
        &self.0.words().outbox
    }

    fn bytes(&self) -> *mut u8 {
        // SAFETY: the mapping is `SEAT` bytes.
        unsafe { self.0.mapping.start().as_ptr().add(PAGE + RING) }
    }

    fn capacity(&self) -> usize {
        RING
    }
}
