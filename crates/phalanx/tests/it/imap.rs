//! `imap` reads its input only so far ahead, and can be left at any moment.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use phalanx::Pool;

use crate::alone::alone;

#[test]
fn results_of_an_endless_input_come_in_order_and_it_is_read_with_measure() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let read = Cell::new(0);
        let input = (0_u64..).inspect(|_| read.set(read.get() + 1));
        let mut results = pool.imap(|n| n * 2, input);
        assert_eq!(read.get(), 0);
        for n in 0..50_000 {
            assert_eq!(results.next().unwrap().unwrap(), n * 2);
            assert!(read.get() - n <= 5000, "{} were read for {n} results", read.get());
        }
    });
}

#[test]
fn long_tasks_are_read_a_few_ahead() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let read = Cell::new(0);
        let input = (0..).inspect(|_| read.set(read.get() + 1));
        let slow = |n: u32| {
            thread::sleep(Duration::from_millis(20));
            n
        };
        assert_eq!(pool.imap(slow, input).take(10).filter(Result::is_ok).count(), 10);
        assert!(read.get() <= 20, "{} were read", read.get());
    });
}

#[test]
fn unordered_results_come_as_they_are_ready() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let slow = |n: u64| {
            thread::sleep(Duration::from_millis(if n == 0 { 200 } else { 1 }));
            n
        };
        let results: Vec<u64> = pool.imap_unordered(slow, 0..20).map(Result::unwrap).collect();
        assert_ne!(results[0], 0);
        assert_eq!(BTreeSet::from_iter(results), (0..20).collect());
    });
}

#[test]
fn it_can_be_left_half_way() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            assert_eq!(pool.imap(|n: u32| n + 1, 0..).nth(10).unwrap().unwrap(), 11);
            drop(pool.imap_unordered(|n: u32| n, 0..));
        }
        assert_eq!(pool.map(|n: u32| n, [5]).unwrap(), [5]);
        pool.join().unwrap();
    });
}

#[test]
fn a_failure_takes_its_own_place_only() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let fails = |n: u32| {
            assert!(n != 3);
            if n == 5 {
                std::process::exit(1);
            }
            n
        };
        let results: Vec<_> = pool.imap(fails, 0..10).collect();
        assert_eq!(results.len(), 10);
        assert!(results[3].as_ref().unwrap_err().is_task_failure());
        assert!(results[5].as_ref().unwrap_err().worker_died().is_some());
        assert!(
            [0, 1, 2, 4, 6, 7, 8, 9].iter().all(|n| *results[*n].as_ref().unwrap() == *n as u32)
        );
    });
}

#[test]
fn the_end_of_the_pool_ends_it_with_an_error() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let mut results = pool.imap(|n: u64| n, 0..);
        assert_eq!(results.next().unwrap().unwrap(), 0);
        pool.terminate().unwrap();
        let errors: Vec<_> = results.by_ref().filter_map(Result::err).collect();
        assert!(!errors.is_empty() && errors.iter().all(phalanx::Error::is_closed));
        assert!(results.next().is_none());
    });
}

#[test]
fn a_pool_that_closes_finishes_it() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let mut results = pool.imap(|n: u64| n, 0..1000);
        assert_eq!(results.next().unwrap().unwrap(), 0);
        pool.close().unwrap();
        assert_eq!(results.map(Result::unwrap).sum::<u64>(), 499_500);
        pool.join().unwrap();
    });
}
