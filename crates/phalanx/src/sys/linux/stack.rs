//! Where a process is, written down in the middle of whatever it does: sigaction(2), clone(2),
//! backtrace(3).
//!
//! A backtrace takes memory and locks, which the thread that the signal has interrupted may hold: it
//! would wait for itself. So a copy of the process takes it, of the same stack, and the process waits for
//! the copy. Where that waits for itself, its alarm ends it after a second, and the process goes on as if
//! nothing had been, or dies of what it was dying of.
//!
//! | who dies | what is left |
//! | --- | --- |
//! | the process, while it waits | nothing: the kernel kills the copy (`PR_SET_PDEATHSIG`) |
//! | the copy, for want of stack or by what has crashed the process | no trace |

use std::backtrace::Backtrace;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::signals::trace_signal;

type Text = fn(&Backtrace) -> String;

static HOW: OnceLock<(OwnedFd, Text)> = OnceLock::new();

/// What a process dies of that has done something wrong.
pub(crate) const CRASHES: [i32; 5] =
    [libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

/// Seconds after which a copy that has not come to an end does not.
const LIMIT: u32 = 1;

/// Bytes of the stack on which this thread hears of a crash, which may be that its own is full. A
/// backtrace with names takes some twenty kilobytes of it.
const STACK: usize = 256 << 10;

/// What was done about crashes before us.
static BEFORE: OnceLock<Vec<libc::sigaction>> = OnceLock::new();

/// From now on, [`trace_signal`] has this process write into `report` what `text` makes of its stack, and
/// go on; and a crash has it do so before it ends by it. To be called by the thread that is to be seen.
pub(crate) fn answer_trace(report: OwnedFd, text: Text) -> io::Result<()> {
    let _ = HOW.set((report, text)); // once a process
    hear_on(STACK)?;
    set_action(trace_signal(), answer)?;
    let before = CRASHES.map(|signal| set_action(signal, crash));
    let _ = BEFORE.set(before.into_iter().collect::<io::Result<_>>()?);
    Ok(())
}

/// Gives this thread a stack of its own for signals that ask for one. It stays as long as the process.
fn hear_on(size: usize) -> io::Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, which nothing else knows.
    let start =
        unsafe { mmap_anonymous(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, flags) };
    let stack = libc::stack_t { ss_sp: start?, ss_flags: 0, ss_size: size };
    // SAFETY: the range is mapped, and is nobody else's.
    check(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) })
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Has a signal handled, all others being held off meanwhile. Returns what was done about it before.
fn set_action(signal: i32, handler: Handler) -> io::Result<libc::sigaction> {
    let mut action = default_action();
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: fills the set that it is given; cannot fail on a valid pointer.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    let mut before = default_action();
    // SAFETY: a handler of the type that the flags say, and a place for the one before.
    check(unsafe { libc::sigaction(signal, &raw const action, &raw mut before) })?;
    Ok(before)
}

fn default_action() -> libc::sigaction {
    // SAFETY: zeros are a good value of each field: SIG_DFL, no flags, an empty set.
    unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn answer(_signal: i32, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    tell();
}

/// Tells, and has the signal do then what it would have done without us.
extern "C" fn crash(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tell();
    }
    // SAFETY: the kernel has written it, for as long as the handler runs.
    let sent = unsafe { (*info).si_code } <= 0;
    let at = CRASHES.iter().position(|each| *each == signal);
    let before = at.and_then(|at| BEFORE.get()?.get(at)).copied();
    // The standard library takes what was sent for a fault that comes again by itself.
    let before = before.filter(|_| !sent || signal == libc::SIGABRT);
    let before = before.unwrap_or_else(default_action);
    // SAFETY: an action that the system had given us, or the default one.
    unsafe { libc::sigaction(signal, &raw const before, ptr::null_mut()) };
    if sent {
        // SAFETY: held off until we return, when it finds that action.
        unsafe { libc::raise(signal) };
    }
}

/// Has a copy of this process write where this thread is.
fn tell() {
    let Some((report, text)) = HOW.get() else { return };
    let none: libc::c_long = 0;
    // SAFETY: a copy that shares nothing, runs on its copy of this stack, and whose end is told to
    // nobody but to who waits for it.
    let copy = unsafe { libc::syscall(libc::SYS_clone, none, none, none, none, none) };
    if copy > 0 {
        let pid = copy as libc::pid_t;
        // SAFETY: waits for that copy, which nobody else knows. Signals are held off.
        unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
    }
    if copy == 0 {
        // Without it, the copy's alarm still ends it.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        end_in(LIMIT);
        // A pipe at which nobody waits: what has no room is dropped.
        let _ = rustix::io::write(report, text(&Backtrace::force_capture()).as_bytes());
        // SAFETY: ends the copy, and nothing of the process is run.
        unsafe { libc::_exit(0) };
    }
}

/// Ends this process after so many seconds.
fn end_in(seconds: u32) {
    let mut only = MaybeUninit::<libc::sigset_t>::uninit();
    let action = default_action();
    // SAFETY: the default action of a signal.
    unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) };
    // SAFETY: empties the set that it is given.
    unsafe { libc::sigemptyset(only.as_mut_ptr()) };
    // SAFETY: the set was written above.
    unsafe { libc::sigaddset(only.as_mut_ptr(), libc::SIGALRM) };
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, only.as_ptr(), ptr::null_mut()) };
    // SAFETY: has no arguments that could be wrong.
    unsafe { libc::alarm(seconds) };
}
