//! The fields of `struct rseq` as a table: where each lies, whether it may be used and why not, what it holds.
//!
//! For reports and for programs that choose by field. It draws no conclusion of its own: a field is usable if
//! [`FeatureSize`] says so, and the unit tests below hold the two together.

use crate::abi::{ORIG_SIZE, Rseq};
use crate::features::FeatureSize;
use crate::registration::current_mode;
use core::fmt;
use core::mem::offset_of;

/// A field of `struct rseq`, in the order of the structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// [`Rseq::cpu_id_start`]
    CpuIdStart,
    /// [`Rseq::cpu_id`]
    CpuId,
    /// [`Rseq::rseq_cs`]
    RseqCs,
    /// [`Rseq::flags`]
    Flags,
    /// [`Rseq::node_id`]
    NodeId,
    /// [`Rseq::mm_cid`]
    MmCid,
    /// [`Rseq::slice_ctrl`]
    SliceCtrl,
}

impl Field {
    /// All of them.
    pub const ALL: [Field; 7] =
        [Field::CpuIdStart, Field::CpuId, Field::RseqCs, Field::Flags, Field::NodeId, Field::MmCid, Field::SliceCtrl];

    /// The kernel's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Field::CpuIdStart => "cpu_id_start",
            Field::CpuId => "cpu_id",
            Field::RseqCs => "rseq_cs",
            Field::Flags => "flags",
            Field::NodeId => "node_id",
            Field::MmCid => "mm_cid",
            Field::SliceCtrl => "slice_ctrl",
        }
    }

    /// Where it begins, in bytes from the start of the structure.
    pub const fn offset(self) -> usize {
        match self {
            Field::CpuIdStart => offset_of!(Rseq, cpu_id_start),
            Field::CpuId => offset_of!(Rseq, cpu_id),
            Field::RseqCs => offset_of!(Rseq, rseq_cs),
            Field::Flags => offset_of!(Rseq, flags),
            Field::NodeId => offset_of!(Rseq, node_id),
            Field::MmCid => offset_of!(Rseq, mm_cid),
            Field::SliceCtrl => offset_of!(Rseq, slice_ctrl),
        }
    }

    /// Its size in bytes.
    pub const fn size(self) -> usize {
        match self {
            Field::RseqCs => 8,
            _ => 4,
        }
    }

    /// The first byte after it: what a feature size must reach (`offsetofend`).
    pub const fn end(self) -> usize {
        self.offset() + self.size()
    }

    /// Whether it may be used in a registration of `registered_len` bytes of which the kernel fills `features`.
    ///
    /// ```
    /// use rseq_sys::FeatureSize;
    /// use rseq_sys::probe::Field;
    ///
    /// let linux_6_1 = FeatureSize::new(20);
    /// assert_eq!(Field::CpuId.usable(linux_6_1, 32), Ok(()));
    /// let why = Field::MmCid.usable(linux_6_1, 32).unwrap_err();
    /// assert_eq!(why.to_string(), "feature size 20 ends before 28");
    /// ```
    ///
    /// # Errors
    ///
    /// Why not.
    pub const fn usable(self, features: FeatureSize, registered_len: u32) -> Result<(), Unusable> {
        if (features.get() as usize) < self.end() {
            return Err(Unusable::Features { size: features.get(), end: self.end() });
        }
        if matches!(self, Field::SliceCtrl) && registered_len <= ORIG_SIZE {
            return Err(Unusable::Length(registered_len));
        }
        Ok(())
    }

    /// What the calling thread's area holds there at this moment, widened; `None` if nobody has called
    /// [`mode()`](crate::mode()) yet, or this process has no area.
    ///
    /// No promise about its meaning: ask [`Field::usable`] for that, and [`ensure_thread`](crate::ensure_thread)
    /// whether this thread is registered.
    ///
    /// ```
    /// use rseq_sys::probe::Field;
    ///
    /// if rseq_sys::mode().is_ok() && rseq_sys::ensure_thread().is_ok() {
    ///     println!("on CPU {}", Field::CpuId.value().unwrap());
    /// }
    /// ```
    pub fn value(self) -> Option<u64> {
        let mode = current_mode()?.ok()?;
        let at = mode.area().cast::<u8>().wrapping_add(self.offset());
        // SAFETY: there is a mode, so this is the calling thread's area, which is aligned, lives as long as the thread
        // and is readable for the registered length, 32 bytes at least; no field above ends later. Volatile, because
        // the kernel changes it at any time.
        Some(unsafe {
            match self.size() {
                8 => at.cast::<u64>().read_volatile(),
                _ => at.cast::<u32>().read_volatile().into(),
            }
        })
    }
}

const _: () = assert!(Field::SliceCtrl.end() == ORIG_SIZE as usize, "the last field lies in the shortest area");

/// Displayed as the kernel's name.
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a field may not be used. Displayed as one short clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The effective feature size ends before the field does.
    Features {
        /// The effective feature size, in bytes.
        size: u32,
        /// The end of the field, in bytes.
        end: usize,
    },
    /// The kernel offers the field to longer registrations than this one, of that many bytes, only.
    Length(u32),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Features { size, end } => write!(f, "feature size {size} ends before {end}"),
            Unusable::Length(bytes) => write!(f, "registered with {bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn the_table_says_what_the_accessors_say() {
        for size in 0..=64 {
            for len in [32, 33, 64] {
                let features = FeatureSize::new(size);
                let usable = |field: Field| field.usable(features, len).is_ok();
                assert_eq!(usable(Field::CpuId), features.has_cpu_id());
                assert_eq!(usable(Field::NodeId), features.has_node_id());
                assert_eq!(usable(Field::MmCid), features.has_mm_cid());
                assert_eq!(usable(Field::SliceCtrl), features.has_slice_ext(len));
            }
        }
    }

    #[test]
    fn the_fields_follow_each_other_without_gaps() {
        let mut end = 0;
        for field in Field::ALL {
            assert_eq!(field.offset(), end, "{field}");
            end = field.end();
        }
    }

    #[test]
    fn reasons_print_as_documented() {
        let why = |field: Field, size, len| field.usable(FeatureSize::new(size), len).unwrap_err().to_string();
        assert_eq!(why(Field::NodeId, 20, 32), "feature size 20 ends before 24");
        assert_eq!(why(Field::SliceCtrl, 28, 32), "feature size 28 ends before 32");
        assert_eq!(why(Field::SliceCtrl, 32, 32), "registered with 32 bytes");
        assert_eq!(Field::SliceCtrl.usable(FeatureSize::new(33), 33), Ok(()));
    }

    #[cfg_attr(miri, ignore = "no area there")]
    #[test]
    fn values_are_the_threads_own() {
        if let Err(reason) = crate::mode().and_then(|_| crate::ensure_thread()) {
            return std::println!("skipped: {reason}");
        }
        // SAFETY: a question.
        let now = || unsafe { libc::sched_getcpu() } as u64;
        // The two agree unless the thread is moved between them, every single time.
        assert!((0..100).any(|_| Field::CpuId.value() == Some(now())));
        assert!((0..100).any(|_| Field::CpuIdStart.value() == Some(now())));
    }
}
