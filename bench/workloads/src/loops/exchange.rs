//! Models a queue between two threads: one allocates blocks and sends them, the other checks and frees them.
//!
//! Counted: blocks, from one end to the other; the ring between the threads is part of the time, and its floor.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::blocks::{Shape, Subject, allocate};
use crate::ring::Ring;

/// Blocks of an iteration.
pub const BLOCKS: usize = 20_000;

/// `count` times [`BLOCKS`].
///
/// # Panics
///
/// If the second thread cannot be started, or a block is not the one that was sent.
#[inline(never)]
pub fn run<A: Subject, S: Shape>(allocator: A, shape: &S, count: u64) -> Duration {
    let count = count as usize * BLOCKS;
    let ring = Ring::new();
    let ready = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            ready.store(1, Ordering::Release);
            let mut sender = ring.sender();
            for index in 0..count {
                let block = allocate(allocator, shape.layout(index), index);
                sender.send(block, || true);
            }
        });
        while ready.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        let begun = Instant::now();
        let mut receiver = ring.receiver();
        for index in 0..count {
            let Some(block) = receiver.receive(|| true) else { unreachable!("the sender goes on until all are sent") };
            // SAFETY: the sender allocated the block with this layout and wrote its number; nobody else frees it.
            unsafe {
                assert_eq!(block.cast::<usize>().read_volatile(), index, "the block is not the one that was sent");
                allocator.dealloc(block, shape.layout(index));
            }
        }
        begun.elapsed()
    })
}
