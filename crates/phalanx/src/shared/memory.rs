//! `Memory`: bytes that processes share.

use std::fmt;
use std::io;

use bytemuck::{AnyBitPattern, NoUninit};

use crate::error::{Error, Result};
use crate::shm::{self, Arena};
use crate::sys::{named, total_memory};

/// A type of plain data: every bit pattern is a value, and there is no padding.
///
/// Numbers are, and arrays of them; a struct of them is one if it says so, as `bytemuck` checks
/// with `#[derive(Pod, Zeroable)]`. A `bool`, a `char`, a reference or a `Box` is none: another
/// process could write bits that are no such value.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not plain data",
    label = "other processes can write any bits into shared memory",
    note = "plain data is a number, an array of plain data, or a struct that derives \
            `bytemuck::Pod`: it has no pointers, no padding, and no invalid bit patterns"
)]
pub trait Plain: AnyBitPattern + NoUninit + Send + Sync {}

impl<T: AnyBitPattern + NoUninit + Send + Sync> Plain for T {}

/// Bytes that processes share.
pub struct Memory {
    plain: shm::Plain,
    name: Option<String>,
}

fn outside() -> Error {
    Error::invalid("a range outside of shared memory")
}

impl Memory {
    /// `len` bytes of zeros, without a name: they are gone when the last process is that has them.
    ///
    /// # Errors
    ///
    /// If `len` is more than the machine has, or there is no descriptor left.
    pub fn new(len: usize) -> Result<Self> {
        let fits = len as u64 <= total_memory();
        let none = || Err(io::Error::from_raw_os_error(libc::ENOMEM));
        let plain = if fits { shm::Plain::new(len) } else { none() };
        let plain = plain.map_err(|e| Error::os("allocate shared memory", e))?;
        Ok(Self { plain, name: None })
    }

    /// `len` bytes of zeros, with a name that is not taken. The memory is there from now on.
    ///
    /// The name is that of shm_open(3), a leading `/` may be left out: Python's
    /// `SharedMemory(name)` finds it. It stays until somebody [removes](Self::remove) it.
    ///
    /// # Errors
    ///
    /// If the name is taken or none, `len` is 0, or there is not so much memory.
    pub fn create(name: &str, len: usize) -> Result<Self> {
        let plain = named::create(name, len).and_then(|memory| shm::Plain::map(&memory));
        let plain = plain.map_err(|e| Error::os("create shared memory", e))?;
        Ok(Self { plain, name: Some(name.into()) })
    }

    /// The memory of that name.
    ///
    /// # Errors
    ///
    /// If there is none, or it is empty.
    pub fn open(name: &str) -> Result<Self> {
        let plain = named::open(name).and_then(|memory| shm::Plain::map(&memory));
        let plain = plain.map_err(|e| Error::os("open shared memory", e))?;
        Ok(Self { plain, name: Some(name.into()) })
    }

    /// Removes a name. Who has the memory keeps it.
    ///
    /// # Errors
    ///
    /// If there is no such name.
    pub fn remove(name: &str) -> Result<()> {
        named::remove(name).map_err(|e| Error::os("remove the name of shared memory", e))
    }

    /// The memory without a name at the [`place`](Self::place) of another process's.
    ///
    /// # Errors
    ///
    /// If so much is not there.
    pub fn at(arena: &Arena, offset: usize, len: usize) -> Result<Self> {
        let plain = shm::Plain::open(arena, offset, len);
        let plain = plain.map_err(|e| Error::os("open shared memory", e))?;
        Ok(Self { plain, name: None })
    }

    /// Where it is, for [`at`](Self::at) in another process; `None` if it has a name.
    #[must_use]
    pub fn place(&self) -> Option<(Arena, usize)> {
        self.plain.expose()
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.plain.len()
    }

    /// Are there no bytes?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first byte, at an address that is this process's own: for foreign code.
    ///
    /// Others write the bytes at any time, so a `&T` into them is undefined behaviour.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.plain.start().as_ptr()
    }

    /// A copy of the value that begins at the byte `at`.
    ///
    /// # Errors
    ///
    /// If it is not all inside.
    #[inline]
    pub fn load<T: Plain>(&self, at: usize) -> Result<T> {
        self.plain.load(at).ok_or_else(outside)
    }

    /// Writes a value that begins at the byte `at`.
    ///
    /// # Errors
    ///
    /// If there is no room for it.
    #[inline]
    pub fn store<T: Plain>(&self, at: usize, value: T) -> Result<()> {
        self.plain.store(at, value).ok_or_else(outside)
    }

    /// Copies the bytes from `at` on.
    ///
    /// # Errors
    ///
    /// If they are not all inside.
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        self.plain.read(at, into).ok_or_else(outside)
    }

    /// Writes bytes from `at` on.
    ///
    /// # Errors
    ///
    /// If there is no room for them.
    pub fn write(&self, at: usize, from: &[u8]) -> Result<()> {
        self.plain.write(at, from).ok_or_else(outside)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("name", &self.name).field("len", &self.len()).finish()
    }
}
