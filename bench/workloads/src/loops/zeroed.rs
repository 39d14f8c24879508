//! Models buffers that have to be zero: a zeroed block is allocated, a word is written into each of its pages, and it is
//! freed. Memory that the operating system has just cleared needs no second clearing, but costs page faults.
//!
//! Counted: such blocks.

use std::alloc::handle_alloc_error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::blocks::{Shape, Subject, touch};

/// `count` zeroed blocks.
///
/// # Panics
///
/// If a block's last word is not zero.
#[inline(never)]
pub fn run<A: Subject, S: Shape>(allocator: A, shape: &S, count: u64) -> Duration {
    let begun = Instant::now();
    for index in 0..count as usize {
        let layout = shape.layout(index);
        // SAFETY: no shape has size zero.
        let block = black_box(unsafe { allocator.alloc_zeroed(layout) });
        if block.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: the block is as long as its layout says, aligned to words, initialised, and freed once.
        unsafe {
            assert_eq!(block.add(layout.size()).cast::<u64>().sub(1).read(), 0, "not zeroed");
            touch(block, 0, layout.size());
            allocator.dealloc(block, layout);
        }
    }
    begun.elapsed()
}
