//! Does this kernel keep the promise that everything here stands on: that a section which was preempted is aborted?
//!
//! arm64 kernels from Linux 6.19 to 7.0.13 do not, at least where the thread resumes on the same CPU. Two threads can
//! then pop the same pointer, one after the other, on the same vCPU. Nothing in the ABI tells such a kernel from a good
//! one, and a version string does not say what a vendor has mended or brought in, so it is tried:
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
//! The caller sees the stage while it runs on CPU `c` itself, hence the helper does not, hence it was switched out inside
//! of the section and resumes on the same CPU. The helper is a bare thread that libc does not know: it has no
//! thread-local storage, uses no stack, allocates nothing, runs with signals blocked, and is written in assembly from its
//! first instruction to its last.
//!
//! It costs a few context switches, 0.2 to 0.5 ms on an idle machine; on a busy one it waits for its turns, up to
//! [`PATIENCE_NANOS`] and one late wake-up. [`mode()`](crate::mode()) does it once per process where kernels are known
//! that fail it, which is on aarch64 alone, and not under a seccomp filter, which might kill for what it does; elsewhere
//! it is here for whoever wants to know.
//!
//! Not tried: migrations, signals and fences.

use crate::abi::{Errno, KeepErrno, ORIG_SIZE, Rseq};
use crate::mode::Unavailable;
use crate::signals::{BlockedSignals, filtered};
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
    /// It could not be tried: no thread could be started or pinned, rseq was refused, the CPU was too busy to run one
    /// within a quarter of a second (ETIMEDOUT), or somebody moved the threads (EAGAIN).
    Unknown(Errno),
}

/// Tries whether a section is aborted by a preemption that resumes on the same CPU, in a thread that is registered with
/// `registered_len` bytes (32 if that is not between 32 and 64: kernels have a path of their own for longer areas).
///
/// Blocks the caller's signals and pins it to one CPU meanwhile. Leaves `errno` alone, allocates nothing, waits for at most
/// half a second and what the scheduler is late.
///
/// ```
/// use rseq_sys::self_test::{Verdict, preemption};
///
/// // Anything but a broken kernel, or one without rseq.
/// assert_ne!(preemption(32), Verdict::DoesNotAbort);
/// ```
pub fn preemption(registered_len: u32) -> Verdict {
    let _errno = KeepErrno::new();
    let len = if (ORIG_SIZE..=size_of::<Rseq>() as u32).contains(&registered_len) { registered_len } else { ORIG_SIZE };
    match try_preemption(len) {
        Ok(ABORTED) => Verdict::Aborts,
        Ok(COMMITTED) => Verdict::DoesNotAbort,
        Ok(refused) => Verdict::Unknown(Errno(-refused)),
        Err(errno) => Verdict::Unknown(errno),
    }
}

/// Whether sequences may be used with such a registration. Where the trial cannot be made, and under a seccomp filter,
/// kernels whose releases were never broken get the benefit of the doubt.
///
/// # Errors
/// Why not.
pub(crate) fn trusted(registered_len: u32) -> Result<(), Unavailable> {
    let doubtful = release().is_none_or(|release| BROKEN.contains(&release));
    let verdict = if filtered() { Verdict::Unknown(Errno(libc::EACCES)) } else { preemption(registered_len) };
    match verdict {
        Verdict::Aborts => Ok(()),
        Verdict::DoesNotAbort => Err(Unavailable::NoAborts),
        Verdict::Unknown(errno) if doubtful => Err(Unavailable::Untested(errno)),
        Verdict::Unknown(_) => Ok(()),
    }
}

/// Linux 6.19 up to the last 7.0, of which those before 7.0.14 are broken.
const BROKEN: core::ops::Range<(u32, u32)> = (6, 19)..(7, 1);

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
    /// Whether it must not run otherwise.
    strict: u32,
    stack: [u64; 64],
}

const _: () = {
    assert!(offset_of!(Trial, area) == 0);
    assert!(offset_of!(Trial, stage) == 64);
    assert!(offset_of!(Trial, go) == 68);
    assert!(offset_of!(Trial, outcome) == 72);
    assert!(offset_of!(Trial, attributes) == 80);
    assert!(offset_of!(Trial, strict) == 128);
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
    ///
    /// The second value says whether the helper must not run as what the caller is.
    fn of_helper() -> Result<(Self, bool), Errno> {
        let mut attributes = MaybeUninit::<Self>::zeroed();
        let size = size_of::<Self>() as u32;
        // SAFETY: the kernel writes at most `size` bytes, and zeroes are valid.
        let mut attributes = unsafe {
            match libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) {
                0 => attributes.assume_init(),
                _ => return Err(Errno::last()),
            }
        };
        let strict = !attributes.is_fair();
        if strict {
            // SAFETY: a question; the kernel answers 20 less the nice value, which is kept for it needs no privilege.
            let nice = 20 - unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) } as i32;
            attributes = SchedAttr { policy: libc::SCHED_OTHER as u32, nice, priority: 0, ..attributes };
        }
        Ok((SchedAttr { size, flags: 0, runtime: SLICE_NANOS, deadline: 0, period: 0, ..attributes }, strict))
    }

    /// Whether such a thread is preempted by its equals.
    fn is_fair(&self) -> bool {
        [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].contains(&(self.policy as i32))
    }
}

/// How long the helper may take to get into its section, and again to end.
pub const PATIENCE_NANOS: u64 = 250_000_000;
/// Between two looks, at first and at last: long enough for the helper to run, short enough not to be felt.
const NAP_NANOS: (c_long, c_long) = (150_000, 1_000_000);

fn try_preemption(len: u32) -> Result<i32, Errno> {
    let _blocked = BlockedSignals::new()?;
    let pinned = Pinned::here()?;
    let trial = Shared::new(SchedAttr::of_helper()?)?;
    // SAFETY: the block is set up, nobody else has it, and it is given back only once the helper has ended.
    let helper = unsafe { imp::start(trial.0.as_ptr(), len) }?;
    let in_its_place = || trial.area.cpu_id.load(Ordering::Relaxed) == pinned.cpu;
    let mut in_section = false;
    wait(|| {
        // In this order: once the helper was in its section, is it on the CPU that this thread runs on now?
        in_section = trial.stage.load(Ordering::Acquire) == IN_SECTION
            && in_its_place()
            && current_cpu() == Ok(pinned.cpu)
            && trial.outcome.load(Ordering::Acquire) == 0;
        in_section || trial.outcome.load(Ordering::Acquire) != 0
    });
    trial.go.store(1, Ordering::Release);
    // SAFETY: signal 0 asks whether the thread exists. Only when it does not, this process has one thread again.
    let gone = || unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), helper, 0) } != 0;
    if !wait(|| trial.alive.load(Ordering::Acquire) == 0 && gone()) {
        // It still needs its memory, which is lost then.
        core::mem::forget(trial);
        return Err(Errno(libc::ETIMEDOUT));
    }
    match trial.outcome.load(Ordering::Relaxed) {
        // Too late, or moved: the helper may never have been preempted.
        COMMITTED if !in_section => Err(Errno(libc::ETIMEDOUT)),
        // Moved: the kernel had another reason to abort.
        ABORTED if !in_its_place() => Err(Errno(libc::EAGAIN)),
        outcome => Ok(outcome),
    }
}

/// Nanoseconds of the monotonic clock.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one time; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Sleeps until `done`; false if that takes too long.
fn wait(mut done: impl FnMut() -> bool) -> bool {
    let (mut nap, deadline) = (NAP_NANOS.0, now() + PATIENCE_NANOS);
    while !done() {
        if now() >= deadline {
            return false;
        }
        let time = libc::timespec { tv_sec: 0, tv_nsec: nap };
        // SAFETY: a valid time; the rest is not asked for.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, null_mut::<libc::timespec>()) };
        nap = NAP_NANOS.1.min(nap * 2);
    }
    true
}

/// A block of anonymous memory.
struct Shared(NonNull<Trial>);

impl Shared {
    /// By system calls, since a wrapper around libc's functions may allocate.
    fn new((attributes, strict): (SchedAttr, bool)) -> Result<Self, Errno> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let (anywhere, len) = (null_mut::<c_void>(), size_of::<Trial>());
        // SAFETY: new memory, wherever the kernel likes.
        let address = unsafe { libc::syscall(libc::SYS_mmap, anywhere, len, protection, flags, -1, 0) };
        if address == -1 {
            return Err(Errno::last());
        }
        let trial = core::ptr::with_exposed_provenance_mut::<Trial>(address as usize);
        let trial = NonNull::new(trial).ok_or(Errno(libc::ENOMEM))?;
        // SAFETY: new memory, in which zeroes are valid for all other fields.
        unsafe {
            (&raw mut (*trial.as_ptr()).attributes).write(attributes);
            (&raw mut (*trial.as_ptr()).strict).write(strict.into());
            (*trial.as_ptr()).alive.store(1, Ordering::Relaxed);
            // Not that of a CPU, for a filter may pretend that the area was registered.
            (*trial.as_ptr()).area.cpu_id.store(u32::MAX, Ordering::Relaxed);
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
        unsafe { libc::syscall(libc::SYS_munmap, self.0.as_ptr(), size_of::<Trial>()) };
    }
}

/// Bits for as many CPUs as Linux can be built for (8192).
type CpuSet = [u64; 128];

/// The calling thread on one CPU, until dropped.
struct Pinned {
    cpu: u32,
    before: CpuSet,
    only: CpuSet,
    /// Bytes of a set that the kernel knows.
    len: usize,
}

impl Pinned {
    fn here() -> Result<Self, Errno> {
        let (mut before, mut only): (CpuSet, CpuSet) = ([0; 128], [0; 128]);
        let len = get_affinity(&mut before)?;
        let cpu = current_cpu()?;
        *only.get_mut(cpu as usize / 64).ok_or(Errno(libc::EINVAL))? = 1 << (cpu % 64);
        set_affinity(&only, len)?;
        Ok(Pinned { cpu, before, only, len })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut now: CpuSet = [0; 128];
        // Somebody else has chosen meanwhile, and that stands.
        if get_affinity(&mut now) != Ok(self.len) || now != self.only {
            return;
        }
        // What was read does not have the CPUs that are offline. If a thread that may go everywhere reads the same, it
        // was not confined, and it may use what comes online later.
        let everywhere = set_affinity(&[u64::MAX; 128], self.len).is_ok();
        now = [0; 128];
        if !everywhere || get_affinity(&mut now) != Ok(self.len) || now != self.before {
            // The set was in force a moment ago. If it is refused now, its CPUs have gone, and the kernel has chosen.
            let _ = set_affinity(&self.before, self.len);
        }
    }
}

/// Fills `set` and returns how many bytes of it the kernel knows. See
/// [`sched_setaffinity(2)`](https://man7.org/linux/man-pages/man2/sched_setaffinity.2.html).
fn get_affinity(set: &mut CpuSet) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most as many bytes as it is told.
    let len = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of::<CpuSet>(), set.as_mut_ptr()) };
    usize::try_from(len).map_err(|_| Errno::last())
}

fn set_affinity(set: &CpuSet, len: usize) -> Result<(), Errno> {
    // SAFETY: reads `len` bytes, which the set has.
    match unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, len, set.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

fn current_cpu() -> Result<u32, Errno> {
    let mut cpu = 0_u32;
    // SAFETY: writes one word; the node and the unused third argument are not asked for. See getcpu(2).
    match unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, null_mut::<u32>(), null::<c_void>()) } {
        0 => Ok(cpu),
        _ => Err(Errno::last()),
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
        for (release, broken) in [((6, 18), false), ((6, 19), true), ((7, 0), true), ((7, 1), false), ((10, 0), false)]
        {
            assert_eq!(BROKEN.contains(&release), broken);
        }
    }

    #[cfg_attr(miri, ignore = "no system calls")]
    #[test]
    fn this_kernel_has_a_release() {
        assert!(release().is_some_and(|release| release > (4, 17)), "the first one with rseq was 4.18");
    }
}
