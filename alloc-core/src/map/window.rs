//! The window: the bytes of the pages around the first leaf in one flat array, for the C interface's `free`.
//!
//! ```text
//!   offset = address - start;  offset >> 13 >= pages: outside;  byte = bytes[offset >> 13]
//! ```
//!
//! Invariant: where the array holds anything but 0, it holds what the leaf does. The other way round it is not so: a
//! thread that sets a page while another one makes the window may not see it yet. That page's blocks are freed the slow
//! way, as those outside are.
//!
//! It takes 8 MiB of address space, and a page of memory for each 32 MiB of the heap. Where they are not to be had
//! (RLIMIT_AS) there is no window.

use super::{PAGE_SHIFT, UNIT, account_once};
use crate::meta;
use core::mem::offset_of;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// Bytes of addresses that it covers, 64 GiB; and how many of them lie above the first leaf.
const SPAN: usize = 1 << 36;
const ABOVE: usize = SPAN / 4;
/// The pages of the window.
pub(crate) const PAGES: usize = SPAN >> PAGE_SHIFT;

/// What the assembly reads; the order of the first two is fixed.
#[repr(C)]
pub struct Window {
    /// The first address. Before there is a window all addresses are far from it.
    start: AtomicUsize,
    bytes: AtomicPtr<AtomicU8>,
    /// A bit per [`UNIT`] that was ever written, for the accounting.
    touched: [AtomicU64; PAGES.div_ceil(UNIT * 64)],
}

const _: () = assert!(offset_of!(Window, start) == 0 && offset_of!(Window, bytes) == 8);

/// See the module.
pub static WINDOW: Window = Window {
    start: AtomicUsize::new(1 << (usize::BITS - 1)),
    bytes: AtomicPtr::new(null_mut()),
    touched: [const { AtomicU64::new(0) }; _],
};

static WANTED: AtomicBool = AtomicBool::new(false);
/// Whether it was made, or tried in vain.
static TRIED: AtomicBool = AtomicBool::new(false);

/// Asks for a window, to be made with the first leaf.
pub(crate) fn want() {
    if !WANTED.load(Ordering::Relaxed) {
        WANTED.store(true, Ordering::Relaxed);
    }
}

/// Whether there is one.
pub(crate) fn is_there() -> bool {
    !WINDOW.bytes.load(Ordering::Acquire).is_null()
}

/// Makes the window around an address, if somebody wants it and nobody has.
pub(super) fn make_if_wanted(address: usize) {
    if !WANTED.load(Ordering::Relaxed) || TRIED.swap(true, Ordering::Relaxed) {
        return;
    }
    if let Some(bytes) = meta::alloc_alone(PAGES) {
        WINDOW.start.store(address.saturating_sub(SPAN - ABOVE), Ordering::Relaxed);
        WINDOW.bytes.store(bytes.as_ptr().cast(), Ordering::Release);
    }
}

/// Notes the byte of a page, given its number in the address space.
pub(super) fn set(number: usize, byte: u8) {
    let bytes = WINDOW.bytes.load(Ordering::Acquire);
    let index = number.wrapping_sub(WINDOW.start.load(Ordering::Relaxed) >> PAGE_SHIFT);
    if bytes.is_null() || index >= PAGES {
        return;
    }
    account_once(&WINDOW.touched, index / UNIT);
    // SAFETY: the array has so many bytes, all atomic, and lives for ever.
    unsafe { &*bytes.add(index) }.store(byte, Ordering::Release);
}
