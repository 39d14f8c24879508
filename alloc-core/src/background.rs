//! The background thread: an option for processes that fall silent, whose memory would otherwise stay until the next
//! slow path. Off by default.
//!
//! ```text
//!   thread: do what is due;  until = when the next is due, or never
//!           announce `until`;  fence;  due earlier by now? begin again
//!           sleep until then or until woken;  take `until` back
//!   slow path, after all it did: is something due earlier than the announced time? take it back, wake the thread
//! ```
//!
//! The fence is a membarrier, so that the slow path needs none: either the thread sees what was noted as due, or whoever
//! noted it sees the announcement. Without membarrier the thread never sleeps longer than [`BLIND`].
//!
//! It is created by the first slow path that leaves something to be done, where no lock is held: creating a thread
//! allocates. Whoever comes meanwhile, this thread's own allocations included, finds it created. A child of `fork`
//! creates its own. All signals are blocked in it, it uses no block itself and so no shard, and it sleeps while nothing
//! is to be done. If it cannot be created, that is not tried again.

use crate::os::{clock, keep_errno};
use crate::shard::idle;
use crate::{decay, depot};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, compiler_fence};

/// Whether the option is on.
static ON: AtomicBool = AtomicBool::new(false);
/// Whether the thread exists, or was tried and could not be created.
static CREATED: AtomicBool = AtomicBool::new(false);
/// Until when it sleeps, in milliseconds; `u64::MAX` until it is woken, 0 while it does not sleep.
static UNTIL: AtomicU64 = AtomicU64::new(0);
/// What it sleeps on; counts the times it was woken.
static WAKES: AtomicU32 = AtomicU32::new(0);

/// Bytes of its stack: what emptying a magazine needs (4 KiB), many times over, and the static thread-local storage
/// that some C libraries put there.
const STACK: usize = 256 << 10;
/// Milliseconds of sleep at most where there is no fence.
const BLIND: u64 = 1000;
/// The coarse clock is late by up to this many milliseconds.
const LATE: u64 = 4;

/// When the next of all has something to do, in milliseconds; `u64::MAX` if nothing is known to be waiting.
fn next_due() -> u64 {
    // 0, for nothing, becomes the largest number.
    let soonest = |due: u64| due.wrapping_sub(1);
    [decay::next_due(), depot::due(), idle::due()].map(soonest).into_iter().fold(u64::MAX, u64::min).saturating_add(1)
}

/// Switches the option on or off. Off, the thread goes to sleep for good, if it exists.
pub(crate) fn set(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// Called at the end of slow paths, where no lock is held: wakes or creates the thread if there is something to do for
/// which it would come too late.
#[inline]
pub(crate) fn nudge() {
    if ON.load(Ordering::Relaxed) {
        nudge_if_due();
    }
}

#[cold]
#[inline(never)]
fn nudge_if_due() {
    if !CREATED.load(Ordering::Relaxed) {
        if next_due() != u64::MAX && !CREATED.swap(true, Ordering::Relaxed) {
            keep_errno(create);
        }
        return;
    }
    // What is due was noted before; see the module for why the processor may see these in any order.
    compiler_fence(Ordering::SeqCst);
    let until = UNTIL.load(Ordering::Relaxed);
    if until != 0 && next_due() < until && UNTIL.swap(0, Ordering::SeqCst) != 0 {
        WAKES.fetch_add(1, Ordering::Release);
        keep_errno(|| {
            // SAFETY: only the address counts. <https://man7.org/linux/man-pages/man2/futex.2.html>
            unsafe { libc::syscall(libc::SYS_futex, WAKES.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1) }
        });
    }
}

/// In the child of a fork, which has no such thread.
pub(crate) fn in_child() {
    UNTIL.store(0, Ordering::Relaxed);
    CREATED.store(false, Ordering::Relaxed);
}

/// Creates the thread, detached, with all signals blocked from its first instruction on.
/// <https://man7.org/linux/man-pages/man3/pthread_create.3.html>
fn create() {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let mut attributes = MaybeUninit::uninit();
    let mut thread = MaybeUninit::uninit();
    // SAFETY: each object is initialised by the first call that is given it; the thread runs a function of this object,
    // which stays loaded.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        if libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) != 0 {
            return;
        }
        if libc::pthread_attr_init(attributes.as_mut_ptr()) == 0 {
            libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
            // Refused where the C library needs more; then it is the usual size.
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
            libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run, null_mut());
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), null_mut());
    }
}

/// The thread. <https://man7.org/linux/man-pages/man2/PR_SET_NAME.2const.html>
extern "C" fn run(_: *mut c_void) -> *mut c_void {
    // SAFETY: a C string of less than 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"rseq-alloc".as_ptr()) };
    // In a process without vCPU shards nobody else has asked for it.
    let fences = rseq_sys::membarrier::register().is_ok();
    loop {
        if ON.load(Ordering::Relaxed) {
            let now = clock::now_ms();
            idle::tick(now);
            decay::tick_at(now);
            depot::tick(now);
        }
        rest(fences);
    }
}

/// When the thread is to go on.
fn due() -> u64 {
    if ON.load(Ordering::Relaxed) { next_due() } else { u64::MAX }
}

/// Sleeps until something is due.
fn rest(fences: bool) {
    let wakes = WAKES.load(Ordering::Acquire);
    let until = due();
    let now = clock::now_ms();
    if until <= now {
        // What is due again at once waits for the clock: others may have work under way.
        return sleep(wakes, Some(1));
    }
    UNTIL.store(until, Ordering::SeqCst);
    let fenced = fences && rseq_sys::membarrier::fence().is_ok();
    if due() >= until {
        let timeout = if until == u64::MAX { None } else { Some(until - now + LATE) };
        sleep(wakes, if fenced { timeout } else { Some(timeout.unwrap_or(BLIND).min(BLIND)) });
    }
    UNTIL.store(0, Ordering::SeqCst);
}

/// Sleeps for so many milliseconds or until woken, unless the thread was woken since `wakes`.
fn sleep(wakes: u32, ms: Option<u64>) {
    let timeout = ms.map(|ms| libc::timespec {
        tv_sec: (ms / 1000) as libc::time_t,
        tv_nsec: ((ms % 1000) * 1_000_000) as libc::c_long,
    });
    let timeout = timeout.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: the word lives for ever and the timeout as long as the call.
    unsafe {
        libc::syscall(libc::SYS_futex, WAKES.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, wakes, timeout)
    };
}
