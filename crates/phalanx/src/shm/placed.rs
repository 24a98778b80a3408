//! A structure of shared words, in a [`Block`].

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::arena::{Arena, Block, GRAIN};

/// What can lie in memory that other processes write.
///
/// # Safety
///
/// Every bit pattern is a valid value, and all zeros the initial one; whatever a shared reference
/// allows goes through atomics or raw pointers; the alignment is at most [`GRAIN`].
pub(crate) unsafe trait Words: Send + Sync + 'static {}

/// Declares a structure of shared words, and checks that it is one.
macro_rules! words {
    ($(#[$attribute:meta])* $scope:vis struct $name:ident {
        $($(#[$note:meta])* $reach:vis $field:ident: $word:ty,)*
    }) => {
        $(#[$attribute])*
        #[derive(Debug)]
        #[repr(C)]
        $scope struct $name { $($(#[$note])* $reach $field: $word,)* }

        #[allow(unsafe_code, reason = "what makes it sound is checked below")]
        // SAFETY: every field is `Words`, and nothing else is in it.
        unsafe impl $crate::shm::Words for $name {}

        const _: () = {
            const fn is_words<T: $crate::shm::Words>() {}
            $(is_words::<$word>();)*
        };
    };
}
pub(crate) use words;

// SAFETY: any bits are a number, 0 is the first, and it is atomic.
unsafe impl Words for AtomicU32 {}
// SAFETY: as above.
unsafe impl Words for AtomicU64 {}
// SAFETY: as its parts.
unsafe impl<T: Words, const N: usize> Words for [T; N] {}

/// A `T` that other processes have too.
#[derive(Debug)]
pub(crate) struct Placed<T> {
    block: Block,
    words: PhantomData<T>,
}

impl<T: Words> Placed<T> {
    /// A new one, all zeros.
    ///
    /// # Errors
    ///
    /// If there is no descriptor or no memory for one more arena.
    pub(crate) fn new() -> io::Result<Self> {
        const { assert!(align_of::<T>() <= GRAIN) };
        Ok(Self { block: Block::new(size_of::<T>())?, words: PhantomData })
    }

    /// The one that another process made.
    ///
    /// # Errors
    ///
    /// If there is no room for a `T` at that offset.
    pub(crate) fn open(arena: &Arena, offset: usize) -> io::Result<Self> {
        Ok(Self { block: Block::open(arena, offset, size_of::<T>())?, words: PhantomData })
    }

    /// Where it is, for [`open`](Self::open) in another process.
    pub(crate) fn expose(&self) -> (Arena, usize) {
        self.block.expose()
    }
}

impl<T: Words> Deref for Placed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let start = self.block.start().cast::<T>();
        // SAFETY: the block has room for a `T`, aligned and mapped as long as `self` lives;
        // whatever other processes write there is a valid `T`, by `Words`.
        unsafe { start.as_ref() }
    }
}
