//! Address space for the heap: large regions without access, opened step by step.
//!
//! A region is reserved at 64 GiB, which costs nothing but addresses, or smaller where those are limited. It is made
//! usable from its start in steps that grow with the heap, from one huge page to 32 MiB: few system calls for a large
//! heap, little commit charge (`RLIMIT_DATA`, strict overcommit, `mlockall`) for a small one. When a region is used up
//! another one follows; none is ever given back. Where there are several nodes, its memory is asked for from one of them.
//!
//! Invariants: `fresh <= committed <= end`, all multiples of the huge page; everything from `fresh` on was
//! never touched. A refusal by the kernel changes nothing.

use core::ptr::{self, NonNull};

use super::HUGE;
use crate::os::{huge, mapping, topology};

/// The first size tried.
const REGION: usize = 64 << 30;
/// The largest step, in huge pages.
const MAX_STEP: usize = 16;
/// A step is at most this part of the heap.
const STEP_SHARE: usize = 8;

/// See the module. All zero bits at first.
pub(super) struct Regions {
    /// The first huge page never handed out.
    fresh: *mut u8,
    committed: usize,
    end: usize,
    /// The size that was possible last; 0 before the first.
    size: usize,
    reserved: usize,
}

impl Regions {
    pub(super) const fn new() -> Self {
        Self { fresh: ptr::null_mut(), committed: 0, end: 0, size: 0, reserved: 0 }
    }

    /// Bytes of address space reserved so far.
    pub(super) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Bytes made usable and not handed out yet.
    pub(super) fn unused(&self) -> usize {
        self.committed - self.fresh.addr()
    }

    /// The next fresh huge page, usable and zero, for a heap of `heap` huge pages on `node`. It is handed out only when
    /// [`advance`](Self::advance) is called, so that a caller who then lacks something else loses nothing.
    pub(super) fn peek(&mut self, heap: usize, node: u8) -> Option<NonNull<u8>> {
        if self.unused() == 0 {
            self.commit_more(heap, node)?;
        }
        NonNull::new(self.fresh)
    }

    /// Hands out the huge page that [`peek`](Self::peek) returned.
    pub(super) fn advance(&mut self) {
        debug_assert!(self.unused() >= HUGE);
        self.fresh = self.fresh.wrapping_add(HUGE);
    }

    fn commit_more(&mut self, heap: usize, node: u8) -> Option<()> {
        if self.committed == self.end {
            self.new_region(node)?;
        }
        let step = (heap / STEP_SHARE).clamp(1, MAX_STEP) * HUGE;
        let step = step.min(self.end - self.committed);
        let start = NonNull::new(self.fresh)?;
        // SAFETY: the next part of the region, not handed out yet.
        if unsafe { mapping::commit(start, step) } {
            self.committed += step;
            return Some(());
        }
        // A limit may leave room for a smaller step.
        // SAFETY: as above; a step is at least one huge page.
        if step > HUGE && unsafe { mapping::commit(start, HUGE) } {
            self.committed += HUGE;
            return Some(());
        }
        None
    }

    fn new_region(&mut self, node: u8) -> Option<()> {
        let wanted = if self.size == 0 { REGION } else { self.size };
        let (start, size) = mapping::reserve_up_to(wanted, HUGE, HUGE)?;
        mapping::name(start, size, c"rseq-alloc: pages");
        huge::advise(start, size);
        topology::prefer(start, size, node.into());
        self.fresh = start.as_ptr();
        self.committed = start.addr().get();
        self.end = start.addr().get() + size;
        self.size = size;
        self.reserved += size;
        Some(())
    }

    /// Makes the next regions small, so that tests see several and don't use up addresses.
    #[cfg(test)]
    pub(super) fn limit_size(&mut self, size: usize) {
        self.size = size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "regions are small")]
    fn steps_grow_with_the_heap() {
        let mut regions = Regions::new();
        regions.limit_size(256 << 20);
        for (heap, step) in [(0, 1), (15, 1), (16, 2), (80, 10), (1000, 16)] {
            let page = regions.peek(heap, 0).unwrap();
            assert_eq!(page.addr().get() % HUGE, 0);
            assert_eq!(regions.unused(), step * HUGE);
            // Peeking again is the same page.
            assert_eq!(regions.peek(heap, 0), Some(page));
            for index in 0..step {
                let page = regions.peek(heap, 0).unwrap();
                // SAFETY: usable and this test's.
                unsafe {
                    assert_eq!(page.add(HUGE - 1).read(), 0);
                    page.add(HUGE - 1).write(index as u8 + 1);
                }
                regions.advance();
            }
            assert_eq!(regions.unused(), 0);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "regions are small")]
    fn regions_follow_one_another() {
        let mut regions = Regions::new();
        regions.limit_size(4 * HUGE);
        for index in 0..10 {
            let page = regions.peek(100, 0).unwrap();
            // SAFETY: usable and this test's.
            unsafe { page.write(index) };
            regions.advance();
        }
        assert_eq!(regions.reserved(), 12 * HUGE);
        assert_eq!(regions.unused(), 2 * HUGE);
    }
}
