//! Locks and what else processes wait for, in tasks: they are the same ones there, and who dies with
//! them is told.

use std::time::{Duration, Instant};

use phalanx::sync::{Barrier, Condvar, Event, Lock, Once, RwLock, Semaphore};
use phalanx::{Pool, Process};

use crate::alone::alone;

fn in_time() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn die_with(all: (Lock, Semaphore, RwLock, Event)) {
    let held = (all.0.lock(), all.1.acquire(), all.2.write());
    all.3.set();
    std::mem::forget(held);
    std::process::abort();
}

#[test]
fn what_a_killed_process_held_is_acquired_by_the_next_one_who_is_told() {
    alone(|| {
        let all = (
            Lock::new().unwrap(),
            Semaphore::new(1, None).unwrap(),
            RwLock::new().unwrap(),
            Event::new().unwrap(),
        );
        let dying = Process::spawn(die_with, all.clone()).unwrap();
        let pid = dying.pid();
        assert!(all.3.wait_until(in_time()));
        assert_eq!(all.0.lock().unwrap_err().died().pid, pid);
        assert_eq!(all.1.acquire().unwrap_err().died().pid, pid);
        assert_eq!(all.2.read().unwrap_err().died().pid, pid);
        assert!(dying.join().is_err());
        assert!(all.0.lock().is_ok() && all.1.acquire().is_ok() && all.2.write().is_ok());
    });
}

fn die_waiting((barrier, event): (Barrier, Event)) {
    std::thread::spawn(move || barrier.wait());
    event.wait();
    std::process::abort();
}

#[test]
fn a_barrier_at_which_a_process_died_is_broken() {
    alone(|| {
        let (barrier, event) = (Barrier::new(3).unwrap(), Event::new().unwrap());
        let dying = Process::spawn(die_waiting, (barrier.clone(), event.clone())).unwrap();
        let pid = dying.pid();
        let end = in_time();
        while barrier.waiting() == 0 {
            assert!(Instant::now() < end, "nobody comes");
            std::thread::yield_now();
        }
        event.set();
        assert_eq!(barrier.wait_until(end).unwrap_err().died.unwrap().pid, pid);
        assert!(dying.join().is_err() && barrier.is_broken());
    });
}

fn take_turns((lock, changed, turns): (Lock, Condvar, Semaphore)) {
    let mut guard = lock.lock().unwrap();
    turns.release();
    guard = changed.wait(guard).unwrap();
    turns.release();
    drop(guard);
}

#[test]
fn tasks_of_a_pool_are_notified_one_by_one() {
    alone(|| {
        let (lock, changed) = (Lock::new().unwrap(), Condvar::new().unwrap());
        let turns = Semaphore::new(0, None).unwrap();
        let pool = Pool::new(2).unwrap();
        let tasks = [(); 2]
            .map(|()| pool.submit(take_turns, (lock.clone(), changed.clone(), turns.clone())));
        for _ in 0..2 {
            turns.acquire_until(in_time()).expect("they come").unwrap().forget();
        }
        for _ in 0..2 {
            changed.notify_one(&lock.lock().unwrap());
            turns.acquire_until(in_time()).expect("one is notified").unwrap().forget();
            assert_eq!(turns.value(), 0, "and only one");
        }
        for task in tasks {
            task.wait().unwrap();
        }
    });
}

#[test]
fn what_is_done_once_is_done_by_one_of_many() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let once = Once::new().unwrap();
        let did = pool.map(|once: Once| once.call(|_| ()), (0..20).map(|_| once.clone()));
        assert_eq!(did.unwrap().into_iter().filter(|did| *did).count(), 1);
    });
}
