//! What a pool of two workers costs and gives: `cargo bench -p phalanx`.
//!
//! ```text
//! pool [CASE...]     startup roundtrip pipelined flight map breakeven death bytes process
//! ```
//!
//! Prints one line a number. `--quick` runs a tenth of everything.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use phalanx::{Handle, Pool, Process};

fn square(n: u64) -> u64 {
    n.wrapping_mul(n)
}

/// Arithmetic for so many rounds, which the compiler cannot leave out.
fn spin((start, rounds): (u64, u64)) -> u64 {
    (0..rounds).fold(start | 1, |hash, _| {
        std::hint::black_box(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (hash >> 29))
    })
}

fn touch(bytes: Vec<u8>) -> u64 {
    bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum()
}

fn fill(len: usize) -> Vec<u8> {
    vec![7; len]
}

fn abort(_: ()) {
    std::process::abort();
}

fn say(what: &str, value: f64, unit: &str) {
    println!("{what:<44} {value:>14.3} {unit}");
}

fn percentiles(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    for percent in [50, 99] {
        let time = times[times.len() * percent / 100];
        say(&format!("{what} p{percent}"), time.as_secs_f64() * 1e6, "us");
    }
}

fn time_of(count: usize, mut work: impl FnMut(u64)) -> Vec<Duration> {
    let timed = |n| {
        let start = Instant::now();
        work(n);
        start.elapsed()
    };
    (0..count as u64).map(timed).collect()
}

/// Two workers that have run some tasks.
fn warm() -> phalanx::Result<Pool> {
    let pool = Pool::new(2)?;
    for n in 0..500 {
        pool.submit(square, n).wait()?;
    }
    Ok(pool)
}

fn startup(scale: usize) -> phalanx::Result<()> {
    let mut times = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale * 5 {
        let start = Instant::now();
        let pool = Pool::new(2)?;
        times.0.push(start.elapsed());
        let handles = [3, 4].map(|n| pool.submit(square, n));
        handles.into_iter().try_for_each(|handle| handle.wait().map(drop))?;
        times.1.push(start.elapsed());
        let start = Instant::now();
        drop(pool);
        times.2.push(start.elapsed());
    }
    percentiles("Pool::new(2)", times.0);
    percentiles("Pool::new(2) and two results", times.1);
    percentiles("drop of a pool of 2", times.2);
    Ok(())
}

fn roundtrip(scale: usize) -> phalanx::Result<()> {
    let pool = warm()?;
    percentiles("round trip", time_of(2_000 * scale, |n| drop(pool.submit(square, n).wait())));
    Ok(())
}

fn pipelined(scale: usize) -> phalanx::Result<()> {
    let pool = warm()?;
    for window in [2, 64, 1024] {
        let count = 30_000 * scale as u64;
        let start = Instant::now();
        let mut queue: VecDeque<Handle<u64>> = VecDeque::new();
        for n in 0..count {
            if queue.len() == window {
                queue.pop_front().map(Handle::wait).transpose()?;
            }
            queue.push_back(pool.submit(square, n));
        }
        queue.into_iter().try_for_each(|handle| handle.wait().map(drop))?;
        let rate = count as f64 / start.elapsed().as_secs_f64();
        say(&format!("submit, {window} in flight"), rate, "tasks/s");
    }
    Ok(())
}

fn flight(scale: usize) -> phalanx::Result<()> {
    let pool = warm()?;
    let count = 100_000 * scale as u64;
    let start = Instant::now();
    let handles: Vec<_> = (0..count).map(|n| pool.submit(square, n)).collect();
    let submitted = start.elapsed();
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    handles.into_iter().try_for_each(|handle| handle.wait().map(drop))?;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    say(&format!("submit, all {count} in flight"), rate, "tasks/s");
    say("  of it submitting", submitted.as_secs_f64() / count as f64 * 1e6, "us/task");
    say("  descriptors meanwhile", descriptors as f64, "");
    Ok(())
}

fn map(scale: usize) -> phalanx::Result<()> {
    let pool = warm()?;
    let count = 200_000 * scale as u64;
    let start = Instant::now();
    pool.map(square, 0..count)?;
    say("map", count as f64 / start.elapsed().as_secs_f64(), "items/s");
    let start = Instant::now();
    pool.try_map(square, 0..count / 2)?;
    say("try_map", count as f64 / 2.0 / start.elapsed().as_secs_f64(), "items/s");
    let start = Instant::now();
    pool.imap(square, 0..count / 2).try_for_each(|result| result.map(drop))?;
    say("imap", count as f64 / 2.0 / start.elapsed().as_secs_f64(), "items/s");
    let start = Instant::now();
    pool.imap_unordered(square, 0..count / 2).try_for_each(|result| result.map(drop))?;
    say("imap_unordered", count as f64 / 2.0 / start.elapsed().as_secs_f64(), "items/s");
    Ok(())
}

/// From which length on two workers beat one thread, tasks being sent one by one.
fn breakeven(scale: usize) -> phalanx::Result<()> {
    let pool = warm()?;
    let start = Instant::now();
    std::hint::black_box(spin((3, 20_000_000)));
    let rounds_a_us = 20.0 / start.elapsed().as_secs_f64();
    for micros in [1_u32, 2, 3, 5, 10, 20, 50, 100] {
        let rounds = (f64::from(micros) * rounds_a_us) as u64;
        let count = (20_000 * scale as u64) / (u64::from(micros) + 4);
        let start = Instant::now();
        (0..count).for_each(|n| _ = std::hint::black_box(spin((n, rounds))));
        let alone = start.elapsed();
        let start = Instant::now();
        let mut queue: VecDeque<Handle<u64>> = VecDeque::new();
        for n in 0..count {
            if queue.len() == 64 {
                queue.pop_front().map(Handle::wait).transpose()?;
            }
            queue.push_back(pool.submit(spin, (n, rounds)));
        }
        queue.into_iter().try_for_each(|handle| handle.wait().map(drop))?;
        let ratio = alone.as_secs_f64() / start.elapsed().as_secs_f64();
        say(&format!("tasks of {micros} us: two workers to one thread"), ratio, "x");
    }
    Ok(())
}

fn death(scale: usize) -> phalanx::Result<()> {
    let pool = warm()?;
    let mut times = Vec::new();
    for _ in 0..scale * 5 {
        let start = Instant::now();
        let error = pool.submit(abort, ()).wait();
        times.push(start.elapsed());
        assert!(error.is_err_and(|error| error.worker_died().is_some()));
        // Until both are at their place again.
        pool.try_map(|()| std::thread::sleep(Duration::from_millis(5)), [(); 4])?;
    }
    percentiles("an abort told", times);
    Ok(())
}

fn bytes(scale: usize) -> phalanx::Result<()> {
    let pool = warm()?;
    for (name, len, count) in [("1 MiB", 1 << 20, 20 * scale), ("64 MiB", 64 << 20, scale)] {
        let vectors: Vec<_> = (0..count).map(|_| vec![1; len]).collect();
        pool.submit(touch, vec![1; len]).wait()?;
        let gigabytes = (len * count) as f64 / 1e9;
        let start = Instant::now();
        for vector in vectors {
            pool.submit(touch, vector).wait()?;
        }
        say(&format!("{name} Vec<u8> there"), gigabytes / start.elapsed().as_secs_f64(), "GB/s");
        let start = Instant::now();
        for _ in 0..count {
            touch(pool.submit(fill, len).wait()?);
        }
        say(&format!("{name} Vec<u8> back"), gigabytes / start.elapsed().as_secs_f64(), "GB/s");
    }
    Ok(())
}

fn process(scale: usize) -> phalanx::Result<()> {
    let times = time_of(scale * 20, |n| {
        let result = Process::spawn(square, n).and_then(Process::join);
        assert!(result.is_ok_and(|square| square == n * n));
    });
    percentiles("Process::spawn and join", times);
    Ok(())
}

type Case = (&'static str, fn(usize) -> phalanx::Result<()>);

const CASES: [Case; 9] = [
    ("startup", startup),
    ("roundtrip", roundtrip),
    ("pipelined", pipelined),
    ("flight", flight),
    ("map", map),
    ("breakeven", breakeven),
    ("death", death),
    ("bytes", bytes),
    ("process", process),
];

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let scale = if arguments.iter().any(|each| each == "--quick") { 1 } else { 10 };
    let wanted: Vec<_> = arguments.iter().filter(|each| !each.starts_with("--")).collect();
    for (name, case) in CASES {
        if wanted.is_empty() || wanted.iter().any(|each| *each == name) {
            case(scale)?;
        }
    }
    Ok(())
}
