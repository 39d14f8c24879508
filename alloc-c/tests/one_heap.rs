//! Rust's `GlobalAlloc` and C's `malloc` in one process use one heap: blocks of either are freed by the other.

use alloc_core::RseqAlloc;
use rseqalloc::standard::{free, malloc, malloc_usable_size, realloc};
use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

/// One test at a time, since each looks at what is in use at its end.
static ALONE: Mutex<()> = Mutex::new(());

const SIZES: [usize; 14] = [1, 8, 9, 24, 64, 72, 80, 1000, 1024, 1025, 70_000, 1 << 20, (1 << 20) + 1, 5_000_000];

#[test]
fn c_frees_blocks_of_rust() {
    let _guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for round in 0..300 {
        for size in SIZES {
            for align in [1, 8, 16, 64, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the size is not 0.
                let block = unsafe { GLOBAL.alloc(layout) };
                assert!(!block.is_null() && block.addr().is_multiple_of(align), "{layout:?}");
                // SAFETY: a live block of this heap.
                assert!(unsafe { malloc_usable_size(block.cast()) } >= size);
                let block = if round % 3 == 0 {
                    // SAFETY: as above.
                    unsafe { realloc(block.cast(), size + 100) }
                } else {
                    block.cast()
                };
                // SAFETY: as above.
                unsafe { free(block) };
            }
        }
    }
    assert_all_returned();
}

#[test]
fn rust_frees_blocks_of_c() {
    let _guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..300 {
        for size in SIZES {
            // Below 65 bytes a smaller alignment may lead to a smaller class.
            let layout = Layout::from_size_align(size, if size <= 64 { 16 } else { 8 }).unwrap();
            let block = malloc(size).cast::<u8>();
            // SAFETY: a live block of this heap, whose class is that of the layout; the new size is not 0.
            let block = unsafe { GLOBAL.realloc(block, layout, size + 64) };
            let layout = Layout::from_size_align(size + 64, layout.align()).unwrap();
            // SAFETY: the block of that layout.
            unsafe { GLOBAL.dealloc(block, layout) };
        }
    }
    assert_all_returned();
}

/// Empties all magazines, which checks each block in them against its span.
fn assert_all_returned() {
    alloc_core::purge();
    let stats = alloc_core::stats();
    assert!(stats.allocated < 2 << 20, "{stats}");
}
