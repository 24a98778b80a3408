//! What an owner and its workers read from each other, spoilt; see `crate::fuzz`.

use std::sync::Arc;
use std::time::Instant;

use super::group::Group;
use super::limits::Limits;
use super::parcel::{Packed, Parcel, Ties};
use super::staff::Desk;
use super::state::State;
use super::store::{Buffer, Kind, LARGE, Store};
use super::task::{MORE, PIECES, Task, to_owner};
use super::worker::read_unfit;
use crate::fuzz::{Foreign, Fuzz, Script};
use crate::shm::{Head, Producer, Region, SeatOutbox, Span};

/// A message in pieces, with and without slots; these are there as long as the second part.
pub(super) fn in_pieces(store: &Store) -> (Vec<Vec<u8>>, Vec<Packed>) {
    let bytes = |len: usize| Buffer(Kind::Bytes(vec![7; len]));
    let slot = || {
        let mut room = store.room(LARGE + 100).unwrap();
        assert!(!room.start().is_null());
        room.done()
    };
    let packed = vec![
        Packed::new(vec![bytes(9)]),
        Packed::new(vec![bytes(9), bytes(0), bytes(30)]),
        Packed::new(vec![bytes(5), slot(), bytes(3)]),
        Packed::new(vec![slot(), slot()]),
    ];
    (packed.iter().map(|packed| packed.bytes.clone()).collect(), packed)
}

fn open(bytes: &[u8], span: Option<Span>) {
    let Ok(parcel) = Parcel::in_pieces(bytes.to_vec(), span, Ties::Cut) else { return };
    assert!(parcel.whole().is_none());
    // Each is let go of before the next: all together are what whoever takes them wants.
    let pieces = parcel.pieces().take(8).filter_map(Result::ok);
    assert!(pieces.map(|mut piece| usize::from(piece.start().is_null())).sum::<usize>() == 0);
    let _ = parcel.into_stream();
}

#[test]
fn a_message_in_pieces_is_opened_or_an_error() {
    let (valid, _slots) = in_pieces(&Store::new(Region::new(1).unwrap().span(0)));
    Fuzz::new("message in pieces").run(&valid, |bytes| open(bytes, None));
}

#[test]
fn a_message_in_slots_is_opened_or_an_error() {
    let region = Region::new(1).unwrap();
    let (valid, _slots) = in_pieces(&Store::new(region.span(0)));
    // As much as was written into slots, and a stream that is read twice.
    Fuzz::new("message in slots").cost(20).allowance(1 << 20).run(&valid, |bytes| {
        open(bytes, region.span(0));
    });
}

#[test]
fn what_a_worker_is_unfit_for_is_text() {
    let said = [&5_u64.to_ne_bytes()[..], b"noise and its trace"].concat();
    Fuzz::new("unfit worker").run(&[said], |bytes| {
        let (message, trace) = read_unfit(bytes);
        assert!(message.len() + trace.len() <= 3 * bytes.len());
    });
}

/// Tasks that a worker was sent in a case.
const TASKS: u64 = 3;

#[test]
fn an_owner_is_told_of_each_task_once_whatever_a_worker_writes() {
    let region = Region::new(1).unwrap();
    let foreign = Foreign::new(&region);
    let (messages, _slots) = in_pieces(&Store::new(region.span(1)));
    // Each frame: kind, which task, flags, claim, time, length of the body; the body.
    let frame = |kind: u8, task: u8, body: &[u8]| {
        let head = [kind, task, 0, 0, 0, body.len() as u8, 0];
        [&head, &[0; 8][..], body].concat()
    };
    let mut valid = vec![
        [frame(to_owner::READY, 0, &[]), frame(to_owner::RETURNED, 0, b"result")].concat(),
        [1, 2, 0].map(|task| frame(to_owner::FAILED, task, b"why")).concat(),
        [frame(to_owner::RETURNED | MORE, 1, b"a"), frame(to_owner::RETURNED, 1, b"b")].concat(),
        frame(to_owner::UNFIT, 0, b"\x03\0\0\0\0\0\0\0oh no"),
    ];
    let each = messages.iter().map(|bytes| frame(to_owner::RETURNED | PIECES, 0, bytes));
    valid.extend(each.collect::<Vec<_>>());
    Fuzz::new("outcome").cost(60).allowance(2 << 20).run(&valid, |bytes| {
        let seat = region.seat(0).unwrap();
        seat.clear();
        let mut desk = Desk::new(seat.clone());
        desk.lend(1, region.span(1).unwrap());
        let mut state = State::new(vec![desk], Limits::default());
        let group = Arc::new(Group::as_completed());
        let now = Instant::now();
        state.scheduler.arrived(0, None, now);
        let submit = |index| {
            let packed = Packed { bytes: vec![1; 9], slots: None };
            state.submit(&group, index, Task::new(None, 0, Vec::new()), packed)
        };
        let tasks: Vec<_> = (0..TASKS).map(submit).collect();
        state.progress();

        let mut worker = Producer::new(SeatOutbox(seat.clone()));
        let mut script = Script(bytes);
        while !script.is_over() {
            let (kind, which) = (script.byte(), script.byte());
            let task = tasks.get(usize::from(which)).copied().unwrap_or(u64::from(which) << 30);
            let (flags, claim) = (script.byte(), u16::from(script.byte()) << 8 | u16::from(which));
            let (spoils, len) = (script.byte(), usize::from(script.byte()));
            let _ = script.byte();
            let extra = script.word();
            let head = Head { len: 0, kind, flags, claim, task, extra };
            let _ = worker.push(head, script.bytes(len));
            if spoils > 0x80 {
                // Something in the words of the seat, whose page comes after that of all.
                foreign.write((64 << 10) + u64::from(claim) * 8 % (40 << 10), &extra.to_le_bytes());
            }
            if spoils & 1 == 1 {
                state.read(0);
            }
        }
        state.read(0);
        state.progress();
        state.keep_terms(now);
        let (arrived, _) = group.arrived();
        assert!(arrived <= TASKS, "{arrived} outcomes of {TASKS} tasks");
        let _ = state.tasks_of(None).len();
    });
}
