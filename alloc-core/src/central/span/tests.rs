//! Promises held here: every block is handed out once; what is said of OS pages agrees with a look at each block; no
//! block of a page in transit is handed out; pages that are or could be with the OS are touched last.

extern crate std;

use std::boxed::Box;
use std::vec::Vec;

use super::*;
use crate::central::lists::Spans;
use crate::random::Random;
use crate::size_class::CLASS;

/// OS pages of 4, 8, 16 and 64 KiB.
const SHIFTS: [u32; 4] = [12, 13, 14, 16];

fn span(class: usize, base: usize, os_shift: u32, untouched: u64) -> Box<Span> {
    // SAFETY: all fields are integers or raw pointers, for which zero is a value.
    let mut span: Box<Span> = Box::new(unsafe { core::mem::zeroed() });
    span.init(base, class as u8, &CLASS[class], os_shift, true, untouched);
    span
}

fn taken(s: &mut Span, of: &Class, os_shift: u32, n: usize) -> Vec<usize> {
    let mut blocks = Vec::new();
    assert_eq!(s.take(of, os_shift, n, &mut |block| blocks.push(block)), blocks.len());
    blocks
}

/// Numbers of the blocks of a span, or of those on a page, by plain arithmetic.
struct Plain {
    of: Class,
    base: usize,
    os: usize,
}

impl Plain {
    fn block(&self, index: usize) -> core::ops::Range<usize> {
        let start = self.base + index * self.of.size as usize;
        start..start + self.of.size as usize
    }

    /// Addresses of the OS pages that lie in the span whole.
    fn pages(&self) -> Vec<usize> {
        let first = self.base.next_multiple_of(self.os);
        let end = self.base + Span::bytes(&self.of);
        (first..end).step_by(self.os).filter(|page| page + self.os <= end).collect()
    }

    fn blocks_on(&self, page: usize) -> Vec<usize> {
        let overlaps = |index: &usize| self.block(*index).start < page + self.os && self.block(*index).end > page;
        (0..usize::from(self.of.blocks)).filter(overlaps).collect()
    }

    /// The set of OS pages that fulfil a condition on their blocks.
    fn set(&self, mut condition: impl FnMut(&[usize]) -> bool) -> u64 {
        let pages = self.pages().into_iter().enumerate();
        pages.filter(|&(_, page)| condition(&self.blocks_on(page))).fold(0, |set, (number, _)| set | 1 << number)
    }
}

/// Whether a block is free, by its bit.
fn is_free(s: &Span, index: usize) -> bool {
    s.bitmap[index / 64] >> (index % 64) & 1 == 1
}

fn check(s: &Span, plain: &Plain) {
    let free: Vec<usize> = (0..usize::from(plain.of.blocks)).filter(|&index| is_free(s, index)).collect();
    assert_eq!(s.free(), free.len());
    let whole = plain.set(|blocks| blocks.iter().all(|&index| is_free(s, index)));
    let os_shift = plain.os.ilog2();
    if s.free() > 0 {
        assert_eq!(s.wholly_free(&plain.of, os_shift), whole);
    }
    assert_eq!((s.idle & s.returned, s.returned & s.transit, s.idle & s.transit), (0, 0, 0));
    assert_eq!((s.idle | s.returned | s.transit) & !whole, 0);
    let on = |set: u64| {
        let pages: Vec<usize> =
            plain.pages().into_iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, page)| page).collect();
        free.iter()
            .filter(|&&index| {
                let block = plain.block(index);
                pages.iter().any(|&page| block.start < page + plain.os && block.end > page)
            })
            .count()
    };
    assert_eq!(usize::from(s.stuck), on(s.transit));
    assert_eq!(usize::from(s.cold), on(s.transit | s.returned));
    let behind = plain.base + usize::from(plain.of.blocks) * plain.of.size as usize;
    let uncovered = plain.pages().into_iter().enumerate().filter(|(i, _)| s.returned >> i & 1 == 1);
    let uncovered: usize = uncovered.map(|(_, page)| (page + plain.os).saturating_sub(page.max(behind))).sum();
    let bytes = s.returned.count_ones() as usize * plain.os;
    assert_eq!(s.bytes_of(&plain.of, os_shift, s.returned), (bytes, uncovered));
}

#[test]
fn takes_every_block_once_in_address_order() {
    for (class, of) in CLASS.iter().enumerate().skip(1) {
        let mut s = span(class, 1 << 21, 12, 0);
        let mut blocks = taken(&mut s, of, 12, 7);
        blocks.extend(taken(&mut s, of, 12, usize::MAX));
        assert_eq!(blocks.len(), usize::from(of.blocks));
        assert!(blocks.windows(2).all(|pair| pair[1] - pair[0] == of.size as usize));
        assert_eq!((s.free(), s.has_room()), (0, false));
        for &p in blocks.iter().rev() {
            let index = of.index_of(p - s.base).unwrap();
            assert!(s.put(index));
            assert!(!s.put(index), "a second free is seen");
        }
        assert_eq!(s.free(), usize::from(of.blocks));
        assert_eq!(taken(&mut s, of, 12, 1), [s.base]);
    }
}

/// Random frees, takes, looks and arrivals in spans of every class with several blocks, with every size of OS page.
#[test]
#[cfg_attr(miri, ignore = "plain arithmetic, slowly")]
fn pages_agree_with_a_look_at_each_block() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (class, of) in CLASS.iter().enumerate().skip(1).filter(|(_, of)| of.blocks > 1) {
        for os_shift in SHIFTS {
            let base = (1 << 21) + random.below(8) * PAGE;
            let plain = Plain { of: *of, base, os: 1 << os_shift };
            let mut s = span(class, base, os_shift, if random.below(2) == 0 { u64::MAX } else { 0 });
            check(&s, &plain);
            let mut used: Vec<usize> = Vec::new();
            for _ in 0..12 {
                let (idle, returned, transit) = (s.idle, s.returned, s.transit);
                let warm = s.free - s.cold;
                let n = 1 + random.below(usize::from(of.blocks));
                let got = taken(&mut s, of, os_shift, n);
                if warm > 0 {
                    assert_eq!(got.len(), n.min(warm.into()), "blocks on resident pages, as many as there are");
                    assert_eq!(s.returned, returned, "which leaves the others alone");
                    let idle_too = got.iter().any(|&block| {
                        overlapped(block - base, block - base + of.size as usize, s.lead(os_shift), os_shift) & idle
                            != 0
                    });
                    let busy = plain.set(|blocks| blocks.iter().any(|&index| is_free(&s, index))) & !idle;
                    let left = (0..usize::from(of.blocks)).any(|index| {
                        let at = index * of.size as usize;
                        let pages = overlapped(at, at + of.size as usize, s.lead(os_shift), os_shift);
                        is_free(&s, index) && pages & !busy == 0 && pages & (idle | returned | transit) == 0
                    });
                    assert!(!(idle_too && left), "idle pages only when nothing else is left");
                }
                used.extend(got.iter().map(|&block| (block - base) / of.size as usize));
                check(&s, &plain);
                for _ in 0..random.below(used.len() * 3 + 1) {
                    if !used.is_empty() {
                        assert!(s.put(used.swap_remove(random.below(used.len()))));
                    }
                }
                check(&s, &plain);
                if s.transit != 0 {
                    let done = s.transit & random.below(usize::MAX) as u64;
                    s.arrive(of, os_shift, done);
                    check(&s, &plain);
                } else {
                    let seen = s.idle;
                    let most = random.below(8);
                    let go = s.look(of, os_shift, most, random.below(4) == 0);
                    assert!(go.count_ones() as usize <= most && (go & !seen == 0 || go == s.transit));
                    check(&s, &plain);
                    let lead = s.lead(os_shift);
                    let on = |index: &usize| {
                        let at = index * of.size as usize;
                        overlapped(at, at + of.size as usize, lead, os_shift) & go != 0
                    };
                    let stuck: Vec<usize> = (0..usize::from(of.blocks)).filter(on).collect();
                    for &index in &stuck {
                        assert!(!s.put(index), "a second free of a block in transit is seen");
                    }
                    for block in taken(&mut s, of, os_shift, usize::MAX) {
                        let index = (block - base) / of.size as usize;
                        assert!(!stuck.contains(&index), "handed out in transit");
                        used.push(index);
                    }
                    check(&s, &plain);
                }
            }
        }
    }
}

#[test]
fn untouched_pages_become_returned_os_pages_and_back() {
    // 64 KiB spans of 512-byte blocks, at the start of an OS page of any size and in the middle of a large one.
    let class = (1..CLASSES).find(|&class| CLASS[class].size == 512).unwrap();
    let of = &CLASS[class];
    for os_shift in SHIFTS {
        let s = span(class, 1 << 21, os_shift, 0b1111_1101);
        let small = if os_shift == 12 { 0xfff3 } else { 0xfd };
        let expected = match os_shift {
            12 | 13 => small,
            14 => 0b1110,
            _ => 0,
        };
        assert_eq!(s.returned, expected);
        let pages = match os_shift {
            12 | 13 => 0b1111_1101,
            14 => 0b1111_1100,
            _ => 0,
        };
        assert_eq!(s.returned_pages(of, os_shift), (pages, 0));
    }
    let shifted = span(class, (1 << 21) + PAGE, 14, u64::MAX);
    assert_eq!(shifted.returned, 0b111, "the first and the last page are halves of OS pages");
    assert_eq!(shifted.returned_pages(of, 14), (0b0111_1110, 0));
    let none = span(class, (1 << 21) + PAGE, 16, u64::MAX);
    assert_eq!((none.returned, none.is_warm()), (0, true));
}

#[test]
fn the_fullest_span_comes_first_and_resident_blocks_before() {
    let of = &CLASS[8];
    let mut boxes: Vec<Box<Span>> = (0..3).map(|_| span(8, 1 << 21, 12, 0)).collect();
    taken(&mut boxes[0], of, 12, usize::from(of.blocks) - 2);
    let [a, b, c] = [0, 1, 2].map(|i| &raw mut *boxes[i]);
    let mut spans = Spans::new();
    // SAFETY: they live to the end of the test and are of class 8.
    unsafe {
        spans.add(a, of);
        spans.add(b, of);
        assert_eq!(spans.best(), a);
        taken(&mut *a, of, 12, 2);
        spans.resort(a, of);
        assert_eq!(spans.best(), b);
        for index in 0..of.blocks as usize {
            (*a).put(index);
            spans.resort(a, of);
        }
        // Nearly full, but what is free of it is with the OS.
        taken(&mut *c, of, 12, usize::from(of.blocks) - 64);
        spans.add(c, of);
        assert_eq!(spans.best(), c);
        assert_eq!((*c).look(of, 12, 1, true), 1 << 15);
        spans.resort(c, of);
        assert_ne!(spans.best(), c, "in transit");
        (*c).arrive(of, 12, 1 << 15);
        spans.resort(c, of);
        assert_ne!(spans.best(), c, "returned");
        spans.remove(a);
        spans.remove(b);
        assert_eq!(spans.best(), c);
        assert_eq!(taken(&mut *c, of, 12, 64).len(), 64);
        spans.resort(c, of);
        assert!(spans.best().is_null());
    }
}
