//! What goes from process to process, spoilt; see `crate::fuzz`.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::duplex::{Duplex, Outgoing};
use super::queue::Queue;
use super::wire::{Header, Length, Reader};
use crate::error::Error;
use crate::fuzz::{Foreign, Fuzz, Script};
use crate::shm::SEGMENT;
use crate::sys::socket::{self, stream_pair};
use crate::sys::{Event, Memory};

const LENGTHS: [usize; 6] = [0, 5, 300, 0x7fff_ffff, 0x8000_0000, 1 << 50];

fn headers() -> Vec<Vec<u8>> {
    let header = |len| [Header::of(len).bytes(), b"hello"].concat();
    LENGTHS.into_iter().map(header).collect()
}

#[test]
fn a_header_is_a_length_that_memory_can_have() {
    Fuzz::new("message header").run(&headers(), |bytes| {
        let (mut reader, mut script) = (Reader::default(), Script(bytes));
        while !reader.missing().is_empty() && !script.is_over() {
            let missing = reader.missing();
            let piece = script.bytes(missing.len().min(1 + bytes.len() % 3));
            missing[..piece.len()].copy_from_slice(piece);
            reader.advance(piece.len());
        }
        if let Length::Known(len) = reader.length() {
            assert!(isize::try_from(len).is_ok());
            let used = bytes.len() - script.0.len();
            // What we write has the shortest form; others may have written the long one.
            assert!(used == 12 || Header::of(len).bytes() == &bytes[..used]);
        }
    });
}

#[test]
fn a_connection_gives_messages_or_its_end() {
    let messages: Vec<_> =
        [3, 0, 5].map(|len| [Header::of(len).bytes(), &b"hello"[..len]].concat()).concat();
    Fuzz::new("connection").cost(40).run(&[messages, headers().concat()], |bytes| {
        let (ours, theirs) = stream_pair().unwrap();
        std::fs::File::from(theirs).write_all(bytes).unwrap();
        let (end, until) = (Connection::new(Some(ours.as_raw_fd())), Instant::now());
        for _ in 0..100 {
            let Ok(mut receiving) = end.receive() else { return };
            match receiving.length_until(until) {
                Ok(len) => {
                    let len = len.expect("the other end is closed: there is nothing to wait for");
                    let mut body = vec![0; len.min(bytes.len())];
                    if receiving.read_until(&mut body, &mut 0, until).is_err() {
                        return;
                    }
                }
                Err(error) => return assert!(error.is_end() || error.os_error().is_some()),
            }
        }
    });
}

#[test]
fn an_offer_of_a_line_is_one_or_refused() {
    let valid = [vec![1, 1], vec![1, 0], vec![1, 2], vec![0, 1], vec![1, 3]];
    Fuzz::new("line handshake").cost(60).run(&valid, |bytes| {
        let mut script = Script(bytes);
        let (ours, theirs) = stream_pair().unwrap();
        let said = [script.byte()];
        let fd: Option<OwnedFd> = match script.byte() % 4 {
            0 => None,
            1 => {
                Some(Memory::new("fuzz", 192 << 10).unwrap().as_fd().try_clone_to_owned().unwrap())
            }
            2 => Some(Memory::new("fuzz", 4096).unwrap().as_fd().try_clone_to_owned().unwrap()),
            _ => Some(std::fs::File::open("/dev/null").unwrap().into()),
        };
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        socket::send(&theirs, &said, &fds, false).unwrap();
        let accepted = Duplex::accept(ours.as_raw_fd());
        assert!(accepted.is_err() || said == [1] && fd.is_some());
    });
}

#[test]
fn a_line_goes_on_or_ends_whatever_the_other_side_writes() {
    let (ours, theirs) = stream_pair().unwrap();
    let mut words = vec![0; 64];
    words[8] = 1;
    Fuzz::new("line").cost(100).allowance(1 << 20).run(&[words], |bytes| {
        let mut script = Script(bytes);
        let memory = Memory::new("fuzz", 192 << 10).unwrap();
        let copy = memory.as_fd().try_clone_to_owned().unwrap();
        socket::send(&theirs, &[1], &[copy.as_fd()], false).unwrap();
        let mut line = Duplex::accept(ours.as_raw_fd()).unwrap();
        let foreign = Foreign::new(&memory);
        while !script.is_over() {
            let at = u64::from(script.byte()) * 8 % (6 * 128);
            foreign.write(at, &script.word().to_le_bytes());
            foreign.write((64 << 10) * u64::from(1 + script.byte() % 2), script.bytes(24));
            let _ = line.try_send(&mut Outgoing::new(&[1; 300]));
            while matches!(line.try_receive(), Ok(Some(_))) {}
        }
        while socket::try_receive(&theirs, &mut [0; 64]).is_ok() {}
    });
}

/// How often a case may go through the frames of a queue.
const STEPS: usize = 40;
/// What a case may put: with that, a queue has no reason to have more pages than this.
const PAGES: usize = 32 << 20;

#[test]
fn a_queue_gives_frames_or_an_error_whatever_is_in_its_memory() {
    // Each step: where, what, and what is done then.
    let step =
        |at: u16, word: u64, act: u8| [&at.to_le_bytes()[..], &word.to_le_bytes(), &[act]].concat();
    let quiet = |act| step(u16::MAX, 0, act);
    let mut valid = vec![[0, 1, 2, 1, 0, 3, 1, 1].map(quiet).concat()];
    // The words of the two ends, of those who sleep, and the tables; the first frames.
    let places = || (0..40).map(|word| word * 8).chain([4096, 4104, 0xf000, 0xf008]);
    for word in [1 << 30, !15] {
        let spoilt = |at| [quiet(0), quiet(3), step(at, word, 1), quiet(0), quiet(1)].concat();
        valid.extend(places().map(spoilt));
    }
    Fuzz::new("queue").cost(200).allowance(PAGES).run(&valid, |bytes| {
        let queue = Queue::new(None).unwrap();
        let foreign = Foreign::new(queue.descriptors().0);
        let first = first_segment(&foreign);
        let mut script = Script(bytes);
        for _ in 0..STEPS {
            if script.is_over() {
                break;
            }
            let at = u64::from(u16::from_le_bytes([script.byte(), script.byte()]));
            // From 0xf000 on: in the first segment, where frames are.
            let at = if at >= 0xf000 { first + (at - 0xf000) } else { at };
            let word = script.word();
            if at < first + 0xfff {
                foreign.write(at, &word.to_le_bytes());
            }
            act(&queue, script.byte());
        }
        let pages = foreign.resident();
        assert!(pages <= PAGES as u64, "{pages} bytes have pages");
    });
}

fn act(queue: &Queue, act: u8) {
    let frames: [(u32, &[u8]); 2] = [(1, &[7; 100]), (0, &[8; 70_000])];
    match act % 4 {
        0 => drop(queue.try_put(&frames[..1])),
        3 => drop(queue.try_put(&frames)),
        _ => {
            let Some(front) = queue.try_front() else { return };
            let _ = front.take(usize::from(act), |frame, body| {
                let mut bytes = vec![0; frame.len];
                body(&mut bytes)?;
                Ok::<_, Error>(())
            });
        }
    }
    let _ = (queue.len(), queue.is_full(), queue.unfinished(), queue.done(), queue.bound());
    if act & 0x80 != 0 {
        let _ = queue.watch();
    }
}

/// Where the first segment of a queue's memory is: the segments are all the rest, and a power of two.
fn first_segment(memory: &Foreign) -> u64 {
    let segments = memory.len() / SEGMENT as u64;
    memory.len() - (1 << segments.ilog2()) * SEGMENT as u64
}

#[test]
fn a_queue_is_opened_only_where_there_is_one() {
    Fuzz::new("memory of a queue").cost(60).run(&[vec![3, 0, 0]], |bytes| {
        let mut script = Script(bytes);
        let memory = Memory::new("fuzz", 1 + script.word() as usize % (1 << 40)).unwrap();
        Foreign::new(&memory).write(0, script.0);
        let event = Event::new().unwrap().as_fd().try_clone_to_owned().unwrap();
        let opened = Queue::open(memory.as_fd().try_clone_to_owned().unwrap(), event);
        if let Ok(queue) = opened {
            assert!(!queue.wait_frame(Instant::now() + Duration::ZERO));
        }
    });
}
