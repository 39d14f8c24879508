//! Giving back what the shards hold: from all vCPUs by the sealed [`protocol`](super::protocol), from the arenas under
//! their locks.
//!
//! One drain runs at a time. `fork` takes its lock, so it never finds a shard sealed.

use super::arena::OnArena;
use super::protocol::{self, Place, Taken};
use super::{HEADERS, Shard, arena, bound, gate, idle, vcpu};
use crate::magazine::{List, NONE};
use crate::os::futex::{Lock, Locked, LockedGuard};
use crate::{central, depot};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shards per batch, that is, per pair of fences: how many the buffer has room for.
pub(super) const BATCH: usize = 16;

/// Shards that are drained together.
pub(super) struct Batch<'a> {
    shards: [&'a Shard; BATCH],
    len: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(first: &'a Shard) -> Self {
        Self { shards: [first; BATCH], len: 1 }
    }

    /// Adds a shard; false if there is no room for it.
    pub(super) fn add(&mut self, shard: &'a Shard) -> bool {
        let slot = self.shards.get_mut(self.len);
        self.len += usize::from(slot.is_some());
        slot.map(|slot| *slot = shard).is_some()
    }

    pub(super) fn shards(&self) -> &[&'a Shard] {
        self.shards.get(..self.len).unwrap_or(&[])
    }

    /// Bytes for which they have room.
    pub(super) fn held(&self) -> usize {
        self.shards().iter().map(|shard| shard.held.load(Ordering::Relaxed)).sum()
    }
}

/// What only one thread at a time does with the shards of others.
pub(super) struct Drainer {
    /// What the headers of a batch held before they were exchanged.
    old: [[usize; HEADERS]; BATCH],
    /// How far it has looked for those that nobody uses.
    pub(super) round: idle::Round,
}

static DRAINER: Locked<Drainer> = Locked::new(Drainer { old: [[0; HEADERS]; BATCH], round: idle::Round::new() });

/// Batches drained.
static DRAINS: AtomicU64 = AtomicU64::new(0);

/// Batches of vCPU shards drained so far.
pub(crate) fn drains() -> u64 {
    DRAINS.load(Ordering::Relaxed)
}

/// The drainer's lock, for the fork handlers.
pub(crate) fn lock() -> &'static Lock {
    DRAINER.raw()
}

/// The drainer, if nobody drains at this moment.
pub(super) fn try_drainer() -> Option<LockedGuard<'static, Drainer>> {
    DRAINER.try_lock()
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

impl Drainer {
    /// Takes all magazines of a batch; false if there is no fence, and then nothing was changed.
    pub(super) fn drain(&mut self, batch: &Batch<'_>, list: &mut List) -> bool {
        let fence = || rseq_sys::membarrier::fence().is_ok();
        let drained = protocol::drain(batch.shards(), &mut self.old, NONE, fence, |shard, taken| match taken {
            Taken::List(head) => {
                // SAFETY: the protocol gives the drainer the whole list.
                unsafe { list.append_list(head) };
            }
            Taken::Top(top) => {
                // SAFETY: the protocol gives the drainer the whole chain.
                unsafe { super::take_chain(&bound::VCPUS, shard, top, list) };
            }
        });
        DRAINS.fetch_add(u64::from(drained), Ordering::Relaxed);
        drained
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
        let mut batch = Batch::new(first);
        (&mut shards).take(BATCH - 1).for_each(|shard| _ = batch.add(shard));
        let mut drainer = DRAINER.lock();
        let drained = drainer.drain(&batch, &mut list);
        if !drained {
            // Without a fence nobody takes from another vCPU's shard, so only its own threads take the magazines out.
            vcpu::drain_own(&mut list);
        }
        drop(drainer);
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
