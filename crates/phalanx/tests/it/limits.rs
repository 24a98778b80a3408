//! What workers are held to: memory, a life span, and how often they may die.

use std::time::{Duration, Instant};

use phalanx::{Limits, Pool, Result, Terms};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(5);

fn pool(limits: Limits) -> Pool {
    Pool::builder().processes(1).limits(limits).build().unwrap()
}

fn pid() -> u32 {
    std::process::id()
}

fn hold(mib: usize) {
    let memory = vec![1_u8; mib << 20];
    loop {
        std::hint::black_box(&memory);
        std::thread::park();
    }
}

fn leak(mib: usize) -> u32 {
    std::hint::black_box(vec![1_u8; mib << 20].leak());
    pid()
}

#[test]
fn a_task_with_too_much_memory_is_ended() -> Result<()> {
    let pool = pool(Limits { hard_memory: Some(64 * MIB), ..Limits::default() });
    let error = pool.submit(hold, 128).wait().unwrap_err();
    assert!(error.is_over_memory() && !error.is_timeout(), "{error}");
    let (used, allowed) = error.ended().unwrap().memory.unwrap();
    assert!(used > allowed && allowed == 64 * MIB, "{error}");
    assert_ne!(error.ended().unwrap().pid.unwrap(), pool.submit(|()| pid(), ()).wait()?);
    pool.join()
}

#[test]
fn above_the_soft_limit_a_worker_is_replaced_after_its_task() -> Result<()> {
    let pool = pool(Limits { soft_memory: Some(64 * MIB), ..Limits::default() });
    let first = pool.submit(leak, 128).wait()?;
    let second = pool.submit(|()| pid(), ()).wait()?;
    assert_ne!(first, second);
    assert_eq!(second, pool.submit(|()| pid(), ()).wait()?);
    pool.join()
}

#[test]
fn a_worker_is_replaced_when_its_time_is_over() -> Result<()> {
    let pool = pool(Limits { lifetime: Some(Duration::from_millis(50)), ..Limits::default() });
    let (first, start) = (pool.submit(|()| pid(), ()).wait()?, Instant::now());
    while pool.submit(|()| pid(), ()).wait()? == first {
        assert!(start.elapsed() < SOON);
    }
    pool.join()
}

#[test]
fn too_many_deaths_end_the_pool_which_tells_them_all() {
    let pool = pool(Limits { intensity: Some(1), ..Limits::default() });
    for _ in 0..2 {
        let error = pool.submit(|()| -> () { std::process::abort() }, ()).wait().unwrap_err();
        assert!(error.worker_died().is_some(), "{error}");
    }
    let error = pool.submit(|()| pid(), ()).wait().unwrap_err();
    assert_eq!(error.supervisor_failed().unwrap().deaths.len(), 2, "{error}");
}

#[test]
fn a_panic_is_reason_for_another_try_if_that_is_said() -> Result<()> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static TRIES: AtomicU32 = AtomicU32::new(0);
    fn fail(times: u32) -> u32 {
        let tries = TRIES.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(tries > times, "not yet");
        tries
    }
    let pool = pool(Limits::default());
    let terms = Terms { retries: 2, ..pool.terms() };
    assert!(pool.submit_on(terms, fail, 1).wait().unwrap_err().is_task_failure());
    let terms = Terms { retry_failed: true, ..terms };
    assert_eq!(pool.submit_on(terms, fail, 3).wait()?, 4);
    assert!(pool.submit_on(terms, fail, 9).wait().unwrap_err().is_task_failure());
    assert_eq!(pool.submit(fail, 0).wait()?, 8);
    pool.join()
}
