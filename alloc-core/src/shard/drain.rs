//! Giving back what the shards hold: from all vCPUs by the sealed [`protocol`](super::protocol), from the arenas under
//! their locks.
//!
//! One drain runs at a time. `fork` takes its lock, so it never finds a shard sealed.

use super::arena::OnArena;
use super::protocol::{self, Place, Taken};
use super::{Shard, arena, gate, vcpu};
use crate::magazine::{List, NONE};
use crate::os::futex::{Lock, Locked};
use crate::size_class::BINS;
use crate::{central, depot};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shards per batch, that is, per pair of fences: how many the buffer has room for.
const BATCH: usize = 16;

/// What the headers of a batch held before they were exchanged.
static OLD: Locked<[[usize; BINS]; BATCH]> = Locked::new([[0; BINS]; BATCH]);

/// Batches drained.
static DRAINS: AtomicU64 = AtomicU64::new(0);

/// Batches of vCPU shards drained so far.
pub(crate) fn drains() -> u64 {
    DRAINS.load(Ordering::Relaxed)
}

/// The drainer's lock, for the fork handlers.
pub(crate) fn lock() -> &'static Lock {
    OLD.raw()
}

impl Place for Shard {
    type Word = AtomicUsize;

    fn seal(&self) -> &AtomicUsize {
        &self.seal
    }

    fn headers(&self) -> impl Iterator<Item = &AtomicUsize> {
        self.tops.iter()
    }

    fn lists(&self) -> impl Iterator<Item = &AtomicUsize> {
        [&self.empty].into_iter()
    }
}

/// Takes all magazines of `shards`, [`BATCH`] at most; false if there is no fence.
fn drain(shards: &[&Shard], list: &mut List) -> bool {
    let mut old = OLD.lock();
    let fence = || rseq_sys::membarrier::fence().is_ok();
    let drained = protocol::drain(shards, &mut *old, NONE, fence, |shard, taken| match taken {
        Taken::List(head) => {
            // SAFETY: the protocol gives the drainer the whole list.
            unsafe { list.append_list(head) };
        }
        Taken::Top(top) => {
            // SAFETY: the protocol gives the drainer the whole chain.
            unsafe { super::take_chain(shard, top, list) };
        }
    });
    if drained {
        DRAINS.fetch_add(1, Ordering::Relaxed);
    } else {
        // Without a fence nobody takes from another vCPU's shard, so only its own threads take the magazines out.
        vcpu::drain_own(list);
    }
    drained
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

/// Gives back all blocks that an arena holds.
pub(super) fn give_back(arena: &OnArena) {
    let mut list = List::new();
    arena.drain(&mut list);
    flush(&mut list);
}

/// Gives back all blocks that are cached in vCPU shards, arenas and the depot.
pub(crate) fn purge() {
    let mut list = List::new();
    let mut shards = gate::shards();
    while let Some(first) = shards.next() {
        let mut batch = [first; BATCH];
        let mut len = 1;
        for (slot, shard) in batch.iter_mut().skip(1).zip(&mut shards) {
            *slot = shard;
            len += 1;
        }
        let drained = drain(batch.get(..len).unwrap_or(&[]), &mut list);
        flush(&mut list);
        if !drained {
            break;
        }
    }
    arena::for_each(|arena| arena.drain(&mut list));
    flush(&mut list);
    depot::drain(|mut magazine| {
        central::flush(&mut magazine);
        magazine.discard();
    });
}
