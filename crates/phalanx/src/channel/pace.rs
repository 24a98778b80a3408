//! Whether to look again for a moment before sleeping.
//!
//! The answer to a small message is there within microseconds, and to be woken on a sleeping core
//! takes longer than that. But somebody who looks again and again where no core is free only
//! delays the one it waits for. So each end learns by itself: a look that was in vain lets the next
//! few waits sleep at once, twice as many each time, and one that was not lets all look again.
//! Whoever shares the core may be let in between two looks. That is the one we wait for, and it is
//! back in a moment - or a third, and we are the last in a queue of it, for milliseconds. Such a loss
//! of the core is remembered for long.
//!
//! The words are one process's own; a fork copies them, and nothing depends on what they are.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::sys::stream::yield_now;

/// The longest run of waits that sleep at once, after looks in vain.
const PATIENCE: u32 = 256;
/// Who is not let in again for as long has lost its core to a third.
const LOSS: Duration = Duration::from_micros(200);
/// The shortest and the longest run of waits that sleep at once after a loss: a loss takes a few
/// milliseconds, which is to be a small part of what these take.
const LOSSES: (u32, u32) = (512, 1 << 14);

#[derive(Debug)]
pub(crate) struct Pace {
    /// How long to look.
    moment: Duration,
    /// Whether to let others in meanwhile: then a look may find what would wait for its end otherwise.
    lets_in: bool,
    /// How many more waits are to sleep at once.
    skip: AtomicU32,
    /// How many the next vain look lets sleep at once.
    step: AtomicU32,
    /// How many the next loss of the core lets sleep at once; less with each good look.
    loss: AtomicU32,
}

impl Pace {
    pub(crate) fn new(moment: Duration, lets_in: bool) -> Self {
        let none = AtomicU32::default;
        Self { moment, lets_in, skip: none(), step: none(), loss: none() }
    }

    /// Looks until `look` finds something, for a moment if that is worth while.
    pub(crate) fn spin<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let skip = self.skip.load(Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Relaxed);
            return None;
        }
        if cores() < 2 {
            return None;
        }
        let mut now = Instant::now();
        let end = now + self.moment;
        while now < end {
            let before = now;
            for _ in 0..4 {
                (0..20).for_each(|_| std::hint::spin_loop());
                if let Some(found) = look() {
                    self.step.store(0, Relaxed);
                    self.loss.store(self.loss.load(Relaxed).saturating_sub(1), Relaxed);
                    return Some(found);
                }
            }
            if self.lets_in {
                yield_now();
            }
            now = Instant::now();
            if now - before > LOSS {
                self.rest(&self.loss, LOSSES);
                return look();
            }
        }
        self.rest(&self.step, (1, PATIENCE));
        None
    }

    fn rest(&self, step: &AtomicU32, (least, most): (u32, u32)) {
        let longer = (step.load(Relaxed) * 2).clamp(least, most);
        step.store(longer, Relaxed);
        self.skip.store(longer, Relaxed);
    }
}

/// The number of cores that this process may use.
pub(crate) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these looks were taken, until one lost the core to somebody else.
    fn looks(answers: &[Option<()>]) -> Option<Vec<bool>> {
        let pace = Pace::new(Duration::from_micros(40), true);
        let take = |answer: &Option<()>| {
            let mut looked = false;
            pace.spin(|| {
                looked = true;
                *answer
            });
            (pace.loss.load(Relaxed) == 0).then_some(looked)
        };
        answers.iter().map(take).collect()
    }

    #[test]
    fn a_vain_look_is_followed_by_ever_longer_runs_of_none_and_a_good_one_ends_that() {
        if cores() < 2 {
            return;
        }
        let (mut answers, mut expected) = (Vec::new(), Vec::new());
        for run in [1, 2, 4, 8] {
            answers.extend(std::iter::repeat_n(None, 1 + run));
            expected.extend((0..=run).map(|at| at == 0));
        }
        answers.extend([Some(()), Some(()), None, None, None]);
        expected.extend([true, true, true, false, true]); // it began anew
        let undisturbed = (0..10_000).find_map(|_| looks(&answers));
        assert_eq!(undisturbed.expect("a moment of peace"), expected);
    }
}
