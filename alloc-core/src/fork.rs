//! `fork` in a process with several threads: the child gets the memory of all threads and only one of them.
//!
//! Before the fork the forking thread takes all locks, in the order of the layers from recovery and the drainer
//! downwards, so nothing that a lock guards is half done in the child. What no lock guards needs no care: each change
//! of a vCPU's shard is one store, and the child's memory is a consistent cut through the stores of all threads (the
//! kernel write-protects the pages one after the other, but a thread that writes to a protected page waits until the
//! copy is complete, so no CPU sees a store from after its own cut before it). A magazine that another thread was
//! moving between two places is lost in the child, a leak of its blocks. In the parent the locks are released, in the
//! child made free anew.
//!
//! The child has one thread and an address space of its own; its ids start from 0 again and lead to the same shards.
//! The registrations of the thread with rseq and of the process with membarrier are inherited.
//!
//! The time that this takes does not depend on what the heap holds. Most of it is not the locks but the pages they are
//! in, which the parent gets copies of when it releases them; so locks of arenas that are never used are left alone.
//!
//! The C library's `fork` locks its list of open streams after these handlers, and who writes all streams
//! (`fflush(NULL)`) holds that list while it waits for one stream, whose owner may be waiting for memory. So the list is
//! locked here first, if [`lock_streams_with`] said how; the C library's own allocator has the same order. Rust
//! programs, which do without that, can only be caught by it if they use C's streams.
//!
//! Handlers that another library installed before run with all locks of this one held, and must not allocate.
//!
//! Whoever forks around the C library (`_Fork`, `clone`) gets none of this.

use crate::os::futex::Lock;
use crate::shard::{arena, drain, gate};
use crate::{central, depot, front, large, magazine, meta, pages, setup};
use core::ffi::c_void;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Installs the handlers, when a set-up begins; once, though a set-up may be begun again. True the first time.
pub(crate) fn install() -> bool {
    if INSTALLED.swap(true, Ordering::Relaxed) {
        return false;
    }
    // SAFETY: the handlers are functions of this object, which stays loaded. An error means that there is no memory,
    // and then a child of several threads has to do without.
    // <https://man7.org/linux/man-pages/man3/pthread_atfork.3.html>
    unsafe {
        libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child));
    }
    true
}

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// How many arenas' locks `before` took. Another thread may decide how many there are before `in_parent` runs.
static ARENAS: AtomicUsize = AtomicUsize::new(0);
/// How the C library locks its list of open streams, frees it, and makes it free anew in a child. Null if nobody said.
static STREAMS: [AtomicPtr<c_void>; 3] = [const { AtomicPtr::new(null_mut()) }; 3];
const LOCK: usize = 0;
const UNLOCK: usize = 1;
const RESET: usize = 2;

/// Has the list of streams locked around forks by these functions: lock, unlock, reset. The lock is one that its owner
/// may take again.
///
/// # Safety
/// Each is a C function without parameters and result, which stays loaded. No fork is on its way.
pub(crate) unsafe fn lock_streams_with(functions: [*mut c_void; 3]) {
    for (slot, function) in STREAMS.iter().zip(functions) {
        slot.store(function, Ordering::Relaxed);
    }
}

fn streams(which: usize) {
    let function = STREAMS[which].load(Ordering::Relaxed);
    if !function.is_null() {
        // SAFETY: the contract of `lock_streams_with`.
        let function: extern "C" fn() = unsafe { core::mem::transmute(function) };
        function();
    }
}

/// The locks of the upper layers, in their order.
fn locks() -> impl Iterator<Item = &'static Lock> {
    [front::lock(), drain::lock(), gate::lock()]
        .into_iter()
        .chain(arena::locks(ARENAS.load(Ordering::Relaxed)))
        .chain(depot::locks())
        .chain(central::locks())
}

/// The locks of the pools, which are taken with any of the above held.
fn pools() -> [&'static Lock; 2] {
    [magazine::pool().raw(), central::pool().raw()]
}

extern "C" fn before() {
    streams(LOCK);
    // Forks of several threads may be here at once; from the first lock on it is this one's number.
    front::lock().acquire();
    ARENAS.store(arena::usable(), Ordering::Relaxed);
    locks().skip(1).for_each(Lock::acquire);
    pages::lock_for_fork();
    large::lock_for_fork();
    pools().into_iter().for_each(Lock::acquire);
    meta::lock_for_fork();
}

extern "C" fn in_parent() {
    // SAFETY: taken by `before`, in this thread.
    unsafe {
        meta::unlock_after_fork();
    }
    for lock in pools() {
        // SAFETY: as above.
        unsafe { lock.release() };
    }
    // SAFETY: as above.
    unsafe { large::unlock_after_fork() };
    // SAFETY: as above.
    unsafe { pages::unlock_after_fork() };
    // The number of arenas is read before the first of these is released.
    for lock in locks() {
        // SAFETY: as above. The order of release does not matter.
        unsafe { lock.release() };
    }
    streams(UNLOCK);
}

extern "C" fn in_child() {
    setup::in_child();
    // SAFETY: taken by `before`; the child has one thread, so nobody waits.
    unsafe { meta::reset_after_fork() };
    for lock in pools() {
        // SAFETY: as above.
        unsafe { lock.reset() };
    }
    // SAFETY: as above.
    unsafe { large::reset_after_fork() };
    // SAFETY: as above.
    unsafe { pages::reset_after_fork() };
    for lock in locks() {
        // SAFETY: as above.
        unsafe { lock.reset() };
    }
    // With several threads the C library has done that already; with one it locked nothing itself.
    streams(RESET);
}
