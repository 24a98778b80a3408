//! How a process ended.

use std::fmt;

/// How a process ended.
///
/// ```
/// # use phalanx::process::Exit;
/// let killed = Exit::from_wait_status(9); // the word that waitpid(2) fills in
/// assert_eq!(killed.code(), -9); // as Python's `Process.exitcode` has it
/// assert_eq!(killed.to_string(), "was killed by SIGKILL (9)");
/// assert_eq!(Exit::from_wait_status(3 << 8).to_string(), "exited with code 3");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(i32);

impl Exit {
    /// For a process whose end was seen and whose status was not: code 255, as in CPython.
    pub(crate) const UNKNOWN: Self = Self(255);

    /// From the status word of waitpid(2).
    #[must_use]
    pub const fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self((status >> 8) & 0xff),
            signal => Self(-signal),
        }
    }

    /// The exit code, or the negative number of the signal.
    #[must_use]
    pub const fn code(self) -> i32 {
        self.0
    }

    /// The signal that ended the process, if one did.
    #[must_use]
    pub const fn signal(self) -> Option<i32> {
        if self.0 < 0 { Some(-self.0) } else { None }
    }

    /// Did the process end of itself, with code 0?
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// The name of the signal that ended the process: "SIGSEGV"; `None` for an exit of its own
    /// and for real-time signals.
    #[must_use]
    pub fn signal_name(self) -> Option<&'static str> {
        let signal = self.signal()?;
        SIGNALS.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.signal(), self.signal_name()) {
            (None, _) => write!(f, "exited with code {}", self.0),
            (Some(number), Some(name)) => write!(f, "was killed by {name} ({number})"),
            (Some(number), None) => write!(f, "was killed by signal {number}"),
        }
    }
}

const SIGNALS: &[(i32, &str)] = &[
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGSYS, "SIGSYS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_dump_does_not_change_the_signal() {
        let exit = Exit::from_wait_status(libc::SIGSEGV | 0x80);
        assert_eq!((exit.code(), exit.signal_name()), (-libc::SIGSEGV, Some("SIGSEGV")));
    }

    #[test]
    fn an_exit_has_no_signal() {
        let exit = Exit::from_wait_status(255 << 8);
        assert_eq!((exit.code(), exit.signal(), exit.signal_name()), (255, None, None));
        assert!(!exit.is_success());
    }
}
