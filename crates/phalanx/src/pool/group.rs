//! Where outcomes wait for whoever asked: the results of one call.
//!
//! An `apply` is a group of one task, a `map` of as many as it was cut into, an `imap` of an
//! unknown number. Outcomes leave a group in the order of their tasks or as they come.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::task::Outcome;

/// The outcomes of one call.
#[derive(Debug)]
pub struct Group {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    arrivals: Arrivals,
    /// Outcomes that have arrived.
    done: u64,
    /// Outcomes that have been taken.
    taken: u64,
    /// The time that they took to run, added up.
    spent: Duration,
    /// How many there will be, once that is known.
    total: Option<u64>,
    /// The first task that a death lost or the end of the pool broke.
    lost: Option<Box<Outcome>>,
    /// Threads in `sleep`.
    sleepers: u32,
    waker: Option<Waker>,
    /// Somebody wants to be told when all is done.
    announce: Option<u64>,
    /// Nobody wants the outcomes any more.
    abandoned: bool,
}

#[derive(Debug)]
enum Arrivals {
    InOrder { first: u64, slots: VecDeque<Option<Outcome>> },
    AsCompleted(VecDeque<(u64, Outcome)>),
}

impl Default for Arrivals {
    fn default() -> Self {
        Self::InOrder { first: 0, slots: VecDeque::new() }
    }
}

/// What [`Group::next`] found.
#[derive(Debug)]
pub enum Next {
    /// The outcome of the task with this index.
    Outcome(u64, Outcome),
    /// There will be no more.
    End,
    /// Not yet.
    Pending,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Something for [`Group::next`], be it the end.
    Next,
    /// The end of all tasks, or the loss of one.
    Done,
}

/// What an arrival obliges to, once no lock is held.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    pub(crate) waker: Option<Waker>,
    pub(crate) announce: Option<u64>,
}

impl Group {
    fn with(arrivals: Arrivals) -> Self {
        let inner = Inner { arrivals, ..Inner::default() };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// A group that gives its outcomes in the order of their tasks.
    #[must_use]
    pub fn in_order() -> Self {
        Self::with(Arrivals::default())
    }

    /// A group that gives its outcomes as they come.
    #[must_use]
    pub fn as_completed() -> Self {
        Self::with(Arrivals::AsCompleted(VecDeque::new()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under this lock is a bug; what it guards is whole at every step all the same.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Says how many tasks there are in all, and returns whether all of them have ended.
    pub fn expect(&self, total: u64) -> bool {
        let mut inner = self.lock();
        inner.total = Some(total);
        // A system call, whether somebody sleeps or not.
        if inner.sleepers > 0 {
            self.changed.notify_all();
        }
        inner.is_done()
    }

    /// Announces the end of the last task as an errand with this token.
    ///
    /// Returns false if that has passed already, and then announces nothing.
    #[must_use]
    pub fn announce(&self, token: u64) -> bool {
        let mut inner = self.lock();
        if inner.is_done() {
            return false;
        }
        inner.announce = Some(token);
        true
    }

    pub(crate) fn is_announced(&self) -> bool {
        self.lock().announce.is_some()
    }

    /// Says that nobody wants the outcomes any more; tasks are run all the same.
    pub fn abandon(&self) {
        self.lock().abandoned = true;
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    /// Wakes this waker when the next outcome arrives; false if one is there already.
    #[must_use]
    pub fn wake_later(&self, waker: &Waker) -> bool {
        let mut inner = self.lock();
        if inner.is_ready() {
            return false;
        }
        inner.waker = Some(waker.clone());
        true
    }

    /// Takes the next outcome if it is there.
    #[must_use]
    pub fn next(&self) -> Next {
        let mut inner = self.lock();
        let found = match &mut inner.arrivals {
            Arrivals::InOrder { first, slots } => match slots.front_mut().and_then(Option::take) {
                Some(outcome) => {
                    slots.pop_front();
                    *first += 1;
                    Some((*first - 1, outcome))
                }
                None => None,
            },
            Arrivals::AsCompleted(queue) => queue.pop_front(),
        };
        match found {
            Some((index, outcome)) => {
                inner.taken += 1;
                Next::Outcome(index, outcome)
            }
            None if inner.total.is_some_and(|total| inner.taken >= total) => Next::End,
            None => Next::Pending,
        }
    }

    /// Is there something for [`next`](Self::next), be it the end?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready()
    }

    /// Have all tasks ended, or has one been lost?
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.lock().is_done()
    }

    /// The first outcome that is not the task's own doing: a worker's death or the pool's end.
    #[must_use]
    pub fn lost(&self) -> Option<Outcome> {
        self.lock().lost.as_deref().cloned()
    }

    /// How many outcomes have arrived, and the time that their tasks took, added up.
    #[must_use]
    pub fn arrived(&self) -> (u64, Duration) {
        let inner = self.lock();
        (inner.done, inner.spent)
    }

    /// How many outcomes have not arrived of those that are expected.
    #[must_use]
    pub fn left(&self) -> u64 {
        let inner = self.lock();
        inner.total.unwrap_or_default().saturating_sub(inner.done)
    }

    pub(crate) fn arrive(&self, index: u64, outcome: Outcome, took: Duration) -> Arrival {
        let mut inner = self.lock();
        inner.spent += took;
        if inner.lost.is_none() && matches!(outcome, Outcome::Lost(_) | Outcome::Broken(_)) {
            inner.lost = Some(Box::new(outcome.clone()));
        }
        match &mut inner.arrivals {
            Arrivals::InOrder { first, slots } => {
                let at = (index - *first) as usize;
                if slots.len() <= at {
                    if slots.capacity() == 0 {
                        slots.reserve_exact(at + 1); // it may be the only one
                    }
                    slots.resize(at + 1, None);
                }
                slots[at] = Some(outcome);
            }
            Arrivals::AsCompleted(queue) => queue.push_back((index, outcome)),
        }
        inner.done += 1;
        if inner.sleepers > 0 {
            self.changed.notify_all();
        }
        let announce = if inner.is_done() { inner.announce.take() } else { None };
        Arrival { waker: inner.waker.take(), announce }
    }

    pub(crate) fn has(&self, what: Until) -> bool {
        self.lock().has(what)
    }

    /// Sleeps until the group has `what`, or the deadline; may return early.
    pub(crate) fn sleep(&self, what: Until, deadline: Option<Instant>) {
        let mut inner = self.lock();
        if inner.has(what) {
            return;
        }
        inner.sleepers += 1;
        let mut inner = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(left) => match self.changed.wait_timeout(inner, left) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            },
            None => self.changed.wait(inner).unwrap_or_else(std::sync::PoisonError::into_inner),
        };
        inner.sleepers -= 1;
    }

    #[cfg(test)]
    pub(crate) fn finish_for_test(&self, index: u64) {
        let _ =
            self.arrive(index, Outcome::Returned(super::Parcel::plain(Vec::new())), Duration::ZERO);
    }
}

impl Inner {
    fn has(&self, what: Until) -> bool {
        match what {
            Until::Next => self.is_ready(),
            Until::Done => self.is_done(),
        }
    }

    fn is_done(&self) -> bool {
        self.lost.is_some() || self.total.is_some_and(|total| self.done >= total)
    }

    fn is_ready(&self) -> bool {
        let there = match &self.arrivals {
            Arrivals::InOrder { slots, .. } => slots.front().is_some_and(Option::is_some),
            Arrivals::AsCompleted(queue) => !queue.is_empty(),
        };
        there || self.total.is_some_and(|total| self.taken >= total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Parcel;

    fn indices(group: &Group) -> Vec<u64> {
        std::iter::from_fn(|| match group.next() {
            Next::Outcome(index, _) => Some(index),
            Next::End | Next::Pending => None,
        })
        .collect()
    }

    #[test]
    fn outcomes_leave_in_the_order_of_their_tasks() {
        let group = Group::in_order();
        [2, 1].into_iter().for_each(|index| group.finish_for_test(index));
        assert!(indices(&group).is_empty() && !group.is_ready());
        group.finish_for_test(0);
        assert_eq!(indices(&group), [0, 1, 2]);
        assert!(matches!(group.next(), Next::Pending));
        assert!(group.expect(3));
        assert!(matches!(group.next(), Next::End));
    }

    #[test]
    fn outcomes_leave_as_they_come() {
        let group = Group::as_completed();
        [2, 0, 1].into_iter().for_each(|index| group.finish_for_test(index));
        assert_eq!(indices(&group), [2, 0, 1]);
    }

    #[test]
    fn the_last_end_is_announced_once() {
        let group = Group::in_order();
        assert!(group.announce(9));
        assert!(!group.expect(1));
        let arrival = group.arrive(0, Outcome::Returned(Parcel::plain(vec![])), Duration::ZERO);
        assert_eq!(arrival.announce, Some(9));
        assert!(!group.announce(10));
    }
}
