//! Blocks, their sizes, and the order in which they are freed.
//!
//! Every block's first word is written, by a volatile store, so that no allocation can be left out.

use std::alloc::{GlobalAlloc, Layout, handle_alloc_error};
use std::hint::black_box;
use std::ptr::NonNull;

/// Alignment of every block, and their least size: one word is written to each.
pub const ALIGN: usize = align_of::<u64>();
/// Length of the tables of sizes; a power of two, and short enough for the first-level cache.
const TABLE: usize = 1024;
/// What a write must touch to make the operating system provide a page; on larger pages it touches each more often.
const OS_PAGE: usize = 4096;

/// An allocator that is measured: a value without state that can be copied to any thread.
pub trait Subject: GlobalAlloc + Copy + Send + Sync + 'static {}

impl<A: GlobalAlloc + Copy + Send + Sync + 'static> Subject for A {}

/// Which layout a block has.
pub trait Shape: Clone + Send + Sync + 'static {
    /// The layout of block number `index`: at most `u32::MAX` bytes, aligned to [`ALIGN`].
    fn layout(&self, index: usize) -> Layout;
}

/// A size that the compiler knows.
#[derive(Clone, Copy, Debug)]
pub struct Constant<const SIZE: usize>;

impl<const SIZE: usize> Shape for Constant<SIZE> {
    #[inline]
    fn layout(&self, _index: usize) -> Layout {
        const {
            assert!(SIZE >= ALIGN);
            // SAFETY: ALIGN is a power of two, and these sizes are far below isize::MAX.
            unsafe { Layout::from_size_align_unchecked(SIZE, ALIGN) }
        }
    }
}

/// One size, which the compiler does not know.
#[derive(Clone, Copy, Debug)]
pub struct Uniform(usize);

impl Uniform {
    /// This size.
    ///
    /// # Panics
    ///
    /// If it is less than a word or more than `u32::MAX`.
    pub fn new(size: usize) -> Self {
        assert!(size >= ALIGN && u32::try_from(size).is_ok());
        Uniform(black_box(size))
    }
}

impl Shape for Uniform {
    #[inline]
    fn layout(&self, _index: usize) -> Layout {
        // SAFETY: ALIGN is a power of two, and a size below 2^32 rounded up to it is below isize::MAX.
        unsafe { Layout::from_size_align_unchecked(self.0, ALIGN) }
    }
}

/// Sizes from a table that is read at run time, repeated for ever; no layout is a constant for the compiler.
#[derive(Clone, Debug)]
pub struct Sizes {
    table: Box<[u32; TABLE]>,
}

impl Sizes {
    /// Random sizes between the two, each doubling as likely as any other.
    ///
    /// # Panics
    ///
    /// If `least` is less than a word, `most` more than `u32::MAX`, or `least` more than `most`.
    pub fn spread(least: usize, most: usize) -> Self {
        assert!(least <= most);
        let (low, high) = ((least as f64).ln(), (most as f64).ln());
        Sizes::made_of(|random| {
            let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
            ((low + fraction * (high - low)).exp() as usize).clamp(least, most)
        })
    }

    /// Random sizes between the two, each as likely as any other.
    ///
    /// # Panics
    ///
    /// As [`Sizes::spread`].
    pub fn even(least: usize, most: usize) -> Self {
        assert!(least <= most);
        Sizes::made_of(|random| least + (random >> 32) as usize % (most - least + 1))
    }

    /// What programs mostly ask for: 16 bytes to 1 KiB.
    pub fn small() -> Self {
        Sizes::spread(16, 1024)
    }

    fn made_of(size: impl Fn(u64) -> usize) -> Self {
        let mut random = Random::new(0);
        let table = std::array::from_fn(|_| {
            let size = size(random.next());
            assert!(size >= ALIGN, "blocks of {size} bytes have no room for a word");
            u32::try_from(size).expect("block sizes fit into 32 bits")
        });
        Sizes { table: Box::new(table) }
    }
}

impl Shape for Sizes {
    #[inline]
    fn layout(&self, index: usize) -> Layout {
        let size = self.table[index % TABLE] as usize;
        // SAFETY: ALIGN is a power of two, and a size below 2^32 rounded up to it is below isize::MAX.
        unsafe { Layout::from_size_align_unchecked(size, ALIGN) }
    }
}

/// In which order the blocks of a burst are freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The last block first.
    Lifo,
    /// The first block first.
    Fifo,
    /// Shuffled; the same for every allocator and run.
    Random,
}

impl Order {
    /// The indices of `length` blocks in this order.
    pub fn indices(self, length: usize) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..length).collect();
        match self {
            Order::Lifo => indices.reverse(),
            Order::Fifo => {}
            Order::Random => Random::new(1).shuffle(&mut indices),
        }
        indices
    }
}

/// Allocates a block and writes `value` to its first word.
#[inline]
pub fn allocate<A: Subject>(allocator: A, layout: Layout, value: usize) -> *mut u8 {
    // SAFETY: no layout here has size zero.
    let block = unsafe { allocator.alloc(layout) };
    if block.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: the block is at least one word long and aligned to it.
    unsafe { block.cast::<usize>().write_volatile(value) };
    block
}

/// Writes a word into every page of `size` bytes at `block`, from the byte `from` on.
///
/// # Safety
///
/// The block must be valid for writes of `size` bytes.
#[inline]
pub unsafe fn touch(block: *mut u8, from: usize, size: usize) {
    for offset in (from..size).step_by(OS_PAGE) {
        // SAFETY: the offset is inside the block.
        unsafe { block.add(offset).write_volatile(1) };
    }
}

/// A block that is live, with the size that it was allocated with. Two words, since tables of them share the first-level
/// cache with the allocator.
#[derive(Debug)]
pub struct Block {
    pointer: NonNull<u8>,
    size: u32,
}

// SAFETY: a block belongs to whoever holds the value, and every subject may be called from any thread.
unsafe impl Send for Block {}

impl Block {
    /// Allocates it and writes its first word.
    #[inline]
    pub fn new<A: Subject>(allocator: A, layout: Layout) -> Self {
        debug_assert!(layout.align() == ALIGN && u32::try_from(layout.size()).is_ok());
        let pointer = allocate(allocator, layout, layout.size());
        // SAFETY: `allocate` does not return null.
        Block { pointer: unsafe { NonNull::new_unchecked(pointer) }, size: layout.size() as u32 }
    }

    /// Writes a word into each of its pages.
    #[inline]
    pub fn touch(&mut self) {
        // SAFETY: the block is that long, and nobody else uses it.
        unsafe { touch(self.pointer.as_ptr(), 0, self.size()) };
    }

    /// Writes all of it.
    #[inline]
    pub fn fill(&mut self) {
        // SAFETY: as in `touch`.
        unsafe { self.pointer.write_bytes(0x5a, self.size()) };
    }

    /// Bytes that were asked for.
    #[inline]
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Frees it.
    #[inline]
    pub fn free<A: Subject>(self, allocator: A) {
        // SAFETY: the layout was valid when the block was allocated with it.
        let layout = unsafe { Layout::from_size_align_unchecked(self.size(), ALIGN) };
        // SAFETY: the block was allocated with this layout, by the only subject that the workload uses.
        unsafe { allocator.dealloc(self.pointer.as_ptr(), layout) };
    }
}

/// xorshift64 by Marsaglia.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Random(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "there is no end to it, and no Option to unwrap")]
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is far below 2^32.
    #[inline]
    pub fn below(&mut self, limit: usize) -> usize {
        (((self.next() >> 32) * limit as u64) >> 32) as usize
    }

    /// Puts the items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
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
        let even = Sizes::even(16, 1024);
        let all: Vec<usize> = (0..TABLE).map(|index| even.layout(index).size()).collect();
        assert!(all.iter().all(|size| (16..=1024).contains(size)));
        let mean = all.iter().sum::<usize>() / TABLE;
        assert!((490..550).contains(&mean), "{mean}");
    }

    #[test]
    fn every_order_frees_every_block_once() {
        for order in [Order::Lifo, Order::Fifo, Order::Random] {
            let mut indices = order.indices(100);
            assert_eq!(indices == (0..100).collect::<Vec<_>>(), order == Order::Fifo);
            indices.sort_unstable();
            assert!(indices.iter().copied().eq(0..100));
        }
    }

    #[test]
    fn random_numbers_fill_their_range() {
        let mut random = Random::new(7);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[random.below(10)] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }
}
