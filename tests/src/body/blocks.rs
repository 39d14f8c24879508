//! Single blocks: sizes, alignments, zeroing, reallocation, refusals.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;

use crate::pattern;
use crate::random::Random;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A live block with its layout and the tag of its contents.
struct Block {
    at: *mut u8,
    layout: Layout,
    tag: u64,
}

impl Block {
    fn new(layout: Layout, tag: u64) -> Self {
        // SAFETY: the size is not zero.
        let at = black_box(unsafe { alloc(layout) });
        assert!(!at.is_null(), "{layout:?} is refused");
        assert_eq!(at as usize % layout.align(), 0, "{at:p} is not aligned for {layout:?}");
        // SAFETY: a fresh block of that size.
        unsafe { pattern::fill(at, layout.size(), tag) };
        Self { at, layout, tag }
    }

    fn verify(&self) {
        // SAFETY: the block lives and was filled.
        if let Err(mismatch) = unsafe { pattern::verify(self.at, self.layout.size(), self.tag) } {
            panic!("block {:p} of {:?} changed: {mismatch}", self.at, self.layout);
        }
    }

    fn realloc(&mut self, size: usize, tag: u64) {
        let (origin, old) = (self.at as usize, self.layout);
        self.verify();
        // SAFETY: the block lives, the size is not zero.
        let at = black_box(unsafe { realloc(self.at, old, size) });
        assert!(!at.is_null(), "realloc of {old:?} to {size} is refused");
        assert_eq!(at as usize % old.align(), 0, "{at:p} is not aligned for {old:?}");
        let kept = size.min(old.size());
        // SAFETY: `kept` bytes are within the new block.
        if let Err(mismatch) = unsafe { pattern::verify_moved(at, origin, kept, old.size(), self.tag) } {
            panic!("realloc of {old:?} from {origin:#x} to {size} bytes at {at:p} lost contents: {mismatch}");
        }
        self.at = at;
        self.layout = Layout::from_size_align(size, old.align()).expect("a valid layout");
        self.tag = tag;
        // SAFETY: the block has `size` bytes.
        unsafe { pattern::fill(at, size, tag) };
    }

    fn free(self) {
        self.verify();
        // SAFETY: the block lives and is given up.
        unsafe { dealloc(self.at, self.layout) };
    }
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a valid layout")
}

/// Sizes at and around every boundary that a size class may have, up to 8 MiB.
fn sizes() -> Vec<usize> {
    let mut sizes: Vec<usize> = (1..=2 * KIB).collect();
    let mut step = 2 * KIB;
    while step < 8 * MIB {
        for eighth in 0..8 {
            let size = step + step / 8 * eighth;
            sizes.extend([size - 1, size, size + 1]);
        }
        step *= 2;
    }
    sizes
}

/// Promise: a block of any size can be written from its first byte to its last, and nobody else writes there.
pub(super) fn every_size_is_usable() {
    let sizes = sizes();
    for round in 0..2_u64 {
        let mut live = Vec::new();
        let mut bytes = 0;
        for (index, size) in sizes.iter().enumerate() {
            let align = 1 << (index % 5);
            live.push(Block::new(layout(*size, align), round << 32 | index as u64));
            bytes += size;
            if bytes > 96 * MIB {
                live.drain(..).for_each(Block::free);
                bytes = 0;
            }
        }
        live.into_iter().for_each(Block::free);
    }
}

/// Promise: every power of two up to 4 MiB is honoured as an alignment, for sizes below, at and above it.
pub(super) fn alignments_hold() {
    let mut live = Vec::new();
    for shift in 0..=22 {
        let align = 1_usize << shift;
        let sizes = [1, 8, 24, 40, 56, 100, 4 * KIB, align, align + 1, 3 * align / 2 + 1, 2 * align, 3 * align];
        for (index, size) in sizes.into_iter().enumerate() {
            // Two of a kind: the second must not simply be lucky.
            live.push(Block::new(layout(size, align), (shift * 100 + index) as u64));
            live.push(Block::new(layout(size, align), (shift * 100 + 50 + index) as u64));
        }
    }
    live.drain(..).for_each(Block::free);
    // Once more on used memory, one alignment at a time.
    for shift in 0..=22 {
        let align = 1_usize << shift;
        for _ in 0..4 {
            live.push(Block::new(layout(align / 2 + 9, align), shift as u64));
        }
        live.drain(..).for_each(Block::free);
    }
}

/// Promise: `alloc_zeroed` gives zeroes on fresh and on dirty memory, for every size and alignment.
pub(super) fn zeroed_blocks_are_zero() {
    let zeroed = |layout: Layout| {
        // SAFETY: the size is not zero.
        let at = black_box(unsafe { alloc_zeroed(layout) });
        assert!(!at.is_null(), "{layout:?} is refused");
        assert_eq!(at as usize % layout.align(), 0, "{at:p} is not aligned for {layout:?}");
        // SAFETY: a live block.
        if let Some(offset) = unsafe { pattern::first_nonzero(at, layout.size()) } {
            panic!("alloc_zeroed({layout:?}) at {at:p} is not zero at offset {offset}");
        }
        // SAFETY: a live block; its contents become dirty for the next round.
        unsafe { at.write_bytes(0xa5, layout.size()) };
        at
    };
    for size in sizes().into_iter().step_by(3) {
        let layouts = [layout(size, 1), layout(size, 16), layout(size, 64), layout(size, 64 * KIB)];
        for layout in &layouts[..if size < 64 * KIB { 3 } else { 4 }] {
            let blocks = [zeroed(*layout), zeroed(*layout), zeroed(*layout)];
            for block in blocks {
                // SAFETY: a live block, given up.
                unsafe { dealloc(block, *layout) };
            }
            let again = zeroed(*layout);
            // SAFETY: a live block, given up.
            unsafe { dealloc(again, *layout) };
        }
    }
    // Large blocks that pass through the cache and the operating system dirty.
    for size in [2 * MIB, 3 * MIB + 5, 9 * MIB, 33 * MIB] {
        for _ in 0..3 {
            let block = zeroed(layout(size, 16));
            // SAFETY: a live block, given up.
            unsafe { dealloc(block, layout(size, 16)) };
        }
        let purged = alloc_core::purge();
        let block = zeroed(layout(size, 16));
        // SAFETY: a live block, given up.
        unsafe { dealloc(block, layout(size, 16)) };
        black_box(purged);
    }
}

/// Promise: `realloc` keeps the contents up to the smaller size and the alignment, whatever the two sizes are.
pub(super) fn realloc_preserves_contents() {
    let mut random = Random::from_environment(3);
    let mut live = Vec::new();
    for index in 0..64_u64 {
        let align = 1_usize << random.below(13);
        live.push(Block::new(layout(random.size(MIB), align), index));
    }
    for round in 0..20_000_u64 {
        let victim = random.below(live.len());
        // Now and then far into the range of own mappings.
        let size = if round % 500 == 0 { random.size(24 * MIB) } else { random.size(300 * KIB) };
        live[victim].realloc(size, round << 8);
        if round % 1000 == 0 {
            live.iter().for_each(Block::verify);
        }
    }
    live.into_iter().for_each(Block::free);
}

/// Promise: growth and shrinkage in small steps keep the contents, through all classes into own mappings and back.
pub(super) fn realloc_in_small_steps_preserves_contents() {
    for align in [1, 16, 64, 4 * KIB] {
        let mut grown = Block::new(layout(1, align), 1);
        let mut neighbour = Block::new(layout(1, align), 2);
        let mut size = 1;
        while size < 6 * MIB {
            size += 1 + size / 16;
            grown.realloc(size, size as u64);
            // A neighbour that grows as well, and one that comes and goes, so that in place is not always possible.
            if size % 3 == 0 {
                neighbour.realloc(size / 2 + 1, size as u64 + 1);
            }
            if size % 5 == 0 {
                Block::new(layout(size, align), 3).free();
            }
        }
        neighbour.free();
        while size > 1 {
            size -= 1 + size / 16;
            grown.realloc(size.max(1), size as u64);
        }
        grown.free();
    }
    // Two that double past each other by mremap.
    let (mut one, mut two) = (Block::new(layout(2 * MIB, 16), 1), Block::new(layout(2 * MIB, 16), 2));
    for doubling in 1..=5 {
        one.realloc((2 * MIB) << doubling, 10 + doubling);
        two.realloc((2 * MIB) << doubling, 20 + doubling);
        one.verify();
    }
    one.free();
    two.free();
}

/// Promise: a size that nobody can have is answered with null, at once and without harm to a block that was to grow.
pub(super) fn huge_sizes_return_null() {
    let most = isize::MAX as usize;
    for (size, align) in [
        (most, 1),
        (most - 15, 16),
        (most & !(4 * KIB - 1), 4 * KIB),
        (most / 2, 8),
        (1 << 50, 16),
        (1 << 47, 4 * KIB),
        (1, 1 << 62),
        (64, 1 << 50),
        (most - (1 << 40) + 1, 1 << 40),
    ] {
        let Ok(layout) = Layout::from_size_align(size, align) else { panic!("not a layout: {size}, {align}") };
        // SAFETY: the size is not zero.
        let at = black_box(unsafe { alloc(layout) });
        assert!(at.is_null(), "{layout:?} was granted at {at:p}");
        // SAFETY: as above.
        let at = black_box(unsafe { alloc_zeroed(layout) });
        assert!(at.is_null(), "{layout:?} was granted zeroed at {at:p}");
    }
    for size in [48, 5 * KIB, 700 * KIB, 3 * MIB] {
        let block = Block::new(layout(size, 16), 9);
        for new in [most - 15, 1 << 50, 1 << 47] {
            // SAFETY: a live block, and the size is not zero.
            let at = black_box(unsafe { realloc(block.at, block.layout, new) });
            assert!(at.is_null(), "realloc of {size} bytes to {new} was granted at {at:p}");
        }
        block.free();
    }
}

/// Promise: large blocks do not overlap, whatever is freed and cached between them.
pub(super) fn large_blocks_are_apart() {
    let mut random = Random::from_environment(4);
    let mut live: Vec<Block> = Vec::new();
    for round in 0..600_u64 {
        if live.len() >= 12 {
            let victim = random.below(live.len());
            live.swap_remove(victim).free();
        }
        let size = 200 * KIB + random.below(6 * MIB);
        let align = if round % 7 == 0 { 2 * MIB } else { 16 };
        live.push(Block::new(layout(size, align), round));
        let mut spans: Vec<_> = live.iter().map(|block| (block.at as usize, block.layout.size())).collect();
        spans.sort_unstable();
        for pair in spans.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?} overlap");
        }
    }
    live.into_iter().for_each(Block::free);
}
