//! A pool runs tasks elsewhere and gives back what they return.

use std::collections::BTreeMap;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use phalanx::{Handle, Pool};

use crate::alone::{Beginnings, PATIENCE, alone, begin, descriptors, hang};

fn square(n: u64) -> u64 {
    n * n
}

#[test]
fn results_come_in_the_order_of_the_items() {
    alone(|| {
        let pool = Pool::new(3).unwrap();
        let items = 0..10_000;
        let expected: Vec<u64> = items.clone().map(square).collect();
        assert_eq!(pool.map(square, items.clone()).unwrap(), expected);
        let results: Vec<u64> =
            pool.try_map(square, items).unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(results, expected);
        assert!(pool.map(square, []).unwrap().is_empty());
    });
}

#[test]
fn a_task_is_a_function_or_a_closure_with_any_values() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        assert_eq!(pool.submit(|(a, b): (u8, i64)| i64::from(a) * b, (3, -4)).wait().unwrap(), -12);
        assert_eq!(
            pool.submit(|text: String| text.to_uppercase(), "abc".to_string()).wait().unwrap(),
            "ABC"
        );
        let parsed = pool.map(|text: String| text.parse::<u8>().ok(), ["7", "x"].map(String::from));
        assert_eq!(parsed.unwrap(), [Some(7), None]);
        assert_ne!(pool.submit(|()| std::process::id(), ()).wait().unwrap(), std::process::id());
    });
}

#[test]
fn long_and_short_items_balance() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let pids = pool.map(
            |n: u64| {
                thread::sleep(Duration::from_millis(if n == 0 { 300 } else { 1 }));
                std::process::id()
            },
            0..100,
        );
        let pids = pids.unwrap();
        // Whoever had the long one did little else.
        assert!(pids.iter().filter(|pid| **pid == pids[0]).count() < 20, "{pids:?}");
    });
}

#[test]
fn many_threads_use_one_pool() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        thread::scope(|scope| {
            for thread in 0..8_u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for n in 0..500 {
                        assert_eq!(
                            pool.submit(square, thread * n).wait().unwrap(),
                            square(thread * n)
                        );
                    }
                });
            }
        });
    });
}

#[test]
fn a_million_tasks_in_flight_take_no_descriptor() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let before = descriptors();
        let handles: Vec<_> = (0..1_000_000).map(|n| pool.submit(square, n)).collect();
        assert!(descriptors() <= before);
        for (n, handle) in (0..).zip(handles) {
            assert_eq!(handle.wait().unwrap(), square(n));
        }
    });
}

#[test]
fn a_handle_can_be_asked_and_waited_for_in_time() {
    alone(|| {
        let (pool, beginnings) = (Pool::new(1).unwrap(), Beginnings::new());
        let mut long = pool.submit(hang, beginnings.name.clone());
        beginnings.wait();
        assert!(!long.is_ready());
        assert!(long.wait_timeout(Duration::from_millis(20)).unwrap_err().is_timeout());
        drop(pool);
        assert!(long.is_ready());
        assert!(long.wait_timeout(PATIENCE).unwrap_err().is_closed());
        assert!(long.wait_timeout(PATIENCE).unwrap_err().is_invalid());
    });
}

#[test]
fn dropping_a_handle_does_not_stop_its_task() {
    alone(|| {
        let (pool, beginnings) = (Pool::new(1).unwrap(), Beginnings::new());
        let worker = pool.submit(|()| std::process::id(), ()).wait().unwrap();
        drop(pool.submit(|()| thread::sleep(Duration::from_millis(20)), ()));
        drop(pool.submit(|name: String| begin(&name), beginnings.name.clone()));
        assert_eq!(beginnings.wait(), worker);
    });
}

/// An executor: it sleeps until it is woken.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        thread::park_timeout(PATIENCE);
    }
}

#[test]
fn a_handle_is_a_future_without_a_runtime() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let sum = block_on(async {
            let mut sum = pool.submit(slow, 1).await? + pool.submit(slow, 2).await?;
            let handles: Vec<Handle<u64>> = (0..1000).map(|n| pool.submit(square, n)).collect();
            for handle in handles {
                sum += handle.await?;
            }
            phalanx::Result::Ok(sum)
        });
        assert_eq!(sum.unwrap(), 3 + (0..1000).map(square).sum::<u64>());
        fn slow(n: u64) -> u64 {
            thread::sleep(Duration::from_millis(20));
            n
        }
    });
}

#[test]
fn a_closed_pool_refuses_tasks_and_ends_those_it_has() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let slow = |n: u64| {
            thread::sleep(Duration::from_millis(5));
            n
        };
        let handles: Vec<_> = (0..20).map(|n| pool.submit(slow, n)).collect();
        pool.close().unwrap();
        assert!(pool.submit(square, 1).wait().unwrap_err().is_closed());
        assert!(pool.map(square, []).unwrap_err().is_closed());
        assert!(pool.imap(square, 0..3).next().unwrap().unwrap_err().is_closed());
        pool.join().unwrap();
        assert!(handles.iter().all(Handle::is_ready));
        assert_eq!(handles.into_iter().map(|handle| handle.wait().unwrap()).sum::<u64>(), 190);
    });
}

#[test]
fn the_end_of_a_pool_is_told_to_those_who_wait() {
    alone(|| {
        let (pool, beginnings) = (Pool::new(1).unwrap(), Beginnings::new());
        let (running, waiting) =
            (pool.submit(hang, beginnings.name.clone()), pool.submit(square, 1));
        beginnings.wait();
        let waiter = thread::spawn(move || waiting.wait().unwrap_err());
        pool.terminate().unwrap();
        assert!(running.wait().unwrap_err().is_closed());
        assert_eq!(waiter.join().unwrap().to_string(), "the pool `phalanx-pool` was terminated");
        assert!(pool.submit(square, 1).wait().unwrap_err().is_closed());
    });
}

#[test]
fn an_initializer_readies_every_worker() {
    alone(|| {
        use std::sync::atomic::{AtomicU64, Ordering};
        static READY: AtomicU64 = AtomicU64::new(0);
        let pool = Pool::builder()
            .processes(2)
            .initializer_with(|n| READY.store(n, Ordering::Relaxed), 7)
            .max_tasks_per_worker(1)
            .build()
            .unwrap();
        let seen = pool.try_map(|()| READY.load(Ordering::Relaxed), [(); 6]).unwrap();
        assert!(seen.into_iter().all(|seen| seen.unwrap() == 7));
        assert_eq!(READY.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn an_initializer_that_panics_is_one_clear_error() {
    alone(|| {
        let pool =
            Pool::builder().processes(2).initializer(|| panic!("no licence")).build().unwrap();
        let handles = [pool.submit(square, 1), pool.submit(square, 2)];
        for error in handles.map(|handle| handle.wait().unwrap_err()) {
            assert!(error.is_initializer_failure());
            assert!(error.to_string().contains("no licence"), "{error}");
            assert!(error.to_string().contains("pool.rs"), "{error}");
        }
        assert!(pool.map(square, [1]).unwrap_err().is_initializer_failure());
        assert!(pool.join().unwrap_err().is_initializer_failure());
    });
}

#[test]
fn an_initializer_that_dies_is_one_clear_error() {
    alone(|| {
        let dies = || std::process::exit(9);
        let pool = Pool::builder().processes(1).initializer(dies).build().unwrap();
        let error = pool.submit(square, 1).wait().unwrap_err();
        assert_eq!(error.worker_died().unwrap().exit.unwrap().code(), 9);
        assert!(error.to_string().contains("while starting"), "{error}");
    });
}

#[test]
fn a_worker_is_replaced_after_so_many_tasks() {
    alone(|| {
        let pool = Pool::builder().processes(1).max_tasks_per_worker(2).build().unwrap();
        let mut tasks = BTreeMap::new();
        for pid in pool.try_map(|()| std::process::id(), [(); 6]).unwrap() {
            *tasks.entry(pid.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(tasks.into_values().collect::<Vec<_>>(), [2, 2, 2]);
    });
}

#[test]
fn a_pool_in_a_worker_of_a_pool_works() {
    alone(|| {
        let inner =
            |n: u64| Pool::new(2).unwrap().map(square, 0..n).unwrap().into_iter().sum::<u64>();
        let pool = Pool::new(2).unwrap();
        assert_eq!(pool.map(inner, [3, 4]).unwrap(), [5, 14]);
    });
}

#[test]
fn a_pool_without_workers_is_refused() {
    assert!(Pool::new(0).unwrap_err().is_invalid());
}

#[test]
fn what_a_task_prints_reaches_the_terminal() {
    let me = std::env::current_exe().unwrap();
    let name = "pool::prints_from_a_task";
    let run = Command::new(me).args(["--exact", name, "--ignored"]).output().unwrap();
    let printed = String::from_utf8(run.stdout).unwrap();
    assert!(printed.contains("a line\nno line"), "{printed}");
}

#[test]
#[ignore = "run by another"]
fn prints_from_a_task() {
    let pool = Pool::new(1).unwrap();
    let prints = |()| {
        println!("a line");
        print!("no line");
    };
    pool.submit(prints, ()).wait().unwrap();
}
