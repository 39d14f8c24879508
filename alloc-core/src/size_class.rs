//! Size classes: which block size serves a request, and how blocks of a size are cut from pages.
//!
//! Invariants:
//!
//! * A request of `size` and `align` is first rounded up to a multiple of its alignment. Every class that such a size
//!   lands in is a multiple of that alignment, and spans start at an address aligned to the largest power of two that
//!   divides the class size, so blocks are aligned without further ado. `x = (size - 1) | (align - 1)` is that rounded
//!   size less one; all tables are indexed by it.
//! * Up to [`SMALL_MAX`] the *bin* is `x / 8`: no table stands between a request and its magazine. Above 64 bytes the
//!   classes are multiples of 16, so two bins share one class there: they have magazines of their own but the same
//!   spans and depot. Above `SMALL_MAX` every class has one bin.
//!
//! Not done here: anything larger than [`MEDIUM_MAX`] (see `large`).

/// A page: the unit of runs. 8 KiB, whatever the OS page is.
pub(crate) const PAGE_SHIFT: usize = 13;
/// Bytes of a page.
pub(crate) const PAGE: usize = 1 << PAGE_SHIFT;
/// A huge page: the unit in which address space is made usable. 2 MiB on x86-64 and on aarch64 with 4 KiB OS pages.
pub(crate) const HUGE_SHIFT: usize = 21;

/// The largest request that is served by a bin of its own multiple of 8.
pub(crate) const SMALL_MAX: usize = 1024;
/// The largest request that is served by a class.
pub(crate) const MEDIUM_MAX: usize = 1 << 20;

/// Steps per doubling are eight up to here and four above. The internal waste for sizes spread evenly is 4% with eight
/// steps and 8% with four; above 16 KiB whole pages are cut, and fewer classes cache better. On the sizes that programs
/// ask for, neither four steps from 1 KiB nor eight up to 256 KiB did better: ARCHITECTURE.md has the figures of
/// `ci/size-classes.sh`.
const EIGHT_STEPS_MAX_LOG: usize = 14;
/// `log2(SMALL_MAX)` and `log2(MEDIUM_MAX)`.
const SMALL_LOG: usize = SMALL_MAX.ilog2() as usize;
const MEDIUM_LOG: usize = MEDIUM_MAX.ilog2() as usize;

/// Bins of small sizes.
const SMALL_BINS: usize = SMALL_MAX / 8;
/// Classes of small sizes, multiples of 8 up to 64 and of 16 beyond; class 0 is not used.
const SMALL_CLASSES: usize = 1 + 8 + (SMALL_MAX - 64) / 16;
const EIGHT_STEP_CLASSES: usize = (EIGHT_STEPS_MAX_LOG - SMALL_LOG) * 8;
const FOUR_STEP_CLASSES: usize = (MEDIUM_LOG - EIGHT_STEPS_MAX_LOG) * 4;

/// Number of bins: magazine tops per shard, [`CLOSED_BIN`] included.
pub(crate) const BINS: usize = CLOSED_BIN + 1;
/// A bin that no size has. Its headers never have a magazine: a free without a size that is led here fails like one that
/// found no room, without a comparison of its own.
pub(crate) const CLOSED_BIN: usize = SMALL_BINS + EIGHT_STEP_CLASSES + FOUR_STEP_CLASSES;
/// Number of classes, the unused class 0 included.
pub(crate) const CLASSES: usize = SMALL_CLASSES + EIGHT_STEP_CLASSES + FOUR_STEP_CLASSES;

/// Blocks in a span at most: what its bitmap holds.
pub(crate) const SPAN_BLOCKS: usize = 1024;
/// From this block size on a span is a single block, which can grow and shrink in place.
pub(crate) const SINGLE_BLOCK: usize = 64 * 1024;

/// The bin for `x`, the rounded request less one, if a class serves it.
#[inline]
pub(crate) const fn bin(x: usize) -> Option<usize> {
    if x < SMALL_MAX {
        Some(x >> 3)
    } else if x < MEDIUM_MAX {
        Some(medium_bin(x))
    } else {
        None
    }
}

/// The bin for `SMALL_MAX <= x < MEDIUM_MAX`, by table: the instruction that finds the highest bit is slow on some
/// processors, and shifts by its result are slow on others. Of the table's 8 KiB only the lines of sizes in use are read.
#[inline]
pub(crate) const fn medium_bin(x: usize) -> usize {
    MEDIUM_BINS[(x >> STEP_SHIFT) % MEDIUM_BINS.len()] as usize
}

/// Sizes that differ below these bits only are of the same class.
pub(crate) const STEP_SHIFT: usize = SMALL_LOG - 3;

/// The bins of all steps.
pub static MEDIUM_BINS: [u8; MEDIUM_MAX >> STEP_SHIFT] = {
    // Small sizes may come here, too: see `c`.
    let mut table = [CLOSED_BIN as u8; _];
    let mut step = SMALL_MAX >> STEP_SHIFT;
    while step < table.len() {
        table[step] = formula(step << STEP_SHIFT) as u8;
        step += 1;
    }
    table
};

/// What the table holds.
const fn formula(x: usize) -> usize {
    let log = x.ilog2() as usize;
    if log < EIGHT_STEPS_MAX_LOG {
        SMALL_BINS + (log - SMALL_LOG) * 8 + ((x >> (log - 3)) & 7)
    } else {
        SMALL_BINS + EIGHT_STEP_CLASSES + (log - EIGHT_STEPS_MAX_LOG) * 4 + ((x >> (log - 2)) & 3)
    }
}

/// The class whose blocks a bin holds. [`CLOSED_BIN`] holds none and answers with the last class.
#[inline]
pub(crate) const fn class_of_bin(bin: usize) -> usize {
    if bin < 8 {
        bin + 1
    } else if bin < SMALL_BINS {
        9 + (bin - 8) / 2
    } else if bin < CLOSED_BIN {
        SMALL_CLASSES + bin - SMALL_BINS
    } else {
        CLASSES - 1
    }
}

/// The last bin of a class: the inverse of [`class_of_bin`], up to the bin below that shares the class. This is the one
/// that requests aligned to 16 use.
pub(crate) const fn last_bin_of_class(class: usize) -> usize {
    if class < 9 {
        class - 1
    } else if class < SMALL_CLASSES {
        8 + (class - 9) * 2 + 1
    } else {
        SMALL_BINS + class - SMALL_CLASSES
    }
}

/// What is known of a class.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    /// Bytes of a block.
    pub(crate) size: u32,
    /// Blocks of a span.
    pub(crate) blocks: u16,
    /// Pages of a span.
    pub(crate) pages: u16,
    /// Alignment of a span in pages.
    pub(crate) align_pages: u16,
    /// Pointers in a magazine: at first, and at most after misses.
    pub(crate) capacity: u16,
    pub(crate) capacity_max: u16,
    /// `ceil(2^40 / size)`, to divide offsets inside a span.
    magic: u64,
}

impl Class {
    /// The block that `offset` bytes into a span lie in, if they are its start.
    #[inline]
    pub(crate) const fn index_of(&self, offset: usize) -> Option<usize> {
        let index = self.quotient(offset);
        if index * self.size as usize == offset && index < self.blocks as usize { Some(index) } else { None }
    }

    /// `offset / size`, for offsets up to the length of a span.
    #[inline]
    pub(crate) const fn quotient(&self, offset: usize) -> usize {
        // Offsets are below 2^21 and the rounding error of `magic` below 1, so the quotient is off by less than
        // 2^21 / 2^40 < 1 / size for all sizes with more than one block in a span.
        ((offset as u64 * self.magic) >> 40) as usize
    }
}

/// Bytes of the blocks of a class, as a formula; [`CLASS`] holds the results.
const fn class_size(class: usize) -> usize {
    if class <= 8 {
        class * 8
    } else if class < SMALL_CLASSES {
        64 + (class - 8) * 16
    } else if class < SMALL_CLASSES + EIGHT_STEP_CLASSES {
        let (log, step) = (SMALL_LOG + (class - SMALL_CLASSES) / 8, (class - SMALL_CLASSES) % 8);
        (1 << log) + ((step + 1) << (log - 3))
    } else {
        let i = class - SMALL_CLASSES - EIGHT_STEP_CLASSES;
        let (log, step) = (EIGHT_STEPS_MAX_LOG + i / 4, i % 4);
        (1 << log) + ((step + 1) << (log - 2))
    }
}

/// Pages of a span. Small spans hold [`SPAN_BLOCKS`] blocks or 64 KiB, whichever is less; beyond, the least waste at
/// the end among spans of 64 to 256 KiB with at least four blocks, the shortest of equals.
const fn span_pages(size: usize) -> usize {
    if size >= SINGLE_BLOCK {
        return size >> PAGE_SHIFT;
    }
    if size <= 64 {
        return (size * SPAN_BLOCKS) >> PAGE_SHIFT;
    }
    let first = if 4 * size > 8 * PAGE { (4 * size).div_ceil(PAGE) } else { 8 };
    let last = if first < 16 { 16 } else { 32 };
    let mut best = first;
    let mut pages = first;
    while pages <= last {
        let (waste, best_waste) = ((pages * PAGE) % size, (best * PAGE) % size);
        // A longer span has to save a good part of the waste: an eighth of a percent does not pay.
        if waste * best + pages * best * PAGE / 128 < best_waste * pages {
            best = pages;
        }
        pages += 1;
    }
    best
}

/// Pointers in a magazine, at first and at most: 64 KiB worth of blocks within what the array holds, but a few even of
/// large blocks, so that a loop that takes and returns one or two of them stays in its magazine. Depths 27, 59, 123 and
/// 251 cost 5.6, 3.9, 3.3 and 3.1 ns per block on bursts of 1000, hence the start at 59 and the growth.
///
/// Where 40 blocks of random sizes are replaced at random, up to eight of each class of single blocks are free at a time.
/// So they may become that deep, see [`DEEP`](crate::magazine::DEEP): a replacement took 9% longer with what is there at
/// first.
const fn capacities(size: usize) -> (usize, usize) {
    let by_bytes = 64 * 1024 / size;
    let least = if size <= 64 * 1024 {
        4
    } else if size <= 256 * 1024 {
        3
    } else {
        2
    };
    if size >= SINGLE_BLOCK {
        (least, 8)
    } else if by_bytes > 251 {
        (59, 251)
    } else {
        let most = if by_bytes < least { least } else { by_bytes };
        (if most < 59 { most } else { 59 }, most)
    }
}

/// All classes; entry 0 is a dummy.
pub(crate) static CLASS: [Class; CLASSES] = TABLE;

/// [`CLASS`], for other constants.
pub(crate) const TABLE: [Class; CLASSES] = {
    let mut table =
        [Class { size: 0, blocks: 0, pages: 0, align_pages: 1, capacity: 0, capacity_max: 0, magic: 0 }; CLASSES];
    let mut class = 1;
    while class < CLASSES {
        let size = class_size(class);
        let pages = span_pages(size);
        let blocks = if pages * PAGE / size > SPAN_BLOCKS { SPAN_BLOCKS } else { pages * PAGE / size };
        let lowest_bit = size & size.wrapping_neg();
        let (capacity, capacity_max) = capacities(size);
        table[class] = Class {
            size: size as u32,
            blocks: blocks as u16,
            pages: pages as u16,
            align_pages: if lowest_bit > PAGE { (lowest_bit >> PAGE_SHIFT) as u16 } else { 1 },
            capacity: capacity as u16,
            capacity_max: capacity_max as u16,
            magic: (1u64 << 40).div_ceil(size as u64),
        };
        class += 1;
    }
    table
};

/// The table entry of a class.
#[inline]
pub(crate) fn class(class: usize) -> &'static Class {
    debug_assert!(class > 0 && class < CLASSES);
    // The test keeps the bounds check from becoming a panic.
    &CLASS[if class < CLASSES { class } else { 0 }]
}

const _: () = {
    assert!(CLASSES < 255, "a class is a byte, 255 stands for large blocks");
    let mut class = 1;
    while class < CLASSES {
        let size = class_size(class);
        let pages = span_pages(size);
        assert!(pages >= 1 && pages <= 256 && pages * PAGE >= size);
        assert!((pages * PAGE) % size <= pages * PAGE / 16, "at most a sixteenth is wasted at the end of a span");
        assert!(class_size(class) > class_size(class - 1));
        class += 1;
    }
    assert!(class_size(CLASSES - 1) == MEDIUM_MAX);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_lands_in_the_smallest_class_that_holds_it() {
        for size in 1..=MEDIUM_MAX {
            let class = class_of_bin(bin(size - 1).unwrap());
            assert!(CLASS[class].size as usize >= size, "{size}");
            assert!((CLASS[class - 1].size as usize) < size, "{size}");
        }
        assert_eq!(bin(MEDIUM_MAX), None);
        assert_eq!(bin(usize::MAX), None);
    }

    #[test]
    fn every_alignment_is_that_of_the_class() {
        for align_log in 0..=20 {
            let align = 1usize << align_log;
            for size in (1..=MEDIUM_MAX).step_by(if align_log < 4 { 1 } else { 7 }) {
                let Some(bin) = bin((size - 1) | (align - 1)) else { continue };
                let class = &CLASS[class_of_bin(bin)];
                assert_eq!(class.size as usize % align, 0, "{size} {align}");
                assert!(class.align_pages as usize * PAGE >= align.min(PAGE), "{size} {align}");
                assert!(align <= PAGE || (class.align_pages as usize * PAGE).is_multiple_of(align), "{size} {align}");
            }
        }
    }

    #[test]
    fn bins_and_classes_are_inverse() {
        for class in 1..CLASSES {
            assert_eq!(class_of_bin(last_bin_of_class(class)), class);
        }
        for bin in 0..CLOSED_BIN {
            assert!(last_bin_of_class(class_of_bin(bin)) - bin <= 1);
        }
    }

    #[test]
    fn requests_aligned_to_16_use_the_last_bin_of_their_class() {
        for size in 1..=MEDIUM_MAX {
            let bin = bin((size - 1) | 15).unwrap();
            assert_eq!(last_bin_of_class(class_of_bin(bin)), bin, "{size}");
        }
    }

    #[test]
    fn division_is_exact_on_the_grid_and_nowhere_else() {
        for class in CLASS.iter().skip(1) {
            let bytes = class.pages as usize * PAGE;
            for offset in (0..bytes).step_by(if bytes > 1 << 17 { 8 } else { 1 }) {
                let expected = (offset % class.size as usize == 0
                    && offset / (class.size as usize) < class.blocks as usize)
                    .then(|| offset / class.size as usize);
                assert_eq!(class.index_of(offset), expected);
                assert!(class.blocks == 1 || class.quotient(offset) == offset / class.size as usize);
            }
        }
    }
}
