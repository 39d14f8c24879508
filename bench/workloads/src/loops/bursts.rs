//! Models a request that builds up data and drops it all: a number of blocks is allocated, then all are freed, in the
//! reverse order, in the same, or in a random one.
//!
//! Counted: blocks, each allocated and freed.

use std::ptr;
use std::time::{Duration, Instant};

use crate::blocks::{Shape, Subject, allocate};

/// `count` bursts of as many blocks as there are `indices`, which is also the order in which they are freed.
#[inline(never)]
pub fn run<A: Subject, S: Shape>(allocator: A, shape: &S, indices: &[usize], count: u64) -> Duration {
    let mut blocks = vec![ptr::null_mut(); indices.len()];
    assert!(indices.iter().all(|&index| index < blocks.len()));
    let begun = Instant::now();
    for burst in 0..count as usize {
        // Bursts begin at different places of the table.
        let first = burst * 7;
        for (index, place) in blocks.iter_mut().enumerate() {
            *place = allocate(allocator, shape.layout(first + index), index);
        }
        for &index in indices {
            // SAFETY: indices are those of blocks, by the assertion above.
            let block = unsafe { *blocks.get_unchecked(index) };
            // SAFETY: this burst allocated the block with this layout, and each index stands in the order once.
            unsafe { allocator.dealloc(block, shape.layout(first + index)) };
        }
    }
    begun.elapsed()
}
