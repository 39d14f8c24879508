//! The slow path's way to the shard of the vCPU that the thread runs on.
//!
//! The thread may be moved at any instruction. So an access names the vCPU it was made for, every commit is a sequence
//! that checks that id, and a commit that finds another one fails with [`Miss::Stale`]. Only `pop` and `push` take
//! whatever vCPU they run on, as the fast path does.

use super::bound::{self, Bound, Room};
use super::protocol::Place;
use super::{Access, Miss, STACK, Shard, displacement, gate, idle, take_chain, tick_below};
use crate::magazine::{LINK, List, NONE, Owned, topmost};
use crate::os;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use rseq_sys::sequence::{Outcome, Vcpu};

/// Sequences that gave up after too many aborts in a row.
static GIVE_UPS: AtomicU64 = AtomicU64::new(0);

/// How many sequences gave up.
pub(crate) fn give_ups() -> u64 {
    GIVE_UPS.load(Ordering::Relaxed)
}

/// Counts one of them; the caller does without the shard.
fn gave_up() -> Miss {
    GIVE_UPS.fetch_add(1, Ordering::Relaxed);
    Miss::Bypass
}

/// See the module's description.
pub(crate) struct OnVcpu {
    vcpu: Vcpu,
    id: u32,
    shard: &'static Shard,
}

impl OnVcpu {
    /// For the vCPU that the thread runs on now, whose shard is initialised if need be. `None` if it cannot be.
    pub(crate) fn current() -> Option<Self> {
        let vcpu = gate::SHARDS.vcpu();
        let id = vcpu.id();
        Some(Self { vcpu, id, shard: gate::shard(id)? })
    }

    /// What an outcome other than success means for the caller.
    fn miss(&self, outcome: Outcome) -> Miss {
        match outcome {
            Outcome::Moved => Miss::Stale,
            Outcome::GaveUp => gave_up(),
            // The seal is one of the compared words.
            _ if self.shard.seal.load(Ordering::Relaxed) != 0 => Miss::Bypass,
            _ => Miss::Differs,
        }
    }

    fn done(&self, outcome: Outcome) -> Result<(), Miss> {
        if outcome.committed() { Ok(()) } else { Err(self.miss(outcome)) }
    }
}

/// What a `pop` or `push` says that failed, on whatever vCPU. That the shard is sealed is no reason to bypass it yet.
fn on_any_vcpu(outcome: Outcome) -> Miss {
    if outcome == Outcome::GaveUp { gave_up() } else { Miss::Differs }
}

impl Access for OnVcpu {
    fn shard(&self) -> &Shard {
        self.shard
    }

    fn bound(&self) -> &'static Bound {
        &bound::VCPUS
    }

    fn tick(&self) -> u64 {
        let now = os::clock::now_ms();
        idle::tick(now);
        tick_below(now)
    }

    fn note(&self) {
        idle::note();
    }

    fn make_room(&self, now: u64) -> Room {
        idle::make_room(self.shard, now)
    }

    fn pop(&self, header: usize) -> Result<usize, Miss> {
        // SAFETY: the displacement is that of a header; magazines stay mapped.
        let block = unsafe { gate::SHARDS.pop_chained(displacement(header)) };
        block.map(|block| block.expose_provenance()).map_err(on_any_vcpu)
    }

    fn push(&self, header: usize, block: usize) -> Result<(), Miss> {
        // SAFETY: as for `pop`; blocks are addresses of user memory, not 0.
        match unsafe { gate::SHARDS.push_chained(displacement(header), block) } {
            Outcome::Committed => Ok(()),
            outcome => Err(on_any_vcpu(outcome)),
        }
    }

    fn replace(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
        let word = self.shard.top(header).as_ptr();
        // SAFETY: header and seal belong to the shard of `id`; `new` is the top of a magazine that the caller owns.
        self.done(unsafe { self.vcpu.replace(self.id, word, expect, self.shard.seal.as_ptr(), new) })
    }

    fn exchange(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
        let (word, seal) = (self.shard.top(header).as_ptr(), self.shard.seal.as_ptr());
        // SAFETY: as in `replace`; tops lead to magazines, which have the words of chains.
        self.done(unsafe { self.vcpu.exchange::<STACK>(self.id, word, expect, seal, new) })
    }

    fn extend(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
        let (word, seal) = (self.shard.top(header).as_ptr(), self.shard.seal.as_ptr());
        // SAFETY: as in `exchange`; the caller has seen that `expect` is the end of a full magazine.
        self.done(unsafe { self.vcpu.extend::<STACK>(self.id, word, expect, seal, new) })
    }

    fn confirm(&self, header: usize, top: usize, block: usize) -> bool {
        let word = self.shard.top(header).as_ptr();
        // SAFETY: the header belongs to the shard of `id`, and keeps what it holds; tops point into memory that stays.
        unsafe { self.vcpu.compare_compare_store(self.id, word, top, topmost(top), block, top) }.committed()
    }

    fn list_pop(&self, head: &AtomicUsize) -> Result<Owned, Miss> {
        let seal = self.shard.seal.as_ptr();
        // SAFETY: the head is a word of the shard of `id`; its values are 0 or magazines, which stay mapped and have
        // their link at LINK.
        let taken = unsafe { self.vcpu.compare_load_store(self.id, head.as_ptr(), 0, LINK, seal, 0) };
        // SAFETY: the commit took it out of the list for us.
        taken.map_err(|outcome| self.miss(outcome)).and_then(|m| unsafe { Owned::from_address(m) }.ok_or(Miss::Differs))
    }

    fn list_push(&self, head: &AtomicUsize, expect: usize, magazine: &Owned) -> Result<(), Miss> {
        let seal = self.shard.seal.as_ptr();
        // SAFETY: the head is a word of the shard of `id`; the magazine is the caller's and linked to `expect`.
        self.done(unsafe {
            self.vcpu.compare_compare_store(self.id, head.as_ptr(), expect, seal, 0, magazine.address())
        })
    }
}

/// Takes the magazines out of the shard that the thread runs on, by its own commits; what it is moved away from stays.
/// Only for processes without a fence, see [`super::drain`].
pub(super) fn drain_own(list: &mut List) {
    let Some(own) = OnVcpu::current() else { return };
    for top in own.shard.headers() {
        let old = top.load(Ordering::Relaxed);
        // SAFETY: the header belongs to the shard of `id`; it may hold no magazine.
        let outcome = unsafe { own.vcpu.compare_store(own.id, top.as_ptr(), old, NONE) };
        if old != NONE && outcome.committed() {
            // SAFETY: the commit gave us the chain.
            unsafe { take_chain(&bound::VCPUS, own.shard, old, list) };
        }
    }
    for head in own.shard.lists() {
        while let Ok(magazine) = own.list_pop(head) {
            list.push(magazine);
        }
    }
}
