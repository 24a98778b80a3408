//! Start, watch, signal and reap a process: posix_spawn(3), pidfd_open(2), waitid(2).

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::{fs, ptr};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, pidfd_open,
    pidfd_send_signal, waitid, waitpid,
};

pub(crate) use super::identity::is_stopped;
use super::limits;
use super::socket::borrow;
use crate::error::in_call;

/// A descriptor for the process `pid`, readable from its end on.
///
/// Without a race only for a child of ours that has not been reaped, and for ourselves.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|error| in_call("pidfd_open(2)", error))
}

/// Takes the exit status of a child of ours, as waitpid(2) gives it, if it has ended.
pub(crate) fn try_reap(pidfd: impl AsFd) -> io::Result<Option<i32>> {
    let id = WaitId::PidFd(pidfd.as_fd());
    let status = waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
    Ok(status.map(|status| {
        let core = if status.dumped() { 0x80 } else { 0 };
        match status.terminating_signal() {
            Some(signal) => signal | core,
            None => (status.exit_status().unwrap_or(255) & 0xff) << 8,
        }
    }))
}

/// Sends a signal; to a process that has ended too, where it does nothing.
pub(crate) fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    if !(1..=libc::SIGRTMAX()).contains(&signal) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: in the range of signals, and not 0.
    let signal = unsafe { Signal::from_raw_unchecked(signal) };
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends a child of ours that we cannot watch.
pub(crate) fn kill_and_reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}

/// Where a program runs, if not where we do.
#[derive(Debug, Default)]
pub(crate) struct Surroundings<'a> {
    pub(crate) directory: Option<&'a CStr>,
    /// What it has as standard input, output and error.
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
    /// SIGINT is blocked.
    pub(crate) held: bool,
}

/// Runs the program `path` in a new process; without `env`, in our environment.
///
/// The descriptors `keep` stay open there at their numbers, with 0, 1 and 2; all others are closed.
/// No signal is blocked there, but for SIGINT if that is asked for.
pub(crate) fn spawn(
    path: &CStr,
    args: &[CString],
    env: Option<&[CString]>,
    keep: &[RawFd],
    surroundings: &Surroundings<'_>,
) -> io::Result<u32> {
    let inherited;
    let env = match env {
        Some(env) => env,
        None => {
            inherited = environment();
            &inherited
        }
    };
    let mut actions = FileActions::new()?;
    for fd in others(keep) {
        match actions.close(fd) {
            // The limit has been lowered since it was opened, and the C library takes no number
            // beyond it: that one stays open there.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
            other => other?,
        }
    }
    for &fd in keep {
        fcntl_getfd(borrow(fd)?)?; // EBADF here, where the caller learns of it
        actions.keep(fd)?;
    }
    if let Some(directory) = surroundings.directory {
        actions.change_directory(directory)?;
    }
    // Copies above 2 come first: a stream may be meant to become another one.
    let mut streams = Vec::new();
    for (number, stream) in (0..).zip(&surroundings.streams) {
        if let Some(stream) = stream {
            streams.push((number, fcntl_dupfd_cloexec(stream, 3)?));
        }
    }
    for (number, stream) in &streams {
        actions.copy(stream.as_raw_fd(), *number)?;
    }
    let attributes = Attributes::new(surroundings.held)?;
    let (args, env) = (pointers(args), pointers(env));
    let mut pid = 0;
    // SAFETY: every pointer is to a NUL-terminated string, or to an array that ends with null,
    // which outlives the call.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            args.as_ptr(),
            env.as_ptr(),
        )
    })
    .map_err(|error| in_call("clone(2), clone3(2) or execve(2)", error))?;
    Ok(pid.cast_unsigned())
}

/// The descriptors above 2 that would survive exec and are not among `keep`.
fn others(keep: &[RawFd]) -> Vec<RawFd> {
    let survives = |fd: RawFd| {
        let flags = borrow(fd).and_then(|fd| Ok(fcntl_getfd(fd)?));
        flags.is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC))
    };
    let mut others: Vec<RawFd> = match fs::read_dir("/proc/self/fd") {
        Ok(open) => open.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect(),
        // Not mounted, or there is no descriptor left to read it: ask for one after the other.
        Err(_) => (3..limits::open_files().min(MANY)).collect(),
    };
    others.retain(|fd| *fd > 2 && !keep.contains(fd) && survives(*fd));
    others
}

/// Where /proc cannot tell, descriptors are looked for up to here: a tenth of a second's work.
const MANY: RawFd = 1 << 20;

fn environment() -> Vec<CString> {
    let entry = |(name, value): (OsString, OsString)| {
        CString::new([&name.into_vec()[..], b"=", &value.into_vec()].concat()).ok()
    };
    std::env::vars_os().filter_map(entry).collect()
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: it fills the memory that we give it.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: filled above.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn close(&mut self, fd: RawFd) -> io::Result<()> {
        // SAFETY: initialised by `new`.
        check(unsafe { libc::posix_spawn_file_actions_addclose(&raw mut self.0, fd) })
    }

    /// A copy onto itself, which the C library takes as an order to clear close-on-exec.
    fn keep(&mut self, fd: RawFd) -> io::Result<()> {
        self.copy(fd, fd)
    }

    fn copy(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: initialised by `new`.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, to) })
    }

    fn change_directory(&mut self, path: &CStr) -> io::Result<()> {
        // SAFETY: initialised by `new`; the path, which ends with NUL, is copied.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, path.as_ptr()) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and not used after this.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// With a signal mask that is empty but for SIGINT if that is `held`.
    fn new(held: bool) -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: it fills the memory that we give it.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: filled above.
        let mut this = Self(unsafe { attributes.assume_init() });

        let mut mask = MaybeUninit::uninit();
        // SAFETY: it fills the memory that we give it.
        unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
        // SAFETY: filled above.
        let mut mask = unsafe { mask.assume_init() };
        if held {
            // SAFETY: initialised, and that is a signal's number.
            unsafe { libc::sigaddset(&raw mut mask, libc::SIGINT) };
        }
        // SAFETY: both are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut this.0, &raw const mask) })?;
        let flags = libc::POSIX_SPAWN_SETSIGMASK as libc::c_short;
        // SAFETY: initialised above.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut this.0, flags) })?;
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and not used after this.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// Bytes of memory that a process has in use: the resident set of proc_pid_statm(5).
pub(crate) fn resident(pid: u32) -> Option<u64> {
    Some(statm(pid)?.0)
}

/// Those of them that are no mapping of a file or of shared memory.
pub(crate) fn unshared(pid: u32) -> Option<u64> {
    let (resident, shared) = statm(pid)?;
    Some(resident.saturating_sub(shared))
}

/// Those of them that no other process sees, not even the one that it was forked from: the private
/// pages of proc_pid_smaps(5). To count them takes a millisecond or more.
pub(crate) fn private(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Some(kib.sum::<u64>() << 10)
}

fn statm(pid: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = text.split(' ').skip(1).map_while(|word| word.parse::<u64>().ok());
    let size = rustix::param::page_size() as u64;
    Some((pages.next()? * size, pages.next()? * size))
}
