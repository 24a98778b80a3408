//! Channels of values between processes: [`bounded`] and [`unbounded`].
//!
//! A channel is a [`Queue`], and who has an end of it: for either end a roster of processes and how
//! many handles each of them has, and the handles that are on their way to another process.
//!
//! | what is wrong | what one gets |
//! | --- | --- |
//! | a bound of 0 | an [invalid](Error::is_invalid) argument |
//! | a value that serde cannot write, or read there | a [codec](Error::is_codec) error; the item is gone if it was to be read |
//! | no receiver is left, no sender is left and nothing in it | [closed](Error::is_closed) |
//! | the deadline comes first | a [timeout](Error::is_timeout) |
//! | an end for which there is no line left (240 processes), or 64 ends on their way | a codec error |
//!
//! | who dies, at any instruction | what the others find |
//! | --- | --- |
//! | a sender | its item, whole, or nothing of it; its handles are no more |
//! | a receiver | its own item may be gone; its handles are no more |
//! | one that had sent an end on | the end cannot be read any more, and does not count |
//! | the last one | nothing: the memory has no name |

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::passing::{Passed, Passing, Scope};
use super::queue::{Pushed, Queue};
use super::reading::from_bytes;
use crate::error::{Error, Result};
use crate::shm::words;
use crate::sync::{Line, Roster};
use crate::sys::ProcessId;

/// For how long one waits without a look at whether the others live.
const SLICE: Duration = Duration::from_millis(40);
/// Of more bytes than this one does not put ever more before others have taken some.
const MUCH: usize = 32 << 10;

words! {
    /// Who has an end of a channel.
    pub(super) struct Owners {
        lines: [Line; 240],
        /// Who wrote a handle that nobody has read yet.
        travelling: [AtomicU64; 64],
    }
}

impl Owners {
    fn add(&self) -> bool {
        Roster(&self.lines).add()
    }

    fn remove(&self) {
        let _ = Roster(&self.lines).remove();
    }

    /// Has nobody this end?
    pub(super) fn is_nobody(&self) -> bool {
        // The travelling ones first: who reads one has its handle before it is not travelling.
        self.travelling.iter().all(|place| place.load(Ordering::SeqCst) == 0)
            && Roster(&self.lines).total() == 0
    }

    /// Strikes out those that have ended.
    fn settle(&self) {
        while Roster(&self.lines).settle().is_some() {}
        for place in &self.travelling {
            let bits = place.load(Ordering::Relaxed);
            if bits != 0 && ProcessId::from_bits(bits).is_none_or(|writer| !writer.is_alive()) {
                let _ = place.compare_exchange(bits, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    fn depart(&self) -> Option<usize> {
        let own = ProcessId::own().bits();
        let free = |place: &AtomicU64| {
            place.compare_exchange(0, own, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        };
        self.travelling.iter().position(free)
    }

    fn arrive(&self, place: usize, writer: u64) {
        if let Some(place) = self.travelling.get(place) {
            // Only the first of those who read the same bytes.
            let _ = place.compare_exchange(writer, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
}

/// Which end of a channel.
trait End {
    fn owners(queue: &Queue) -> &Owners;
    /// Tells those who wait at the other end.
    fn leave(queue: &Queue);
}

#[derive(Debug)]
enum Sending {}
#[derive(Debug)]
enum Receiving {}

impl End for Sending {
    fn owners(queue: &Queue) -> &Owners {
        &queue.words().senders
    }

    fn leave(queue: &Queue) {
        queue.wake_for_frames();
    }
}

impl End for Receiving {
    fn owners(queue: &Queue) -> &Owners {
        &queue.words().receivers
    }

    fn leave(queue: &Queue) {
        queue.wake_for_room();
    }
}

/// A counted handle of one end.
struct Owned<E: End> {
    queue: Arc<Queue>,
    end: PhantomData<E>,
}

impl<E: End> Owned<E> {
    fn new(queue: Arc<Queue>) -> Option<Self> {
        E::owners(&queue).add().then_some(Self { queue, end: PhantomData })
    }

    fn write<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let place = E::owners(&self.queue)
            .depart()
            .ok_or_else(|| S::Error::custom("too many ends of this channel are on their way"))?;
        let (memory, event) = self.queue.descriptors();
        let writer = ProcessId::own().bits();
        (Passing(memory), Passing(event), place, writer).serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let (memory, event, place, writer) =
            <(Passed, Passed, usize, u64)>::deserialize(deserializer)?;
        let queue = Queue::open(memory.0, event.0).map_err(D::Error::custom)?;
        let owned = Self::new(Arc::new(queue))
            .ok_or_else(|| D::Error::custom("too many processes have this channel"))?;
        E::owners(&owned.queue).arrive(place, writer);
        Ok(owned)
    }
}

impl<E: End> Clone for Owned<E> {
    fn clone(&self) -> Self {
        // The process has a line already, so there is room for one more.
        E::owners(&self.queue).add();
        Self { queue: self.queue.clone(), end: PhantomData }
    }
}

impl<E: End> Drop for Owned<E> {
    fn drop(&mut self) {
        let owners = E::owners(&self.queue);
        owners.remove();
        if owners.is_nobody() {
            E::leave(&self.queue);
        }
    }
}

/// The end of a channel that values are put into. See [`unbounded`].
pub struct Sender<T> {
    owned: Owned<Sending>,
    values: PhantomData<fn(T)>,
}

/// The end of a channel that values come out of. Each value comes out once.
pub struct Receiver<T> {
    owned: Owned<Receiving>,
    values: PhantomData<fn() -> T>,
}

/// A channel for as many values as there is memory for.
///
/// Both ends can be cloned, and sent to tasks and through channels; values of all senders come in
/// the order in which they were sent.
///
/// ```
/// use phalanx::channel::{Sender, unbounded};
///
/// fn count(sender: Sender<u32>) {
///     (0..3).for_each(|n| sender.send(&n).unwrap());
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let (sender, receiver) = unbounded()?;
///     let child = phalanx::Process::spawn(count, sender.clone())?;
///     drop(sender);
///     assert_eq!(receiver.iter().collect::<phalanx::Result<Vec<u32>>>()?, [0, 1, 2]);
///     child.join()
/// }
/// ```
///
/// # Errors
///
/// If there is no descriptor or no address space.
pub fn unbounded<T>() -> Result<(Sender<T>, Receiver<T>)> {
    channel(None)
}

/// A channel for at most `bound` values: who sends one more waits.
///
/// # Errors
///
/// If the bound is 0, or there is no descriptor or no address space.
pub fn bounded<T>(bound: usize) -> Result<(Sender<T>, Receiver<T>)> {
    if bound == 0 {
        return Err(Error::invalid("a channel needs room for at least 1 value"));
    }
    channel(Some(bound as u64))
}

fn channel<T>(bound: Option<u64>) -> Result<(Sender<T>, Receiver<T>)> {
    let queue = Arc::new(Queue::new(bound)?);
    let first = "a new channel has lines to spare";
    let sender = Owned::new(queue.clone()).expect(first);
    let receiver = Owned::new(queue).expect(first);
    Ok((
        Sender { owned: sender, values: PhantomData },
        Receiver { owned: receiver, values: PhantomData },
    ))
}

impl<T: Serialize> Sender<T> {
    /// Sends a value, after a wait for room.
    ///
    /// # Errors
    ///
    /// If no receiver is left, the value cannot be written, or there is no memory for it.
    pub fn send(&self, value: &T) -> Result<()> {
        self.send_until(value, None)
    }

    /// As [`send`](Self::send), waiting for so long at the most.
    ///
    /// # Errors
    ///
    /// As `send`, or a [timeout](Error::is_timeout).
    pub fn send_timeout(&self, value: &T, timeout: Duration) -> Result<()> {
        self.send_until(value, Instant::now().checked_add(timeout))
    }

    fn send_until(&self, value: &T, deadline: Option<Instant>) -> Result<()> {
        let queue = &self.owned.queue;
        let mut scratch = Scratch::of(&WRITTEN);
        let mut into = std::mem::take(&mut scratch.bytes);
        into.clear();
        let (written, _) = Scope::Once.run(|| postcard::to_extend(value, into));
        scratch.bytes = written.map_err(|why| Error::codec("write a value for a channel", why))?;
        let bytes = &scratch.bytes;
        if bytes.len() > MUCH && deadline.is_none() {
            queue.pace(bytes.len());
        }
        let nobody = || Receiving::owners(queue).is_nobody();
        loop {
            if nobody() {
                return Err(Error::closed("the channel has no receiver left"));
            }
            let slice = slice(deadline);
            match queue.put(&[(0, bytes)], slice.max(Instant::now() + SLICE))? {
                Pushed::Some(_) => return Ok(()),
                Pushed::Full if !queue.wait_room_or(slice, nobody) => {
                    Receiving::owners(queue).settle();
                }
                Pushed::Full | Pushed::Busy => {}
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(Error::timed_out("room in a channel"));
            }
        }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives the next value, after a wait for it.
    ///
    /// # Errors
    ///
    /// If there is none and no sender is left, or the value cannot be read.
    pub fn recv(&self) -> Result<T> {
        self.recv_until(None)
    }

    /// As [`recv`](Self::recv), waiting for so long at the most.
    ///
    /// # Errors
    ///
    /// As `recv`, or a [timeout](Error::is_timeout).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T> {
        self.recv_until(Instant::now().checked_add(timeout))
    }

    /// Receives the next value if it is there.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv); a [timeout](Error::is_timeout) if there is none now.
    pub fn try_recv(&self) -> Result<T> {
        self.recv_timeout(Duration::ZERO)
    }

    /// The values until no sender is left.
    pub fn iter(&self) -> impl Iterator<Item = Result<T>> + '_ {
        std::iter::from_fn(|| match self.recv() {
            Err(error) if error.is_closed() => None,
            received => Some(received),
        })
    }

    fn recv_until(&self, deadline: Option<Instant>) -> Result<T> {
        let queue = &self.owned.queue;
        let nobody = || Sending::owners(queue).is_nobody();
        loop {
            // Asked first: what the last sender has sent is there by then.
            let last = nobody();
            let late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            if let Some(scratch) = self.take()? {
                let value = from_bytes(&scratch.bytes);
                return value.map_err(|why| Error::codec("read a value from a channel", why));
            }
            if last && queue.is_empty() {
                return Err(Error::closed("the channel has no sender left, and no value"));
            }
            let slice = slice(deadline);
            if !queue.wait_frame_or(slice, nobody) {
                Sending::owners(queue).settle();
            }
            // Also when there is one: who takes another may have been stopped with the right to.
            if late {
                return Err(Error::timed_out("a value in a channel"));
            }
        }
    }

    fn take(&self) -> Result<Option<Scratch>> {
        let queue = &self.owned.queue;
        if queue.is_empty() {
            return Ok(None);
        }
        let Some(front) = queue.front(Instant::now() + SLICE) else { return Ok(None) };
        let mut taken = None;
        front.take(1, |frame, copy| {
            let mut scratch = Scratch::of(&READ);
            scratch.bytes.resize(frame.len, 0);
            copy(&mut scratch.bytes)?;
            taken = Some(scratch);
            Ok::<_, Error>(())
        })?;
        Ok(taken)
    }
}

impl<T> Receiver<T> {
    /// Would [`recv`](Receiver::recv) return at once?
    pub(super) fn is_ready(&self) -> bool {
        let queue = &self.owned.queue;
        !queue.is_empty() || {
            Sending::owners(queue).settle();
            Sending::owners(queue).is_nobody()
        }
    }

    pub(super) fn watch(&self) -> Result<BorrowedFd<'_>> {
        self.owned.queue.watch()
    }
}

/// Bytes of a value on its way. What was allocated for one is used again by the thread's next, as new
/// memory costs several times as much as a copy.
#[derive(Debug)]
struct Scratch {
    bytes: Vec<u8>,
    kept: &'static LocalKey<Cell<Vec<u8>>>,
}

thread_local! {
    static WRITTEN: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Scratch {
    fn of(kept: &'static LocalKey<Cell<Vec<u8>>>) -> Self {
        // A value that is written or read may send or receive others: these have their own.
        Self { bytes: kept.try_with(Cell::take).unwrap_or_default(), kept }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        /// A thread keeps no more than this of either kind.
        const KEEP: usize = 4 << 20;
        if self.bytes.capacity() <= KEEP {
            // A thread that is ending keeps nothing.
            let _ = self.kept.try_with(|kept| kept.set(std::mem::take(&mut self.bytes)));
        }
    }
}

fn slice(deadline: Option<Instant>) -> Instant {
    let end = Instant::now() + SLICE;
    deadline.map_or(end, |deadline| deadline.min(end))
}

macro_rules! handle {
    ($name:ident, $owned:ty) => {
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                Self { owned: self.owned.clone(), values: PhantomData }
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("len", &self.owned.queue.len()).finish()
            }
        }

        impl<T> Serialize for $name<T> {
            fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
                self.owned.write(to)
            }
        }

        impl<'de, T> Deserialize<'de> for $name<T> {
            fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                Ok(Self { owned: <$owned>::read(from)?, values: PhantomData })
            }
        }
    };
}

handle!(Sender, Owned<Sending>);
handle!(Receiver, Owned<Receiving>);

/// Whatever comes first: a value in one of several channels, the end of a process, a moment.
///
/// ```
/// use phalanx::channel::{Select, unbounded};
/// use std::time::Duration;
///
/// # fn main() -> phalanx::Result<()> {
/// let (sender, receiver) = unbounded()?;
/// sender.send(&1)?;
/// let mut select = Select::new();
/// let (value, late) = (select.recv(&receiver), select.after(Duration::from_secs(10)));
/// assert_eq!(select.wait()?, value);
/// assert_ne!(value, late);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Select<'a> {
    cases: Vec<Case<'a>>,
}

enum Case<'a> {
    Receive(&'a dyn Ready),
    Readable(BorrowedFd<'a>),
    At(Option<Instant>),
}

impl fmt::Debug for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Receive(_) => "Receive",
            Self::Readable(_) => "Readable",
            Self::At(_) => "At",
        })
    }
}

trait Ready {
    fn is_ready(&self) -> bool;
    fn watch(&self) -> Result<BorrowedFd<'_>>;
}

impl<T> Ready for Receiver<T> {
    fn is_ready(&self) -> bool {
        Self::is_ready(self)
    }

    fn watch(&self) -> Result<BorrowedFd<'_>> {
        Self::watch(self)
    }
}

impl<'a> Select<'a> {
    /// Nothing to wait for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn case(&mut self, case: Case<'a>) -> usize {
        self.cases.push(case);
        self.cases.len() - 1
    }

    /// A value in a channel, or the end of its last sender. Returns the number of this case.
    pub fn recv<T>(&mut self, receiver: &'a Receiver<T>) -> usize {
        self.case(Case::Receive(receiver))
    }

    /// The end of a process, or anything else whose descriptor becomes readable.
    pub fn readable(&mut self, what: &'a impl AsFd) -> usize {
        self.case(Case::Readable(what.as_fd()))
    }

    /// A moment from now.
    pub fn after(&mut self, timeout: Duration) -> usize {
        self.case(Case::At(Instant::now().checked_add(timeout)))
    }

    /// Waits for the first of the cases, and returns its number; of several, the least.
    ///
    /// # Errors
    ///
    /// If there is no case, or the system refuses.
    pub fn wait(&self) -> Result<usize> {
        if self.cases.is_empty() {
            return Err(Error::invalid("nothing to wait for was given"));
        }
        let failed = |source| Error::os("wait for several things", source);
        let poller = crate::sys::Poller::new().map_err(failed)?;
        for (number, case) in self.cases.iter().enumerate() {
            match case {
                Case::Receive(receiver) => poller.add(receiver.watch()?, number as u64),
                Case::Readable(fd) => poller.add(fd, number as u64),
                Case::At(_) => Ok(()),
            }
            .map_err(failed)?;
        }
        let mut readable = Vec::new();
        loop {
            let now = Instant::now();
            let there = self.cases.iter().enumerate().position(|(number, case)| match case {
                Case::Receive(receiver) => receiver.is_ready(),
                Case::Readable(_) => readable.contains(&(number as u64)),
                Case::At(at) => at.is_some_and(|at| at <= now),
            });
            if let Some(number) = there {
                return Ok(number);
            }
            let moments = self.cases.iter().filter_map(|case| match case {
                Case::At(at) => *at,
                _ => None,
            });
            let end = slice(moments.min());
            readable.clear();
            let left = end.saturating_duration_since(Instant::now());
            poller.wait(&mut readable, Some(left)).map_err(failed)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_behind_one_that_was_stopped_keeps_to_its_deadline() {
        let (sender, receiver) = unbounded().unwrap();
        sender.send(&7).unwrap();
        let stopped = receiver.owned.queue.front(Instant::now() + SLICE).unwrap();
        let other = receiver.clone();
        let waiting = std::thread::spawn(move || other.recv_timeout(Duration::from_millis(1)));
        assert!(waiting.join().unwrap().unwrap_err().is_timeout());
        drop(stopped);
        assert_eq!(receiver.recv().unwrap(), 7);
    }
}

#[cfg(test)]
mod fuzz {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fuzz::{Foreign, Fuzz, Script};

    /// serde takes memory for so much in advance, however many items it is told of.
    const CAUTIOUS: usize = 2 << 20;

    type Item =
        (u8, String, Option<Vec<u16>>, BTreeMap<u8, Vec<()>>, std::result::Result<char, i64>);

    fn items() -> [Item; 2] {
        let map = BTreeMap::from([(1, vec![(); 5]), (2, vec![])]);
        [
            (1, "a text".into(), Some(vec![1, 900]), map, Ok('a')),
            (0, String::new(), None, [].into(), Err(-9)),
        ]
    }

    #[test]
    fn a_receiver_gets_values_or_an_error_whatever_is_put_into_its_channel() {
        let (sender, receiver) = unbounded::<Item>().unwrap();
        let queue = sender.owned.queue.clone();
        // Frames: their length, their kind, their bytes.
        let frame = |bytes: Vec<u8>| [&[bytes.len() as u8, 0], &bytes[..]].concat();
        let valid = items().map(|item| frame(postcard::to_stdvec(&item).unwrap()));
        let valid = [valid.concat(), valid[0].clone(), vec![0, 0, 0, 9]];
        Fuzz::new("channel").cost(10).allowance(CAUTIOUS).run(&valid, |bytes| {
            let mut script = Script(bytes);
            let mut frames = 0;
            while !script.is_over() {
                let (len, kind) = (script.byte().into(), script.byte().into());
                let put = queue.put(&[(kind, script.bytes(len))], Instant::now() + SLICE);
                assert_eq!(put.unwrap(), Pushed::Some(1));
                frames += 1;
            }
            for _ in 0..frames {
                let received = receiver.try_recv();
                assert!(received.is_ok() || received.unwrap_err().is_codec());
            }
            sender.send(&items()[0]).unwrap();
            assert_eq!(receiver.recv().unwrap(), items()[0], "what came before is gone");
        });
    }

    fn read<T: DeserializeOwned>(
        memory: BorrowedFd<'_>,
        event: BorrowedFd<'_>,
        way: (usize, u64),
    ) -> Option<T> {
        let scope = Scope::Held(Vec::new());
        let written = || postcard::to_stdvec(&(Passing(memory), Passing(event), way.0, way.1));
        let (bytes, _tickets) = scope.run(written);
        from_bytes(&bytes.unwrap()).ok()
    }

    #[test]
    fn an_end_that_comes_from_elsewhere_works_or_is_refused() {
        let step = |at: u16, word: u64| [&at.to_le_bytes()[..], &word.to_le_bytes()].concat();
        // Where it was on its way, from whom; then what is written where.
        let valid = [[0, ProcessId::own().bits()].map(u64::to_le_bytes).concat()];
        let table = (0..240).map(|line| step(line * 16, u64::MAX));
        let valid =
            [valid[0].clone(), [&valid[0][..], &table.collect::<Vec<_>>().concat()].concat()];
        Fuzz::new("end of a channel").cost(1000).allowance(4 << 20).run(&valid, |bytes| {
            let (sender, receiver) = unbounded::<u32>().unwrap();
            sender.send(&1).unwrap();
            let (memory, event) = receiver.owned.queue.descriptors();
            let mut script = Script(bytes);
            let way = (script.word() as usize, script.word());
            let foreign = Foreign::new(memory);
            while !script.is_over() {
                let at = u16::from_le_bytes([script.byte(), script.byte()]);
                foreign.write(at.into(), &script.word().to_le_bytes());
            }
            if let Some(end) = read::<Sender<u32>>(memory, event, way) {
                let _ = end.send_timeout(&2, Duration::ZERO);
            }
            if let Some(end) = read::<Receiver<u32>>(memory, event, way) {
                let _ = (end.try_recv(), end.is_ready(), end.clone());
            }
        });
    }
}
