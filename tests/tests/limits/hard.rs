//! The hard limit.

use super::{ALLOC, Blocks, MIB, MODES, layout, settled_stats};
use integration::scenes;
use std::alloc::GlobalAlloc;
use std::sync::Barrier;

const LIMIT: usize = 64 * MIB;
/// Parts of the map are counted but not refused: less than this for so little memory.
const MAP: usize = 4096;
/// What a heap of that size must have room for in blocks of any size: the rest is metadata and the ends of spans.
const ROOM: usize = LIMIT * 3 / 4;
const SIZES: [usize; 9] = [64, 3 * MIB, 1000, 900 << 10, 20_000, 20 * MIB, 100 << 10, 24, 5000];

/// Promise: beyond the hard limit the answer is null, nothing more is counted than it allows, and what was freed in one
/// size serves another.
pub(super) fn is_kept_and_recovered_from() {
    for mode in MODES {
        scenes::run("hard", &format!("{mode},hard_limit=64M"));
    }
}

pub(super) fn play() {
    for size in SIZES {
        let blocks = Blocks::exhaust(size);
        let (bytes, stats) = (blocks.bytes(), settled_stats());
        println!("blocks of {size}: {} KiB, {stats}", bytes >> 10);
        assert_eq!(stats.hard_limit, LIMIT);
        assert!(stats.counted <= LIMIT + MAP, "{} counted", stats.counted);
        // Two of the largest are all that fits.
        assert!(bytes >= if size > 16 * MIB { 2 * size } else { ROOM }, "{bytes} bytes in blocks of {size}");
        assert!(stats.hard_limit_hits > 0);
        drop(blocks);
    }
    // SAFETY: the size is not zero, and the block is not used.
    assert!(unsafe { ALLOC.alloc_zeroed(layout(LIMIT)) }.is_null());
    assert!(settled_stats().allocated < MIB);
}

/// Promise: threads that run out together all get null, none of them waits or takes what another holds, and afterwards
/// everything can be had again.
pub(super) fn threads_recover() {
    for mode in MODES {
        scenes::run("hard_threads", &format!("{mode},hard_limit=64M"));
    }
}

pub(super) fn play_threads() {
    const THREADS: usize = 4;
    // Whoever allocates while another thread's first allocation is still reading the options is under no limit yet.
    drop(Blocks::of(64, 64));
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let barrier = &barrier;
            scope.spawn(move || {
                for round in 0..12 {
                    let size = SIZES[(thread + round) % SIZES.len()];
                    barrier.wait();
                    let blocks = Blocks::exhaust(size);
                    // All hold what they got, so the sum is that of the process.
                    barrier.wait();
                    let stats = alloc_core::stats();
                    assert!(stats.counted <= LIMIT + MAP, "{} counted: {stats}", stats.counted);
                    drop(blocks);
                }
            });
        }
    });
    let blocks = Blocks::exhaust(1000);
    assert!(blocks.bytes() >= ROOM, "{} bytes when the threads are gone", blocks.bytes());
    println!("{}", settled_stats());
}

/// Promise: a block that cannot grow stays as it was, and the growth that fits is served.
pub(super) fn growth_is_refused_without_harm() {
    scenes::run("hard_growth", "hard_limit=64M");
}

pub(super) fn play_growth() {
    for first in [1000, 100 << 10, 2 * MIB] {
        // SAFETY: the size is not zero.
        let mut block = unsafe { ALLOC.alloc(layout(first)) };
        let mut size = first;
        // SAFETY: inside the block.
        unsafe { block.write(77) };
        loop {
            let larger = size + size / 2;
            // SAFETY: the block is ours, of that size.
            let grown = unsafe { ALLOC.realloc(block, layout(size), larger) };
            if grown.is_null() {
                break;
            }
            (block, size) = (grown, larger);
            // SAFETY: inside the block.
            unsafe { block.add(size - 1).write(78) };
        }
        // SAFETY: inside the block.
        assert_eq!(unsafe { (block.read(), block.add(size - 1).read()) }, (77, 78));
        println!("from {first} to {size} bytes: {}", settled_stats());
        assert!((LIMIT / 2..=LIMIT).contains(&size), "{size} bytes");
        // SAFETY: the block is ours.
        unsafe { ALLOC.dealloc(block, layout(size)) };
    }
}

/// Promise: the limit can be set and lifted while the process runs, below what is counted, too.
pub(super) fn changes_at_run_time() {
    scenes::run("hard_change", "decay=never");
}

pub(super) fn play_change() {
    let mut blocks = Blocks::of(10_000, 100 * MIB);
    assert_eq!(settled_stats().hard_limit, 0);
    alloc_core::c::set_options(b"hard_limit=64M").expect("an option");
    assert!(!blocks.add(3 * MIB) && settled_stats().counted > LIMIT, "there is less now than there is");
    let before = blocks.0.len();
    while blocks.add(10_000) {}
    assert!(blocks.0.len() - before <= 100, "what was free already: {} blocks", blocks.0.len() - before);
    blocks.retain(|index| index > 9000);
    assert!(blocks.add(3 * MIB), "there is room again: {}", settled_stats());
    assert!(settled_stats().counted <= LIMIT);
    alloc_core::c::set_options(b"hard_limit=none").expect("an option");
    assert!(blocks.add(200 * MIB));
    alloc_core::c::set_options(b"hard_limit=lots,thp=on").expect_err("neither can be");
}
