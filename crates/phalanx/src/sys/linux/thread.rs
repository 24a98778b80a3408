//! Which thread: the thread pointer, which each thread of a process has its own of.

use std::arch::asm;

/// The calling thread: no other that lives in this process has it.
///
/// The address of its thread control block, by the psABIs of both architectures. A thread-local
/// variable's address would do; in a shared library it takes a call to find.
#[inline]
pub(crate) fn current() -> usize {
    let pointer: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the block begins with its own address, and nothing writes it.
    unsafe {
        asm!("mov {}, fs:0", out(reg) pointer, options(nostack, pure, readonly, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: it reads a register.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, pure, nomem, preserves_flags));
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::current;

    #[test]
    fn threads_that_live_have_different_ones_that_stay() {
        let here = current();
        std::thread::scope(|scope| {
            let there = scope.spawn(current).join().unwrap();
            assert_ne!(here, there);
        });
        assert_eq!(here, current());
    }
}
