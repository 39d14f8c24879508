//! What only assembly can reach: the thread pointer, a thread-local block of our own, weak references to libc.
//!
//! `no_std` on stable Rust has no thread-locals, so the block is defined in assembly, in the static TLS of the
//! object that carries this crate, and reached by the initial-exec model: one load of its offset from the thread
//! pointer, no call, no allocation, the same offset in every thread. This is the one place that chooses the
//! architecture; commit sequences are chosen in [`crate::sequence`] by the same condition.
//!
//! The block outlives every destructor of its thread: it goes away with the thread's TLS, after the last one ran.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicUsize};

#[cfg(all(target_arch = "aarch64", target_endian = "little", not(miri)))]
#[path = "aarch64.rs"]
mod imp;
#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64", not(miri)),
    all(target_arch = "aarch64", target_endian = "little", not(miri))
)))]
#[path = "portable.rs"]
mod imp;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
#[path = "x86_64.rs"]
mod imp;

#[cfg(any(target_feature = "crt-static", feature = "weak-libc-symbols"))]
pub(crate) use imp::weak_libc_symbols;
pub(crate) use imp::{ABORTS_IN_DOUBT, own_offset, thread_pointer};
pub use imp::{HAVE_SEQUENCES, LOADS_IN_ORDER, prefetch_to_write};

/// The thread-local block of this crate: an rseq area for threads that nobody else registers, and the words that
/// belong to it.
///
/// The assembly of each architecture lays it out; the assertions below hold the two together.
#[repr(C, align(64))]
pub(crate) struct OwnBlock {
    /// A `struct rseq` and its room to grow. `cpu_id`, `node_id` and `mm_cid` start as all ones, so that a thread
    /// which nobody registered is told from all that have an id.
    pub(crate) area: [u8; 64],
    /// What registration did with this thread; starts as 0.
    pub(crate) state: AtomicU32,
    reserve: u32,
    /// Words for the library that embeds this crate; start as 0.
    pub(crate) user: [AtomicUsize; 4],
    /// Where the functions of an [`Entry`](crate::sequence::Entry) for private ids leave what is a descriptor elsewhere:
    /// as far before the private id as `rseq_cs` is before `mm_cid`.
    not_armed: [u8; 16],
    /// What tables read in place of an id before they are opened, or if they are opened for such ids; starts as all ones.
    private_id: AtomicU32,
    reserve_behind: u32,
}

const _: () = {
    assert!(size_of::<OwnBlock>() == 128);
    assert!(offset_of!(OwnBlock, area) == 0);
    assert!(offset_of!(OwnBlock, state) == 64);
    assert!(offset_of!(OwnBlock, private_id) == PRIVATE_ID);
    assert!(offset_of!(OwnBlock, user) == 72);
    let (rseq_cs, mm_cid) = (offset_of!(crate::abi::Rseq, rseq_cs), offset_of!(crate::abi::Rseq, mm_cid));
    assert!(PRIVATE_ID - (mm_cid - rseq_cs) == offset_of!(OwnBlock, not_armed));
};

/// Where the private id is in the own block.
pub(crate) const PRIVATE_ID: usize = 120;

/// The calling thread's block.
#[inline]
pub(crate) fn own_block() -> *mut OwnBlock {
    thread_pointer().wrapping_add_signed(own_offset()) as *mut OwnBlock
}

/// Gives the calling thread an id of its own, or takes it away, for tables that were opened by
/// [`Stacks::open_private`](crate::sequence::Stacks::open_private).
///
/// # Safety
/// No other thread has that id, and what this thread does in such a table is finished.
#[inline]
pub unsafe fn set_private_id(id: Option<u32>) {
    // SAFETY: as in `with_thread_words`.
    let word = unsafe { &(*own_block()).private_id };
    word.store(id.unwrap_or(u32::MAX), core::sync::atomic::Ordering::Relaxed);
}

/// Four words of thread-local storage for the library that embeds this crate.
///
/// They start as 0 in every thread and may be used from the first instruction of a thread to its last, also from
/// signal handlers, whether rseq is available or not. On an architecture without assembly of its own
/// ([`HAVE_SEQUENCES`] is false) all threads share one set of words; treat their content as a hint there.
///
/// ```
/// use core::sync::atomic::Ordering::Relaxed;
/// rseq_sys::with_thread_words(|words| words[3].store(7, Relaxed));
/// assert_eq!(rseq_sys::with_thread_words(|words| words[3].load(Relaxed)), 7);
/// ```
#[inline]
pub fn with_thread_words<R>(f: impl FnOnce(&[AtomicUsize; 4]) -> R) -> R {
    // SAFETY: the block is in the static TLS of the calling thread, aligned and initialised by the loader, and
    // lives until the thread ends, which is after `f`. Atomics allow shared access from signal handlers.
    f(unsafe { &(*own_block()).user })
}
