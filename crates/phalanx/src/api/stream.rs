//! `imap`: an input read as far ahead as is useful, by whoever takes the results.

use std::any::type_name;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::sync::Arc;

use super::task;
use super::value::Value;
use crate::error::{Error, Result};
use crate::pool::{Core, Group, Hold, Next, Until, Window};

/// An iterator over the results of [`Pool::imap`](crate::Pool::imap).
///
/// It may be dropped half-way: tasks that were submitted are run, and their results forgotten.
pub struct Imap<'pool, F, I, R> {
    core: &'pool Arc<Core>,
    group: Arc<Group>,
    function: F,
    input: I,
    /// The input is being read; a pool that closes waits for it.
    hold: Option<Hold>,
    /// Why the input is not read any more, if not because it has ended.
    stopped: Option<Error>,
    window: Window,
    submitted: u64,
    taken: u64,
    /// Of all arguments together.
    bytes: usize,
    result: PhantomData<fn() -> R>,
}

impl<'pool, F, I, A, R> Imap<'pool, F, I, R>
where
    F: Fn(A) -> R + Copy + 'static,
    I: Iterator<Item = A>,
    A: Value,
    R: Value,
{
    pub(super) fn new(core: &'pool Arc<Core>, function: F, input: I, ordered: bool) -> Self {
        let group = Arc::new(if ordered { Group::in_order() } else { Group::as_completed() });
        let (hold, stopped) = match core.hold() {
            Ok(hold) => (Some(hold), None),
            Err(error) => (None, Some(error)),
        };
        if stopped.is_some() {
            group.expect(0);
        }
        let window = Window::new(core.seats().unwrap_or(1), None);
        let (submitted, taken, bytes, result) = Default::default();
        Self {
            core,
            group,
            function,
            input,
            hold,
            stopped,
            window,
            submitted,
            taken,
            bytes,
            result,
        }
    }

    /// Reads the input as far as there is room.
    fn feed(&mut self) {
        if self.hold.is_none() {
            return;
        }
        let (arrived, spent) = self.group.arrived();
        let pace = (arrived > 0).then(|| spent / u32::try_from(arrived).unwrap_or(u32::MAX));
        let bytes = self.bytes / usize::try_from(self.submitted.max(1)).unwrap_or(usize::MAX);
        let window = self.window.tasks(pace, bytes) as u64;
        let room = window.saturating_sub(self.submitted - self.taken);
        // A little room can wait: the workers have enough to do.
        if room <= window / 8 {
            return;
        }
        for _ in 0..room {
            let Some(item) = self.input.next() else { return self.end(None) };
            if let Err(error) = self.send(item) {
                return self.end(Some(error));
            }
        }
    }

    fn send(&mut self, item: A) -> Result<()> {
        let task = task::call(self.function, item)?;
        let Some(hold) = &self.hold else { return Ok(()) };
        self.bytes += task.size();
        hold.submit(&self.group, self.submitted, task)?;
        self.submitted += 1;
        Ok(())
    }

    fn end(&mut self, stopped: Option<Error>) {
        self.stopped = stopped;
        self.group.expect(self.submitted);
        self.hold = None;
    }
}

/// Results, one for each item; `Err` for an item whose task failed.
///
/// An argument that cannot be written, or the end of the pool, ends the iteration with an `Err`
/// after all results.
impl<F, I, A, R> Iterator for Imap<'_, F, I, R>
where
    F: Fn(A) -> R + Copy + 'static,
    I: Iterator<Item = A>,
    A: Value,
    R: Value,
{
    type Item = Result<R>;

    fn next(&mut self) -> Option<Result<R>> {
        self.feed();
        loop {
            match self.group.next() {
                Next::Outcome(_, outcome) => {
                    self.taken += 1;
                    return Some(task::result(outcome, type_name::<F>()));
                }
                Next::End => return self.stopped.take().map(Err),
                Next::Pending => {
                    if let Err(error) = self.core.wait(&self.group, Until::Next, None) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let under_way = usize::try_from(self.submitted - self.taken).unwrap_or(usize::MAX);
        let (_, most) = self.input.size_hint();
        // One more for an error at the end.
        (under_way, most.and_then(|most| most.checked_add(under_way)?.checked_add(1)))
    }
}

impl<F, I, A, R> FusedIterator for Imap<'_, F, I, R>
where
    F: Fn(A) -> R + Copy + 'static,
    I: FusedIterator<Item = A>,
    A: Value,
    R: Value,
{
}

impl<F, I, R> fmt::Debug for Imap<'_, F, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Imap");
        debug
            .field("submitted", &self.submitted)
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}
