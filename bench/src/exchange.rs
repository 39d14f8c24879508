//! One thread allocates, another frees: what a queue between threads does to an allocator.
//!
//! The threads are joined by a ring of pointers, whose own cost is part of the time; [`crate::contender::FLOOR`] on the
//! same loop measures it, and an honest ratio subtracts it from both sides.

use std::alloc::GlobalAlloc;
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::{Backoff, CachePadded};

use crate::contender::Subject;
use crate::single::{Sizes, allocate};

/// Blocks on their way; a power of two, and as long as a burst elsewhere in this crate.
const RING: usize = 1024;
/// A side publishes its position, and looks at the other's, this often: cache lines travel per batch, not per block.
const BATCH: usize = 32;

/// `count` blocks from a thread that allocates to one that frees.
///
/// # Panics
///
/// If the second thread cannot be started.
#[inline(never)]
pub fn run<S: Subject>(sizes: &Sizes, count: u64) -> Duration {
    let allocator = S::allocator();
    let count = count as usize;
    let ring = Ring::new();
    let start = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            let mut free_until = RING;
            for index in 0..count {
                if index == free_until {
                    free_until = wait_until(|| {
                        let taken = ring.taken.load(Ordering::Acquire) + RING;
                        (taken > index).then_some(taken)
                    });
                }
                let block = allocate(allocator, sizes.layout(index), index);
                ring.slots[index % RING].store(block, Ordering::Relaxed);
                if (index + 1) % BATCH == 0 || index + 1 == count {
                    ring.filled.store(index + 1, Ordering::Release);
                }
            }
        });

        start.wait();
        let begun = Instant::now();
        let mut filled_until = 0;
        for index in 0..count {
            if index == filled_until {
                filled_until = wait_until(|| {
                    let filled = ring.filled.load(Ordering::Acquire);
                    (filled > index).then_some(filled)
                });
            }
            let block = ring.slots[index % RING].load(Ordering::Relaxed);
            // SAFETY: the producer allocated the block with this layout and has published it; nobody else frees it.
            unsafe {
                assert_eq!(block.cast::<usize>().read_volatile(), index, "the block is not the one that was sent");
                allocator.dealloc(block, sizes.layout(index));
            }
            if (index + 1) % BATCH == 0 {
                ring.taken.store(index + 1, Ordering::Release);
            }
        }
        begun.elapsed()
    })
}

/// Positions count for ever; a slot's index is the position modulo the length.
struct Ring {
    slots: Vec<AtomicPtr<u8>>,
    filled: CachePadded<AtomicUsize>,
    taken: CachePadded<AtomicUsize>,
}

impl Ring {
    fn new() -> Self {
        Ring {
            slots: (0..RING).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            filled: CachePadded::default(),
            taken: CachePadded::default(),
        }
    }
}

/// Spins, then yields the CPU, until there is an answer.
fn wait_until<T>(mut answer: impl FnMut() -> Option<T>) -> T {
    let backoff = Backoff::new();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        backoff.snooze();
    }
}
