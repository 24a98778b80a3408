//! Memory that processes share: values, arrays, and bytes with a name or without.
//!
//! | | |
//! | --- | --- |
//! | [`Value`] | one value, that readers see whole and never wait for |
//! | [`Array`] | elements, with a lock |
//! | [`Memory`] | bytes, that any program finds by their name if they have one |
//!
//! All three are [values](crate::Value): put them into a task's argument. What has no name is gone
//! when the last process is that has it, however that ends. Small ones lie in one memory file, so
//! any number of them takes no descriptor each.
//!
//! # Plain data
//!
//! Other processes can write any bits at any time, so only [plain data](Plain) can be shared.
//! These do not compile: a reference or a pointer, which means nothing in another process,
//!
//! ```compile_fail,E0277
//! phalanx::shared::Value::new(&5);
//! ```
//! ```compile_fail,E0277
//! phalanx::shared::Array::<Box<u32>>::new(5);
//! ```
//! ```compile_fail,E0277
//! phalanx::shared::Value::new(std::ptr::null::<u8>());
//! ```
//!
//! a type with bits that are no value of it,
//!
//! ```compile_fail,E0277
//! phalanx::shared::Value::new(true);
//! ```
//! ```compile_fail,E0277
//! phalanx::shared::Array::<char>::new(5);
//! ```
//! ```compile_fail,E0277
//! phalanx::shared::Value::new(Some(5));
//! ```
//!
//! one with padding, whose bytes are nothing that could be copied, and one that has interior
//! mutability.
//!
//! ```compile_fail,E0277
//! phalanx::shared::Value::new((1_u8, 2_u32));
//! ```
//! ```compile_fail
//! #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
//! #[repr(C)]
//! struct Padded {
//!     small: u8,
//!     large: u32,
//! }
//! phalanx::shared::Value::new(Padded { small: 1, large: 2 });
//! ```
//! ```compile_fail,E0277
//! phalanx::shared::Value::new(std::cell::Cell::new(5));
//! ```
//!
//! A struct of numbers says that it is plain data, and `bytemuck` checks it:
//!
//! ```
//! #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
//! #[repr(C)]
//! struct Point {
//!     x: f64,
//!     y: f64,
//! }
//! let point = phalanx::shared::Value::new(Point { x: 1.0, y: 2.0 })?;
//! point.with(|point| point.x = 3.0);
//! assert_eq!(point.get(), Point { x: 3.0, y: 2.0 });
//! # Ok::<(), phalanx::Error>(())
//! ```

mod array;
mod lock;
mod memory;
mod place;
mod value;

pub use array::{Array, Locked};
pub use memory::{Memory, Plain};
pub use value::Value;

pub use crate::shm::Arena;

/// Asks for huge pages for memory that was not touched yet, where it is large and there are some: to
/// clear and map small ones, one by one, takes several times as long as to fill them.
pub fn advise_huge(room: &mut [std::mem::MaybeUninit<u8>]) {
    crate::sys::advise_huge(room);
}
