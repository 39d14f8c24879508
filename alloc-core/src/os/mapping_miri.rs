//! What stands in for [`mapping`](self) under Miri, which knows no address space without access, no `madvise` and no
//! partial `munmap`.
//!
//! Reservations are zeroed memory from the C library, small ones, and are never given back; run Miri with
//! `-Zmiri-ignore-leaks`. The interface and its promises are those of the real module.

use core::ffi::CStr;
use core::ptr::{self, NonNull};

/// All reservations together may take this, which keeps each of them small.
const ADDRESS_SPACE: usize = 64 << 20;

/// See the real module.
pub(crate) fn page_size() -> usize {
    4096
}

/// See the real module.
pub(crate) fn whole_pages(len: usize) -> Option<usize> {
    len.checked_next_multiple_of(page_size())
}

/// See the real module.
pub(crate) fn reserve(size: usize, align: usize) -> Option<NonNull<u8>> {
    map(size, align)
}

/// See the real module.
pub(crate) fn reserve_up_to(wanted: usize, least: usize, align: usize) -> Option<(NonNull<u8>, usize)> {
    let size = wanted.min(ADDRESS_SPACE / 16).max(least);
    Some((map(size, align)?, size))
}

/// See the real module.
///
/// # Safety
///
/// As there.
#[must_use]
pub(crate) unsafe fn commit(_start: NonNull<u8>, _len: usize) -> bool {
    true
}

/// See the real module.
///
/// # Safety
///
/// As there.
#[must_use]
pub(crate) unsafe fn make_readable(_start: NonNull<u8>, _len: usize) -> bool {
    true
}

/// See the real module.
pub(crate) fn map(len: usize, align: usize) -> Option<NonNull<u8>> {
    if len > 4 * ADDRESS_SPACE {
        return None;
    }
    let mut memory = ptr::null_mut();
    // SAFETY: `memory` is a place for the answer.
    let failed = unsafe { libc::posix_memalign(&raw mut memory, align.max(page_size()), len) };
    if failed != 0 {
        return None;
    }
    let start = NonNull::new(memory.cast::<u8>())?;
    // SAFETY: `len` bytes were allocated.
    unsafe { start.write_bytes(0, len) };
    Some(start)
}

/// Keeps the memory: the range may be a part of what was allocated.
///
/// # Safety
///
/// As in the real module.
pub(crate) unsafe fn unmap(_start: NonNull<u8>, _len: usize) -> bool {
    true
}

/// Never possible.
///
/// # Safety
///
/// As in the real module.
#[must_use]
pub(crate) unsafe fn remap(_start: NonNull<u8>, _old: usize, _new: usize) -> Option<NonNull<u8>> {
    None
}

/// See [`remap`].
///
/// # Safety
///
/// As in the real module.
#[must_use]
pub(crate) unsafe fn remap_to_grow(_start: NonNull<u8>, _old: usize, _new: usize, _huge: bool) -> Option<NonNull<u8>> {
    None
}

/// Only shrinks.
///
/// # Safety
///
/// As in the real module.
#[must_use]
pub(crate) unsafe fn remap_in_place(_start: NonNull<u8>, old: usize, new: usize) -> bool {
    new <= old
}

/// See the real module.
///
/// # Safety
///
/// As there.
#[must_use]
pub(crate) unsafe fn discard(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the range is the caller's, and nobody needs its contents.
    unsafe { start.write_bytes(0, len) };
    true
}

/// Without effect.
pub(crate) fn name(_start: NonNull<u8>, _len: usize, _name: &CStr) {}
