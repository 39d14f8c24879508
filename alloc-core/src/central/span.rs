//! Spans: runs of pages cut into blocks of one class, with bitmaps outside of the pages: of the free blocks, and of what
//! is known of the OS pages.
//!
//! Invariants, all under the lock of the class:
//!
//! * `free` is the number of set bits; a bit is set if and only if the block is in no magazine and no user's hands.
//! * An OS page is *wholly free* when no used block overlaps it; what no block covers at the end of a span counts as
//!   free. `idle`, `returned` and `transit` are disjoint sets of wholly free OS pages: resident and seen to be free by
//!   the last [`sweep`](super::sweep); with the OS; on the way there.
//! * No block that overlaps a page in transit is handed out. Its bit stays set, so a second free of it is seen.
//! * Taking a block makes the pages that it overlaps neither idle nor returned. A block that comes back overlaps no
//!   returned page, so `put` has nothing to do with pages.
//! * `cold` free blocks overlap a page that is returned or in transit, `stuck` ones a page in transit.
//! * Spans are type-stable: the map may hand out a stale pointer to a program that frees a stale address, and reading
//!   it is harmless.
//!
//! The OS pages of a span are those that lie in it whole, numbered from its start. Their size is an argument, as a power
//! of two: with 64 KiB a span may begin in the middle of one, which then belongs to nobody. Spans with a single block
//! are wholly free or wholly used, and have no OS pages in this sense.
//!
//! Blocks are taken where that costs least: first on pages that are in use anyway, then on idle ones, then on returned
//! ones, each in the order of addresses. So pages that could go back are left alone as long as there is anything else.

use crate::meta::PoolItem;
use crate::size_class::{CLASSES, Class, PAGE, PAGE_SHIFT, SPAN_BLOCKS, TABLE};
use core::ptr::null_mut;

const WORDS: usize = SPAN_BLOCKS / 64;
/// OS pages of a span at most: what the sets of them hold.
const OS_PAGES: usize = 64;
/// The smallest OS page.
const LEAST_OS_PAGE: usize = 4096;

const _: () = {
    let mut class = 1;
    while class < CLASSES {
        let of = &TABLE[class];
        assert!(of.blocks == 1 || of.pages as usize * PAGE <= OS_PAGES * LEAST_OS_PAGE);
        class += 1;
    }
};

// SAFETY: a span is reached only under the lock of its class, or by the one who took it out of its list.
unsafe impl Send for Span {}

/// A span. All fields change only under the lock of the class, except `class` and `zeroed` of a span with a single
/// block, which belong to whoever holds the block.
#[repr(C)]
pub(crate) struct Span {
    /// Neighbours in the list it is in; `next` is the link of the pool when the span is not in use.
    pub(super) next: *mut Span,
    pub(super) prev: *mut Span,
    /// Address of the first block.
    pub(super) base: usize,
    pub(super) class: u8,
    /// The list that it is in; see [`super::lists`].
    pub(super) list: u8,
    /// Whether its memory was all zero when it came from the page heap; only asked for spans of a single block.
    pub(super) zeroed: bool,
    /// Word of the bitmap where the search begins: there is no set bit before it.
    hint: u8,
    free: u16,
    /// As long as fewer blocks are free, and none is taken, it stays in its list.
    pub(super) stays: u16,
    cold: u16,
    stuck: u16,
    /// Sets of OS pages; see the module.
    idle: u64,
    returned: u64,
    transit: u64,
    bitmap: [u64; WORDS],
    /// Neighbours in the ring of all spans of the class.
    pub(super) ring_next: *mut Span,
    pub(super) ring_prev: *mut Span,
}

// SAFETY: `next` is only used while the span is in a list; zero is a value for every field.
unsafe impl PoolItem for Span {
    fn link(this: *mut Self) -> *mut *mut Self {
        // SAFETY: only forms the address of a field.
        unsafe { &raw mut (*this).next }
    }
}

/// The sets of a span's OS pages that its class keeps sums of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Pages {
    pub(super) idle: u64,
    pub(super) returned: u64,
}

impl Span {
    /// Makes a span of fresh pages: all blocks free, in no list. `untouched`: the pages that are not resident, bit by
    /// bit.
    pub(super) fn init(&mut self, base: usize, class: u8, of: &Class, os_shift: u32, zeroed: bool, untouched: u64) {
        self.next = null_mut();
        self.prev = null_mut();
        self.ring_next = null_mut();
        self.ring_prev = null_mut();
        self.base = base;
        self.class = class;
        self.list = 0;
        self.stays = 0;
        self.free = of.blocks;
        self.hint = 0;
        self.zeroed = zeroed;
        let blocks = usize::from(of.blocks);
        for (i, word) in self.bitmap.iter_mut().enumerate() {
            *word = lowest(blocks.saturating_sub(i * 64));
        }
        self.idle = 0;
        self.transit = 0;
        self.returned = 0;
        for page in 0..if untouched == 0 { 0 } else { self.os_pages(of, os_shift) } {
            let from = self.lead(os_shift) + (page << os_shift);
            let pages = between(from >> PAGE_SHIFT, ((from + (1 << os_shift) - 1) >> PAGE_SHIFT) + 1);
            if untouched & pages == pages {
                self.returned |= 1 << page;
            }
        }
        self.recount(of, os_shift);
    }

    /// Free blocks.
    pub(super) fn free(&self) -> usize {
        usize::from(self.free)
    }

    /// Whether it is certainly in the list where it belongs, after blocks came back.
    pub(super) fn stays(&self) -> bool {
        self.free < self.stays
    }

    /// Whether a free block overlaps no page that is returned or in transit.
    pub(super) fn is_warm(&self) -> bool {
        self.free > self.cold
    }

    /// Whether a block can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.free > self.stuck
    }

    /// Whether a part of it is on the way to the OS.
    pub(super) fn in_transit(&self) -> bool {
        self.transit != 0
    }

    /// What the class keeps sums of.
    pub(super) fn pages(&self) -> Pages {
        Pages { idle: self.idle, returned: self.returned }
    }

    /// Bytes of its pages.
    pub(super) fn bytes(of: &Class) -> usize {
        usize::from(of.pages) * PAGE
    }

    /// Takes up to `n` free blocks and gives each to `give`. As long as blocks of resident pages are left, it takes only
    /// those, and fewer than `n` if need be. At least one, if there is room.
    pub(super) fn take(&mut self, of: &Class, os_shift: u32, n: usize, give: &mut impl FnMut(usize)) -> usize {
        let (base, size) = (self.base, of.size as usize);
        if self.idle | self.returned | self.transit == 0 {
            let mut hint = self.hint;
            let taken = self.take_between(usize::from(hint) * 64, usize::from(of.blocks), n, |index| {
                hint = (index / 64) as u8;
                give(base + index * size);
            });
            self.hint = hint;
            return taken;
        }
        let (lead, gone) = (self.lead(os_shift), self.returned | self.transit);
        let tiers = if self.is_warm() { [gone | self.idle, gone] } else { [self.transit; 2] };
        let (mut taken, mut touched) = (0, 0);
        for avoided in tiers {
            for (from, to) in self.outside(of, os_shift, avoided) {
                if taken == n {
                    break;
                }
                taken += self.take_between(from.max(usize::from(self.hint) * 64), to, n - taken, |index| {
                    let at = index * size;
                    touched |= overlapped(at, at + size, lead, os_shift);
                    give(base + at);
                });
            }
        }
        self.idle &= !touched;
        if self.returned & touched != 0 {
            self.returned &= !touched;
            self.recount(of, os_shift);
        }
        taken
    }

    /// Takes up to `n` of the free blocks with numbers from `from` to below `to`, in their order.
    fn take_between(&mut self, from: usize, to: usize, n: usize, mut each: impl FnMut(usize)) -> usize {
        let mut left = n;
        for (i, word) in self.bitmap.iter_mut().enumerate().take(to.div_ceil(64)).skip(from / 64) {
            let mut bits = *word & in_word(from, to, i);
            while bits != 0 && left > 0 {
                let bit = bits.trailing_zeros() as usize;
                *word &= !(1 << bit);
                bits &= bits - 1;
                left -= 1;
                each(i * 64 + bit);
            }
            if left == 0 {
                break;
            }
        }
        self.free -= (n - left) as u16;
        n - left
    }

    /// Marks block `index` free; false if it is free already.
    pub(super) fn put(&mut self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1u64 << (index % 64));
        match self.bitmap.get_mut(word) {
            Some(bits) if *bits & bit == 0 => {
                *bits |= bit;
                self.hint = self.hint.min(word as u8);
                self.free += 1;
                true
            }
            _ => false,
        }
    }

    /// Looks which OS pages are wholly free and resident, and sends up to `most` of those to the OS that the last look
    /// saw already (`all`: also the others). Returns what is in transit now.
    pub(super) fn look(&mut self, of: &Class, os_shift: u32, most: usize, all: bool) -> u64 {
        let stayed = self.idle;
        self.idle = self.wholly_free(of, os_shift) & !(self.returned | self.transit);
        debug_assert!(stayed & !self.idle == 0, "taking a block ends that its pages are idle");
        let go = first_few(if all { self.idle } else { stayed & self.idle }, most);
        if go != 0 {
            self.idle &= !go;
            self.transit = go;
            self.recount(of, os_shift);
        }
        go
    }

    /// Ends what [`look`](Self::look) began: `done` is with the OS now, the rest is as any page in use.
    pub(super) fn arrive(&mut self, of: &Class, os_shift: u32, done: u64) {
        debug_assert!(done & !self.transit == 0);
        self.returned |= done & self.transit;
        self.transit = 0;
        self.recount(of, os_shift);
    }

    /// The address of the first OS page of a span that begins at `base`.
    pub(super) fn origin(base: usize, os_shift: u32) -> usize {
        base.next_multiple_of(1 << os_shift)
    }

    /// Bytes of a set of OS pages, and those of them that lie behind the last block.
    pub(super) fn bytes_of(&self, of: &Class, os_shift: u32, pages: u64) -> (usize, usize) {
        let end = usize::from(of.blocks) * of.size as usize;
        let lead = self.lead(os_shift);
        let behind = runs(pages & overlapped(end, Self::bytes(of), lead, os_shift))
            .map(|(page, len)| (lead + (page << os_shift), lead + ((page + len) << os_shift)))
            .map(|(from, to)| to - from.max(end));
        ((pages.count_ones() as usize) << os_shift, behind.sum())
    }

    /// The pages, of 8 KiB, that consist of returned OS pages: what the page heap need not return again; and those of which
    /// a part is returned.
    pub(super) fn returned_pages(&self, of: &Class, os_shift: u32) -> (u64, u64) {
        let lead = self.lead(os_shift);
        let end = lead + (self.os_pages(of, os_shift) << os_shift);
        let (mut whole, mut partly) = (0, 0);
        for page in 0..if self.returned == 0 { 0 } else { usize::from(of.pages) } {
            let (from, to) = (page * PAGE, (page + 1) * PAGE);
            let os_pages = overlapped(from, to, lead, os_shift);
            if from >= lead && to <= end && self.returned & os_pages == os_pages {
                whole |= between(page, page + 1);
            } else if self.returned & os_pages != 0 {
                partly |= between(page, page + 1);
            }
        }
        (whole, partly)
    }

    /// Bytes before the first OS page that lies in the span whole.
    fn lead(&self, os_shift: u32) -> usize {
        Self::origin(self.base, os_shift) - self.base
    }

    /// How many OS pages lie in the span whole.
    fn os_pages(&self, of: &Class, os_shift: u32) -> usize {
        if of.blocks == 1 {
            return 0;
        }
        (Self::bytes(of).saturating_sub(self.lead(os_shift)) >> os_shift).min(OS_PAGES)
    }

    /// The wholly free OS pages.
    fn wholly_free(&self, of: &Class, os_shift: u32) -> u64 {
        let (size, blocks) = (of.size as usize, usize::from(of.blocks));
        let uncovered = Self::bytes(of) - blocks * size;
        if self.free() * size + uncovered < 1 << os_shift {
            return 0;
        }
        let mut whole = 0;
        let mut at = self.lead(os_shift);
        for page in 0..self.os_pages(of, os_shift) {
            let end = at + (1 << os_shift);
            if self.are_free(of.quotient(at), of.quotient(end + size - 1).min(blocks)) {
                whole |= 1 << page;
            }
            at = end;
        }
        whole
    }

    /// Whether all blocks with numbers from `from` to below `to` are free.
    fn are_free(&self, from: usize, to: usize) -> bool {
        let mut words = self.bitmap.iter().enumerate().take(to.div_ceil(64)).skip(from / 64);
        words.all(|(i, word)| !word & in_word(from, to, i) == 0)
    }

    /// Counts what is cold and stuck.
    fn recount(&mut self, of: &Class, os_shift: u32) {
        self.stuck = self.free_on(of, os_shift, self.transit);
        self.cold = match self.returned {
            0 => self.stuck,
            returned => self.free_on(of, os_shift, returned | self.transit),
        };
    }

    /// Free blocks that overlap a page of the set.
    fn free_on(&self, of: &Class, os_shift: u32, pages: u64) -> u16 {
        if pages == 0 {
            return 0;
        }
        let mut others = 0;
        for (from, to) in self.outside(of, os_shift, pages) {
            for (i, word) in self.bitmap.iter().enumerate().take(to.div_ceil(64)).skip(from / 64) {
                others += (word & in_word(from, to, i)).count_ones() as u16;
            }
        }
        self.free - others
    }

    /// The ranges of blocks that overlap no page of the set: numbers of the first and of the one after the last.
    fn outside(&self, of: &Class, os_shift: u32, pages: u64) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (of, lead, end) = (*of, self.lead(os_shift), Self::bytes(of));
        let mut at = 0;
        runs(pages).map(Some).chain([None]).filter_map(move |run| {
            let (to, next) = match run {
                Some((page, len)) => (lead + (page << os_shift), lead + ((page + len) << os_shift)),
                None => (end, end),
            };
            let first = of.quotient(at + of.size as usize - 1);
            let last = of.quotient(to).min(usize::from(of.blocks));
            at = next;
            (first < last).then_some((first, last))
        })
    }
}

/// The OS pages that the bytes from `from` to below `to` of a span overlap.
fn overlapped(from: usize, to: usize, lead: usize, os_shift: u32) -> u64 {
    let first = from.saturating_sub(lead) >> os_shift;
    let end = (to.saturating_sub(lead) + (1 << os_shift) - 1) >> os_shift;
    between(first, end)
}

/// A word with its `count` lowest bits set.
fn lowest(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The numbers from `from` to below `to`, as far as a word goes.
pub(super) fn between(from: usize, to: usize) -> u64 {
    lowest(to) & !lowest(from)
}

/// The members of the range from `from` to below `to` that word `i` of a bitmap has.
fn in_word(from: usize, to: usize, i: usize) -> u64 {
    between(from.saturating_sub(i * 64), to.saturating_sub(i * 64))
}

/// The lowest `count` members.
fn first_few(set: u64, count: usize) -> u64 {
    let mut rest = set;
    for _ in 0..count.min(64) {
        rest &= rest.wrapping_sub(1);
    }
    set & !rest
}

/// First member and length of each range of neighbours.
pub(super) fn runs(set: u64) -> impl Iterator<Item = (usize, usize)> {
    let mut rest = set;
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let start = rest.trailing_zeros() as usize;
        let len = (rest >> start).trailing_ones() as usize;
        rest &= !between(start, start + len);
        Some((start, len))
    })
}

/// How many ranges of neighbours a set has.
pub(super) fn count_runs(set: u64) -> usize {
    (set & !(set << 1)).count_ones() as usize
}

#[cfg(test)]
mod tests;
