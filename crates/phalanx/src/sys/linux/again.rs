//! What a program needs to run itself again: orders for the child, and a place for its answer.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::MemfdFlags;

use super::memory;

/// A file in memory, empty, without a name.
pub(crate) fn scratch() -> io::Result<File> {
    Ok(memory::create("phalanx-result", MemfdFlags::CLOEXEC)?.into())
}

/// Takes a variable out of the environment, if that is safe: if there is no other thread.
pub(crate) fn take_variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    // A directory for each thread, and two links of its own.
    let threads = fs::metadata("/proc/self/task").map_or(0, |tasks| tasks.nlink());
    if threads == 3 {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Lets the tests of a crate start processes: say it once, anywhere in each test crate.
///
/// A worker is the test binary run again, which has no `main` of yours to call
/// [`init`](crate::init) in. This does it before `main`.
///
/// ```
/// #[cfg(test)]
/// phalanx::enable_tests!();
/// # fn main() {}
/// ```
///
/// What a task prints then goes to the terminal, for the test harness captures only what its own
/// threads print.
#[macro_export]
macro_rules! enable_tests {
    () => {
        const _: () = {
            extern "C" fn before_main() {
                $crate::init();
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static BEFORE_MAIN: extern "C" fn() = before_main;
        };
    };
}
