//! Keeping signal handlers away for a moment, and asking whether a filter may send one for a system call.

use crate::abi::Errno;
use core::mem::MaybeUninit;

/// All signals blocked in the calling thread, until dropped. See
/// [`pthread_sigmask(3)`](https://man7.org/linux/man-pages/man3/pthread_sigmask.3.html).
pub(crate) struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    pub(crate) fn new() -> Result<Self, Errno> {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both sets are written before they are read.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(BlockedSignals(before.assume_init())),
                errno => Err(Errno(errno)),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: a set that was read from the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, core::ptr::null_mut()) };
    }
}

/// Whether a seccomp filter looks at the calling thread's system calls, some of which it may answer with SIGSYS. See
/// [`prctl(2)`](https://man7.org/linux/man-pages/man2/prctl.2.html).
pub(crate) fn filtered() -> bool {
    // SAFETY: a question; -1 where there is no seccomp.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_SECCOMP, 0, 0, 0, 0) > 0 }
}
