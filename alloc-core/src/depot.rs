//! The depot: full magazines of each class and empty ones for all, between the shards and the spans.
//!
//! What one vCPU frees and another one needs passes through here a magazine at a time, so the price of a lock is shared
//! by up to 251 blocks and no span is touched. One short lock per class, and one for the empty magazines; a lock-free
//! depot measured the same and would have to deal with ABA.
//!
//! Bounds: per class [`CLASS_BUDGET`] bytes and 2 to [`CLASS_MAGAZINES`] magazines; what exceeds that goes back to the
//! spans.

use crate::limit::cache_budget;
use crate::magazine::{List, Owned};
use crate::os::futex::{Lock, Locked};
use crate::size_class::{CLASSES, class};
use core::sync::atomic::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// Bytes of free blocks of one class that the depot keeps. Producers and consumers that pass blocks at full speed have
/// about this much under way between them.
const CLASS_BUDGET: usize = 1 << 20;
/// Magazines of one class at most, however small its blocks: each takes 2 KiB itself.
const CLASS_MAGAZINES: usize = 128;
/// Empty magazines that are kept for all classes together; 512 KiB.
const EMPTY_MAX: usize = 256;

static FULL: [CachePadded<Locked<List>>; CLASSES] = [const { CachePadded::new(Locked::new(List::new())) }; CLASSES];
static EMPTY: CachePadded<Locked<List>> = CachePadded::new(Locked::new(List::new()));

/// Magazines handed over, in either direction.
static EXCHANGES: AtomicU64 = AtomicU64::new(0);
/// Locks that were not free at once.
static RETRIES: AtomicU64 = AtomicU64::new(0);

/// Runs `f` on a list under its lock.
fn with<R>(list: &Locked<List>, f: impl FnOnce(&mut List) -> R) -> R {
    let mut guard = list.try_lock().unwrap_or_else(|| {
        RETRIES.fetch_add(1, Ordering::Relaxed);
        list.lock()
    });
    f(&mut guard)
}

fn of_class(class: usize) -> &'static Locked<List> {
    &FULL[if class < CLASSES { class } else { 0 }]
}

/// Takes a magazine with blocks of `class`.
pub(crate) fn take_full(class: usize) -> Option<Owned> {
    let magazine = with(of_class(class), List::pop)?;
    EXCHANGES.fetch_add(1, Ordering::Relaxed);
    Some(magazine)
}

/// Leaves a magazine with blocks here, or hands it back if the class has enough.
pub(crate) fn put_full(magazine: Owned) -> Result<(), Owned> {
    let bytes = magazine.capacity() * class(magazine.class()).size as usize;
    let limit = (cache_budget(CLASS_BUDGET) / bytes.max(1)).clamp(2, CLASS_MAGAZINES);
    with(of_class(magazine.class()), |list| {
        if list.len() >= limit {
            return Err(magazine);
        }
        list.push(magazine);
        Ok(())
    })?;
    EXCHANGES.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Takes an empty magazine, from the pool if there is none; `None` when memory is exhausted.
pub(crate) fn take_empty() -> Option<Owned> {
    with(&EMPTY, List::pop).or_else(Owned::new)
}

/// Leaves an empty magazine here, or in the pool if there are enough.
pub(crate) fn put_empty(magazine: Owned) {
    let rest = with(&EMPTY, |list| {
        if list.len() >= EMPTY_MAX {
            return Some(magazine);
        }
        list.push(magazine);
        None
    });
    if let Some(magazine) = rest {
        magazine.discard();
    }
}

/// Takes everything: calls `flush` with each magazine that has blocks, outside of the locks.
pub(crate) fn drain(mut flush: impl FnMut(Owned)) {
    for list in &FULL {
        let mut taken = with(list, |list| core::mem::replace(list, List::new()));
        while let Some(magazine) = taken.pop() {
            flush(magazine);
        }
    }
    let mut taken = with(&EMPTY, |list| core::mem::replace(list, List::new()));
    while let Some(magazine) = taken.pop() {
        magazine.discard();
    }
}

/// What [`usage`] reports.
pub(crate) struct Usage {
    /// Bytes of free blocks.
    pub(crate) cached: usize,
    /// Magazines handed over.
    pub(crate) exchanges: u64,
    /// Locks that were not free at once.
    pub(crate) retries: u64,
}

/// What is in the depot, and what passed through it.
pub(crate) fn usage() -> Usage {
    let cached = (1..CLASSES).map(|c| with(of_class(c), |list| list.blocks()) * class(c).size as usize).sum();
    Usage { cached, exchanges: EXCHANGES.load(Ordering::Relaxed), retries: RETRIES.load(Ordering::Relaxed) }
}

/// All locks of this layer, in their order, for the fork handlers.
pub(crate) fn locks() -> impl Iterator<Item = &'static Lock> {
    FULL.iter().map(|list| list.raw()).chain([EMPTY.raw()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::central;
    use crate::size_class::{bin, class_of_bin};
    use proptest::prelude::*;
    extern crate std;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 32 }))]

        /// Whatever goes in and out, a magazine comes out with its class and blocks, and no block is in two hands.
        /// Another test may drain the depot at any time, so an empty answer is always allowed.
        #[test]
        fn magazines_keep_their_blocks(steps in proptest::collection::vec(any::<bool>(), 1..80)) {
            let class_index = class_of_bin(bin(856 - 1).unwrap());
            let mut held: std::vec::Vec<Owned> = std::vec::Vec::new();
            let mut blocks = BTreeSet::new();
            let hold = |mut magazine: Owned, blocks: &mut BTreeSet<usize>| {
                assert_eq!(magazine.class(), class_index);
                let mut taken = std::vec::Vec::new();
                while let Some(block) = magazine.pop() {
                    assert!(blocks.insert(block), "in two hands");
                    taken.push(block);
                }
                assert!(!taken.is_empty());
                assert!(taken.iter().rev().all(|&block| magazine.push(block)));
                magazine
            };
            for put in steps {
                if put {
                    let magazine = held.pop().or_else(|| {
                        let mut magazine = take_empty()?;
                        magazine.prepare(class_index, 9);
                        (central::fill(&mut magazine, 9) > 0).then(|| hold(magazine, &mut blocks))
                    });
                    let mut magazine = magazine.unwrap();
                    let mut taken = std::vec::Vec::new();
                    while let Some(block) = magazine.pop() {
                        blocks.remove(&block);
                        taken.push(block);
                    }
                    assert!(taken.iter().rev().all(|&block| magazine.push(block)));
                    if let Err(back) = put_full(magazine) {
                        held.push(hold(back, &mut blocks));
                    }
                } else if let Some(magazine) = take_full(class_index) {
                    held.push(hold(magazine, &mut blocks));
                }
            }
            for mut magazine in held {
                central::flush(&mut magazine);
                put_empty(magazine);
            }
        }
    }
}
