//! Who runs a task that lies in a worker's inbox: the worker, or nobody because its owner took
//! it back.
//!
//! One word a task: `task << 2 | state`. The owner writes `WAITING` before the task is pushed;
//! from then on the worker may turn it into `RUNNING` and the owner into `REVOKED`, each by
//! compare-and-swap, so exactly one of them succeeds. The word is also the acknowledgement: when
//! a worker dies, the task whose word says `RUNNING` and whose outcome is not in the outbox is
//! the one that was lost; one that says `WAITING` was never begun and runs elsewhere.

//!
//! `RUNNING` turns into `DONE` when the worker has let go of the task's large arguments, which may
//! be before its outcome is sent or long after; to whoever asks what a dead worker had begun, both
//! are the same.

use super::atomic::{AtomicU64, Ordering};

const DONE: u64 = 0;
const WAITING: u64 = 1;
const RUNNING: u64 = 2;
const REVOKED: u64 = 3;

/// One word of shared memory; see the module for its states.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Claim(AtomicU64);

impl Claim {
    #[cfg(any(test, loom))]
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The owner, before it pushes the task.
    pub(crate) fn offer(&self, task: u64) {
        // Relaxed: the push that follows publishes it.
        self.0.store(task << 2 | WAITING, Ordering::Relaxed);
    }

    /// The worker, before it runs the task: false means that the task was taken back.
    #[must_use]
    pub(crate) fn take(&self, task: u64) -> bool {
        self.turn(task, RUNNING)
    }

    /// The owner takes the task back: false means that the worker has begun it.
    #[must_use]
    pub(crate) fn revoke(&self, task: u64) -> bool {
        self.turn(task, REVOKED)
    }

    /// The owner, of a worker that has died: had it begun the task?
    pub(crate) fn is_taken(&self, task: u64) -> bool {
        let word = self.0.load(Ordering::Acquire);
        word == task << 2 | RUNNING || word == task << 2 | DONE
    }

    /// The worker, when it has let go of the task's large arguments.
    pub(crate) fn let_go(&self, task: u64) {
        let (running, done) = (task << 2 | RUNNING, task << 2 | DONE);
        // Release: what was read of the arguments was read before.
        let _ = self.0.compare_exchange(running, done, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The owner: has the worker let go?
    pub(crate) fn is_let_go(&self, task: u64) -> bool {
        self.0.load(Ordering::Acquire) == task << 2 | DONE
    }

    fn turn(&self, task: u64, state: u64) -> bool {
        let waiting = task << 2 | WAITING;
        let taken = task << 2 | state;
        self.0.compare_exchange(waiting, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_task_whose_arguments_were_let_go_is_taken_still() {
        let claim = Claim::new();
        claim.offer(7);
        claim.let_go(7);
        assert!(!claim.is_let_go(7), "nobody has begun it");
        assert!(claim.take(7) && !claim.is_let_go(7));
        claim.let_go(6);
        assert!(!claim.is_let_go(7), "another task's");
        claim.let_go(7);
        assert!(claim.is_let_go(7) && claim.is_taken(7) && !claim.revoke(7));
    }

    #[test]
    fn a_task_is_taken_or_revoked_never_both() {
        let claim = Claim::new();
        claim.offer(7);
        assert!(claim.take(7) && claim.is_taken(7));
        assert!(!claim.revoke(7));
        claim.offer(8);
        assert!(!claim.is_taken(8) && claim.revoke(8));
        assert!(!claim.take(8));
        assert!(!claim.take(9), "a word that speaks of another task is nobody's");
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn the_worker_and_the_owner_never_both_win() {
        loom::model(|| {
            let claim = Arc::new(Claim::new());
            claim.offer(3);
            let worker = {
                let claim = claim.clone();
                thread::spawn(move || claim.take(3))
            };
            let revoked = claim.revoke(3);
            assert!(worker.join().unwrap() != revoked);
        });
    }
}
