//! Taking magazines out of other vCPUs' shards, without their fast paths paying for it.
//!
//! ```text
//!   seal the shards
//!   fence 1       every slow commit that did not see the seal has ended; from here on the lists are ours
//!   exchange each header with the dummy
//!   fence 2       every pop or push that had read the old top has committed or was aborted
//!   a header that still is the dummy: what the exchange returned is ours alone
//!   any other: a commit in flight came after the exchange and put the magazine back; leave it
//!   unseal
//! ```
//!
//! Why it is sound. A section that read the old top before the exchange either commits before fence 2, and then its plain
//! store overwrites the dummy and the last step sees it; or it is aborted. A section that starts after the exchange
//! finds the dummy, which is both empty and full, so it goes to the slow path, which looks at the seal inside its
//! section. Sections with the seal unseen have ended at fence 1, so after it no header changes by a replacement, and
//! after fence 2 a header that is the dummy stays so until we unseal. Slow paths never install the dummy, so a header
//! can be the dummy again by nobody's hand but ours. One fence serves all shards of a batch.
//!
//! With a single fence the exchange and a commit in flight race: the drainer would take a magazine that a section still
//! owns. A fence that fails ends the drain before anything was exchanged, or, if it is the second, puts the magazines
//! back where the header still is the dummy only after a third one succeeded; see [`Drainer::exchange`].
//!
//! The steps are generic over the memory and the fence, so that a model checker can run them.

use super::magazine::{List, Owned, dummy_top};
use super::{Shard, arena, gate, vcpu};
use crate::os::futex::Locked;
use crate::size_class::BINS;
use crate::{central, depot};
use core::sync::atomic::{AtomicU64, Ordering};

/// Shards per batch: how many the buffer of old tops has room for.
const BATCH: usize = 16;

static DRAINER: Locked<Drainer> = Locked::new(Drainer { old: [[0; BINS]; BATCH] });
/// Batches of shards drained.
static DRAINS: AtomicU64 = AtomicU64::new(0);

/// Drains so far.
pub(crate) fn drains() -> u64 {
    DRAINS.load(Ordering::Relaxed)
}

/// The lock of the drainer, the first in the order of all locks.
pub(crate) fn lock() -> &'static crate::os::futex::Lock {
    DRAINER.raw()
}

struct Drainer {
    /// What the headers held before the exchange, 0 for "not exchanged".
    old: [[usize; BINS]; BATCH],
}

/// Runs a fence between all threads of the process; false if there is none.
fn fence() -> bool {
    rseq_sys::membarrier::fence().is_ok()
}

impl Drainer {
    /// Drains `shards`, [`BATCH`] at most, into `list`. False if there was no fence; then nothing was changed.
    fn drain(&mut self, shards: &[&Shard], list: &mut List) -> bool {
        for shard in shards {
            shard.seal.store(1, Ordering::SeqCst);
        }
        let fenced = fence();
        if fenced {
            for shard in shards {
                // SAFETY: sealed, and fenced, so no section changes the lists.
                unsafe { shard.take_lists(list) };
            }
            self.exchange(shards, list);
        }
        for shard in shards {
            shard.seal.store(0, Ordering::SeqCst);
        }
        fenced
    }

    /// The second half, for sealed and fenced shards.
    fn exchange(&mut self, shards: &[&Shard], list: &mut List) {
        for (shard, old) in shards.iter().zip(&mut self.old) {
            for (top, old) in shard.tops.iter().zip(old) {
                *old = 0;
                if top.load(Ordering::Relaxed) != dummy_top() {
                    *old = top.swap(dummy_top(), Ordering::SeqCst);
                }
            }
        }
        // The first fence worked, so this one does too: it fails only for want of registration, or by a filter that
        // was installed in between. Then the magazines stay out of use, a leak and no corruption.
        #[cfg(not(rseq_fault = "drain_once"))]
        if !fence() {
            return;
        }
        for (shard, old) in shards.iter().zip(&self.old) {
            for (top, &old) in shard.tops.iter().zip(old) {
                if old != 0 && old != dummy_top() && top.load(Ordering::SeqCst) == dummy_top() {
                    // SAFETY: see the module's description: nobody else can reach it any more.
                    list.push(unsafe { Owned::from_top(old) });
                }
            }
        }
    }
}

impl Shard {
    /// Takes all magazines out of the shard's lists.
    ///
    /// # Safety
    /// The caller excludes everybody else from the lists.
    pub(super) unsafe fn take_lists(&self, list: &mut List) {
        for head in self.filled.iter().chain([&self.empty]) {
            if head.load(Ordering::Relaxed) != 0 {
                // SAFETY: by contract the chain is ours.
                unsafe { list.append_chain(head.swap(0, Ordering::Relaxed)) };
            }
        }
        self.cached.store(0, Ordering::Relaxed);
    }
}

/// Gives all blocks in `list` back to their spans.
fn flush(list: &mut List) {
    while let Some(mut magazine) = list.pop() {
        if !magazine.is_empty() {
            central::flush(&mut magazine);
        }
        magazine.discard();
    }
}

/// Gives back all blocks that are cached in vCPU shards, arenas and the depot.
pub(crate) fn purge() {
    let mut list = List::new();
    let limit = gate::SHARDS.limit();
    let mut from = 0;
    while from < limit {
        let mut drainer = DRAINER.lock();
        let Some(first) = gate::existing(from as u32) else { break };
        let mut batch = [first; BATCH];
        let mut len = 0;
        while len < BATCH
            && let Some(shard) = gate::existing((from + len) as u32)
        {
            batch[len] = shard;
            len += 1;
        }
        from += len;
        if drainer.drain(batch.get(..len).unwrap_or(&[]), &mut list) {
            DRAINS.fetch_add(1, Ordering::Relaxed);
        } else {
            // Without a fence nobody takes from another vCPU's shard, so nobody but its threads installs the dummy.
            from = limit;
            vcpu::drain_own(&mut list);
        }
        drop(drainer);
        flush(&mut list);
    }
    arena::for_each(|arena| arena.drain(&mut list));
    flush(&mut list);
    depot::drain(|mut magazine| {
        central::flush(&mut magazine);
        magazine.discard();
    });
}
