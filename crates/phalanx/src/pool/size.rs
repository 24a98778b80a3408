//! How many workers a pool has that was not told.

use std::path::Path;

use crate::sys::cpus;

/// As many as can run at a time: the CPUs that this process may run on, and no more than its
/// control groups give it time on, a part of one counting as one; at least 1.
#[must_use]
pub fn default_processes() -> usize {
    within(cpus::in_affinity(), cpus::quota(Path::new("/")))
}

fn within(cpus: usize, quota: Option<f64>) -> usize {
    // Casts of what is too large end at the largest number.
    quota.map_or(cpus, |quota| cpus.min(quota.ceil() as usize)).max(1)
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn a_part_of_a_cpu_counts_as_one_and_no_quota_gives_more_than_there_are() {
        assert_eq!(within(8, None), 8);
        assert_eq!(within(8, Some(2.0)), 2);
        assert_eq!(within(8, Some(2.1)), 3);
        assert_eq!(within(8, Some(0.01)), 1);
        assert_eq!(within(8, Some(1e30)), 8);
    }
}
