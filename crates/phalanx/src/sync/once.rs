//! Something that is done once, by one of many processes.

use super::hold::{Acquired, HoldWord};
use super::word::{AtomicU32, Ordering, Placed, words};
use super::{Arena, Shared, finally};
use crate::error::{Error, OwnerDied, Result};

words! {
    struct Words {
        hold: HoldWord,
        /// 1 when it is done.
        done: AtomicU32,
        _spare: AtomicU32,
    }
}

/// What is done once, by whoever comes first; the others wait until it is done.
///
/// ```
/// # fn main() -> phalanx::Result<()> {
/// let once = phalanx::sync::Once::new()?;
/// assert!(once.call(|_| ()));
/// assert!(!once.call(|_| unreachable!()));
/// # Ok(()) }
/// ```
///
/// | what happens | what follows |
/// | --- | --- |
/// | a process ends in the middle of it | the next one does it, within 100 ms, and is told who left it half done |
/// | it panics | it is not done: the next one does it |
/// | it calls the same `Once` | it waits for itself for ever |
#[derive(Debug)]
pub struct Once(Placed<Words>);

impl Once {
    /// Not done yet.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena of shared blocks.
    pub fn new() -> Result<Self> {
        Placed::new().map(Self).map_err(|error| Error::os("make a once", error))
    }

    /// Is it done?
    #[must_use]
    pub fn is_done(&self) -> bool {
        // Acquire: pairs with the Release in `call`.
        self.0.done.load(Ordering::Acquire) == 1
    }

    /// Does it if nobody has, and says whether it did; returns when it is done. `make` is given the
    /// process that ended while it did it, if one has.
    pub fn call(&self, make: impl FnOnce(Option<OwnerDied>)) -> bool {
        /// Also when `make` panics.
        struct Release<'a>(&'a HoldWord);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.release();
            }
        }

        if self.is_done() {
            return false;
        }
        let acquired = finally(None, |deadline| self.0.hold.acquire(deadline));
        let _release = Release(&self.0.hold);
        if self.is_done() {
            return false;
        }
        make(match acquired {
            Some(Acquired::Abandoned(died)) => Some(died),
            _ => None,
        });
        // Release: pairs with the Acquire in `is_done`.
        self.0.done.store(1, Ordering::Release);
        true
    }
}

impl Shared for Once {
    fn open(arena: &Arena, offset: usize) -> Result<Self> {
        Placed::open(arena, offset).map(Self).map_err(|error| Error::os("open a once", error))
    }

    fn place(&self) -> (Arena, usize) {
        self.0.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::tests::nobody;

    #[test]
    fn what_panicked_or_was_left_by_the_dead_is_done_by_the_next() {
        let once = Once::new().unwrap();
        let panicked = std::panic::catch_unwind(|| once.call(|_| panic!("as it is meant to")));
        assert!(panicked.is_err() && !once.is_done());
        let nobody = nobody();
        once.0.hold.leave_to(nobody);
        let mut told = None;
        assert!(once.call(|died| told = died));
        assert_eq!(told.unwrap().pid, nobody.pid());
        assert!(once.is_done() && !once.call(|_| unreachable!()));
    }
}
