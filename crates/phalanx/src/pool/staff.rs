//! A worker as its owner sees it: the seat, the two rings, what was sent and has not come back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::parcel::{Lent, Parcel, Ties};
use super::task::{Code, MORE, PIECES, to_worker};
use crate::error::{Result, Why};
use crate::process::Child;
use crate::shm::{
    Account, Consumer, Head, Order, Producer, Seat, SeatInbox, SeatOutbox, Slot, Span,
};
use crate::sys::{ForkClosed, Report};

/// A process in a seat.
#[derive(Debug)]
pub(crate) struct Staff {
    pub(crate) child: Arc<Child>,
    /// Its end kills the worker.
    _lifeline: ForkClosed,
    /// Where it writes what it is doing, when it is told to.
    report: Report,
    /// When its start began.
    begun: Instant,
    /// When it has said that it is ready.
    pub(crate) since: Option<Instant>,
    /// It has been told to leave after its task.
    pub(crate) retired: bool,
    /// When its pages were counted, and how large it was, if that was no more than it may have.
    pub(crate) counted: Option<(Instant, u64)>,
    /// It has said that it answers the signal that wants a trace.
    pub(crate) traces: bool,
    /// Which process in this seat it is: a late event of an earlier one is known by it.
    pub(crate) incarnation: u32,
}

impl Staff {
    pub(crate) fn new(
        child: Arc<Child>,
        lifeline: ForkClosed,
        report: Report,
        begun: Instant,
        incarnation: u32,
    ) -> Self {
        let (since, retired, counted, traces) = Default::default();
        let _lifeline = lifeline;
        Self { child, _lifeline, report, begun, since, retired, counted, traces, incarnation }
    }

    /// How long it took from the first step until it was ready.
    pub(crate) fn startup(&self) -> Option<Duration> {
        self.since.map(|since| since - self.begun)
    }

    /// It is to leave after its task. False: it was before, or is not ready.
    pub(crate) fn retire(&mut self) -> bool {
        self.since.is_some() && !std::mem::replace(&mut self.retired, true)
    }

    /// What it has written since this was asked last.
    pub(crate) fn stack(&self) -> String {
        String::from_utf8_lossy(&self.report.take()).into_owned()
    }
}

/// A task in a worker's inbox, or on the way there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) task: u64,
    claim: u16,
}

/// A message that has not gone into the inbox, or not all of it.
#[derive(Debug)]
struct Late {
    what: What,
    /// How many bytes of its body have gone.
    gone: usize,
}

#[derive(Clone, Debug)]
enum What {
    Define(Arc<Code>),
    Run(Sent),
}

/// A message from a worker.
#[derive(Debug)]
pub(crate) struct Mail {
    pub(crate) kind: u8,
    pub(crate) task: u64,
    pub(crate) extra: u64,
    pub(crate) flags: u8,
    pub(crate) body: Parcel,
}

impl Mail {
    pub(crate) fn took(&self) -> Duration {
        Duration::from_nanos(self.extra)
    }
}

/// What is to be sent for a task.
#[derive(Clone, Copy)]
pub(crate) struct Freight<'a> {
    pub(crate) code: Option<&'a Arc<Code>>,
    pub(crate) shape: u8,
    pub(crate) payload: &'a [u8],
    /// The payload is a message in pieces.
    pub(crate) pieces: bool,
}

/// The owner's side of a seat.
#[derive(Debug)]
pub(crate) struct Desk {
    seat: Arc<Seat>,
    inbox: Producer<SeatInbox>,
    outbox: Consumer<SeatOutbox>,
    /// The body of a message whose last frame has not come.
    partial: Vec<u8>,
    late: VecDeque<Late>,
    sent: VecDeque<Sent>,
    claims: Vec<u16>,
    /// The ids of the codes that the worker keeps.
    codes: [u64; Code::SLOTS],
    /// The worker has written nonsense: nothing that it says counts any more.
    mute: bool,
    /// How many ends of tasks it has told.
    told: u64,
    /// Frames were pushed since the bell was rung last.
    unrung: bool,
    pub(crate) staff: Option<Staff>,
    /// The worker's span and its number.
    lent: Option<(u32, Arc<Lent>)>,
    /// Slots of tasks that have ended and whose worker has not let go of them.
    kept: Vec<(Sent, Vec<Arc<Slot>>)>,
}

/// A worker may hold on to the large arguments of so many tasks after their end.
const HELD: usize = 256;

impl Desk {
    /// A seat that was never used.
    pub(crate) fn new(seat: Arc<Seat>) -> Self {
        Self {
            inbox: Producer::new(SeatInbox(seat.clone())),
            outbox: Consumer::new(SeatOutbox(seat.clone())),
            partial: Vec::new(),
            late: VecDeque::new(),
            sent: VecDeque::new(),
            claims: (0..Seat::claims() as u16).rev().collect(),
            codes: [0; Code::SLOTS],
            mute: false,
            told: 0,
            unrung: false,
            staff: None,
            lent: None,
            kept: Vec::new(),
            seat,
        }
    }

    /// Makes the seat as new for the next worker. Nobody sits in it.
    pub(crate) fn clear(&mut self) {
        self.seat.clear();
        *self = Self::new(self.seat.clone());
    }

    /// Gives the next worker the span number `number`.
    pub(crate) fn lend(&mut self, number: u32, span: Span) {
        self.seat.set_span(number);
        self.lent = Some((number, Lent::new(span)));
    }

    /// Forgets the slots that the worker has let go of. True: it holds on to others.
    pub(crate) fn sweep(&mut self) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        let Self { kept, seat, claims, .. } = self;
        kept.retain(|(sent, _)| {
            let held = !seat.claim(sent.claim).is_let_go(sent.task);
            if !held {
                claims.push(sent.claim);
            }
            held
        });
        !kept.is_empty()
    }

    /// May the worker have more large arguments to hold on to?
    pub(crate) fn may_hold(&self) -> bool {
        self.kept.len() < HELD
    }

    pub(crate) fn has_mail(&self) -> bool {
        !self.mute && !self.outbox.is_empty()
    }

    /// What the worker has written makes no sense: it is killed, and not listened to any more.
    pub(crate) fn silence(&mut self) {
        self.mute = true;
        self.staff.iter().for_each(|staff| drop(staff.child.signal(libc::SIGKILL)));
    }

    /// Sends a task. What does not fit now goes later, in order, with [`push`](Self::push).
    pub(crate) fn send(&mut self, task: u64, freight: &Freight<'_>) {
        let in_turn = self.late.is_empty();
        let claim = self.claims.pop().expect("the scheduler sends fewer tasks than claims");
        self.seat.claim(claim).offer(task);
        let sent = Sent { task, claim };
        self.sent.push_back(sent);
        if let Some(code) = freight.code {
            let kept = &mut self.codes[Code::slot(code.id)];
            if std::mem::replace(kept, code.id) != code.id {
                self.late.push_back(Late { what: What::Define(code.clone()), gone: 0 });
            }
        }
        self.late.push_back(Late { what: What::Run(sent), gone: 0 });
        // Behind others it waits until they are pushed, by one who can find their bytes.
        if in_turn {
            self.push(|_| Some(*freight));
        }
    }

    /// Pushes what is late, as far as there is room, and tells whether any of it went. `freight`
    /// finds what belongs to a task.
    pub(crate) fn push<'a>(&mut self, freight: impl Fn(u64) -> Option<Freight<'a>>) -> bool {
        let mut went = false;
        while let Some(Late { what, gone }) = self.late.front_mut() {
            let (head, body) = match what {
                What::Define(code) => (
                    Head { kind: to_worker::DEFINE, extra: code.id, ..Head::default() },
                    &*code.bytes,
                ),
                // A task that is not known any more was taken back before it went.
                What::Run(sent) => match freight(sent.task) {
                    Some(freight) => (
                        Head {
                            kind: to_worker::RUN | if freight.pieces { PIECES } else { 0 },
                            flags: freight.shape,
                            claim: sent.claim,
                            task: sent.task,
                            extra: freight.code.map_or(0, |code| code.id),
                            ..Head::default()
                        },
                        freight.payload,
                    ),
                    None => (Head::default(), &[][..]),
                },
            };
            if head.kind == 0 {
                self.late.pop_front();
                continue;
            }
            let largest = self.inbox.largest();
            loop {
                let piece = &body[*gone..body.len().min(*gone + largest)];
                let last = *gone + piece.len() == body.len();
                let kind = head.kind | if last { 0 } else { MORE };
                if !self.inbox.push(Head { kind, ..head }, piece) {
                    // Say that we wait for room, and look again: it may have been made meanwhile.
                    self.seat.set_waiting();
                    if !self.inbox.push(Head { kind, ..head }, piece) {
                        return went;
                    }
                }
                (self.unrung, went) = (true, true);
                *gone += piece.len();
                if last {
                    break;
                }
            }
            self.late.pop_front();
        }
        went
    }

    /// Is there something that did not fit into the inbox?
    pub(crate) fn is_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Takes a task back, unless the worker has begun it or a part of it has gone.
    pub(crate) fn revoke(&mut self, task: u64) -> bool {
        let Some(at) = self.sent.iter().rposition(|sent| sent.task == task) else { return false };
        let on_the_way = |late: &Late| matches!(&late.what, What::Run(sent) if sent.task == task);
        let late = self.late.iter().position(on_the_way);
        if late.is_some_and(|at| self.late[at].gone > 0) {
            return false;
        }
        let sent = self.sent[at];
        if !self.seat.claim(sent.claim).revoke(task) {
            return false;
        }
        late.map(|at| self.late.remove(at));
        self.release(at);
        true
    }

    /// Has the worker begun the task?
    pub(crate) fn has_begun(&self, task: u64) -> bool {
        let sent = self.sent.iter().find(|sent| sent.task == task);
        sent.is_some_and(|sent| self.seat.claim(sent.claim).is_taken(task))
    }

    /// The task has ended: its claim is free, unless the worker holds on to its slots.
    pub(crate) fn ended(&mut self, task: u64, slots: Option<Vec<Arc<Slot>>>) -> bool {
        let Some(at) = self.sent.iter().position(|sent| sent.task == task) else { return false };
        self.told = self.told.wrapping_add(1);
        match slots.filter(|_| !self.seat.claim(self.sent[at].claim).is_let_go(task)) {
            Some(slots) => {
                let sent = self.sent.remove(at).expect("a place that was just found");
                self.kept.push((sent, slots));
            }
            None => self.release(at),
        }
        true
    }

    fn release(&mut self, at: usize) {
        let sent = self.sent.remove(at).expect("a place that was just found");
        self.claims.push(sent.claim);
    }

    /// Of a worker that is gone: what it had begun and not finished.
    pub(crate) fn begun(&self) -> Vec<u64> {
        let begun = self.sent.iter().filter(|sent| self.seat.claim(sent.claim).is_taken(sent.task));
        begun.map(|sent| sent.task).collect()
    }

    /// The next message from the worker, if all of one is there.
    ///
    /// # Errors
    ///
    /// If it makes no sense.
    pub(crate) fn read(&mut self) -> Result<Option<Mail>> {
        if self.mute {
            return Ok(None);
        }
        loop {
            let Some(head) = self.outbox.pop(&mut self.partial)? else { return Ok(None) };
            if head.kind & MORE == 0 {
                let body = std::mem::take(&mut self.partial);
                let body = match head.kind & PIECES {
                    0 => Parcel::plain(body),
                    _ => self.in_pieces(body, head.claim)?,
                };
                let kind = head.kind & !PIECES;
                let Head { task, extra, flags, .. } = head;
                return Ok(Some(Mail { kind, task, extra, flags, body }));
            }
        }
    }

    fn in_pieces(&self, body: Vec<u8>, loan: u16) -> Result<Parcel> {
        let (seat, loan) = (self.seat.clone(), usize::from(loan));
        let span = self.lent.as_ref().map(|(_, lent)| lent.span.clone());
        let ties = match self.lent.clone().filter(|_| loan < Seat::loans()) {
            Some((number, span)) => Ties::Loan { seat, loan, number, _span: span },
            None => Ties::Cut,
        };
        Parcel::in_pieces(body, span, ties)
    }

    /// After reading: wakes a worker that waits for room in its outbox.
    pub(crate) fn made_room(&mut self) {
        self.unrung |= self.seat.take_blocked();
    }

    pub(crate) fn order(&mut self, order: Order) {
        self.seat.set_order(order);
        self.unrung = true;
    }

    /// How many tasks the worker has been sent and has not ended.
    pub(crate) fn sent(&self) -> usize {
        self.sent.len()
    }

    /// How many of these it has not ended, by its own account.
    pub(crate) fn left(&self) -> usize {
        let Account { returned, failed, .. } = self.account();
        let untold = returned.wrapping_add(failed).wrapping_sub(self.told);
        self.sent.len().saturating_sub(usize::try_from(untold).unwrap_or(usize::MAX))
    }

    /// What the worker says of its work.
    pub(crate) fn account(&self) -> Account {
        self.seat.account()
    }

    /// Says to the worker that a task is to end, for when a signal makes it look.
    pub(crate) fn tell(&self, task: u64, why: Why) {
        // What it has written before is about something else.
        self.staff.iter().for_each(|staff| drop(staff.stack()));
        self.seat.ask(task, why as u8 + 1);
    }

    /// Has the worker heard that?
    pub(crate) fn has_heard(&self, task: u64) -> bool {
        self.seat.has_heard(task)
    }

    #[cfg(test)]
    pub(crate) fn assert_at_rest(&mut self) {
        assert!(!self.sweep() && !self.is_late() && self.sent.is_empty());
        assert!(!self.has_mail() && self.partial.is_empty());
        let mut claims = self.claims.clone();
        claims.sort_unstable();
        assert!(claims.iter().copied().eq(0..Seat::claims() as u16), "each claim is free once");
    }

    /// Wakes the worker if there is something for it.
    pub(crate) fn ring(&mut self) {
        if std::mem::take(&mut self.unrung) {
            // Workers sleep on the word only.
            let _ = self.seat.bell().ring_and_wake();
        }
    }
}
