//! CPUs: which are allowed, how many ids there can be, and moving a thread to one.

use std::mem::{size_of, zeroed};

/// The CPUs that this process may use.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a plain bit set, written by the call.
    let set = unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set), 0);
        set
    };
    // SAFETY: the numbers are below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// An upper bound for `cpu_id` and `mm_cid`, plus one.
pub(crate) fn ids() -> usize {
    rseq_sys::possible_ids().expect("the kernel knows its CPUs")
}

/// Moves the thread `tid` to one CPU; 0 is the calling one. False if there is no such thread.
pub(crate) fn pin(tid: libc::pid_t, cpu: usize) -> bool {
    // SAFETY: a plain bit set that outlives the call.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &set) == 0
    }
}
