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
//! glibc's `fork` locks its list of open streams after these handlers, and who writes all streams (`fflush(NULL)`) holds
//! that list while it waits for one stream, whose owner may be waiting for memory. So the list is locked here first, as
//! glibc does it with its own allocator.
//!
//! Handlers that another library installed before run with all locks of this one held, and must not allocate.
//!
//! A process with one thread needs none of this, since nothing in it can be half done by another. Then no lock is taken,
//! which spares it the copies, and a signal handler may fork whatever it interrupted: both processes go on from there,
//! with the locks that the interrupted code holds. With several threads such a handler may wait for its own thread for ever.
//!
//! Whoever forks around the C library (`_Fork`, `clone`) gets none of this.

use crate::os;
use crate::os::futex::Lock;
use crate::shard::{arena, drain, gate, private};
use crate::{background, central, depot, front, large, magazine, meta, pages, setup};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// Whether a fork has found the handlers installed.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Installs the handlers, when a set-up begins. It begins again where a fork cut it off, perhaps after this. Then they have
/// run before that fork, or it was one that runs none; there they may be installed twice, which does no harm here.
pub(crate) fn install() {
    if INSTALLED.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: the handlers are functions of this object, which stays loaded. An error means that there is no memory,
    // and then a child of several threads has to do without.
    // <https://man7.org/linux/man-pages/man3/pthread_atfork.3.html>
    unsafe {
        libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child));
    }
}

/// How many arenas' locks `before` took. Another thread may decide how many there are before `in_parent` runs.
static ARENAS: AtomicUsize = AtomicUsize::new(0);

/// The thread whose fork holds all locks, 0 for none.
static HOLDER: AtomicI32 = AtomicI32::new(0);

/// Calls of [`before`] that took no lock and are not ended: since the process has one thread, and then there may be more
/// than one, if a signal handler forks that interrupted a fork; or since the fork holds them already, if the handlers are
/// installed twice. They end in the opposite order, and each process has its own count.
static LOCKLESS: AtomicUsize = AtomicUsize::new(0);

/// Ends a call of [`before`], if that took no lock.
fn end_lockless() -> bool {
    let calls = LOCKLESS.load(Ordering::Relaxed);
    if calls > 0 {
        LOCKLESS.store(calls - 1, Ordering::Relaxed);
    }
    calls > 0
}

/// glibc's list of open streams, whose lock its owner may take again. The functions have been public since glibc 2.2,
/// for allocators.
#[cfg(all(target_env = "gnu", not(miri)))]
mod streams {
    unsafe extern "C" {
        #[link_name = "_IO_list_lock"]
        pub(super) safe fn lock();
        #[link_name = "_IO_list_unlock"]
        pub(super) safe fn unlock();
        #[link_name = "_IO_list_resetlock"]
        pub(super) safe fn reset();
    }
}

/// Other C libraries see to their streams themselves.
#[cfg(not(all(target_env = "gnu", not(miri))))]
mod streams {
    pub(super) fn lock() {}
    pub(super) fn unlock() {}
    pub(super) fn reset() {}
}

/// The first locks, in their order. As long as they are held there are no more nodes and caches than before.
fn first_locks() -> [&'static Lock; 3] {
    [front::lock(), drain::lock(), gate::lock()]
}

/// The locks that follow, in their order, with those held.
fn locks() -> impl Iterator<Item = &'static Lock> {
    arena::locks(ARENAS.load(Ordering::Relaxed)).chain(depot::locks()).chain(central::locks())
}

/// The locks of the pools, which are taken with any of the above held.
fn pools() -> [&'static Lock; 2] {
    [magazine::pool().raw(), central::pool().raw()]
}

extern "C" fn before() {
    INSTALLED.store(true, Ordering::Relaxed);
    let thread = os::thread_id();
    if HOLDER.load(Ordering::Relaxed) == thread || os::has_one_thread() {
        LOCKLESS.fetch_add(1, Ordering::Relaxed);
        return;
    }
    streams::lock();
    // Forks of several threads may be here at once; from the first lock on it is this one's number.
    first_locks().into_iter().for_each(Lock::acquire);
    HOLDER.store(thread, Ordering::Relaxed);
    ARENAS.store(arena::usable(), Ordering::Relaxed);
    locks().for_each(Lock::acquire);
    pages::lock_for_fork();
    large::lock_for_fork();
    pools().into_iter().for_each(Lock::acquire);
    meta::lock_for_fork();
}

extern "C" fn in_parent() {
    if end_lockless() {
        return;
    }
    HOLDER.store(0, Ordering::Relaxed);
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
    // The number of arenas is read before the first of these is released. The order does not matter but for the first,
    // without which there may be more of the others.
    for lock in locks().chain(first_locks()) {
        // SAFETY: as above.
        unsafe { lock.release() };
    }
    streams::unlock();
}

extern "C" fn in_child() {
    if end_lockless() {
        // If a fork held the locks, other threads are gone, and its own `in_child` comes yet. Else there were none.
        if HOLDER.load(Ordering::Relaxed) == 0 {
            setup::in_child_of_handler();
        } else {
            setup::in_child();
        }
        return;
    }
    HOLDER.store(0, Ordering::Relaxed);
    setup::in_child();
    background::in_child();
    private::in_child();
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
    for lock in locks().chain(first_locks()) {
        // SAFETY: as above.
        unsafe { lock.reset() };
    }
    streams::reset();
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    #[test]
    fn handlers_that_are_installed_twice() {
        // In a child, since other tests of this process fork without these handlers.
        let child = || {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let other = std::thread::spawn(move || stopped.recv());
            (0..2).for_each(|_| install());
            // SAFETY: the grandchild takes a lock of this crate's.
            os::tests::expect_success(unsafe { os::tests::fork(all_is_free) });
            assert!(all_is_free() && !os::has_one_thread());
            drop(stop);
            assert!(other.join().is_ok());
        };
        // SAFETY: the child has a thread of its own; the C library's allocator allows that.
        os::tests::expect_success(unsafe { os::tests::fork(|| std::panic::catch_unwind(child).is_ok()) });
    }

    fn all_is_free() -> bool {
        let (holder, lockless) = (HOLDER.load(Ordering::Relaxed), LOCKLESS.load(Ordering::Relaxed));
        (holder, lockless) == (0, 0) && front::lock().try_lock().is_some()
    }
}
