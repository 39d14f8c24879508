//! The one kind of lock in the allocator: a futex with three states.
//!
//! Pseudo-code (the third variant in Drepper's "Futexes Are Tricky", with a short spin in front):
//!
//! ```text
//! acquire: CAS free -> held, done;  spin a little for free;  while swap(contended) != free: wait(contended)
//! release: if swap(free) == contended: wake one
//! ```
//!
//! Invariants: the word is `CONTENDED` whenever a thread may sleep on it; a thread that slept takes the lock as
//! `CONTENDED`, because it cannot know whether others sleep too, so at worst one wake-up is superfluous.
//!
//! What it does not do: no poisoning, no fairness, no recursion, no robustness against a holder that dies
//! (nobody dies inside the allocator, except across `fork`, where the child calls [`Lock::reset`]).
//! Source: [futex(2)](https://man7.org/linux/man-pages/man2/futex.2.html).

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use crossbeam_utils::Backoff;

use super::keep_errno;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// Rounds of [`Backoff::spin`] before sleeping: 1 + 2 + … + 32 pauses, some 1 to 3 µs, which is longer than the
/// critical sections above and shorter than a sleep and a wake-up.
const SPINS: u32 = 6;

/// A lock without data; see the module.
pub(crate) struct Lock {
    word: AtomicU32,
}

impl Lock {
    /// A free lock.
    pub(crate) const fn new() -> Self {
        Self { word: AtomicU32::new(FREE) }
    }

    /// Takes the lock until the guard goes.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_> {
        self.acquire();
        Guard { lock: self }
    }

    /// Takes the lock if that needs no waiting.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_>> {
        // Not `then_some`: a guard made in vain would release somebody else's lock.
        self.try_acquire().then(|| Guard { lock: self })
    }

    /// Takes the lock without a guard; [`release`](Self::release) gives it back.
    #[inline]
    pub(crate) fn acquire(&self) {
        if !self.try_acquire() {
            self.acquire_slow();
        }
    }

    #[inline]
    fn try_acquire(&self) -> bool {
        self.word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn acquire_slow(&self) {
        let backoff = Backoff::new();
        for _ in 0..SPINS {
            if self.word.load(Ordering::Relaxed) == FREE && self.try_acquire() {
                return;
            }
            backoff.spin();
        }
        while self.word.swap(CONTENDED, Ordering::Acquire) != FREE {
            self.wait();
        }
    }

    /// Gives the lock back.
    ///
    /// # Safety
    ///
    /// The lock is held, and whoever holds it is done with what it protects.
    #[inline]
    pub(crate) unsafe fn release(&self) {
        if self.word.swap(FREE, Ordering::Release) == CONTENDED {
            self.wake();
        }
    }

    /// Makes the lock free, whatever it was, and wakes nobody.
    ///
    /// # Safety
    ///
    /// Only in the child of `fork`, where no other thread exists, and with the protected data in order.
    pub(crate) unsafe fn reset(&self) {
        self.word.store(FREE, Ordering::Release);
    }

    /// Sleeps while the word is `CONTENDED`. Returning early (a signal, a changed word) is fine: callers loop.
    fn wait(&self) {
        keep_errno(|| {
            // SAFETY: the word outlives the call; no timeout.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.word.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    CONTENDED,
                    core::ptr::null::<libc::timespec>(),
                )
            }
        });
    }

    #[cold]
    fn wake(&self) {
        keep_errno(|| {
            // SAFETY: only the address counts; waking a word that nobody waits on does nothing.
            unsafe {
                libc::syscall(libc::SYS_futex, self.word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1)
            }
        });
    }
}

/// A [`Lock`] that is held as long as this lives.
#[must_use = "the lock is released at once"]
pub(crate) struct Guard<'a> {
    lock: &'a Lock,
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the guard stands for holding the lock, and it ends here.
        unsafe { self.lock.release() };
    }
}

/// A value behind a [`Lock`].
pub(crate) struct Locked<T> {
    lock: Lock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only while the lock is held (or by a caller who promises as much), so sharing
// the lock means at most moving access from thread to thread, which `T: Send` allows.
unsafe impl<T: Send> Sync for Locked<T> {}

impl<T> Locked<T> {
    /// A value whose lock is free.
    pub(crate) const fn new(value: T) -> Self {
        Self { lock: Lock::new(), value: UnsafeCell::new(value) }
    }

    /// Takes the lock and gives access to the value until the guard goes.
    #[inline]
    pub(crate) fn lock(&self) -> LockedGuard<'_, T> {
        LockedGuard { _held: self.lock.lock(), value: &self.value }
    }

    /// As [`lock`](Self::lock), if that needs no waiting.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<LockedGuard<'_, T>> {
        Some(LockedGuard { _held: self.lock.try_lock()?, value: &self.value })
    }

    /// The bare lock, for handlers of `fork`, which take and release in different functions.
    pub(crate) fn raw(&self) -> &Lock {
        &self.lock
    }
}

/// Access to the value of a [`Locked`] whose lock is held as long as this lives.
#[must_use = "the lock is released at once"]
pub(crate) struct LockedGuard<'a, T> {
    _held: Guard<'a>,
    value: &'a UnsafeCell<T>,
}

impl<T> Deref for LockedGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held, so nobody else reaches the value while the guard lives.
        unsafe { &*self.value.get() }
    }
}

impl<T> DerefMut for LockedGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed for as long as the reference.
        unsafe { &mut *self.value.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    #[test]
    fn excludes_and_wakes() {
        static COUNT: Locked<u64> = Locked::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..20_000 {
                        let mut count = COUNT.lock();
                        let before = *count;
                        // Being descheduled while holding the lock makes the others sleep on it.
                        if round % 500 == 0 {
                            std::thread::yield_now();
                        }
                        *count = before + 1;
                    }
                });
            }
        });
        assert_eq!(*COUNT.lock(), 160_000);
        assert_eq!(COUNT.lock.word.load(Ordering::Relaxed), FREE);
    }

    #[test]
    fn try_lock_refuses_a_held_lock() {
        let lock = Locked::new(1);
        let guard = lock.lock();
        assert!(lock.try_lock().is_none());
        assert!(lock.try_lock().is_none(), "a refusal leaves the lock held");
        drop(guard);
        assert_eq!(lock.try_lock().map(|value| *value), Some(1));
    }

    #[test]
    fn raw_release_and_reset() {
        let lock = Locked::new(());
        lock.raw().acquire();
        assert!(lock.try_lock().is_none());
        // SAFETY: held by this thread.
        unsafe { lock.raw().release() };
        lock.raw().acquire();
        // SAFETY: nobody else knows the lock.
        unsafe { lock.raw().reset() };
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn a_sleeper_is_woken() {
        let lock = Lock::new();
        let guard = lock.lock();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| drop(lock.lock()));
            while lock.word.load(Ordering::Relaxed) != CONTENDED {
                std::thread::yield_now();
            }
            drop(guard);
            waiter.join().unwrap();
        });
    }
}
