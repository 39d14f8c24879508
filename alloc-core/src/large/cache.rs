//! Freed mappings, kept for the next blocks.
//!
//! A block gets a mapping of its own length, else a part of a longer one, else a shorter one to be lengthened: memory
//! that is there already costs no page faults and does not add to the peak. Neighbours become one again, so that parts
//! do not stay parts.
//!
//! Few and ordered by age: searched from the newest, given up from the oldest. A linear search over at most 64
//! entries costs less than a tenth of the system calls it saves.
//!
//! Invariants: `count` entries, oldest first; `bytes` is the sum of their lengths; neither exceeds its bound; no two
//! entries overlap.

use core::ptr::{self, NonNull};

use super::give_back;

/// Mappings kept at most.
const ENTRIES: usize = 64;
/// Bytes kept at most.
const BYTES: usize = 64 << 20;
/// A longer mapping is not kept: it would push out most of the others.
const LONGEST: usize = BYTES / 2;
/// What is left of a mapping is kept if it is at least this long. A whole number of OS pages, whatever their size.
const LEAST_REST: usize = 64 << 10;

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

/// Whether a mapping of this length may be kept.
pub(super) fn fits(len: usize) -> bool {
    len <= LONGEST
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

    /// Takes out the shortest mapping of at least `len` bytes and this alignment, the newest of several. Of one that is
    /// longer than `most` the end stays. Returns the length, too.
    pub(super) fn take(&mut self, len: usize, most: usize, align: usize) -> Option<(NonNull<u8>, usize)> {
        let fits = |entry: &Entry| entry.len >= len && entry.start.addr().trailing_zeros() >= align.ilog2();
        let fitting = self.kept().iter().enumerate().rev().filter(|(_, entry)| fits(entry));
        // The first of equals, which is the newest.
        let (index, found) = fitting.min_by_key(|(_, entry)| entry.len)?;
        if found.len > most && found.len - len >= LEAST_REST {
            let entry = self.entries.get_mut(index)?;
            let start = NonNull::new(entry.start)?;
            entry.start = entry.start.wrapping_add(len);
            entry.len -= len;
            self.bytes -= len;
            return Some((start, len));
        }
        let taken = self.remove(index)?;
        Some((taken.start, taken.len))
    }

    /// Takes out the longest mapping that is shorter than `len`, but not shorter than half.
    pub(super) fn take_shorter(&mut self, len: usize) -> Option<Mapping> {
        let fits = |entry: &Entry| entry.len < len && entry.len >= len / 2;
        let fitting = self.kept().iter().enumerate().filter(|(_, entry)| fits(entry));
        let (index, _) = fitting.max_by_key(|(_, entry)| entry.len)?;
        self.remove(index)
    }

    /// Keeps a mapping (returns `None`), or takes out the oldest, which has to go before there is room. Neighbours that
    /// are kept already become one with it, as long as that is not too long to be given up at once.
    pub(super) fn put(&mut self, mapping: &Mapping) -> Option<Mapping> {
        if self.bytes + mapping.len > BYTES {
            return self.pop_oldest();
        }
        let mut mapping = Mapping { ..*mapping };
        let end = |start: *mut u8, len: usize| start.wrapping_add(len);
        while let Some(index) = self.kept().iter().position(|entry| {
            let touches = end(entry.start, entry.len) == mapping.start.as_ptr()
                || end(mapping.start.as_ptr(), mapping.len) == entry.start;
            touches && entry.len + mapping.len <= LONGEST
        }) {
            let Some(neighbour) = self.remove(index) else { break };
            mapping.start = mapping.start.min(neighbour.start);
            mapping.len += neighbour.len;
        }
        let Some(entry) = self.entries.get_mut(self.count) else {
            return self.pop_oldest();
        };
        *entry = Entry { start: mapping.start.as_ptr(), len: mapping.len, since: mapping.since };
        self.count += 1;
        self.bytes += mapping.len;
        None
    }

    /// Takes out the oldest mapping.
    pub(super) fn pop_oldest(&mut self) -> Option<Mapping> {
        self.remove(0)
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
        assert_eq!(addr(cache.take(4096, 4096, 0x10000)), Some((0x30000, 4096)));
        assert_eq!(addr(cache.take(4096, 16384, 4096)), Some((0x41000, 4096)));
        assert_eq!(addr(cache.take(12288, 12288, 4096)), None);
        assert!(cache.put(&fake(0x60000, 8192, 9)).is_none());
        assert_eq!(addr(cache.take(4097, 8192, 4096)), Some((0x60000, 8192)));
        assert_eq!((cache.count(), cache.bytes()), (3, 2 * 4096 + 8192));
        assert_eq!(cache.oldest_since(), Some(0));
        assert_eq!(cache.pop_oldest().map(|oldest| oldest.since()), Some(0));
        assert_eq!(cache.oldest_since(), Some(1));
    }

    #[test]
    fn parts_and_neighbours() {
        const K: usize = 1 << 10;
        let mut cache = Cache::new();
        assert!(cache.put(&fake(1 << 30, 1024 * K, 1)).is_none());
        let addr = |taken: Option<(NonNull<u8>, usize)>| taken.map(|(start, len)| (start.addr().get(), len));
        // Two parts; the rest is too short to be kept alone.
        assert_eq!(addr(cache.take(256 * K, 256 * K, 4096)), Some((1 << 30, 256 * K)));
        assert_eq!((cache.count(), cache.bytes()), (1, 768 * K));
        assert_eq!(addr(cache.take(720 * K, 720 * K, 4096)), Some(((1 << 30) + 256 * K, 768 * K)));
        assert_eq!((cache.count(), cache.bytes()), (0, 0));
        // Put back in any order they are one, as young as the youngest.
        for (part, since) in [(2, 5), (0, 6), (3, 7), (1, 8)] {
            assert!(cache.put(&fake((1 << 30) + part * 256 * K, 256 * K, since)).is_none());
        }
        assert_eq!((cache.count(), cache.bytes(), cache.oldest_since()), (1, 1024 * K, Some(8)));
        // Not more than can be given up at once.
        let long = fake((1 << 30) + 1024 * K, LONGEST - 512 * K, 9);
        assert!(cache.put(&long).is_none());
        assert_eq!(cache.count(), 2);
        assert_eq!(cache.take_shorter(1024 * K).map(|found| found.len()), None);
        assert_eq!(cache.take_shorter(2048 * K).map(|found| found.len()), Some(1024 * K));
        assert_eq!(cache.take_shorter(2 * LONGEST).map(|found| found.len()), None);
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
        let long = fake(1 << 41, LONGEST, 100);
        while cache.put(&long).is_some() {}
        while cache.put(&long).is_some() {}
        assert!(cache.bytes() <= BYTES && cache.count() == 2);
        assert!(fits(LONGEST) && !fits(LONGEST + 1));
    }
}
