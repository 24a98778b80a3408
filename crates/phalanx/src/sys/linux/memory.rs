//! Memory that has a descriptor, and views of it: memfd_create(2), mmap(2).

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::fork;
use crate::error::in_call;

/// An empty file in memory.
pub(super) fn create(name: &str, flags: MemfdFlags) -> io::Result<OwnedFd> {
    memfd_create(name, flags).map_err(|error| in_call("memfd_create(2)", error))
}

/// A huge page. Other sizes than that of x86-64 and aarch64 cost speed only.
const HUGE: usize = 2 << 20;

/// Asks for huge pages for memory of ours that was not touched yet, if it is large: to clear and map
/// small ones, one by one, takes several times as long as to fill them.
pub(crate) fn advise_huge(room: &mut [MaybeUninit<u8>]) {
    let first = room.as_mut_ptr();
    let start = first.addr().next_multiple_of(HUGE);
    let end = (first.addr() + room.len()) / HUGE * HUGE;
    if end > start + HUGE {
        let place = first.with_addr(start).cast();
        // SAFETY: a hint for whole pages inside of memory of ours, which changes no byte.
        let _ = unsafe { madvise(place, end - start, Advice::LinuxHugepage) };
    }
}

/// An empty vector with room for `len` bytes, on huge pages if it is large.
fn roomy(len: usize) -> io::Result<Vec<u8>> {
    let mut room = Vec::<u8>::new();
    room.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    advise_huge(room.spare_capacity_mut());
    Ok(room)
}

/// Memory without a name: it is gone when the last descriptor and the last view are.
#[derive(Debug)]
pub(crate) struct Memory {
    fd: OwnedFd,
    len: usize,
}

impl Memory {
    /// `len` bytes of zeros. Pages are taken when they are first touched.
    ///
    /// The size is sealed: nobody can shrink it under another's feet (SIGBUS).
    pub(crate) fn new(name: &str, len: usize) -> io::Result<Self> {
        let fd = create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { fd, len })
    }

    /// The memory behind a descriptor that another process passed on.
    ///
    /// Memory whose size can still change is refused.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&fd)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory that can shrink"));
        }
        Self::from_file(fd)
    }

    /// The memory behind a descriptor, all that is there now.
    ///
    /// Whoever can write it can shrink it, which is a SIGBUS for who touches what is gone.
    pub(crate) fn from_file(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Self { fd: file.into(), len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Tells this memory from all others that exist now, by whichever descriptor it is seen.
    ///
    /// The kernel counts its anonymous files in 32 bits; that two of the same length and 4 billion
    /// apart meet in one process is not guarded against.
    pub(crate) fn identity(&self) -> io::Result<(u64, u64, usize)> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok((stat.st_dev, stat.st_ino, self.len))
    }

    /// How many bytes of memory the machine has.
    pub(crate) fn physical() -> usize {
        // SAFETY: it only returns numbers.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        usize::try_from(pages).unwrap_or(0).saturating_mul(rustix::param::page_size())
    }

    /// How many bytes of it have pages: nobody can have written more.
    pub(crate) fn backed(&self) -> io::Result<u64> {
        let blocks = rustix::fs::fstat(&self.fd)?.st_blocks;
        Ok(u64::try_from(blocks).unwrap_or(0).saturating_mul(512))
    }

    /// Takes the pages of a range now, so that a lack of memory is an error here and not a signal
    /// (SIGBUS) later.
    pub(crate) fn back(&self, offset: usize, len: usize) -> io::Result<()> {
        loop {
            match fallocate(&self.fd, FallocateFlags::empty(), offset as u64, len as u64) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// A copy of `len` bytes, made without a view.
    pub(crate) fn copy(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        let mut copy = roomy(len)?;
        while copy.len() < len {
            let at = (offset + copy.len()) as u64;
            match rustix::io::pread(&self.fd, spare_capacity(&mut copy), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        copy.truncate(len);
        Ok(copy)
    }

    /// Gives the pages of a range back; they read as zeros after it.
    pub(crate) fn discard(&self, offset: usize, len: usize) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // What could not be given back is still there to be used.
        let _ = fallocate(&self.fd, flags, offset as u64, len as u64);
    }

    /// Maps `len` bytes from `offset`, both multiples of the page size.
    ///
    /// The view is not inherited by fork: a child that wants one maps its own.
    pub(crate) fn map(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        let mut mapping = self.map_inherited(offset, len)?;
        mapping.generation = Some(fork::generation());
        // SAFETY: the range is the mapping that we have just made.
        unsafe { madvise(mapping.start.as_ptr().cast::<c_void>(), len, Advice::LinuxDontFork) }?;
        Ok(mapping)
    }

    /// As [`map`](Self::map), for a view that a forked child has too.
    pub(crate) fn map_inherited(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        self.map_with(MapFlags::SHARED, offset, len)
    }

    /// As [`map_inherited`](Self::map_inherited), for a view whose writer writes into copies of his
    /// own, page by page. He sees what others write where he has not written.
    pub(crate) fn map_private(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        self.map_with(MapFlags::PRIVATE | MapFlags::NORESERVE, offset, len)
    }

    fn map_with(&self, flags: MapFlags, offset: usize, len: usize) -> io::Result<Mapping> {
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a view outside its memory"));
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { mmap(ptr::null_mut(), len, access, flags, &self.fd, offset as u64) }?;
        let start = NonNull::new(start.cast()).expect("mmap does not return null");
        Ok(Mapping { start, len, offset, generation: None })
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A view of shared memory: `len` bytes that other processes may write at any time.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Where in its memory it begins.
    offset: usize,
    /// Of a view that is not inherited: a forked child has no such mapping, only this value, and
    /// must not unmap what it does not have.
    generation: Option<u32>,
}

// SAFETY: a mapping belongs to the process, not to a thread; what is in it is reached through
// raw pointers and atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes the pages of a range of `memory` and maps them, all at once; see [`Memory::back`].
    ///
    /// A page at a time, as it is touched, would take several times as long.
    pub(crate) fn back(&self, memory: &Memory, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset <= self.len && len <= self.len - offset, "a range outside its view");
        let start = self.start.as_ptr().wrapping_add(offset).cast::<c_void>();
        // SAFETY: the range is within this view, and what it holds does not change.
        match unsafe { madvise(start, len, Advice::LinuxPopulateWrite) } {
            Ok(()) => Ok(()),
            // Before Linux 5.14; or a signal, or no memory, which it will say then.
            Err(_) => memory.back(self.offset + offset, len),
        }
    }

    /// Makes a private view, which nobody looks at, show what is in its memory everywhere: drops the
    /// pages that its owner has written. Those that he has only read stay mapped.
    ///
    /// # Errors
    ///
    /// If it cannot be known which they are, or they cannot be dropped: then it must not be used again.
    pub(crate) fn revert(&self) -> io::Result<()> {
        /// proc_pid_pagemap(5): a page is there, or on a disk; it is a file's or shared, and not ours.
        const THERE: u64 = 0b11 << 62;
        const FOREIGN: u64 = 1 << 61;
        const WORD: usize = size_of::<u64>();
        let page = rustix::param::page_size();
        let (first, count) = (self.start.addr().get() / page, self.len.div_ceil(page));
        // Opened each time: a forked child would read of its parent.
        let pages = File::open("/proc/self/pagemap")?;
        let mut words = [0; 512 * WORD];
        let mut written = 0..0;
        for index in 0..=count {
            let at = index * WORD % words.len();
            if at == 0 && index < count {
                let some = ((count - index) * WORD).min(words.len());
                pages.read_exact_at(&mut words[..some], ((first + index) * WORD) as u64)?;
            }
            let word = u64::from_ne_bytes(words[at..at + WORD].try_into().expect("a word"));
            if index < count && word & THERE != 0 && word & FOREIGN == 0 {
                if written.is_empty() {
                    written.start = index;
                }
                written.end = index + 1;
            } else if !written.is_empty() {
                let start = self.start.as_ptr().wrapping_add(written.start * page).cast();
                let len = written.len() * page;
                // SAFETY: whole pages of a view of ours that nobody looks at.
                unsafe { madvise(start, len, Advice::LinuxDontNeed) }?;
                written = 0..0;
            }
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.generation.is_none_or(|generation| generation == fork::generation()) {
            // SAFETY: the range is ours, and nothing can reach it after this.
            let _ = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.len) };
        }
    }
}

/// Bytes of memory and swap that the machine has.
pub(crate) fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64 + info.totalswap as u64) * u64::from(info.mem_unit)
}

/// Gives memory that the allocator holds and nobody uses back to the system: malloc_trim(3).
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}
