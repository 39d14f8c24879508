//! Limits on the memory of the process, as far as it goes through this allocator.
//!
//! **Counted** are the bytes that are mapped and may be resident: pages in runs, free pages that were not given back,
//! large mappings in use and kept, and metadata. Address space that was never touched, and pages that were given back,
//! do not count. It is an upper bound of what is resident, since pages in use need not have been touched.
//!
//! Whatever is about to make that more asks here first: a run that takes returned pages, a new or growing large
//! mapping, a piece of metadata. A refusal looks like exhaustion and takes its way, up to `front::recover`, where no
//! lock is held: everything that is free is given back, and the request is made once more.
//!
//! * Beyond the **hard** limit it is refused again, and the answer is null. Parts of the map and the shards of vCPUs
//!   are counted but not refused; they amount to a few pages per GiB and per vCPU.
//! * The **soft** limit does not refuse a second time. What it refuses the next time is what goes beyond the
//!   *threshold*:
//!
//! ```text
//! threshold = max(soft, c + max(soft, c, 8 MiB) / 8)      c: the least that was counted since the last such purge
//! ```
//!
//!   So a process that lives above its soft limit purges once for each eighth that it takes from the system, and not at
//!   each growth. Above it the caches keep a quarter of what they otherwise do, and freed large mappings are not kept.
//!
//! The counter is exact at any time, and costs one atomic instruction for each growth. Only in the child of a fork it may
//! hold what other threads of the parent were about to map.

mod cgroup;
pub(crate) mod mapped;

pub(crate) use cgroup::cpus;

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;

/// How much memory the process may hold through the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Limit {
    /// Any amount.
    #[default]
    None,
    /// So many bytes; 0 is no limit.
    Bytes(usize),
    /// So many percent, 1 to 100, of the memory limit of the process' cgroup (`memory.max` in version 2,
    /// `memory.limit_in_bytes` in version 1; the least of the group's own and those of the groups around it), as it is
    /// when the option is applied. No limit if the cgroup has none, or for another number.
    CgroupPercent(u8),
}

/// In place of a number of bytes: there is no limit.
const NONE: usize = usize::MAX;

static COUNTED: CachePadded<AtomicUsize> = CachePadded::new(AtomicUsize::new(0));
static SOFT: AtomicUsize = AtomicUsize::new(NONE);
static HARD: AtomicUsize = AtomicUsize::new(NONE);
/// What the soft limit refuses to go beyond; see the module.
static THRESHOLD: AtomicUsize = AtomicUsize::new(NONE);
/// The soft limit refuses nothing. Changed under the lock of recovery only, so not set in the child of a fork.
static OPEN: AtomicBool = AtomicBool::new(false);

static SOFT_HITS: AtomicU64 = AtomicU64::new(0);
static HARD_HITS: AtomicU64 = AtomicU64::new(0);
static SOFT_PURGES: AtomicU64 = AtomicU64::new(0);

impl Limit {
    /// In bytes.
    fn resolve(self) -> usize {
        match self {
            Self::None | Self::Bytes(0) => NONE,
            Self::Bytes(bytes) => bytes,
            Self::CgroupPercent(percent @ 1..=100) => {
                let percent = usize::from(percent);
                cgroup::limit().map_or(NONE, |bytes| bytes / 100 * percent + bytes % 100 * percent / 100)
            }
            Self::CgroupPercent(_) => NONE,
        }
    }
}

/// Sets the soft limit. What is beyond it already leads to a purge at the next growth.
pub(crate) fn set_soft(limit: Limit) {
    let bytes = limit.resolve();
    SOFT.store(bytes, Ordering::Relaxed);
    THRESHOLD.store(bytes, Ordering::Relaxed);
}

/// Sets the hard limit. Where more is counted already, all growth is refused until enough was freed.
pub(crate) fn set_hard(limit: Limit) {
    HARD.store(limit.resolve(), Ordering::Relaxed);
}

/// Counts `bytes` that are about to be taken from the system, unless that would exceed a limit: then false.
pub(crate) fn charge(bytes: usize) -> bool {
    let threshold = if OPEN.load(Ordering::Relaxed) { NONE } else { THRESHOLD.load(Ordering::Relaxed) };
    charge_up_to(bytes, threshold)
}

/// As [`charge`] for metadata, which the soft limit does not refuse: a purge frees next to none.
pub(crate) fn charge_metadata(bytes: usize) -> bool {
    charge_up_to(bytes, NONE)
}

fn charge_up_to(bytes: usize, threshold: usize) -> bool {
    let hard = HARD.load(Ordering::Relaxed);
    let most = hard.min(threshold);
    let fits = |counted: usize| counted.checked_add(bytes).filter(|&sum| sum <= most || bytes == 0);
    let Err(counted) = COUNTED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) else { return true };
    let hits = if counted.saturating_add(bytes) > hard { &HARD_HITS } else { &SOFT_HITS };
    hits.fetch_add(1, Ordering::Relaxed);
    false
}

/// Counts `bytes` that cannot be refused.
pub(crate) fn account(bytes: usize) {
    COUNTED.fetch_add(bytes, Ordering::Relaxed);
}

/// Takes `bytes` that were counted, and are with the system again, off the count.
pub(crate) fn release(bytes: usize) {
    let counted = COUNTED.fetch_sub(bytes, Ordering::Relaxed).wrapping_sub(bytes);
    let soft = SOFT.load(Ordering::Relaxed);
    if soft != NONE {
        THRESHOLD.fetch_min(threshold(soft, counted), Ordering::Relaxed);
    }
}

/// See the module.
fn threshold(soft: usize, counted: usize) -> usize {
    soft.max(counted.saturating_add(soft.max(counted).max(8 << 20) / 8))
}

/// Whether more is counted than the soft limit, which is when caches keep less.
pub(crate) fn above_soft() -> bool {
    COUNTED.load(Ordering::Relaxed) > SOFT.load(Ordering::Relaxed)
}

/// What a cache may keep that otherwise keeps `bytes`.
pub(crate) fn cache_budget(bytes: usize) -> usize {
    if above_soft() { bytes / 4 } else { bytes }
}

/// Growths refused so far, of which the second number by the soft limit.
pub(crate) fn refusals() -> (u64, u64) {
    let soft = SOFT_HITS.load(Ordering::Relaxed);
    (HARD_HITS.load(Ordering::Relaxed) + soft, soft)
}

/// While this lives the soft limit refuses nothing.
#[must_use = "the soft limit refuses again at once"]
pub(crate) struct Opened(());

/// Lets through what comes after a purge. `by_soft`: it was the soft limit that asked for the purge. Under the lock of
/// recovery.
pub(crate) fn open(by_soft: bool) -> Opened {
    if by_soft {
        SOFT_PURGES.fetch_add(1, Ordering::Relaxed);
    }
    OPEN.store(true, Ordering::Relaxed);
    Opened(())
}

impl Drop for Opened {
    fn drop(&mut self) {
        let soft = SOFT.load(Ordering::Relaxed);
        if soft != NONE {
            THRESHOLD.store(threshold(soft, COUNTED.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
        OPEN.store(false, Ordering::Relaxed);
    }
}

/// What [`usage`] reports.
pub(crate) struct Usage {
    /// Bytes counted.
    pub(crate) counted: usize,
    /// The limits in bytes, 0 for none.
    pub(crate) soft: usize,
    pub(crate) hard: usize,
    /// Growths that each refused.
    pub(crate) soft_hits: u64,
    pub(crate) hard_hits: u64,
    /// Purges because of the soft limit.
    pub(crate) soft_purges: u64,
}

/// What was counted and refused so far.
pub(crate) fn usage() -> Usage {
    let shown = |limit: &AtomicUsize| match limit.load(Ordering::Relaxed) {
        NONE => 0,
        bytes => bytes,
    };
    Usage {
        counted: COUNTED.load(Ordering::Relaxed),
        soft: shown(&SOFT),
        hard: shown(&HARD),
        soft_hits: SOFT_HITS.load(Ordering::Relaxed),
        hard_hits: HARD_HITS.load(Ordering::Relaxed),
        soft_purges: SOFT_PURGES.load(Ordering::Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_threshold_is_an_eighth_away() {
        assert_eq!(threshold(800 * MIB, 0), 800 * MIB);
        assert_eq!(threshold(800 * MIB, 700 * MIB), 800 * MIB);
        assert_eq!(threshold(800 * MIB, 790 * MIB), 890 * MIB);
        assert_eq!(threshold(800 * MIB, 1600 * MIB), 1800 * MIB);
        assert_eq!(threshold(1, 0), MIB);
        assert_eq!(threshold(NONE - 1, NONE - 1), NONE);
    }

    #[test]
    fn what_makes_no_limit() {
        for limit in [Limit::None, Limit::Bytes(0), Limit::CgroupPercent(0), Limit::CgroupPercent(101)] {
            assert_eq!(limit.resolve(), NONE);
        }
        assert_eq!(Limit::Bytes(5).resolve(), 5);
    }
}
