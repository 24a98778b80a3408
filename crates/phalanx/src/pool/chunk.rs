//! How much of an input is sent at a time: pure rules, by measured time.

use std::time::Duration;

/// A chunk is worth about so much work, so that what it costs to send one does not matter...
const WORTH: Duration = Duration::from_millis(1);
/// ... and towards the end of the input, where small chunks balance better, not less than this.
const LEAST: Duration = Duration::from_micros(50);
/// Chunks for each worker when nothing can be measured before all are cut.
const BLIND: usize = 64;

/// Cuts an input of known length into chunks.
///
/// The first chunks are single items. Once their time is known, a chunk is about a millisecond
/// of work, and less towards the end (guided self-scheduling: Polychronopoulos and Kuck, 1987).
///
/// ```
/// # use phalanx::pool::Chunks;
/// # use std::time::Duration;
/// let mut chunks = Chunks::new(1_000_000, 2);
/// assert_eq!(chunks.next(None), 1);
/// assert_eq!(chunks.next(Some(Duration::from_nanos(100))), 10_000);
/// assert_eq!(chunks.next(Some(Duration::from_secs(1))), 1);
/// ```
#[derive(Clone, Debug)]
pub struct Chunks {
    left: usize,
    workers: usize,
}

impl Chunks {
    /// For `items` items and so many workers.
    #[must_use]
    pub fn new(items: usize, workers: usize) -> Self {
        Self { left: items, workers: workers.max(1) }
    }

    /// The size for chunks that are all cut before one has run.
    #[must_use]
    pub fn blind(items: usize, workers: usize) -> usize {
        items.div_ceil(workers.max(1) * BLIND).max(1)
    }

    /// Items that are not cut yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// How many items the next chunk has, 0 at the end. `item` is the time that one takes, once
    /// that is known.
    pub fn next(&mut self, item: Option<Duration>) -> usize {
        let size = item.map_or(1, |item| {
            let nanos = item.as_nanos().max(1);
            let worth = (WORTH.as_nanos() / nanos) as usize;
            let least = (LEAST.as_nanos() / nanos) as usize;
            worth.min(self.left / (2 * self.workers)).max(least).max(1)
        });
        let size = size.min(self.left);
        self.left -= size;
        size
    }

    /// How many chunks may be under way before one has to come back.
    #[must_use]
    pub fn ahead(&self) -> usize {
        4 * self.workers
    }
}

/// How far an endless input is read ahead of its results.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    workers: usize,
    /// As many tasks as the user said.
    fixed: Option<usize>,
}

/// Read-ahead in work...
const AHEAD: Duration = Duration::from_millis(20);
/// ... in tasks ...
const MOST: usize = 4096;
/// ... and in bytes of arguments.
const BYTES: usize = 64 << 20;

impl Window {
    /// For so many workers; `fixed` is the number of tasks if the user gave one.
    #[must_use]
    pub fn new(workers: usize, fixed: Option<usize>) -> Self {
        Self { workers: workers.max(1), fixed: fixed.map(|tasks| tasks.max(1)) }
    }

    /// How many tasks may be under way or waiting to be taken, when one takes `pace` and
    /// `bytes` is the average size of their arguments.
    #[must_use]
    pub fn tasks(&self, pace: Option<Duration>, bytes: usize) -> usize {
        if let Some(tasks) = self.fixed {
            return tasks;
        }
        let least = 4 * self.workers;
        let work = pace.map_or(least, |pace| {
            (AHEAD.as_nanos() * self.workers as u128 / pace.as_nanos().max(1)) as usize
        });
        work.clamp(least, MOST.max(least)).min((BYTES / bytes.max(1)).max(self.workers + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_input_and_shrink_towards_its_end() {
        let mut chunks = Chunks::new(100_000, 2);
        let item = Some(Duration::from_nanos(100));
        let sizes: Vec<_> =
            std::iter::from_fn(|| Some(chunks.next(item)).filter(|&size| size > 0)).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 100_000);
        assert!(sizes.windows(2).all(|pair| pair[0] >= pair[1]));
        assert_eq!((sizes[0], sizes[sizes.len() - 2]), (10_000, 500));
    }

    #[test]
    fn long_items_go_one_by_one() {
        let mut chunks = Chunks::new(10, 2);
        assert_eq!(chunks.next(Some(Duration::from_millis(5))), 1);
    }

    #[test]
    fn a_window_is_bounded_in_work_tasks_and_bytes() {
        let window = Window::new(2, None);
        assert_eq!(window.tasks(None, 10), 8);
        assert_eq!(window.tasks(Some(Duration::from_nanos(10)), 10), 4096);
        assert_eq!(window.tasks(Some(Duration::from_millis(1)), 10), 40);
        assert_eq!(window.tasks(Some(Duration::from_micros(1)), 32 << 20), 3);
        assert_eq!(Window::new(2, Some(5)).tasks(None, 1 << 40), 5);
    }
}
