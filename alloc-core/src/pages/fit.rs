//! Where an allocation looks first: partly used huge pages, sorted by how full they are and by their longest
//! free range.
//!
//! The idea is that of tcmalloc's huge-page filler: keep full huge pages full, so that others become wholly free.
//! There the longest free range alone orders the search. Here fullness comes first, because a sparse huge page whose
//! ranges happen to be short would otherwise be preferred to a nearly full one; the longest range says which
//! members of a band fit at all.
//!
//! ```text
//! find(n): for band in fullest .. emptiest, as far as not empty:
//!              if some longest >= n is present in the band: first huge page of the list for the smallest such longest
//! ```
//!
//! That is at most 16 bands of 4 words, whatever the size of the heap. Full huge pages are in no list, and
//! wholly free ones are kept elsewhere.

use core::ptr;

use super::bits::{Bits, PAGES};
use super::huge_page::HugePage;
use super::list::List;

/// Bands of fullness, 16 pages each.
pub(super) const BANDS: usize = 16;

/// See the module.
pub(super) struct Fit {
    /// Bit `b`: band `b` has members.
    bands: u32,
    /// Which longest free ranges occur in each band.
    present: [Bits; BANDS],
    lists: [[List<0>; PAGES]; BANDS],
}

impl Fit {
    pub(super) const fn new() -> Self {
        Self { bands: 0, present: [Bits::NONE; BANDS], lists: [const { [const { List::new() }; PAGES] }; BANDS] }
    }

    /// A huge page with a free range of at least `pages` pages, or null.
    pub(super) fn find(&self, pages: usize) -> *mut HugePage {
        let mut bands = self.bands;
        while bands != 0 {
            let band = bands.ilog2() as usize % BANDS;
            let longest = self.present[band].first_from(pages);
            if longest < PAGES {
                return self.lists[band][longest].first();
            }
            bands &= !(1 << band);
        }
        ptr::null_mut()
    }

    /// Adds a partly used huge page, unless it is full. Those with resident free pages are found before others
    /// of their list.
    ///
    /// # Safety
    ///
    /// The heap's lock is held; `page` is live and in no list of this pair of links.
    pub(super) unsafe fn insert(&mut self, page: *mut HugePage) {
        // SAFETY: live, and under the lock nobody changes it.
        let (band, longest, resident) = unsafe { place(&*page) };
        if longest == 0 {
            return;
        }
        let list = &mut self.lists[band][longest];
        // SAFETY: passed on.
        unsafe {
            if resident {
                list.push_first(page);
            } else {
                list.push_last(page);
            }
        }
        self.present[band] = self.present[band] | Bits::range(longest, 1);
        self.bands |= 1 << band;
    }

    /// Takes a huge page out, before it changes.
    ///
    /// # Safety
    ///
    /// The heap's lock is held; `page` was inserted and did not change since.
    pub(super) unsafe fn remove(&mut self, page: *mut HugePage) {
        // SAFETY: as in `insert`.
        let (band, longest, _) = unsafe { place(&*page) };
        if longest == 0 {
            return;
        }
        let list = &mut self.lists[band][longest];
        // SAFETY: unchanged since `insert`, so this is its list.
        unsafe { list.remove(page) };
        if list.is_empty() {
            self.present[band] = self.present[band] & !Bits::range(longest, 1);
            if self.present[band].is_empty() {
                self.bands &= !(1 << band);
            }
        }
    }
}

/// Band, longest free range (below 256, since something is used) and whether a free page is resident.
fn place(page: &HugePage) -> (usize, usize, bool) {
    (page.band(), page.longest() % PAGES, page.has_resident())
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::boxed::Box;

    /// A huge page whose first `used` pages are used but for a hole of `hole` pages at page 1.
    fn page(used: usize, hole: usize) -> *mut HugePage {
        let page = Box::leak(Box::new(HugePage::new(ptr::null_mut())));
        page.take(0, used + hole, 1);
        if hole > 0 {
            page.give(1, hole, 0);
        }
        page
    }

    #[test]
    fn fullest_first_then_tightest() {
        let mut fit = Fit::new();
        let nearly_full = page(250, 0); // longest 6
        let sparse_tight = {
            let sparse = page(20, 0);
            // Longest 8: used pages at every ninth place.
            // SAFETY: leaked, and only this test knows it.
            let sparse_page = unsafe { &mut *sparse };
            for at in (20..PAGES).step_by(9) {
                sparse_page.take(at, 1, 1);
            }
            sparse
        };
        let half = page(128, 0);
        // SAFETY: leaked, never changed while inserted, each in at most one list.
        unsafe {
            for page in [sparse_tight, half, nearly_full] {
                fit.insert(page);
            }
            assert_eq!(fit.find(1), nearly_full);
            assert_eq!(fit.find(6), nearly_full);
            assert_eq!(fit.find(7), half, "fuller than the tighter one");
            assert_eq!(fit.find(128), half);
            assert!(fit.find(129).is_null());
            fit.remove(half);
            assert_eq!(fit.find(7), sparse_tight);
            fit.remove(nearly_full);
            assert_eq!(fit.find(1), sparse_tight);
            fit.remove(sparse_tight);
            assert!(fit.find(1).is_null());
            assert_eq!(fit.bands, 0);
        }
    }

    #[test]
    fn full_pages_are_not_listed() {
        let mut fit = Fit::new();
        let full = page(PAGES, 0);
        // SAFETY: as above.
        unsafe {
            fit.insert(full);
            assert!(fit.find(1).is_null());
            fit.remove(full);
        }
    }

    #[test]
    fn resident_before_returned() {
        let mut fit = Fit::new();
        let returned = page(100, 0);
        let resident = page(100, 0);
        // SAFETY: as above.
        unsafe {
            (*resident).take(100, 1, 1);
            (*resident).give(100, 1, 0);
            fit.insert(resident);
            fit.insert(returned);
            assert_eq!(fit.find(1), resident);
            fit.remove(resident);
            assert_eq!(fit.find(1), returned);
        }
    }
}
