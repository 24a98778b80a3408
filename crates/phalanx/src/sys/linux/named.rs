//! Memory that has a name: shm_open(3), shm_unlink(3).
//!
//! It outlives its processes, until somebody removes the name.

use std::io;

use rustix::fs::{FallocateFlags, Mode, fallocate, fstatvfs, ftruncate};
use rustix::io::Errno;
use rustix::shm::{self, OFlags};

use super::Memory;

/// How much is allocated at once. A signal that arrives meanwhile takes back what this call has
/// allocated, so that one call for everything would never end where signals come often.
const PIECE: u64 = 16 << 20;

/// Makes `len` bytes of zeros under a name that is not taken.
///
/// The memory is taken from the system here: what is not there is an error now (ENOSPC), and not
/// a SIGBUS for whoever touches it first.
pub(crate) fn create(name: &str, len: usize) -> io::Result<Memory> {
    if len == 0 {
        return Err(Errno::INVAL.into());
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    let fd = shm::open(name, flags, Mode::RUSR | Mode::WUSR)?;
    let fill = || {
        let len = len as u64;
        // At once, for who finds the name meanwhile.
        ftruncate(&fd, len)?;
        let system = fstatvfs(&fd)?;
        if len > system.f_bavail.saturating_mul(system.f_frsize) {
            return Err(Errno::NOSPC);
        }
        for start in (0..len).step_by(PIECE as usize) {
            let piece = PIECE.min(len - start);
            rustix::io::retry_on_intr(|| fallocate(&fd, FallocateFlags::empty(), start, piece))?;
        }
        Ok(())
    };
    if let Err(error) = fill() {
        let _ = shm::unlink(name);
        return Err(error.into());
    }
    Memory::from_file(fd)
}

/// The memory of that name.
pub(crate) fn open(name: &str) -> io::Result<Memory> {
    Memory::from_file(shm::open(name, OFlags::RDWR, Mode::empty())?)
}

/// Removes a name. Who has the memory keeps it.
pub(crate) fn remove(name: &str) -> io::Result<()> {
    Ok(shm::unlink(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_its_name_until_that_is_removed() {
        let name = format!("/phalanx-test-{}", std::process::id());
        assert_eq!(create(&name, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let made = create(&name, 5000).unwrap();
        assert_eq!(create(&name, 1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(open(&name).unwrap().len(), made.len());
        remove(&name).unwrap();
        assert_eq!(open(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(remove(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn more_than_there_is_leaves_no_name() {
        let name = format!("/phalanx-test-full-{}", std::process::id());
        assert_eq!(create(&name, 1 << 50).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(open(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
