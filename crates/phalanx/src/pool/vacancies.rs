//! Seats that could not be filled, as a rule because descriptors, processes or memory were short.
//!
//! What is short may be there again in a moment, so such a seat is offered again and again, and the
//! pool goes on with the workers that it has. One that has none lets its tasks down after some
//! time, so that nobody waits for what may never come; it stays open for the next ones.

use std::time::{Duration, Instant};

/// When nothing has been filled for so long, nobody is to wait any longer for better times.
const PATIENCE: Duration = Duration::from_secs(1);
/// A seat is offered again after so long...
const SOON: Duration = Duration::from_millis(100);
/// ... and later, the longer it lasts, up to this.
const LATE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Vacancies {
    /// Seats, and when each is to be offered again.
    seats: Vec<(Instant, usize)>,
    /// The first failure since a seat was filled last.
    since: Option<Instant>,
}

impl Vacancies {
    /// A seat could not be filled. True: that has lasted too long.
    pub(super) fn failed(&mut self, seat: usize, now: Instant) -> bool {
        let lasts = now.saturating_duration_since(*self.since.get_or_insert(now));
        self.seats.push((now + (lasts / 2).clamp(SOON, LATE), seat));
        lasts >= PATIENCE
    }

    /// A seat was filled.
    pub(super) fn filled(&mut self) {
        self.since = None;
    }

    /// The next seat that is to be offered now, if there is one.
    pub(super) fn due(&mut self, now: Instant) -> Option<usize> {
        let at = self.seats.iter().position(|(when, _)| *when <= now)?;
        Some(self.seats.swap_remove(at).1)
    }

    /// When the next seat is to be offered.
    pub(super) fn next(&self) -> Option<Instant> {
        self.seats.iter().map(|(when, _)| *when).min()
    }

    /// No seat is to be filled any more.
    pub(super) fn clear(&mut self) {
        self.seats.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_offered_again_later_and_later_and_not_for_ever_in_hope() {
        let (mut vacancies, start) = (Vacancies::default(), Instant::now());
        assert!(!vacancies.failed(3, start));
        assert_eq!((vacancies.due(start), vacancies.next()), (None, Some(start + SOON)));
        assert_eq!(vacancies.due(start + SOON), Some(3));
        assert_eq!((vacancies.due(start + LATE), vacancies.next()), (None, None));
        assert!(vacancies.failed(3, start + PATIENCE));
        assert!(vacancies.next() > Some(start + PATIENCE + SOON));
        vacancies.filled();
        assert!(!vacancies.failed(4, start + 2 * PATIENCE));
    }
}
