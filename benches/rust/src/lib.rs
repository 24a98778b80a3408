//! What the benches share: how long they take, and times that are not means.

use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, SamplingMode, measurement::WallTime};

/// Criterion in a hurry: what is measured here differs by factors, not by percents.
#[must_use]
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args()
}

/// A group of benches for the same thing. Every sample has equally many iterations, since some of
/// what is compared takes a second for one.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// For `iter_custom`: the time that `percent` of a hundred calls do not exceed, times `iters`.
///
/// Criterion knows means only, which are those of the few calls that met something else.
pub fn percentile(percent: usize, iters: u64, mut call: impl FnMut(u64)) -> Duration {
    let time = |n| {
        let start = Instant::now();
        call(n);
        start.elapsed()
    };
    let mut times: Vec<_> = (0..iters).map(time).collect();
    times.sort_unstable();
    times[times.len() * percent / 100] * u32::try_from(iters).expect("fewer calls")
}

/// The time that `work` takes.
pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Looks at every cache line.
#[must_use]
pub fn touch(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum()
}
