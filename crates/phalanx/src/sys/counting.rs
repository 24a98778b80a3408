//! Of unit tests: how much memory a thread has allocated, so that a test can see an allocation that
//! is out of proportion.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// A larger piece than this is not to be had while a thread is [watched](peak): a length that is a
/// lie must not take the machine's memory.
const LARGEST: usize = 1 << 30;

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count { watched: false, live: 0, peak: 0 }) };
}

#[derive(Clone, Copy)]
struct Count {
    watched: bool,
    /// Bytes that were allocated since the watch began, without those that were freed.
    live: isize,
    peak: isize,
}

/// Runs `what`, and tells how many bytes more than before were allocated at its peak. What was
/// refused counts as if it had been given.
pub(crate) fn peak<R>(what: impl FnOnce() -> R) -> (R, usize) {
    COUNT.set(Count { watched: true, live: 0, peak: 0 });
    let result = what();
    let peak = COUNT.replace(Count { watched: false, live: 0, peak: 0 }).peak;
    (result, peak.unsigned_abs())
}

/// Notes that an allocation changes from one size to another; false if it is to be refused.
fn note(from: usize, to: usize) -> bool {
    let mut count = COUNT.get();
    if !count.watched {
        return true;
    }
    let live = count.live.saturating_add_unsigned(to).saturating_sub_unsigned(from);
    count.peak = count.peak.max(live);
    let given = to <= LARGEST;
    count.live = if given { live } else { count.live };
    COUNT.set(count);
    given
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: all is the system's allocator's, which is one, or null for an allocation that failed.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait says.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !note(0, layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps to what the trait asks for.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as the trait says.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !note(0, layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    // SAFETY: as the trait says.
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        note(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }

    // SAFETY: as the trait says.
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !note(layout.size(), size) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[test]
fn an_allocation_is_seen_although_it_was_freed_or_refused() {
    let allocated = |len: usize| {
        peak(|| {
            let mut bytes = Vec::<u8>::new();
            bytes.try_reserve_exact(len).is_ok()
        })
    };
    let (given, bytes) = allocated(100_000);
    assert!(given && (100_000..101_000).contains(&bytes), "{bytes}");
    let (given, bytes) = allocated(LARGEST + 1);
    assert!(!given && bytes > LARGEST, "{bytes}");
}
