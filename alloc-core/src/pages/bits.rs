//! A set of the 256 pages of a huge page, as four words.
//!
//! Ranges are given as first page and length; a range that reaches beyond page 256 is cut there. Nothing here
//! allocates or panics. A range of pages is found by jumping from set bit to clear bit, so a scan costs a few
//! instructions per range rather than per page.

use core::ops::{BitAnd, BitOr, Not};

/// Pages in a huge page.
pub(super) const PAGES: usize = 256;
const WORDS: usize = PAGES / 64;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(super) struct Bits([u64; WORDS]);

/// Neighbouring pages: the first and how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Bits {
    pub(super) const NONE: Self = Self([0; WORDS]);
    pub(super) const ALL: Self = Self([u64::MAX; WORDS]);

    /// The pages of one range.
    pub(super) fn range(start: usize, len: usize) -> Self {
        let mut bits = [0; WORDS];
        for (index, word) in bits.iter_mut().enumerate() {
            let base = index * 64;
            let low = start.saturating_sub(base).min(64);
            let high = start.saturating_add(len).saturating_sub(base).min(64);
            *word = lowest(high) & !lowest(low);
        }
        Self(bits)
    }

    /// The members of `word` as pages from `start` on.
    pub(super) fn from_word(start: usize, word: u64) -> Self {
        let mut bits = [0; WORDS];
        let (low, high) = (word.unbounded_shl((start % 64) as u32), word.unbounded_shr((64 - start % 64) as u32));
        for (index, at) in bits.iter_mut().enumerate() {
            *at = match index.wrapping_sub(start / 64) {
                0 => low,
                1 => high,
                _ => 0,
            };
        }
        Self(bits)
    }

    /// The pages from `start` on, as far as a word goes.
    pub(super) fn word_at(self, start: usize) -> u64 {
        let word = |index: usize| self.0.get(index).copied().unwrap_or(0);
        let high = word(start / 64 + 1).unbounded_shl((64 - start % 64) as u32);
        word(start / 64) >> (start % 64) | high
    }

    pub(super) fn count(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    pub(super) fn contains(self, other: Self) -> bool {
        (other & !self).is_empty()
    }

    pub(super) fn meets(self, other: Self) -> bool {
        !(self & other).is_empty()
    }

    /// The first member that is `from` or later; 256 if there is none.
    pub(super) fn first_from(self, from: usize) -> usize {
        let mut keep = !lowest(from % 64);
        for (index, word) in self.0.iter().enumerate().skip(from / 64) {
            let word = word & keep;
            if word != 0 {
                return index * 64 + word.trailing_zeros() as usize;
            }
            keep = u64::MAX;
        }
        PAGES
    }

    /// One more than the last member before `before`; 0 if there is none.
    pub(super) fn end_before(self, before: usize) -> usize {
        let kept = self & Self::range(0, before);
        for (index, word) in kept.0.iter().enumerate().rev() {
            if *word != 0 {
                return index * 64 + 64 - word.leading_zeros() as usize;
            }
        }
        0
    }

    /// The maximal ranges of members, in order.
    pub(super) fn ranges(self) -> Ranges {
        Ranges { bits: self, at: 0 }
    }

    /// The members whose whole group of `group` neighbours (a power of two, aligned) are members.
    pub(super) fn whole_groups(self, group: usize) -> Self {
        if group <= 1 {
            return self;
        }
        let mut whole = Self::NONE;
        let mut start = 0;
        while start < PAGES {
            let candidate = Self::range(start, group);
            if self.contains(candidate) {
                whole = whole | candidate;
            }
            start += group;
        }
        whole
    }

    /// The members and all their neighbours in groups of `group` (a power of two, aligned).
    pub(super) fn spread_to_groups(self, group: usize) -> Self {
        !(!self).whole_groups(group)
    }

    /// The first `pages` members in no more than `ranges` ranges.
    pub(super) fn first_few(self, pages: usize, ranges: usize) -> Self {
        let mut few = Self::NONE;
        let mut left = pages;
        for range in self.ranges().take(ranges) {
            let len = range.len.min(left);
            few = few | Self::range(range.start, len);
            left -= len;
            if left == 0 {
                break;
            }
        }
        few
    }
}

/// A word with its `count` lowest bits set.
fn lowest(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

impl BitAnd for Bits {
    type Output = Self;

    fn bitand(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= other;
        }
        self
    }
}

impl BitOr for Bits {
    type Output = Self;

    fn bitor(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
        self
    }
}

impl Not for Bits {
    type Output = Self;

    fn not(mut self) -> Self {
        for word in &mut self.0 {
            *word = !*word;
        }
        self
    }
}

/// See [`Bits::ranges`].
pub(super) struct Ranges {
    bits: Bits,
    at: usize,
}

impl Iterator for Ranges {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        let start = self.bits.first_from(self.at);
        if start >= PAGES {
            return None;
        }
        let end = (!self.bits).first_from(start);
        self.at = end;
        Some(Range { start, len: end - start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    fn members(bits: Bits) -> Vec<usize> {
        (0..PAGES).filter(|&index| bits.meets(Bits::range(index, 1))).collect()
    }

    #[test]
    fn ranges_of_every_start_and_length() {
        for start in 0..=PAGES {
            for len in 0..=PAGES {
                let bits = Bits::range(start, len);
                let end = (start + len).min(PAGES);
                assert_eq!(bits.count(), end.saturating_sub(start));
                if end > start {
                    assert_eq!(bits.first_from(0), start);
                    assert_eq!(bits.first_from(end), PAGES);
                    assert_eq!(bits.end_before(PAGES), end);
                    assert_eq!(bits.end_before(start), 0);
                    let range = Range { start, len: end - start };
                    assert!(bits.ranges().eq([range]));
                } else {
                    assert!(bits.is_empty());
                }
            }
        }
    }

    #[test]
    fn scans_agree_with_a_plain_list() {
        let mut random = 88172645463325252u64;
        for round in 0..170 {
            let mut bits = Bits::NONE;
            for index in 0..PAGES {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if random % 16 < round % 17 {
                    bits = bits | Bits::range(index, 1);
                }
            }
            let list = members(bits);
            assert_eq!(bits.count(), list.len());
            assert_eq!(members(!bits).len(), PAGES - list.len());
            for at in 0..=PAGES {
                let next = list.iter().copied().find(|&index| index >= at);
                assert_eq!(bits.first_from(at), next.unwrap_or(PAGES));
                let last = list.iter().copied().rev().find(|&index| index < at);
                assert_eq!(bits.end_before(at), last.map_or(0, |index| index + 1));
            }
            let rebuilt: Vec<usize> = bits.ranges().flat_map(|range| range.start..range.start + range.len).collect();
            assert_eq!(rebuilt, list);
            for group in [1, 2, 8, 64] {
                let whole: Vec<usize> = list
                    .iter()
                    .copied()
                    .filter(|index| {
                        let first = index & !(group - 1);
                        (first..first + group).all(|other| list.contains(&other))
                    })
                    .collect();
                assert_eq!(members(bits.whole_groups(group)), whole);
                let spread = bits.spread_to_groups(group);
                assert!(spread.contains(bits) && spread.whole_groups(group) == spread);
                assert!(bits.count() * group >= spread.count());
            }
            for start in 0..=PAGES {
                let from = Bits::range(start, 64);
                let word = bits.word_at(start);
                assert_eq!(word.count_ones() as usize, (bits & from).count());
                assert_eq!(Bits::from_word(start, word), bits & from);
            }
            let few = bits.first_few(20, 3);
            assert!(bits.contains(few) && few.count() <= 20 && few.ranges().count() <= 3);
            for &index in &list {
                bits = bits & !Bits::range(index, 1);
            }
            assert!(bits.is_empty());
        }
    }
}
