//! `Value`: one value that processes share.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::lock::Lock;
use super::memory::{Memory, Plain};
use crate::error::Result;

/// Where the versions begin: behind the number of the current one.
const FIRST: usize = 16;

/// A value of plain data that processes share.
///
/// ```
/// use phalanx::shared::Value;
///
/// fn count((total, up_to): (Value<u64>, u64)) {
///     (0..up_to).for_each(|n| total.with(|total| *total += n));
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let total = Value::new(0_u64)?;
///     let counting = phalanx::Process::spawn(count, (total.try_clone()?, 10))?;
///     count((total.try_clone()?, 5));
///     counting.join()?;
///     assert_eq!(total.get(), 55);
///     Ok(())
/// }
/// ```
///
/// Whoever reads it sees a whole value that somebody has set, never parts of two: there are two
/// versions in memory, and one who sets writes that which is not current, and then makes it so in
/// one store. So readers wait for nobody, and a process that is killed while it sets leaves the old
/// value or the new one.
///
/// | what | what becomes of it |
/// | --- | --- |
/// | a type that is not [plain data](Plain) | does not compile |
/// | [`with`](Self::with) or [`set`](Self::set) inside of `with`, of the same value | waits for ever |
/// | the closure of `with` panics | the value is as before |
/// | a process ends inside of `with` or `set` | the value is the old or the new one; others go on within 100 ms |
/// | its maker ends | others keep it |
/// | the last process that has it ends | the system takes the memory back |
/// | it is written to a file | an error: it can only go to processes, see [`Descriptor`](crate::Descriptor) |
///
/// # Soundness
///
/// Others write the memory at any time, so there is no reference into it: values are copied out and
/// in, by atomic loads and stores. The bits that are found may be any, so `T` has no invalid ones
/// and no pointers; all bits of a `T` are copied, so it has no padding.
pub struct Value<T> {
    lock: Lock,
    /// A counter, and two places for a `T`: that of its last bit is current.
    memory: Memory,
    of: PhantomData<T>,
}

impl<T: Plain> Value<T> {
    const STRIDE: usize = size_of::<T>().next_multiple_of(16);

    /// A new one, in memory without a name.
    ///
    /// # Errors
    ///
    /// If there is no memory or no descriptor for one more arena of shared memory.
    pub fn new(value: T) -> Result<Self> {
        let memory = Memory::new(FIRST + 2 * Self::STRIDE)?;
        memory.store(FIRST, value)?;
        Ok(Self { lock: Lock::new()?, memory, of: PhantomData })
    }

    /// The same value once more.
    ///
    /// # Errors
    ///
    /// If the memory cannot be found, which it can.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self { lock: self.lock.try_clone()?, memory: self.memory.try_clone()?, of: PhantomData })
    }

    fn counter(&self) -> u64 {
        self.memory.load(0).expect("it begins with a counter")
    }

    fn version(&self, counter: u64) -> T {
        let at = FIRST + (counter % 2) as usize * Self::STRIDE;
        self.memory.load(at).expect("there are two versions")
    }

    /// The value. Waits for nobody.
    #[must_use]
    pub fn get(&self) -> T {
        loop {
            let counter = self.counter();
            fence(Ordering::Acquire); // pairs with the fence behind the version in `publish`
            let value = self.version(counter);
            // Acquire: pairs with the fence in front of the version in `publish`. If we have read
            // any of the version after the next, we now see the counter of the next.
            fence(Ordering::Acquire);
            if self.counter() == counter {
                return value;
            }
        }
    }

    /// Sets the value; waits for others who do.
    pub fn set(&self, value: T) {
        let _held = self.lock.hold();
        self.publish(value);
    }

    /// Changes the value; meanwhile nobody else does. What `change` leaves is the value for others
    /// when it returns.
    pub fn with<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let _held = self.lock.hold();
        let mut value = self.version(self.counter());
        let result = change(&mut value);
        self.publish(value);
        result
    }

    /// For who has the lock.
    fn publish(&self, value: T) {
        let next = self.counter().wrapping_add(1);
        let at = FIRST + (next % 2) as usize * Self::STRIDE;
        fence(Ordering::Release); // pairs with the second fence in `get`
        self.memory.store(at, value).expect("there are two versions");
        fence(Ordering::Release); // pairs with the first fence in `get`
        self.memory.store(0, next).expect("it begins with a counter");
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.get()).finish()
    }
}

impl<T: Plain> Serialize for Value<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (&self.lock, &self.memory).serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for Value<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let (lock, memory) = <(Lock, Memory)>::deserialize(deserializer)?;
        if memory.len() != FIRST + 2 * Self::STRIDE {
            return Err(de::Error::custom("a shared value of another type"));
        }
        Ok(Self { lock, memory, of: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_whole_values_only() {
        let value = Value::new([0_u64; 20]).unwrap();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| (1..50_000).for_each(|n| value.set([n; 20])));
            while !writing.is_finished() {
                let seen = value.get();
                assert!(seen.iter().all(|n| *n == seen[0]), "{seen:?}");
            }
        });
        assert_eq!(value.get(), [49_999; 20]);
    }

    #[test]
    fn threads_lose_no_change() {
        let value = Value::new(0_u64).unwrap();
        let again = value.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20_000).for_each(|_| value.with(|n| *n += 1)));
            (0..20_000).for_each(|_| again.with(|n| *n += 1));
        });
        assert_eq!(value.get(), 40_000);
    }

    #[test]
    fn a_panic_leaves_the_value_and_frees_the_lock() {
        let value = Value::new(5).unwrap();
        let panics = || value.with(|n| -> () { panic!("after {}", std::mem::replace(n, 6)) });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(value.get(), 5);
        assert_eq!(value.with(|n| *n), 5);
    }

    #[test]
    fn a_type_without_bytes_is_a_value() {
        let value = Value::new([0_u8; 0]).unwrap();
        value.set([]);
        assert_eq!(value.get(), []);
    }
}
