//! Which process: a pid, and the moment that its bearer started, in one word. proc_pid_stat(5).
//!
//! A pid is given to another process when its bearer is gone, so a word that another process left
//! in shared memory has to say which of the bearers it means.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::socket::wait_readable;
use super::{child, fork};

/// Bits of a pid: the kernel's PID_MAX_LIMIT is 2^22.
const PID_BITS: u32 = 22;
const PID_MASK: u64 = (1 << PID_BITS) - 1;
/// Where the start begins: after the pid and the spare bit.
const START: u32 = PID_BITS + 1;

/// This process's own word, once it was asked for. A forked child starts without.
static OWN: AtomicU64 = AtomicU64::new(0);

/// A process, and no other that has had its pid or will.
///
/// | bits | meaning |
/// | --- | --- |
/// | 0 to 21 | the pid, never 0 |
/// | 22 | 0; a word that holds an identity may use it for itself |
/// | 23 to 63 | its start in ticks since boot; 0 where /proc cannot be read |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId(NonZeroU64);

/// What became of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Alive,
    /// It has ended; with the status as waitpid(2) gives it, where nobody has reaped it yet.
    Ended(Option<i32>),
}

impl ProcessId {
    /// The calling process.
    pub(crate) fn own() -> Self {
        if let Some(own) = Self::from_bits(OWN.load(Ordering::Relaxed)) {
            return own;
        }
        fork::generation(); // registers the handler that forgets the word in a forked child
        let pid = std::process::id();
        let own = Self::new(pid, Stat::read(pid).map_or(0, |stat| stat.start));
        OWN.store(own.bits(), Ordering::Relaxed);
        own
    }

    fn new(pid: u32, start: u64) -> Self {
        let bits = start << START | u64::from(pid) & PID_MASK;
        Self(NonZeroU64::new(bits).expect("a process's pid is not 0"))
    }

    /// The bit of a word that no identity uses. It is in the lower half.
    pub(crate) const SPARE: u64 = 1 << PID_BITS;

    /// From a word of shared memory, whatever its spare bit is; 0 is nobody.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let bits = bits & !Self::SPARE;
        if bits & PID_MASK == 0 { None } else { NonZeroU64::new(bits).map(Self) }
    }

    pub(crate) fn bits(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn pid(self) -> u32 {
        (self.bits() & PID_MASK) as u32
    }

    fn start(self) -> u64 {
        self.bits() >> START
    }

    /// Whether the process lives; one that nobody has reaped does not.
    pub(crate) fn fate(self) -> Fate {
        match Stat::read(self.pid()) {
            Ok(stat) if self.start() != 0 && stat.start != self.start() => Fate::Ended(None),
            Ok(stat) if stat.ended => Fate::Ended(stat.status),
            Ok(_) => Fate::Alive,
            // No such process; or /proc is not mounted, or hides other people's (hidepid).
            Err(_) if runs(self.pid()) => Fate::Alive,
            Err(_) => Fate::Ended(None),
        }
    }

    pub(crate) fn is_alive(self) -> bool {
        self.fate() == Fate::Alive
    }
}

/// Forgets who we are: a forked child is somebody else.
pub(super) fn forget() {
    OWN.store(0, Ordering::Relaxed);
}

/// What can be said without /proc. A process that has ended and that nobody has reaped can still be
/// sent signals, so its pidfd is asked, if we can have one.
fn runs(pid: u32) -> bool {
    match child::open(pid) {
        Ok(pidfd) => !wait_readable(pidfd, Some(Instant::now())).unwrap_or(false),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => false,
        Err(_) => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
        }
    }
}

/// Has a signal stopped the process, and does no debugger hold it? As far as /proc tells.
pub(crate) fn is_stopped(pid: u32) -> bool {
    Stat::read(pid).is_ok_and(|stat| stat.stopped)
}

/// What we need of /proc/PID/stat.
struct Stat {
    ended: bool,
    stopped: bool,
    start: u64,
    /// Zero for those who may not look.
    status: Option<i32>,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The second field is a name in brackets that may hold anything, brackets too.
    fn parse(text: &[u8]) -> Option<Self> {
        let after = text.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&text[after..]).ok()?.split_ascii_whitespace();
        let state = fields.next()?;
        let (ended, stopped) = (matches!(state, "Z" | "X"), state == "T");
        let start = fields.nth(22 - 4)?.parse().ok()?;
        let status = fields.nth(52 - 23).and_then(|status| status.parse().ok());
        Some(Self { ended, stopped, start, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn this_process_is_alive_and_knows_itself() {
        let own = ProcessId::own();
        assert_eq!(own.pid(), std::process::id());
        assert_ne!(own.start(), 0);
        assert_eq!(own.fate(), Fate::Alive);
        assert_eq!(ProcessId::from_bits(own.bits()), Some(own));
        assert_eq!(ProcessId::from_bits(0), None);
        assert_eq!(ProcessId::from_bits(7 << START), None, "a start without a pid is nonsense");
    }

    #[test]
    fn an_ended_process_has_ended_before_it_is_reaped_and_after() {
        let mut command = Command::new("sh");
        command.args(["-c", "read line; exit 3"]).stdin(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stat = Stat::read(child.id()).unwrap();
        let id = ProcessId::new(child.id(), stat.start);
        assert!(id.is_alive());
        drop(child.stdin.take());
        let ended = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while id.is_alive() {
            assert!(std::time::Instant::now() < ended, "the child does not end");
            std::thread::yield_now();
        }
        assert_eq!(id.fate(), Fate::Ended(Some(3 << 8)));
        child.wait().unwrap();
        assert_eq!(id.fate(), Fate::Ended(None));
    }

    #[test]
    fn another_bearer_of_the_pid_is_another_process() {
        let own = ProcessId::own();
        let earlier = ProcessId::new(own.pid(), own.start() - 1);
        assert_eq!(earlier.fate(), Fate::Ended(None));
    }

    #[test]
    fn a_name_with_brackets_and_spaces_is_no_field() {
        let line = b"42 (a) R (b)) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        let stat = Stat::parse(line).unwrap();
        assert!(stat.ended);
        assert_eq!((stat.start, stat.status), (777, None));
        assert!(Stat::parse(b"nonsense").is_none());
    }
}
