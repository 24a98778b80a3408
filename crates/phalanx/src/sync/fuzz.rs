//! Locks and what else is waited for, when their words are not what they were; see `crate::fuzz`.

use std::os::fd::AsFd;
use std::time::Instant;

use super::*;
use crate::fuzz::{Foreign, Fuzz, Script};
use crate::sys::{Memory, ProcessId};

/// As many bytes of words as are spoilt.
const WORDS: u16 = 2048;

/// The word that names a holder. One that names a process which lives is waited for, by whoever does so
/// without a deadline.
const HOLD: u16 = 8;

/// Spoils the words of an object from the `first` byte on, and uses it after each; nobody else has it.
fn spoilt<T: Shared>(name: &'static str, first: u16, act: impl Fn(&T, u8)) {
    let memory = Memory::new("fuzz", 64 << 10).unwrap();
    let arena = Arena::open(memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let foreign = Foreign::new(&memory);
    let step =
        |at: u16, word: u64, act: u8| [&at.to_le_bytes()[..], &word.to_le_bytes(), &[act]].concat();
    let own = ProcessId::own().bits();
    let valid = |word| {
        let places = (0..5).map(|at| step(16 * at, word, at as u8));
        places.chain([step(0, 0, 5), step(8, own, 6)]).collect::<Vec<_>>().concat()
    };
    let words = [0, 1, own, own ^ 1 << 40, 1 << 32, u64::MAX].map(valid);
    Fuzz::new(name).cost(60).run(&words, |bytes| {
        foreign.write(0, &[0; WORDS as usize + 8]);
        let mut script = Script(bytes);
        let object = T::open(&arena, 0).unwrap();
        for _ in 0..16 {
            let at = u16::from_le_bytes([script.byte(), script.byte()]) % (WORDS / 4) * 4;
            foreign.write(at.max(first).into(), &script.word().to_le_bytes());
            act(&object, script.byte());
            if script.is_over() {
                break;
            }
        }
    });
}

#[test]
fn a_spoilt_lock_is_had_or_not() {
    spoilt("lock", 0, |lock: &Lock, act| match act % 3 {
        0 => drop(lock.try_lock()),
        1 => drop(lock.lock_until(Instant::now())),
        _ => assert!(!lock.is_ours() || lock.is_locked()),
    });
}

#[test]
fn a_spoilt_semaphore_has_units_or_not() {
    spoilt("semaphore", 0, |semaphore: &Semaphore, act| match act % 4 {
        0 => drop(semaphore.try_acquire()),
        1 => drop(semaphore.acquire_raw(Some(Instant::now()))),
        2 => drop(semaphore.release()),
        _ => drop((semaphore.value(), semaphore.bound())),
    });
}

#[test]
fn a_spoilt_rwlock_is_had_or_not() {
    spoilt("rwlock", 0, |lock: &RwLock, act| match act % 4 {
        0 => drop(lock.try_read()),
        1 => drop(lock.try_write()),
        2 => drop(lock.read_until(Instant::now())),
        _ => drop(lock.write_until(Instant::now())),
    });
}

#[test]
fn a_spoilt_event_is_set_or_not() {
    spoilt("event", 0, |event: &Event, act| match act % 4 {
        0 => event.set(),
        1 => event.clear(),
        2 => drop(event.wait_until(Instant::now())),
        _ => drop((event.is_set(), event.now())),
    });
}

#[test]
fn a_spoilt_barrier_is_met_or_broken() {
    spoilt("barrier", HOLD, |barrier: &Barrier, act| match act % 5 {
        0 => drop(barrier.wait_until(Instant::now())),
        1 => barrier.abort(),
        2 => barrier.reset(),
        _ => drop((barrier.waiting(), barrier.is_broken())),
    });
}

#[test]
fn those_who_wait_at_a_spoilt_place_are_notified_or_not() {
    spoilt("waiters", 0, |waiters: &Waiters, act| match act % 4 {
        0 => {
            let turn = waiters.come();
            if waiters.wait(turn, Some(Instant::now())).is_err() {
                waiters.leave(turn);
            }
        }
        1 => drop(waiters.notify(usize::from(act))),
        2 => drop(waiters.notify(usize::MAX)),
        _ => drop(waiters.count()),
    });
}

#[test]
fn a_spoilt_gathering_counts_something() {
    spoilt("gathering", 0, |gathering: &Gathering, act| match act % 4 {
        0 => gathering.come(),
        1 => gathering.leave(),
        2 => drop(gathering.settle()),
        _ => drop((gathering.count(), gathering.state())),
    });
}
