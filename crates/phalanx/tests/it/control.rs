//! Tasks that are ended before they end by themselves, and tasks that are run again.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use phalanx::channel::{Receiver, unbounded};
use phalanx::{Pool, Result, Terms};

const LIMIT: Duration = Duration::from_millis(200);
/// Far below the time that tasks would take.
const SOON: Duration = Duration::from_secs(5);

fn park() {
    loop {
        std::thread::park();
    }
}

#[inline(never)]
fn lost_in_thought() {
    park();
}

fn on(terms: Terms) -> Pool {
    Pool::builder().processes(1).terms(terms).build().unwrap()
}

/// Adds a line to a file, and says how many there are.
fn count(path: &str) -> usize {
    use std::io::Write;
    let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
    writeln!(file, "here").unwrap();
    fs::read_to_string(path).unwrap().lines().count()
}

fn die_at_first((path, times): (String, usize)) -> usize {
    let count = count(&path);
    if count <= times {
        std::process::abort();
    }
    count
}

/// A file that is gone with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("phalanx-{name}-{}", std::process::id())))
    }

    fn path(&self) -> String {
        self.0.to_str().unwrap().into()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_task_whose_time_is_over_is_ended_alone() -> Result<()> {
    let pool = on(Terms { timeout: Some(LIMIT), ..Terms::ABRUPT });
    let start = Instant::now();
    let stuck = pool.submit(|()| park(), ());
    let others: Vec<_> = (0..50_u64).map(|n| pool.submit(|n| n + 1, n)).collect();
    let error = stuck.wait().unwrap_err();
    assert!(error.is_timeout() && start.elapsed() >= LIMIT && start.elapsed() < SOON, "{error}");
    let ended = error.ended().unwrap();
    assert_eq!(ended.limit, Some(LIMIT));
    // There is no grace between the two, so the second may come before the first has worked.
    assert!(matches!(ended.exit.unwrap().signal_name(), Some("SIGTERM" | "SIGKILL")));
    let others: Result<Vec<_>> = others.into_iter().map(|other| other.wait()).collect();
    assert_eq!(others?, (1..=50).collect::<Vec<_>>());
    let patient = Terms { timeout: None, ..pool.terms() };
    let slow = pool.submit_on(patient, |()| std::thread::sleep(2 * LIMIT), ());
    slow.wait()
}

#[test]
fn one_that_does_not_begin_in_time_never_does() -> Result<()> {
    let (pool, scratch) = (on(Terms::ABRUPT), Scratch::new("start"));
    let running = pool.submit(|()| std::thread::sleep(3 * LIMIT), ());
    let terms = Terms { start_timeout: Some(LIMIT), ..Terms::ABRUPT };
    let waiting = pool.submit_on(terms, |path: String| count(&path), scratch.path());
    let error = waiting.wait().unwrap_err();
    assert!(error.is_timeout() && error.ended().unwrap().pid.is_none(), "{error}");
    running.wait()?;
    pool.submit(|()| (), ()).wait()?;
    assert!(!scratch.0.exists());
    Ok(())
}

#[test]
fn what_waits_vanishes_and_what_runs_ends() -> Result<()> {
    let (pool, scratch) = (on(Terms::ABRUPT), Scratch::new("cancel"));
    let running = pool.submit(
        |path: String| {
            count(&path);
            park();
        },
        scratch.path(),
    );
    let waiting = pool.submit(|path: String| count(&path), scratch.path());
    let last = pool.submit(|n: u8| n, 3);
    while !scratch.0.exists() {
        std::thread::yield_now();
    }
    assert!(waiting.cancel()? && running.cancel()?);
    assert!(waiting.wait().unwrap_err().is_cancelled());
    assert!(running.wait().unwrap_err().is_cancelled());
    assert_eq!(last.wait()?, 3);
    assert_eq!(fs::read_to_string(&scratch.0).unwrap(), "here\n");
    let ended = pool.submit(|n: u8| n, 4);
    while !ended.is_ready() {
        std::thread::yield_now();
    }
    assert!(!ended.cancel()?);
    assert_eq!(ended.wait()?, 4);
    let parked: Vec<_> = (0..9).map(|_| pool.submit(|()| park(), ())).collect();
    assert_eq!(pool.cancel_all()?, 9);
    for handle in parked {
        assert!(handle.wait().unwrap_err().is_cancelled());
    }
    Ok(())
}

#[test]
fn a_task_whose_worker_died_is_run_again_as_often_as_is_allowed() -> Result<()> {
    let terms = Terms { retries: 2, backoff: Duration::from_millis(5), ..Terms::ABRUPT };
    let (pool, scratch, poison) = (on(terms), Scratch::new("retries"), Scratch::new("poison"));
    assert_eq!(pool.submit(die_at_first, (scratch.path(), 2)).wait()?, 3);
    let error = pool.submit(die_at_first, (poison.path(), 100)).wait().unwrap_err();
    let died = error.worker_died().unwrap();
    assert_eq!(died.earlier.len(), 2);
    assert!(error.to_string().contains("as before it worker"), "{error}");
    assert_eq!(fs::read_to_string(&poison.0).unwrap().lines().count(), 3);
    Ok(())
}

#[test]
fn workers_say_what_they_have_done() -> Result<()> {
    let pool = on(Terms::ABRUPT);
    for n in 0..10_u8 {
        assert_eq!(pool.submit(|n| n, n).wait()?, n);
    }
    let stats = pool.stats()?[0];
    assert_eq!((stats.returned, stats.failed, stats.started, stats.waiting), (10, 0, 1, 0));
    assert!(stats.pid.is_some() && stats.running.is_none() && stats.memory.unwrap() > 0);
    Ok(())
}

#[test]
fn who_is_ended_says_where_it_was() {
    let grace = Duration::from_secs(2);
    let pool = on(Terms { timeout: Some(LIMIT), grace, ..Terms::ABRUPT });
    let ended = pool.submit(|()| lost_in_thought(), ()).wait().unwrap_err();
    let stack = &ended.ended().unwrap().stack;
    assert!(stack.contains("control::lost_in_thought"), "{stack}");
    let others = ["phalanx::sys", "__restore_rt", "api::worker"];
    assert!(others.iter().all(|other| !stack.contains(other)), "{stack}");
}

#[test]
fn workers_go_on_while_nobody_waits_whatever_alarm_is_set() -> Result<()> {
    let pool = on(Terms::ABRUPT);
    let within = |hours: u64| Terms {
        start_timeout: Some(Duration::from_secs(3600 * hours)),
        ..Terms::ABRUPT
    };
    let (open, gate) = unbounded::<()>()?;
    let pass = |gate: Receiver<()>| gate.recv().unwrap();
    let first = pool.submit_on(within(1), pass, gate.clone());
    let mut second = pool.submit_on(within(2), pass, gate);
    let deadline = Instant::now() + SOON;
    // By then the engine thread has left, and will not come again so soon that it just stays.
    let awhile = |running: Duration| running > Duration::from_millis(10);
    while !pool.stats()?[0].running.is_some_and(awhile) {
        assert!(Instant::now() < deadline, "the task does not begin");
        std::thread::yield_now();
    }
    open.send(&())?;
    while !first.is_ready() {
        assert!(Instant::now() < deadline, "nobody has looked");
        std::thread::yield_now();
    }
    // The engine thread has looked, and the alarm is another. Now somebody waits, and leaves.
    assert!(second.wait_timeout(Duration::from_millis(1)).unwrap_err().is_timeout());
    // More than a worker is given in advance.
    let rest: Vec<_> = (0..9).map(|n: u64| pool.submit(|n| n + 1, n)).collect();
    open.send(&())?;
    while !rest.iter().all(phalanx::Handle::is_ready) {
        assert!(Instant::now() < deadline, "nobody has looked again");
        std::thread::yield_now();
    }
    Ok(())
}

#[inline(never)]
fn allocate_until(there: &str) -> usize {
    let mut rounds = 0;
    while !fs::exists(there).unwrap() {
        rounds += 1;
        // Many sizes, so that the allocator has to work for them.
        (1..500).for_each(|len| drop(std::hint::black_box(vec![0_u8; len * 97])));
    }
    rounds
}

#[test]
fn workers_tell_what_they_are_doing_and_go_on() -> Result<()> {
    let (pool, scratch) = (Pool::builder().processes(2).build()?, Scratch::new("dump"));
    let running = pool.submit(|path: String| allocate_until(&path), scratch.path());
    let start = Instant::now();
    let mut told = 0;
    while told < 10 {
        assert!(start.elapsed() < Duration::from_secs(40), "it told {told} times what it does");
        let stacks = pool.dump_stacks(Duration::from_secs(2))?;
        told +=
            usize::from(stacks.iter().any(|(_, stack)| {
                stack.contains("allocate_until") && !stack.contains("phalanx::sys")
            }));
    }
    fs::write(&scratch.0, "").unwrap();
    assert!(running.wait()? > 0);
    let stats = pool.stats()?;
    assert!(stats.iter().all(|worker| worker.started == 1), "{stats:?}");
    Ok(())
}
