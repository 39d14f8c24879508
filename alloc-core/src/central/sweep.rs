//! Giving OS pages back that no used block overlaps, though their span is in use.
//!
//! After a random 90% of small blocks was freed hardly a span is wholly free, but about half of the OS pages are. The
//! bitmaps know which; nobody is told when a page becomes one, because that would cost every free block some
//! nanoseconds. Instead a *sweep* looks at all spans of the classes in which something changed, every
//! [`PER_INTERVAL`]th of the decay interval, a bounded part at each tick:
//!
//! ```text
//! begin: quota = pages that the decay curve allows no longer, of those that the last sweep saw
//! for each class in which blocks came back, or pages were seen
//!     lock class; for each span, a few at a time: note which pages are wholly free and resident;
//!                 send those to the OS, up to the quota, that the last sweep had noted as well; unlock class
//!     madvise each range                  no block on these pages is handed out, all others are; nobody waits
//!     lock class; the pages are returned (or resident, if the kernel refused); unlock class
//! end: tell the curve how many pages were seen
//! ```
//!
//! Taking a block ends that its pages are noted, so what goes was free from one sweep to the next at least; how much
//! goes follows the curve of [`Decay`]. The first classes with such pages give theirs first: a random order would cost
//! memory to keep.
//!
//! Tried by estimate and rejected: noticing in `put` that a page became free (a test of up to 512 bits for each block);
//! an age for each page (eight times the sets of pages here).
//!
//! Each node has a sweep of its own. It is one thread's at a time, under a lock that comes before those of the classes.
//! `fork` takes it, so nothing is in transit in a child. Locked memory stays: the kernel refuses, the pages count as newly found, and are tried again
//! an interval later.

use super::span::{Span, between, count_runs, runs};
use super::{Central, Classes, classes, retire};
use crate::os::futex::{Lock, Locked};
use crate::os::mapping;
use crate::os::topology::{self, NODES};
use crate::pages::{Decay, NEVER};
use crate::size_class::{CLASSES, Class, class};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// Sweeps in an interval. Each costs about 0.1 µs per span, 1 ms for 600 MB; what is due in the steepest part of the
/// curve between two of them is 4.7%.
const PER_INTERVAL: u64 = 32;
/// Milliseconds from one sweep to the next at least: with short intervals the cost above counts.
const LEAST_PERIOD: u64 = 10;
/// Spans that one tick looks at, and system calls that it makes, at most: some 100 to 400 µs together.
const TICK_SPANS: usize = 512;
const TICK_CALLS: usize = 256;
/// Spans that are looked at, or sent to the OS in part, while the class lock is held once: a few microseconds.
const BATCH_SPANS: usize = 32;
const BATCH_GONE: usize = 16;

/// What each node has.
struct OfNode {
    sweep: Locked<Sweep>,
    /// The time from which a tick has something to do; 0: nothing. Stored with `sweep` locked, or from 0 to 1.
    due: AtomicU64,
    /// The classes in which a block came back since the last sweep began.
    changed: ClassSet<AtomicU64>,
}

static NODE: [CachePadded<OfNode>; NODES] = [const { CachePadded::new(OfNode::new()) }; NODES];

/// A set of classes.
type ClassSet<T> = [T; CLASSES.div_ceil(64)];

/// The sweep under way, or the last one.
pub(super) struct Sweep {
    decay: Decay,
    /// The class it is at; 0: none is under way.
    class: usize,
    /// Whether the walk through the spans of this class has begun.
    walking: bool,
    began: u64,
    /// Classes that changed and were not visited since, and those in which pages were found.
    changed: ClassSet<u64>,
    pending: ClassSet<u64>,
    /// OS pages that may still go.
    quota: usize,
    /// OS pages that went, and their bytes.
    gone: usize,
    bytes: usize,
    /// Resident OS pages found wholly free, in the classes that are done.
    found: usize,
    /// What the last sweep found.
    known: usize,
}

/// What a call may still do.
struct Work {
    spans: usize,
    calls: usize,
    /// Whether pages go that were not noted before.
    all: bool,
}

/// Pages of one span on their way.
#[derive(Clone, Copy)]
struct Going {
    span: NonNull<Span>,
    pages: u64,
}

fn of_node(node: usize) -> &'static OfNode {
    &NODE[if node < NODES { node } else { 0 }]
}

/// The lock of the sweep of a node, for the fork handlers.
pub(super) fn lock(node: usize) -> &'static Lock {
    of_node(node).sweep.raw()
}

/// Notes that blocks of a class of a node came back; after its lock was released.
#[inline]
pub(super) fn something_changed(node: usize, class: usize) {
    let OfNode { due, changed, .. } = of_node(node);
    let (Some(word), bit) = (changed.get(class / 64), 1 << (class % 64)) else { return };
    // A sweep clears the bit before it locks the class. So who finds it set changed something before that.
    if word.load(Ordering::Relaxed) & bit == 0 {
        word.fetch_or(bit, Ordering::SeqCst);
    }
    // In this order: whoever finds nothing to do looks at `changed` after storing 0 here.
    if due.load(Ordering::SeqCst) == 0 {
        let _ = due.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// The time in milliseconds from which [`tick`] has something to do; 0 or [`NEVER`]: never, as things are.
#[inline]
pub(crate) fn due() -> u64 {
    let dues = NODE.iter().take(topology::nodes()).map(|of| of.due.load(Ordering::Relaxed));
    dues.filter(|&due| due != 0).min().unwrap_or(0)
}

/// Does a bounded part of what decay asks for at the time `now_ms`, on each node; one load if there is nothing to do.
#[inline]
pub(crate) fn tick(now_ms: u64) {
    for (node, of) in NODE.iter().enumerate().take(topology::nodes()) {
        let due = of.due.load(Ordering::Relaxed);
        if due != 0 && due <= now_ms {
            of.tick_due(now_ms, classes(node));
        }
    }
}

/// Returns all wholly free OS pages of all spans at once; their bytes.
pub(crate) fn return_pages() -> usize {
    (0..topology::nodes()).map(|node| of_node(node).sweep.lock().return_all(classes(node))).sum()
}

/// Sets the decay interval; see [`Decay`].
pub(crate) fn set_decay_ms(ms: u64) {
    NODE.iter().take(topology::nodes()).for_each(|of| of.set_decay_ms(ms));
}

impl OfNode {
    const fn new() -> Self {
        Self {
            sweep: Locked::new(Sweep::new()),
            due: AtomicU64::new(0),
            changed: [const { AtomicU64::new(0) }; CLASSES.div_ceil(64)],
        }
    }

    #[cold]
    fn tick_due(&self, now_ms: u64, classes: &Classes) {
        let Some(mut sweep) = self.sweep.try_lock() else {
            return;
        };
        let due = self.due.load(Ordering::Relaxed);
        if due == 0 || due > now_ms {
            return;
        }
        if sweep.decay.interval_ms() == NEVER {
            // Not 0, so that nobody sets it to 1 again and again; `set_decay_ms` does.
            self.due.store(NEVER, Ordering::Relaxed);
            return;
        }
        if sweep.class == 0 {
            // A block that comes back makes this due at once.
            let earliest = sweep.began.saturating_add(sweep.period());
            if now_ms < earliest {
                self.due.store(earliest, Ordering::Relaxed);
                return;
            }
            for (changed, word) in sweep.changed.iter_mut().zip(&self.changed) {
                *changed |= word.swap(0, Ordering::SeqCst);
            }
        }
        let next = sweep.tick(now_ms, classes);
        self.due.store(next, Ordering::SeqCst);
        if next == 0 && self.any_changed() {
            self.due.store(now_ms.saturating_add(sweep.period()), Ordering::Relaxed);
        }
    }

    fn set_decay_ms(&self, ms: u64) {
        let mut sweep = self.sweep.lock();
        sweep.decay.set_interval_ms(ms);
        self.due.store(0, Ordering::SeqCst);
        if sweep.class != 0 || sweep.known > 0 || self.any_changed() {
            self.due.store(1, Ordering::SeqCst);
        }
    }

    fn any_changed(&self) -> bool {
        self.changed.iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }
}

impl Sweep {
    pub(super) const fn new() -> Self {
        Self {
            decay: Decay::new(),
            class: 0,
            walking: false,
            began: 0,
            changed: [0; CLASSES.div_ceil(64)],
            pending: [0; CLASSES.div_ceil(64)],
            quota: 0,
            gone: 0,
            bytes: 0,
            found: 0,
            known: 0,
        }
    }

    /// Milliseconds from the beginning of a sweep to that of the next.
    fn period(&self) -> u64 {
        (self.decay.interval_ms() / PER_INTERVAL).max(LEAST_PERIOD)
    }

    /// Does a part of a sweep; returns when the next is due, 0 if there is nothing more to give back.
    pub(super) fn tick(&mut self, now_ms: u64, classes: &Classes) -> u64 {
        let at_once = self.decay.interval_ms() == 0;
        if self.class == 0 {
            self.begin(now_ms);
            self.quota = if at_once { usize::MAX } else { self.decay.advance(now_ms, self.known) };
        }
        let mut work = Work { spans: TICK_SPANS, calls: TICK_CALLS, all: at_once };
        while self.class < CLASSES {
            if work.spans == 0 || work.calls == 0 {
                return now_ms.saturating_add(1);
            }
            self.step(&mut work, classes);
        }
        self.end();
        self.decay.advance(now_ms, self.known);
        if self.known == 0 {
            self.decay.stop();
            return 0;
        }
        now_ms.saturating_add(1).max(self.began.saturating_add(self.period()))
    }

    /// See [`return_pages`]. The sweep under way ends with it.
    pub(super) fn return_all(&mut self, classes: &Classes) -> usize {
        self.begin(self.began);
        self.quota = usize::MAX;
        let mut work = Work { spans: usize::MAX, calls: usize::MAX, all: true };
        while self.class < CLASSES {
            self.step(&mut work, classes);
        }
        self.end();
        if self.known == 0 {
            self.decay.stop();
        }
        self.bytes
    }

    fn begin(&mut self, now_ms: u64) {
        self.class = 1;
        self.walking = false;
        self.began = now_ms;
        self.gone = 0;
        self.bytes = 0;
        self.found = 0;
    }

    /// What was found beyond what was known and did not go is new to the curve.
    fn end(&mut self) {
        self.class = 0;
        self.decay.settle(self.known.saturating_sub(self.gone));
        self.known = self.found;
    }

    /// Looks at some spans of the class it is at, and gives back what may go of them.
    fn step(&mut self, work: &mut Work, classes: &Classes) {
        let (of, bit) = (class(self.class), 1 << (self.class % 64));
        let word = self.class / 64;
        let (Some(changed), Some(pending)) = (self.changed.get_mut(word), self.pending.get_mut(word)) else { return };
        // A class that was never used is not touched.
        let worth = work.all || (*changed | *pending) & bit != 0;
        let Some(central) = classes.get(self.class).filter(|_| of.blocks > 1 && (worth || self.walking)) else {
            self.class += 1;
            return;
        };
        let mut going = [None; BATCH_GONE];
        let mut locked = central.lock();
        let os_shift = locked.os_shift();
        if !self.walking {
            self.walking = true;
            work.spans = work.spans.saturating_sub(1);
            // There is something to learn, or to give back.
            let worth = work.all || *changed & bit != 0 || self.quota > 0;
            let visits = if worth { locked.count } else { 0 };
            locked.ring.begin(visits);
            *changed &= !bit;
        }
        let mut slots = going.iter_mut();
        for _ in 0..BATCH_SPANS {
            if work.spans == 0 || work.calls == 0 || slots.len() == 0 {
                break;
            }
            let Some(span) = locked.ring.next() else { break };
            work.spans -= 1;
            let pages = locked.look(of, os_shift, span, self.quota, work.all);
            if pages != 0 {
                self.quota -= pages.count_ones() as usize;
                work.calls = work.calls.saturating_sub(count_runs(pages));
                if let Some(slot) = slots.next() {
                    *slot = Some(Going { span, pages });
                }
            }
        }
        let done = locked.ring.is_done();
        if done {
            self.found += locked.idle_pages;
            *pending = if locked.idle_pages > 0 { *pending | bit } else { *pending & !bit };
        }
        drop(locked);
        if going.iter().any(Option::is_some) {
            self.send(of, os_shift, central, &going, work.all);
        }
        if done {
            self.class += 1;
            self.walking = false;
        }
    }

    /// Gives back what is in transit.
    fn send(
        &mut self,
        of: &Class,
        os_shift: u32,
        central: &Locked<Central>,
        going: &[Option<Going>; BATCH_GONE],
        all: bool,
    ) {
        let mut done = [0; BATCH_GONE];
        for (&Going { span, pages }, done) in going.iter().flatten().zip(&mut done) {
            // SAFETY: a span stays where it is while a part of it is in transit; its base does not change.
            let origin = Span::origin(unsafe { (*span.as_ptr()).base }, os_shift);
            for (page, len) in runs(pages) {
                let start = with_exposed_provenance_mut::<u8>(origin + (page << os_shift));
                let Some(start) = NonNull::new(start) else { break };
                // SAFETY: whole OS pages that no used block overlaps, and no free one there is handed out.
                if !unsafe { mapping::discard(start, len << os_shift) } {
                    // Locked memory, perhaps all of it: the next sweep tries again.
                    self.quota = if all { self.quota } else { 0 };
                    break;
                }
                *done |= between(page, page + len);
                self.gone += len;
                self.bytes += len << os_shift;
            }
        }
        let mut retired = [None; BATCH_GONE];
        let mut locked = central.lock();
        for ((&Going { span, pages }, &done), slot) in going.iter().flatten().zip(&done).zip(&mut retired) {
            *slot = locked.arrive(of, os_shift, span, done);
            // What was refused is found again, as new.
            if done != pages
                && let Some(changed) = self.changed.get_mut(self.class / 64)
            {
                *changed |= 1 << (self.class % 64);
            }
        }
        drop(locked);
        retired.into_iter().flatten().for_each(|span| retire(of, os_shift, span));
    }
}

impl Central {
    /// [`Span::look`] with the sums and lists kept right.
    fn look(&mut self, of: &Class, os_shift: u32, span: NonNull<Span>, most: usize, all: bool) -> u64 {
        // SAFETY: members of the ring are valid, and changed only under this lock.
        let s = unsafe { &mut *span.as_ptr() };
        let before = s.pages();
        let pages = s.look(of, os_shift, most, all);
        self.retotal(of, s, before);
        if pages != 0 {
            // SAFETY: it has been added to the lists.
            unsafe { self.spans.resort(span.as_ptr(), of) };
        }
        pages
    }

    /// [`Span::arrive`] likewise. A span that became wholly free meanwhile and is not worth keeping is taken out.
    fn arrive(&mut self, of: &Class, os_shift: u32, span: NonNull<Span>, done: u64) -> Option<NonNull<Span>> {
        // SAFETY: a span stays where it is while a part of it is in transit.
        let s = unsafe { &mut *span.as_ptr() };
        let before = s.pages();
        s.arrive(of, os_shift, done);
        self.retotal(of, s, before);
        if s.free() == usize::from(of.blocks) && self.idle > 1 {
            self.forget(of, span);
            return Some(span);
        }
        // SAFETY: it has been added to the lists.
        unsafe { self.spans.resort(span.as_ptr(), of) };
        None
    }
}

#[cfg(test)]
mod tests;
