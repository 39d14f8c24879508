//! The kernel's side: structures, constants and the two raw system calls, with no policy.
//!
//! Invariants: every offset is asserted at compile time, and the system calls leave `errno` as it was.
//! What a given kernel fills in is not known here; see [`crate::features`].
//!
//! Sources: `include/uapi/linux/rseq.h`, `include/uapi/linux/auxvec.h`, `include/uapi/linux/membarrier.h` of the
//! kernel, and its [`Documentation/userspace-api/rseq.rst`](https://docs.kernel.org/userspace-api/rseq.html).

use core::ffi::{c_int, c_long, c_ulong};
use core::fmt;
use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// The area that a thread shares with the kernel (`struct rseq`), with every field up to Linux 7.0.
///
/// The kernel writes it whenever the thread returns to user space after a switch, so the fields are atomics; relaxed
/// loads are what is needed, since only the registered thread itself may read them. User space writes `rseq_cs`
/// and, where slice extensions are in use, `slice_ctrl.request`, and nothing else.
///
/// An area that somebody else registered may be shorter than this structure. Never form a reference to the whole
/// of it, and never register with `size_of::<Rseq>()`: see [`crate::features::Plan::registered_len`].
#[derive(Debug)]
#[repr(C, align(32))]
pub struct Rseq {
    /// A valid CPU number at any time, also before registration. Read-only for user space.
    pub cpu_id_start: AtomicU32,
    /// The current CPU, or [`CPU_ID_UNINITIALIZED`] or [`CPU_ID_REGISTRATION_FAILED`]. Read-only for user space.
    pub cpu_id: AtomicU32,
    /// Address of the [`RseqCs`] of the active section, or 0. Written by user space, cleared by the kernel.
    pub rseq_cs: AtomicU64,
    /// Bits 0 to 2 ([`CS_NO_RESTART`]) are dead and must stay 0. Linux 7.0 announces slice extensions here.
    pub flags: AtomicU32,
    /// The current NUMA node (Linux 6.3). Read-only for user space.
    pub node_id: AtomicU32,
    /// The current concurrency id (Linux 6.3). Read-only for user space.
    pub mm_cid: AtomicU32,
    /// Control of time slice extensions (Linux 7.0).
    pub slice_ctrl: SliceCtrl,
    /// Makes the feature size 33, so that it can be told from the original 32 bytes (Linux 7.0).
    pub reserved: u8,
}

/// Control word of time slice extensions (`struct rseq_slice_ctrl`, Linux 7.0).
#[derive(Debug)]
#[repr(C)]
pub struct SliceCtrl {
    /// Set by user space to ask for an extension; cleared by either side.
    pub request: AtomicU8,
    /// Set and cleared by the kernel. Read-only for user space.
    pub granted: AtomicU8,
    /// Must stay 0.
    pub reserved: u16,
}

/// Describes one restartable sequence (`struct rseq_cs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct RseqCs {
    /// Version of this structure: 0.
    pub version: u32,
    /// Must be 0 since Linux 6.1; see [`CS_NO_RESTART`].
    pub flags: u32,
    /// Address of the first instruction of the section, the one after the store to [`Rseq::rseq_cs`].
    pub start_ip: u64,
    /// Length of the section in bytes, the committing store included.
    pub post_commit_offset: u64,
    /// Where an aborted section goes on. Lies outside the section, with [`SIGNATURE`] in the four bytes before it.
    pub abort_ip: u64,
}

const _: () = {
    assert!(align_of::<Rseq>() == 32 && size_of::<Rseq>() == 64);
    assert!(offset_of!(Rseq, cpu_id_start) == 0);
    assert!(offset_of!(Rseq, cpu_id) == 4);
    assert!(offset_of!(Rseq, rseq_cs) == 8);
    assert!(offset_of!(Rseq, flags) == 16);
    assert!(offset_of!(Rseq, node_id) == 20);
    assert!(offset_of!(Rseq, mm_cid) == 24);
    assert!(offset_of!(Rseq, slice_ctrl) == 28);
    assert!(offset_of!(Rseq, reserved) == 32);

    assert!(align_of::<SliceCtrl>() == 2 && size_of::<SliceCtrl>() == 4);
    assert!(offset_of!(SliceCtrl, request) == 0);
    assert!(offset_of!(SliceCtrl, granted) == 1);
    assert!(offset_of!(SliceCtrl, reserved) == 2);

    assert!(align_of::<RseqCs>() == 32 && size_of::<RseqCs>() == 32);
    assert!(offset_of!(RseqCs, version) == 0);
    assert!(offset_of!(RseqCs, flags) == 4);
    assert!(offset_of!(RseqCs, start_ip) == 8);
    assert!(offset_of!(RseqCs, post_commit_offset) == 16);
    assert!(offset_of!(RseqCs, abort_ip) == 24);
};

/// Registration signature of this architecture: the four bytes before every abort handler (`RSEQ_SIG` of glibc's
/// `<sys/rseq.h>`). All registrations and sequences of a process must agree on it.
///
/// 0 on an architecture without sequences in this crate.
pub const SIGNATURE: u32 = if cfg!(target_arch = "x86_64") {
    0x5305_3053
} else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
    0xd428_bc00
} else {
    0
};

/// [`Rseq::cpu_id`] of an area that is not registered.
pub const CPU_ID_UNINITIALIZED: i32 = -1;
/// [`Rseq::cpu_id`] after libc tried to register and failed, or was told not to.
pub const CPU_ID_REGISTRATION_FAILED: i32 = -2;

/// Flag of the system call: remove the registration.
pub const FLAG_UNREGISTER: i32 = 1 << 0;
/// Flag of the system call: register with slice extensions switched on (Linux 7.0).
pub const FLAG_SLICE_EXT_DEFAULT_ON: i32 = 1 << 1;

/// The three dead bits of [`RseqCs::flags`] and [`Rseq::flags`]: no restart on preemption, signal, migration. The
/// kernel ends a process with SIGSEGV that sets one of them.
pub const CS_NO_RESTART: u32 = 0b111;
/// Bit of [`Rseq::flags`]: the kernel offers slice extensions (Linux 7.0).
pub const CS_FLAG_SLICE_EXT_AVAILABLE: u32 = 1 << 4;
/// Bit of [`Rseq::flags`]: slice extensions are enabled for this thread (Linux 7.0).
pub const CS_FLAG_SLICE_EXT_ENABLED: u32 = 1 << 5;

/// Auxiliary vector: end of the last field that the kernel fills (Linux 6.3).
pub const AT_RSEQ_FEATURE_SIZE: c_ulong = 27;
/// Auxiliary vector: alignment of an area longer than [`ORIG_SIZE`] (Linux 6.3).
pub const AT_RSEQ_ALIGN: c_ulong = 28;

/// Size of `struct rseq` before it could grow. As a length it is accepted by every kernel.
pub const ORIG_SIZE: u32 = 32;
/// What of the original 32 bytes was in use: up to and including [`Rseq::flags`].
pub const ORIG_FEATURE_SIZE: u32 = 20;

/// `MEMBARRIER_CMD_QUERY`: which commands there are, as a bit set.
pub const MEMBARRIER_CMD_QUERY: i32 = 0;
/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ` (Linux 5.10).
pub const MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ: i32 = 1 << 7;
/// `MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ` (Linux 5.10).
pub const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ: i32 = 1 << 8;
/// `MEMBARRIER_CMD_FLAG_CPU`: aim at one CPU (Linux 5.10).
pub const MEMBARRIER_CMD_FLAG_CPU: u32 = 1 << 0;

/// An error number from the kernel or libc.
///
/// Displayed by its name if it is one of those that these system calls are known to answer:
///
/// ```
/// assert_eq!(rseq_sys::Errno(38).to_string(), "ENOSYS");
/// assert_eq!(rseq_sys::Errno(999).to_string(), "errno 999");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::ENOSYS => "ENOSYS",
            libc::EPERM => "EPERM",
            libc::EINVAL => "EINVAL",
            libc::EBUSY => "EBUSY",
            libc::EFAULT => "EFAULT",
            libc::EACCES => "EACCES",
            libc::EAGAIN => "EAGAIN",
            libc::ENOMEM => "ENOMEM",
            libc::EOPNOTSUPP => "EOPNOTSUPP",
            libc::ESRCH => "ESRCH",
            libc::ETIMEDOUT => "ETIMEDOUT",
            other => return write!(f, "errno {other}"),
        };
        f.write_str(name)
    }
}

impl Errno {
    /// What the last call of this thread that failed left behind.
    pub(crate) fn last() -> Self {
        // SAFETY: libc's pointer to the calling thread's errno is always valid.
        Errno(unsafe { *libc::__errno_location() })
    }
}

impl core::error::Error for Errno {}

/// The system call `rseq`: registers an area for the calling thread, or with [`FLAG_UNREGISTER`] removes it.
///
/// `errno` is left alone. See the kernel's [documentation](https://docs.kernel.org/userspace-api/rseq.html) and the
/// [`rseq(2)` page of librseq](https://github.com/compudj/librseq/blob/master/doc/man/rseq.2).
///
/// # Errors
///
/// Whatever the kernel answers: ENOSYS (no support), EINVAL (bad length or alignment, or another area is
/// registered), EPERM (other signature), EBUSY (the same registration exists), EFAULT; a seccomp filter may answer
/// anything.
///
/// # Safety
///
/// - `area` must be valid for `len` bytes, until it is unregistered or the thread ends: the kernel writes to it
///   whenever the thread returns to user space.
/// - Every sequence the thread runs from then on must have `sig` before its abort handler.
/// - If libc or another library registered this area, the caller must be able to answer for their sequences.
pub unsafe fn sys_rseq(area: *mut Rseq, len: u32, flags: i32, sig: u32) -> Result<(), Errno> {
    let _errno = KeepErrno::new();
    // SAFETY: the caller vouches for the area; the call has four arguments of these types.
    let answer = unsafe { libc::syscall(libc::SYS_rseq, area, len, flags, sig) };
    value(answer).map(drop)
}

/// The system call [`membarrier(2)`](https://man7.org/linux/man-pages/man2/membarrier.2.html).
///
/// `errno` is left alone. `cpu` counts only with [`MEMBARRIER_CMD_FLAG_CPU`].
///
/// # Errors
///
/// Whatever the kernel answers: ENOSYS, EINVAL (unknown command or flag), EPERM (private command without
/// registration), ENOMEM; a seccomp filter may answer anything.
///
/// # Safety
///
/// The call touches no memory of the caller. It is unsafe because the meaning of `cmd` is the caller's affair:
/// registrations last as long as the process and change what later barriers cost.
pub unsafe fn sys_membarrier(cmd: i32, flags: u32, cpu: i32) -> Result<i32, Errno> {
    let _errno = KeepErrno::new();
    // SAFETY: integer arguments only.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, cmd, flags, cpu) };
    value(answer)
}

/// The result of `syscall(2)`. Must be called before anything else can change `errno`.
fn value(answer: c_long) -> Result<i32, Errno> {
    if answer < 0 { Err(Errno::last()) } else { Ok(answer as i32) }
}

/// Puts `errno` back when it goes out of scope: allocation functions that succeed must not change it.
pub(crate) struct KeepErrno(c_int);

impl KeepErrno {
    pub(crate) fn new() -> Self {
        // SAFETY: libc's pointer to the calling thread's errno is always valid.
        KeepErrno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg_attr(miri, ignore = "system calls that Miri does not know")]
    #[test]
    fn raw_calls_keep_errno_and_report_it() {
        // SAFETY: libc's pointer to the calling thread's errno is always valid.
        let errno = unsafe { &mut *libc::__errno_location() };
        *errno = 77;
        // SAFETY: a command that does not exist.
        let answer = unsafe { sys_membarrier(-1, 0, 0) };
        assert!(answer.is_err());
        assert_eq!(*errno, 77);
        // SAFETY: an unknown flag is refused before the area is looked at.
        let answer = unsafe { sys_rseq(core::ptr::null_mut(), 32, 1 << 30, SIGNATURE) };
        assert!(answer.is_err());
        assert_eq!(*errno, 77);
    }
}
