//! Loops on one thread.
//!
//! Sizes come from a table read at run time, so that no layout is a constant for the compiler. Every block's first word
//! is written, and its pointer goes through a black box, so that nothing can be left out.

use std::alloc::{GlobalAlloc, Layout, handle_alloc_error};
use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::contender::Subject;

/// Alignment of every block, and their least size: one word is written to each.
const ALIGN: usize = align_of::<u64>();
/// Length of the tables; a power of two, and short enough for the first-level cache.
const TABLE: usize = 1024;

/// The sizes of successive blocks, repeated for ever.
#[derive(Clone, Debug)]
pub struct Sizes {
    table: Box<[u32; TABLE]>,
}

impl Sizes {
    /// The same size for all.
    ///
    /// # Panics
    ///
    /// If `size` is less than a word or more than `u32::MAX`.
    pub fn fixed(size: usize) -> Self {
        Sizes::made_of(|_| size)
    }

    /// Random sizes between the two, each doubling as likely as any other.
    ///
    /// # Panics
    ///
    /// As [`Sizes::fixed`], and unless `least` is at most `most`.
    pub fn spread(least: usize, most: usize) -> Self {
        assert!(least <= most);
        let (low, high) = ((least as f64).ln(), (most as f64).ln());
        Sizes::made_of(|random| {
            let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
            ((low + fraction * (high - low)).exp() as usize).clamp(least, most)
        })
    }

    fn made_of(size: impl Fn(u64) -> usize) -> Self {
        let mut random = Random::new();
        let table = std::array::from_fn(|_| {
            let size = size(random.next());
            assert!(size >= ALIGN, "blocks of {size} bytes have no room for a word");
            u32::try_from(size).expect("block sizes fit into 32 bits")
        });
        Sizes { table: Box::new(table) }
    }

    /// The layout of block number `index`.
    #[inline]
    pub(crate) fn layout(&self, index: usize) -> Layout {
        let size = self.table[index % TABLE] as usize;
        // SAFETY: ALIGN is a power of two, and a size below 2^32 rounded up to it is below isize::MAX.
        unsafe { Layout::from_size_align_unchecked(size, ALIGN) }
    }
}

/// In which order the blocks of a burst are freed.
#[derive(Clone, Debug)]
pub struct Order {
    indices: Vec<usize>,
}

impl Order {
    /// The last block first.
    pub fn lifo(length: usize) -> Self {
        Order { indices: (0..length).rev().collect() }
    }

    /// The first block first.
    pub fn fifo(length: usize) -> Self {
        Order { indices: (0..length).collect() }
    }

    /// Shuffled; the same for every allocator and run.
    pub fn random(length: usize) -> Self {
        let mut order = Order::fifo(length);
        let mut random = Random::new();
        for last in (1..length).rev() {
            order.indices.swap(last, (random.next() % (last as u64 + 1)) as usize);
        }
        order
    }

    /// How many blocks a burst has.
    #[expect(clippy::len_without_is_empty, reason = "an empty burst is not a measure of anything")]
    pub fn len(&self) -> usize {
        self.indices.len()
    }
}

/// `count` times: allocate one block, touch it, free it.
#[inline(never)]
pub fn pairs<S: Subject>(sizes: &Sizes, count: u64) -> Duration {
    let allocator = S::allocator();
    let begun = Instant::now();
    for index in 0..count as usize {
        let layout = sizes.layout(index);
        let block = allocate(allocator, layout, index);
        // SAFETY: the block was just allocated with this layout.
        unsafe { allocator.dealloc(block, layout) };
    }
    begun.elapsed()
}

/// `count` times: allocate as many blocks as `order` has, then free them in that order.
#[inline(never)]
pub fn bursts<S: Subject>(sizes: &Sizes, order: &Order, count: u64) -> Duration {
    let allocator = S::allocator();
    let mut blocks = vec![std::ptr::null_mut(); order.len()];
    let begun = Instant::now();
    for burst in 0..count as usize {
        // Bursts begin at different places of the table.
        let first = burst * 7;
        for (index, place) in blocks.iter_mut().enumerate() {
            *place = allocate(allocator, sizes.layout(first + index), index);
        }
        for &index in &order.indices {
            // SAFETY: this burst allocated the block with this layout, and each index stands in the order once.
            unsafe { allocator.dealloc(blocks[index], sizes.layout(first + index)) };
        }
    }
    begun.elapsed()
}

/// Allocates a block and writes `value` to its first word.
#[inline]
pub(crate) fn allocate<A: GlobalAlloc>(allocator: &A, layout: Layout, value: usize) -> *mut u8 {
    // SAFETY: no layout of `Sizes` has size zero.
    let block = black_box(unsafe { allocator.alloc(layout) });
    if block.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: the block is at least one word long and aligned to it.
    unsafe { block.cast::<usize>().write_volatile(value) };
    block
}

/// xorshift64 by Marsaglia, from a fixed seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_within_their_bounds_and_vary() {
        let sizes = Sizes::spread(16, 65536);
        let all: Vec<usize> = (0..TABLE).map(|index| sizes.layout(index).size()).collect();
        assert!(all.iter().all(|size| (16..=65536).contains(size)));
        assert!(all.iter().any(|&size| size < 64) && all.iter().any(|&size| size > 16384));
    }

    #[test]
    fn every_order_frees_every_block_once() {
        for order in [Order::lifo(100), Order::fifo(100), Order::random(100)] {
            let mut indices = order.indices;
            indices.sort_unstable();
            assert!(indices.iter().copied().eq(0..100));
        }
    }
}
