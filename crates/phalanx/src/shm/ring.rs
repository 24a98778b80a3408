//! A bounded queue of frames in shared memory: one producer, one consumer.
//!
//! `tail` counts the bytes ever pushed, `head` those ever popped; `tail - head` never exceeds the
//! capacity. Only the producer writes `tail`, only the consumer `head`. A frame is a [`Head`] and
//! its body, padded to 8 bytes, and becomes visible by one store of `tail`: a producer that dies
//! inside `push` leaves the queue as it was before, and a consumer that dies inside `pop` leaves
//! the frame. The idea is that of every single-producer ring (Lamport, 1977).
//!
//! Each side keeps the counter that it writes itself outside the shared memory, and believes the
//! other's only as far as it makes sense.

use crossbeam_utils::CachePadded;

use super::atomic::{AtomicU64, Ordering};
use crate::error::{Error, Result};

/// The counters of a ring, each on its own cache line. All zeros is an empty ring.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counters {
    head: CachePadded<AtomicU64>,
    tail: CachePadded<AtomicU64>,
}

/// Where a ring lives: counters and bytes.
///
/// # Safety
///
/// `bytes` names `capacity` bytes, a power of two, valid as long as `self` is, that nobody but
/// the ring's two sides touches.
pub(crate) unsafe trait Home {
    fn counters(&self) -> &Counters;
    fn bytes(&self) -> *mut u8;
    fn capacity(&self) -> usize;
}

/// What stands before a frame's body. Its fields mean what the two sides agree on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of the body.
    pub len: u32,
    pub kind: u8,
    pub flags: u8,
    /// Which [`Claim`](super::Claim) speaks of the task.
    pub claim: u16,
    pub task: u64,
    pub extra: u64,
}

const HEAD: usize = 24;

impl Head {
    fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&self.len.to_ne_bytes());
        bytes[4] = self.kind;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.claim.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.task.to_ne_bytes());
        bytes[16..].copy_from_slice(&self.extra.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEAD]) -> Self {
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            len: u32::from_ne_bytes(bytes[..4].try_into().unwrap()),
            kind: bytes[4],
            flags: bytes[5],
            claim: u16::from_ne_bytes(bytes[6..8].try_into().unwrap()),
            task: word(8),
            extra: word(16),
        }
    }
}

/// Bytes that a frame takes in the ring.
fn room(body: usize) -> usize {
    HEAD + body.next_multiple_of(8)
}

/// The side that pushes. There is one at a time.
#[derive(Debug)]
pub(crate) struct Producer<H> {
    home: H,
    tail: u64,
    /// The consumer's counter as we last saw it.
    head: u64,
}

impl<H: Home> Producer<H> {
    /// The producer of a ring that is empty and new.
    pub(crate) fn new(home: H) -> Self {
        Self { home, tail: 0, head: 0 }
    }

    /// The largest body that a ring of this size takes, if it is not to be filled by one frame.
    pub(crate) fn largest(&self) -> usize {
        self.home.capacity() / 4 - HEAD
    }

    /// Is there room for a frame of any size that is allowed?
    pub(crate) fn has_room(&self) -> bool {
        let head = self.home.counters().head.load(Ordering::Acquire);
        let free = (self.home.capacity() as u64).saturating_sub(self.tail.wrapping_sub(head));
        free >= room(self.largest()) as u64
    }

    /// Pushes a frame, or returns false if there is no room for it now.
    ///
    /// `head.len` is set here. The body must not exceed [`largest`](Self::largest).
    pub(crate) fn push(&mut self, head: Head, body: &[u8]) -> bool {
        debug_assert!(body.len() <= self.largest());
        let room = room(body.len()) as u64;
        let capacity = self.home.capacity() as u64;
        if self.tail.wrapping_sub(self.head) + room > capacity {
            // Acquire: pairs with the Release in `pop`, so what we overwrite has been read.
            let head = self.home.counters().head.load(Ordering::Acquire);
            // A consumer cannot have popped more than we pushed, nor taken anything back.
            if self.tail.wrapping_sub(head) <= self.tail.wrapping_sub(self.head) {
                self.head = head;
            }
            if self.tail.wrapping_sub(self.head) + room > capacity {
                return false;
            }
        }
        let len = u32::try_from(body.len()).expect("a quarter of a ring fits");
        self.copy_in(self.tail, &Head { len, ..head }.to_bytes());
        self.copy_in(self.tail + HEAD as u64, body);
        self.tail += room;
        // Release: pairs with the Acquire in `pop`, which then sees the frame.
        self.home.counters().tail.store(self.tail, Ordering::Release);
        true
    }

    fn copy_in(&self, at: u64, from: &[u8]) {
        let capacity = self.home.capacity();
        let at = at as usize & (capacity - 1);
        let (first, rest) = from.split_at(from.len().min(capacity - at));
        // SAFETY: `at` is below the capacity, which `Home` guarantees to be there.
        let to = unsafe { self.home.bytes().add(at) };
        // SAFETY: `first` ends at the capacity at the latest; the consumer has left these bytes
        // (checked in `push`), and we are the only producer.
        unsafe { to.copy_from_nonoverlapping(first.as_ptr(), first.len()) };
        // SAFETY: as above, for what wraps around to the start.
        unsafe { self.home.bytes().copy_from_nonoverlapping(rest.as_ptr(), rest.len()) };
    }
}

/// The side that pops. There is one at a time.
#[derive(Debug)]
pub(crate) struct Consumer<H> {
    home: H,
    head: u64,
    /// The producer's counter as we last saw it.
    tail: u64,
}

impl<H: Home> Consumer<H> {
    /// The consumer of a ring that has popped nothing yet.
    pub(crate) fn new(home: H) -> Self {
        Self { home, head: 0, tail: 0 }
    }

    /// Is there nothing to pop?
    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail && self.head == self.home.counters().tail.load(Ordering::Acquire)
    }

    /// Pops a frame: its body is appended to `body`.
    ///
    /// # Errors
    ///
    /// If what the producer wrote makes no sense. The ring is of no use after that.
    pub(crate) fn pop(&mut self, body: &mut Vec<u8>) -> Result<Option<Head>> {
        if self.head == self.tail {
            // Acquire: pairs with the Release in `push`, so the frame is there.
            self.tail = self.home.counters().tail.load(Ordering::Acquire);
            if self.head == self.tail {
                return Ok(None);
            }
        }
        let there = self.tail.wrapping_sub(self.head);
        if there > self.home.capacity() as u64 || there < HEAD as u64 {
            return Err(Error::corrupt("a ring's counter"));
        }
        let mut bytes = [0; HEAD];
        self.copy_out(self.head, &mut bytes);
        let head = Head::from_bytes(bytes);
        let room = room(head.len as usize) as u64;
        if room > there {
            return Err(Error::corrupt("the length of a ring's frame"));
        }
        let start = body.len();
        body.resize(start + head.len as usize, 0);
        self.copy_out(self.head + HEAD as u64, &mut body[start..]);
        self.head += room;
        // Release: pairs with the Acquire in `push`, which may now overwrite what we read.
        self.home.counters().head.store(self.head, Ordering::Release);
        Ok(Some(head))
    }

    fn copy_out(&self, at: u64, to: &mut [u8]) {
        let capacity = self.home.capacity();
        let at = at as usize & (capacity - 1);
        let split = to.len().min(capacity - at);
        let (first, rest) = to.split_at_mut(split);
        // SAFETY: `at` is below the capacity, which `Home` guarantees to be there.
        let from = unsafe { self.home.bytes().add(at) };
        // SAFETY: `first` ends at the capacity at the latest. A producer that keeps to the
        // protocol does not write these bytes now; one that does not can only spoil our copy,
        // which is bytes and nothing else.
        unsafe { from.copy_to_nonoverlapping(first.as_mut_ptr(), first.len()) };
        // SAFETY: as above, for what wraps around to the start.
        unsafe { self.home.bytes().copy_to_nonoverlapping(rest.as_mut_ptr(), rest.len()) };
    }
}

#[cfg(test)]
mod tests_home {
    use super::*;

    /// A ring in memory of this process.
    pub(super) struct Own {
        counters: Counters,
        bytes: Box<[std::cell::UnsafeCell<u8>]>,
    }

    // SAFETY: the ring's protocol says who touches which byte when; that is what is tested.
    unsafe impl Sync for Own {}
    // SAFETY: plain memory.
    unsafe impl Send for Own {}

    impl Own {
        pub(super) fn new(capacity: usize) -> Self {
            let zero = || CachePadded::new(AtomicU64::new(0));
            let counters = Counters { head: zero(), tail: zero() };
            Self { counters, bytes: (0..capacity).map(|_| 0.into()).collect() }
        }
    }

    impl Own {
        pub(super) fn spoil_tail(&self, tail: u64) {
            self.counters.tail.store(tail, Ordering::Release);
        }
    }

    // SAFETY: the box has a power of two of bytes and lives as long as the ring.
    unsafe impl<T: std::ops::Deref<Target = Own>> Home for T {
        fn counters(&self) -> &Counters {
            &self.counters
        }

        fn bytes(&self) -> *mut u8 {
            self.bytes[0].get()
        }

        fn capacity(&self) -> usize {
            self.bytes.len()
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::tests_home::Own;
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::Arc;

    fn head(task: u64) -> Head {
        Head { len: 0, kind: 1, flags: 2, claim: 3, task, extra: task << 40 }
    }

    proptest! {
        /// Whatever is pushed and popped in whatever order, the ring is a queue.
        #[test]
        fn a_ring_is_a_queue(steps in prop::collection::vec((any::<bool>(), 0usize..100), 1..300)) {
            let own = Arc::new(Own::new(512));
            let mut producer = Producer::new(own.clone());
            let mut consumer = Consumer::new(own);
            let mut model = VecDeque::new();
            for (n, (push, len)) in steps.into_iter().enumerate() {
                if push {
                    let body = vec![n as u8; len];
                    let used: usize = model.iter().map(|(_, b): &(u64, Vec<u8>)| room(b.len())).sum();
                    let fits = producer.push(head(n as u64), &body);
                    prop_assert_eq!(fits, used + room(len) <= 512);
                    if fits {
                        model.push_back((n as u64, body));
                    }
                } else {
                    let mut body = Vec::new();
                    let popped = consumer.pop(&mut body).unwrap().map(|head| (head.task, body));
                    prop_assert_eq!(popped, model.pop_front());
                }
                prop_assert_eq!(consumer.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn nonsense_in_a_counter_is_an_error_not_a_crash() {
        let own = Arc::new(Own::new(512));
        let mut consumer = Consumer::new(own.clone());
        for tail in [8, 513, u64::MAX] {
            own.spoil_tail(tail);
            consumer.tail = 0;
            assert!(consumer.pop(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn nonsense_in_a_length_is_an_error_not_a_crash() {
        let own = Arc::new(Own::new(512));
        let mut producer = Producer::new(own.clone());
        assert!(producer.push(head(1), b"body"));
        producer.copy_in(0, &u32::MAX.to_ne_bytes());
        assert!(Consumer::new(own).pop(&mut Vec::new()).is_err());
    }

    #[test]
    fn frames_arrive_in_order_between_threads() {
        let own = Arc::new(Own::new(4096));
        let mut producer = Producer::new(own.clone());
        let pusher = std::thread::spawn(move || {
            for n in 0..100_000u64 {
                while !producer.push(head(n), &n.to_ne_bytes()[..(n % 9) as usize]) {
                    std::thread::yield_now();
                }
            }
        });
        let mut consumer = Consumer::new(own);
        let mut body = Vec::new();
        for n in 0..100_000u64 {
            body.clear();
            let popped = loop {
                if let Some(popped) = consumer.pop(&mut body).unwrap() {
                    break popped;
                }
                std::thread::yield_now();
            };
            assert_eq!(popped, Head { len: (n % 9) as u32, ..head(n) });
            assert_eq!(body, &n.to_ne_bytes()[..(n % 9) as usize]);
        }
        pusher.join().unwrap();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::tests_home::Own;
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared(Arc<Own>);

    impl std::ops::Deref for Shared {
        type Target = Own;

        fn deref(&self) -> &Own {
            &self.0
        }
    }

    /// A ring with room for two frames, so that full and wrap-around are reached.
    #[test]
    fn every_frame_arrives_once_and_in_order() {
        loom::model(|| {
            let own = Arc::new(Own::new(64));
            let mut producer = Producer::new(Shared(own.clone()));
            let pusher = thread::spawn(move || {
                (1..=3u64)
                    .take_while(|&task| {
                        let head = Head { len: 0, kind: 0, flags: 0, claim: 0, task, extra: 0 };
                        producer.push(head, &task.to_ne_bytes())
                    })
                    .count() as u64
            });
            let mut consumer = Consumer::new(Shared(own));
            let mut popped = 0;
            let mut take = |popped: &mut u64| {
                let mut body = Vec::new();
                while let Some(head) = consumer.pop(&mut body).unwrap() {
                    *popped += 1;
                    assert_eq!(head.task, *popped);
                    assert_eq!(body, popped.to_ne_bytes());
                    body.clear();
                }
            };
            take(&mut popped);
            let pushed = pusher.join().unwrap();
            take(&mut popped);
            assert_eq!(popped, pushed);
        });
    }
}
