//! Freed mappings, kept for the next block of the same length.
//!
//! Few and ordered by age: searched from the newest, given up from the oldest. A linear search over at most 64
//! entries costs less than a tenth of the system calls it saves.
//!
//! Invariants: `count` entries, oldest first; `bytes` is the sum of their lengths; neither exceeds its bound.

use core::ptr::{self, NonNull};

use super::give_back;

/// Mappings kept at most.
const ENTRIES: usize = 64;
/// Bytes kept at most.
const BYTES: usize = 64 << 20;
/// A longer mapping is not kept: it would push out most of the others.
const LONGEST: usize = BYTES / 2;

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

    /// Takes out the shortest mapping of at least `len` and at most `most` bytes and at least this alignment, the newest
    /// of several. Returns its length, too.
    pub(super) fn take(&mut self, len: usize, most: usize, align: usize) -> Option<(NonNull<u8>, usize)> {
        let fits =
            |entry: &Entry| (len..=most).contains(&entry.len) && entry.start.addr().trailing_zeros() >= align.ilog2();
        let fitting = self.kept().iter().enumerate().rev().filter(|(_, entry)| fits(entry));
        // The first of equals, which is the newest.
        let (index, _) = fitting.min_by_key(|(_, entry)| entry.len)?;
        let taken = self.remove(index)?;
        Some((taken.start, taken.len))
    }

    /// Keeps a mapping (returns `None`), or takes out the oldest, which has to go before there is room.
    pub(super) fn put(&mut self, mapping: &Mapping) -> Option<Mapping> {
        if self.bytes + mapping.len > BYTES {
            return self.pop_oldest();
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
        assert_eq!(addr(cache.take(4097, 8191, 4096)), None);
        assert!(cache.put(&fake(0x60000, 8192, 9)).is_none());
        assert_eq!(addr(cache.take(4097, 8192, 4096)), Some((0x60000, 8192)));
        assert_eq!((cache.count(), cache.bytes()), (3, 2 * 4096 + 8192));
        assert_eq!(cache.oldest_since(), Some(0));
        assert_eq!(cache.pop_oldest().map(|oldest| oldest.since()), Some(0));
        assert_eq!(cache.oldest_since(), Some(1));
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
