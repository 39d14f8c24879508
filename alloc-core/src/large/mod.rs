//! Blocks too large for the page heap, each in a mapping of its own.
//!
//! A block is registered in the [`map`] by its first page only; the owner there is a [`Block`], a type-stable
//! descriptor with address and length. Freed mappings wait a while in a small [`cache`], so that a program which
//! allocates and frees large buffers makes few system calls and page faults.
//!
//! Lengths are whole OS pages. Below 4 MiB they are rounded up in eight steps per doubling, so that similar sizes find
//! each other in the cache; a block that was grown has the same kind of reserve, at most 1 MiB, so that growing in
//! small steps is cheap. Pages behind the contents are not touched and cost address space only, if they are fresh.
//! Blocks that grow past 8 MiB ask for huge pages.
//!
//! A block that grows takes what is kept behind it, if something is: no system call, no copy, no page fault. So that
//! something is, a block that becomes large by growing goes where the most is kept, and what moves goes to the start of a
//! huge page. Where growing blocks have become large before, they come here early, while there is little to copy:
//! [`allocate_early`]. Such a block is *classed*: its size is one that a class serves, and whoever frees it by size puts
//! it into a magazine of that class, where it serves like any other until the magazine is emptied.
//!
//! Invariants:
//! - A live block's address is in the map, with its descriptor, whose `addr` equals it. Whoever swaps `addr` for 0 has
//!   the block: of two frees of one block, one wins and the other is told.
//! - An entry in the map is cleared before its address can become somebody else's.
//! - Two heads are never in one page of the map: every mapping has at least its length.
//! - The sums and the unused descriptors lie under the lock of the cache, so that a call takes one lock, once.
//! - A classed block is as long as the blocks of the class that its recorded size leads to, or longer, and aligned for
//!   every class.
//! - A failed call changes nothing.
//!
//! What it does not do: when the kernel refuses to unmap a mapping (too many mappings), its memory goes back but its
//! addresses are lost.

mod cache;
#[cfg(test)]
mod tests;

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::limit::{self, mapped as mapping};
use crate::os::clock;
use crate::os::futex::{Locked, LockedGuard};
use crate::size_class::{MEDIUM_MAX, PAGE_SHIFT, bin, class_of_bin};
use crate::{map, meta};
use cache::{Cache, Mapping};

/// A page of the map; no mapping is shorter.
const LEAST: usize = 1 << PAGE_SHIFT;
/// Up to here lengths are rounded in steps.
const STEPPED: usize = 4 << 20;
/// Steps per doubling.
const STEPS: usize = 8;
/// The largest reserve of a grown block.
const MAX_RESERVE: usize = 1 << 20;
/// How many times its length, at least, is kept where a block goes early.
const ROOM_TO_GROW: usize = 4;
/// How many blocks may go early for each that becomes large, and at most in a row. Where those that do stay small, that
/// ends it: each has cost a copy of 64 KiB or more and breaks what is kept into pieces.
const EARLY_EACH: u32 = 2;
const EARLY_MOST: u32 = 16;
/// Blocks that grow to this length are made of huge pages where the system allows that on request: what grows is used
/// from end to end, and a fault costs 2 µs whether it brings 4 KiB or, for 100 µs, 2 MiB. Shorter ones might end
/// with a huge page that is a large part of them and hardly used.
const HUGE_FROM: usize = 8 << 20;

/// How long a freed mapping is kept unless set otherwise, in milliseconds: as long as free pages decay.
const DEFAULT_DECAY_MS: u64 = 10_000;
const NEVER: u64 = u64::MAX;
/// What one tick unmaps at most, a huge page apart.
const TICK_BYTES: usize = 16 << 20;

static HEAP: LargeHeap = LargeHeap::new();

/// There is no large block at that address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NotOurs;

/// What the large blocks hold.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct LargeUsage {
    /// Bytes of mappings in use.
    pub(crate) live_bytes: usize,
    /// The same, but of classed blocks only what they were asked for: in a magazine they count with that.
    pub(crate) served_bytes: usize,
    /// Bytes of freed mappings that are kept.
    pub(crate) cached_bytes: usize,
    /// Mappings, in use and kept.
    pub(crate) mappings: usize,
}

/// The descriptor of a block. All zero bits while it is nobody's, but for the link.
struct Block {
    /// Where the block starts; 0 while there is none.
    addr: AtomicUsize,
    len: AtomicUsize,
    /// The size that was asked for last: less is a wish for less, not only for less than the mapping holds.
    size: AtomicUsize,
    /// The next unused one. Belongs to the lock.
    next: *mut Block,
}

/// What the lock protects.
struct State {
    cache: Cache,
    /// Descriptors that nobody uses. They are never anything else.
    unused: *mut Block,
    live: usize,
    live_bytes: usize,
    served_bytes: usize,
}

// SAFETY: descriptors live for ever, and their links are reached under the lock only.
unsafe impl Send for State {}

impl State {
    /// Counts a block, and takes a descriptor for it if there is one.
    fn admit(&mut self, size: usize, len: usize) -> Option<NonNull<Block>> {
        self.live += 1;
        self.recount((0, 0), (size, len));
        let block = NonNull::new(self.unused)?;
        // SAFETY: unused descriptors are live memory whose link is the lock's.
        self.unused = unsafe { (*block.as_ptr()).next };
        Some(block)
    }

    /// Takes a block off the counts, and back the descriptor, which is nobody's any more.
    fn dismiss(&mut self, block: Option<NonNull<Block>>, size: usize, len: usize) {
        self.live -= 1;
        self.recount((size, len), (0, 0));
        if let Some(block) = block {
            // SAFETY: the caller's descriptor, whose link is the lock's.
            unsafe { (*block.as_ptr()).next = self.unused };
            self.unused = block.as_ptr();
        }
    }

    /// Counts one size and length of a block instead of others.
    fn recount(&mut self, old: (usize, usize), new: (usize, usize)) {
        self.live_bytes = self.live_bytes + new.1 - old.1;
        self.served_bytes = self.served_bytes + served(new.0, new.1) - served(old.0, old.1);
    }
}

/// Large blocks and their cache. The process has one; tests make their own.
struct LargeHeap {
    state: Locked<State>,
    /// The time from which [`tick`](Self::tick) has something to do; 0: nothing at all. Changed with `state` locked.
    due: AtomicU64,
    /// 0: the default; otherwise milliseconds plus one.
    decay: AtomicU64,
    /// How many blocks may come early.
    early: AtomicU32,
}

impl LargeHeap {
    const fn new() -> Self {
        Self {
            state: Locked::new(State {
                cache: Cache::new(),
                unused: null_mut(),
                live: 0,
                live_bytes: 0,
                served_bytes: 0,
            }),
            due: AtomicU64::new(0),
            decay: AtomicU64::new(0),
            early: AtomicU32::new(0),
        }
    }

    fn allocate(&self, size: usize, align: usize) -> Option<(NonNull<u8>, bool)> {
        let (len, align) = (stepped(size)?, align.max(mapping::page_size()));
        if let Some(start) = self.kept(size, |cache| cache.take(len, align)) {
            return Some((start?, false));
        }
        let (start, zeroed) = self.lengthened_or_fresh(len, align)?;
        // The guard goes at the end of the statement.
        let block = self.state.lock().admit(size, len);
        Some((self.hand_out(block, start, len, size)?, zeroed))
    }

    /// As [`allocate`](Self::allocate), for what becomes large by growing.
    fn allocate_to_grow(&self, size: usize, align: usize) -> Option<NonNull<u8>> {
        self.one_became_large();
        let len = stepped(size)?;
        match self.kept(size, |cache| cache.take_to_grow(len, align.max(MEDIUM_MAX), len)) {
            Some(start) => start,
            None => Some(self.allocate(size, align)?.0),
        }
    }

    /// A classed block, if that is likely to pay and costs no system call.
    fn allocate_early(&self, size: usize) -> Option<NonNull<u8>> {
        let left = self.early.load(Ordering::Relaxed).checked_sub(1)?;
        let len = stepped(size)?;
        let room = len.checked_mul(ROOM_TO_GROW)?;
        let start = self.kept(size, |cache| cache.take_to_grow(len, MEDIUM_MAX, room))?;
        // Should another thread count at the same time, one more or less does not matter.
        self.early.store(left, Ordering::Relaxed);
        start
    }

    /// A block of what `take` finds in the cache, or `None` if it finds nothing; inside of that, `None` if there is no
    /// memory for the descriptor.
    fn kept(
        &self,
        size: usize,
        take: impl FnOnce(&mut Cache) -> Option<(NonNull<u8>, usize)>,
    ) -> Option<Option<NonNull<u8>>> {
        let mut state = self.state.lock();
        let (start, len) = take(&mut state.cache)?;
        let block = state.admit(size, len);
        drop(state);
        Some(self.hand_out(block, start, len, size))
    }

    fn one_became_large(&self) {
        let early = self.early.load(Ordering::Relaxed) + EARLY_EACH;
        self.early.store(early.min(EARLY_MOST), Ordering::Relaxed);
    }

    /// Makes a mapping that nobody uses a block, which is counted already, and may have a descriptor. `None`: no memory for
    /// that, and the mapping is gone.
    fn hand_out(
        &self,
        block: Option<NonNull<Block>>,
        start: NonNull<u8>,
        len: usize,
        size: usize,
    ) -> Option<NonNull<u8>> {
        let block = block.or_else(|| Some(meta::alloc(size_of::<Block>(), align_of::<Block>())?.cast()));
        if let Some(block) = block {
            // SAFETY: descriptors live for ever, and their shared fields are atomic.
            let fields = unsafe { block.as_ref() };
            fields.len.store(len, Ordering::Relaxed);
            fields.size.store(size, Ordering::Relaxed);
            fields.addr.store(start.addr().get(), Ordering::Relaxed);
            if map::set(start.addr().get(), 1, map::LARGE, block.as_ptr().cast()) {
                return Some(start);
            }
            fields.addr.store(0, Ordering::Relaxed);
        }
        self.state.lock().dismiss(block, size, len);
        // SAFETY: it was not registered and not handed out, so nobody knows it.
        unsafe { give_back(start, len) };
        None
    }

    /// A mapping of `len` bytes, and whether it is known to be zero.
    fn lengthened_or_fresh(&self, len: usize, align: usize) -> Option<(NonNull<u8>, bool)> {
        if align <= mapping::page_size() {
            // The guard goes at the end of the statement.
            let shorter = self.state.lock().cache.take_shorter(len);
            if let Some(shorter) = shorter {
                // SAFETY: taken out of the cache, so it is ours alone.
                if let Some(start) = unsafe { mapping::remap(shorter.start(), shorter.len(), len) } {
                    return Some((start, false));
                }
                self.keep(self.state.lock(), shorter);
            }
        }
        if let Some(start) = mapping::map(len, align) {
            return Some((start, true));
        }
        // What is kept here may be just what is missing.
        if self.purge() == 0 {
            return None;
        }
        Some((mapping::map(len, align)?, true))
    }

    /// # Safety
    ///
    /// If a block starts at `ptr`, the caller gives it up.
    unsafe fn free(&self, ptr: NonNull<u8>, now_ms: u64) -> Result<(), NotOurs> {
        let addr = ptr.addr().get();
        let block = find(addr).ok_or(NotOurs)?;
        // SAFETY: descriptors live for ever, and their shared fields are atomic.
        let fields = unsafe { block.as_ref() };
        if fields.addr.compare_exchange(addr, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(NotOurs);
        }
        // Claimed, so this is the only free of it.
        let (size, len) = (fields.size.load(Ordering::Relaxed), fields.len.load(Ordering::Relaxed));
        fields.size.store(0, Ordering::Relaxed);
        fields.len.store(0, Ordering::Relaxed);
        map::clear(addr, 1);
        let mut state = self.state.lock();
        state.dismiss(Some(block), size, len);
        self.keep(state, Mapping::new(ptr, len, now_ms));
        Ok(())
    }

    /// Puts a mapping that nobody uses into the cache, whose oldest make room, or gives it back.
    fn keep<'a>(&'a self, mut state: LockedGuard<'a, State>, mapping: Mapping) {
        let decay = self.decay_ms();
        if decay == 0 || !cache::fits(mapping.len()) || limit::above_soft() {
            drop(state);
            // SAFETY: nobody uses it.
            unsafe { mapping.give_back() };
            return;
        }
        while let Some(oldest) = state.cache.put(&mapping) {
            drop(state);
            // SAFETY: taken out of the cache, so it is ours alone.
            unsafe { oldest.give_back() };
            state = self.state.lock();
        }
        if decay != NEVER && self.due.load(Ordering::Relaxed) == 0 {
            let due = mapping.since().saturating_add(decay).max(1);
            self.due.store(due, Ordering::Relaxed);
        }
    }

    /// # Safety
    ///
    /// If a block starts at `ptr`, it is the caller's. `align` is the alignment it was allocated with.
    unsafe fn resize(&self, ptr: NonNull<u8>, new_size: usize, align: usize) -> Option<NonNull<u8>> {
        let block = find(ptr.addr().get())?;
        // SAFETY: descriptors live for ever, and their shared fields are atomic.
        let fields = unsafe { block.as_ref() };
        let len = fields.len.load(Ordering::Relaxed);
        let exact = stepped(new_size)?;
        if new_size > MEDIUM_MAX && fields.size.load(Ordering::Relaxed) <= MEDIUM_MAX {
            self.one_became_large();
        }
        if new_size <= len {
            let shrinks = new_size < fields.size.load(Ordering::Relaxed);
            // Less than what growth keeps in reserve is not worth a system call, and may be wanted again.
            let saved = len.saturating_sub(exact);
            let cut = shrinks && saved > (len / STEPS).min(MAX_RESERVE)
                // SAFETY: the caller's mapping. If the kernel refuses, the block stays longer than it need be.
                && unsafe { mapping::remap_in_place(ptr, len, exact) };
            self.record(block, new_size, if cut { exact } else { len });
            return Some(ptr);
        }
        let reserved = with_reserve(new_size)?;
        // What is kept behind the block.
        let mut state = self.state.lock();
        let end = ptr.addr().get() + len;
        if let Some(more) = state.cache.take_behind(end, exact - len, reserved.saturating_sub(len)) {
            state.recount((fields.size.load(Ordering::Relaxed), len), (new_size, len + more));
            drop(state);
            fields.size.store(new_size, Ordering::Relaxed);
            fields.len.store(len + more, Ordering::Relaxed);
            return Some(ptr);
        }
        drop(state);
        // A classed block stays at an address that is aligned for every class.
        let movable = align <= mapping::page_size() && new_size > MEDIUM_MAX;
        for new_len in [reserved, exact] {
            // SAFETY: passed on.
            let resized = unsafe {
                if movable {
                    self.change(block, ptr, len, new_len)
                } else {
                    mapping::remap_in_place(ptr, len, new_len).then_some(ptr)
                }
            };
            if resized.is_some() {
                self.record(block, new_size, new_len);
            }
            if resized.is_some() || new_len == exact {
                return resized;
            }
        }
        None
    }

    /// Changes the length of a block's mapping, wherever the kernel puts it. The caller records the length.
    ///
    /// # Safety
    ///
    /// The block at `ptr` is the caller's, has the length `len` and this descriptor.
    unsafe fn change(
        &self,
        block: NonNull<Block>,
        ptr: NonNull<u8>,
        len: usize,
        new_len: usize,
    ) -> Option<NonNull<u8>> {
        // After the move it is too late to be short of memory for a leaf of the map.
        let spare = map::Spare::take()?;
        // From the move on the old address may be another thread's, which registers it: it has to be cleared before.
        map::clear(ptr.addr().get(), 1);
        // SAFETY: the caller's mapping.
        let moved = unsafe { mapping::remap_to_grow(ptr, len, new_len, new_len >= HUGE_FROM) };
        let addr = moved.unwrap_or(ptr).addr().get();
        // SAFETY: descriptors live for ever, and their shared fields are atomic.
        let fields = unsafe { block.as_ref() };
        fields.addr.store(addr, Ordering::Relaxed);
        spare.set_page(addr, map::LARGE, block.as_ptr().cast());
        moved
    }

    /// Writes size and length into the descriptor, and what they change into the sums.
    fn record(&self, block: NonNull<Block>, size: usize, len: usize) {
        // SAFETY: descriptors live for ever, and their shared fields are atomic.
        let fields = unsafe { block.as_ref() };
        let (old_size, old_len) = (fields.size.load(Ordering::Relaxed), fields.len.load(Ordering::Relaxed));
        fields.size.store(size, Ordering::Relaxed);
        fields.len.store(len, Ordering::Relaxed);
        // A step of growth changes nothing that is counted, mostly.
        if len != old_len || served(size, len) != served(old_size, old_len) {
            self.state.lock().recount((old_size, old_len), (size, len));
        }
    }

    #[inline]
    fn tick(&self, now_ms: u64) {
        let due = self.due.load(Ordering::Relaxed);
        if due != 0 && due <= now_ms {
            self.tick_due(now_ms);
        }
    }

    #[cold]
    fn tick_due(&self, now_ms: u64) {
        let decay = self.decay_ms();
        let mut done = 0;
        loop {
            let mut state = self.state.lock();
            let due = match state.cache.oldest_since() {
                Some(since) if decay != NEVER => since.saturating_add(decay).max(1),
                _ => 0,
            };
            if due == 0 || due > now_ms || done >= TICK_BYTES {
                self.due.store(due, Ordering::Relaxed);
                return;
            }
            let Some(oldest) = state.cache.pop_oldest(TICK_BYTES - done) else {
                return;
            };
            drop(state);
            done += oldest.len();
            // SAFETY: taken out of the cache, so it is ours alone.
            unsafe { oldest.give_back() };
        }
    }

    fn purge(&self) -> usize {
        let mut bytes = 0;
        // The guard goes at the end of the statement: nothing is unmapped under the lock.
        loop {
            let Some(oldest) = self.state.lock().cache.pop_oldest(usize::MAX) else {
                return bytes;
            };
            bytes += oldest.len();
            // SAFETY: taken out of the cache, so it is ours alone.
            unsafe { oldest.give_back() };
        }
    }

    fn decay_ms(&self) -> u64 {
        match self.decay.load(Ordering::Relaxed) {
            0 => DEFAULT_DECAY_MS,
            NEVER => NEVER,
            set => set - 1,
        }
    }

    fn set_decay_ms(&self, ms: u64) {
        self.decay.store(ms.saturating_add(1), Ordering::Relaxed);
        let state = self.state.lock();
        // The next tick finds out when the oldest is due.
        let pending = ms != NEVER && state.cache.oldest_since().is_some();
        self.due.store(u64::from(pending), Ordering::Relaxed);
    }

    fn usage(&self) -> LargeUsage {
        let state = self.state.lock();
        LargeUsage {
            live_bytes: state.live_bytes,
            served_bytes: state.served_bytes,
            cached_bytes: state.cache.bytes(),
            mappings: state.live + state.cache.count(),
        }
    }
}

/// The descriptor of the block that starts at `addr`, which may be any number.
fn find(addr: usize) -> Option<NonNull<Block>> {
    let (map::LARGE, owner) = map::lookup(addr) else {
        return None;
    };
    let block = NonNull::new(owner.cast::<Block>())?;
    // SAFETY: owners of this class are descriptors, which live for ever; their shared fields are atomic.
    let start = unsafe { block.as_ref() }.addr.load(Ordering::Relaxed);
    (start == addr).then_some(block)
}

/// The length of a mapping for `size` bytes. `None`: more than can exist.
fn stepped(size: usize) -> Option<usize> {
    let granule = if size < STEPPED { granule(size) } else { 1 };
    round(size, granule)
}

/// The length of a block that grew to `size` bytes and may go on growing.
fn with_reserve(size: usize) -> Option<usize> {
    round(size, granule(size).min(MAX_RESERVE))
}

/// What counts as in use of a block.
fn served(size: usize, len: usize) -> usize {
    if size <= MEDIUM_MAX { size } else { len }
}

/// An eighth of the power of two below `size`.
fn granule(size: usize) -> usize {
    match size.checked_sub(1).and_then(usize::checked_ilog2) {
        Some(log) => ((1 << log) / STEPS).max(1),
        None => 1,
    }
}

fn round(size: usize, granule: usize) -> Option<usize> {
    let len = size.max(LEAST).checked_next_multiple_of(granule)?;
    let len = mapping::whole_pages(len)?;
    (len <= isize::MAX as usize).then_some(len)
}

/// Unmaps, or at least gives the memory back.
///
/// # Safety
///
/// The mapping is the caller's and nobody uses it.
unsafe fn give_back(start: NonNull<u8>, len: usize) {
    // SAFETY: passed on.
    if !unsafe { mapping::unmap(start, len) } {
        // SAFETY: as above. If this fails too the memory is locked, and lost.
        let _ = unsafe { mapping::discard(start, len) };
    }
}

/// A block of at least `size` bytes aligned to `align` (any power of two), and whether it is known to be zero.
/// `None`: out of memory, or more than can exist.
pub(crate) fn allocate(size: usize, align: usize) -> Option<(NonNull<u8>, bool)> {
    HEAP.allocate(size, align)
}

/// As [`allocate`], for the contents of a smaller block that goes on growing.
pub(crate) fn allocate_to_grow(size: usize, align: usize) -> Option<NonNull<u8>> {
    HEAP.allocate_to_grow(size, align)
}

/// A classed block of `size` bytes, which is that of a class, for the contents of a smaller block that grows and is
/// likely to become large. `None`: it is not, or there is no room for it here.
pub(crate) fn allocate_early(size: usize) -> Option<NonNull<u8>> {
    HEAP.allocate_early(size)
}

/// The class of the classed block at `addr`, or `None` if no classed block starts there; `addr` may be any number.
pub(crate) fn class_of(addr: usize) -> Option<usize> {
    let block = find(addr)?;
    // SAFETY: descriptors live for ever, and their shared fields are atomic.
    let size = unsafe { block.as_ref() }.size.load(Ordering::Relaxed);
    bin(size.wrapping_sub(1)).map(class_of_bin)
}

/// Frees the block that starts at `ptr`. [`NotOurs`]: none does, and nothing happened.
///
/// # Safety
///
/// If a block starts there, the caller gives it up.
pub(crate) unsafe fn free(ptr: NonNull<u8>) -> Result<(), NotOurs> {
    // SAFETY: passed on.
    unsafe { free_at(ptr, clock::now_ms()) }
}

/// [`free`] at a time of [`clock::now_ms`].
///
/// # Safety
///
/// As there.
pub(crate) unsafe fn free_at(ptr: NonNull<u8>, now_ms: u64) -> Result<(), NotOurs> {
    // SAFETY: passed on.
    unsafe { HEAP.free(ptr, now_ms) }
}

/// Makes room for `new_size` bytes in the block at `ptr`, in place or by moving its pages; contents are kept up to
/// the smaller size. `None`: not possible without a copy (or no block starts there), and nothing happened.
///
/// # Safety
///
/// If a block starts at `ptr`, it is the caller's, and `align` is the alignment it was allocated with. `new_size` is
/// that of a class if the block is classed, and beyond all classes otherwise. If another address comes back, the old one is no longer the caller's.
pub(crate) unsafe fn resize(ptr: NonNull<u8>, new_size: usize, align: usize) -> Option<NonNull<u8>> {
    // SAFETY: passed on.
    unsafe { HEAP.resize(ptr, new_size, align) }
}

/// Bytes that the block at `addr` can hold, or `None` if no block starts there; `addr` may be any number.
pub(crate) fn usable_size(addr: usize) -> Option<usize> {
    let block = find(addr)?;
    // SAFETY: descriptors live for ever, and their shared fields are atomic.
    Some(unsafe { block.as_ref() }.len.load(Ordering::Relaxed))
}

/// Gives back, within bounds, what was kept for longer than the decay interval at `now_ms`, a time of
/// [`clock::now_ms`]. One relaxed load if there is nothing.
#[inline]
pub(crate) fn tick(now_ms: u64) {
    HEAP.tick(now_ms);
}

/// The time in milliseconds from which [`tick`] has something to do; 0: never, as things are.
#[inline]
pub(crate) fn due() -> u64 {
    HEAP.due.load(Ordering::Relaxed)
}

/// Gives back all that is kept. Returns the bytes.
pub(crate) fn purge() -> usize {
    HEAP.purge()
}

/// How long freed mappings are kept, in milliseconds: 0 keeps none, `u64::MAX` all that fit.
pub(crate) fn set_decay_ms(ms: u64) {
    HEAP.set_decay_ms(ms);
}

/// What the large blocks hold at the moment.
pub(crate) fn usage() -> LargeUsage {
    HEAP.usage()
}

/// Takes the lock of this module, for a handler that runs before `fork`.
pub(crate) fn lock_for_fork() {
    HEAP.state.raw().acquire();
}

/// Releases what [`lock_for_fork`] took.
///
/// # Safety
///
/// Once after `lock_for_fork`, in the parent.
pub(crate) unsafe fn unlock_after_fork() {
    // SAFETY: held since `lock_for_fork`.
    unsafe { HEAP.state.raw().release() };
}

/// Makes the lock free in the child. What other threads were about to map, register or unmap is lost there.
///
/// # Safety
///
/// Once after `lock_for_fork`, in the child.
pub(crate) unsafe fn reset_after_fork() {
    // SAFETY: there is no other thread, and the data is in order.
    unsafe { HEAP.state.raw().reset() };
}
