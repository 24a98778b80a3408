//! A function's place in the executable, which is the same in every process that runs it.
//!
//! A task for another process is a function that carries nothing: its type has no bytes. What it
//! is compiled to, together with the code that reads its argument and writes its result, is one
//! function of ours, [`entry`], and what travels is how far that is from another one, [`anchor`].
//! The loader moves the executable as a whole, so the distance holds in each process of the same
//! build; `api/start.rs` sees to it that there is no other.

use std::fs;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{NonNull, with_exposed_provenance};
use std::sync::OnceLock;

/// How a task ended: the bytes of its result, or those that tell how it failed.
pub(crate) type Reply = Result<Vec<u8>, Vec<u8>>;

/// What a task is compiled to.
pub(crate) type Entry = fn(Vec<u8>) -> Reply;

/// How a function is called with what arrived, by whoever knows what is in the bytes.
pub(crate) trait Shape<F> {
    fn run(function: F, payload: Vec<u8>) -> Reply;
}

/// What a function carries with it, asked when the program is compiled.
pub(crate) struct Captures<F>(PhantomData<F>);

impl<F> Captures<F> {
    /// The compiler stops here for a function that carries something. To be named in each function
    /// that a user calls with an `F`, so that the message shows that call.
    pub(crate) const NOTHING: () = assert!(
        size_of::<F>() == 0,
        "a task runs in another process, so it cannot capture anything (nor be a function pointer): \
         pass what it needs as its argument"
    );
}

/// Where a task is in the executable. Having made one is evidence that its function exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    /// The bytes that a place takes on the wire.
    pub(crate) const LEN: usize = 8;

    /// The place of `function`, called as `S` does; `None` if it is in a library that was loaded,
    /// whose distance from the executable no other process shares.
    pub(crate) fn of<F: Copy + 'static, S: Shape<F>>(_function: F) -> Option<Self> {
        let () = Captures::<F>::NOTHING;
        let at = entry::<F, S> as Entry as usize;
        text().contains(&at).then(|| Self(at.wrapping_sub(origin()) as u64))
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        self.0.to_ne_bytes()
    }

    /// A place that another process of this build made.
    pub(crate) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(u64::from_ne_bytes(bytes))
    }

    /// The function there; `None` if no function of ours can be.
    pub(crate) fn entry(self) -> Option<Entry> {
        let at = origin().wrapping_add(self.0 as usize);
        if !text().contains(&at) {
            return None;
        }
        let at = with_exposed_provenance::<()>(at);
        // SAFETY: a place is made by `of`, from an `Entry`, and comes to us from a process that
        // runs the same executable: the owner of our seat or of our payload, who compared builds.
        Some(unsafe { std::mem::transmute::<*const (), Entry>(at) })
    }
}

/// The code of one task.
fn entry<F: Copy + 'static, S: Shape<F>>(payload: Vec<u8>) -> Reply {
    let () = Captures::<F>::NOTHING;
    // SAFETY: a value of no bytes can be read from anywhere; that there is one was shown to `of`, which
    // alone gives this function away, and being `Copy` it may be there once more.
    let function = unsafe { NonNull::<F>::dangling().read() };
    S::run(function, payload)
}

#[inline(never)]
fn anchor() {}

fn origin() -> usize {
    anchor as fn() as usize
}

/// The executable's code as it is mapped here; empty if the system does not tell.
fn text() -> &'static Range<usize> {
    static TEXT: OnceLock<Range<usize>> = OnceLock::new();
    TEXT.get_or_init(|| {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        maps.lines().filter_map(range).find(|range| range.contains(&origin())).unwrap_or(0..0)
    })
}

/// The addresses of a line of proc_pid_maps(5).
fn range(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Doubled;

    impl<F: Fn(u8) -> u8> Shape<F> for Doubled {
        fn run(function: F, payload: Vec<u8>) -> Reply {
            Ok(payload.into_iter().map(|byte| function(byte) * 2).collect())
        }
    }

    #[test]
    fn a_place_leads_back_to_its_function() {
        let place = Place::of::<_, Doubled>(|byte: u8| byte + 1).expect("a part of the executable");
        let entry = Place::from_bytes(place.to_bytes()).entry().expect("the same place");
        assert_eq!(entry(vec![1, 2]), Ok(vec![4, 6]));
    }

    #[test]
    fn a_place_outside_of_the_executable_is_refused() {
        assert!(Place(1 << 50).entry().is_none());
    }
}
