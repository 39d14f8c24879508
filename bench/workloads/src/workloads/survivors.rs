//! Models a program that keeps little of much: phases of 16 MiB of blocks, of which one in twenty, chosen at random,
//! survives the phase and the three that follow. Each phase asks for other sizes (small, medium, mixed), so the room
//! between the survivors of one phase is of use to the next only if pages come free or blocks are shared. What cannot
//! be used again shows in the peak of resident memory.
//!
//! Counted: blocks, allocated and freed.

use std::collections::VecDeque;

use super::{Outcome, Settings};
use crate::blocks::{Block, Random, Shape, Sizes, Subject};
use crate::crew;

const BYTES: usize = 16 << 20;
/// One of so many survives.
const SURVIVES: usize = 20;
/// Phases that a survivor lives on.
const PHASES: usize = 3;

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let bytes = settings.scaled(BYTES);
    let kinds = [Sizes::spread(16, 128), Sizes::spread(128, 1024), Sizes::spread(16, 4096), Sizes::spread(32, 512)];
    let mut phase = 0;
    let mut random = Random::new(3);
    let mut kept: VecDeque<Vec<Block>> = VecDeque::new();
    let pace = crew::alone(settings.span, || {
        let sizes = &kinds[phase % kinds.len()];
        phase += 1;
        let (mut blocks, mut total) = (Vec::new(), 0);
        while total < bytes {
            let layout = sizes.layout(random.next() as usize);
            blocks.push(Block::new(allocator, layout));
            total += layout.size();
        }
        let count = blocks.len() as u64;
        let mut survivors = Vec::with_capacity(blocks.len() / SURVIVES * 2);
        for block in blocks {
            if random.below(SURVIVES) == 0 {
                survivors.push(block);
            } else {
                block.free(allocator);
            }
        }
        kept.push_back(survivors);
        if kept.len() > PHASES {
            kept.pop_front().into_iter().flatten().for_each(|block| block.free(allocator));
        }
        count
    });
    kept.into_iter().flatten().for_each(|block| block.free(allocator));
    Ok(pace.into())
}
