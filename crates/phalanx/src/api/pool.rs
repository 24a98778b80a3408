//! `Pool`: workers in their own processes, and the thread that starts new ones.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handle::Handle;
use super::start::{Role, again};
use super::stream::Imap;
use super::value::Value;
use super::{map, task};
use crate::error::{Error, Result};
use crate::pool::{Core, Errand, Limits, Task, Terms, WorkerStats, default_processes};
use crate::sys::block_signals;
use crate::sys::code::Captures;
use crate::sys::socket::sealed;

/// Workers, each a process of its own, that run tasks.
///
/// A task is any function or closure that captures nothing. What it needs comes as its argument
/// (several as a tuple), what it returns goes back, and both are [values](Value) that serde can
/// write.
///
/// ```
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let pool = phalanx::Pool::new(2)?;
///     assert_eq!(pool.map(square, [1, 2, 3, 4, 5])?, [1, 4, 9, 16, 25]);
///     assert_eq!(pool.submit(|s: String| s.len(), "phalanx".to_string()).wait()?, 7);
///     assert_eq!(pool.submit(|(a, b): (u8, u8)| a + b, (1, 2)).wait()?, 3);
///     Ok(())
/// }
/// ```
///
/// A closure that captures is refused by the compiler:
///
/// ```compile_fail
/// # fn main() -> phalanx::Result<()> {
/// let factor = 3;
/// let pool = phalanx::Pool::new(2)?;
/// pool.map(move |n: u64| n * factor, [1, 2, 3])?; // a task ... cannot capture anything
/// # Ok(())
/// # }
/// ```
///
/// # When things end
///
/// - A task that panics is an [`Error`](crate::Error) with message, place and backtrace for its own caller;
///   the worker goes on. (Backtraces are not taken where `RUST_BACKTRACE=0`.)
/// - A worker that dies - by a signal, an abort, `exit` - loses the task that it was running, whose
///   caller is told [how it died](crate::WorkerDied), and of a crash also where. Tasks that waited in it run elsewhere, once,
///   and a new worker takes its place.
/// - Dropping the pool kills its workers and all tasks in them; handles that wait are told.
/// - When this process ends, however it ends, the kernel ends the workers.
/// - In a child that this process forks, the pool is an error that says so.
pub struct Pool {
    core: Arc<Core>,
    /// Starts workers in the place of those that are gone.
    thread: Option<JoinHandle<()>>,
    name: String,
}

/// Says what a [`Pool`] is to be like: see [`Pool::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct Builder {
    processes: usize,
    initializer: Option<Result<Arc<Task>>>,
    life: Option<u64>,
    tree: bool,
    terms: Terms,
    limits: Limits,
    name: String,
}

impl Builder {
    /// So many workers; without this, as many as can run at a time: the CPUs that this process may
    /// run on, and no more than its control groups (a container's quota) give it time on.
    pub fn processes(self, processes: usize) -> Self {
        Self { processes, ..self }
    }

    /// Has each new worker call this function before it takes tasks.
    ///
    /// If it panics, every call is told so, with its backtrace, and no worker is started any more.
    pub fn initializer<F>(self, initializer: F) -> Self
    where
        F: Fn() + Copy + Send + Sync + 'static,
    {
        let () = Captures::<F>::NOTHING;
        self.initializer_with(move |()| initializer(), ())
    }

    /// As [`initializer`](Self::initializer), with an argument.
    ///
    /// ```
    /// use std::sync::OnceLock;
    ///
    /// static GREETING: OnceLock<String> = OnceLock::new();
    ///
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::init();
    ///     let pool = phalanx::Pool::builder()
    ///         .processes(1)
    ///         .initializer_with(|word: String| GREETING.set(word).unwrap(), "hello".into())
    ///         .build()?;
    ///     let greeting = pool.submit(|name: String| format!("{} {name}", GREETING.get().unwrap()), "you".into());
    ///     assert_eq!(greeting.wait()?, "hello you");
    ///     Ok(())
    /// }
    /// ```
    pub fn initializer_with<F, A>(self, initializer: F, argument: A) -> Self
    where
        F: Fn(A) + Copy + Send + Sync + 'static,
        A: Value,
    {
        let () = Captures::<F>::NOTHING;
        Self { initializer: Some(task::call(initializer, argument).map(Arc::new)), ..self }
    }

    /// Replaces each worker after so many tasks (and items of [`Pool::map`]'s chunks count as one
    /// task together); 0 is never, the default.
    pub fn max_tasks_per_worker(self, tasks: u64) -> Self {
        Self { life: (tasks > 0).then_some(tasks), ..self }
    }

    /// What a task has started - programs, processes - ends with its worker, however that ends: killed,
    /// with the pool, or because this process was killed. Not so by default.
    ///
    /// The worker leads a process group of its own; what has left it (`setsid`) is left alone.
    pub fn kill_tree(self, tree: bool) -> Self {
        Self { tree, ..self }
    }

    /// What is agreed upon for tasks: how long they may wait and run, and how often they are run again
    /// when a worker dies of them. By default, for any time, and once.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::init();
    ///     let terms = phalanx::Terms { timeout: Some(Duration::from_millis(50)), ..phalanx::Terms::ABRUPT };
    ///     let pool = phalanx::Pool::builder().processes(1).terms(terms).build()?;
    ///     let stuck = pool.submit(|()| loop { std::thread::park() }, ());
    ///     let next = pool.submit(|n: u32| n + 1, 1);
    ///     assert!(stuck.wait().map(|()| ()).unwrap_err().is_timeout());
    ///     assert_eq!(next.wait()?, 2);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// A task of [`Pool::map`] is a chunk of items, which has the time that one task has.
    pub fn terms(self, terms: Terms) -> Self {
        Self { terms, ..self }
    }

    /// What workers are held to: how much memory they may have, how long they stay, how often they may
    /// die. By default, to nothing.
    ///
    /// ```
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::init();
    ///     let limits = phalanx::Limits { hard_memory: Some(256 << 20), ..Default::default() };
    ///     let pool = phalanx::Pool::builder().processes(1).limits(limits).build()?;
    ///     let greedy = pool.submit(
    ///         |()| {
    ///             let memory = vec![1_u8; 1 << 30];
    ///             loop {
    ///                 std::hint::black_box(&memory);
    ///                 std::thread::park();
    ///             }
    ///         },
    ///         (),
    ///     );
    ///     assert!(greedy.wait().map(|()| ()).unwrap_err().is_over_memory());
    ///     Ok(())
    /// }
    /// ```
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The pool's name, for messages and threads.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Starts the workers; does not wait until they are ready.
    ///
    /// # Errors
    ///
    /// If [`init`](crate::init) has not been called, if there are no processes to be, if the
    /// initializer's argument cannot be written, or if the system refuses.
    pub fn build(self) -> Result<Pool> {
        let initializer = self.initializer.transpose()?;
        let kept = |task: Arc<Task>| match sealed(&task.payload) {
            Ok(fd) => Ok((fd, task)),
            Err(error) => Err(Error::os("keep an initializer", error)),
        };
        let initializer = initializer.map(kept).transpose()?;
        let core = Arc::new(Core::new(self.processes, self.terms, self.limits)?);
        let staffing =
            Staffing { core: core.clone(), initializer, life: self.life, tree: self.tree };
        (0..self.processes).try_for_each(|seat| staffing.fill(seat))?;
        let thread = std::thread::Builder::new().name(self.name.clone());
        let thread = block_signals(|| thread.spawn(move || staffing.run()));
        let thread = thread.map_err(|e| Error::os("start a pool's thread", e))?;
        Ok(Pool { core, thread: Some(thread), name: self.name })
    }
}

/// Fills seats with workers.
struct Staffing {
    core: Arc<Core>,
    /// Its bytes, and what keeps the descriptors in them good.
    initializer: Option<(OwnedFd, Arc<Task>)>,
    life: Option<u64>,
    tree: bool,
}

impl Staffing {
    fn fill(&self, seat: usize) -> Result<()> {
        let Some(seating) = self.core.prepare(seat, self.tree)? else { return Ok(()) };
        let (memory, event) = self.core.descriptors();
        let mut fds = vec![memory, event, seating.lifeline.as_fd(), seating.report.as_fd()];
        fds.extend(self.initializer.as_ref().map(|(fd, _)| fd.as_fd()));
        let role = Role::Worker { seat, life: self.life, tree: self.tree };
        let child = again(&role, &fds)?;
        self.core.seat(seating, Arc::new(child))
    }

    /// Until the pool has ended, or belongs to another process.
    fn run(&self) {
        while let Ok(Some(errand)) = self.core.errand(None) {
            let Errand::Staff(seat) = errand else { continue };
            if let Err(error) = self.fill(seat) {
                // If the pool has ended meanwhile, this changes nothing.
                let _ = self.core.vacant(seat, error);
            }
        }
    }
}

impl Pool {
    /// A pool of so many workers.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new(processes: usize) -> Result<Self> {
        Self::builder().processes(processes).build()
    }

    /// A pool that is described step by step.
    ///
    /// ```
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::init();
    ///     let pool = phalanx::Pool::builder()
    ///         .processes(2)
    ///         .initializer(|| println!("worker {} is here", std::process::id()))
    ///         .max_tasks_per_worker(1000)
    ///         .name("squares")
    ///         .build()?;
    ///     assert_eq!(pool.map(|n: i32| n * n, [-2, 3])?, [4, 9]);
    ///     pool.join()
    /// }
    /// ```
    pub fn builder() -> Builder {
        let name = "phalanx-pool".into();
        Builder {
            processes: default_processes(),
            initializer: None,
            life: None,
            tree: false,
            terms: Terms::ABRUPT,
            limits: Limits::default(),
            name,
        }
    }

    /// Calls `task` with each item and returns the results in the order of the items.
    ///
    /// All items are read first. They go to the workers in chunks, whose size follows the time that
    /// items take, so it is not worth while to make chunks of one's own.
    ///
    /// # Errors
    ///
    /// The first failure of any item; the other results are lost. For a result per item there is
    /// [`try_map`](Self::try_map).
    pub fn map<F, A, R>(&self, task: F, items: impl IntoIterator<Item = A>) -> Result<Vec<R>>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
    {
        let () = Captures::<F>::NOTHING;
        map::map(&self.core, task, items.into_iter().collect())
    }

    /// Calls `task` with each item and returns for each what became of it, in their order.
    ///
    /// Each item travels as a task of its own, so a panic or a death costs one result.
    ///
    /// ```
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::init();
    ///     let pool = phalanx::Pool::new(2)?;
    ///     let results = pool.try_map(|n: u32| if n == 2 { std::process::abort() } else { n }, [1, 2, 3])?;
    ///     assert_eq!(*results[0].as_ref().unwrap(), 1);
    ///     let died = results[1].as_ref().unwrap_err().worker_died().unwrap();
    ///     assert_eq!(died.exit.unwrap().signal_name(), Some("SIGABRT"));
    ///     assert_eq!(*results[2].as_ref().unwrap(), 3);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// If the pool is closed, or has ended before all items were submitted.
    pub fn try_map<F, A, R>(
        &self,
        task: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<Result<R>>>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
    {
        let () = Captures::<F>::NOTHING;
        map::try_map(&self.core, task, items)
    }

    /// Calls `task` with each item of an input that may be endless; an iterator over the results, in
    /// the order of the items.
    ///
    /// The input is read by whoever takes the results, and only so far ahead that the workers have
    /// something to do. A failure is an `Err` in its place, after which the iteration goes on.
    ///
    /// ```
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::init();
    ///     let pool = phalanx::Pool::new(2)?;
    ///     let squares = pool.imap(|n: u64| n * n, 1..);
    ///     let first: phalanx::Result<Vec<_>> = squares.take(3).collect();
    ///     assert_eq!(first?, [1, 4, 9]);
    ///     Ok(())
    /// }
    /// ```
    pub fn imap<F, A, R, I>(&self, task: F, items: I) -> Imap<'_, F, I::IntoIter, R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
        I: IntoIterator<Item = A>,
    {
        let () = Captures::<F>::NOTHING;
        Imap::new(&self.core, task, items.into_iter(), true)
    }

    /// As [`imap`](Self::imap), but results come as soon as they are there.
    pub fn imap_unordered<F, A, R, I>(&self, task: F, items: I) -> Imap<'_, F, I::IntoIter, R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
        I: IntoIterator<Item = A>,
    {
        let () = Captures::<F>::NOTHING;
        Imap::new(&self.core, task, items.into_iter(), false)
    }

    /// Has a worker call `task` with `argument`, and returns at once.
    ///
    /// What is wrong with the argument or the pool is told by the handle. A million tasks may wait;
    /// a task in flight is memory and nothing else.
    pub fn submit<F, A, R>(&self, task: F, argument: A) -> Handle<R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
    {
        let () = Captures::<F>::NOTHING;
        Handle::submit(&self.core, task, argument, None)
    }

    /// As [`submit`](Self::submit), on terms of this task's own: `pool.terms()`, changed.
    pub fn submit_on<F, A, R>(&self, terms: Terms, task: F, argument: A) -> Handle<R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
    {
        let () = Captures::<F>::NOTHING;
        Handle::submit(&self.core, task, argument, Some(terms))
    }

    /// The terms of tasks that have none of their own.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.core.terms()
    }

    /// [Cancels](Handle::cancel) all tasks that have not ended, and says how many.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn cancel_all(&self) -> Result<usize> {
        self.core.cancel(None)
    }

    /// What each worker has done and is doing.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn stats(&self) -> Result<Vec<WorkerStats>> {
        self.core.stats()
    }

    /// What each worker is doing now: its process id and a backtrace, of its task without the frames around
    /// it, or of how it waits for one.
    ///
    /// A worker goes on as soon as its backtrace is taken, which a copy of it does: within some
    /// milliseconds, or a second if it was in the middle of an allocation, and then has `""`, as one has that
    /// does not answer `within` that time: it is starting, or was stopped. Frames have names and lines as
    /// far as the program has debug information.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::init();
    ///     let pool = phalanx::Pool::new(2)?;
    ///     for (pid, stack) in pool.dump_stacks(Duration::from_secs(1))? {
    ///         println!("worker {pid}:\n{stack}");
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn dump_stacks(&self, within: Duration) -> Result<Vec<(u32, String)>> {
        self.core.traces(within)
    }

    /// How many workers there are when all are at their place.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn processes(&self) -> Result<usize> {
        self.core.seats()
    }

    /// Accepts no more tasks. Those that were submitted are run, then the workers leave.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn close(&self) -> Result<()> {
        self.core.close()
    }

    /// Closes the pool and waits until all tasks have ended and all workers have left.
    ///
    /// Handles can be asked for their results afterwards.
    ///
    /// # Errors
    ///
    /// Why the pool broke, if it did; or in a forked child.
    pub fn join(mut self) -> Result<()> {
        self.core.close()?;
        self.core.wait_ended(None)?;
        self.thread.take().map(JoinHandle::join);
        match self.core.broken()? {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Ends the pool now: workers get SIGTERM, and whoever waits for a task that has not ended is
    /// told that the pool was terminated.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn terminate(&self) -> Result<()> {
        self.core.terminate(&format!("the pool `{}` was terminated", self.name)).map(drop)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.core.terminate(&format!("the pool `{}` was dropped", self.name)).is_err() {
            // In a forked child neither the workers nor the thread are ours.
            std::mem::forget(thread);
            return;
        }
        // A worker that was just being started is seated after the first kill.
        let limit = Instant::now() + Duration::from_secs(5);
        while Instant::now() < limit && self.core.kill().is_ok() {
            match self.core.wait_ended(Some(Instant::now() + Duration::from_millis(20))) {
                Ok(false) => {}
                _ => break,
            }
        }
        // It does not panic but by a bug, which has been told on stderr.
        let _ = thread.join();
    }
}
