//! The allocators that every program here has: its own, the C library's or what is preloaded in its place, and
//! stand-ins that are none.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_long, c_void};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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

/// `malloc` and `free` of the C library, or of what is preloaded, as programs in C call them: through pointers.
///
/// Good for blocks with C's alignment that are neither zeroed nor grown.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

impl Default for Calls {
    fn default() -> Self {
        Self { malloc: black_box(libc::malloc), free: black_box(libc::free) }
    }
}

// SAFETY: C's contract, for the layouts above.
unsafe impl GlobalAlloc for Calls {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: always sound.
        unsafe { (self.malloc)(layout.size()) }.cast()
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: a block of the function beside it.
        unsafe { (self.free)(block.cast()) }
    }
}

/// What [`Calls`] cost by themselves: two calls into a library, of a function of four instructions that returns its
/// argument. All blocks are the same word.
///
/// Good for one thread with one block of which the first word is used.
#[derive(Clone, Copy, Debug)]
pub struct EmptyCalls {
    malloc: unsafe extern "C" fn(c_long) -> c_long,
    free: unsafe extern "C" fn(c_long) -> c_long,
}

impl Default for EmptyCalls {
    fn default() -> Self {
        // It leaves numbers that are not negative, such as addresses, as they are.
        Self { malloc: black_box(libc::labs), free: black_box(libc::labs) }
    }
}

// SAFETY: for the use above, the word is there. It is no allocator for anybody else.
unsafe impl GlobalAlloc for EmptyCalls {
    #[inline]
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        static PLACE: AtomicU64 = AtomicU64::new(0);
        // SAFETY: always sound.
        let place = unsafe { (self.malloc)(PLACE.as_ptr().expose_provenance() as c_long) };
        std::ptr::with_exposed_provenance_mut(place as usize)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: always sound.
        unsafe { (self.free)(block.expose_provenance() as c_long) };
    }
}

/// Distance of two places: a cache line.
const PLACE: usize = 64;
/// Places of one thread at most: 4 MiB.
pub const PLACES: usize = 65_536;
/// Threads that have places of their own; further ones share, which is harmless where only first words are written.
const REGIONS: usize = 64;

/// No allocator at all: hands out `N` places in turn, whatever the size. What a workload takes on it is the
/// cost of its frame: rings, threads, the generator of random numbers.
///
/// Good for workloads that touch only the first word of a block, and read it at most once, soon after.
#[derive(Clone, Copy, Debug)]
pub struct Places<const N: usize>;

/// So many as the second-level cache holds, and more than any workload with this floor keeps between a thread's allocation
/// and the free of it.
pub const FIXED: Places<8192> = Places;

/// So many that another core, which had a place last, has it no more: to write what it still has takes three times as
/// long (18 ns with 1024 to 16 384 places, 6 to 8 with 32 768 and more). It depends on the allocator how much of that a
/// program gets, so it is no part of the frame.
pub const FORGOTTEN: Places<PLACES> = Places;

/// Never touched where no thread allocates, so it costs a process without floors nothing.
struct Area(UnsafeCell<[u8; REGIONS * PLACES * PLACE]>);

// SAFETY: the bytes are only handed out as raw pointers, never accessed here.
unsafe impl Sync for Area {}

static AREA: Area = Area(UnsafeCell::new([0; REGIONS * PLACES * PLACE]));
static REGIONS_TAKEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The place that this thread hands out next, and the first of its region; `usize::MAX` before it has one.
    static NEXT: Cell<usize> = const { Cell::new(usize::MAX) };
}

// SAFETY: for the workloads that have a floor, which write no more than the first word of a block and hold fewer
// blocks than there are places, no two blocks overlap in what is used of them. It is no allocator for anybody else.
unsafe impl<const N: usize> GlobalAlloc for Places<N> {
    #[inline]
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        NEXT.with(|next| {
            const { assert!(N <= PLACES) };
            let mut index = next.get();
            if index == usize::MAX {
                index = REGIONS_TAKEN.fetch_add(1, Ordering::Relaxed) % REGIONS * PLACES;
            }
            // The region is in the high bits, the place in the low ones, which wrap.
            next.set(index / PLACES * PLACES + (index + 1) % N);
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
        let mut places: Vec<usize> = (0..8192).map(|_| unsafe { FIXED.alloc(layout) } as usize).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 8192);
        // SAFETY: as above.
        assert!(places.contains(&(unsafe { FIXED.alloc(layout) } as usize)));
    }
}
