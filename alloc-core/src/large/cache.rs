//! Freed mappings, kept for the next blocks.
//!
//! A block gets a mapping of its own length, else a part of a longer one, else a shorter one to be lengthened: memory
//! that is there already costs no page faults and does not add to the peak. What goes on growing gets the place with the
//! most room behind it, and grows into that room step by step; until then the room is kept like everything else here,
//! so it may be given up, or become another block. Neighbours become one again, so that parts do not stay parts.
//!
//! Few and ordered by age: searched from the newest, given up from the oldest. A linear search over at most 64
//! entries costs less than a tenth of the system calls it saves. A long mapping is given up in parts, from its end.
//!
//! Invariants: `count` entries, oldest first; `bytes` is the sum of their lengths; neither exceeds its bound; no two
//! entries overlap or touch.

use core::ptr::{self, NonNull};

use super::give_back;
use crate::size_class::HUGE_SHIFT;

/// Mappings kept at most.
const ENTRIES: usize = 64;
/// Bytes kept at most.
const BYTES: usize = 64 << 20;
/// What is left of a mapping is kept if it is at least this long. A whole number of OS pages, whatever their size.
const LEAST_REST: usize = 64 << 10;
/// Where a mapping is cut that is given up in part, so that no huge page is torn.
const CUT: usize = 1 << HUGE_SHIFT;

/// A mapping that nobody uses.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    since: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    start: *mut u8,
    len: usize,
    since: u64,
}

/// See the module. All zero bits at first.
pub(super) struct Cache {
    entries: [Entry; ENTRIES],
    count: usize,
    bytes: usize,
}

// SAFETY: the mappings belong to the cache alone.
unsafe impl Send for Cache {}

fn is_aligned(entry: &Entry, align: usize) -> bool {
    entry.start.addr() & (align - 1) == 0
}

/// Whether a mapping of this length may be kept.
pub(super) fn fits(len: usize) -> bool {
    len <= BYTES
}

impl Mapping {
    /// A mapping that became free at the time `since` in milliseconds.
    pub(super) fn new(start: NonNull<u8>, len: usize, since: u64) -> Self {
        Self { start, len, since }
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn since(&self) -> u64 {
        self.since
    }

    /// Returns it to the OS.
    ///
    /// # Safety
    ///
    /// It is not in the cache, and nobody uses it.
    pub(super) unsafe fn give_back(self) {
        // SAFETY: passed on.
        unsafe { give_back(self.start, self.len) };
    }
}

impl Cache {
    pub(super) const fn new() -> Self {
        Self { entries: [Entry { start: ptr::null_mut(), len: 0, since: 0 }; ENTRIES], count: 0, bytes: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest came.
    pub(super) fn oldest_since(&self) -> Option<u64> {
        self.kept().first().map(|entry| entry.since)
    }

    /// Takes out the shortest mapping of at least `len` bytes and this alignment, the newest of several. Of a longer one
    /// the end stays, if it is worth it. Returns the length, too.
    pub(super) fn take(&mut self, len: usize, align: usize) -> Option<(NonNull<u8>, usize)> {
        let mut best: Option<(usize, usize)> = None;
        for (index, entry) in self.kept().iter().enumerate().rev() {
            if entry.len < len || best.is_some_and(|(_, best)| best <= entry.len) || !is_aligned(entry, align) {
                continue;
            }
            best = Some((index, entry.len));
            if entry.len == len {
                break;
            }
        }
        self.take_front(best?.0, len)
    }

    /// Takes `len` bytes at a multiple of `align` from where there is the most room for growth behind them, in all at
    /// least `room` bytes. What is before and behind them stays. Returns the length, too.
    pub(super) fn take_to_grow(&mut self, len: usize, align: usize, room: usize) -> Option<(NonNull<u8>, usize)> {
        let before = |entry: &Entry| entry.start.addr().wrapping_neg() & (align - 1);
        let left = |entry: &Entry| entry.len.saturating_sub(before(entry));
        let (index, found) = self.kept().iter().enumerate().max_by_key(|(_, entry)| left(entry))?;
        if left(found) < room.max(len) {
            return None;
        }
        let (found, before) = (*found, before(found));
        if before == 0 {
            return self.take_front(index, len);
        }
        // In two, of which the second is as old and so comes next.
        let behind = self.entries.get_mut(index + 1..self.count + 1)?;
        behind.first()?;
        behind.rotate_right(1);
        *behind.first_mut()? = Entry { start: found.start.wrapping_add(before), len: found.len - before, ..found };
        self.entries.get_mut(index)?.len = before;
        self.count += 1;
        self.take_front(index + 1, len)
    }

    /// Takes what is kept from the address `end` on, at least `least` and about `most` bytes. Returns their number.
    pub(super) fn take_behind(&mut self, end: usize, least: usize, most: usize) -> Option<usize> {
        let index = self.kept().iter().position(|entry| entry.start.addr() == end)?;
        let len = self.kept().get(index)?.len;
        if len < least {
            return None;
        }
        Some(self.take_front(index, len.min(most))?.1)
    }

    /// Takes `len` bytes from the start of an entry that has them, or all of it if nothing worth keeping would be left.
    fn take_front(&mut self, index: usize, len: usize) -> Option<(NonNull<u8>, usize)> {
        let entry = self.entries.get_mut(index)?;
        if entry.len - len < LEAST_REST {
            let taken = self.remove(index)?;
            return Some((taken.start, taken.len));
        }
        let start = NonNull::new(entry.start)?;
        entry.start = entry.start.wrapping_add(len);
        entry.len -= len;
        self.bytes -= len;
        Some((start, len))
    }

    /// Takes out the longest mapping that is shorter than `len`, but not shorter than half.
    pub(super) fn take_shorter(&mut self, len: usize) -> Option<Mapping> {
        let fits = |entry: &Entry| entry.len < len && entry.len >= len / 2;
        let fitting = self.kept().iter().enumerate().filter(|(_, entry)| fits(entry));
        let (index, _) = fitting.max_by_key(|(_, entry)| entry.len)?;
        self.remove(index)
    }

    /// Keeps a mapping (returns `None`), or takes out of the oldest what has to go before there is room. Neighbours that
    /// are kept already become one with it.
    pub(super) fn put(&mut self, mapping: &Mapping) -> Option<Mapping> {
        let excess = (self.bytes + mapping.len).saturating_sub(BYTES);
        if excess > 0 {
            return self.pop_oldest(excess);
        }
        let mut mapping = Mapping { ..*mapping };
        let end = |start: *mut u8, len: usize| start.wrapping_add(len);
        while let Some(index) = self.kept().iter().position(|entry| {
            end(entry.start, entry.len) == mapping.start.as_ptr()
                || end(mapping.start.as_ptr(), mapping.len) == entry.start
        }) {
            let Some(neighbour) = self.remove(index) else { break };
            mapping.start = mapping.start.min(neighbour.start);
            mapping.len += neighbour.len;
        }
        let Some(entry) = self.entries.get_mut(self.count) else {
            return self.pop_oldest(usize::MAX);
        };
        *entry = Entry { start: mapping.start.as_ptr(), len: mapping.len, since: mapping.since };
        self.count += 1;
        self.bytes += mapping.len;
        None
    }

    /// Takes out the end of the oldest mapping, about `least` bytes of it or a little more, or all of it if it is not
    /// longer than that.
    pub(super) fn pop_oldest(&mut self, least: usize) -> Option<Mapping> {
        let entry = self.entries.get_mut(..self.count)?.first_mut()?;
        let start = entry.start.addr();
        let cut = (start + entry.len).saturating_sub(least) & !(CUT - 1);
        if cut < start + LEAST_REST {
            return self.remove(0);
        }
        let part = Mapping::new(NonNull::new(entry.start.with_addr(cut))?, start + entry.len - cut, entry.since);
        entry.len -= part.len;
        self.bytes -= part.len;
        Some(part)
    }

    fn kept(&self) -> &[Entry] {
        self.entries.get(..self.count).unwrap_or_default()
    }

    fn remove(&mut self, index: usize) -> Option<Mapping> {
        let kept = self.entries.get_mut(..self.count)?.get_mut(index..)?;
        let entry = *kept.first()?;
        kept.rotate_left(1);
        self.count -= 1;
        self.bytes -= entry.len;
        Some(Mapping::new(NonNull::new(entry.start)?, entry.len, entry.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mapping that only looks like one.
    fn fake(addr: usize, len: usize, since: u64) -> Mapping {
        let start = NonNull::new(ptr::without_provenance_mut(addr)).unwrap();
        Mapping::new(start, len, since)
    }

    #[test]
    fn newest_of_the_right_length_and_alignment() {
        let mut cache = Cache::new();
        for (index, addr) in [0x10000, 0x21000, 0x30000, 0x41000].into_iter().enumerate() {
            assert!(cache.put(&fake(addr, 4096, index as u64)).is_none());
        }
        assert!(cache.put(&fake(0x50000, 8192, 9)).is_none());
        let addr = |taken: Option<(NonNull<u8>, usize)>| taken.map(|(start, len)| (start.addr().get(), len));
        assert_eq!(addr(cache.take(4096, 0x10000)), Some((0x30000, 4096)));
        assert_eq!(addr(cache.take(4096, 4096)), Some((0x41000, 4096)));
        assert_eq!(addr(cache.take(12288, 4096)), None);
        assert!(cache.put(&fake(0x60000, 8192, 9)).is_none());
        assert_eq!(addr(cache.take(4097, 4096)), Some((0x60000, 8192)));
        assert_eq!((cache.count(), cache.bytes()), (3, 2 * 4096 + 8192));
        assert_eq!(cache.oldest_since(), Some(0));
        assert_eq!(cache.pop_oldest(1).map(|oldest| oldest.since()), Some(0));
        assert_eq!(cache.oldest_since(), Some(1));
    }

    #[test]
    fn parts_and_neighbours() {
        const K: usize = 1 << 10;
        let mut cache = Cache::new();
        assert!(cache.put(&fake(1 << 30, 1024 * K, 1)).is_none());
        let addr = |taken: Option<(NonNull<u8>, usize)>| taken.map(|(start, len)| (start.addr().get(), len));
        // Two parts; the rest is too short to be kept alone.
        assert_eq!(addr(cache.take(256 * K, 4096)), Some((1 << 30, 256 * K)));
        assert_eq!((cache.count(), cache.bytes()), (1, 768 * K));
        assert_eq!(addr(cache.take(720 * K, 4096)), Some(((1 << 30) + 256 * K, 768 * K)));
        assert_eq!((cache.count(), cache.bytes()), (0, 0));
        // Put back in any order they are one, as young as the youngest.
        for (part, since) in [(2, 5), (0, 6), (3, 7), (1, 8)] {
            assert!(cache.put(&fake((1 << 30) + part * 256 * K, 256 * K, since)).is_none());
        }
        assert_eq!((cache.count(), cache.bytes(), cache.oldest_since()), (1, 1024 * K, Some(8)));
        assert_eq!(cache.take_shorter(1024 * K).map(|found| found.len()), None);
        assert_eq!(cache.take_shorter(2 * 1024 * K + 2).map(|found| found.len()), None);
        assert_eq!(cache.take_shorter(2 * 1024 * K).map(|found| found.len()), Some(1024 * K));
    }

    #[test]
    fn room_to_grow_is_taken_step_by_step_and_comes_back() {
        const K: usize = 1 << 10;
        const M: usize = 1 << 20;
        let mut cache = Cache::new();
        // Of two, the one with more room behind an aligned place; what is before that place stays, and both parts are
        // as old as they were.
        let (short, long) = (1 << 30, (3 << 30) + 256 * K);
        assert!(cache.put(&fake(long, 4 * M, 1)).is_none());
        assert!(cache.put(&fake(short, 3 * M, 2)).is_none());
        assert_eq!(cache.take_to_grow(128 * K, M, 4 * M).map(|(start, _)| start.addr().get()), None);
        let (start, len) = cache.take_to_grow(128 * K, M, M).unwrap();
        assert_eq!((start.addr().get(), len), ((3 << 30) + M, 128 * K));
        assert_eq!((cache.count(), cache.bytes(), cache.oldest_since()), (3, 7 * M - 128 * K, Some(1)));
        let mut end = start.addr().get() + len;
        assert_eq!(cache.take_behind(end + 1, 1, M), None);
        assert_eq!(cache.take_behind(end, 4 * M, 5 * M), None, "not that much is there");
        assert_eq!(cache.take_behind(end, 64 * K, 128 * K), Some(128 * K));
        end += 128 * K;
        // All but a rest that is too short is all.
        assert_eq!(cache.take_behind(end, M, 3 * M - 50 * K), Some(3 * M));
        assert_eq!(cache.take_behind(end + 3 * M, 1, M), None);
        assert_eq!((cache.count(), cache.bytes()), (2, 3 * M + 768 * K));
        // The block is freed, and there is one again.
        assert!(cache.put(&fake(start.addr().get(), 128 * K + 128 * K + 3 * M, 3)).is_none());
        assert_eq!((cache.count(), cache.bytes()), (2, 7 * M));
        assert_eq!(cache.take(4 * M, 4096).map(|(start, len)| (start.addr().get(), len)), Some((long, 4 * M)));
        assert_eq!(cache.take_to_grow(3 * M, M, M).map(|(start, len)| (start.addr().get(), len)), Some((short, 3 * M)));
        assert_eq!((cache.count(), cache.bytes()), (0, 0));
    }

    #[test]
    fn a_full_table_is_not_split_further() {
        let mut cache = Cache::new();
        for index in 1..=ENTRIES {
            assert!(cache.put(&fake((index << 30) + 4096, 512 << 10, 1)).is_none());
        }
        assert_eq!(cache.take_to_grow(64 << 10, 64 << 10, 64 << 10), None);
        assert_eq!((cache.count(), cache.bytes()), (ENTRIES, ENTRIES * (512 << 10)));
        assert!(cache.take_to_grow(64 << 10, 4096, 64 << 10).is_some());
    }

    #[test]
    fn count_and_bytes_are_bounded() {
        let mut cache = Cache::new();
        for index in 1..=ENTRIES {
            let mapping = fake(index << 20, 4096, index as u64);
            assert!(cache.put(&mapping).is_none());
        }
        let more = fake(1 << 40, 4096, 99);
        assert_eq!(cache.put(&more).map(|oldest| oldest.since()), Some(1));
        assert!(cache.put(&more).is_none());
        assert_eq!(cache.count(), ENTRIES);
        let long = fake(1 << 41, BYTES, 100);
        while cache.put(&long).is_some() {}
        assert_eq!((cache.bytes(), cache.count()), (BYTES, 1));
        assert!(fits(BYTES) && !fits(BYTES + 1));
        // It makes room from its end, in whole huge pages, and goes when hardly anything is left.
        let part = cache.put(&more).unwrap();
        assert_eq!((part.start().addr().get(), part.len()), ((1 << 41) + BYTES - CUT, CUT));
        assert!(cache.put(&more).is_none());
        assert_eq!((cache.bytes(), cache.count()), (BYTES - CUT + 4096, 2));
        assert_eq!(cache.pop_oldest(CUT + 1).map(|part| (part.len(), part.since())), Some((2 * CUT, 100)));
        assert_eq!(cache.pop_oldest(usize::MAX).map(|part| part.len()), Some(BYTES - 3 * CUT));
        assert_eq!(cache.pop_oldest(usize::MAX).map(|part| part.since()), Some(99));
    }
}
