//! The operating system as the allocator sees it: mappings, huge pages, one futex lock, one clock, its text files, and
//! what is near to which CPU.
//!
//! Nothing here knows what the memory is for. Three rules hold for every function below this module:
//!
//! - `errno` is left as it was. An allocator that changes it breaks programs which look at `errno` after a
//!   call that happened to allocate, so each system call that can fail runs inside [`keep_errno`].
//! - Nothing allocates, panics or formats, and nothing needs to be set up first.
//! - A failed call changes nothing; the caller is told and can go on.
//!
//! What is not done here: no page size is assumed (it is read at run time), and no address hint is ever given
//! to the kernel, so that no address above [`ADDRESS_BITS`] bits can come back.

use core::mem::MaybeUninit;

pub(crate) mod clock;
pub(crate) mod file;
pub(crate) mod futex;
pub(crate) mod huge;
#[cfg(not(miri))]
pub(crate) mod mapping;
#[cfg(miri)]
#[path = "mapping_miri.rs"]
pub(crate) mod mapping;
pub(crate) mod topology;
pub(crate) mod zero;

// Addresses, sizes and counters are 64 bits wide everywhere above.
const _: () = assert!(usize::BITS == 64);

/// Width of the user addresses that the kernel hands out to a process which passes no hint: 48 bits on arm64,
/// 47 on x86-64, also where five-level page tables or 52-bit addresses are switched on
/// ([x86](https://docs.kernel.org/arch/x86/x86_64/5level-paging.html),
/// [arm64](https://docs.kernel.org/arch/arm64/memory.html)).
pub(crate) const ADDRESS_BITS: usize = if cfg!(target_arch = "aarch64") { 48 } else { 47 };

/// Runs `call` and puts `errno` back to what it was before.
///
/// Source: [errno(3)](https://man7.org/linux/man-pages/man3/errno.3.html).
pub(crate) fn keep_errno<R>(call: impl FnOnce() -> R) -> R {
    // SAFETY: the function has no preconditions; it returns the address of the calling thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: errno lives as long as its thread and only this thread (its signal handlers included) uses it.
    let before = unsafe { errno.read() };
    let result = call();
    // SAFETY: as above.
    unsafe { errno.write(before) };
    result
}

/// The number of the calling thread. <https://man7.org/linux/man-pages/man2/gettid.2.html>
pub(crate) fn thread_id() -> i32 {
    // SAFETY: always sound.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// Whether this process has no other thread: the directory with a directory for each of them has three links then. False
/// if that cannot be found out.
///
/// Sources: [proc_pid_task(5)](https://man7.org/linux/man-pages/man5/proc_pid_task.5.html),
/// [stat(2)](https://man7.org/linux/man-pages/man2/stat.2.html).
pub(crate) fn has_one_thread() -> bool {
    let mut tasks = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a C string, and room for the answer.
    let known = keep_errno(|| unsafe { libc::stat(c"/proc/self/task".as_ptr(), tasks.as_mut_ptr()) }) == 0;
    // SAFETY: written by the call that succeeded.
    known && unsafe { tasks.assume_init().st_nlink } == 3
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    extern crate std;

    /// Runs `body` in a child, which ends with it. Returns the child's number, for [`expect_success`].
    ///
    /// # Safety
    ///
    /// `body` calls nothing but this crate, whose locks are in order there, and system calls.
    pub(crate) unsafe fn fork(body: impl FnOnce() -> bool) -> libc::pid_t {
        // SAFETY: the contract of this function.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = if body() { 0 } else { 1 };
            // SAFETY: ends the child without running anything of the test harness.
            unsafe { libc::_exit(code) };
        }
        child
    }

    /// Waits for the end of a child for whose body that was true.
    pub(crate) fn expect_success(child: libc::pid_t) {
        let mut status = 0;
        // SAFETY: room for the status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child failed");
    }

    #[test]
    fn two_threads_are_not_one() {
        // The test harness has a thread of its own.
        std::thread::spawn(|| assert!(!has_one_thread())).join().unwrap();
        // SAFETY: one system call.
        expect_success(unsafe { fork(has_one_thread) });
    }

    #[test]
    fn errno_survives_a_failing_call() {
        // SAFETY: errno of this thread.
        unsafe { libc::__errno_location().write(77) };
        let failed = keep_errno(|| {
            // SAFETY: closing a descriptor that cannot exist only fails.
            unsafe { libc::close(-1) }
        });
        assert_eq!(failed, -1);
        // SAFETY: errno of this thread.
        assert_eq!(unsafe { libc::__errno_location().read() }, 77);
    }
}
