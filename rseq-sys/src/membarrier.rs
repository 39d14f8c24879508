//! Fences that reach into sequences of other threads.
//!
//! After [`fence`] returns, every sequence that was under way in another thread of the process has either committed
//! or been aborted, and what the caller wrote before is seen by whatever runs after. A thread that was not running
//! at that moment is aborted when it resumes, so it counts too. The calling thread is left alone.
//!
//! The process has to be registered for it first. That costs next to nothing while it has one thread and some
//! milliseconds once it has more, so do it at set-up by [`register`]; the fences do it otherwise. A child of `fork`
//! inherits the registration, `execve` drops it.
//!
//! Nothing is assumed about the kernel: Linux has these commands since 5.10, but a filter may take them away, so any
//! errno is a value. A fence is a broadcast to all CPUs that run the process and takes microseconds; batch the work.
//!
//! Sources: [`membarrier(2)`](https://man7.org/linux/man-pages/man2/membarrier.2.html) and
//! `kernel/sched/membarrier.c` (the man page does not describe the RSEQ commands yet).

use crate::abi::{
    Errno, MEMBARRIER_CMD_FLAG_CPU, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_CMD_QUERY,
    MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, sys_membarrier,
};
use core::sync::atomic::{AtomicI32, Ordering};

/// [`UNKNOWN`], [`REGISTERED`], or the errno that says why these commands cannot be had.
///
/// Writers store what the kernel answered, which is the same for all of them; a race costs a second question.
static STATE: AtomicI32 = AtomicI32::new(UNKNOWN);
const UNKNOWN: i32 = 0;
const REGISTERED: i32 = -1;

/// Which commands the kernel has, as a set of bits (`MEMBARRIER_CMD_QUERY`).
pub(crate) fn query() -> Result<u32, Errno> {
    // SAFETY: a question without effect.
    unsafe { sys_membarrier(MEMBARRIER_CMD_QUERY, 0, 0) }.map(|bits| bits as u32)
}

/// Registers the process for [`fence`] and [`fence_cpu`]. Can be repeated at the cost of one load.
///
/// # Errors
///
/// What the kernel answers, ENOSYS or EINVAL if it lacks the commands. That is remembered, except for ENOMEM.
pub fn register() -> Result<(), Errno> {
    match STATE.load(Ordering::Relaxed) {
        REGISTERED => Ok(()),
        UNKNOWN => register_first_time(),
        errno => Err(Errno(errno)),
    }
}

#[cold]
fn register_first_time() -> Result<(), Errno> {
    let needed = MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ;
    let answer = match query() {
        Ok(bits) if bits & needed as u32 == needed as u32 => {
            // SAFETY: lasts as long as the process; that is what the caller asks for.
            unsafe { sys_membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) }.map(drop)
        }
        Ok(_) => Err(Errno(libc::EINVAL)),
        Err(errno) => Err(errno),
    };
    match answer {
        Ok(()) => STATE.store(REGISTERED, Ordering::Relaxed),
        Err(Errno(libc::ENOMEM)) => {}
        Err(Errno(errno)) => STATE.store(errno, Ordering::Relaxed),
    }
    answer
}

/// Whether [`fence`] can be expected to work: the kernel has the commands, and registering has not failed before.
/// Registers nothing.
pub fn available() -> bool {
    match STATE.load(Ordering::Relaxed) {
        REGISTERED => true,
        UNKNOWN => query().is_ok_and(|bits| bits & MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ as u32 != 0),
        _ => false,
    }
}

/// Makes every sequence that is under way in another thread of the process abort, unless it has committed.
///
/// ```
/// use rseq_sys::membarrier;
///
/// // Publish something that sequences check, then:
/// match membarrier::fence() {
///     Ok(()) => { /* no sequence is left that has not seen it */ }
///     Err(errno) => eprintln!("no fence: {errno}"),
/// }
/// ```
///
/// # Errors
///
/// As for [`register`]; ENOMEM from the fence itself on a machine with many CPUs. Nothing may be concluded then.
pub fn fence() -> Result<(), Errno> {
    expedited(0, 0)
}

/// As [`fence`], but only for the thread that runs on CPU `cpu` at this moment, if it belongs to the process. For data
/// indexed by `cpu_id`; nothing aims at an `mm_cid`.
///
/// A CPU that is offline or does not exist runs nothing, which is success.
///
/// # Errors
///
/// As for [`fence`]; EINVAL if `cpu` is beyond `i32::MAX`.
pub fn fence_cpu(cpu: u32) -> Result<(), Errno> {
    let cpu = i32::try_from(cpu).map_err(|_| Errno(libc::EINVAL))?;
    expedited(MEMBARRIER_CMD_FLAG_CPU, cpu)
}

fn expedited(flags: u32, cpu: i32) -> Result<(), Errno> {
    register()?;
    // SAFETY: the command only orders and aborts, as its name says.
    let command = || unsafe { sys_membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, flags, cpu) }.map(drop);
    match command() {
        // Registered once, but no longer: the process was restored from a checkpoint that did not keep it.
        Err(Errno(libc::EPERM)) => {
            register_first_time()?;
            command()
        }
        answer => answer,
    }
}
