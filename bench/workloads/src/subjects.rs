//! The two allocators that every program here has: its own, and the stand-in that is none.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The program's `#[global_allocator]`, through the functions that every `Box` and `Vec` goes through.
#[derive(Clone, Copy, Debug)]
pub struct Global;

// SAFETY: every method passes its arguments to the registered allocator, which keeps this contract.
unsafe impl GlobalAlloc for Global {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same there.
        unsafe { std::alloc::alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { std::alloc::dealloc(block, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { std::alloc::alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { std::alloc::realloc(block, layout, new_size) }
    }
}

/// Distance of two places: a cache line.
const PLACE: usize = 64;
/// Places of one thread; more than any workload with a floor keeps between a thread's allocation and the free of it.
const PLACES: usize = 8192;
/// Threads that have places of their own; further ones share, which is harmless where only first words are written.
const REGIONS: usize = 256;

/// No allocator at all: hands out the same few places for ever, whatever the size. What a workload takes on it is the
/// cost of its frame: rings, threads, the generator of random numbers.
///
/// Good for workloads that touch only the first word of a block, and read it at most once, soon after.
#[derive(Clone, Copy, Debug)]
pub struct Fixed;

/// Never touched where no thread allocates, so it costs a process without floors nothing.
struct Places(UnsafeCell<[u8; REGIONS * PLACES * PLACE]>);

// SAFETY: the bytes are only handed out as raw pointers, never accessed here.
unsafe impl Sync for Places {}

static AREA: Places = Places(UnsafeCell::new([0; REGIONS * PLACES * PLACE]));
static REGIONS_TAKEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The place that this thread hands out next, and the first of its region; `usize::MAX` before it has one.
    static NEXT: Cell<usize> = const { Cell::new(usize::MAX) };
}

// SAFETY: for the workloads that have a floor, which write no more than the first word of a block and hold fewer
// blocks than there are places, no two blocks overlap in what is used of them. It is no allocator for anybody else.
unsafe impl GlobalAlloc for Fixed {
    #[inline]
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        NEXT.with(|next| {
            let mut index = next.get();
            if index == usize::MAX {
                index = REGIONS_TAKEN.fetch_add(1, Ordering::Relaxed) % REGIONS * PLACES;
            }
            // The region is in the high bits, the place in the low ones, which wrap.
            next.set(index / PLACES * PLACES + (index + 1) % PLACES);
            AREA.0.get().cast::<u8>().wrapping_add(index * PLACE)
        })
    }

    #[inline]
    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_differ_until_all_were_handed_out() {
        let layout = Layout::new::<u64>();
        // SAFETY: the layout is not empty, and the places are only compared.
        let mut places: Vec<usize> = (0..PLACES).map(|_| unsafe { Fixed.alloc(layout) } as usize).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), PLACES);
        // SAFETY: as above.
        assert!(places.contains(&(unsafe { Fixed.alloc(layout) } as usize)));
    }
}
