//! The descriptor of one 2 MiB huge page: which of its 256 pages are used, returned, known to be zero.
//!
//! It lives outside the huge page, is made when the heap first grows into it, and stays for ever. Free ranges need no
//! merging: they are what lies between used bits.
//!
//! Invariants, under the lock of the page heap:
//! - `used`: handed out, or on the way to the OS (`transit`, a subset of `used`).
//! - `returned`: not resident, as far as the heap knows. Only free pages are, and in whole OS pages.
//! - `zero`: free and known to hold zeros. Includes `returned`, and more where an OS page is larger than a page:
//!   touching one page brings in its untouched neighbours.
//! - `longest` is the length of the longest free range, and `counts` agrees with the bits.
//!
//! What it does not do: it knows no lists and no totals (see [`super::heap`]).

use super::Kind;
use super::bits::{Bits, PAGES, Range};
use super::fit::BANDS;
use super::list::Links;

/// See the module. The links come first; [`super::list`] relies on that.
#[repr(C, align(64))]
pub(super) struct HugePage {
    links: [Links; Self::PAIRS],
    base: *mut u8,
    used: Bits,
    returned: Bits,
    zero: Bits,
    transit: Bits,
    longest: u16,
    /// Counts of the bits above, kept because they are asked for more often than they change.
    counts: PageCounts,
    /// What the runs in it are for, by the first that was taken when all was free.
    pub(super) kind: Kind,
    /// A release is under way: the huge page is in no list, and only frees and extensions touch it.
    pub(super) detached: bool,
    /// The decay epoch of the last free into it.
    pub(super) stamp: u64,
}

const _: () = assert!(core::mem::offset_of!(HugePage, links) == 0);
const _: () = assert!(size_of::<HugePage>() == 192);

/// How the pages of a heap, or of a huge page, divide up. What is in transit counts as resident.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    pub(super) used: usize,
    pub(super) resident: usize,
    pub(super) returned: usize,
    /// The part of `resident` in wholly free huge pages.
    pub(super) whole: usize,
}

/// [`Counts`] of a single huge page, in less space.
#[derive(Clone, Copy)]
struct PageCounts {
    used: u16,
    resident: u16,
    returned: u16,
}

/// A place where an allocation could go.
#[derive(Clone, Copy)]
struct Place {
    /// Length of the free range around it.
    len: usize,
    /// Returned pages among those that would be used.
    returned: usize,
    start: usize,
}

impl HugePage {
    /// Pairs of links.
    pub(super) const PAIRS: usize = 2;

    /// A huge page that is free and was never touched.
    pub(super) const fn new(base: *mut u8) -> Self {
        Self {
            links: [const { Links::new() }; Self::PAIRS],
            base,
            used: Bits::NONE,
            returned: Bits::ALL,
            zero: Bits::ALL,
            transit: Bits::NONE,
            longest: PAGES as u16,
            counts: PageCounts { used: 0, resident: 0, returned: PAGES as u16 },
            kind: Kind::Dense,
            detached: false,
            stamp: 0,
        }
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base
    }

    pub(super) fn longest(&self) -> usize {
        self.longest as usize
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            used: self.counts.used.into(),
            resident: self.counts.resident.into(),
            returned: self.counts.returned.into(),
            whole: if self.is_free() { self.counts.resident.into() } else { 0 },
        }
    }

    pub(super) fn is_free(&self) -> bool {
        self.counts.used == 0
    }

    /// How full it is, in bands of 16 pages: 0 up to 15 pages, 15 at 240 and more.
    pub(super) fn band(&self) -> usize {
        (usize::from(self.counts.used) * BANDS / PAGES).min(BANDS - 1)
    }

    /// Whether any free page is resident.
    pub(super) fn has_resident(&self) -> bool {
        self.counts.resident > 0
    }

    /// The first page of the shortest free range that has room for `pages` pages at a multiple of `align` (a power of
    /// two). Among equal ones, the one with the fewest returned pages in that place, then the lowest.
    pub(super) fn best_fit(&self, pages: usize, align: usize) -> Option<usize> {
        let mut best: Option<Place> = None;
        for Range { start, len } in (!self.used).ranges() {
            let aligned = (start + align - 1) & !(align - 1);
            if aligned + pages > start + len || best.is_some_and(|best| best.len < len) {
                continue;
            }
            let returned = match self.counts.returned {
                0 => 0,
                _ => (self.returned & Bits::range(aligned, pages)).count(),
            };
            if best.is_none_or(|best| (len, returned) < (best.len, best.returned)) {
                best = Some(Place { len, returned, start: aligned });
            }
        }
        best.map(|best| best.start)
    }

    /// Whether a range is free.
    pub(super) fn range_is_free(&self, start: usize, pages: usize) -> bool {
        start + pages <= PAGES && !self.used.meets(Bits::range(start, pages))
    }

    /// Returned pages that using a free range takes from the OS again.
    pub(super) fn brought_back(&self, start: usize, pages: usize, os_pages: usize) -> usize {
        (self.returned & Bits::range(start, pages).spread_to_groups(os_pages)).count()
    }

    /// Uses a free range. True if it is known to hold zeros.
    pub(super) fn take(&mut self, start: usize, pages: usize, os_pages: usize) -> bool {
        let range = Bits::range(start, pages);
        debug_assert!(!self.used.meets(range));
        let zeroed = self.zero.contains(range);
        self.used = self.used | range;
        self.zero = self.zero & !range;
        self.returned = self.returned & !range.spread_to_groups(os_pages);
        self.longest = self.longest_range();
        self.recount();
        zeroed
    }

    /// Which pages from `start` on, 64 of them at most, are returned, bit by bit.
    pub(super) fn returned_from(&self, start: usize, pages: usize) -> u64 {
        (self.returned & Bits::range(start, pages)).word_at(start)
    }

    /// Frees a used range, of which the pages in `returned`, from `start` on bit by bit, are with the OS already.
    pub(super) fn give(&mut self, start: usize, pages: usize, returned: u64) {
        let range = Bits::range(start, pages);
        let returned = Bits::from_word(start, returned) & range;
        self.returned = self.returned | returned;
        self.zero = self.zero | returned;
        debug_assert!(self.used.contains(range) && !self.transit.meets(range), "pages freed that are not in use");
        self.used = self.used & !range;
        // Only the range around the new gap can have become the longest.
        let from = self.used.end_before(start);
        let to = self.used.first_from(start);
        self.longest = self.longest.max((to - from) as u16);
        self.recount();
    }

    /// The free resident pages that make up whole OS pages of `os_pages` pages.
    pub(super) fn releasable(&self, os_pages: usize) -> Bits {
        (!self.used).whole_groups(os_pages) & !self.returned
    }

    /// Marks pages as on the way to the OS, so that nobody can be given them meanwhile.
    pub(super) fn begin_transit(&mut self, pages: Bits) {
        debug_assert!(!self.used.meets(pages));
        self.transit = pages;
        self.used = self.used | pages;
        self.longest = self.longest_range();
        self.recount();
    }

    /// Ends what [`begin_transit`](Self::begin_transit) began: the pages are free again, and `done` of them are
    /// with the OS now.
    pub(super) fn end_transit(&mut self, done: Bits) {
        debug_assert!(self.transit.contains(done));
        self.used = self.used & !self.transit;
        self.transit = Bits::NONE;
        self.returned = self.returned | done;
        self.zero = self.zero | done;
        self.longest = self.longest_range();
        self.recount();
    }

    fn recount(&mut self) {
        let (used, transit) = (self.used.count(), self.transit.count());
        let returned = (self.returned & !self.used).count();
        self.counts = PageCounts {
            used: (used - transit) as u16,
            resident: (PAGES - used - returned + transit) as u16,
            returned: returned as u16,
        };
    }

    fn longest_range(&self) -> u16 {
        let longest = (!self.used).ranges().map(|range| range.len).max();
        longest.unwrap_or(0) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    fn fresh() -> HugePage {
        HugePage::new(core::ptr::null_mut())
    }

    #[test]
    fn fresh_pages_are_free_returned_and_zero() {
        let page = fresh();
        assert!(page.is_free() && !page.has_resident());
        let counts = Counts { returned: PAGES, ..Counts::default() };
        assert_eq!((page.counts(), page.longest()), (counts, PAGES));
        assert_eq!(page.releasable(1), Bits::NONE);
    }

    #[test]
    fn the_shortest_range_wins_then_the_resident_one() {
        let mut page = fresh();
        assert_eq!(page.best_fit(PAGES, 1), Some(0));
        page.take(0, PAGES, 1);
        // Free ranges: 10..20, 40..45, 60..65, 100..110.
        for (start, len) in [(10, 10), (40, 5), (60, 5), (100, 10)] {
            page.give(start, len, 0);
        }
        assert_eq!(page.longest(), 10);
        assert_eq!(page.best_fit(3, 1), Some(40));
        assert_eq!(page.best_fit(6, 1), Some(10));
        assert_eq!(page.best_fit(11, 1), None);
        page.begin_transit(Bits::range(40, 2));
        assert_eq!(page.best_fit(5, 1), Some(60));
        page.end_transit(Bits::range(40, 2));
        assert_eq!(page.best_fit(3, 1), Some(60), "40 and 41 are returned");
        // Alignment: 60 is a multiple of 4 as is 40, 16 and 104 are multiples of 8.
        assert_eq!(page.best_fit(3, 4), Some(60));
        assert_eq!(page.best_fit(3, 8), Some(40));
        assert_eq!(page.best_fit(4, 16), Some(16));
        assert_eq!(page.best_fit(1, 128), None);
    }

    #[test]
    fn zero_is_known_until_used() {
        let mut page = fresh();
        assert!(page.take(0, 4, 1));
        page.give(0, 4, 0);
        assert!(!page.take(2, 4, 1), "2 and 3 were used before");
        page.give(2, 4, 0);
        assert!(page.take(6, 4, 1));
        page.give(6, 4, 0);
        page.begin_transit(page.releasable(1));
        page.end_transit(Bits::range(0, 10));
        assert!(page.take(0, 10, 1));
    }

    #[test]
    fn a_refused_release_leaves_pages_resident() {
        let mut page = fresh();
        page.take(0, 10, 1);
        page.give(0, 10, 0);
        page.begin_transit(page.releasable(1));
        assert_eq!(page.counts().resident, 10);
        assert!(!page.range_is_free(0, 1) && page.range_is_free(10, 246));
        page.end_transit(Bits::range(0, 3));
        assert_eq!(page.counts().resident, 7);
        assert!(page.take(0, 3, 1));
        assert!(!page.take(3, 1, 1));
    }

    #[test]
    fn large_os_pages_are_released_whole() {
        let mut page = fresh();
        // With 64 KiB OS pages, using one page makes its seven neighbours resident, but still zero.
        assert!(page.take(11, 1, 8));
        assert_eq!(page.counts().resident, 7);
        assert_eq!(page.releasable(8), Bits::NONE);
        assert!(page.take(8, 3, 8));
        page.give(8, 3, 0);
        page.give(11, 1, 0);
        assert_eq!(page.releasable(8), Bits::range(8, 8));
        page.take(30, 1, 8);
        page.take(40, 16, 8);
        page.give(40, 16, 0);
        // 24..32 holds a used page.
        assert_eq!(page.releasable(8), Bits::range(8, 8) | Bits::range(40, 16));
    }
}
