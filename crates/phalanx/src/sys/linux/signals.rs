//! Which thread runs the host program's signal handlers: pthread_sigmask(3); and a signal of ours:
//! signal(7).

use std::mem::MaybeUninit;

/// One of the realtime signals, which have no other meaning than a program gives them.
pub(crate) fn trace_signal() -> i32 {
    libc::SIGRTMIN() + 5
}

/// Runs `start` with all signals blocked, so that a thread that it starts has them blocked.
pub(crate) fn block_signals<T>(start: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set that it is given; cannot fail on a valid pointer.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was filled above, and `before` is written here.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let result = start();
    // SAFETY: `before` was written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    result
}
