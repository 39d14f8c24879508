//! Stand-in where there is no assembly: another architecture, or Miri.
//!
//! There is no thread-local storage to be had, so all threads share one block. That is enough for what runs here:
//! rseq is reported as unavailable, and the shared words serve as hints only.

use super::OwnBlock;
use core::cell::UnsafeCell;

/// Whether this build has commit sequences in assembly.
pub const HAVE_SEQUENCES: bool = false;

/// Whether there are kernels for this architecture that do not abort what they should, so that it has to be tried.
pub(crate) const ABORTS_IN_DOUBT: bool = false;

/// Whether the processor performs loads in program order, so that data published with a store is seen by a plain load
/// that follows a load of what published it.
pub const LOADS_IN_ORDER: bool = true;

struct Shared(UnsafeCell<OwnBlock>);
// SAFETY: the only fields used are atomics; the area is never registered.
unsafe impl Sync for Shared {}

static BLOCK: Shared = Shared(UnsafeCell::new(OwnBlock {
    area: [0xff; 64],
    state: core::sync::atomic::AtomicU32::new(0),
    reserve: 0,
    user: [const { core::sync::atomic::AtomicUsize::new(0) }; 4],
    not_armed: [0; 16],
    private_id: core::sync::atomic::AtomicU32::new(u32::MAX),
    reserve_behind: 0,
}));

/// Stands for the thread pointer: offsets count from the shared block.
#[inline]
pub(crate) fn thread_pointer() -> usize {
    BLOCK.0.get().expose_provenance()
}

/// Nothing, where there is no instruction for it to be had.
#[inline]
pub fn prefetch_to_write(_address: usize) {}

/// Where the own block lies, from [`thread_pointer`].
#[inline]
pub(crate) fn own_offset() -> isize {
    0
}

/// Nobody registers where there are no sequences.
#[cfg(any(target_feature = "crt-static", feature = "weak-libc-symbols"))]
pub(crate) fn weak_libc_symbols() -> Option<(*const isize, *const u32, *const u32)> {
    None
}
