//! The central layer: for each class the spans its blocks come from.
//!
//! One short lock per class and none across classes. Magazines are filled from the fullest span and emptied into the
//! spans their blocks came from, found through the map. This is also where everything goes that bypasses the
//! shards: allocation during set-up, a sequence that gave up, a shard that is sealed.
//!
//! A block that comes back is checked: its class must be that of the magazine, it must lie on the grid of its span,
//! and it must not be free. A failure ends the process, see [`crate::fatal`]. Blocks that left their spans while they
//! grew come back here, too, and go on to [`large`].
//!
//! There are classes for each NUMA node, with locks of their own. Blocks are taken from the node of the thread, from others
//! only when that has no memory; where a block goes back to is a matter of its address.
//!
//! The pages of a span are taken from and given to the page heap outside of the class lock, while the span is in no
//! list and so known to nobody else. OS pages without a used block go back from spans in use, too: see [`sweep`].

mod lists;
mod span;
mod sweep;
#[cfg(test)]
mod tests;

use crate::fatal::{self, Seen};
use crate::magazine::{CAPACITY, Owned};
use crate::meta::Pool;
use crate::os::futex::{Lock, Locked};
use crate::os::topology::{self, NODES};
use crate::size_class::{CLASS, CLASSES, Class, PAGE, PAGE_SHIFT, class};
use crate::{early, large, limit, map, os, pages};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;
use lists::{Ring, Spans};
use span::{Pages, Span};
pub(crate) use sweep::{due, return_pages, set_decay_ms, tick};

/// The spans of one class and their sums.
struct Central {
    spans: Spans,
    /// All spans, if they have several blocks.
    ring: Ring,
    /// Blocks that are in magazines or in the hands of the program.
    out: usize,
    /// Spans, full ones included.
    count: usize,
    /// Wholly free spans among them.
    idle: usize,
    /// Resident OS pages that the last sweep saw wholly free, in number.
    idle_pages: usize,
    /// Bytes of OS pages that are with the OS, and those of them behind the last block of their span.
    returned: usize,
    returned_behind: usize,
    /// How often this lock was taken.
    locks: u64,
    /// `log2` of the size of an OS page; 0: ask the system.
    os_shift: u32,
}

/// By class.
type Classes = [CachePadded<Locked<Central>>; CLASSES];

/// By node. Those of nodes that there are not stay zero and untouched.
static CENTRAL: [Classes; NODES] =
    [const { [const { CachePadded::new(Locked::new(Central::new())) }; CLASSES] }; NODES];

static SPANS: Pool<Span> = Pool::new();

static REFILLS: AtomicU64 = AtomicU64::new(0);
static FLUSHES: AtomicU64 = AtomicU64::new(0);

/// The classes of a node.
fn classes(node: usize) -> &'static Classes {
    &CENTRAL[if node < NODES { node } else { 0 }]
}

/// Runs `f` on a class of a node under its lock.
fn with<R>(node: usize, class: usize, f: impl FnOnce(&mut Central) -> R) -> R {
    let mut central = classes(node)[if class < CLASSES { class } else { 0 }].lock();
    central.locks += 1;
    f(&mut central)
}

impl Central {
    const fn new() -> Self {
        Self {
            spans: Spans::new(),
            ring: Ring::new(),
            out: 0,
            count: 0,
            idle: 0,
            idle_pages: 0,
            returned: 0,
            returned_behind: 0,
            locks: 0,
            os_shift: 0,
        }
    }

    fn os_shift(&self) -> u32 {
        if self.os_shift == 0 { os::mapping::page_size().trailing_zeros() } else { self.os_shift }
    }

    /// Takes up to `n` blocks, from the fullest span on, and gives each to `give`.
    fn take(&mut self, of: &Class, n: usize, mut give: impl FnMut(usize)) -> usize {
        let os_shift = self.os_shift();
        let mut taken = 0;
        while taken < n {
            let span = self.spans.best();
            // SAFETY: spans in the lists are valid, and changed only under this lock.
            let Some(s) = (unsafe { span.as_mut() }) else { break };
            let (before, was_idle) = (s.pages(), s.free() == usize::from(of.blocks));
            // What is with the OS comes back with its blocks; how much of it is known afterwards.
            let charged = if s.is_warm() { 0 } else { s.bytes_of(of, os_shift, before.returned).0 };
            if charged > 0 && !limit::charge(charged) {
                break;
            }
            let got = s.take(of, os_shift, n - taken, &mut give);
            debug_assert!(got > 0, "a span in a list has room");
            taken += got;
            self.idle = self.idle.saturating_sub(usize::from(was_idle));
            limit::release(charged - self.retotal(of, s, before));
            // SAFETY: it is in a list.
            unsafe { self.spans.resort(span, of) };
        }
        self.out += taken;
        taken
    }

    /// Marks a block free. A span that is now wholly free and not worth keeping is taken out and returned.
    fn put(&mut self, of: &Class, span: NonNull<Span>, block: usize) -> Result<Option<NonNull<Span>>, BadFree> {
        // SAFETY: the map named this span for an address of this class; spans are type-stable.
        let s = unsafe { &mut *span.as_ptr() };
        let index = of.index_of(block.wrapping_sub(s.base)).ok_or(BadFree::OffGrid(block))?;
        if !s.put(index) {
            return Err(BadFree::Twice(block));
        }
        self.out -= 1;
        if s.free() == usize::from(of.blocks) {
            self.idle += 1;
            // One idle span is kept where it holds several blocks, so that a count that swings around a multiple of its
            // blocks does not go to the page heap each time. What is on the way to the OS in part is the sweep's.
            if (self.idle > 1 || of.blocks == 1) && !s.in_transit() {
                self.forget(of, span);
                return Ok(Some(span));
            }
        }
        if !s.stays() {
            // SAFETY: a span in use has been added to the lists.
            unsafe { self.spans.resort(span.as_ptr(), of) };
        }
        Ok(None)
    }

    /// Adds a span that nobody else knows.
    fn add(&mut self, of: &Class, span: NonNull<Span>) {
        // SAFETY: the span is new, hence in no list, and ours.
        let s = unsafe { &mut *span.as_ptr() };
        self.count += 1;
        self.idle += 1;
        self.retotal(of, s, Pages::default());
        // SAFETY: as above, and of this class.
        unsafe { self.spans.add(span.as_ptr(), of) };
        if of.blocks > 1 {
            // SAFETY: as above.
            unsafe { self.ring.add(span.as_ptr()) };
        }
    }

    /// Takes a wholly free span out.
    fn forget(&mut self, of: &Class, span: NonNull<Span>) {
        // SAFETY: a span of this class, under its lock.
        let s = unsafe { &mut *span.as_ptr() };
        let (returned, behind) = s.bytes_of(of, self.os_shift(), s.pages().returned);
        self.returned -= returned;
        self.returned_behind -= behind;
        self.idle_pages -= s.pages().idle.count_ones() as usize;
        self.count -= 1;
        self.idle = self.idle.saturating_sub(1);
        // SAFETY: it has been added.
        unsafe { self.spans.remove(span.as_ptr()) };
        if of.blocks > 1 {
            // SAFETY: it has been added.
            unsafe { self.ring.remove(span.as_ptr()) };
        }
    }

    /// Adjusts the sums after the pages of a span changed; and takes off the limits' count what went back. Returns the
    /// bytes that came from the OS again.
    fn retotal(&mut self, of: &Class, s: &Span, before: Pages) -> usize {
        let after = s.pages();
        if after == before {
            return 0;
        }
        let os_shift = self.os_shift();
        let (old, new) = (s.bytes_of(of, os_shift, before.returned), s.bytes_of(of, os_shift, after.returned));
        self.returned = self.returned + new.0 - old.0;
        self.returned_behind = self.returned_behind + new.1 - old.1;
        self.idle_pages = self.idle_pages + after.idle.count_ones() as usize - before.idle.count_ones() as usize;
        limit::release(new.0.saturating_sub(old.0));
        old.0.saturating_sub(new.0)
    }
}

/// A block that must not be freed. Reported without a lock held: a handler of SIGABRT may want to allocate.
enum BadFree {
    OffGrid(usize),
    Twice(usize),
}

impl BadFree {
    #[cold]
    fn report(self, of: &Class, seen: Seen) -> ! {
        match self {
            Self::OffGrid(block) => fatal::off_grid(block, of.size as usize, seen),
            Self::Twice(block) => fatal::double_free(block, seen),
        }
    }
}

/// What the page heap keeps apart. Spans of many blocks seldom become free as a whole.
fn kind(of: &Class) -> pages::Kind {
    if of.blocks < DENSE { pages::Kind::Sparse } else { pages::Kind::Dense }
}

/// From so many blocks on a span counts as dense.
const DENSE: u16 = 8;

/// A span of fresh pages of a node for `class`, registered in the map and in no list.
fn new_span(node: usize, class: usize, of: &Class, os_shift: u32) -> Option<NonNull<Span>> {
    let span = SPANS.get()?;
    let Some(run) = pages::allocate(node, usize::from(of.pages), usize::from(of.align_pages), kind(of)) else {
        // SAFETY: it came from the pool and is ours.
        unsafe { SPANS.put(span) };
        return None;
    };
    let base = run.addr.as_ptr().expose_provenance();
    // SAFETY: the pool handed it to us alone.
    unsafe { &mut *span.as_ptr() }.init(base, class as u8, of, os_shift, run.zeroed, run.untouched);
    if map::set(base, usize::from(of.pages), class as u8, span.as_ptr().cast()) {
        return Some(span);
    }
    // SAFETY: the run is ours and nobody has seen it.
    unsafe { pages::free(run.addr, usize::from(of.pages), 0) };
    // SAFETY: as above.
    unsafe { SPANS.put(span) };
    None
}

/// Gives back a wholly free span that is in no list.
fn retire(of: &Class, os_shift: u32, span: NonNull<Span>) {
    // SAFETY: the span is out of its list, so it is ours.
    let s = unsafe { span.as_ref() };
    let (base, (mut returned, partly)) = (s.base, s.returned_pages(of, os_shift));
    // The page heap knows whole pages only, so the other halves go, too. (OS pages are half as long, or this is empty.)
    for (page, len) in span::runs(partly) {
        let start = core::ptr::with_exposed_provenance_mut(base + page * PAGE);
        // SAFETY: whole OS pages, and no block of the span is in use.
        if NonNull::new(start).is_some_and(|start| unsafe { os::mapping::discard(start, len * PAGE) }) {
            limit::release(len * PAGE / 2);
            returned |= span::between(page, page + len);
        } else {
            limit::account(len * PAGE / 2);
        }
    }
    map::clear(base, usize::from(of.pages));
    // SAFETY: not null, as the address of a run.
    let start = unsafe { NonNull::new_unchecked(core::ptr::with_exposed_provenance_mut(base)) };
    // SAFETY: no block of it is in use and the map does not know it any more.
    unsafe { pages::free(start, usize::from(of.pages), returned) };
    // SAFETY: it came from the pool and is ours.
    unsafe { SPANS.put(span) };
}

/// Takes up to `n` blocks, from the node of the thread or one that still has memory. 0 when memory is exhausted.
fn take(class_index: usize, n: usize, mut give: impl FnMut(usize)) -> usize {
    let mut taken = topology::nodes_from(topology::node()).map(|node| take_from(node, class_index, n, &mut give));
    taken.find(|&taken| taken > 0).unwrap_or(0)
}

/// Takes up to `n` blocks of a node; makes a new span if there is none with free blocks. 0 when its memory is exhausted.
fn take_from(node: usize, class_index: usize, n: usize, give: &mut impl FnMut(usize)) -> usize {
    let of = class(class_index);
    loop {
        let (taken, os_shift) =
            with(node, class_index, |central| (central.take(of, n, &mut *give), central.os_shift()));
        if taken > 0 {
            return taken;
        }
        let Some(span) = new_span(node, class_index, of, os_shift) else { return 0 };
        // Blocks are taken from the new span under the same lock, so that nobody else empties it meanwhile.
        let taken = with(node, class_index, |central| {
            central.add(of, span);
            central.take(of, n, &mut *give)
        });
        if taken > 0 {
            return taken;
        }
    }
}

/// Fills an empty, prepared magazine with up to `n` blocks, so that they come out in the order of their addresses.
/// Returns their number, 0 when memory is exhausted.
pub(crate) fn fill(magazine: &mut Owned, n: usize) -> usize {
    let mut blocks = [0; CAPACITY];
    let mut len = 0;
    take(magazine.class(), n.min(magazine.capacity()), |block| {
        if let Some(slot) = blocks.get_mut(len) {
            *slot = block;
            len += 1;
        }
    });
    for &block in blocks.iter().take(len).rev() {
        magazine.push(block);
    }
    if len > 0 {
        REFILLS.fetch_add(1, Ordering::Relaxed);
    }
    len
}

/// One block, past the shards; `None` when memory is exhausted.
pub(crate) fn allocate_one(class_index: usize) -> Option<NonNull<u8>> {
    let mut block = 0;
    take(class_index, 1, |taken| block = taken);
    NonNull::new(core::ptr::with_exposed_provenance_mut(block))
}

/// A whole span of a class whose spans are single blocks, with whether its memory is known to be all zero.
pub(crate) fn allocate_single(class_index: usize) -> Option<(NonNull<u8>, bool)> {
    let of = class(class_index);
    debug_assert!(of.blocks == 1);
    let block = allocate_one(class_index)?;
    let (_, owner) = map::lookup(block.as_ptr().addr());
    // SAFETY: the block was just taken from this span and is its only one, so the field is ours.
    let s = unsafe { &mut *owner.cast::<Span>() };
    // Single-block spans go back to the page heap when they are free, so the flag is that of fresh pages.
    Some((block, core::mem::take(&mut s.zeroed)))
}

/// The span of a block that was freed as one of `class_index`. Or the block was a classed one of the large or an early one,
/// and is freed now: `None`. Ends the process if the map says otherwise.
fn span_or_classed(block: usize, class_index: usize, seen: Seen) -> Option<NonNull<Span>> {
    let (actual, owner) = map::lookup(block);
    if usize::from(actual) == class_index && !owner.is_null() {
        return NonNull::new(owner.cast());
    }
    if large::class_of(block) == Some(class_index)
        && let Some(start) = NonNull::new(core::ptr::with_exposed_provenance_mut(block))
        // SAFETY: a block that was freed; where another thread freed it, too, one of them is told.
        && unsafe { large::free(start) }.is_ok()
    {
        return None;
    }
    if early::free(block, class_index, seen) {
        return None;
    }
    Some(span_of(block, class_index, seen))
}

/// The span of a block of `class_index`; ends the process if the map says otherwise.
fn span_of(block: usize, class_index: usize, seen: Seen) -> NonNull<Span> {
    let (actual, owner) = map::lookup(block);
    if usize::from(actual) != class_index {
        let size = class(class_index).size as usize;
        match (usize::from(actual), large::usable_size(block)) {
            (_, Some(len)) => fatal::wrong_large_size(block, size, len, seen),
            (0, None) => fatal::foreign(block, seen),
            (other, None) if other < CLASSES => fatal::wrong_size(block, size, class(other).size as usize, seen),
            (_, None) => fatal::foreign(block, seen),
        }
    }
    match NonNull::new(owner.cast()) {
        Some(span) => span,
        None => fatal::foreign(block, seen),
    }
}

/// Returns all blocks of a magazine to their spans.
pub(crate) fn flush(magazine: &mut Owned) {
    let class_index = magazine.class();
    FLUSHES.fetch_add(1, Ordering::Relaxed);
    // Looked up before the lock is taken, so that it is held for the bitmaps alone.
    let mut blocks = [(NonNull::<Span>::dangling(), 0); CAPACITY];
    let mut len = 0;
    // Of which nodes they are, bit by bit.
    let mut nodes = 0_u32;
    while let Some(block) = magazine.pop()
        && let Some(slot) = blocks.get_mut(len)
    {
        if let Some(span) = span_or_classed(block, class_index, Seen::Late) {
            *slot = (span, block);
            len += 1;
            nodes |= 1 << pages::node_of(block);
        }
    }
    let blocks = blocks.get(..len).unwrap_or_default();
    for node in (0..NODES).filter(|node| nodes & (1 << node) != 0) {
        flush_to(node, class_index, blocks, nodes.is_power_of_two());
    }
}

/// Returns those of the blocks of a class to their spans that are a node's, or `all`.
fn flush_to(node: usize, class_index: usize, blocks: &[(NonNull<Span>, usize)], all: bool) {
    let of = class(class_index);
    let mut rest = blocks.iter();
    // Wholly free spans, a few for each time the lock is held; they are given back after it.
    while rest.len() > 0 {
        let mut retired = [None; 16];
        let mut slots = retired.iter_mut();
        let mut os_shift = 0;
        let verdict = with(node, class_index, |central| {
            os_shift = central.os_shift();
            while slots.len() > 0
                && let Some(&(span, block)) = rest.next()
            {
                if !all && pages::node_of(block) != node {
                    continue;
                }
                if let Some(span) = central.put(of, span, block)?
                    && let Some(slot) = slots.next()
                {
                    *slot = Some(span);
                }
            }
            Ok(())
        });
        verdict.unwrap_or_else(|bad: BadFree| bad.report(of, Seen::Late));
        retired.into_iter().flatten().for_each(|span| retire(of, os_shift, span));
    }
    sweep::something_changed(node, class_index);
}

/// Returns one block, past the shards.
pub(crate) fn free_one(class_index: usize, block: usize) {
    let of = class(class_index);
    let Some(span) = span_or_classed(block, class_index, Seen::Now) else { return };
    let node = pages::node_of(block);
    let (put, os_shift) = with(node, class_index, |central| (central.put(of, span, block), central.os_shift()));
    match put {
        Ok(Some(span)) => retire(of, os_shift, span),
        Ok(None) => {}
        Err(bad) => bad.report(of, Seen::Now),
    }
    sweep::something_changed(node, class_index);
}

/// Turns the single block at `block` from class `from` into one of class `to`, in place. False if there is no room.
///
/// # Safety
/// The block is the caller's, and both are classes of single-block spans.
pub(crate) unsafe fn resize_single(block: NonNull<u8>, from: usize, to: usize) -> bool {
    let (old, new) = (class(from), class(to));
    let (old_pages, new_pages) = (usize::from(old.pages), usize::from(new.pages));
    let base = block.as_ptr().addr();
    let span = span_of(base, from, Seen::Now);
    // SAFETY: the span's only block is the caller's, so nobody else uses it.
    let s = unsafe { &mut *span.as_ptr() };
    if s.base != base {
        fatal::off_grid(base, old.size as usize, Seen::Now);
    }
    // The block may be handed out again later for any alignment that its class promises.
    if !base.is_multiple_of(usize::from(new.align_pages) << PAGE_SHIFT) {
        return false;
    }
    if new_pages > old_pages {
        // SAFETY: the run is the span's, which is the caller's.
        if !unsafe { pages::extend(block, old_pages, new_pages) } {
            return false;
        }
        // The leaf exists already: runs never cross a huge page.
        map::set(base, new_pages, to as u8, span.as_ptr().cast());
    } else if new_pages < old_pages {
        map::set(base, new_pages, to as u8, span.as_ptr().cast());
        map::clear(base + Span::bytes(new), old_pages - new_pages);
        // SAFETY: the tail lies inside the block, behind its new end, and is page-aligned; it is not null.
        let tail = unsafe { NonNull::new_unchecked(block.as_ptr().add(Span::bytes(new))) };
        // SAFETY: nobody uses the tail any more.
        unsafe { pages::free(tail, old_pages - new_pages, 0) };
    }
    s.class = to as u8;
    let node = pages::node_of(base);
    with(node, from, |central| {
        central.out -= 1;
        central.count -= 1;
    });
    with(node, to, |central| {
        central.out += 1;
        central.count += 1;
    });
    true
}

/// Gives all wholly free spans back to the page heaps.
pub(crate) fn purge() {
    (0..topology::nodes()).for_each(purge_node);
}

fn purge_node(node: usize) {
    // Nothing is in transit meanwhile.
    let _sweep = sweep::lock(node).lock();
    for class_index in 1..CLASSES {
        let of = class(class_index);
        loop {
            let found = with(node, class_index, |central| {
                if central.idle == 0 {
                    return None;
                }
                let span = central.spans.wholly_free(of)?;
                central.forget(of, span);
                Some((span, central.os_shift()))
            });
            let Some((span, os_shift)) = found else { break };
            retire(of, os_shift, span);
        }
    }
}

/// What [`usage`] reports, in bytes. `out + cached + returned + behind` are the bytes of the pages of all spans.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Blocks that are in magazines or in the hands of the program.
    pub(crate) out: usize,
    /// Free blocks in spans, without what is returned.
    pub(crate) cached: usize,
    /// OS pages inside spans that are with the OS, or were never touched.
    pub(crate) returned: usize,
    /// What lies behind the last blocks of spans, without what is returned.
    pub(crate) behind: usize,
    /// Class locks taken.
    pub(crate) locks: u64,
    /// Magazines filled and emptied.
    pub(crate) refills: u64,
    pub(crate) flushes: u64,
}

/// The sums over all classes of all nodes.
pub(crate) fn usage() -> Usage {
    let mut sum = Usage {
        refills: REFILLS.load(Ordering::Relaxed),
        flushes: FLUSHES.load(Ordering::Relaxed),
        ..Usage::default()
    };
    for node in 0..topology::nodes() {
        for (of, central) in CLASS.iter().zip(classes(node)).skip(1) {
            // Not through `with`: looking does not count as a lock taken.
            central.lock().add_usage(of, &mut sum);
        }
    }
    sum
}

impl Central {
    fn add_usage(&self, of: &Class, sum: &mut Usage) {
        let (size, blocks) = (of.size as usize, usize::from(of.blocks));
        let free = (self.count * blocks).saturating_sub(self.out) * size;
        sum.out += self.out * size;
        sum.cached += free.saturating_sub(self.returned - self.returned_behind);
        sum.returned += self.returned;
        sum.behind += self.count * (Span::bytes(of) - blocks * size) - self.returned_behind;
        sum.locks += self.locks;
    }
}

/// All locks of this layer, in their order, for the fork handlers.
pub(crate) fn locks() -> impl Iterator<Item = &'static Lock> {
    let nodes = topology::nodes();
    let centrals = CENTRAL.iter().take(nodes).flatten().map(|central| central.raw());
    (0..nodes).map(sweep::lock).chain(centrals)
}

/// The pool of spans, for the fork handlers.
pub(crate) fn pool() -> &'static Pool<Span> {
    &SPANS
}
