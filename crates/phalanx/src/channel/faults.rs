//! Deaths inside of a queue's operations: real processes that are killed where `fault` says so.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::queue::{Pushed, Queue};
use crate::error::{Error, Result};
use crate::sync::faults::{killed, open, path_of, start_test, told};
use crate::sys::Event;

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

/// What the started process does. Not a test of its own.
#[test]
fn started() {
    let Some(told) = told() else { return };
    let [operation, place, memory] = &told[..] else { panic!("{told:?}") };
    // Nobody polls here: any event will do.
    let event = Event::new().unwrap().as_fd().try_clone_to_owned().unwrap();
    let queue = Queue::open(open(memory), event).unwrap();
    for _ in 0..20 {
        match &operation[..] {
            "put" => put(&queue, 9).unwrap(),
            _ => drop(take(&queue).unwrap()),
        }
    }
    panic!("{operation} came by {place} alive");
}

/// Has a process killed at `place` of `operation`.
fn kill(queue: &Queue, operation: &str, place: &str) {
    let memory = path_of(queue.descriptors().0);
    let told = format!("{operation}|{place}|{memory}");
    killed(start_test("channel::faults::started", &told));
}

/// The queue holds `expected`, in this order, and works.
fn holds(queue: &Queue, expected: &[u8], place: &str) {
    assert_eq!(queue.len(), expected.len() as u64, "{place}");
    put(queue, 1).unwrap();
    for byte in expected.iter().chain(&[1]) {
        assert_eq!(take(queue).unwrap(), *byte, "{place}");
    }
    // Many times round, so that a segment that was lost or is twice there would be seen.
    for round in 0..100 {
        put(queue, round).unwrap();
        put(queue, 200).unwrap();
        assert_eq!((take(queue).unwrap(), take(queue).unwrap()), (round, 200), "{place}");
    }
    assert!(queue.is_empty(), "{place}");
}

#[test]
fn one_killed_in_a_put_has_put_its_frame_whole_or_not_at_all() {
    for (place, there) in [
        ("stream: a segment is taken, and not in the table", false),
        ("stream: frames are written, and not published", false),
        ("stream: frames are half published", false),
        ("stream: frames are published, with the lock held", true),
        ("queue: a frame is put, before the wake-up", true),
    ] {
        let queue = Queue::new(None).unwrap();
        put(&queue, 5).unwrap();
        kill(&queue, "put", place);
        holds(&queue, if there { &[5, 9] } else { &[5] }, place);
    }
}

#[test]
fn one_killed_in_a_get_has_taken_its_frame_or_left_it() {
    for (place, taken) in [
        ("stream: frames are read, and not popped", false),
        ("stream: frames are half popped", false),
        ("stream: frames are popped, with the lock held", true),
        ("queue: a frame is taken, before the wake-up", true),
    ] {
        let queue = Queue::new(None).unwrap();
        (5..8).try_for_each(|byte| put(&queue, byte)).unwrap();
        kill(&queue, "get", place);
        holds(&queue, if taken { &[6, 7] } else { &[5, 6, 7] }, place);
    }
}

#[test]
fn one_killed_while_it_collects_segments_loses_none() {
    for place in [
        "stream: a segment is noted as free, and not counted",
        "stream: a segment is free, and not settled",
    ] {
        let queue = Queue::new(None).unwrap();
        (0..3).try_for_each(|byte| put(&queue, byte)).unwrap();
        (0..3).for_each(|byte| assert_eq!(take(&queue).unwrap(), byte));
        kill(&queue, "put", place);
        holds(&queue, &[], place);
    }
}

#[test]
fn one_who_waits_gets_what_was_put_by_one_killed_before_the_wake_up() {
    let queue = Queue::new(None).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| take(&queue));
        kill(&queue, "put", "queue: a frame is put, before the wake-up");
        assert_eq!(waiting.join().unwrap().unwrap(), 9);
    });
}

#[test]
fn one_who_waits_for_room_gets_what_was_made_by_one_killed_before_the_wake_up() {
    let queue = Queue::new(Some(1)).unwrap();
    put(&queue, 5).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            assert!(queue.wait_room(soon()));
            put(&queue, 6)
        });
        kill(&queue, "get", "queue: a frame is taken, before the wake-up");
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(take(&queue).unwrap(), 6);
}
