//! Pools of two workers: phalanx, and procspawn, which is the only other one.
//!
//! `pool death`, say, runs those benches that have a word in their names.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use phalanx::{Pool, Process};
use phalanx_benches::{criterion, group, percentile, time, touch};
use serde_bytes::ByteBuf;

const IN_FLIGHT: usize = 64;

fn square(n: u64) -> u64 {
    n.wrapping_mul(n)
}

/// Arithmetic for so many rounds, which the compiler cannot leave out.
fn spin((start, rounds): (u64, u64)) -> u64 {
    (0..rounds).fold(start | 1, |hash, _| {
        black_box(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (hash >> 29))
    })
}

fn take(bytes: Vec<u8>) -> u64 {
    touch(&bytes)
}

fn take_buffer(bytes: ByteBuf) -> u64 {
    touch(&bytes)
}

fn give(len: usize) -> Vec<u8> {
    vec![7; len]
}

fn give_buffer(len: usize) -> ByteBuf {
    ByteBuf::from(vec![7; len])
}

fn abort(_: u64) -> u64 {
    std::process::abort()
}

/// Two workers that have run some tasks.
fn ours() -> Pool {
    let pool = Pool::new(2).expect("a pool");
    (0..500).for_each(|n| _ = pool.submit(square, n).wait().expect("a square"));
    pool
}

fn theirs() -> procspawn::Pool {
    let pool = procspawn::Pool::new(2).expect("a pool");
    (0..500).for_each(|n| _ = pool.spawn(n, square).join().expect("a square"));
    pool
}

/// Begins `count` calls, of which so many are under way at any time.
fn in_flight<H>(limit: usize, count: u64, begin: impl Fn(u64) -> H, end: impl Fn(H)) {
    let mut queue = VecDeque::with_capacity(limit);
    for n in 0..count {
        if queue.len() == limit {
            queue.pop_front().map(&end);
        }
        queue.push_back(begin(n));
    }
    queue.into_iter().for_each(end);
}

fn round_trips(criterion: &mut Criterion) {
    let (ours, theirs) = (ours(), theirs());
    for percent in [50, 99] {
        let mut group = group(criterion, &format!("pool, round trip p{percent}"));
        group.bench_function("phalanx", |bencher| {
            bencher.iter_custom(|iters| {
                percentile(percent, iters, |n| drop(ours.submit(square, n).wait()))
            });
        });
        group.bench_function("procspawn", |bencher| {
            bencher.iter_custom(|iters| {
                percentile(percent, iters, |n| drop(theirs.spawn(n, square).join()))
            });
        });
    }
}

fn throughput(criterion: &mut Criterion) {
    let (ours, theirs) = (ours(), theirs());
    let mut group = group(criterion, "pool, tasks");
    group.throughput(Throughput::Elements(1));
    group.bench_function("phalanx, 64 in flight", |bencher| {
        bencher.iter_custom(|iters| {
            let begin = |n| ours.submit(square, n);
            time(|| in_flight(IN_FLIGHT, iters, begin, |handle| drop(handle.wait())))
        });
    });
    group.bench_function("procspawn, 64 in flight", |bencher| {
        bencher.iter_custom(|iters| {
            let begin = |n| theirs.spawn(n, square);
            time(|| in_flight(IN_FLIGHT, iters, begin, |handle| drop(handle.join())))
        });
    });
    group.bench_function("phalanx, map", |bencher| {
        bencher.iter_custom(|iters| time(|| drop(ours.map(square, 0..iters))));
    });
    group.bench_function("phalanx, imap", |bencher| {
        bencher.iter_custom(|iters| time(|| ours.imap(square, 0..iters).for_each(drop)));
    });
    group.throughput(Throughput::Elements(100_000));
    group.bench_function("phalanx, 100,000 in flight", |bencher| {
        bencher.iter_custom(|iters| {
            let begin = |n| ours.submit(square, n);
            let all = || in_flight(100_000, 100_000, begin, |handle| drop(handle.wait()));
            time(|| (0..iters).for_each(|_| all()))
        });
    });
}

/// From which length on two workers beat one thread.
fn worth(criterion: &mut Criterion) {
    let (ours, theirs) = (ours(), theirs());
    let rounds_a_us = 20.0 / time(|| _ = spin((3, 20_000_000))).as_secs_f64();
    for micros in [5_u32, 20, 100] {
        let rounds = (f64::from(micros) * rounds_a_us) as u64;
        let mut group = group(criterion, &format!("pool, tasks of {micros} us"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("one thread", |bencher| {
            bencher.iter_custom(|iters| {
                time(|| (0..iters).for_each(|n| _ = black_box(spin((n, rounds)))))
            });
        });
        group.bench_function("phalanx", |bencher| {
            bencher.iter_custom(|iters| {
                let begin = |n| ours.submit(spin, (n, rounds));
                time(|| in_flight(IN_FLIGHT, iters, begin, |handle| drop(handle.wait())))
            });
        });
        group.bench_function("procspawn", |bencher| {
            bencher.iter_custom(|iters| {
                let begin = |n| theirs.spawn((n, rounds), spin);
                time(|| in_flight(IN_FLIGHT, iters, begin, |handle| drop(handle.join())))
            });
        });
    }
}

/// The vectors are made before the clock runs: what is measured is their way.
fn bytes(criterion: &mut Criterion) {
    let (ours, theirs) = (ours(), theirs());
    for mib in [1, 64] {
        let len = mib << 20;
        let vectors = |iters| (0..iters).map(|_| vec![1; len]).collect::<Vec<Vec<u8>>>();
        let mut there = group(criterion, &format!("pool, {mib} MiB there"));
        there.throughput(Throughput::Bytes(len as u64));
        there.bench_function("phalanx", |bencher| {
            bencher.iter_custom(|iters| {
                let send = |bytes| drop(ours.submit(take, bytes).wait());
                let vectors = vectors(iters);
                time(|| vectors.into_iter().for_each(send))
            });
        });
        there.bench_function("procspawn", |bencher| {
            bencher.iter_custom(|iters| {
                let send = |bytes| drop(theirs.spawn(bytes, take).join());
                let vectors = vectors(iters);
                time(|| vectors.into_iter().for_each(send))
            });
        });
        there.bench_function("procspawn, serde_bytes", |bencher| {
            bencher.iter_custom(|iters| {
                let send = |bytes| drop(theirs.spawn(ByteBuf::from(bytes), take_buffer).join());
                let vectors = vectors(iters);
                time(|| vectors.into_iter().for_each(send))
            });
        });
        drop(there);
        let mut back = group(criterion, &format!("pool, {mib} MiB back"));
        back.throughput(Throughput::Bytes(len as u64));
        back.bench_function("phalanx", |bencher| {
            bencher.iter(|| touch(&ours.submit(give, len).wait().expect("bytes")));
        });
        back.bench_function("procspawn", |bencher| {
            bencher.iter(|| touch(&theirs.spawn(len, give).join().expect("bytes")));
        });
        back.bench_function("procspawn, serde_bytes", |bencher| {
            bencher.iter(|| touch(&theirs.spawn(len, give_buffer).join().expect("bytes")));
        });
    }
}

/// How long until the caller is told. Both workers are at their places again before the next.
fn deaths(criterion: &mut Criterion) {
    let (ours, theirs) = (ours(), theirs());
    let mut group = group(criterion, "pool, a death told");
    group.bench_function("phalanx", |bencher| {
        bencher.iter_custom(|iters| {
            let mut told = Duration::ZERO;
            for _ in 0..iters {
                told += time(|| assert!(ours.submit(abort, 0).wait().is_err()));
                let pause = |()| std::thread::sleep(Duration::from_millis(5));
                ours.try_map(pause, [(); 4]).expect("four pauses");
            }
            told
        });
    });
    group.bench_function("procspawn", |bencher| {
        bencher.iter_custom(|iters| {
            let mut told = Duration::ZERO;
            for _ in 0..iters {
                let start = Instant::now();
                assert!(theirs.spawn(0, abort).join().is_err());
                told += start.elapsed();
                let pause = |()| std::thread::sleep(Duration::from_millis(5));
                let pauses: Vec<_> = (0..4).map(|_| theirs.spawn((), pause)).collect();
                pauses.into_iter().for_each(|pause| pause.join().expect("a pause"));
            }
            told
        });
    });
}

fn starts(criterion: &mut Criterion) {
    let mut pools = group(criterion, "pool, new and two results");
    pools.bench_function("phalanx", |bencher| {
        let first = || {
            let pool = Pool::new(2).expect("a pool");
            let handles = [3, 4].map(|n| pool.submit(square, n));
            handles.into_iter().for_each(|handle| _ = handle.wait().expect("a square"));
            pool
        };
        bencher.iter_custom(|iters| opened(iters, first));
    });
    pools.bench_function("procspawn", |bencher| {
        let first = || {
            let pool = procspawn::Pool::new(2).expect("a pool");
            let handles = [3, 4].map(|n| pool.spawn(n, square));
            handles.into_iter().for_each(|handle| _ = handle.join().expect("a square"));
            pool
        };
        bencher.iter_custom(|iters| opened(iters, first));
    });
    drop(pools);
    let mut processes = group(criterion, "a process to its result, p50");
    processes.bench_function("phalanx", |bencher| {
        let run = |n| _ = Process::spawn(square, n).and_then(Process::join).expect("a square");
        bencher.iter_custom(|iters| percentile(50, iters, run));
    });
    processes.bench_function("procspawn", |bencher| {
        let run = |n| _ = procspawn::spawn(n, square).join().expect("a square");
        bencher.iter_custom(|iters| percentile(50, iters, run));
    });
}

/// The time of opening, without that of closing.
fn opened<P>(iters: u64, open: impl Fn() -> P) -> Duration {
    let one = |_| {
        let start = Instant::now();
        let pool = open();
        let took = start.elapsed();
        drop(pool);
        took
    };
    (0..iters).map(one).sum()
}

fn main() {
    phalanx::init();
    procspawn::init();
    let mut criterion = criterion();
    round_trips(&mut criterion);
    throughput(&mut criterion);
    worth(&mut criterion);
    bytes(&mut criterion);
    deaths(&mut criterion);
    starts(&mut criterion);
    criterion.final_summary();
}
