//! The mappings of large blocks: those of [`crate::os::mapping`], counted, named, and with advice about huge pages.
//!
//! The functions have the names and promises of those they stand in for, and also refuse what a limit refuses.

pub(crate) use crate::os::mapping::{discard, page_size, whole_pages};

use super::{charge, release};
use crate::os::{huge, mapping};
use core::ffi::CStr;
use core::ptr::NonNull;

/// What they are called in `/proc/self/maps`.
pub(crate) const NAME: &CStr = c"rseq-alloc: large";

/// See [`mapping::map`].
pub(crate) fn map(len: usize, align: usize) -> Option<NonNull<u8>> {
    if !charge(len) {
        return None;
    }
    let Some(start) = mapping::map(len, align) else {
        release(len);
        return None;
    };
    mapping::name(start, len, NAME);
    huge::advise(start, len);
    Some(start)
}

/// See [`mapping::unmap`]. What the kernel refuses to unmap does not count any more either: the caller has no use for
/// it and gives its memory back.
///
/// # Safety
///
/// As there.
pub(crate) unsafe fn unmap(start: NonNull<u8>, len: usize) -> bool {
    release(len);
    // SAFETY: passed on.
    unsafe { mapping::unmap(start, len) }
}

/// See [`mapping::remap`].
///
/// # Safety
///
/// As there.
#[must_use]
pub(crate) unsafe fn remap(start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
    // SAFETY: passed on.
    counted(old, new, || unsafe { mapping::remap(start, old, new) })
}

/// See [`mapping::remap_to_grow`]; without huge pages where they are declined.
///
/// # Safety
///
/// As there.
#[must_use]
pub(crate) unsafe fn remap_to_grow(start: NonNull<u8>, old: usize, new: usize, huge: bool) -> Option<NonNull<u8>> {
    // SAFETY: passed on.
    counted(old, new, || unsafe { mapping::remap_to_grow(start, old, new, huge && !huge::declined()) })
}

/// See [`mapping::remap_in_place`].
///
/// # Safety
///
/// As there.
#[must_use]
pub(crate) unsafe fn remap_in_place(start: NonNull<u8>, old: usize, new: usize) -> bool {
    // SAFETY: passed on.
    counted(old, new, || unsafe { mapping::remap_in_place(start, old, new) }.then_some(())).is_some()
}

/// Counts a change of length from `old` to `new`, if `change` makes it.
fn counted<T>(old: usize, new: usize, change: impl FnOnce() -> Option<T>) -> Option<T> {
    let more = new.saturating_sub(old);
    if more > 0 && !charge(more) {
        return None;
    }
    let changed = change();
    match changed {
        Some(_) => release(old.saturating_sub(new)),
        None => release(more),
    }
    changed
}
