//! How many ids there can be.

use crate::abi::KeepErrno;

/// Bytes of the largest set of CPUs that is asked for: 65 536 CPUs, eight times what any kernel is configured for.
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
    let mut set = [0_u8; LARGEST];
    // SAFETY: the buffer is valid for its size.
    let filled = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, LARGEST, set.as_mut_ptr()) };
    usize::try_from(filled).ok().filter(|&bytes| bytes > 0).map(|bytes| bytes * 8)
}
