//! The effective feature size: which fields of `struct rseq` the kernel really fills in for a thread.
//!
//! A pure function of two facts: what libc says (`__rseq_size`) and what the kernel says (the auxiliary vector).
//! Neither alone is the answer. glibc before 2.41 reports 32 or 20 whatever the kernel does, yet registered 32 bytes,
//! so every field that ends within them is filled if the kernel knows it; the auxiliary vector alone does not tell
//! how much libc registered.
//!
//! | glibc | `__rseq_size` | registered length |
//! |---|---|---|
//! | 2.35 to 2.39 as released | 32 | 32 |
//! | 2.40, and the branches of 2.35 to 2.39 since July 2024 | 20 | 32 |
//! | 2.41 on | the kernel's, at least 20 | that, at least 32 |
//! | registration switched off or failed | 0 | none |
//! | musl, older glibc | no symbol | none |
//!
//! | effective | kernel before 6.3 (none) | 6.3 to 6.19 (28, align 32) | 7.0 (33, align 64) |
//! |---|---|---|---|
//! | libc says 20 or 32 | 20 | 28 | 32 |
//! | libc says anything else but 0 | what it says | what it says | what it says |
//! | nobody registered: ourselves | 20 (length 32) | 28 (length 32) | 33 (length 33) |
//!
//! This module asks nobody; [`crate::probe`] does.
//!
//! Sources: the [glibc manual](https://sourceware.org/glibc/manual/latest/html_node/Restartable-Sequences.html) and
//! the NEWS of glibc 2.35, 2.40 and 2.41; `kernel/rseq.c` for the rule on lengths.

use crate::abi::{ORIG_FEATURE_SIZE, ORIG_SIZE, Rseq};
use core::fmt;
use core::mem::offset_of;

/// Room for an area in this crate's thread-local block, in bytes. The block is aligned to as much.
pub const OWN_AREA: u32 = 64;

/// What libc says about its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibcSays {
    /// It does not know rseq: musl, glibc before 2.35.
    NoSymbols,
    /// The value of `__rseq_size`. 0: it did not register.
    Size(u32),
}

/// What the kernel says in the auxiliary vector. Both are absent before Linux 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuxvSays {
    /// `AT_RSEQ_FEATURE_SIZE`, in bytes.
    pub feature_size: Option<u32>,
    /// `AT_RSEQ_ALIGN`, in bytes.
    pub align: Option<u32>,
}

/// Who registers the threads of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registrar {
    /// libc, each of them before its first user code.
    Libc,
    /// This crate, each thread on first use.
    Ourselves,
}

/// Displayed as "libc" or "ourselves".
impl fmt::Display for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Registrar::Libc => "libc",
            Registrar::Ourselves => "ourselves",
        })
    }
}

/// Bytes of `struct rseq` that the kernel fills in, for a registration of known length.
///
/// Each accessor is the test `feature_size >= offsetofend(struct rseq, field)`.
///
/// ```
/// use rseq_sys::FeatureSize;
///
/// let linux_6_3 = FeatureSize::new(28);
/// assert!(linux_6_3.has_mm_cid());
/// assert!(!FeatureSize::new(20).has_mm_cid());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeatureSize(u32);

impl FeatureSize {
    /// A feature size in bytes.
    pub const fn new(bytes: u32) -> Self {
        FeatureSize(bytes)
    }

    /// In bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether `cpu_id_start` and `cpu_id` are filled in.
    pub const fn has_cpu_id(self) -> bool {
        self.covers(offset_of!(Rseq, cpu_id), 4)
    }

    /// Whether `node_id` is filled in.
    pub const fn has_node_id(self) -> bool {
        self.covers(offset_of!(Rseq, node_id), 4)
    }

    /// Whether `mm_cid` is filled in.
    pub const fn has_mm_cid(self) -> bool {
        self.covers(offset_of!(Rseq, mm_cid), 4)
    }

    /// Whether `slice_ctrl` is in use. The kernel offers it to registrations of more than 32 bytes only, so the
    /// length counts too. Whether it is enabled for a thread is told by `flags`.
    pub const fn has_slice_ext(self, registered_len: u32) -> bool {
        self.covers(offset_of!(Rseq, slice_ctrl), 4) && registered_len > ORIG_SIZE
    }

    const fn covers(self, offset: usize, size: usize) -> bool {
        self.0 as usize >= offset + size
    }
}

/// Displayed as the number of bytes.
impl fmt::Display for FeatureSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What follows from the two facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Who registers.
    pub registrar: Registrar,
    /// Length of each registration in bytes: what libc passed, or what is to be passed by ourselves. The same for
    /// all threads of the process.
    pub registered_len: u32,
    /// What the kernel fills in for that length.
    pub features: FeatureSize,
}

/// The effective feature size, by the tables at the top of this module.
///
/// ```
/// use rseq_sys::features::{AuxvSays, LibcSays, plan};
///
/// // Debian 12: a glibc that knows 20 bytes on a kernel that fills 28 of the 32 that were registered.
/// let linux_6_18 = AuxvSays { feature_size: Some(28), align: Some(32) };
/// assert!(plan(LibcSays::Size(20), linux_6_18).features.has_mm_cid());
/// ```
pub const fn plan(libc: LibcSays, auxv: AuxvSays) -> Plan {
    let kernel = match auxv.feature_size {
        Some(bytes) => at_least(bytes, ORIG_FEATURE_SIZE),
        None => ORIG_FEATURE_SIZE,
    };
    match libc {
        LibcSays::Size(0) | LibcSays::NoSymbols => plan_own(kernel, auxv.align),
        // Said by glibc before 2.41, which registered 32 bytes without asking the kernel; 2.41 and later say 20 on
        // a kernel that has no more, and 32 on none that is known. One rule serves them all.
        LibcSays::Size(ORIG_FEATURE_SIZE | ORIG_SIZE) => Plan {
            registrar: Registrar::Libc,
            registered_len: ORIG_SIZE,
            features: FeatureSize(at_most(kernel, ORIG_SIZE)),
        },
        // Said by glibc 2.41 and later, which took the kernel's word itself.
        LibcSays::Size(bytes) => Plan {
            registrar: Registrar::Libc,
            registered_len: at_least(bytes, ORIG_SIZE),
            features: FeatureSize(bytes),
        },
    }
}

/// The kernel takes a length of exactly 32 with an alignment of 32, or one that holds all its features with its own
/// alignment. A kernel that wants more than our block offers gets 32, and its later fields are not used.
const fn plan_own(kernel: u32, align: Option<u32>) -> Plan {
    let fits = match align {
        Some(align) => align.is_power_of_two() && align <= OWN_AREA && kernel <= OWN_AREA,
        None => false,
    };
    let registered_len = if fits { at_least(kernel, ORIG_SIZE) } else { ORIG_SIZE };
    Plan { registrar: Registrar::Ourselves, registered_len, features: FeatureSize(at_most(kernel, registered_len)) }
}

// Ord::min and max are not const.
const fn at_least(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}

const fn at_most(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE_6_3: AuxvSays = AuxvSays { feature_size: None, align: None };
    const LINUX_6_3: AuxvSays = AuxvSays { feature_size: Some(28), align: Some(32) };
    const LINUX_7_0: AuxvSays = AuxvSays { feature_size: Some(33), align: Some(64) };

    #[track_caller]
    fn check(libc: LibcSays, auxv: AuxvSays, registrar: Registrar, registered_len: u32, features: u32) {
        let expected = Plan { registrar, registered_len, features: FeatureSize(features) };
        assert_eq!(plan(libc, auxv), expected, "{libc:?}, {auxv:?}");
    }

    #[test]
    fn glibc_2_35_as_released() {
        check(LibcSays::Size(32), BEFORE_6_3, Registrar::Libc, 32, 20);
        check(LibcSays::Size(32), LINUX_6_3, Registrar::Libc, 32, 28);
        check(LibcSays::Size(32), LINUX_7_0, Registrar::Libc, 32, 32);
    }

    #[test]
    fn glibc_2_40_and_the_branches() {
        check(LibcSays::Size(20), BEFORE_6_3, Registrar::Libc, 32, 20);
        check(LibcSays::Size(20), LINUX_6_3, Registrar::Libc, 32, 28);
        check(LibcSays::Size(20), LINUX_7_0, Registrar::Libc, 32, 32);
    }

    #[test]
    fn glibc_2_41() {
        // Before 6.3 it says 20, which is the first row of the test above.
        check(LibcSays::Size(28), LINUX_6_3, Registrar::Libc, 32, 28);
        check(LibcSays::Size(33), LINUX_7_0, Registrar::Libc, 33, 33);
    }

    #[test]
    fn glibc_of_the_future_is_believed() {
        let auxv = AuxvSays { feature_size: Some(72), align: Some(128) };
        check(LibcSays::Size(72), auxv, Registrar::Libc, 72, 72);
        // Even where the auxiliary vector is hidden from us.
        check(LibcSays::Size(28), BEFORE_6_3, Registrar::Libc, 32, 28);
        check(LibcSays::Size(33), BEFORE_6_3, Registrar::Libc, 33, 33);
        check(LibcSays::Size(24), LINUX_6_3, Registrar::Libc, 32, 24);
    }

    #[test]
    fn glibc_did_not_register() {
        check(LibcSays::Size(0), BEFORE_6_3, Registrar::Ourselves, 32, 20);
        check(LibcSays::Size(0), LINUX_6_3, Registrar::Ourselves, 32, 28);
        check(LibcSays::Size(0), LINUX_7_0, Registrar::Ourselves, 33, 33);
    }

    #[test]
    fn libc_without_rseq() {
        check(LibcSays::NoSymbols, BEFORE_6_3, Registrar::Ourselves, 32, 20);
        check(LibcSays::NoSymbols, LINUX_6_3, Registrar::Ourselves, 32, 28);
        check(LibcSays::NoSymbols, LINUX_7_0, Registrar::Ourselves, 33, 33);
    }

    #[test]
    fn a_kernel_that_wants_more_than_the_block_gets_32() {
        for libc in [LibcSays::NoSymbols, LibcSays::Size(0)] {
            for (size, align) in [
                (65, Some(64)),
                (80, Some(128)),
                (33, Some(128)),
                (33, Some(48)),
                (33, Some(0)),
                (33, None),
                (u32::MAX, Some(u32::MAX)),
            ] {
                let auxv = AuxvSays { feature_size: Some(size), align };
                check(libc, auxv, Registrar::Ourselves, 32, 32);
            }
            let full = AuxvSays { feature_size: Some(64), align: Some(64) };
            check(libc, full, Registrar::Ourselves, 64, 64);
            // An alignment we cannot offer matters only beyond 32 bytes.
            let wide = AuxvSays { feature_size: Some(28), align: Some(4096) };
            check(libc, wide, Registrar::Ourselves, 32, 28);
        }
    }

    #[test]
    fn the_original_20_bytes_are_the_least() {
        let odd = AuxvSays { feature_size: Some(4), align: Some(32) };
        check(LibcSays::NoSymbols, odd, Registrar::Ourselves, 32, 20);
        check(LibcSays::Size(32), odd, Registrar::Libc, 32, 20);
    }

    #[test]
    fn fields_by_their_ends() {
        let (cpu, node, cid) = (FeatureSize(20), FeatureSize(24), FeatureSize(28));
        assert!(cpu.has_cpu_id() && !cpu.has_node_id() && !cpu.has_mm_cid());
        assert!(node.has_node_id() && !node.has_mm_cid());
        assert!(FeatureSize(27).has_node_id() && !FeatureSize(27).has_mm_cid());
        assert!(cid.has_mm_cid() && !cid.has_slice_ext(33));
        assert!(!FeatureSize(0).has_cpu_id() && !FeatureSize(7).has_cpu_id() && FeatureSize(8).has_cpu_id());
    }

    #[test]
    fn slice_extension_needs_the_field_and_the_length() {
        assert!(!plan(LibcSays::Size(20), LINUX_7_0).features.has_slice_ext(32));
        assert!(plan(LibcSays::Size(33), LINUX_7_0).features.has_slice_ext(33));
        let own = plan(LibcSays::NoSymbols, LINUX_7_0);
        assert!(own.features.has_slice_ext(own.registered_len));
        let old = plan(LibcSays::NoSymbols, LINUX_6_3);
        assert!(!old.features.has_slice_ext(old.registered_len));
    }
}
