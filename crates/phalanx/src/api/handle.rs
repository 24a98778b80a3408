//! `Handle`: the result of one task, to be waited for by a thread or by an executor.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::task;
use super::value::Value;
use crate::error::{Error, Result};
use crate::pool::{Core, Group, Next, Outcome, Task, Terms, Until};

/// The result of a task that was [submitted](crate::Pool::submit), or will be.
///
/// [Wait](Self::wait) for it, ask whether it [is ready](Self::is_ready), or `.await` it: a handle is
/// a future that needs no runtime of ours. Dropping a handle does not stop its task.
///
/// ```
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let pool = phalanx::Pool::new(2)?;
///     let handles: Vec<_> = (0..100_u64).map(|n| pool.submit(|n| n * n, n)).collect();
///     let squares: phalanx::Result<Vec<u64>> = handles.into_iter().map(|handle| handle.wait()).collect();
///     assert_eq!(squares?[99], 9801);
///     Ok(())
/// }
/// ```
#[must_use = "the result of a task comes with its handle"]
pub struct Handle<R> {
    core: Arc<Core>,
    group: Arc<Group>,
    task: &'static str,
    /// Why the task could not be submitted.
    refused: Option<Error>,
    result: PhantomData<fn() -> R>,
}

impl<R: Value> Handle<R> {
    pub(super) fn submit<F, A>(
        core: &Arc<Core>,
        function: F,
        argument: A,
        terms: Option<Terms>,
    ) -> Self
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Value,
    {
        let group = Arc::new(Group::in_order());
        group.expect(1);
        let task = task::call(function, argument).map(|task| Task { terms, ..task });
        let submitted = task.and_then(|task| core.submit(&group, 0, task).map(drop));
        let core = core.clone();
        let task = type_name::<F>();
        Self { core, group, task, refused: submitted.err(), result: PhantomData }
    }

    /// Waits for the result.
    ///
    /// # Errors
    ///
    /// If the argument could not be written, or the pool was closed when the task was submitted; if
    /// the task panicked; if its worker died; if the pool was terminated or dropped first.
    pub fn wait(mut self) -> Result<R> {
        self.wait_until(None)
    }

    /// Waits for the result for so long.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), or a [timeout](Error::is_timeout), after which one can wait again. A
    /// result is given once: after it, the handle is [invalid](Error::is_invalid).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<R> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Result<R> {
        loop {
            if let Some(result) = self.take() {
                return result;
            }
            self.core.wait(&self.group, Until::Next, deadline)?;
            if deadline.is_some_and(|at| at <= Instant::now()) && !self.group.is_ready() {
                return Err(Error::timed_out("a task"));
            }
        }
    }

    fn take(&mut self) -> Option<Result<R>> {
        if let Some(error) = self.refused.take() {
            self.group.expect(0);
            return Some(Err(error));
        }
        match self.group.next() {
            Next::Outcome(_, outcome) => Some(self.open(outcome)),
            Next::End => Some(Err(Error::invalid("the result of this handle has been taken"))),
            Next::Pending => None,
        }
    }

    fn open(&self, outcome: Outcome) -> Result<R> {
        task::result(outcome, self.task)
    }

    /// Ends the task: if it has not begun it never will; if it runs, its worker gets SIGTERM, and after
    /// the [grace](crate::Terms::grace) SIGKILL. Other tasks are not affected. False: it had ended.
    ///
    /// Waiting for it is then an error that [says so](Error::is_cancelled).
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn cancel(&self) -> Result<bool> {
        Ok(self.core.cancel(Some(&self.group))? > 0)
    }

    /// Has the task ended? If so, waiting for it returns at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.refused.is_some() || self.group.is_ready()
    }
}

/// Ready when the task has ended; errors are those of [`Handle::wait`].
impl<R: Value> Future for Handle<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(result) = self.take() {
                return Poll::Ready(result);
            }
            if self.group.wake_later(context.waker()) {
                return match self.core.heed() {
                    Ok(()) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                };
            }
        }
    }
}

impl<R> fmt::Debug for Handle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("task", &self.task).finish_non_exhaustive()
    }
}
