//! Where a process is, written down in the middle of whatever it does: sigaction(2), backtrace(3).

use std::backtrace::Backtrace;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use super::signals::trace_signal;

type Text = fn(&Backtrace) -> String;

static HOW: OnceLock<(OwnedFd, Text)> = OnceLock::new();

/// From now on, [`trace_signal`] has this process write into `report` what `text` makes of its stack.
///
/// That is no safe thing to do in the middle of an allocation, whose lock the handler wants, too: it
/// then waits for itself. So the signal is for a process that is to be killed anyway. SIGTERM waits
/// until the handler is done; SIGKILL does not.
pub(crate) fn answer_trace(report: OwnedFd, text: Text) -> io::Result<()> {
    let _ = HOW.set((report, text)); // once a process
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let fields = action.as_mut_ptr();
    // SAFETY: zeros are a good value of each field, so there is a whole value to write to.
    let fields = unsafe { &mut *fields };
    fields.sa_sigaction = answer as extern "C" fn(libc::c_int) as libc::sighandler_t;
    fields.sa_flags = libc::SA_RESTART;
    // SAFETY: fills the set that it is given; cannot fail on a valid pointer.
    unsafe { libc::sigfillset(&raw mut fields.sa_mask) };
    // SAFETY: a handler of the type that the flags say, and no place for the one before.
    let set = unsafe { libc::sigaction(trace_signal(), fields, std::ptr::null_mut()) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn answer(_signal: libc::c_int) {
    if let Some((report, text)) = HOW.get() {
        // A pipe at which nobody waits: what has no room is dropped.
        let _ = rustix::io::write(report, text(&Backtrace::force_capture()).as_bytes());
    }
}
