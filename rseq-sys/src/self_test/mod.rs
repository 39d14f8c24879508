//! Does this kernel keep the promise that everything here stands on: that a section which was preempted is aborted?
//!
//! arm64 kernels from Linux 6.19 to 7.0.13 do not, unless the thread resumes on another CPU or gets a signal. Two threads
//! can then pop the same pointer, one after the other, on the same vCPU. Nothing in the ABI tells such a kernel from a
//! good one, and a version string does not say what a vendor has mended or brought in, so it is tried:
//!
//! ```text
//!   the caller, pinned to CPU c                a helper thread, on CPU c
//!   sleep until stage == IN_SECTION            register an area of its own; short time slices; arm
//!                                              start:  stage = IN_SECTION
//!                                                      while go == 0 {}                 (bounded)
//!   -- wakes up: the helper is preempted --
//!   go = 1; sleep until the helper has ended
//!                                              aborted:  outcome = ABORTED              (a kernel that keeps its word)
//!                                              resumed:  outcome = COMMITTED, the last store of the section
//! ```
//!
//! The caller can see the stage only while it runs on CPU `c`, hence the helper does not, hence it was switched out
//! inside of the section and resumes on the same CPU: no luck is needed, and neither answer can be wrong. The helper is
//! a bare thread that libc does not know: it has no thread-local storage, uses no stack, allocates nothing, runs with all
//! signals blocked, and is written in assembly from its first instruction to its last.
//!
//! It costs a few context switches, about 0.2 ms on an idle CPU. [`mode()`](crate::mode()) does it once per process
//! where kernels are known that fail it, which is on aarch64 alone; elsewhere it is here for whoever wants to know.
//!
//! Not tried: migrations, signals and fences. No kernel is known that forgets those alone.

use crate::abi::{Errno, KeepErrno, ORIG_SIZE, Rseq};
use crate::signals::BlockedSignals;
use core::ffi::{c_int, c_long, c_void};
use core::mem::{MaybeUninit, offset_of, size_of};
use core::ptr::{NonNull, null, null_mut};
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

#[cfg(all(target_arch = "aarch64", target_endian = "little", not(miri)))]
#[path = "aarch64.rs"]
mod imp;
#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64", not(miri)),
    all(target_arch = "aarch64", target_endian = "little", not(miri))
)))]
#[path = "portable.rs"]
mod imp;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
#[path = "x86_64.rs"]
mod imp;

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A preempted section was aborted.
    Aborts,
    /// A preempted section went on. No sequence is safe on this kernel.
    DoesNotAbort,
    /// It could not be tried: no thread could be started or pinned, rseq was refused, or (ETIMEDOUT) the CPU was too busy
    /// to run one within a quarter of a second.
    Unknown(Errno),
}

/// Tries whether a section is aborted by a preemption that resumes on the same CPU.
///
/// Blocks the caller's signals and pins it to one CPU meanwhile, both for well below a millisecond as a rule. Leaves
/// `errno` alone, allocates nothing.
///
/// ```
/// use rseq_sys::self_test::{Verdict, preemption};
///
/// // Anything but a broken kernel, or one without rseq.
/// assert_ne!(preemption(), Verdict::DoesNotAbort);
/// ```
pub fn preemption() -> Verdict {
    let _errno = KeepErrno::new();
    match try_preemption() {
        Ok(ABORTED) => Verdict::Aborts,
        Ok(COMMITTED) => Verdict::DoesNotAbort,
        Ok(refused) => Verdict::Unknown(Errno(-refused)),
        Err(errno) => Verdict::Unknown(errno),
    }
}

/// Whether sequences may be used here. Where the trial cannot be made, kernels from before the first one that failed it
/// get the benefit of the doubt.
pub(crate) fn trusted() -> bool {
    match preemption() {
        Verdict::Aborts => true,
        Verdict::DoesNotAbort => false,
        Verdict::Unknown(_) => release().is_some_and(|release| release < FIRST_BROKEN),
    }
}

/// Linux 6.19.
const FIRST_BROKEN: (u32, u32) = (6, 19);

/// [`Trial::stage`] while the helper is inside of its section.
const IN_SECTION: u32 = 1;
/// [`Trial::outcome`] of a section that was aborted.
const ABORTED: i32 = 1;
/// [`Trial::outcome`] of a section that went on, stored by its commit. Negative: the errno that refused the helper.
const COMMITTED: i32 = 2;

/// What the two threads share, and the helper's stack, which nothing is ever put on. The assembly knows the offsets.
#[repr(C, align(64))]
struct Trial {
    area: Rseq,
    stage: AtomicU32,
    go: AtomicU32,
    outcome: AtomicI32,
    /// Cleared by the kernel when the helper has ended (CLONE_CHILD_CLEARTID).
    alive: AtomicU32,
    /// How the helper is to be scheduled.
    attributes: SchedAttr,
    stack: [u64; 64],
}

const _: () = {
    assert!(offset_of!(Trial, area) == 0);
    assert!(offset_of!(Trial, stage) == 64);
    assert!(offset_of!(Trial, go) == 68);
    assert!(offset_of!(Trial, outcome) == 72);
    assert!(offset_of!(Trial, attributes) == 80);
};

/// Arguments of [`sched_setattr(2)`](https://man7.org/linux/man-pages/man2/sched_setattr.2.html).
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Time slice of the helper, the shortest there is, so that the caller preempts it as soon as it wakes up. Before Linux
/// 6.12 this is ignored, and the caller may have to wait for the end of an ordinary slice.
const SLICE_NANOS: u64 = 100_000;

impl SchedAttr {
    /// The caller's own, in short slices. An ordinary policy if the caller's is a real-time one: it would not preempt
    /// its equal.
    fn of_helper() -> Result<Self, Errno> {
        let mut attributes = MaybeUninit::<Self>::zeroed();
        let size = size_of::<Self>() as u32;
        // SAFETY: the kernel writes at most `size` bytes, and zeroes are valid.
        let mut attributes = unsafe {
            match libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) {
                0 => attributes.assume_init(),
                _ => return Err(last_errno()),
            }
        };
        if ![libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].contains(&(attributes.policy as i32)) {
            attributes = SchedAttr { policy: libc::SCHED_OTHER as u32, nice: 0, priority: 0, ..attributes };
        }
        Ok(SchedAttr { size, flags: 0, runtime: SLICE_NANOS, deadline: 0, period: 0, ..attributes })
    }
}

/// How long the helper may take to get into its section, and to end.
const PATIENCE_NANOS: c_long = 250_000_000;
/// Between two looks, at first and at last: long enough for the helper to run, short enough not to be felt.
const NAP_NANOS: (c_long, c_long) = (150_000, 1_000_000);

fn try_preemption() -> Result<i32, Errno> {
    let _blocked = BlockedSignals::new()?;
    let pinned = Pinned::here()?;
    let trial = Shared::new(SchedAttr::of_helper()?)?;
    // SAFETY: the block is zeroed, nobody else has it, and it is given back only once the helper has ended.
    unsafe { imp::start(trial.0.as_ptr(), ORIG_SIZE) }?;
    let mut in_section = false;
    wait(|| {
        // Both are on the CPU they were pinned to, unless that one was taken offline.
        let together = trial.area.cpu_id.load(Ordering::Relaxed) == pinned.cpu && current_cpu() == Ok(pinned.cpu);
        in_section = trial.stage.load(Ordering::Acquire) == IN_SECTION && together;
        // Looked at last: if there is no outcome now, the section has not ended, and the helper is not running.
        let ended = trial.outcome.load(Ordering::Acquire) != 0;
        in_section &= !ended;
        in_section || ended
    });
    trial.go.store(1, Ordering::Release);
    let ended = wait(|| trial.alive.load(Ordering::Acquire) == 0);
    if !ended {
        // It still needs its memory, which is lost then.
        core::mem::forget(trial);
        return Err(Errno(libc::ETIMEDOUT));
    }
    match trial.outcome.load(Ordering::Relaxed) {
        // Too late or moved: the helper may never have been preempted.
        COMMITTED if !in_section => Err(Errno(libc::ETIMEDOUT)),
        outcome => Ok(outcome),
    }
}

/// Sleeps until `done`; false if that takes too long.
fn wait(mut done: impl FnMut() -> bool) -> bool {
    let (mut nap, mut waited) = (NAP_NANOS.0, 0);
    while !done() {
        if waited >= PATIENCE_NANOS {
            return false;
        }
        let time = libc::timespec { tv_sec: 0, tv_nsec: nap };
        // SAFETY: a valid time; the rest is not asked for. Signals are blocked, so nothing cuts it short.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, null_mut::<libc::timespec>()) };
        waited += nap;
        nap = NAP_NANOS.1.min(nap * 2);
    }
    true
}

/// A block of anonymous memory.
struct Shared(NonNull<Trial>);

impl Shared {
    fn new(attributes: SchedAttr) -> Result<Self, Errno> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever the kernel likes.
        let address = unsafe { libc::mmap(null_mut(), size_of::<Trial>(), protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let trial = NonNull::new(address.cast::<Trial>()).ok_or(Errno(libc::ENOMEM))?;
        // SAFETY: new memory, in which zeroes are valid for all other fields.
        unsafe {
            (&raw mut (*trial.as_ptr()).attributes).write(attributes);
            (*trial.as_ptr()).alive.store(1, Ordering::Relaxed);
        }
        Ok(Shared(trial))
    }
}

impl core::ops::Deref for Shared {
    type Target = Trial;

    fn deref(&self) -> &Trial {
        // SAFETY: mapped, aligned to a page, zeroes are valid for every field, and whatever both threads use is atomic.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; the helper was not started or has ended.
        unsafe { libc::munmap(self.0.as_ptr().cast::<c_void>(), size_of::<Trial>()) };
    }
}

/// Bits for as many CPUs as Linux can be built for (8192).
type CpuSet = [u64; 128];

/// The calling thread on one CPU, until dropped.
struct Pinned {
    cpu: u32,
    before: CpuSet,
    /// Bytes of `before` that the kernel filled.
    len: usize,
}

impl Pinned {
    fn here() -> Result<Self, Errno> {
        let mut before: CpuSet = [0; 128];
        // SAFETY: the kernel writes at most as many bytes as it is told. See sched_setaffinity(2).
        let len = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of::<CpuSet>(), before.as_mut_ptr()) };
        let len = usize::try_from(len).map_err(|_| last_errno())?;
        let cpu = current_cpu()?;
        let mut only: CpuSet = [0; 128];
        *only.get_mut(cpu as usize / 64).ok_or(Errno(libc::EINVAL))? = 1 << (cpu % 64);
        set_affinity(&only, len)?;
        Ok(Pinned { cpu, before, len })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The set was in force a moment ago. If it is refused now, all its CPUs have gone, and the kernel has chosen.
        let _ = set_affinity(&self.before, self.len);
    }
}

fn set_affinity(set: &CpuSet, len: usize) -> Result<(), Errno> {
    // SAFETY: reads `len` bytes, which the set has.
    match unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, len, set.as_ptr()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn current_cpu() -> Result<u32, Errno> {
    let mut cpu = 0_u32;
    // SAFETY: writes one word; the node and the unused third argument are not asked for. See getcpu(2).
    match unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, null_mut::<u32>(), null::<c_void>()) } {
        0 => Ok(cpu),
        _ => Err(last_errno()),
    }
}

/// The kernel's version, such as (6, 19). See [`uname(2)`](https://man7.org/linux/man-pages/man2/uname.2.html).
fn release() -> Option<(u32, u32)> {
    let mut name = MaybeUninit::<libc::utsname>::uninit();
    // SAFETY: written by the call; read if it succeeds.
    let name = unsafe {
        if libc::uname(name.as_mut_ptr()) != 0 {
            return None;
        }
        name.assume_init()
    };
    version(name.release.iter().map(|byte| *byte as u8))
}

/// The first two numbers of a release such as `6.19.3-cloud-arm64`.
fn version(text: impl Iterator<Item = u8>) -> Option<(u32, u32)> {
    let mut numbers = [None::<u32>; 2];
    let mut current = 0;
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                let before = numbers[current].unwrap_or(0);
                numbers[current] = Some(before.checked_mul(10)?.checked_add(u32::from(byte - b'0'))?);
            }
            b'.' if current == 0 => current = 1,
            _ => break,
        }
    }
    Some((numbers[0]?, numbers[1]?))
}

fn last_errno() -> Errno {
    // SAFETY: libc's pointer to the calling thread's errno is always valid.
    Errno(unsafe { *libc::__errno_location() })
}

/// The helper is a thread of this process in all that matters, so that it shares its concurrency ids and can be started
/// wherever a thread can. See [`clone(2)`](https://man7.org/linux/man-pages/man2/clone.2.html).
const CLONE_FLAGS: c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_CHILD_CLEARTID;

/// Turns of the helper's loop before it gives up, well above [`PATIENCE_NANOS`] at a few cycles each: it does not spin
/// for ever if the caller is never woken.
const TURNS: u32 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_kernels() {
        for (text, expected) in [
            ("6.19.3-cloud-arm64", Some((6, 19))),
            ("6.1.0-56-cloud-amd64", Some((6, 1))),
            ("6.12.117+deb12", Some((6, 12))),
            ("7.0", Some((7, 0))),
            ("7.0-rc1", Some((7, 0))),
            ("10.200.1", Some((10, 200))),
            ("7", None),
            ("", None),
            ("linux", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(version(text.bytes()), expected, "{text}");
        }
        assert!(FIRST_BROKEN > (6, 18) && FIRST_BROKEN < (7, 0));
    }

    #[cfg_attr(miri, ignore = "no system calls")]
    #[test]
    fn this_kernel_has_a_release() {
        assert!(release().is_some_and(|release| release > (4, 17)), "the first one with rseq was 4.18");
    }
}
