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

fn id(pid: u32) -> io::Result<Option<Pid>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.map(Some).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
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
    let resource = match resource {
        Resource::Memory => Os::As,
        Resource::CpuTime => Os::Cpu,
        Resource::OpenFiles => Os::Nofile,
        Resource::FileSize => Os::Fsize,
        Resource::CoreSize => Os::Core,
        Resource::Processes => Os::Nproc,
        Resource::Stack => Os::Stack,
        Resource::LockedMemory => Os::Memlock,
    };
    prlimit(id(pid)?, resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(())
}
