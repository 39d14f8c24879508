//! Counts the bytes that a program has asked for and not yet freed.
//!
//! The count is what resident memory is compared with. It comes from a program of its own, since two atomic additions
//! for each call would be in everybody's way.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicU64, Ordering};

static LIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

/// An allocator with the count around it.
#[derive(Clone, Copy, Debug)]
pub struct Counted<A>(pub A);

/// The most bytes that were live at a time.
pub fn peak() -> u64 {
    PEAK.load(Ordering::Relaxed)
}

fn more(bytes: usize) {
    let live = LIVE.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
    if live > PEAK.load(Ordering::Relaxed) {
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

fn less(bytes: usize) {
    LIVE.fetch_sub(bytes as u64, Ordering::Relaxed);
}

// SAFETY: every method passes its arguments to an allocator that keeps this contract.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counted<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller keeps the contract, which is the same there.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        less(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        less(layout.size());
        more(new_size);
        // SAFETY: as in `alloc`.
        unsafe { self.0.realloc(block, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    #[test]
    fn the_peak_is_that_of_what_is_live() {
        let (one, two) = (Layout::from_size_align(1000, 8).unwrap(), Layout::from_size_align(3000, 8).unwrap());
        let counted = Counted(System);
        // SAFETY: the layouts are not empty, and each block is freed once with its last layout.
        unsafe {
            let block = counted.alloc(one);
            let other = counted.alloc_zeroed(one);
            counted.dealloc(other, one);
            let block = counted.realloc(block, one, 3000);
            assert_eq!(LIVE.load(Ordering::Relaxed), 3000);
            counted.dealloc(block, two);
        }
        assert_eq!((LIVE.load(Ordering::Relaxed), peak()), (0, 3000));
    }
}
