//! What a process may use: setpriority(2), sched_setaffinity(2), prlimit(2).

use std::io;

use rustix::process::{Pid, Resource as Os, Rlimit, prlimit, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// What of a process can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// Bytes of address space (RLIMIT_AS): allocations beyond it fail.
    Memory,
    /// Seconds of processor time (RLIMIT_CPU): SIGXCPU ends the process then.
    CpuTime,
    /// Descriptors (RLIMIT_NOFILE): one more than the highest number.
    OpenFiles,
    /// Bytes of a file that the process writes (RLIMIT_FSIZE): SIGXFSZ ends it beyond.
    FileSize,
    /// Bytes of a core file (RLIMIT_CORE); 0 for none.
    CoreSize,
    /// Processes and threads of its user (RLIMIT_NPROC).
    Processes,
    /// Bytes of the main thread's stack (RLIMIT_STACK).
    Stack,
    /// Bytes of memory that is kept from being swapped (RLIMIT_MEMLOCK).
    LockedMemory,
}

impl Resource {
    fn os(self) -> Os {
        match self {
            Self::Memory => Os::As,
            Self::CpuTime => Os::Cpu,
            Self::OpenFiles => Os::Nofile,
            Self::FileSize => Os::Fsize,
            Self::CoreSize => Os::Core,
            Self::Processes => Os::Nproc,
            Self::Stack => Os::Stack,
            Self::LockedMemory => Os::Memlock,
        }
    }
}

fn id(pid: u32) -> io::Result<Option<Pid>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.map(Some).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// How much of a resource this process may use, in words.
pub(crate) fn most(resource: Resource) -> String {
    let most = rustix::process::getrlimit(resource.os()).current;
    most.map_or_else(|| "unlimited".into(), |most| most.to_string())
}

/// One more than the highest number that a descriptor of this process can have.
pub(super) fn open_files() -> i32 {
    let most = rustix::process::getrlimit(Os::Nofile).current;
    most.and_then(|most| i32::try_from(most).ok()).unwrap_or(i32::MAX)
}

/// How large a file may be that this process makes; memory with a descriptor is one, too.
///
/// Beyond it there is not just an error but a signal (SIGXFSZ).
pub(crate) fn largest_file() -> u64 {
    rustix::process::getrlimit(Os::Fsize).current.unwrap_or(u64::MAX)
}

/// Sets a process's niceness: -20 is served first, 19 last.
pub(crate) fn set_niceness(pid: u32, niceness: i32) -> io::Result<()> {
    Ok(setpriority_process(id(pid)?, niceness)?)
}

/// Has a process run on these CPUs alone.
pub(crate) fn set_cpus(pid: u32, cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        set.set(cpu);
    }
    Ok(sched_setaffinity(id(pid)?, &set)?)
}

/// Limits what a process can use, for good unless it is privileged.
pub(crate) fn limit(pid: u32, resource: Resource, most: u64) -> io::Result<()> {
    prlimit(id(pid)?, resource.os(), Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(())
}
