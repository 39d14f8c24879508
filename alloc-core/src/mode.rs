//! The mode: what the caches are indexed by, and why.

use core::fmt;
use rseq_sys::{IndexKind, Unavailable};

/// What the allocator's caches belong to in this process, decided by one of its first allocations and fixed from then on.
///
/// Its `Display` form is one clause for logs: `mm_cid, registered by libc, feature size 28 (libc says 20)`, or
/// `arenas: rseq registration answered ENOSYS`.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Vcpus { rseq: rseq_sys::Mode, index: IndexKind, membarrier: bool },
    Arenas(Reason),
}

/// Why the allocator runs on arenas.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reason {
    /// An option asked for it.
    Asked,
    /// The mode is being decided right now.
    Undecided,
    /// There is no rseq to be had.
    Rseq(Unavailable),
    /// The kernel has no membarrier that aborts sequences, and this architecture needs it.
    NoMembarrier,
    /// There is no address space for the shards.
    NoMemory,
}

impl Mode {
    /// What the caches are indexed by; `None` when they are arenas.
    pub fn index(&self) -> Option<IndexKind> {
        match self.kind {
            Kind::Vcpus { index, .. } => Some(index),
            Kind::Arenas(_) => None,
        }
    }

    /// Whether threads use arenas: of their own, or taken by lock.
    pub fn is_arenas(&self) -> bool {
        matches!(self.kind, Kind::Arenas(_))
    }

    /// How rseq is used; `None` when the caches are arenas.
    pub fn rseq(&self) -> Option<rseq_sys::Mode> {
        match self.kind {
            Kind::Vcpus { rseq, .. } => Some(rseq),
            Kind::Arenas(_) => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Vcpus { rseq, index, membarrier } => {
                rseq.with_index(index).fmt(f)?;
                if !membarrier {
                    f.write_str(", no membarrier: a shard is drained by its own threads only")?;
                }
                Ok(())
            }
            Kind::Arenas(reason) => write!(f, "arenas: {reason}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("asked for by an option"),
            Self::Undecided => f.write_str("the mode is being decided"),
            Self::Rseq(unavailable) => unavailable.fmt(f),
            Self::NoMembarrier => f.write_str("the kernel has no membarrier for rseq"),
            Self::NoMemory => f.write_str("no address space for the shards"),
        }
    }
}
