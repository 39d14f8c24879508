//! What was found out, in a form that can be stored, compared and printed.
//!
//! Plain values; [`crate::registration`](crate::mode()) is where they come from.

use crate::abi::{Errno, Rseq};
use crate::arch;
use crate::features::{FeatureSize, Registrar};
use core::fmt;
use core::mem::offset_of;

/// Which number of a thread's rseq area indexes shared data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexKind {
    /// The concurrency id: below the number of threads that run at once, never shared by two running threads of
    /// one address space. Usable if [`FeatureSize::has_mm_cid`].
    MmCid,
    /// The number of the CPU.
    CpuId,
}

impl IndexKind {
    /// Offset of the field in `struct rseq`, in bytes.
    pub const fn offset(self) -> usize {
        match self {
            IndexKind::MmCid => offset_of!(Rseq, mm_cid),
            IndexKind::CpuId => offset_of!(Rseq, cpu_id),
        }
    }
}

/// Displayed as "mm_cid" or "cpu_id".
impl fmt::Display for IndexKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IndexKind::MmCid => "mm_cid",
            IndexKind::CpuId => "cpu_id",
        })
    }
}

/// How this process uses rseq. The same for all threads, and for as long as the process lives.
///
/// Displayed with its default index, for instance "mm_cid, registered by libc, feature size 28 (libc says 20)"; what
/// libc says is left out where it agrees or says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Who registers the threads.
    pub registrar: Registrar,
    /// What the kernel fills in.
    pub features: FeatureSize,
    /// Length of each registration, in bytes.
    pub registered_len: u32,
    /// Where a thread's area lies, in bytes from its thread pointer. Nobody else may make one up: safe code reads
    /// there.
    pub(crate) area_offset: isize,
    /// The value of `__rseq_size`, if libc has that symbol.
    pub libc_size: Option<u32>,
}

impl Mode {
    /// The best index there is: `mm_cid` if the kernel fills it in, else `cpu_id`.
    pub const fn default_index(&self) -> IndexKind {
        if self.features.has_mm_cid() { IndexKind::MmCid } else { IndexKind::CpuId }
    }

    /// Whether the field behind `index` is filled in.
    pub const fn has_index(&self, index: IndexKind) -> bool {
        match index {
            IndexKind::MmCid => self.features.has_mm_cid(),
            IndexKind::CpuId => self.features.has_cpu_id(),
        }
    }

    /// Whether a thread may ask for time slice extensions.
    pub const fn has_slice_ext(&self) -> bool {
        self.features.has_slice_ext(self.registered_len)
    }

    /// Where a thread's area lies, in bytes from its thread pointer.
    pub const fn area_offset(&self) -> isize {
        self.area_offset
    }

    /// Distance from this crate's thread-local block to the area in use, in bytes; 0 if that is where it is.
    #[inline]
    pub fn own_delta(&self) -> isize {
        self.area_offset.wrapping_sub(arch::own_offset())
    }

    /// The calling thread's area.
    ///
    /// It is readable for [`registered_len`](Mode::registered_len) bytes in every thread that libc started,
    /// registered or not: look at the single fields, of which those within [`features`](Mode::features) mean
    /// something once [`ensure_thread`](crate::ensure_thread) has answered `Ok`.
    #[inline]
    pub fn area(&self) -> *mut Rseq {
        arch::thread_pointer().wrapping_add_signed(self.area_offset) as *mut Rseq
    }

    /// For printing with an index other than the default one.
    pub const fn with_index(&self, index: IndexKind) -> ModeWithIndex {
        ModeWithIndex { mode: *self, index }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_index(self.default_index()).fmt(f)
    }
}

/// A [`Mode`] and the index that was chosen, for printing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeWithIndex {
    mode: Mode,
    index: IndexKind,
}

impl fmt::Display for ModeWithIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mode { registrar, features, libc_size, .. } = self.mode;
        write!(f, "{}, registered by {registrar}, feature size {features}", self.index)?;
        match libc_size {
            Some(size) if size != features.get() => write!(f, " (libc says {size})"),
            _ => Ok(()),
        }
    }
}

/// Why rseq is not used, by the process or by the calling thread. Displayed as one short clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// This build has no sequences: another architecture, or Miri.
    NoSequences,
    /// The system call was refused.
    Register(Errno),
    /// No hook could be set for the end of the thread, so nobody would have unregistered it.
    ExitHook(Errno),
    /// Signals could not be blocked around the registration.
    Signals(Errno),
    /// libc's symbols describe no area that could be one.
    LibcArea,
    /// This thread should be registered and is not; the value of its `cpu_id`. glibc leaves a thread so whose
    /// creator was unregistered.
    NotRegistered(i32),
    /// This thread is in the middle of finding out: the call came out of an allocator or a signal handler. Asking
    /// again later may give another answer.
    Busy,
    /// This thread has passed its exit hook and is unregistered for good.
    Finished,
    /// This kernel does not abort a section that was preempted: see [`crate::self_test`].
    NoAborts,
    /// Some kernels of this release do not abort a section that was preempted, and this one could not be tried (EACCES:
    /// under a seccomp filter).
    Untested(Errno),
    /// A filter lets the system call succeed without making it.
    Pretended,
    /// Not asked for. This crate never answers it; it is there for libraries that offer such an option.
    SwitchedOff,
}

impl Unavailable {
    /// As one word, never [`UNKNOWN`] or [`READY`]: a tag in the low byte, an errno or id above.
    pub(crate) const fn pack(self) -> u32 {
        let (tag, value) = match self {
            Unavailable::NoSequences => (2, 0),
            Unavailable::Register(Errno(errno)) => (3, errno),
            Unavailable::ExitHook(Errno(errno)) => (4, errno),
            Unavailable::Signals(Errno(errno)) => (5, errno),
            Unavailable::LibcArea => (6, 0),
            Unavailable::NotRegistered(cpu_id) => (7, cpu_id),
            Unavailable::Busy => (8, 0),
            Unavailable::Finished => (9, 0),
            Unavailable::SwitchedOff => (10, 0),
            Unavailable::NoAborts => (11, 0),
            Unavailable::Pretended => (12, 0),
            Unavailable::Untested(Errno(errno)) => (13, errno),
        };
        (value << 8) as u32 | tag
    }

    pub(crate) const fn unpack(word: u32) -> Self {
        let value = word as i32 >> 8;
        match word & 0xff {
            2 => Unavailable::NoSequences,
            3 => Unavailable::Register(Errno(value)),
            4 => Unavailable::ExitHook(Errno(value)),
            5 => Unavailable::Signals(Errno(value)),
            6 => Unavailable::LibcArea,
            7 => Unavailable::NotRegistered(value),
            9 => Unavailable::Finished,
            10 => Unavailable::SwitchedOff,
            11 => Unavailable::NoAborts,
            12 => Unavailable::Pretended,
            13 => Unavailable::Untested(Errno(value)),
            _ => Unavailable::Busy,
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::NoSequences => f.write_str("no commit sequences for this architecture"),
            Unavailable::Register(errno) => write!(f, "rseq registration answered {errno}"),
            Unavailable::ExitHook(errno) => write!(f, "the thread exit hook answered {errno}"),
            Unavailable::Signals(errno) => write!(f, "blocking signals answered {errno}"),
            Unavailable::LibcArea => f.write_str("libc's rseq symbols make no sense"),
            Unavailable::NotRegistered(cpu_id) => write!(f, "this thread is not registered (cpu_id {cpu_id})"),
            Unavailable::Busy => f.write_str("this thread is just being registered"),
            Unavailable::Finished => f.write_str("this thread has unregistered and is about to end"),
            Unavailable::Pretended => f.write_str("a filter answers for rseq without making the call"),
            Unavailable::NoAborts => f.write_str("this kernel does not abort preempted sections"),
            Unavailable::Untested(errno) => {
                write!(f, "kernels of this release may not abort preempted sections, and a test answered {errno}")
            }
            Unavailable::SwitchedOff => f.write_str("switched off by option"),
        }
    }
}

impl core::error::Error for Unavailable {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const DEBIAN_12: Mode = Mode {
        registrar: Registrar::Libc,
        features: FeatureSize::new(28),
        registered_len: 32,
        area_offset: 2464,
        libc_size: Some(20),
    };

    #[test]
    fn modes_print_as_documented() {
        assert_eq!(DEBIAN_12.to_string(), "mm_cid, registered by libc, feature size 28 (libc says 20)");
        assert_eq!(
            DEBIAN_12.with_index(IndexKind::CpuId).to_string(),
            "cpu_id, registered by libc, feature size 28 (libc says 20)"
        );
        let musl = Mode { registrar: Registrar::Ourselves, libc_size: None, ..DEBIAN_12 };
        assert_eq!(musl.to_string(), "mm_cid, registered by ourselves, feature size 28");
        let off = Mode { libc_size: Some(0), ..musl };
        assert_eq!(off.to_string(), "mm_cid, registered by ourselves, feature size 28 (libc says 0)");
        let old = Mode { features: FeatureSize::new(20), ..DEBIAN_12 };
        assert_eq!(old.to_string(), "cpu_id, registered by libc, feature size 20");
    }

    #[test]
    fn index_offsets_are_the_fields() {
        assert_eq!(IndexKind::MmCid.offset(), 24);
        assert_eq!(IndexKind::CpuId.offset(), 4);
        assert!(DEBIAN_12.has_index(IndexKind::MmCid) && DEBIAN_12.has_index(IndexKind::CpuId));
    }

    #[test]
    fn reasons_survive_packing() {
        for reason in [
            Unavailable::NoSequences,
            Unavailable::Register(Errno(libc::ENOSYS)),
            Unavailable::Register(Errno(4095)),
            Unavailable::ExitHook(Errno(libc::EAGAIN)),
            Unavailable::Signals(Errno(libc::EPERM)),
            Unavailable::LibcArea,
            Unavailable::NotRegistered(-1),
            Unavailable::NotRegistered(-2),
            Unavailable::Busy,
            Unavailable::Finished,
            Unavailable::NoAborts,
            Unavailable::Pretended,
            Unavailable::Untested(Errno(libc::EACCES)),
            Unavailable::SwitchedOff,
        ] {
            assert_eq!(Unavailable::unpack(reason.pack()), reason);
            assert!(reason.pack() > 1, "0 and 1 are taken");
        }
        assert_eq!(Unavailable::Register(Errno(38)).to_string(), "rseq registration answered ENOSYS");
    }
}
