//! The page heap: runs of 8 KiB pages inside 2 MiB huge pages.
//!
//! - A **page** is 8 KiB, whatever the OS page is.
//! - A **run** is 1 to 256 neighbouring pages that were handed out together. It never crosses a huge page. The heap
//!   keeps no record of runs: parts of one may be freed on their own.
//! - A **huge page** is 2 MiB, aligned; its bitmaps ([`huge_page`]) are the only truth about its pages.
//! - A **region** is address space from which huge pages come ([`region`]).
//! - **Returned** pages are with the OS: free, not resident, and zero when touched again.
//!
//! Runs come from the fullest huge page of their [`Kind`] that has room, from the shortest free range in it, from resident
//! memory rather than returned where that is equal, from lower addresses where that is, too; then from wholly free huge
//! pages, then from fresh ones, and from those of the other kind only while the heap is small or when there is nothing
//! else ([`fit`], [`heap`]). Free memory goes back along a curve over time ([`decay`]), wholly free huge pages first ([`release`]).
//!
//! Invariants: handed-out runs never overlap; `used + free resident + returned = committed` at any time; a run that is
//! reported as zeroed was never written since the OS provided it; a failed request changes nothing.
//!
//! There is a heap for each NUMA node, whose regions prefer the memory of that node. An address belongs to the same heap
//! for ever, and is given back to it from wherever it is freed.
//!
//! What it does not do: it knows only the kind of a run (the caller enters the rest in [`crate::map`]), never gives
//! address space back, and has no background thread.

mod bits;
mod decay;
mod fit;
mod heap;
mod huge_page;
mod list;
mod region;
mod release;
#[cfg(test)]
mod tests;

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::map;
use crate::os::topology::{self, NODES};
use crate::size_class::{HUGE_SHIFT, PAGE_SHIFT};
pub(crate) use decay::{Decay, NEVER};
pub(crate) use heap::PageHeap;

const PAGE: usize = 1 << PAGE_SHIFT;
const HUGE: usize = 1 << HUGE_SHIFT;
const _: () = assert!(HUGE / PAGE == bits::PAGES);

/// The heaps of the process, by node. Those of nodes that there are not stay zero and untouched.
static HEAPS: [PageHeap; NODES] = [const { PageHeap::new() }; NODES];

/// What a run is for. Runs of one kind are kept apart from those of the other, since they end at different times, and since
/// long runs are aligned and leave ranges in which others fit. In a trace of 300 000 runs under a load that comes in waves
/// (`a_trace_leaves_few_huge_pages_partly_used` in the tests), the pages of all huge pages that are not wholly free, to the
/// pages in use, on average; and the size of the heap with 176, 182 and 148 MiB in use at its end:
///
/// | runs that are dense | 1/2 | 3/4 | 1/4 |
/// |---|---|---|---|
/// | not kept apart | 2.93, 672 MiB | 2.49, 664 MiB | 2.93, 626 MiB |
/// | the other kind before wholly free huge pages | 2.86, 674 MiB | 2.41, 656 MiB | 2.93, 626 MiB |
/// | the other kind before growing | 1.43, 392 MiB | 1.55, 514 MiB | 1.35, 344 MiB |
/// | the other kind when growing fails | 1.35, 346 MiB | 1.34, 354 MiB | 1.35, 346 MiB |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A span of many blocks, which stays as long as one of them does.
    Dense,
    /// A span of one or a few blocks, which goes with them.
    Sparse,
}

/// Pages handed out together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The first page.
    pub(crate) addr: NonNull<u8>,
    /// All bytes are known to be zero.
    pub(crate) zeroed: bool,
    /// Which of the first 64 pages are not resident, as far as the heap knows.
    pub(crate) untouched: u64,
}

/// What a page heap holds, in bytes unless said otherwise. `used_bytes + free_resident_bytes + returned_bytes ==
/// committed`.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct PagesUsage {
    /// Address space.
    pub(crate) reserved: usize,
    /// The part of it that is readable and writable.
    pub(crate) committed: usize,
    /// In runs.
    pub(crate) used_bytes: usize,
    /// Free, but still with the process.
    pub(crate) free_resident_bytes: usize,
    /// Free and with the OS, or never touched.
    pub(crate) returned_bytes: usize,
    /// Number of huge pages in use or used before.
    pub(crate) huge_pages: usize,
    /// How often the heap's lock was taken.
    pub(crate) locks_taken: u64,
}

fn heap(node: usize) -> &'static PageHeap {
    &HEAPS[if node < NODES { node } else { 0 }]
}

/// The heaps that are in use.
fn heaps() -> impl DoubleEndedIterator<Item = &'static PageHeap> {
    HEAPS.iter().take(topology::nodes())
}

/// Makes heaps for so many nodes, before anybody is told of them.
pub(crate) fn open(nodes: usize) {
    for (node, heap) in HEAPS.iter().enumerate().take(nodes) {
        heap.set_node(node);
    }
}

/// The node whose heap a page is from.
#[inline]
pub(crate) fn node_of(addr: usize) -> usize {
    if topology::nodes() == 1 { 0 } else { map::node(addr) }
}

/// [`PageHeap::allocate`] for the heap of a node.
pub(crate) fn allocate(node: usize, pages: usize, align_pages: usize, kind: Kind) -> Option<Run> {
    heap(node).allocate(pages, align_pages, kind)
}

/// [`PageHeap::free`] for the heap that the pages came from.
///
/// # Safety
///
/// The pages came from [`allocate`], are in use, and nobody uses them any more. Those in `returned` are zero and not
/// resident.
pub(crate) unsafe fn free(addr: NonNull<u8>, pages: usize, returned: u64) {
    // SAFETY: passed on.
    unsafe { heap(node_of(addr.addr().get())).free(addr, pages, returned) };
}

/// [`PageHeap::extend`] for the heap that the run came from.
///
/// # Safety
///
/// The run of `pages` pages came from [`allocate`] and is the caller's.
pub(crate) unsafe fn extend(addr: NonNull<u8>, pages: usize, new_pages: usize) -> bool {
    // SAFETY: passed on.
    unsafe { heap(node_of(addr.addr().get())).extend(addr, pages, new_pages) }
}

/// [`PageHeap::tick`] for the heaps of the process.
#[inline]
pub(crate) fn tick(now_ms: u64) {
    heaps().for_each(|heap| heap.tick(now_ms));
}

/// The time in milliseconds from which [`tick`] has something to do; 0: never, as things are.
#[inline]
pub(crate) fn due() -> u64 {
    let dues = heaps().map(|heap| heap.due.load(Ordering::Relaxed));
    dues.filter(|&due| due != 0).min().unwrap_or(0)
}

/// [`PageHeap::purge`] for the heaps of the process.
pub(crate) fn purge() -> usize {
    heaps().map(PageHeap::purge).sum()
}

/// [`PageHeap::set_decay_ms`] for the heaps of the process.
pub(crate) fn set_decay_ms(ms: u64) {
    heaps().for_each(|heap| heap.set_decay_ms(ms));
}

/// The sums over the heaps of the process, and what each of them has in runs.
pub(crate) fn usage() -> (PagesUsage, [usize; NODES]) {
    let (mut sum, mut used) = (PagesUsage::default(), [0; NODES]);
    for (heap, used) in heaps().zip(&mut used) {
        let usage = heap.usage();
        *used = usage.used_bytes;
        sum.reserved += usage.reserved;
        sum.committed += usage.committed;
        sum.used_bytes += usage.used_bytes;
        sum.free_resident_bytes += usage.free_resident_bytes;
        sum.returned_bytes += usage.returned_bytes;
        sum.huge_pages += usage.huge_pages;
        sum.locks_taken += usage.locks_taken;
    }
    (sum, used)
}

/// [`PageHeap::lock_for_fork`] for the heaps of the process. No more come into being until they are unlocked.
pub(crate) fn lock_for_fork() {
    heaps().for_each(PageHeap::lock_for_fork);
}

/// [`PageHeap::unlock_after_fork`] for the heaps of the process.
///
/// # Safety
///
/// Once after [`lock_for_fork`], in the parent.
pub(crate) unsafe fn unlock_after_fork() {
    // SAFETY: passed on.
    heaps().rev().for_each(|heap| unsafe { heap.unlock_after_fork() });
}

/// [`PageHeap::reset_after_fork`] for the heaps of the process.
///
/// # Safety
///
/// Once after [`lock_for_fork`], in the child.
pub(crate) unsafe fn reset_after_fork() {
    // SAFETY: passed on.
    heaps().for_each(|heap| unsafe { heap.reset_after_fork() });
}
