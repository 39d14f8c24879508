//! How many ids there can be.

use crate::abi::KeepErrno;

/// Bytes of the set of CPUs that is asked for: 8192 CPUs, what kernels are configured for at most. It is on the stack of
/// whichever thread asks, which may have little.
const USUAL: usize = 1024;
/// And if the kernel says that this is not enough.
const LARGEST: usize = 8192;

/// A number above every `cpu_id` and `mm_cid` that this kernel gives to a thread, whatever CPUs are added later; a
/// multiple of 8. Tables with a place for each id are as long. `None` if the kernel does not say.
///
/// It is the length of the kernel's own sets of CPUs, which
/// [sched_getaffinity(2)](https://man7.org/linux/man-pages/man2/sched_getaffinity.2.html) returns. A process that is
/// checkpointed and restored onto a larger machine may see greater ids.
///
/// ```
/// let ids = rseq_sys::possible_ids().unwrap();
/// assert!(ids >= std::thread::available_parallelism().unwrap().get());
/// ```
pub fn possible_ids() -> Option<usize> {
    let _errno = KeepErrno::new();
    set_length::<USUAL>().or_else(largest_set_length).map(|bytes| bytes * 8)
}

#[cold]
#[inline(never)]
fn largest_set_length() -> Option<usize> {
    set_length::<LARGEST>()
}

/// Bytes of the kernel's sets of CPUs, if they are not more than `MOST`.
fn set_length<const MOST: usize>() -> Option<usize> {
    let mut set = [0_u8; MOST];
    // SAFETY: the buffer is valid for its size.
    let filled = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, MOST, set.as_mut_ptr()) };
    usize::try_from(filled).ok().filter(|&bytes| bytes > 0)
}
