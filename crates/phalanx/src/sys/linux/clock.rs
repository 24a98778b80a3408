//! The clock that all processes share: clock_gettime(2).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since some moment, the same for all processes of the machine; never goes back.
pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap_or_default()
}
