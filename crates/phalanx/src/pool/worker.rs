//! The worker's side of a seat: take a task, run it, send back how it ended.
//!
//! The loop is the user's, because what runs a task is: the Python glue's or the Rust API's.
//!
//! | line | what a death after it leaves |
//! | --- | --- |
//! | frame popped | the claim says waiting: the task runs elsewhere |
//! | claim taken | the task is lost, and its caller is told |
//! | outcome pushed | nothing: the owner reads it |

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::parcel::{Buffer, Packed, Parcel, Store, Ties};
use super::spin::Spinner;
use super::task::{MORE, PIECES, to_owner, to_worker};
use crate::error::{Error, Result};
use crate::shm::{
    Bell, Consumer, Control, Head, Order, Producer, Region, Seat, SeatInbox, SeatOutbox, Sleeper,
    Slot, Span, heirs,
};
use crate::sys::futex::Woken;
use crate::sys::socket::duplicate;
use crate::sys::{Event, die_with_owner, trim};

/// A worker in its own process.
#[derive(Debug)]
pub struct Worker {
    seat: Arc<Seat>,
    control: Control,
    event: Event,
    inbox: Consumer<SeatInbox>,
    outbox: Producer<SeatOutbox>,
    /// Tasks that it may still run; `None` is any number.
    life: Option<u64>,
    /// The body of a message whose last frame has not come.
    partial: Vec<u8>,
    /// The task that is being run.
    running: u64,
    began: Instant,
    /// When it rang for its owner last, or a moment before.
    rung: Instant,
    /// It has sent something since then.
    unrung: bool,
    /// Whether and where it may spin before it sleeps.
    spinner: Option<Spinner>,
    /// Has run something since it gave unused memory back.
    worked: bool,
    /// Where the owner's large pieces are.
    span: Option<Span>,
    /// Where its own go.
    store: Store,
    /// What it has sent in slots and the owner may see still, by loan.
    lent: Vec<Option<Vec<Arc<Slot>>>>,
}

/// A worker that has had nothing to do for so long gives unused memory back.
const IDLE: Duration = Duration::from_millis(100);

/// A worker with more to do does not ring for its owner again within this time. An owner that goes
/// to sleep while tasks wait behind others looks once more after it: by then everything that was
/// not rung for is there, and all that comes later is rung for.
pub(crate) const LINGER: Duration = Duration::from_micros(100);

/// What a worker has to do next.
#[derive(Debug)]
pub enum Duty {
    /// Keep this code under this id; it takes the place of one with the same id modulo
    /// [`Worker::CODES`].
    Define(u64, Vec<u8>),
    /// Run a task: the code's id or 0, the shape, the arguments. Then [`Worker::finish`].
    Run(u64, u8, Parcel),
    /// End the process.
    Leave,
    /// Nothing yet: [`Worker::sleep`].
    Idle,
}

impl Worker {
    /// How many codes a worker keeps.
    pub const CODES: usize = super::task::Code::SLOTS;

    /// Takes the seat that the descriptors, of which it makes copies, of a [`Core`](super::Core) and a
    /// [`Seating`](super::Seating) name. From now on this process ends with its owner.
    ///
    /// # Errors
    ///
    /// If they are not what they should be.
    pub fn sit(memory: RawFd, event: RawFd, lifeline: RawFd, seat: usize) -> Result<Self> {
        let copy = |fd| duplicate(fd).map_err(|e| Error::os("copy a worker's descriptor", e));
        let (memory, event, lifeline) = (copy(memory)?, copy(event)?, copy(lifeline)?);
        die_with_owner(lifeline).map_err(|e| Error::os("tie a worker to its owner", e))?;
        let region = Region::from_fd(memory)?;
        let spinner = Spinner::new(seat);
        let seat = region.seat(seat)?;
        let own = region.span(seat.span()).filter(|_| seat.span() != 0);
        Ok(Self {
            spinner,
            control: region.control()?,
            event: Event::from_fd(event),
            inbox: Consumer::new(SeatInbox(seat.clone())),
            outbox: Producer::new(SeatOutbox(seat.clone())),
            life: None,
            partial: Vec::new(),
            running: 0,
            began: Instant::now(),
            rung: Instant::now(),
            unrung: false,
            worked: true,
            span: region.span(0),
            store: Store::new(own),
            lent: Vec::new(),
            seat,
        })
    }

    /// Says that this worker takes tasks, and leaves after `life` of them.
    pub fn ready(&mut self, life: Option<u64>) {
        self.life = life;
        self.send(to_owner::READY, 0, life.unwrap_or(0), &[]);
    }

    /// Says why this worker cannot be readied.
    pub fn unfit(&mut self, message: &str, trace: &str) {
        let mut body = (message.len() as u64).to_ne_bytes().to_vec();
        body.extend_from_slice(message.as_bytes());
        body.extend_from_slice(trace.as_bytes());
        self.send(to_owner::UNFIT, 0, 0, &body);
    }

    /// What to do next. Does not wait.
    ///
    /// # Errors
    ///
    /// If the owner writes nonsense.
    pub fn duty(&mut self) -> Result<Duty> {
        if self.life == Some(0) {
            self.ring_if_owed();
            return Ok(Duty::Leave);
        }
        while let Some(head) = self.inbox.pop(&mut self.partial)? {
            if self.seat.take_waiting() {
                self.ring();
            }
            if head.kind & MORE != 0 {
                continue;
            }
            let body = std::mem::take(&mut self.partial);
            match head.kind & !PIECES {
                to_worker::DEFINE => return Ok(Duty::Define(head.extra, body)),
                to_worker::RUN if self.seat.claim(head.claim).take(head.task) => {
                    self.life = self.life.map(|life| life - 1);
                    self.running = head.task;
                    self.worked = true;
                    self.began = Instant::now();
                    let parcel = match &self.span {
                        Some(span) if head.kind & PIECES != 0 => {
                            let (seat, task) = (self.seat.clone(), head.task);
                            let ties = Ties::Claim { seat, claim: head.claim, task };
                            Parcel::in_pieces(body, span.clone(), ties)?
                        }
                        _ => Parcel::plain(body),
                    };
                    return Ok(Duty::Run(head.extra, head.flags, parcel));
                }
                // Taken back.
                _ => {}
            }
        }
        self.ring_if_owed();
        match self.seat.order() {
            // Orders come after tasks: look for one more.
            Order::Leave if self.inbox.is_empty() => Ok(Duty::Leave),
            Order::Leave => self.duty(),
            Order::Serve => Ok(Duty::Idle),
        }
    }

    /// Sleeps until there may be something to do, until the deadline, or until a signal handler
    /// has run.
    ///
    /// What earlier tasks allocated and freed goes back to the system when it has slept a while.
    pub fn sleep(&mut self, deadline: Option<Instant>) {
        let awaited = || !self.inbox.is_empty() || self.seat.order() != Order::Serve;
        if self.spinner.is_some_and(|spinner| spinner.spin(&self.control, awaited)) {
            return;
        }
        if !self.worked {
            sleep(self.seat.bell(), deadline, awaited);
            return;
        }
        let idle = Instant::now() + IDLE;
        let deadline = deadline.map_or(idle, |deadline| deadline.min(idle));
        if sleep(self.seat.bell(), Some(deadline), awaited) == Woken::TimedOut {
            self.worked = self.tidy();
        }
    }

    /// Gives back what nobody uses. True: there is something to come back for.
    fn tidy(&mut self) -> bool {
        self.sweep();
        let waits = heirs::sweep();
        let kept = self.store.trim();
        trim();
        kept || waits || self.lent.iter().any(Option::is_some)
    }

    /// Takes back the slots that the owner has let go of.
    fn sweep(&mut self) {
        for (loan, slots) in self.lent.iter_mut().enumerate() {
            if slots.is_some() && !self.seat.is_lent(loan) {
                *slots = None;
            }
        }
    }

    /// Where large pieces of results go.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Sends how the task ended that [`duty`](Self::duty) gave last: a stream and its buffers.
    ///
    /// Waits if the owner is slow to read.
    pub fn finish(&mut self, returned: bool, stream: Vec<u8>, buffers: Vec<Buffer>) {
        let packed = self.store.pack(stream, buffers);
        let (bytes, pieces, loan) = self.lend(packed);
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began).as_nanos();
        let kind = if returned { to_owner::RETURNED } else { to_owner::FAILED };
        let kind = kind | if pieces { PIECES } else { 0 };
        let extra = u64::try_from(took).unwrap_or(u64::MAX);
        let head = Head { kind, task: self.running, claim: loan, extra, ..Head::default() };
        self.push(head, &bytes);
        self.unrung = true;
        if self.inbox.is_empty() || now.saturating_duration_since(self.rung) >= LINGER {
            self.ring_if_owed();
        }
    }

    fn ring_if_owed(&mut self) {
        if std::mem::take(&mut self.unrung) {
            // Before the bell: whoever it wakes counts from later than this.
            self.rung = Instant::now();
            self.ring();
        }
    }

    /// Remembers the slots of a message that goes out: its bytes, is it in pieces, its loan.
    fn lend(&mut self, packed: Packed) -> (Vec<u8>, bool, u16) {
        const NONE: u16 = u16::MAX;
        match &packed.slots {
            None => return (packed.bytes, false, NONE),
            Some(slots) if slots.is_empty() => return (packed.bytes, true, NONE),
            Some(_) => self.sweep(),
        }
        let free = self.lent.iter().position(Option::is_none);
        let loan = free.unwrap_or(self.lent.len());
        if loan >= Seat::loans() {
            return (packed.inside().bytes, true, NONE);
        }
        if loan == self.lent.len() {
            self.lent.push(None);
        }
        self.lent[loan] = packed.slots;
        self.seat.lend(loan, self.seat.span());
        (packed.bytes, true, loan as u16)
    }

    fn send(&mut self, kind: u8, task: u64, extra: u64, body: &[u8]) {
        self.push(Head { kind, task, extra, ..Head::default() }, body);
        self.ring();
    }

    fn push(&mut self, head: Head, body: &[u8]) {
        let largest = self.outbox.largest();
        let mut rest = body;
        loop {
            let (piece, more) = rest.split_at(rest.len().min(largest));
            let kind = head.kind | if more.is_empty() { 0 } else { MORE };
            let head = Head { kind, ..head };
            while !self.outbox.push(head, piece) {
                // Say that we wait for room, and look again: it may have been made meanwhile.
                self.seat.set_blocked();
                self.ring();
                if self.outbox.push(head, piece) {
                    break;
                }
                sleep(self.seat.bell(), None, || !self.seat.is_blocked());
            }
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
    }

    fn ring(&self) {
        if self.control.doorbell().ring_and_wake() == Some(Sleeper::InPoller) {
            self.event.ring();
        }
    }
}

/// Sleeps on a bell until something is there; may return early.
fn sleep(bell: &Bell, deadline: Option<Instant>, there: impl Fn() -> bool) -> Woken {
    bell.arm(Sleeper::OnWord);
    let woken = if there() { Woken::Look } else { bell.sleep(deadline) };
    bell.disarm();
    woken
}

/// What [`Worker::unfit`] wrote.
pub(crate) fn read_unfit(body: &[u8]) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Some((len, rest)) = body.split_first_chunk::<8>() else {
        return (text(body), String::new());
    };
    let len = usize::try_from(u64::from_ne_bytes(*len)).unwrap_or(0).min(rest.len());
    (text(&rest[..len]), text(&rest[len..]))
}
