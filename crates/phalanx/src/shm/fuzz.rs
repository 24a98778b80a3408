//! What lies in memory that others write, spoilt; see `crate::fuzz`.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::arena::Block;
use super::ring::Producer;
use super::*;
use crate::fuzz::{Foreign, Fuzz, Script};
use crate::sys::Memory;

/// Bytes of a line's page of words, and of one of its rings; see `line.rs`.
const PAGE: u64 = 64 << 10;
const RING: u64 = 64 << 10;
/// How many bytes of words there are to spoil: bells, then the counters of both rings.
const WORDS: u64 = 6 * 128;

/// What lies at the start of a ring into which two frames were pushed, after the counter that says so.
fn frames() -> Vec<Vec<u8>> {
    let mut frame = [0; 24];
    let mut all = Vec::new();
    for (len, kind) in [(5_u32, 2), (0, 0x82), (40, 0x42)] {
        frame[..4].copy_from_slice(&len.to_le_bytes());
        frame[4] = kind;
        all.push([&frame[..], &vec![7; len.next_multiple_of(8) as usize]].concat());
    }
    let counted = |ring: Vec<u8>| [&(ring.len() as u64).to_le_bytes()[..], &ring].concat();
    vec![counted(all[0].clone()), counted(all.concat()), counted(all[..2].concat())]
}

#[test]
fn a_ring_gives_whole_frames_or_an_error() {
    let (line, memory) = Line::new().unwrap();
    let foreign = Foreign::new(&memory);
    // Where side 0 says how much it has pushed: the second counter of the first ring.
    let (_, mut reader) = line.ends(1);
    assert!(reader.pop(&mut Vec::new()).unwrap().is_none());
    let tail = find_tail(&line, &foreign);
    Fuzz::new("ring frame").cost(4).run(&frames(), |bytes| {
        let mut script = Script(bytes);
        foreign.write(tail, &script.word().to_le_bytes());
        foreign.write(PAGE, script.0);
        let (_, mut reader) = line.ends(1);
        let mut body = Vec::new();
        for _ in 0..100 {
            let len = body.len();
            match reader.pop(&mut body) {
                Ok(Some(head)) => assert_eq!(body.len(), len + head.len as usize),
                Ok(None) => {
                    assert!(reader.is_empty());
                    break;
                }
                Err(_) => break,
            }
        }
        assert!(body.len() < RING as usize);
    });
}

/// Where the counter of what side 0 has pushed is in the memory of a line.
fn find_tail(line: &Arc<Line>, foreign: &Foreign) -> u64 {
    let mut places = (0..WORDS).step_by(8);
    let is_tail = |at: &u64| {
        foreign.write(*at, &u64::MAX.to_le_bytes());
        let found = line.ends(1).1.pop(&mut Vec::new()).is_err();
        foreign.write(*at, &0_u64.to_le_bytes());
        found
    };
    places.find(is_tail).expect("a counter")
}

#[test]
fn a_ring_is_pushed_to_only_where_there_is_room() {
    let (line, memory) = Line::new().unwrap();
    let foreign = Foreign::new(&memory);
    Fuzz::new("ring counter").cost(20).run(&[vec![0; 64]], |bytes| {
        let mut script = Script(bytes);
        let (mut writer, _): (Producer<_>, _) = line.ends(0);
        let mut pushed = 0;
        for _ in 0..32 {
            // Any of the words, the reader's counter among them.
            let at = u64::from(script.byte()) * 8 % WORDS;
            foreign.write(at, &script.word().to_le_bytes());
            let len = usize::from(script.byte()) * 16;
            pushed += usize::from(writer.push(Head::default(), &vec![1; len]));
            let _ = (writer.has_room(), line.bell(0).ring(), line.bell(1).ring());
        }
        assert!(pushed <= 32);
        foreign.write(0, &[0; WORDS as usize]);
    });
}

#[test]
fn a_seat_says_something_whatever_is_in_it() {
    let region = Region::new(1).unwrap();
    let (seat, control) = (region.seat(0).unwrap(), region.control().unwrap());
    let foreign = Foreign::new(&region);
    Fuzz::new("seat").cost(40).run(&[vec![1; 900]], |bytes| {
        let mut script = Script(bytes);
        let at = script.word() % (2 * PAGE);
        foreign.write(at, script.0);
        let (task, index) = (script.word(), script.word() as u16);
        let _ = (seat.account(), seat.hear(), seat.has_heard(task), seat.order(), seat.span());
        let claim = seat.claim(index);
        claim.let_go(task);
        let _ = (claim.take(task >> 2), claim.revoke(task), claim.is_taken(task));
        let _ = (claim.is_let_go(task), seat.is_blocked());
        let _ = (seat.take_blocked(), seat.take_waiting(), seat.bell().ring());
        seat.give_back(usize::from(index), task as u32);
        seat.rest(index % 2 == 0, Duration::from_nanos(task));
        let lease = control.lease(usize::from(index) % Control::leases());
        let (now, end) = (Duration::from_nanos(task), Duration::from_nanos(script.word()));
        if lease.take(now, end) {
            lease.release(end);
        }
        let _ = (control.doorbell().ring(), region.span(task as u32).is_some());
        let _ = region.seat(usize::from(index));
        // The number of seats is the owner's; without it there is no seat any more.
        foreign.write(0, &1_u32.to_le_bytes());
    });
}

#[test]
fn a_piece_is_in_its_span_or_an_error() {
    let region = Region::new(1).unwrap();
    let slab = Arc::new(Slab::new(region.span(0).unwrap()));
    let (span, slot) = (region.span(0).unwrap(), slab.take(100_000).unwrap());
    slot.fill(&[7; 100_000]);
    let words = |at: u64, len: u64| [at.to_le_bytes(), len.to_le_bytes()].concat();
    let valid = [words(0, 100_000), words(4096, 70_000), words(1 << 39, 1 << 20)];
    Fuzz::new("slab reference").cost(40).allowance(1 << 20).run(&valid, |bytes| {
        let mut script = Script(bytes);
        let (at, len) = (script.word(), script.word());
        if let Ok(copy) = span.read(at, len) {
            assert_eq!(copy.len() as u64, len);
        }
        if let Ok(view) = span.view(at, len, Box::new(())) {
            assert_eq!(view.len() as u64, len);
        }
    });
}

#[test]
fn a_block_is_in_its_arena_or_an_error() {
    let block = Block::new(64).unwrap();
    let (arena, offset) = block.expose();
    let words = |offset: usize, len: usize| {
        [(offset as u64).to_le_bytes(), (len as u64).to_le_bytes(), [0; 8]].concat()
    };
    let valid = [words(offset, 64), words(0, 1000), words(64, 3)];
    Fuzz::new("block and plain data").run(&valid, |bytes| {
        let mut script = Script(bytes);
        let (offset, len) = (script.word() as usize, script.word() as usize);
        let at = script.word() as usize;
        let _ = Placed::<[AtomicU64; 4]>::open(&arena, offset).map(|placed| {
            placed.iter().map(|word| word.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
        });
        let Ok(plain) = Plain::open(&arena, offset, len) else { return };
        let mut some = [0; 100];
        let inside = |size: usize| at.checked_add(size).is_some_and(|end| end <= plain.len());
        assert_eq!(plain.read(at, &mut some).is_some(), inside(100));
        assert_eq!(plain.load::<u64>(at).is_some(), inside(8));
        assert_eq!(plain.load::<[u8; 3]>(at).is_some(), inside(3));
    });
}

#[test]
fn memory_of_another_kind_is_refused_or_taken_as_it_is() {
    let valid = [vec![0, 1, 0], vec![16, 0, 0], vec![9, 0, 0]];
    Fuzz::new("memory of a pool, a line, a queue").cost(100).run(&valid, |bytes| {
        let mut script = Script(bytes);
        let grains = usize::from(script.byte()) | usize::from(script.byte()) << 8;
        let memory = Memory::new("fuzz", 1 + grains * 4096).unwrap();
        Foreign::new(&memory).write(0, script.0);
        let copy = || memory.as_fd().try_clone_to_owned().unwrap();
        if let Ok(region) = Region::from_fd(copy()) {
            let _ = (region.control(), region.seat(0), region.seat(grains), region.span(0));
        }
        let _ = (Line::from_fd(copy()), Store::<AtomicU64>::open(copy()), Arena::open(copy()));
    });
}
