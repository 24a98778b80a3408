//! What is short when the system refuses, and how to have more of it.
//!
//! Every error of the operating system comes by here once, when it becomes an [`Error`](super::Error):
//! so there is one text for each limit, whoever ran into it.

use std::fmt;
use std::io;

use crate::sys::limits;

/// A system call that this system does not have, or does not let us make.
///
/// The error alone does not say which one it was: it travels with its name.
#[derive(Debug)]
struct Refused {
    call: &'static str,
    errno: i32,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for Refused {}

/// Gives an error the name of the call that failed, where the hint will need it.
pub(crate) fn in_call(call: &'static str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    match error.raw_os_error() {
        Some(errno @ (libc::ENOSYS | libc::EPERM | libc::ENOSPC)) => {
            io::Error::new(error.kind(), Refused { call, errno })
        }
        _ => error,
    }
}

/// The system's own error, and how to have more of what is short.
pub(super) fn explain(error: io::Error) -> (io::Error, Option<String>) {
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<Refused>());
    let (errno, call) = match refused {
        Some(refused) => (refused.errno, Some(refused.call)),
        // That of an allocator, which has no number.
        None if error.kind() == io::ErrorKind::OutOfMemory => (libc::ENOMEM, None),
        None => match error.raw_os_error() {
            Some(errno) => (errno, None),
            None => return (error, None),
        },
    };
    (io::Error::from_raw_os_error(errno), hint(errno, call))
}

/// Is it that something is used up, of which there may be more in a moment?
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno.is_some_and(|errno| hint(errno, None).is_some())
}

/// Which limit an error of the system stands for, and how to raise it; `call` is the call that
/// failed, where that is known: "epoll_ctl(2)".
#[must_use]
pub fn hint(errno: i32, call: Option<&str>) -> Option<String> {
    Some(match (errno, call) {
        (libc::EMFILE, _) => format!(
            "this process may have {} descriptors (RLIMIT_NOFILE); close some, or raise the limit \
             with `ulimit -n`",
            limits::most(limits::Resource::OpenFiles)
        ),
        (libc::ENFILE, _) => {
            "the system has as many open files as it may have; raise `sysctl fs.file-max`".into()
        }
        (libc::EAGAIN, _) => format!(
            "there are as many processes and threads as there may be: {} of this user \
             (RLIMIT_NPROC; raise it with `ulimit -u`), those that the control group may have \
             (pids.max), and those of the system (`sysctl kernel.pid_max kernel.threads-max`)",
            limits::most(limits::Resource::Processes)
        ),
        (libc::ENOMEM, _) => format!(
            "not enough memory: of this process (RLIMIT_AS is {}; raise it with `ulimit -v`), of \
             the machine or the control group (memory.max), or of mappings (`sysctl \
             vm.max_map_count`)",
            limits::most(limits::Resource::Memory)
        ),
        (libc::ENOSPC, Some("epoll_ctl(2)")) => {
            "this user watches as many descriptors as it may; raise `sysctl \
             fs.epoll.max_user_watches`"
                .into()
        }
        (libc::ENOSPC, _) => {
            "no room is left for that in memory or on its disk; see `df -h /dev/shm /tmp`, and \
             have more with `mount -o remount,size=SIZE /dev/shm` or TMPDIR=DIRECTORY"
                .into()
        }
        (libc::ENOSYS | libc::EPERM, Some(call)) => format!(
            "{call} is needed, and this system has no such call or forbids it (a seccomp filter; \
             a container's security profile)"
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Error;
    use super::*;

    #[test]
    fn a_shortage_is_told_with_its_limit() {
        let told = |errno| Error::os("do it", io::Error::from_raw_os_error(errno)).to_string();
        assert!(told(libc::EMFILE).contains("RLIMIT_NOFILE"), "{}", told(libc::EMFILE));
        assert!(told(libc::ENFILE).contains("fs.file-max"));
        assert!(told(libc::EAGAIN).contains("RLIMIT_NPROC"));
        assert!(told(libc::ENOMEM).contains("RLIMIT_AS"));
        assert!(told(libc::ENOSPC).contains("/dev/shm"));
        assert_eq!(told(libc::EBADF), "failed to do it: Bad file descriptor (os error 9)");
    }

    #[test]
    fn a_missing_call_is_named_and_keeps_its_number() {
        let missing = io::Error::from_raw_os_error(libc::ENOSYS);
        let error = Error::os("watch a child", in_call("pidfd_open(2)", missing));
        assert_eq!(error.os_error().unwrap().raw_os_error(), Some(libc::ENOSYS));
        assert!(error.to_string().contains("pidfd_open(2) is needed"), "{error}");
        let other = in_call("pidfd_open(2)", io::Error::from_raw_os_error(libc::ESRCH));
        assert_eq!(other.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn an_allocator_that_has_no_more_is_a_system_that_has_no_more() {
        let error = Error::os("make room", io::Error::from(io::ErrorKind::OutOfMemory));
        assert_eq!(error.os_error().unwrap().raw_os_error(), Some(libc::ENOMEM));
        assert!(is_shortage(error.os_error().unwrap()));
        assert!(!is_shortage(&io::Error::from_raw_os_error(libc::ENOENT)));
    }
}
