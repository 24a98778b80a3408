//! `Array`: elements that processes share.

use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::lock::{Held, Lock};
use super::memory::{Memory, Plain};
use crate::error::{Error, OwnerDied, Result};

/// A fixed number of elements of plain data that processes share, with a lock.
///
/// ```
/// use phalanx::shared::Array;
///
/// fn fill((squares, from): (Array<u64>, usize)) {
///     let mine: Vec<u64> = (from..from + 5).map(|n| (n * n) as u64).collect();
///     squares.lock().write(from, &mine);
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let squares = Array::new(10)?;
///     let filling = phalanx::Process::spawn(fill, (squares.try_clone()?, 5))?;
///     fill((squares.try_clone()?, 0));
///     filling.join()?;
///     assert_eq!(squares.to_vec()[8..], [64, 81]);
///     Ok(())
/// }
/// ```
///
/// | what | what becomes of it |
/// | --- | --- |
/// | a type that is not [plain data](Plain) | does not compile |
/// | an index outside | a panic, as with a slice; nothing is changed |
/// | a second [`lock`](Self::lock) by one who has it | waits for ever |
/// | a process ends while it has the lock | the next one has it within 100 ms, and [is told](Locked::abandoned): some elements may be changed and others not |
/// | a process ends in the middle of an element | an element of up to 8 bytes is the old or the new one, a larger one may be some of both |
/// | its maker ends | others keep it |
/// | the last process that has it ends | the system takes the memory back |
///
/// It is sound for the reasons that [`Value`](super::Value#soundness) gives.
pub struct Array<T> {
    lock: Lock,
    memory: Memory,
    of: PhantomData<T>,
}

/// An [`Array`] whose lock this thread has, until dropped.
pub struct Locked<'a, T> {
    memory: &'a Memory,
    held: Held<'a>,
    of: PhantomData<&'a Array<T>>,
}

impl<T: Plain> Array<T> {
    /// `len` elements, all of whose bits are zeros, in memory without a name.
    ///
    /// # Errors
    ///
    /// If `len` elements are more than the machine has memory, or there is no descriptor left.
    pub fn new(len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| Error::invalid("an array larger than any memory"))?;
        Ok(Self { lock: Lock::new()?, memory: Memory::new(bytes)?, of: PhantomData })
    }

    /// A copy of `elements`, in memory without a name.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn from_slice(elements: &[T]) -> Result<Self> {
        let array = Self::new(elements.len())?;
        array.lock().write(0, elements);
        Ok(array)
    }

    /// The same array once more.
    ///
    /// # Errors
    ///
    /// If the memory cannot be found, which it can.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self { lock: self.lock.try_clone()?, memory: self.memory.try_clone()?, of: PhantomData })
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len().checked_div(size_of::<T>()).unwrap_or(0)
    }

    /// Are there no elements?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the lock.
    #[must_use]
    pub fn lock(&self) -> Locked<'_, T> {
        Locked { memory: &self.memory, held: self.lock.hold(), of: PhantomData }
    }

    /// The element at `index`, read under the lock.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> T {
        self.lock().get(index)
    }

    /// Sets the element at `index`, under the lock.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn set(&self, index: usize, element: T) {
        self.lock().set(index, element);
    }

    /// A copy of all elements, of one moment.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        let mut all = vec![T::zeroed(); self.len()];
        self.lock().read(0, &mut all);
        all
    }
}

impl<T: Plain> Locked<'_, T> {
    /// The process that had the lock and ended, if one did: elements that it meant to change
    /// together may be half changed. It is told to the next holder alone.
    #[must_use]
    pub fn abandoned(&self) -> Option<&OwnerDied> {
        self.held.abandoned.as_ref()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len().checked_div(size_of::<T>()).unwrap_or(0)
    }

    /// Are there no elements?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The byte where `count` elements from `index` begin.
    fn offset(&self, index: usize, count: usize) -> usize {
        let len = self.len();
        let inside = index <= len && count <= len - index;
        assert!(inside, "{count} elements from {index} are outside of an array of {len}");
        index * size_of::<T>()
    }

    /// The element at `index`.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> T {
        self.memory.load(self.offset(index, 1)).expect("it was checked")
    }

    /// Sets the element at `index`.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn set(&self, index: usize, element: T) {
        self.memory.store(self.offset(index, 1), element).expect("it was checked");
    }

    /// Copies the elements from `index` on.
    ///
    /// # Panics
    ///
    /// If they are not all there.
    pub fn read(&self, index: usize, into: &mut [T]) {
        let at = self.offset(index, into.len());
        self.memory.read(at, bytemuck::cast_slice_mut(into)).expect("it was checked");
    }

    /// Sets the elements from `index` on.
    ///
    /// # Panics
    ///
    /// If they are not all there.
    pub fn write(&self, index: usize, from: &[T]) {
        let at = self.offset(index, from.len());
        self.memory.write(at, bytemuck::cast_slice(from)).expect("it was checked");
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Locked<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl<T: Plain> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (&self.lock, &self.memory).serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let (lock, memory) = <(Lock, Memory)>::deserialize(deserializer)?;
        if !memory.len().is_multiple_of(size_of::<T>().max(1)) {
            return Err(de::Error::custom("a shared array of another type"));
        }
        Ok(Self { lock, memory, of: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let array = Array::from_slice(&[1_u16, 2, 3, 4, 5]).unwrap();
        array.set(1, 20);
        let locked = array.lock();
        assert_eq!((locked.len(), locked.get(1), locked.get(4)), (5, 20, 5));
        locked.write(2, &[30, 40]);
        let mut some = [0; 3];
        locked.read(2, &mut some);
        assert_eq!(some, [30, 40, 5]);
        assert!(locked.abandoned().is_none());
        drop(locked);
        assert_eq!(array.try_clone().unwrap().to_vec(), [1, 20, 30, 40, 5]);
    }

    #[test]
    fn an_index_outside_panics_and_frees_the_lock() {
        let array = Array::<u64>::new(3).unwrap();
        let outside: [fn(&Array<u64>); 4] = [
            |array| assert_eq!(array.get(3), 0),
            |array| array.set(usize::MAX, 1),
            |array| array.lock().write(2, &[1, 1]),
            |array| array.lock().read(4, &mut []),
        ];
        for call in outside {
            let call = std::panic::AssertUnwindSafe(|| call(&array));
            assert!(std::panic::catch_unwind(call).is_err());
        }
        assert_eq!(array.to_vec(), [0, 0, 0]);
    }

    #[test]
    fn more_than_there_is_is_an_error() {
        assert!(Array::<u64>::new(usize::MAX).unwrap_err().is_invalid());
        assert!(Array::<u64>::new(1 << 50).unwrap_err().os_error().is_some());
        assert!(Array::<u64>::new(0).unwrap().is_empty());
    }
}
