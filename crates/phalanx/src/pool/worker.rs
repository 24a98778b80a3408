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

use super::outbox::{Outbox, Voice};
use super::parcel::{Packed, Parcel, Ties};
use super::spin::Spinner;
use super::store::{Buffer, Store};
use super::task::{MORE, PIECES, to_owner, to_worker};
use crate::error::{Error, Result, Why};
use crate::shm::{
    Bell, Consumer, Head, Order, Region, Seat, SeatInbox, Sleeper, Slot, Span, heirs,
};
use crate::sync::fault;
use crate::sys::futex::Woken;
use crate::sys::socket::duplicate;
use crate::sys::{self, Event, die_with_owner, monotonic, trim};

/// A worker in its own process.
#[derive(Debug)]
pub struct Worker {
    seat: Arc<Seat>,
    inbox: Consumer<SeatInbox>,
    outbox: Arc<Outbox>,
    /// Tasks that it may still run; `None` is any number.
    life: Option<u64>,
    /// The body of a message whose last frame has not come.
    partial: Vec<u8>,
    /// The task that is being run.
    running: u64,
    began: Duration,
    /// When it rang for its owner last, or a moment before.
    rung: Duration,
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

/// How a task ended, as its worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It returned.
    Returned,
    /// It failed.
    Failed,
    /// It failed, and another try is worth while, if its terms have one for that.
    Unlucky,
}

impl Worker {
    /// How many codes a worker keeps.
    pub const CODES: usize = super::task::Code::SLOTS;

    /// Takes the seat that the descriptors, of which it makes copies, of a [`Core`](super::Core) and a
    /// [`Seating`](super::Seating) name. From now on this process ends with its owner; with `tree` it
    /// leads a process group, which ends with it.
    ///
    /// # Errors
    ///
    /// If they are not what they should be.
    pub fn sit(
        memory: RawFd,
        event: RawFd,
        lifeline: RawFd,
        seat: usize,
        tree: bool,
    ) -> Result<Self> {
        let copy = |fd| duplicate(fd).map_err(|e| Error::os("copy a worker's descriptor", e));
        let (memory, event, lifeline) = (copy(memory)?, copy(event)?, copy(lifeline)?);
        die_with_owner(lifeline, tree).map_err(|e| Error::os("tie a worker to its owner", e))?;
        let region = Region::from_fd(memory)?;
        let spinner = Spinner::new(seat);
        let seat = region.seat(seat)?;
        let own = region.span(seat.span()).filter(|_| seat.span() != 0);
        Self::at(&region, seat, Event::from_fd(event), spinner, Store::new(own))
    }

    /// A worker that has done nothing yet.
    fn at(
        region: &Region,
        seat: Arc<Seat>,
        event: Event,
        spinner: Option<Spinner>,
        store: Store,
    ) -> Result<Self> {
        Ok(Self {
            spinner,
            inbox: Consumer::new(SeatInbox(seat.clone())),
            outbox: Arc::new(Outbox::new(seat.clone(), region.control()?, event)),
            life: None,
            partial: Vec::new(),
            running: 0,
            began: Duration::ZERO,
            rung: Duration::ZERO,
            unrung: false,
            worked: true,
            span: region.span(0),
            store,
            lent: Vec::new(),
            seat,
        })
    }

    /// Says that this worker takes tasks, and leaves after `life` of them; and whether it answers
    /// [`trace_signal`] by writing its stack into the report.
    pub fn ready(&mut self, life: Option<u64>, traces: bool) {
        self.life = life;
        fault("worker: it sits, and is not ready");
        let (kind, extra) = (to_owner::READY, life.unwrap_or(0));
        self.outbox.push(Head { kind, extra, flags: traces.into(), ..Head::default() }, &[]);
        fault("worker: it is ready, before the bell");
        self.outbox.ring();
    }

    /// Says why this worker cannot be readied.
    pub fn unfit(&mut self, message: &str, trace: &str) {
        let mut body = (message.len() as u64).to_ne_bytes().to_vec();
        body.extend_from_slice(message.as_bytes());
        body.extend_from_slice(trace.as_bytes());
        self.outbox.push(Head { kind: to_owner::UNFIT, ..Head::default() }, &body);
        self.outbox.ring();
    }

    /// False: a task has forked, and this is its child, which has no seat. It has run the task's rest,
    /// and nobody waits for what becomes of it.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.outbox.is_here()
    }

    /// What to do next; to leave, if that is [not here](Self::is_here). Does not wait.
    ///
    /// # Errors
    ///
    /// If the owner writes nonsense.
    pub fn duty(&mut self) -> Result<Duty> {
        if !self.is_here() {
            return Ok(Duty::Leave);
        }
        if self.life == Some(0) || self.seat.order() == Order::Retire {
            self.ring_if_owed();
            fault("worker: it retires");
            return Ok(Duty::Leave);
        }
        while let Some(head) = self.inbox.pop(&mut self.partial)? {
            fault("worker: a task is popped, and not claimed");
            if self.seat.take_waiting() {
                self.outbox.ring();
            }
            if head.kind & MORE != 0 {
                continue;
            }
            let body = std::mem::take(&mut self.partial);
            match head.kind & !PIECES {
                to_worker::DEFINE => return Ok(Duty::Define(head.extra, body)),
                to_worker::RUN if self.seat.claim(head.claim).take(head.task) => {
                    fault("worker: a task is claimed, and not noted");
                    self.life = self.life.map(|life| life - 1);
                    self.running = head.task;
                    self.worked = true;
                    self.began = monotonic();
                    self.seat.begin(head.task, self.began);
                    let parcel = if head.kind & PIECES == 0 {
                        Parcel::plain(body)
                    } else {
                        let (seat, task) = (self.seat.clone(), head.task);
                        let ties = Ties::Claim { seat, claim: head.claim, task };
                        Parcel::in_pieces(body, self.span.clone(), ties)?
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
            Order::Leave if self.inbox.is_empty() => {
                fault("worker: it leaves");
                Ok(Duty::Leave)
            }
            Order::Leave | Order::Retire => self.duty(),
            Order::Serve => Ok(Duty::Idle),
        }
    }

    /// Sleeps until there may be something to do, until the deadline, or until a signal handler
    /// has run.
    ///
    /// What earlier tasks allocated and freed goes back to the system when it has slept a while.
    pub fn sleep(&mut self, deadline: Option<Instant>) {
        let awaited = || !self.inbox.is_empty() || self.seat.order() != Order::Serve;
        if self.spinner.is_some_and(|spinner| spinner.spin(&self.outbox.control, awaited)) {
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

    /// What hears that a task is to end.
    #[must_use]
    pub fn ear(&self) -> Ear {
        Ear(self.seat.clone())
    }

    /// What any of its threads can say to the owner.
    #[must_use]
    pub fn voice(&self) -> Voice {
        Voice(self.outbox.clone())
    }

    /// Where large pieces of results go.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Sends how the task ended that [`duty`](Self::duty) gave last: a stream and its buffers.
    ///
    /// Waits if the owner is slow to read. Does nothing where the worker is [not](Self::is_here).
    pub fn finish(&mut self, end: End, stream: Vec<u8>, buffers: Vec<Buffer>) {
        if !self.is_here() {
            return;
        }
        let packed = self.store.pack(stream, buffers);
        fault("worker: an outcome is packed, and not lent");
        let (bytes, pieces, loan) = self.lend(packed);
        let now = monotonic();
        let took = now.saturating_sub(self.began);
        let returned = end == End::Returned;
        self.seat.rest(returned, took);
        let kind = if returned { to_owner::RETURNED } else { to_owner::FAILED };
        let flags = u8::from(end == End::Unlucky);
        let kind = kind | if pieces { PIECES } else { 0 };
        let extra = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let head = Head { kind, task: self.running, claim: loan, extra, flags, ..Head::default() };
        fault("worker: an outcome is noted, and not pushed");
        self.outbox.push(head, &bytes);
        fault("worker: an outcome is pushed, before the bell");
        self.unrung = true;
        if self.inbox.is_empty() || now.saturating_sub(self.rung) >= LINGER {
            self.ring_if_owed();
        }
    }

    fn ring_if_owed(&mut self) {
        if std::mem::take(&mut self.unrung) {
            // Before the bell: whoever it wakes counts from later than this.
            self.rung = monotonic();
            self.outbox.ring();
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
}

/// What a worker is sent that is to write its stack in the middle of whatever it does: the number of a
/// signal, from the realtime ones.
#[must_use]
pub fn trace_signal() -> i32 {
    sys::trace_signal()
}

/// Hears that the task that is being run is to end: see `control.rs`.
#[derive(Clone, Debug)]
pub struct Ear(Arc<Seat>);

impl Ear {
    /// Why it is to end, if it is and this was not said before. For the thread that runs tasks.
    #[must_use]
    pub fn hear(&self) -> Option<Why> {
        match self.0.hear()? {
            1 => Some(Why::TimedOut),
            2 => Some(Why::Cancelled),
            _ => Some(Why::OverMemory),
        }
    }
}

/// Sleeps on a bell until something is there; may return early.
pub(super) fn sleep(bell: &Bell, deadline: Option<Instant>, there: impl Fn() -> bool) -> Woken {
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

#[cfg(test)]
mod fuzz {
    use super::super::fuzz::in_pieces;
    use super::*;
    use crate::fuzz::{Fuzz, Script};
    use crate::shm::Producer;

    /// A worker, in the process that owns the seat.
    fn worker(region: &Region, seat: &Arc<Seat>) -> Worker {
        let event = Event::new().unwrap();
        Worker::at(region, seat.clone(), event, None, Store::new(None)).unwrap()
    }

    #[test]
    fn a_worker_has_a_duty_or_an_error_whatever_its_owner_writes() {
        let region = Region::new(1).unwrap();
        let (messages, _slots) = in_pieces(&Store::new(region.span(0)));
        // Each frame: kind, task, flags, claim, whether it is offered, length of the body; the body.
        let frame = |kind: u8, task: u8, body: &[u8]| {
            [&[kind, task, 0, task, 1, body.len() as u8], body].concat()
        };
        let mut valid = vec![
            [frame(to_worker::DEFINE, 1, b"code"), frame(to_worker::RUN, 1, b"task")].concat(),
            [frame(to_worker::RUN | MORE, 2, b"a"), frame(to_worker::RUN, 2, b"b")].concat(),
        ];
        valid.extend(messages.iter().map(|bytes| frame(to_worker::RUN | PIECES, 3, bytes)));
        Fuzz::new("duty").cost(60).allowance(1 << 20).run(&valid, |bytes| {
            let seat = region.seat(0).unwrap();
            seat.clear();
            let mut owner = Producer::new(SeatInbox(seat.clone()));
            let mut worker = worker(&region, &seat);
            let mut script = Script(bytes);
            while !script.is_over() {
                let (kind, task, flags) = (script.byte(), script.byte(), script.byte());
                let (claim, offered, len) = (script.byte(), script.byte(), script.byte());
                let task = u64::from(task).rotate_left(flags.into());
                if offered & 1 == 1 {
                    seat.claim(claim.into()).offer(task);
                }
                let claim = u16::from(claim) | u16::from(offered & 0xf8) << 8;
                let head = Head { len: 0, kind, flags, claim, task, extra: task };
                let _ = owner.push(head, script.bytes(len.into()));
                match worker.duty() {
                    Ok(Duty::Run(_, _, parcel)) => {
                        let _ = parcel.into_stream();
                        worker.finish(End::Returned, vec![1], Vec::new());
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
    }
}
