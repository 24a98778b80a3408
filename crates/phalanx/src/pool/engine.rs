//! The engine thread: one a process, whatever the number of pools.
//!
//! It sleeps in a poller and wakes for the bell of a pool that nobody waits for, for the end of
//! a process, and for alarms. It starts with the first pool of a process and ends with the last.
//! It blocks all signals, so that the host program's handlers run where they always did.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use super::shared::Shared;
use crate::error::{Error, Result, in_call};
use crate::sys::{Event, Poller, block_signals, fork};

/// What a descriptor in the poller stands for: 24 bits pool, 20 bits seat, 20 bits incarnation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token(u64);

const EVENT: u64 = 0xf_ffff;

impl Token {
    /// The bell of a pool.
    pub(crate) fn event(pool: u32) -> Self {
        Self(u64::from(pool) << 40 | EVENT << 20)
    }

    /// The end of a process.
    pub(crate) fn end(pool: u32, seat: usize, incarnation: u32) -> Self {
        let incarnation = u64::from(incarnation) & 0xf_ffff;
        Self(u64::from(pool) << 40 | (seat as u64) << 20 | incarnation)
    }

    /// The number of the process that follows another in a seat.
    pub(crate) fn after(incarnation: u32) -> u32 {
        (incarnation + 1) & 0xf_ffff
    }

    fn parts(self) -> (u32, Option<usize>, u32) {
        let seat = self.0 >> 20 & EVENT;
        let seat = (seat != EVENT).then_some(seat as usize);
        ((self.0 >> 40) as u32, seat, (self.0 & 0xf_ffff) as u32)
    }
}

/// The thread, as pools see it.
#[derive(Debug)]
pub(crate) struct Engine {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    generation: u32,
}

#[derive(Debug)]
struct Inner {
    poller: Poller,
    pools: Mutex<Pools>,
    stop: AtomicBool,
    stopped: Event,
}

#[derive(Debug, Default)]
struct Pools {
    next: u32,
    map: HashMap<u32, Weak<Shared>>,
}

const STOP: u64 = u64::MAX;

impl Engine {
    /// The engine of this process, started if there is none.
    ///
    /// A fork may have copied a lock that a thread held which does not exist here, so each
    /// generation of processes has a lock of its own.
    pub(crate) fn current() -> Result<Arc<Self>> {
        static CURRENT: [Mutex<Weak<Engine>>; 64] = [const { Mutex::new(Weak::new()) }; 64];
        let generation = fork::generation();
        let current = &CURRENT[generation as usize % CURRENT.len()];
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        match current.upgrade().filter(|engine| engine.generation == generation) {
            Some(engine) => Ok(engine),
            None => {
                let engine = Arc::new(Self::start(generation)?);
                *current = Arc::downgrade(&engine);
                Ok(engine)
            }
        }
    }

    fn start(generation: u32) -> Result<Self> {
        let doing = "start the engine thread";
        let inner = Arc::new(Inner {
            poller: Poller::new().map_err(|e| Error::os(doing, e))?,
            pools: Mutex::default(),
            stop: AtomicBool::new(false),
            stopped: Event::new().map_err(|e| Error::os(doing, e))?,
        });
        inner.poller.add(&inner.stopped, STOP).map_err(|e| Error::os(doing, e))?;
        let run = {
            let inner = inner.clone();
            move || inner.run()
        };
        let thread = std::thread::Builder::new().name("phalanx".into());
        let thread = block_signals(|| thread.spawn(run));
        let thread = thread.map_err(|e| Error::os(doing, in_call("clone3(2)", e)))?;
        Ok(Self { inner, thread: Some(thread), generation })
    }

    /// Serves a pool from now on, under the number that is returned.
    pub(crate) fn admit(&self, pool: Weak<Shared>) -> u32 {
        let mut pools = self.inner.pools();
        pools.next = (pools.next + 1) & 0xff_ffff;
        let number = pools.next;
        pools.map.insert(number, pool);
        number
    }

    pub(crate) fn dismiss(&self, pool: u32) {
        self.inner.pools().map.remove(&pool);
    }

    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> Result<()> {
        self.inner.poller.add(fd, token.0).map_err(|e| Error::os("watch a descriptor", e))
    }

    pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
        self.inner.poller.remove(fd);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            return;
        }
        self.inner.stop.store(true, Ordering::Release);
        self.inner.stopped.ring();
        // The last pool may be dropped by the engine thread itself, which cannot join itself.
        let thread = self.thread.take().expect("taken here only");
        if thread.thread().id() != std::thread::current().id() {
            // It does not panic but by a bug, which has been told on stderr.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn pools(&self) -> std::sync::MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, number: u32) -> Option<Arc<Shared>> {
        self.pools().map.get(&number)?.upgrade()
    }

    fn run(&self) {
        let mut tokens = Vec::new();
        let mut alarms: HashMap<u32, Instant> = HashMap::new();
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let next = alarms.values().min().map(|at| at.saturating_duration_since(now));
            tokens.clear();
            if self.poller.wait(&mut tokens, next).is_err() {
                return;
            }
            let now = Instant::now();
            let mut due: Vec<u32> =
                alarms.iter().filter(|(_, at)| **at <= now).map(|(pool, _)| *pool).collect();
            for &token in tokens.iter().filter(|token| **token != STOP) {
                let (number, seat, incarnation) = Token(token).parts();
                let Some(pool) = self.pool(number) else { continue };
                match seat {
                    Some(seat) => Self::carefully(&pool, |pool| pool.saw_end(seat, incarnation)),
                    None => pool.clear_event(),
                }
                due.push(number);
            }
            due.sort_unstable();
            due.dedup();
            for number in due {
                alarms.remove(&number);
                let Some(pool) = self.pool(number) else { continue };
                let mut at = None;
                Self::carefully(&pool, |pool| at = pool.visit());
                alarms.extend(at.map(|at| (number, at)));
            }
        }
    }

    /// A bug ends the pool that it shows in, not the thread that serves all of them.
    fn carefully(pool: &Shared, work: impl FnOnce(&Shared)) {
        if catch_unwind(AssertUnwindSafe(|| work(pool))).is_err() {
            pool.give_up();
        }
    }
}
