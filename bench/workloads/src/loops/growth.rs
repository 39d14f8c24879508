//! Models a `Vec` that is pushed to until it has 64 MiB: from 64 bytes on its capacity doubles by `realloc` whenever it
//! is full, and everything that is added is written.
//!
//! Counted: vectors, from the first byte to the last free.

use std::alloc::{Layout, handle_alloc_error};
use std::hint::black_box;
use std::ptr;
use std::time::{Duration, Instant};

use crate::blocks::{ALIGN, Subject};

const FIRST: usize = 64;
const LAST: usize = 64 << 20;

/// `count` vectors.
#[inline(never)]
pub fn run<A: Subject>(allocator: A, count: u64) -> Duration {
    let begun = Instant::now();
    for _ in 0..count {
        grow(allocator);
    }
    begun.elapsed()
}

fn grow<A: Subject>(allocator: A) {
    let layout = |size| Layout::from_size_align(size, ALIGN).expect("64 MiB fit");
    let mut size = black_box(FIRST);
    // SAFETY: the size is not zero.
    let mut block = unsafe { allocator.alloc(layout(size)) };
    let mut filled = 0;
    loop {
        if block.is_null() {
            handle_alloc_error(layout(size));
        }
        // SAFETY: the block is `size` bytes long, of which the first `filled` have been written.
        unsafe { ptr::write_bytes(block.add(filled), 1, size - filled) };
        black_box(block);
        if size >= LAST {
            break;
        }
        // SAFETY: the block has this layout, and twice the size is neither 0 nor too much.
        block = unsafe { allocator.realloc(block, layout(size), size * 2) };
        filled = size;
        size *= 2;
    }
    // SAFETY: the block's last layout.
    unsafe { allocator.dealloc(block, layout(size)) };
}
