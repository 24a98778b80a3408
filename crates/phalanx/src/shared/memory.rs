//! `Memory`: bytes that processes share.

use std::fmt;
use std::io;

use bytemuck::{AnyBitPattern, NoUninit};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::place::{Placed, Placing};
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
///
/// | what | what becomes of it |
/// | --- | --- |
/// | a range outside | an error; nothing is read or changed |
/// | a name that is taken, or none; no memory for it | an error, when it is created |
/// | a name that nobody has | an error |
/// | memory with a name that another process shrinks | SIGBUS for who touches what is gone, as with any file: share names with whom you trust |
/// | a process ends in the middle of a write | each 8 bytes at a multiple of 8 are the old or the new ones |
/// | its creator ends | others keep it; a name stays until it is [removed](Self::remove) |
/// | the last process that has it ends | without a name, the system takes the memory back |
///
/// There is no lock; two who write at once leave some of both. It is sound for the reasons that
/// [`Value`](super::Value#soundness) gives.
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

    /// The same memory once more.
    ///
    /// # Errors
    ///
    /// If it has a name that is there no more.
    pub fn try_clone(&self) -> Result<Self> {
        let Some(name) = &self.name else {
            let (arena, offset) = self.place().expect("what has no name has a place");
            return Self::at(&arena, offset, self.len());
        };
        Self::open(name)
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

/// Memory as others find it.
#[derive(Serialize)]
enum Writing<'a> {
    Name(&'a str),
    Place(Placing<'a>, usize),
}

#[derive(Deserialize)]
enum Reading {
    Name(String),
    Place(Placed, usize),
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if let Some(name) = &self.name {
            return Writing::Name(name).serialize(serializer);
        }
        let (arena, offset) = self.place().expect("what has no name has a place");
        Writing::Place(Placing::new(&arena, offset), self.len()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match Reading::deserialize(deserializer)? {
            Reading::Name(name) => Self::open(&name),
            Reading::Place(Placed { arena, offset }, len) => Self::at(&arena, offset, len),
        }
        .map_err(de::Error::custom)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("name", &self.name).field("len", &self.len()).finish()
    }
}
