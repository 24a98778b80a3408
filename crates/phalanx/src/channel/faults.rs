//! Deaths on the way from process to process: real processes that are killed where `fault` says so.
//!
//! | who dies | where | what the others find |
//! | --- | --- | --- |
//! | who puts into a queue, or gets | anywhere | the frame whole, or as if nothing had been done |
//! | who sends a message | before a byte of it has gone | the end of the connection |
//! | ... | when some has gone | the end, inside a message |
//! | ... | when all has gone | the message, then the end |
//! | who receives one | anywhere | EPIPE, at once |
//! | who has sent a descriptor | before it is handed over | an error that says so |
//! | ... | after that | the descriptor |
//! | who comes for a descriptor | anywhere | it is there for the next, unless it is for one alone and was asked for |
//!
//! No copy of a descriptor is left in any case, and nothing else: each point's toll is taken (`sync/toll.rs`).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::connection::{self, Connection};
use super::passing::{Handing, Passed, Passing, Scope, Tickets};
use super::queue::{Pushed, Queue};
use super::reading::from_bytes;
use crate::error::{Error, Result};
use crate::sync::faults::{command, killed, open, path_of, say, start_test, told};
use crate::sync::toll::{alone, toll};
use crate::sys::socket::wait_readable;
use crate::sys::{Event, monotonic};

const STARTED: &str = "channel::faults::started";
const NOWHERE: &str = "nowhere";

/// Larger than a segment, so that each frame takes some and gives some back.
const LARGE: usize = 200 << 10;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn put(queue: &Queue, byte: u8) -> Result<()> {
    let put = queue.put(&[(u32::from(byte), vec![byte; LARGE])], soon())?;
    assert_eq!(put, Pushed::Some(1));
    Ok(())
}

/// What is taken, once there is something: whole, or the test fails.
fn take(queue: &Queue) -> Result<u8> {
    assert!(queue.wait_frame(soon()), "nothing comes");
    let mut taken = None;
    let front = queue.front(soon()).expect("the right to take");
    front.take::<Error>(1, |frame, body| {
        let mut bytes = vec![0; frame.len];
        body(&mut bytes)?;
        assert!(bytes.len() == LARGE && bytes.iter().all(|byte| u32::from(*byte) == frame.kind));
        taken = bytes.first().copied();
        Ok(())
    })?;
    Ok(taken.expect("a frame"))
}

/// What the started processes do. Not a test of its own.
#[test]
fn started() {
    let Some(told) = told() else { return };
    let told: Vec<_> = told.iter().map(String::as_str).collect();
    match told[..] {
        ["send", _] => send(&Connection::new(Some(0))).unwrap(),
        ["receive", _] => receive(&Connection::new(Some(0))).unwrap(),
        ["host", _] => return host(),
        ["guest", NOWHERE, ticket] => std::process::exit(had(ticket).is_err().into()),
        ["guest", _, ticket] => drop(had(ticket)),
        [operation, _, memory] => use_queue(operation, memory),
        _ => {}
    }
    panic!("{told:?}: it came by alive");
}

fn use_queue(operation: &str, memory: &str) {
    // Nobody polls here: any event will do.
    let event = Event::new().unwrap().as_fd().try_clone_to_owned().unwrap();
    let queue = Queue::open(open(memory), event).unwrap();
    for _ in 0..20 {
        match operation {
            "put" => put(&queue, 9).unwrap(),
            _ => drop(take(&queue).unwrap()),
        }
    }
}

/// Has a process killed at `place` of `operation`.
fn kill(queue: &Queue, operation: &str, place: &str) {
    let memory = path_of(queue.descriptors().0);
    let told = format!("{operation}|{place}|{memory}");
    killed(start_test(STARTED, &told));
}

/// The queue holds `expected`, in this order, and works. Returns when all of that was had.
fn holds(queue: &Queue, expected: &[u8], place: &str) -> Duration {
    assert_eq!(queue.len(), expected.len() as u64, "{place}");
    put(queue, 1).unwrap();
    for byte in expected.iter().chain(&[1]) {
        assert_eq!(take(queue).unwrap(), *byte, "{place}");
    }
    let known = monotonic();
    queue.assert_whole(place);
    // Many times round, over what the death has left in the memory.
    for round in 0..100 {
        put(queue, round).unwrap();
        put(queue, 200).unwrap();
        assert_eq!((take(queue).unwrap(), take(queue).unwrap()), (round, 200), "{place}");
    }
    assert!(queue.is_empty(), "{place}");
    queue.assert_whole(place);
    known
}

#[test]
fn one_killed_in_a_put_has_put_its_frame_whole_or_not_at_all() {
    alone(|| {
        for (place, there) in [
            ("stream: a segment is taken, and not in the table", false),
            ("stream: frames are written, and not published", false),
            ("stream: frames are half published", false),
            ("stream: frames are published, with the lock held", true),
            ("queue: a frame is put, before the wake-up", true),
        ] {
            toll(place, || {
                let queue = Queue::new(None).unwrap();
                put(&queue, 5).unwrap();
                kill(&queue, "put", place);
                holds(&queue, if there { &[5, 9] } else { &[5] }, place)
            });
        }
    });
}

#[test]
fn one_killed_in_a_get_has_taken_its_frame_or_left_it() {
    alone(|| {
        for (place, taken) in [
            ("stream: frames are read, and not popped", false),
            ("stream: frames are half popped", false),
            ("stream: frames are popped, with the lock held", true),
            ("queue: a frame is taken, before the wake-up", true),
        ] {
            toll(place, || {
                let queue = Queue::new(None).unwrap();
                (5..8).try_for_each(|byte| put(&queue, byte)).unwrap();
                kill(&queue, "get", place);
                holds(&queue, if taken { &[6, 7] } else { &[5, 6, 7] }, place)
            });
        }
    });
}

#[test]
fn one_killed_while_it_collects_segments_loses_none() {
    alone(|| {
        for place in [
            "stream: a segment is noted as free, and not counted",
            "stream: a segment is free, and not settled",
        ] {
            toll(place, || {
                let queue = Queue::new(None).unwrap();
                (0..3).try_for_each(|byte| put(&queue, byte)).unwrap();
                (0..3).for_each(|byte| assert_eq!(take(&queue).unwrap(), byte));
                kill(&queue, "put", place);
                holds(&queue, &[], place)
            });
        }
    });
}

#[test]
fn one_who_waits_gets_what_was_put_by_one_killed_before_the_wake_up() {
    alone(|| {
        let place = "queue: a frame is put, before the wake-up";
        toll(place, || {
            let queue = Queue::new(None).unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| (take(&queue), monotonic()));
                kill(&queue, "put", place);
                let (taken, known) = waiting.join().unwrap();
                assert_eq!(taken.unwrap(), 9);
                known
            })
        });
    });
}

#[test]
fn one_who_waits_for_room_gets_what_was_made_by_one_killed_before_the_wake_up() {
    alone(|| {
        let place = "queue: a frame is taken, before the wake-up";
        toll(place, || {
            let queue = Queue::new(Some(1)).unwrap();
            put(&queue, 5).unwrap();
            let known = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    assert!(queue.wait_room(soon()));
                    (put(&queue, 6), monotonic())
                });
                kill(&queue, "get", place);
                let (put, known) = waiting.join().unwrap();
                put.unwrap();
                known
            });
            assert_eq!(take(&queue).unwrap(), 6);
            known
        });
    });
}

/// Bytes of a message: more than a socket holds.
const HUGE: usize = 4 << 20;

fn send(end: &Connection) -> Result<()> {
    let bytes = vec![7; HUGE];
    end.send(HUGE)?.write_until(&mut &bytes[..], soon())?.expect("room in time");
    Ok(())
}

fn receive(end: &Connection) -> Result<()> {
    let mut receiving = end.receive()?;
    let mut bytes = vec![0; receiving.length_until(soon())?.expect("a header in time")];
    receiving.read_until(&mut bytes, &mut 0, soon())?.expect("a message in time");
    assert!(bytes == vec![7; HUGE]);
    Ok(())
}

/// Our end of a connection whose other end only a process has that is killed at `place`.
fn converse(operation: &str, place: &str) -> (OwnedFd, std::process::Child) {
    let (ours, theirs) = connection::pair().unwrap();
    let told = format!("{operation}|{place}");
    (ours, command(STARTED, &told).stdin(theirs).spawn().unwrap())
}

#[test]
fn a_message_of_one_who_is_killed_is_whole_or_the_end_is_told_at_once() {
    alone(|| {
        for (place, is_whole, is_begun) in [
            ("connection: a message is begun, and not sent", false, false),
            ("connection: some of a message is sent", false, true),
            ("connection: a message is sent", true, true),
        ] {
            toll(place, || {
                let (ours, child) = converse("send", place);
                let end = Connection::new(Some(ours.as_raw_fd()));
                if is_whole {
                    receive(&end).unwrap();
                }
                let error = receive(&end).expect_err("nobody is there");
                let known = monotonic();
                assert!(error.is_end(), "{place}: {error}");
                assert_eq!(error.is_end_inside(), is_begun && !is_whole, "{place}");
                killed(child);
                known
            });
        }
    });
}

#[test]
fn one_who_sends_to_one_who_is_killed_is_told_at_once() {
    alone(|| {
        for (place, gets_one) in [
            ("connection: a message is awaited", false),
            ("connection: a header is received", false),
            ("connection: some of a message is received", false),
            ("connection: a message is received", true),
        ] {
            toll(place, || {
                let (ours, child) = converse("receive", place);
                let end = Connection::new(Some(ours.as_raw_fd()));
                if gets_one {
                    send(&end).unwrap();
                }
                let error = send(&end).expect_err("nobody is there");
                let known = monotonic();
                let errno = error.os_error().and_then(std::io::Error::raw_os_error);
                assert_eq!(errno, Some(libc::EPIPE), "{place}");
                killed(child);
                known
            });
        }
    });
}

fn written(fd: impl AsFd, once: bool) -> (String, Tickets) {
    let fd = fd.as_fd();
    let (bytes, tickets) = Scope::Held(Vec::new()).run(|| match once {
        true => postcard::to_stdvec(&Handing(fd)),
        false => postcard::to_stdvec(&Passing(fd)),
    });
    (bytes.unwrap().iter().map(|byte| format!("{byte:02x}")).collect(), tickets)
}

/// The descriptor of a ticket, or why there is none.
fn had(ticket: &str) -> std::result::Result<OwnedFd, String> {
    let digits = ticket.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let bytes: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    from_bytes(&bytes).map(|Passed(fd)| fd).map_err(|why| why.to_string())
}

/// Hands out its standard input.
fn host() {
    let (ticket, _tickets) = written(std::io::stdin(), false);
    say(&ticket);
    loop {
        std::thread::park();
    }
}

/// Nobody can write any more.
fn has_ended(mut reader: std::io::PipeReader) -> bool {
    wait_readable(&reader, Some(soon())).unwrap() && reader.read(&mut [0]).unwrap() == 0
}

/// Has a host killed at `place`, and comes for its descriptor.
fn come_for(place: &str, is_had: Option<bool>) -> Duration {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let told = format!("host|{place}");
    let host = command(STARTED, &told).stdin(writer).stderr(Stdio::piped()).spawn();
    let mut host = host.unwrap();
    let mut ticket = String::new();
    BufReader::new(host.stderr.take().unwrap()).read_line(&mut ticket).unwrap();
    assert_eq!(ticket.is_empty(), is_had.is_none(), "{place}");
    let got = is_had.map(|_| had(ticket.trim()));
    let known = monotonic();
    killed(host);
    match got {
        Some(Ok(fd)) => {
            assert_eq!(is_had, Some(true), "{place}");
            std::fs::File::from(fd).write_all(b"x").unwrap();
            assert_eq!(reader.read(&mut [0]).unwrap(), 1, "{place}");
        }
        Some(Err(why)) => {
            assert!(why.contains("the process has ended"), "{place}: {why}");
            assert_eq!(is_had, Some(false), "{place}");
        }
        None => {}
    }
    assert!(has_ended(reader), "{place}: a copy is left");
    known
}

#[test]
fn a_descriptor_of_one_who_is_killed_is_had_or_missed_at_once() {
    alone(|| {
        for (place, is_had) in [
            ("passing: a ticket is issued, and not written", None),
            ("passing: a guest has spoken, and is not heard", Some(false)),
            ("passing: a descriptor is taken, and not handed over", Some(false)),
            ("passing: a descriptor is handed over", Some(true)),
        ] {
            toll(place, || come_for(place, is_had));
        }
    });
}

#[test]
fn a_descriptor_that_one_came_for_who_is_killed_is_there_for_the_next_or_gone() {
    alone(|| {
        for (place, has_asked) in [
            ("passing: a guest has come, and has not spoken", false),
            ("passing: a guest has spoken", true),
            ("passing: a guest has what it came for", true),
        ] {
            for once in [false, true] {
                let case = format!("{place}, once: {once}");
                toll(&case, || {
                    let (reader, writer) = std::io::pipe().unwrap();
                    let (ticket, tickets) = written(&writer, once);
                    drop(writer);
                    killed(start_test(STARTED, &format!("guest|{place}|{ticket}")));
                    let mut next = command(STARTED, &format!("guest|{NOWHERE}|{ticket}"));
                    let next = next.stderr(Stdio::null()).status().unwrap();
                    let known = monotonic();
                    assert_eq!(next.success(), !(once && has_asked), "{case}");
                    drop(tickets);
                    assert!(has_ended(reader), "{case}: a copy is left");
                    known
                });
            }
        }
    });
}
