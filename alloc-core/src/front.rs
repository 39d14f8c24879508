//! The front: from a size and an alignment to the layer that serves it. What [`crate::RseqAlloc`] inlines into its
//! callers is here, and what it calls when that finds nothing.
//!
//! The hit path is a comparison and one commit sequence. It takes `x = (size - 1) | (align - 1)`, the rounded size less
//! one; for small sizes `x` without its low three bits is the displacement of the bin's header.
//!
//! The functions out of line take their arguments where the hit path has them in registers already, so that it
//! moves nothing on their behalf.
//!
//! Before the mode is decided small blocks come from [`early`], until that is used up.
//!
//! Everything else is out of line: [`allocate_slow`] and [`free_slow`] for a sequence that found nothing, the `medium`
//! functions for sizes beyond the small ones. Memory that cannot be had is tried once more after everything free was
//! given back; then the answer is null.

use crate::fatal::{self, Seen};
use crate::options::Options;
use crate::os::futex::Lock;
use crate::setup::{self, Route};
use crate::shard::arena::OnArena;
use crate::shard::gate::{FAST, fast};
use crate::shard::vcpu::OnVcpu;
use crate::shard::{self, Visit, arena, displacement};
use crate::size_class::{MEDIUM_MAX, SINGLE_BLOCK, SMALL_MAX, TABLE, bin, class, class_of_bin, medium_bin};
use crate::{background, central, decay, early, large, limit, map, os};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicU64, Ordering};

/// Visits to a shard after which a call does without it: threads of the same vCPU keep changing it under us.
const VISITS: usize = 32;

/// Calls that went past the shards.
static BYPASSES: AtomicU64 = AtomicU64::new(0);

/// How many calls went past the shards.
pub(crate) fn bypasses() -> u64 {
    BYPASSES.load(Ordering::Relaxed)
}

/// The rounded size less one. A size of 0 comes out as the largest number, which nothing serves.
#[inline(always)]
const fn rounded(size: usize, align: usize) -> usize {
    size.wrapping_sub(1) | align.wrapping_sub(1)
}

/// `size` bytes aligned to `align`, null if they cannot be had.
///
/// # Safety
/// `align` is a power of two.
#[inline(always)]
pub(crate) unsafe fn allocate(options: &Options, size: usize, align: usize) -> *mut u8 {
    let x = rounded(size, align);
    if x >= SMALL_MAX {
        out_of_the_way();
        return allocate_medium(x, align.wrapping_sub(1), options);
    }
    // SAFETY: the displacement is that of a bin; magazines stay mapped for ever.
    let block = unsafe { fast::pop(x & !7) };
    if !block.is_null() {
        return block;
    }
    allocate_slow(x & !7, options)
}

/// Returns what [`allocate`] gave for the same size and alignment.
///
/// # Safety
/// `block` is a live block of that size and alignment, and not used any more.
#[inline(always)]
pub(crate) unsafe fn free(options: &Options, block: *mut u8, size: usize, align: usize) {
    let x = rounded(size, align);
    if x >= SMALL_MAX {
        out_of_the_way();
        // SAFETY: the contract of this function.
        return unsafe { free_medium(block, x, options) };
    }
    // SAFETY: as in `allocate`; a block is not 0.
    if !unsafe { fast::push(x & !7, block.expose_provenance()) } {
        free_slow(block, x & !7, options);
    }
}

/// Marks a way that is to lie beside the one of small sizes, so that this has no taken branch in it. (The functions that
/// it leads to are not cold, or they would be compiled to be short.)
#[cold]
#[inline(always)]
const fn out_of_the_way() {}

/// Sizes or alignments that are not small. `below` is the alignment less one, as the rounded size was made of it.
#[inline(never)]
fn allocate_medium(x: usize, below: usize, options: &Options) -> *mut u8 {
    if x >= MEDIUM_MAX {
        return allocate_large(options, x.wrapping_add(1), below.wrapping_add(1)).0;
    }
    let displacement = displacement(medium_bin(x));
    // SAFETY: as in `allocate`.
    let block = unsafe { fast::pop(displacement) };
    if !block.is_null() {
        return block;
    }
    allocate_slow(displacement, options)
}

/// See [`allocate_medium`].
///
/// # Safety
/// As for [`free`].
#[inline(never)]
unsafe fn free_medium(block: *mut u8, x: usize, options: &Options) {
    if x >= MEDIUM_MAX {
        return free_large(block, x.wrapping_add(1));
    }
    let displacement = displacement(medium_bin(x));
    // SAFETY: as in `free`.
    if !unsafe { fast::push(displacement, block.expose_provenance()) } {
        free_slow(block, displacement, options);
    }
}

/// What no class serves, with whether it is known to be zero. Null for a size of 0, which `GlobalAlloc` rules out.
pub(crate) fn allocate_large(options: &Options, size: usize, align: usize) -> (*mut u8, bool) {
    let found = find_large(options, size, align, || large::allocate(size, align));
    found.map_or((null_mut(), false), |(block, zeroed)| (block.as_ptr(), zeroed))
}

/// As [`allocate_large`], for what a smaller block held that grows.
fn allocate_to_grow(options: &Options, size: usize, align: usize) -> *mut u8 {
    let found = find_large(options, size, align, || large::allocate_to_grow(size, align));
    found.map_or(null_mut(), NonNull::as_ptr)
}

/// Finds a large block, if need be after everything free was given back.
fn find_large<T>(options: &Options, size: usize, align: usize, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    // What does not fit into any address space is not worth a purge.
    if size == 0 || size.checked_add(align).is_none_or(|end| end >> os::ADDRESS_BITS != 0) {
        return None;
    }
    setup::decide_if_undecided(options);
    decay::tick();
    let found = attempt().or_else(|| recover(attempt));
    background::nudge();
    found
}

/// As [`large::resize`], once more after everything free was given back if a limit refused it: the copy that follows
/// otherwise would need even more.
///
/// # Safety
/// As there.
unsafe fn resize_large(block: NonNull<u8>, new_size: usize, align: usize) -> Option<NonNull<u8>> {
    let (refusals, _) = limit::refusals();
    // SAFETY: passed on; what failed changed nothing.
    let attempt = || unsafe { large::resize(block, new_size, align) };
    attempt().or_else(|| if limit::refusals().0 == refusals { None } else { recover(attempt) })
}

/// Returns a large block that was allocated with a rounded size of `size`. Out of line, for the frame it needs.
#[inline(never)]
fn free_large(block: *mut u8, size: usize) {
    check_large(block, size);
    let now = os::clock::now_ms();
    // SAFETY: a large block that is looked up before it is believed.
    match NonNull::new(block).map(|block| unsafe { large::free_at(block, now) }) {
        Some(Ok(())) => {
            decay::tick_at(now);
            background::nudge();
        }
        _ => fatal::foreign(block.addr(), Seen::Now),
    }
}

/// Ends the process if no large block of at least `size` bytes starts at `block`.
fn check_large(block: *mut u8, size: usize) {
    match large::usable_size(block.addr()) {
        None => fatal::foreign(block.addr(), Seen::Now),
        Some(len) if size > len => fatal::wrong_large_size(block.addr(), size, len, Seen::Now),
        Some(_) => {}
    }
}

/// The first lock in the order of all: held while everything that is free is given back.
static RECOVERY: Lock = Lock::new();

/// The lock of [`recover`] and [`purge`], for the fork handlers.
pub(crate) fn lock() -> &'static Lock {
    &RECOVERY
}

/// Tries again, when memory is exhausted or a limit reached, after everything free was given back; the soft limit does
/// not refuse it again. One thread at a time: what one is giving back is in nobody's reach meanwhile, so another must not
/// conclude from that that there is nothing.
#[cold]
fn recover<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let _guard = RECOVERY.lock();
    let (_, soft_hits) = limit::refusals();
    attempt().or_else(|| {
        purge_locked();
        let _opened = limit::open(limit::refusals().1 != soft_hits);
        attempt()
    })
}

/// A block of the bin at `displacement` when the inlined sequence brought none.
#[cold]
#[inline(never)]
fn allocate_slow(displacement: usize, options: &Options) -> *mut u8 {
    // Most often the next magazine of the chain has one.
    // SAFETY: as in `allocate`; magazines have the words of chains.
    if let Ok(block) = unsafe { FAST.pop_chained(displacement) } {
        return block;
    }
    let bin = shard::bin_at(displacement);
    if setup::is_undecided() {
        setup::begin(options);
        if let Some(block) = early::allocate(options, class_of_bin(bin)) {
            return block.as_ptr();
        }
    }
    let block = match visit(options, |access| shard::allocate(access, bin), |arena| shard::allocate(arena, bin)) {
        Some(block) => block,
        None => central::allocate_one(class_of_bin(bin)).map_or(0, |block| block.as_ptr().expose_provenance()),
    };
    background::nudge();
    if block != 0 {
        return core::ptr::with_exposed_provenance_mut(block);
    }
    recover(|| central::allocate_one(class_of_bin(bin))).map_or(null_mut(), NonNull::as_ptr)
}

/// Returns a block of the bin at `displacement` when the inlined sequence did not take it.
#[cold]
#[inline(never)]
pub(crate) fn free_slow(block: *mut u8, displacement: usize, options: &Options) {
    let bin = shard::bin_at(displacement);
    let block = block.expose_provenance();
    // SAFETY: as in `free`; magazines have the words of chains.
    if unsafe { FAST.push_chained(displacement, block) }.committed() {
        return;
    }
    if setup::is_undecided() && early::free(block, class_of_bin(bin), Seen::Now) {
        return;
    }
    let done = visit(options, |access| shard::free(access, bin, block), |arena| shard::free(arena, bin, block));
    if done.is_none() {
        central::free_one(class_of_bin(bin), block);
    }
    background::nudge();
}

/// Runs `on_vcpu` or `on_arena` with the thread's shard until it is done; `None` if the call is to do without one.
#[inline(always)]
fn visit<T>(
    options: &Options,
    mut on_vcpu: impl FnMut(&OnVcpu) -> Visit<T>,
    mut on_arena: impl FnMut(&OnArena) -> Visit<T>,
) -> Option<T> {
    let route = setup::route(options);
    for _ in 0..VISITS {
        let visit = match route {
            Route::Vcpu => match OnVcpu::current() {
                Some(access) => on_vcpu(&access),
                None => Visit::Bypass,
            },
            Route::Arena => match arena::acquire() {
                Some(arena) => on_arena(&arena),
                None => Visit::Bypass,
            },
            Route::Direct => Visit::Bypass,
        };
        match visit {
            Visit::Done(value) => return Some(value),
            Visit::Again => {}
            Visit::Bypass => break,
        }
    }
    BYPASSES.fetch_add(1, Ordering::Relaxed);
    None
}

/// As [`allocate`], with all bytes zero.
///
/// # Safety
/// As for [`allocate`].
#[inline(always)]
pub(crate) unsafe fn allocate_zeroed(options: &Options, size: usize, align: usize) -> *mut u8 {
    if rounded(size, align) >= ZEROED_LONG {
        return allocate_zeroed_long(options, size, align);
    }
    // SAFETY: the contract of this function.
    let block = unsafe { allocate(options, size, align) };
    if !block.is_null() {
        // SAFETY: a fresh block of at least `size` bytes.
        unsafe { block.write_bytes(0, size) };
    }
    block
}

/// What may be a span of its own, or large, and so known to be zero.
#[inline(never)]
fn allocate_zeroed_long(options: &Options, size: usize, align: usize) -> *mut u8 {
    let x = rounded(size, align);
    let (block, zeroed) = match bin(x) {
        None => allocate_large(options, x.wrapping_add(1), align),
        // SAFETY: as in `allocate`.
        Some(bin) => match unsafe { fast::pop(displacement(bin)) } {
            block if block.is_null() => allocate_single(options, bin),
            block => (block, false),
        },
    };
    match NonNull::new(block) {
        // SAFETY: a fresh block of at least `size` bytes.
        Some(start) if !zeroed && size >= ZERO_BY_PAGES => unsafe { os::zero::zero(start, size) },
        // SAFETY: as above.
        Some(start) if !zeroed => unsafe { start.write_bytes(0, size) },
        _ => {}
    }
    block
}

/// The rounded size less one from which on a span is a single block.
const ZEROED_LONG: usize = SINGLE_BLOCK - SINGLE_BLOCK / 8;
const _: () = assert!(!is_single(ZEROED_LONG - 1) && is_single(ZEROED_LONG) && is_single(MEDIUM_MAX - 1));

const fn is_single(x: usize) -> bool {
    match bin(x) {
        Some(bin) => TABLE[class_of_bin(bin)].blocks == 1,
        None => false,
    }
}

/// From this size on it is worth a system call to find out whether a block is resident before it is cleared.
const ZERO_BY_PAGES: usize = 256 << 10;

/// A block that is a span of its own: from the shard if it has one, which is not known to be zero, else from the spans,
/// where it may be fresh from the operating system.
fn allocate_single(options: &Options, bin: usize) -> (*mut u8, bool) {
    decay::tick();
    let cached = match setup::route(options) {
        Route::Vcpu => OnVcpu::current().is_some_and(|access| shard::has_blocks(&access, bin)),
        Route::Arena => arena::acquire().is_some_and(|arena| shard::has_blocks(&arena, bin)),
        Route::Direct => false,
    };
    if cached {
        return (allocate_slow(displacement(bin), options), false);
    }
    match central::allocate_single(class_of_bin(bin)) {
        Some((block, zeroed)) => (block.as_ptr(), zeroed),
        None => (allocate_slow(displacement(bin), options), false),
    }
}

/// Changes the size of a block, in place if that can be. Null if it cannot be had, and then the block stays as it is.
///
/// # Safety
/// `block` is a live block of `size` and `align`; `new_size` is not 0.
pub(crate) unsafe fn resize(options: &Options, block: *mut u8, size: usize, align: usize, new_size: usize) -> *mut u8 {
    let Some(old) = NonNull::new(block) else { return null_mut() };
    let (from, to) = (bin(rounded(size, align)), bin(rounded(new_size, align)));
    let (from, to) = (from.map(class_of_bin), to.map(class_of_bin));
    if from.is_none() {
        check_large(block, size);
    } else if from == to {
        return block;
    }
    // Rounded, as everything that `free` will compare with it.
    let rounded_size = rounded(new_size, align).wrapping_add(1);
    // SAFETY: the contract of this function.
    let new = match unsafe { place_for(options, old, from, to, rounded_size, align) } {
        Place::Here(new) => return new.as_ptr(),
        Place::There(new) => new,
    };
    if !new.is_null() {
        // SAFETY: both are live, disjoint, and at least that long.
        unsafe { new.copy_from_nonoverlapping(block, size.min(new_size)) };
        // SAFETY: the contract of this function.
        unsafe { free(options, block, size, align) };
    }
    new
}

/// Where a block is that changes its size.
pub(crate) enum Place {
    /// It has the new size, and its contents.
    Here(NonNull<u8>),
    /// It is to be copied to this block, and freed; if that is null, it stays as it is.
    There(*mut u8),
}

/// Finds the place for a block of class `from` that becomes one of class `to`; `None` is large.
///
/// # Safety
/// `block` is a live block of that class, and the caller's; `new_size`, rounded to `align`, leads to class `to`. If the
/// block comes back at another address, the old one is no longer the caller's.
pub(crate) unsafe fn place_for(
    options: &Options,
    block: NonNull<u8>,
    from: Option<usize>,
    to: Option<usize>,
    new_size: usize,
    align: usize,
) -> Place {
    let single = |of: &usize| class(*of).blocks == 1;
    let (single_from, single_to) = (from.filter(single), to.filter(single));
    // Those that left their spans while they grew are large, whatever their size is.
    let classed = single_from.is_some() && large::class_of(block.addr().get()) == single_from;
    // Of a class they have the whole size.
    let served = single_to.map_or(new_size, |to| class(to).size as usize);
    // What is large for its size has to be copied if it becomes one of a class: it is not aligned for every class.
    if (from.is_none() && to.is_none()) || (classed && (to.is_none() || single_to.is_some())) {
        // SAFETY: the block is the caller's, and large; it is classed if it becomes one of a class.
        if let Some(new) = unsafe { resize_large(block, served, align) } {
            return Place::Here(new);
        }
    } else if let (Some(from), Some(to)) = (single_from, single_to) {
        // Where growing blocks become large it goes there before it has much to copy.
        if to > from
            && usize::from(map::lookup(block.addr().get()).0) == from
            && let Some(new) = large::allocate_early(served)
        {
            return Place::There(new.as_ptr());
        }
        // SAFETY: the block is the caller's; both classes have one block in a span.
        if unsafe { central::resize_single(block, from, to) } {
            return Place::Here(block);
        }
    }
    Place::There(if from.is_some() && to.is_none() {
        allocate_to_grow(options, new_size, align)
    } else {
        // SAFETY: the alignment is the old one.
        unsafe { allocate(options, new_size, align) }
    })
}

/// Gives back everything that is free, from every layer. Returns the bytes that went to the operating system.
pub(crate) fn purge() -> usize {
    let _guard = RECOVERY.lock();
    purge_locked()
}

/// [`purge`], under its lock.
fn purge_locked() -> usize {
    shard::drain::purge();
    central::purge();
    decay::purge()
}
