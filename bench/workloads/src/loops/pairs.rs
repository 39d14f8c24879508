//! Models the shortest-lived objects: a block is allocated, its first word is written, and it is freed.
//!
//! Counted: such pairs.

use std::time::{Duration, Instant};

use crate::blocks::{Shape, Subject, allocate};

/// `count` pairs.
#[inline(never)]
pub fn run<A: Subject, S: Shape>(allocator: A, shape: &S, count: u64) -> Duration {
    let begun = Instant::now();
    for index in 0..count as usize {
        let layout = shape.layout(index);
        let block = allocate(allocator, layout, index);
        // SAFETY: the block was just allocated with this layout.
        unsafe { allocator.dealloc(block, layout) };
    }
    begun.elapsed()
}
