//! What a C interface is made of: the heap of [`RseqAlloc`](crate::RseqAlloc), reached without layouts.
//!
//! Requests are aligned to 16, so `x = (size - 1) | 15` is the rounded size less one, and `x & !7` the displacement of
//! the header, as in `front`. For such `x` it is always the last bin of a class, so a block's class, which the map
//! knows, leads back to the bin:
//!
//! ```text
//!   allocate(size)                                free(p)
//!     x = (size - 1) | 15;  x >= 1024: slow         leaf = root[p >> 30];  out of range or null: slow
//!     pop(x & !7)                                   push(displacement of class[p >> 13], p)
//! ```
//!
//! What belongs to nobody and what is large has the displacement of a header that never has room. That saves the test
//! for both: the push fails, and the slow path asks why.
//!
//! Since a free asks the map, blocks of [`RseqAlloc`](crate::RseqAlloc) may be freed here. The other way round the
//! layout's size must lead to the class of the block, which it does for alignments from 16 bytes to 1 MiB, and for any
//! below that if the size is above 64.
//!
//! A free of an address in no span, and of one that is no start of a large block, ends the process at once. A second
//! free, or a pointer into the middle of a block, is seen when and where the crate's documentation says.
//!
//! Exhaustion sets `errno` to `ENOMEM`; nothing else here changes `errno`. What is not done: the checks of arguments
//! that C asks for (alignments that are no powers of two, overflow of products). Options are the defaults, the
//! environment, and [`set_options`].

use crate::fatal::{self, Seen};
pub use crate::options::Refused;
use crate::options::{DEFAULT_DECAY_MS, Options, set_decay_ms};
use crate::shard::displacement;
use crate::shard::gate::fast;
use crate::size_class::{MEDIUM_MAX, SMALL_MAX, bin, class, class_of_bin, last_bin_of_class};
use crate::{background, decay, front, large, map, mode, setup};
use core::ptr::{NonNull, null_mut};

/// What every block is aligned to: `alignof(max_align_t)` on x86-64 and aarch64.
pub const ALIGN: usize = 16;

static OPTIONS: Options = Options::new();

/// The rounded size less one.
#[inline(always)]
const fn rounded(size: usize) -> usize {
    size.wrapping_sub(1) | (ALIGN - 1)
}

/// Null, after `errno` was set to `ENOMEM`.
#[cold]
fn out_of_memory() -> *mut u8 {
    // SAFETY: errno of this thread.
    unsafe { *libc::__errno_location() = libc::ENOMEM };
    null_mut()
}

/// `block`, with `errno` set if it is null.
fn or_errno(block: *mut u8) -> *mut u8 {
    if block.is_null() { out_of_memory() } else { block }
}

/// Decides the mode and installs the fork handlers, if no allocation has done that.
pub fn start() {
    setup::decide_if_undecided(&OPTIONS);
}

/// `size` bytes aligned to [`ALIGN`]; 16 bytes if `size` is 0. Null, with `errno` set, if they cannot be had.
#[inline(always)]
pub fn allocate(size: usize) -> *mut u8 {
    let x = rounded(size);
    if x < SMALL_MAX {
        // SAFETY: the displacement is that of a bin; magazines stay mapped for ever.
        let block = unsafe { fast::pop(x & !7) };
        if !block.is_null() {
            return block;
        }
    }
    allocate_slow(size)
}

/// Sizes that are not small, and small ones for which the inlined sequence brought nothing. `extern "C"` says that it
/// does not unwind, so that a caller of that kind needs no frame for it.
#[inline(never)]
extern "C" fn allocate_slow(size: usize) -> *mut u8 {
    // SAFETY: the alignment is a power of two.
    or_errno(unsafe { front::allocate(&OPTIONS, size.max(1), ALIGN) })
}

/// As [`allocate`], with all bytes zero.
pub fn allocate_zeroed(size: usize) -> *mut u8 {
    // SAFETY: the alignment is a power of two.
    or_errno(unsafe { front::allocate_zeroed(&OPTIONS, size.max(1), ALIGN) })
}

/// As [`allocate`], aligned also to `align`, or the next power of two above it.
pub fn allocate_aligned(size: usize, align: usize) -> *mut u8 {
    let Some(align) = align.max(ALIGN).checked_next_power_of_two() else { return out_of_memory() };
    let size = size.max(1);
    if (size - 1) | (align - 1) < MEDIUM_MAX {
        // SAFETY: the alignment is a power of two.
        return or_errno(unsafe { front::allocate(&OPTIONS, size, align) });
    }
    // Not rounded up to the alignment: a free does not compare the size of a large block with anything.
    or_errno(front::allocate_large(&OPTIONS, size, align).0)
}

/// Frees a block; null is nothing.
///
/// # Safety
/// `block` is null or a live block of this allocator, and not used any more.
#[inline(always)]
pub unsafe fn free(block: *mut u8) {
    // SAFETY: the page of a live block keeps its class.
    if let Some(displacement) = unsafe { map::free_displacement(block.addr()) }
        // SAFETY: the displacement is that of a header; a block is not 0.
        && unsafe { fast::push(displacement, block.expose_provenance()) }
    {
        return;
    }
    // SAFETY: the contract of this function.
    unsafe { free_slow(block) }
}

/// Finds out why the inlined sequence did not take a block. `extern "C"` as above.
///
/// # Safety
/// As for [`free`].
#[inline(never)]
unsafe extern "C" fn free_slow(block: *mut u8) {
    let Some(start) = NonNull::new(block) else { return };
    match map::lookup(block.addr()).0 {
        map::NONE => fatal::foreign(block.addr(), Seen::Now),
        // SAFETY: a large block that is looked up before it is believed.
        map::LARGE => match unsafe { large::free(start) } {
            Ok(()) => {
                decay::tick();
                background::nudge();
            }
            Err(large::NotOurs) => fatal::foreign(block.addr(), Seen::Now),
        },
        class => front::free_slow(block, displacement(last_bin_of_class(usize::from(class))), &OPTIONS),
    }
}

/// Bytes that the block may be used for: those of its class, or of its mapping. 0 for null. Ends the process if the
/// address is in no span and no start of a large block.
pub fn usable_size(block: *const u8) -> usize {
    let size = match map::lookup(block.addr()).0 {
        _ if block.is_null() => Some(0),
        map::NONE => None,
        map::LARGE => large::usable_size(block.addr()),
        of => Some(class(usize::from(of)).size as usize),
    };
    size.unwrap_or_else(|| fatal::unknown(block.addr()))
}

/// Changes the size of a block, which keeps its contents up to the smaller size. Null, with `errno` set, if that cannot
/// be had; then the block stays as it is. The result is aligned to [`ALIGN`] only.
///
/// A block stays where it is if `size` fits and is more than half of what fits, or leads to the same class. Otherwise
/// blocks from 64 KiB to 1 MiB grow and shrink in place where the pages behind them allow it, large ones grow into what
/// is kept behind them or move by their page tables, and everything else is copied.
///
/// # Safety
/// `block` is a live block of this allocator; if another one comes back it is no longer the caller's.
pub unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    let size = size.max(1);
    let to = bin(rounded(size)).map(class_of_bin);
    let Some(start) = NonNull::new(block) else { return allocate(size) };
    let (from, usable) = match map::lookup(block.addr()).0 {
        map::NONE => fatal::foreign(block.addr(), Seen::Now),
        map::LARGE => {
            let Some(len) = large::usable_size(block.addr()) else { fatal::foreign(block.addr(), Seen::Now) };
            (large::class_of(block.addr()), len)
        }
        from => {
            let from = usize::from(from);
            let usable = class(from).size as usize;
            if to == Some(from) || (size <= usable && size > usable / 2) {
                return block;
            }
            (Some(from), usable)
        }
    };
    // SAFETY: the caller's block; the alignment it is promised to have is small.
    let new = match unsafe { front::place_for(&OPTIONS, start, from, to, rounded(size).saturating_add(1), ALIGN) } {
        front::Place::Here(new) => return new.as_ptr(),
        front::Place::There(new) => or_errno(new),
    };
    if !new.is_null() {
        // SAFETY: both are live, disjoint, and at least that long.
        unsafe { new.copy_from_nonoverlapping(block, usable.min(size)) };
        // SAFETY: the contract of this function.
        unsafe { free(block) };
    }
    new
}

/// Whether freed memory is kept for a while, the default, or goes back to the operating system at once.
pub fn set_decay(kept: bool) {
    set_decay_ms(if kept { DEFAULT_DECAY_MS } else { 0 });
}

/// Applies `name=value,name=value` as in the environment variable: `decay`, `budget`, `cache`, `background`, `soft_limit`
/// and `hard_limit` can change at any time, `index` and `thp` are decided by the first allocation.
///
/// # Errors
/// If a part made no sense or came too late; it is named on file descriptor 2, and the others apply.
pub fn set_options(text: &[u8]) -> Result<(), Refused> {
    // Afterwards nothing else changes them.
    start();
    crate::options::change(text)
}

/// Bytes and number of the large blocks in use, and bytes of those kept for reuse.
#[derive(Clone, Copy, Debug)]
pub struct Large {
    /// Bytes in use.
    pub live: usize,
    /// Bytes kept.
    pub cached: usize,
    /// Mappings, in use and kept.
    pub mappings: usize,
}

/// What the large blocks hold. Takes one lock for a moment.
pub fn large() -> Large {
    let usage = large::usage();
    Large { live: usage.live_bytes, cached: usage.cached_bytes, mappings: usage.mappings }
}

/// The mode if it is decided, and is not going to change any more.
pub fn decided_mode() -> Option<mode::Mode> {
    start();
    setup::mode()
}
