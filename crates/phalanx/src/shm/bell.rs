//! A bell that rings only for a sleeper.
//!
//! One side sleeps, any number of others ring. The sleeper *arms* the bell, looks for work once
//! more, and only then sleeps; a ringer first makes its work visible and then looks at the bell.
//! Each side writes one word and then reads the other's, with a full fence in between, so at
//! least one of them sees the other (Dekker, 1965): either the sleeper finds the work, or the
//! ringer finds the sleeper. Whoever turns the bell from armed to awake owes the wake-up, so a
//! burst of work wakes a sleeper once.
//!
//! | `word` | written by | meaning |
//! | --- | --- | --- |
//! | 0 | anyone | awake: nobody needs to be woken |
//! | 1 | the sleeper | it sleeps on the word itself (futex) |
//! | 2 | the sleeper | it sleeps in a poller: the pool's event wakes it |
//! | 3 | the sleeper | it looks at the word for a moment, before it sleeps on it: nobody needs to wake it |
//!
//! A ringer that dies between its work and the bell leaves a sleeper asleep; its death is an
//! event of its own, which the supervisor answers by looking.

use super::atomic::{AtomicU32, Ordering, fence};

/// Who sleeps, and so how it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleeper {
    /// On the bell's own word.
    OnWord = 1,
    /// In a poller, which watches the bell's event.
    InPoller = 2,
    /// Not yet: it looks whether the bell is rung.
    Looking = 3,
}

const AWAKE: u32 = 0;

/// One word of shared memory.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Bell {
    word: AtomicU32,
}

impl Bell {
    #[cfg(any(test, loom))]
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(AWAKE) }
    }

    /// Announces a sleeper. Look for work after this, then sleep.
    pub(crate) fn arm(&self, sleeper: Sleeper) {
        self.word.store(sleeper as u32, Ordering::Relaxed);
        // Pairs with the fence in `ring`: work made visible before a `ring` that saw us awake is
        // seen by the look that follows.
        fence(Ordering::SeqCst);
    }

    /// Says that the sleeper is awake.
    pub(crate) fn disarm(&self) {
        self.word.store(AWAKE, Ordering::Relaxed);
    }

    /// Has the bell been rung since it was armed?
    pub(crate) fn is_rung(&self) -> bool {
        self.word.load(Ordering::Acquire) == AWAKE
    }

    /// Who was looking will sleep on the word now. False: the bell has been rung.
    pub(crate) fn doze(&self) -> bool {
        let (looking, sleeping) = (Sleeper::Looking as u32, Sleeper::OnWord as u32);
        self.word.compare_exchange(looking, sleeping, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Tells whom the caller, whose work is visible by now, has to wake: each armed sleeper is
    /// told to one ringer.
    #[must_use = "a sleeper that is not woken sleeps on"]
    pub(crate) fn ring(&self) -> Option<Sleeper> {
        // Pairs with the fence in `arm`.
        fence(Ordering::SeqCst);
        let seen = self.word.load(Ordering::Relaxed);
        if seen == AWAKE {
            return None;
        }
        let mine = self.word.compare_exchange(seen, AWAKE, Ordering::AcqRel, Ordering::Relaxed);
        match mine.ok()? {
            1 => Some(Sleeper::OnWord),
            3 => Some(Sleeper::Looking),
            // Anything else that a broken process may have written: the event is always safe.
            _ => Some(Sleeper::InPoller),
        }
    }
}

#[cfg(not(loom))]
impl Bell {
    /// Sleeps while the bell is armed for [`Sleeper::OnWord`].
    pub(crate) fn sleep(&self, deadline: Option<std::time::Instant>) -> crate::sys::futex::Woken {
        crate::sys::futex::wait(&self.word, Sleeper::OnWord as u32, deadline)
    }

    /// Rings, and wakes a sleeper on the word; whom it could not wake is the caller's to wake.
    #[must_use = "a sleeper in a poller is the caller's to wake"]
    pub(crate) fn ring_and_wake(&self) -> Option<Sleeper> {
        match self.ring()? {
            Sleeper::OnWord => crate::sys::futex::wake(&self.word),
            Sleeper::Looking => {}
            Sleeper::InPoller => return Some(Sleeper::InPoller),
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_once_for_a_sleeper_and_not_at_all_for_the_awake() {
        let bell = Bell::new();
        assert_eq!(bell.ring(), None);
        bell.arm(Sleeper::OnWord);
        assert_eq!(bell.ring(), Some(Sleeper::OnWord));
        assert_eq!(bell.ring(), None);
        bell.arm(Sleeper::InPoller);
        assert_eq!(bell.ring(), Some(Sleeper::InPoller));
    }

    #[test]
    fn one_who_looks_is_not_woken_and_sleeps_only_if_the_bell_was_not_rung() {
        let bell = Bell::new();
        bell.arm(Sleeper::Looking);
        assert!(!bell.is_rung());
        assert_eq!(bell.ring_and_wake(), None);
        assert!(bell.is_rung() && !bell.doze());
        bell.arm(Sleeper::Looking);
        assert!(bell.doze());
        assert_eq!(bell.ring(), Some(Sleeper::OnWord));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Two ringers, one sleeper: the sleeper never sleeps on with work there.
    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let bell = Arc::new(Bell::new());
            let work = Arc::new(AtomicU32::new(0));
            let ringers: Vec<_> = (0..2)
                .map(|_| {
                    let (bell, work) = (bell.clone(), work.clone());
                    thread::spawn(move || {
                        work.fetch_add(1, Ordering::Release);
                        usize::from(bell.ring().is_some())
                    })
                })
                .collect();
            bell.arm(Sleeper::OnWord);
            let found = work.load(Ordering::Acquire);
            let woken: usize = ringers.into_iter().map(|ringer| ringer.join().unwrap()).sum();
            // Either the look after arming found both pieces, or somebody owed us the wake-up.
            assert!(found == 2 || woken == 1, "slept on: found {found}, woken {woken}");
        });
    }
}
