//! Words and sleeping on them: the system's, or models of them where loom looks for interleavings.

#[cfg(loom)]
pub(super) use self::model::{Placed, words};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(super) use crate::shm::{Placed, words};
#[cfg(not(loom))]
pub(super) use crate::sys::futex;
pub(super) use crate::sys::futex::Woken;
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(super) use self::model::futex;

#[cfg(loom)]
mod model {
    use std::io;
    use std::ops::Deref;

    macro_rules! words {
        ($(#[$attribute:meta])* $scope:vis struct $name:ident {
            $($(#[$note:meta])* $reach:vis $field:ident: $word:ty,)*
        }) => {
            $(#[$attribute])*
            #[derive(Debug, Default)]
            $scope struct $name { $($(#[$note])* $reach $field: $word,)* }
        };
    }
    pub(crate) use words;

    /// Memory that is shared by threads only.
    #[derive(Debug)]
    pub(crate) struct Placed<T>(T);

    impl<T: Default> Placed<T> {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self(T::default()))
        }
    }

    impl<T> Deref for Placed<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    /// As the kernel has it: looking at the word and falling asleep are one step for whoever wakes.
    /// There is no time: who is not woken sleeps for ever, and loom reports a deadlock.
    pub(crate) mod futex {
        use std::time::Instant;

        use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
        use loom::sync::{Condvar, Mutex};

        use crate::sys::futex::Woken;

        loom::lazy_static! {
            static ref BUCKET: Mutex<()> = Mutex::new(());
            static ref SLEEPERS: Condvar = Condvar::new();
        }

        fn sleep_if(expected: impl FnOnce() -> bool) -> Woken {
            let bucket = BUCKET.lock().unwrap();
            if expected() {
                drop(SLEEPERS.wait(bucket).unwrap());
            }
            Woken::Look
        }

        pub(crate) fn wait(word: &AtomicU32, expected: u32, _: Option<Instant>) -> Woken {
            sleep_if(|| word.load(Ordering::SeqCst) == expected)
        }

        pub(crate) fn wait_lower(word: &AtomicU64, expected: u64, _: Option<Instant>) -> Woken {
            sleep_if(|| word.load(Ordering::SeqCst) as u32 == expected as u32)
        }

        pub(crate) fn wake(_: &AtomicU32) {
            let _bucket = BUCKET.lock().unwrap();
            SLEEPERS.notify_one();
        }

        pub(crate) fn wake_lower(_: &AtomicU64) {
            let _bucket = BUCKET.lock().unwrap();
            SLEEPERS.notify_one();
        }
    }
}
