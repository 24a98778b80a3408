//! What lies in shared memory, as a value: the arena's descriptor, and where in it.

use std::os::fd::AsFd;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Passed, Passing};
use crate::sync::{Arena, Barrier, Condvar, Event, Lock, Once, RwLock, Semaphore, Shared};

macro_rules! values {
    ($($name:ident)*) => { $(
        /// As a [value](crate::Value) it is the same one in another process; see
        /// [`Descriptor`](crate::Descriptor) for where such values can go.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let (arena, offset) = self.place();
                (Passing(arena.as_fd()), offset).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let (Passed(fd), offset) = Deserialize::deserialize(deserializer)?;
                let arena = Arena::open(fd).map_err(de::Error::custom)?;
                $name::open(&arena, offset).map_err(de::Error::custom)
            }
        }
    )* };
}

values!(Barrier Condvar Event Lock Once RwLock Semaphore);
