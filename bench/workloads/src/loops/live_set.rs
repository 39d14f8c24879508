//! Models a program with a working set: 20 000 blocks of 16 to 1024 bytes are live; again and again one of them, chosen
//! at random, is freed, and another of a random size takes its place.
//!
//! Counted: replacements.

use std::time::{Duration, Instant};

use crate::blocks::{Block, Random, Shape, Subject};

/// Blocks that are live.
const LIVE: usize = 20_000;

/// `count` replacements.
#[inline(never)]
pub fn run<A: Subject, S: Shape>(allocator: A, shape: &S, count: u64) -> Duration {
    let mut random = Random::new(2);
    let mut blocks: Vec<Block> = (0..LIVE).map(|index| Block::new(allocator, shape.layout(index))).collect();
    let begun = Instant::now();
    for index in 0..count as usize {
        let place = random.below(LIVE);
        let new = Block::new(allocator, shape.layout(index));
        std::mem::replace(&mut blocks[place], new).free(allocator);
    }
    let elapsed = begun.elapsed();
    for block in blocks {
        block.free(allocator);
    }
    elapsed
}
