//! Looking for work for a moment before sleeping.
//!
//! The next task is often on its way, and waking a sleeper on another core costs its owner more
//! than the task. But somebody who spins where no core is free only delays those it waits for, so
//! one core is left to the owner, and on each of the others one worker of the pool spins at a time.
//! Its right is a lease that ends by itself: a spinner that dies leaves nothing to be cleaned up.

use std::time::Duration;

use crate::channel::cores;
use crate::shm::Control;
use crate::sys::monotonic;

/// How long to spin.
const SPIN: Duration = Duration::from_micros(20);

/// A worker's right to compete for a lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spinner {
    lease: usize,
}

impl Spinner {
    /// For the worker in this seat; `None` where no core is to spare.
    pub(crate) fn new(seat: usize) -> Option<Self> {
        let leases = (cores() - 1).min(Control::leases());
        (leases > 0).then(|| Self { lease: seat % leases })
    }

    /// Spins until `there`, and tells whether it is.
    pub(crate) fn spin(self, control: &Control, there: impl Fn() -> bool) -> bool {
        let now = monotonic();
        let end = now + SPIN;
        let lease = control.lease(self.lease);
        if !lease.take(now, end) {
            return there();
        }
        while !there() {
            if monotonic() >= end {
                return false;
            }
            (0..50).for_each(|_| std::hint::spin_loop());
        }
        lease.release(end);
        true
    }
}
