//! The right to do something until a moment: it ends by itself.
//!
//! One word: the end of the lease in nanoseconds of the system's monotonic clock, which all
//! processes share; 0 or past is free. A holder that dies leaves a lease that runs out.

use std::time::Duration;

use super::atomic::{AtomicU64, Ordering};

/// One word of shared memory; see the module.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Lease(AtomicU64);

// SAFETY: one atomic word; any bits are a moment, and 0 is the past.
unsafe impl super::Words for Lease {}

fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

impl Lease {
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes the lease until `end` if it is free at `now`.
    #[must_use]
    pub(crate) fn take(&self, now: Duration, end: Duration) -> bool {
        // Relaxed throughout: the word orders nothing but itself.
        let held = self.0.load(Ordering::Relaxed);
        let (relaxed, free) = (Ordering::Relaxed, held <= nanos(now));
        free && self.0.compare_exchange(held, nanos(end), relaxed, relaxed).is_ok()
    }

    /// Ends a lease that was taken until `end`, if nobody else has it by now.
    pub(crate) fn release(&self, end: Duration) {
        let relaxed = Ordering::Relaxed;
        let _ = self.0.compare_exchange(nanos(end), 0, relaxed, relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_one_holders_until_it_is_released_or_runs_out() {
        let (lease, at) = (Lease::new(), Duration::from_nanos);
        assert!(lease.take(at(10), at(30)));
        assert!(!lease.take(at(20), at(40)));
        lease.release(at(30));
        assert!(lease.take(at(20), at(40)));
        assert!(lease.take(at(40), at(60)), "the holder never came back");
        lease.release(at(40));
        assert!(!lease.take(at(50), at(70)), "that was not its lease any more");
    }
}
