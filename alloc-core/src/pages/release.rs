//! Giving memory back: the decay tick, and everything at once.
//!
//! The system calls run without the heap's lock, because `MADV_DONTNEED` takes 10 to 50 µs per 2 MiB and others
//! should be able to allocate meanwhile:
//!
//! ```text
//! lock releasing                                       one releaser at a time; tick gives up if there is one
//!   lock heap; pick a huge page; detach it; mark the pages as in transit, which counts as used; unlock heap
//!   madvise each range                                 nobody can be given these pages: they are used
//!   lock heap; mark the pages as returned and zero; put the huge page back; unlock heap
//! ```
//!
//! Others may free into the huge page or extend into the rest of it meanwhile, but allocate only elsewhere. `fork`
//! waits for the releaser, so nothing is in transit in a child.
//!
//! If the kernel refuses (locked memory), the pages stay free and resident, and the next epoch tries again.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::bits::{Bits, Range};
use super::decay::{EPOCHS, NEVER};
use super::heap::{PageHeap, State};
use super::{HUGE, PAGE};
use crate::limit;
use crate::os::futex::LockedGuard;
use crate::os::mapping;

/// Epochs without a free or an allocation after which a partly used huge page counts as staying sparse: a quarter
/// of the interval.
pub(super) const STAYED_SPARSE: u64 = EPOCHS as u64 / 4;

/// By how much sooner wholly free huge pages go than others. Giving one back is a single system call and getting it again
/// at best a single fault, where parts cost one for each hole; and a program that wants a whole one again soon wants parts
/// first. jemalloc has one curve of 10 s for all; tcmalloc returns whole huge pages beyond what the last seconds needed,
/// and breaks others only when it must.
const WHOLE_SOONER: u64 = 2;

/// What one tick gives back at most: some 100 to 400 µs of system calls.
const TICK_PAGES: usize = 8 * HUGE / PAGE;
/// System calls of one tick at most, for huge pages full of holes.
const TICK_CALLS: usize = 64;

/// How much a release may still do, and what it did.
struct Work {
    pages: usize,
    calls: usize,
    done: usize,
}

#[derive(PartialEq, Eq)]
enum Outcome {
    /// The work is done.
    Done,
    /// Nothing is left that could be given back.
    NothingLeft,
    /// The kernel does not take it.
    Refused,
}

impl PageHeap {
    /// Does a bounded part of what decay asks for at the time `now_ms`. To be called now and then; one relaxed
    /// load if there is nothing to do. A late caller catches up over several calls.
    #[inline]
    pub(crate) fn tick(&self, now_ms: u64) {
        let due = self.due.load(Ordering::Relaxed);
        if due != 0 && due <= now_ms {
            self.tick_due(now_ms);
        }
    }

    #[cold]
    fn tick_due(&self, now_ms: u64) {
        let Some(_releasing) = self.releasing.try_lock() else {
            return;
        };
        let mut state = self.state();
        // The last releaser may have done it all.
        let due = self.due.load(Ordering::Relaxed);
        if due == 0 || due > now_ms {
            return;
        }
        if state.decay.interval_ms() == NEVER {
            self.due.store(0, Ordering::Relaxed);
            return;
        }
        let (resident, whole) = (state.resident(), state.whole());
        // Wholly free huge pages go first, so the second is a part of what goes, never more than there is of them.
        let excess = state.decay.advance(now_ms, resident).max(state.whole_decay.advance(now_ms, whole));
        let mut work = Work { pages: excess.min(TICK_PAGES), calls: TICK_CALLS, done: 0 };
        let (mut state, outcome) = self.release(state, &mut work);
        let resident = state.settle();
        let all_due = excess >= resident;
        let next = if resident == 0 || (outcome == Outcome::NothingLeft && all_due) {
            state.stop_decay();
            0
        } else if outcome == Outcome::Done && excess > work.done {
            now_ms.saturating_add(1)
        } else {
            state.next_epoch_ms()
        };
        self.due.store(next, Ordering::Relaxed);
    }

    /// Gives back all that is free. Returns the bytes.
    pub(crate) fn purge(&self) -> usize {
        let _releasing = self.releasing.lock();
        self.release_all()
    }

    /// Gives back all that is free unless somebody is at it already; then the next tick looks after the rest.
    pub(super) fn release_now(&self) {
        if let Some(_releasing) = self.releasing.try_lock() {
            self.release_all();
        }
    }

    /// Sets the decay interval: 0 gives back at once, [`NEVER`] never does by itself.
    pub(crate) fn set_decay_ms(&self, ms: u64) {
        let mut state = self.state();
        state.decay.set_interval_ms(ms);
        state.whole_decay.set_interval_ms(if ms == NEVER { ms } else { ms / WHOLE_SOONER });
        let pending = ms != NEVER && state.resident() > 0;
        self.due.store(u64::from(pending), Ordering::Relaxed);
    }

    fn release_all(&self) -> usize {
        let state = self.state();
        // What others free meanwhile is theirs to give back, so this ends.
        let mut work = Work { pages: state.resident(), calls: usize::MAX, done: 0 };
        let (mut state, _) = self.release(state, &mut work);
        let resident = state.settle();
        if resident == 0 {
            state.stop_decay();
            self.due.store(0, Ordering::Relaxed);
        }
        work.done * PAGE
    }

    /// Gives back until the work is done. `releasing` is held by the caller.
    fn release<'a>(&'a self, mut state: LockedGuard<'a, State>, work: &mut Work) -> (LockedGuard<'a, State>, Outcome) {
        while work.pages > 0 && work.calls > 0 {
            let Some((page, pages)) = state.begin_release(work.pages, work.calls) else {
                return (state, Outcome::NothingLeft);
            };
            // SAFETY: descriptors live for ever, and the base never changes.
            let base = unsafe { (*page).base() };
            drop(state);
            let mut done = Bits::NONE;
            for range in pages.ranges() {
                work.calls -= 1;
                // SAFETY: the range is in transit, so nobody uses it or is given it.
                if !unsafe { discard(base, range) } {
                    break;
                }
                done = done | Bits::range(range.start, range.len);
            }
            state = self.state();
            // SAFETY: begun above.
            unsafe { state.end_release(page, done) };
            limit::release(done.count() * PAGE);
            work.pages = work.pages.saturating_sub(done.count());
            work.done += done.count();
            if done != pages {
                return (state, Outcome::Refused);
            }
        }
        (state, Outcome::Done)
    }
}

/// # Safety
///
/// Nobody needs the contents of the range, which consists of whole OS pages.
unsafe fn discard(base: *mut u8, range: Range) -> bool {
    let Some(start) = NonNull::new(base.wrapping_add(range.start * PAGE)) else {
        return false;
    };
    // SAFETY: passed on.
    unsafe { mapping::discard(start, range.len * PAGE) }
}
