//! Memory goes back to the operating system, as the kernel sees it. The process runs on the system's allocator and uses
//! ours directly, so what is resident beyond the floor is ours.

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alloc_core::RseqAlloc;
use integration::harness::{self, Check};
use integration::random::Random;
use integration::resident::resident;
use integration::scenes;

static ALLOC: RseqAlloc = RseqAlloc::new();

fn main() -> ExitCode {
    scenes::enter(&[("purge", play_purge), ("sparse", play_sparse), ("decay", play_decay)]);
    harness::main(&[&[
        Check::new("a_purge_leaves_what_was_there_before", || play("purge", "decay=never")),
        Check::new("a_purge_returns_pages_inside_spans", || play("sparse", "decay=never")),
        Check::new("pages_inside_spans_decay", || play("decay", "decay=600")),
    ]])
}

fn play(scene: &str, options: &str) {
    scenes::run(scene, options);
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

/// A block filled with a byte that depends on its address.
struct Block(*mut u8, usize);

impl Block {
    fn new(size: usize) -> Self {
        // SAFETY: the size is not 0.
        let start = unsafe { ALLOC.alloc(layout(size)) };
        assert!(!start.is_null());
        // SAFETY: the block is that long.
        unsafe { start.write_bytes(Self::mark(start), size) };
        Self(start, size)
    }

    fn mark(start: *mut u8) -> u8 {
        (start.addr() >> 3) as u8 | 1
    }

    fn free(self) {
        // SAFETY: the block is ours and that long.
        let contents = unsafe { std::slice::from_raw_parts(self.0, self.1) };
        assert!(contents.iter().all(|&byte| byte == Self::mark(self.0)), "a block in use changed");
        // SAFETY: allocated with this layout.
        unsafe { ALLOC.dealloc(self.0, layout(self.1)) };
    }
}

/// Blocks of `bytes` together, in random order.
fn blocks(bytes: usize, random: &mut Random, size: impl Fn(&mut Random) -> usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut live = 0;
    while live < bytes {
        blocks.push(Block::new(size(random)));
        live += blocks.last().map_or(0, |block| block.1);
    }
    for at in (1..blocks.len()).rev() {
        blocks.swap(at, random.below(at + 1));
    }
    blocks
}

/// Promise: after everything was freed, a purge leaves no more than 1 MiB above what was resident before, apart from
/// the allocator's own data, whose size it states.
fn play_purge() {
    let mut random = Random::new(7);
    Block::new(100).free();
    let mut list = Vec::with_capacity(1 << 20);
    list.resize_with(1 << 20, || None);
    alloc_core::purge();
    let (floor, metadata) = (resident(), alloc_core::stats().metadata);
    for (slot, block) in list.iter_mut().zip(blocks(96 << 20, &mut random, |random| match random.below(64) {
        0 => 1 + random.below(300_000),
        _ => 1 + random.below(2000),
    })) {
        *slot = Some(block);
    }
    let peak = resident();
    list.iter_mut().filter_map(Option::take).for_each(Block::free);
    alloc_core::purge();
    let own = alloc_core::stats().metadata - metadata;
    let left = resident().saturating_sub(floor + own);
    println!("{} KiB at the peak, {} KiB left, {} KiB of metadata", peak >> 10, left >> 10, own >> 10);
    assert!(peak - floor > 96 << 20);
    assert!(left <= 1 << 20, "{left} bytes above the floor");
}

/// Frees a random 90% of blocks of 32 MiB; returns the others, and when it began and what was resident then: on a slow
/// machine some goes before the last is freed. Sizes in few classes, so that the caches hold little.
fn sparse() -> (Vec<Block>, Instant, usize) {
    let mut random = Random::new(8);
    let mut blocks = blocks(32 << 20, &mut random, |random| [400, 640, 1024][random.below(3)]);
    let keep = blocks.len() / 10;
    let (start, before) = (Instant::now(), resident());
    blocks.drain(keep..).for_each(Block::free);
    (blocks, start, before)
}

/// What has to go: of a page of 4 KiB it is free of blocks with a probability of 0.9^11 for 400 bytes to 0.9^4 for 1024,
/// 45% on average. Pages of 64 KiB practically never are.
fn expected() -> usize {
    // SAFETY: asks for a number.
    if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } == 4096 { 11 << 20 } else { 0 }
}

/// Promise: a purge gives back OS pages without a block in use, inside spans in use; the others keep their contents.
fn play_sparse() {
    let (rest, _, before) = sparse();
    let bytes = alloc_core::purge();
    let gone = before.saturating_sub(resident());
    let inside = alloc_core::stats().returned_in_spans;
    println!("{} KiB returned, {} KiB of it inside spans, {} KiB went", bytes >> 10, inside >> 10, gone >> 10);
    assert!(inside >= expected() && gone + (1 << 20) >= inside, "{inside} bytes in spans, {gone} went");
    rest.into_iter().for_each(Block::free);
}

/// Promise: the same happens by itself over the decay interval, if now and then a call leaves the caches, as those for
/// large blocks do.
fn play_decay() {
    let (rest, start, before) = sparse();
    let mut inside = 0;
    while start.elapsed() < Duration::from_secs(20) {
        // SAFETY: the size is not 0; freed with the same layout.
        unsafe { ALLOC.dealloc(ALLOC.alloc(layout(2 << 20)), layout(2 << 20)) };
        std::thread::sleep(Duration::from_millis(1));
        inside = alloc_core::stats().returned_in_spans;
        // What the caches hold counts as in use.
        if inside > 0 && inside >= expected() * 3 / 4 {
            break;
        }
        if start.elapsed() < Duration::from_millis(150) {
            assert!(inside < expected() / 2, "{inside} bytes went within a quarter of the interval");
        }
    }
    let gone = before.saturating_sub(resident());
    println!("{} KiB inside spans, {} KiB went in {:?}", inside >> 10, gone >> 10, start.elapsed());
    assert!(inside >= expected() * 3 / 4 && gone + (2 << 20) >= inside, "{inside} bytes in spans, {gone} went");
    rest.into_iter().for_each(Block::free);
}
