//! The operating system: the first of the two rooms that hold `unsafe`.
//!
//! A platform is a folder that gives every name below; above `sys` there is no
//! `cfg(target_os)`. [`hollow`](self) has the names and no insides, so that the crate compiles
//! anywhere and says at run time that the system is not supported.
//!
//! | name | what it is | on Linux |
//! | --- | --- | --- |
//! | `futex::*` | sleep while a shared word has a value | futex(2) |
//! | `monotonic` | the time, the same for all processes | clock_gettime(2) |
//! | `Memory`, `Mapping` | anonymous memory with a descriptor, and a view of it | memfd_create(2), mmap(2) |
//! | `advise_huge` | a wish for huge pages | madvise(2) |
//! | `named::*` | memory that has a name | shm_open(3) |
//! | `total_memory` | bytes that the machine has | sysinfo(2) |
//! | `Event`, `Poller` | a counter to wait for among descriptors | eventfd(2), epoll(7) |
//! | `ProcessId`, `Fate` | a process, told from later bearers of its pid | proc_pid_stat(5) |
//! | `fork::{generation, ForkClosed}` | what a forked child must not keep | pthread_atfork(3) |
//! | `fork::{children, Whole}` | who may know a thing; state that a fork finds whole | pthread_atfork(3) |
//! | `lifeline`, `die_with_owner` | a worker that ends with its owner | pipe(7), F_SETSIG in fcntl(2) |
//! | `kill_tree_of`, `let_be` | what a worker has started, which ends with it | setpgid(2), F_SETOWN in fcntl(2) |
//! | `kill_with_owner`, `send_when_closed` | another process that ends with this one | F_SETOWN, F_SETSIG in fcntl(2) |
//! | `report` | a pipe at which nobody waits | pipe(7) |
//! | `trace_signal`, `answer_trace` | a signal of ours, and a stack in answer to it | signal(7), sigaction(2), clone(2) |
//! | `CRASHES` | the signals of those that have done something wrong | signal(7) |
//! | `heirloom` | a pipe that tells when the last forked child has ended | pipe(7) |
//! | `child::*` | start, watch, signal and reap a process | posix_spawn(3), pidfd_open(2), waitid(2) |
//! | `rendezvous::*` | meeting a process of the same user | abstract sockets, unix(7) |
//! | `cpus::*` | how many CPUs a process may use | sched_getaffinity(2), cgroups(7) |
//! | `limits::*` | what a process may use | setpriority(2), sched_setaffinity(2), prlimit(2) |
//! | `socket::*` | messages with descriptors between relatives | socketpair(2), SCM_RIGHTS in unix(7) |
//! | `stream::*` | bytes over descriptors that others may have, too | recvmsg(2), sendmsg(2), preadv2(2) |
//! | `thread::current` | which thread of the process | the thread pointer |
//! | `code::*` | a function's place in the executable | the anchor's address |
//! | `again::*` | a program that runs itself again | memfd_create(2), `.init_array` |

#[cfg(all(test, not(loom)))]
pub(crate) mod counting;

#[cfg(all(target_os = "linux", not(phalanx_hollow)))]
mod linux;
#[cfg(all(target_os = "linux", not(phalanx_hollow)))]
pub(crate) use linux::*;

#[cfg(any(not(target_os = "linux"), phalanx_hollow))]
mod hollow;
#[cfg(any(not(target_os = "linux"), phalanx_hollow))]
pub(crate) use hollow::*;
