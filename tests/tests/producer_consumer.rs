//! Producers allocate, consumers free. Promise: blocks that always move from one thread to another travel back by whole
//! magazines; over ten million blocks a lock of the central layer is taken at most once per thousand.

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use alloc_core::RseqAlloc;
use integration::harness::{self, Check};
use integration::{die, pattern};

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

const PAIRS: usize = 2;
const BLOCKS: usize = 10_000_000;
const BLOCKS_PER_LOCK: u64 = 1000;

/// Slots of a ring: enough for bursts, few enough that the blocks in flight stay in the cache.
const SLOTS: usize = 1024;

/// A bounded ring from one producer to one consumer; a slot holds an address, or 0 when it is free.
struct Ring([AtomicUsize; SLOTS]);

impl Ring {
    const fn new() -> Self {
        Self([const { AtomicUsize::new(0) }; SLOTS])
    }

    fn put(&self, number: usize, block: *mut u8) {
        let slot = &self.0[number % SLOTS];
        while slot.load(Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        slot.store(block as usize, Ordering::Release);
    }

    fn take(&self, number: usize) -> *mut u8 {
        let slot = &self.0[number % SLOTS];
        loop {
            let block = slot.swap(0, Ordering::AcqRel);
            if block != 0 {
                return block as *mut u8;
            }
            std::thread::yield_now();
        }
    }
}

fn main() -> ExitCode {
    harness::main(&[&[
        Check::new("one_size", || run("one size", |_| 64)),
        Check::new("four_sizes", || run("four sizes", |number| [24, 64, 200, 1024][number % 4])),
    ]])
}

fn run(name: &str, size: fn(usize) -> usize) {
    static RINGS: [Ring; PAIRS] = [const { Ring::new() }; PAIRS];
    let layout = move |number| Layout::from_size_align(size(number), 8).expect("a valid layout");
    let before = alloc_core::stats();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (pair, ring) in RINGS.iter().enumerate() {
            scope.spawn(move || {
                for number in 0..BLOCKS / PAIRS {
                    // SAFETY: the size is not zero.
                    let block = unsafe { GLOBAL.alloc(layout(number)) };
                    if block.is_null() {
                        die!("producer_consumer: out of memory");
                    }
                    // SAFETY: a fresh block; its first words prove below whose it is.
                    unsafe { pattern::fill(block, 24, (pair << 32 | number) as u64) };
                    ring.put(number, block);
                }
            });
            scope.spawn(move || {
                for number in 0..BLOCKS / PAIRS {
                    let block = ring.take(number);
                    // SAFETY: a live block that its producer has filled.
                    if let Err(mismatch) = unsafe { pattern::verify(block, 24, (pair << 32 | number) as u64) } {
                        die!("producer_consumer: block {number} of pair {pair} at {block:p} changed: {mismatch}");
                    }
                    // SAFETY: given up here, with the layout it was allocated with.
                    unsafe { GLOBAL.dealloc(block, layout(number)) };
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let after = alloc_core::stats();
    let locks = after.central_locks - before.central_locks;
    println!(
        "producer_consumer: {name}: {BLOCKS} blocks in {seconds:.2} s ({:.0} ns each), {locks} central locks, {} magazine \
         exchanges, {} depot exchanges, {} refills, {} flushes",
        seconds * 1e9 / BLOCKS as f64,
        after.magazine_exchanges - before.magazine_exchanges,
        after.depot_exchanges - before.depot_exchanges,
        after.refills - before.refills,
        after.flushes - before.flushes,
    );
    assert!(
        locks <= BLOCKS as u64 / BLOCKS_PER_LOCK,
        "{locks} central locks for {BLOCKS} blocks, more than one per {BLOCKS_PER_LOCK}"
    );
}
