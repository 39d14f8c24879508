//! The heap proper: one lock, the huge pages and where to find them, and the totals.
//!
//! Each huge page that is not detached is in the one place that its state asks for:
//!
//! | state | found by allocations in | found by decay in |
//! |---|---|---|
//! | partly used, some page free | the [`Fit`] of its kind, by fullness and longest free range | `dirty[band]`, if a free OS page is resident |
//! | full | nowhere | nowhere |
//! | wholly free, some page resident | `free_resident`, last freed first | `dirty[BANDS]` |
//! | wholly free, all returned | `free_returned`, last returned first | nowhere |
//!
//! Every change goes through [`State::update`], which takes the huge page out of these places, changes it, adjusts the
//! totals and puts it back. A few hundred nanoseconds, small beside what a run costs to fill.
//!
//! Growing happens under the lock: `mprotect` and the descriptor of a huge page come once per 2 MiB or more. Giving
//! back does not; see [`super::release`].

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::bits::{Bits, PAGES};
use super::decay::{Decay, NEVER};
use super::fit::{BANDS, Fit};
use super::huge_page::{Counts, HugePage};
use super::list::List;
use super::region::Regions;
use super::{HUGE, Kind, PAGE, PagesUsage, Run};
use crate::os::futex::{Lock, Locked, LockedGuard};
use crate::os::mapping;
use crate::size_class::PAGE_SHIFT;
use crate::{limit, map, meta};

/// Up to so many huge pages runs of both kinds share them: a small program is not to touch two where one would do.
const SHARED: usize = 8;

/// A page heap. The process has one for each node; tests make their own.
pub(crate) struct PageHeap {
    /// Held by whoever gives memory back, around the system calls. Taken before `state`.
    pub(super) releasing: Lock,
    state: Locked<State>,
    /// The time in milliseconds from which [`tick`](Self::tick) has something to do; 0: nothing at all. Changed with
    /// `state` locked.
    pub(super) due: AtomicU64,
}

/// What the lock protects. All zero bits at first, so that the static one needs no initialised data.
pub(super) struct State {
    /// By [`Kind`].
    fit: [Fit; 2],
    free_resident: List<0>,
    free_returned: List<0>,
    dirty: [List<1>; BANDS + 1],
    regions: Regions,
    /// A descriptor that was made when something else failed.
    spare: Option<NonNull<HugePage>>,
    totals: Counts,
    huge_pages: usize,
    pub(super) decay: Decay,
    /// For wholly free huge pages, with half the interval.
    pub(super) whole_decay: Decay,
    locks: u64,
    /// Pages per OS page, at least 1; 0: ask the system.
    os_pages: usize,
    /// The node that it is for.
    node: u8,
}

// SAFETY: the descriptors and the memory that the pointers lead to belong to the heap and are reached under its
// lock only.
unsafe impl Send for State {}

impl PageHeap {
    /// An empty heap, which reserves address space when it is first used.
    pub(crate) const fn new() -> Self {
        Self { releasing: Lock::new(), state: Locked::new(State::new()), due: AtomicU64::new(0) }
    }

    /// A run of `pages` pages (1 to 256) at a multiple of `align` pages (a power of two up to 256). `None`: out of
    /// memory, or no such run can exist.
    pub(crate) fn allocate(&self, pages: usize, align: usize, kind: Kind) -> Option<Run> {
        if pages == 0 || pages > PAGES || !align.is_power_of_two() || align > PAGES {
            return None;
        }
        self.state().allocate(pages, align, kind)
    }

    /// Frees a run, or a part of one. `returned`: which of the first 64 pages are with the OS already, in whole OS pages.
    ///
    /// # Safety
    ///
    /// The pages came from this heap, are in use, and nobody uses them any more. Those in `returned` are zero and not
    /// resident.
    pub(crate) unsafe fn free(&self, addr: NonNull<u8>, pages: usize, returned: u64) {
        let Some((page, start)) = descriptor(addr) else {
            debug_assert!(false, "pages freed that no heap owns");
            return;
        };
        let mut state = self.state();
        // SAFETY: the map's descriptors are live, and the lock is held.
        unsafe { state.update(page, |page| page.give(start, pages, returned)) };
        let interval = state.decay.interval_ms();
        if interval != NEVER && self.due.load(Ordering::Relaxed) == 0 {
            self.due.store(1, Ordering::Relaxed);
        }
        drop(state);
        if interval == 0 {
            self.release_now();
        }
    }

    /// Extends a run from `pages` to `new_pages` pages if the pages behind it are free and in the same huge page. The
    /// new pages hold anything.
    ///
    /// # Safety
    ///
    /// The run of `pages` pages came from this heap and is the caller's.
    pub(crate) unsafe fn extend(&self, addr: NonNull<u8>, pages: usize, new_pages: usize) -> bool {
        let Some((page, start)) = descriptor(addr) else {
            return false;
        };
        let Some(more) = new_pages.checked_sub(pages) else {
            return false;
        };
        let mut state = self.state();
        let os_pages = state.os_pages();
        let from = start + pages;
        // SAFETY: the map's descriptors are live, and the lock is held.
        if more > PAGES || !unsafe { (*page).range_is_free(from, more) } {
            return false;
        }
        // SAFETY: as above.
        if !limit::charge(unsafe { (*page).brought_back(from, more, os_pages) } * PAGE) {
            return false;
        }
        // SAFETY: as above.
        unsafe { state.update(page, |page| page.take(from, more, os_pages)) };
        true
    }

    /// Makes it the heap of a node, before its first use.
    pub(super) fn set_node(&self, node: usize) {
        self.state().node = node as u8;
    }

    /// What the heap holds, read under its lock.
    pub(crate) fn usage(&self) -> PagesUsage {
        let state = self.state();
        let unused = state.regions.unused();
        PagesUsage {
            reserved: state.regions.reserved(),
            committed: state.huge_pages * HUGE + unused,
            used_bytes: state.totals.used * PAGE,
            free_resident_bytes: state.totals.resident * PAGE,
            returned_bytes: state.totals.returned * PAGE + unused,
            huge_pages: state.huge_pages,
            locks_taken: state.locks,
        }
    }

    /// Takes the lock of the heap, and counts it.
    pub(super) fn state(&self) -> LockedGuard<'_, State> {
        let mut state = self.state.lock();
        state.locks += 1;
        state
    }

    /// Takes both locks, for a handler that runs before `fork`. Whoever gives memory back is waited for, so that
    /// nothing is in transit in the child.
    pub(crate) fn lock_for_fork(&self) {
        self.releasing.acquire();
        self.state.raw().acquire();
    }

    /// Releases what [`lock_for_fork`](Self::lock_for_fork) took.
    ///
    /// # Safety
    ///
    /// Once after `lock_for_fork`, in the parent.
    pub(crate) unsafe fn unlock_after_fork(&self) {
        // SAFETY: both held since `lock_for_fork`.
        unsafe {
            self.state.raw().release();
            self.releasing.release();
        }
    }

    /// Makes both locks free in the child; the data is in order, because they were held.
    ///
    /// # Safety
    ///
    /// Once after `lock_for_fork`, in the child.
    pub(crate) unsafe fn reset_after_fork(&self) {
        // SAFETY: there is no other thread, and the data is in order.
        unsafe {
            self.state.raw().reset();
            self.releasing.reset();
        }
    }
}

impl State {
    const fn new() -> Self {
        Self {
            fit: [const { Fit::new() }; 2],
            free_resident: List::new(),
            free_returned: List::new(),
            dirty: [const { List::new() }; BANDS + 1],
            regions: Regions::new(),
            spare: None,
            totals: Counts { used: 0, resident: 0, returned: 0, whole: 0 },
            huge_pages: 0,
            decay: Decay::new(),
            whole_decay: Decay::new(),
            locks: 0,
            os_pages: 0,
            node: 0,
        }
    }

    /// Free resident pages.
    pub(super) fn resident(&self) -> usize {
        self.totals.resident
    }

    /// Free resident pages in wholly free huge pages.
    pub(super) fn whole(&self) -> usize {
        self.totals.whole
    }

    /// Tells the curves what is resident after some was returned; returns that.
    pub(super) fn settle(&mut self) -> usize {
        self.decay.settle(self.totals.resident);
        self.whole_decay.settle(self.totals.whole);
        self.totals.resident
    }

    /// Ends the curves: nothing is free and resident.
    pub(super) fn stop_decay(&mut self) {
        self.decay.stop();
        self.whole_decay.stop();
    }

    /// When one of the curves asks for more.
    pub(super) fn next_epoch_ms(&self) -> u64 {
        match self.totals.whole {
            0 => self.decay.next_epoch_ms(),
            _ => self.decay.next_epoch_ms().min(self.whole_decay.next_epoch_ms()),
        }
    }

    /// Pages per OS page, at least 1.
    pub(super) fn os_pages(&self) -> usize {
        match self.os_pages {
            0 => (mapping::page_size() >> PAGE_SHIFT).max(1),
            injected => injected,
        }
    }

    fn allocate(&mut self, pages: usize, align: usize, kind: Kind) -> Option<Run> {
        let (page, start) = self.find(pages, align, kind)?;
        let os_pages = self.os_pages();
        // SAFETY: `find` returns live descriptors, and the lock is held.
        if !limit::charge(unsafe { (*page).brought_back(start, pages, os_pages) } * PAGE) {
            return None;
        }
        // SAFETY: `find` returns live descriptors, and the lock is held.
        let (untouched, zeroed) = unsafe {
            self.update(page, |page| {
                if page.is_free() {
                    page.kind = kind;
                }
                (page.returned_from(start, pages), page.take(start, pages, os_pages))
            })
        };
        // SAFETY: as above.
        let base = unsafe { (*page).base() };
        Some(Run { addr: NonNull::new(base.wrapping_add(start * PAGE))?, zeroed, untouched })
    }

    /// A huge page and the place in it where a run fits.
    fn find(&mut self, pages: usize, align: usize, kind: Kind) -> Option<(*mut HugePage, usize)> {
        if let Some(found) = self.find_partly(pages, align, kind) {
            return Some(found);
        }
        for page in [self.free_resident.first(), self.free_returned.first()] {
            if !page.is_null() {
                // SAFETY: members of lists are live, and the lock is held. A wholly free huge page has a place for every
                // run.
                return Some((page, unsafe { (*page).best_fit(pages, align) }?));
            }
        }
        let other = match kind {
            Kind::Dense => Kind::Sparse,
            Kind::Sparse => Kind::Dense,
        };
        if self.huge_pages < SHARED
            && let Some(found) = self.find_partly(pages, align, other)
        {
            return Some(found);
        }
        match self.grow() {
            Some(page) => Some((page, 0)),
            None => self.find_partly(pages, align, other),
        }
    }

    /// The same in a partly used huge page of a kind.
    fn find_partly(&self, pages: usize, align: usize, kind: Kind) -> Option<(*mut HugePage, usize)> {
        let fit = self.fit.get(kind as usize)?;
        // The first candidate is long enough but need not have an aligned place; one that has room for the worst
        // alignment always does.
        for longest in [pages, pages + align - 1] {
            let page = fit.find(longest);
            if page.is_null() {
                return None;
            }
            // SAFETY: as in `find`.
            if let Some(start) = unsafe { (*page).best_fit(pages, align) } {
                return Some((page, start));
            }
        }
        None
    }

    /// Adds a fresh huge page.
    fn grow(&mut self) -> Option<*mut HugePage> {
        let base = self.regions.peek(self.huge_pages, self.node)?;
        let page = match self.spare {
            Some(page) => page,
            None => meta::alloc(size_of::<HugePage>(), align_of::<HugePage>())?.cast(),
        };
        self.spare = Some(page);
        // SAFETY: new memory of the right size and alignment, which nobody else knows yet.
        unsafe { page.write(HugePage::new(base.as_ptr())) };
        if !map::set_huge(base.addr().get(), self.node, page.as_ptr().cast()) {
            return None;
        }
        self.spare = None;
        self.regions.advance();
        self.huge_pages += 1;
        self.totals.returned += PAGES;
        // SAFETY: live, in no list, and the lock is held.
        unsafe { self.link(page.as_ptr(), true) };
        Some(page.as_ptr())
    }

    /// Changes a huge page and keeps lists and totals right. It counts as touched now.
    ///
    /// # Safety
    ///
    /// `page` is a live descriptor of this heap, and the lock is held.
    pub(super) unsafe fn update<R>(&mut self, page: *mut HugePage, change: impl FnOnce(&mut HugePage) -> R) -> R {
        // SAFETY: live, and the lock makes this the only access. The reference ends before the lists, which go
        // through the pointer, are touched.
        let (detached, before) = unsafe { ((*page).detached, (*page).counts()) };
        if !detached {
            // SAFETY: passed on.
            unsafe { self.unlink(page) };
        }
        // SAFETY: as above.
        let (result, after) = unsafe {
            (*page).stamp = self.decay.epoch();
            (change(&mut *page), (*page).counts())
        };
        self.retotal(before, after);
        if !detached {
            // SAFETY: passed on.
            unsafe { self.link(page, true) };
        }
        result
    }

    /// Picks a huge page to give memory back from, takes it out of the lists and marks what is to go: at most about
    /// `pages` pages in at most `calls` ranges. Wholly free huge pages come first and go whole; then the sparsest that
    /// nobody touched for a while, then the sparsest of all. `None`: nothing can go.
    pub(super) fn begin_release(&mut self, pages: usize, calls: usize) -> Option<(*mut HugePage, Bits)> {
        let page = self.candidate()?;
        let os_pages = self.os_pages();
        // SAFETY: members of lists are live, and the lock is held.
        unsafe { self.unlink(page) };
        // SAFETY: as above. The reference ends here; the pointer that is returned is the lists' own.
        let fields = unsafe { &mut *page };
        fields.detached = true;
        let limit = if fields.is_free() { PAGES } else { pages.next_multiple_of(os_pages) };
        let bits = fields.releasable(os_pages).first_few(limit, calls);
        // Transit changes no totals: the pages are resident until they are not.
        fields.begin_transit(bits);
        Some((page, bits))
    }

    /// Ends a release, of whose pages the kernel took `done`.
    ///
    /// # Safety
    ///
    /// `page` came from [`begin_release`](Self::begin_release), once.
    pub(super) unsafe fn end_release(&mut self, page: *mut HugePage, done: Bits) {
        // SAFETY: live, and the lock is held.
        let (before, after) = unsafe {
            let page = &mut *page;
            let before = page.counts();
            page.end_transit(done);
            page.detached = false;
            (before, page.counts())
        };
        self.retotal(before, after);
        // SAFETY: detached until now, so in no list.
        unsafe { self.link(page, false) };
    }

    fn candidate(&self) -> Option<*mut HugePage> {
        let old = self.decay.epoch().saturating_sub(super::release::STAYED_SPARSE);
        let (free, partly) = self.dirty.split_last()?;
        // SAFETY: the lock is held.
        let oldest = unsafe { free.last() };
        if !oldest.is_null() {
            return Some(oldest);
        }
        let mut sparsest = None;
        for list in partly {
            // SAFETY: the lock is held.
            let oldest = unsafe { list.last() };
            if oldest.is_null() {
                continue;
            }
            // SAFETY: members of lists are live.
            if unsafe { (*oldest).stamp } <= old {
                return Some(oldest);
            }
            sparsest.get_or_insert(oldest);
        }
        sparsest
    }

    fn retotal(&mut self, before: Counts, after: Counts) {
        self.totals.used = self.totals.used + after.used - before.used;
        self.totals.resident = self.totals.resident + after.resident - before.resident;
        self.totals.returned = self.totals.returned + after.returned - before.returned;
        self.totals.whole = self.totals.whole + after.whole - before.whole;
    }

    /// Puts a huge page where its state says. `young`: it was touched just now, so decay finds it last.
    ///
    /// # Safety
    ///
    /// `page` is live and in no list, and the lock is held.
    unsafe fn link(&mut self, page: *mut HugePage, young: bool) {
        // SAFETY: passed on; the reference ends before the lists are touched.
        let (dirty, free, resident, kind) = unsafe { self.place(&*page) };
        // SAFETY: passed on.
        unsafe {
            if !free {
                if let Some(fit) = self.fit.get_mut(kind as usize) {
                    fit.insert(page);
                }
            } else if resident {
                self.free_resident.push_first(page);
            } else {
                self.free_returned.push_first(page);
            }
            if let Some(list) = dirty.and_then(|list| self.dirty.get_mut(list)) {
                if young {
                    list.push_first(page);
                } else {
                    list.push_last(page);
                }
            }
        }
    }

    /// Takes a huge page out of its lists.
    ///
    /// # Safety
    ///
    /// `page` was put there by [`link`](Self::link) and did not change since; the lock is held.
    unsafe fn unlink(&mut self, page: *mut HugePage) {
        // SAFETY: as in `link`.
        let (dirty, free, resident, kind) = unsafe { self.place(&*page) };
        // SAFETY: passed on; the state is that of `link`, so these are its lists.
        unsafe {
            if !free {
                if let Some(fit) = self.fit.get_mut(kind as usize) {
                    fit.remove(page);
                }
            } else if resident {
                self.free_resident.remove(page);
            } else {
                self.free_returned.remove(page);
            }
            if let Some(list) = dirty.and_then(|list| self.dirty.get_mut(list)) {
                list.remove(page);
            }
        }
    }

    /// Which dirty list a huge page belongs to, whether it is wholly free, whether a free page is resident, its kind.
    fn place(&self, page: &HugePage) -> (Option<usize>, bool, bool, Kind) {
        let (free, resident) = (page.is_free(), page.has_resident());
        let list = if free { BANDS } else { page.band() };
        let dirty = resident && !page.releasable(self.os_pages()).is_empty();
        (dirty.then_some(list), free, resident, page.kind)
    }

    /// Gives the heap small regions and another size of OS page, before its first use.
    #[cfg(test)]
    pub(super) fn configure(&mut self, region: usize, os_pages: usize) {
        self.regions.limit_size(region);
        self.os_pages = os_pages;
    }
}

/// The descriptor of the huge page around `addr` and the number of the page in it.
fn descriptor(addr: NonNull<u8>) -> Option<(*mut HugePage, usize)> {
    let addr = addr.addr().get();
    debug_assert!(addr.is_multiple_of(PAGE));
    let page = map::huge(addr).cast::<HugePage>();
    (!page.is_null()).then_some((page, (addr % HUGE) / PAGE))
}
