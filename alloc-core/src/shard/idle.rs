//! Shards that nobody uses give their blocks back, and others do for the [`bound`].
//!
//! A vCPU's shard does not say when it was used, since the hit path notes nothing. So one thread at a time, the drainer,
//! looks at all of them now and then: what has the same headers and the same number of exchanges as at the last look is
//! *quiet*, and what is quiet for a quarter of the decay interval is *idle* and drained, so that its blocks still decay
//! in time. Which ids the kernel hands out does not tell it: from Linux 6.19 on they stay with the threads that have
//! them, whether those run or not, and under `cpu_id` a CPU may be left alone.
//!
//! ```text
//!   due: every 16th of the interval, as long as a shard has magazines
//!   look at up to LOOKS shards; drain up to a batch of idle ones with one pair of fences
//!   what they had: empty magazines to the depot, others to those that leave it for their spans, a few with each tick
//! ```
//!
//! A shard in which every block that is taken is returned before the look is taken for quiet, and loses what it has
//! four times in an interval, at the cost of a few exchanges. Looks are made on calls that came to a slow path anyway,
//! where no lock is held, and by the background thread. As long as a shard is quiet and not yet drained, light activity
//! is led there, too ([`toll`](super::toll)).

use super::bound::{Pace, Room};
use super::drain::{BATCH, Batch, try_drainer};
use super::{Shard, bound, gate};
use crate::depot;
use crate::magazine::{List, NONE};
use crate::options::DEFAULT_DECAY_MS;
use crate::pages::NEVER;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use rseq_sys::membarrier;

/// A shard is idle that was quiet for the interval divided by this.
const QUIET_SHARE: u64 = 4;
/// But not before so many milliseconds: drains are broadcasts to all CPUs, and a shard that comes back has to be filled.
const LEAST_QUIET: u64 = 100;
/// Looks at each shard in that time.
const LOOKS_PER_QUIET: u64 = 4;
/// Shards that one tick looks at: their headers are 3 KiB each, in the caches of others.
const LOOKS: usize = 64;

/// For how many milliseconds a shard has to be quiet, or [`NEVER`].
static QUIET: AtomicU64 = AtomicU64::new(DEFAULT_DECAY_MS / QUIET_SHARE);
/// When the shards are looked at next, in milliseconds. 0: none has a magazine; 1: soon; [`NEVER`].
static DUE: AtomicU64 = AtomicU64::new(0);
/// Shards with magazines that were quiet in the last round of looks, and are not drained yet.
static QUIET_SHARDS: AtomicUsize = AtomicUsize::new(0);
/// Shards drained because they were idle, and for the bound.
static IDLE_DRAINED: AtomicU64 = AtomicU64::new(0);
static BOUND_DRAINED: AtomicU64 = AtomicU64::new(0);

/// How many shards were drained because they were idle, and for the bound.
pub(crate) fn drained() -> (u64, u64) {
    (IDLE_DRAINED.load(Relaxed), BOUND_DRAINED.load(Relaxed))
}

/// Sets the decay interval; see [`Decay`](crate::pages::Decay).
pub(crate) fn set_decay_ms(ms: u64) {
    QUIET.store(if ms == NEVER { NEVER } else { (ms / QUIET_SHARE).max(LEAST_QUIET) }, Relaxed);
    if DUE.load(Relaxed) != 0 {
        DUE.store(1, Relaxed);
    }
}

/// The time in milliseconds from which [`tick`] has something to do; 0 or [`NEVER`]: never, as things are.
pub(crate) fn due() -> u64 {
    DUE.load(Relaxed)
}

/// Whether a shard has been quiet that may have to be drained.
pub(super) fn pending() -> bool {
    QUIET_SHARDS.load(Relaxed) > 0
}

/// Notes that the shard of a vCPU gets a magazine.
#[inline]
pub(super) fn note() {
    if DUE.load(Relaxed) == 0 {
        DUE.store(1, Relaxed);
    }
}

/// Does what is due at the time `now_ms`; one load if there is nothing. Where no lock is held.
#[inline]
pub(crate) fn tick(now_ms: u64) {
    let due = DUE.load(Relaxed);
    if due != 0 && due <= now_ms {
        look(now_ms);
    }
}

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// No magazine.
    Empty,
    /// It is not as it was.
    Changed,
    /// It is.
    Quiet,
    /// It is, and has been for long enough.
    Idle,
}

/// What the last look at a shard found. Part of the shard, but the drainer's.
pub(super) struct Seen {
    sum: AtomicU64,
    /// Since when that was so, in milliseconds.
    since: AtomicU64,
}

impl Shard {
    /// Looks at it, at the time `now`; `quiet` milliseconds make it idle. One thread at a time.
    pub(super) fn look(&self, now: u64, quiet: u64) -> Look {
        let seen = &self.seen;
        if self.held.load(Relaxed) == 0 {
            seen.sum.store(0, Relaxed);
            return Look::Empty;
        }
        // In the child of a fork it may seem to hold something.
        let Some(sum) = self.sum() else {
            seen.sum.store(0, Relaxed);
            return Look::Empty;
        };
        if seen.sum.swap(sum, Relaxed) != sum {
            seen.since.store(now, Relaxed);
            return Look::Changed;
        }
        if now.saturating_sub(seen.since.load(Relaxed)) < quiet { Look::Quiet } else { Look::Idle }
    }

    /// A number that is another one when a header or the count of exchanges changes, most likely; `None` if there is no
    /// magazine. Not a plain sum: a block taken from one bin and one given to another would cancel out.
    fn sum(&self) -> Option<u64> {
        let (mut sum, mut any) = (self.exchanges.load(Relaxed).wrapping_add(1), NONE);
        for top in &self.tops {
            let top = top.load(Relaxed);
            any |= top;
            sum = (sum ^ top as u64).rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        (any != NONE).then_some(sum)
    }
}

impl Batch<'_> {
    /// Whether the first one was as it is at an earlier look than that at the time `now`, too.
    pub(super) fn unused(&self, now: u64) -> bool {
        self.shards().first().is_some_and(|shard| shard.seen.since.load(Relaxed) < now)
    }
}

/// How far a round of looks has come. Kept by the drainer between two ticks.
pub(super) struct Round {
    /// The id that comes next.
    next: usize,
    /// Shards with magazines, and those of them that are quiet but not idle.
    loaded: usize,
    quiet: usize,
}

impl Round {
    pub(super) const fn new() -> Self {
        Self { next: 0, loaded: 0, quiet: 0 }
    }

    /// Goes on with a round over the first `count` shards: [`LOOKS`] of them, or up to those that fill a batch of idle
    /// ones. The second value is whether the round is over.
    fn go_on<'a>(
        &mut self,
        shard: impl Fn(usize) -> Option<&'a Shard>,
        count: usize,
        now: u64,
        quiet: u64,
    ) -> (Option<Batch<'a>>, bool) {
        let mut idle: Option<Batch<'a>> = None;
        for id in self.next..count.min(self.next + LOOKS) {
            if idle.as_ref().is_some_and(|batch| batch.shards().len() == BATCH) {
                return (idle, false);
            }
            self.next = id + 1;
            let Some(shard) = shard(id) else { continue };
            let look = shard.look(now, quiet);
            self.loaded += usize::from(look != Look::Empty);
            self.quiet += usize::from(look == Look::Quiet);
            if look == Look::Idle {
                match &mut idle {
                    Some(batch) => _ = batch.add(shard),
                    none => *none = Some(Batch::new(shard)),
                }
            }
        }
        (idle, self.next >= count)
    }
}

/// Looks at the shards and drains those that are idle.
#[cold]
fn look(now: u64) {
    // Who is there already looks or drains.
    let Some(mut drainer) = try_drainer() else { return };
    let (due, quiet) = (DUE.load(Relaxed), QUIET.load(Relaxed));
    if due == 0 || due > now {
        return;
    }
    if quiet == NEVER || !membarrier::available() {
        QUIET_SHARDS.store(0, Relaxed);
        DUE.store(NEVER, Relaxed);
        return;
    }
    let (idle, over) = drainer.round.go_on(|id| gate::existing(id as u32), gate::count(), now, quiet);
    let mut list = List::new();
    let drained = idle.as_ref().is_none_or(|idle| drainer.drain(idle, &mut list));
    if over {
        let round = core::mem::replace(&mut drainer.round, Round::new());
        QUIET_SHARDS.store(round.quiet, Relaxed);
        let next = now.saturating_add(quiet / LOOKS_PER_QUIET);
        DUE.store(if round.loaded > 0 { next } else { 0 }, Relaxed);
        // Whoever got a magazine meanwhile saw that a look was due, and noted nothing.
        if round.loaded == 0 && gate::shards().any(|shard| shard.sum().is_some()) {
            DUE.store(next, Relaxed);
        }
    }
    if !drained {
        // A filter that came later, or no memory for the fence.
        QUIET_SHARDS.store(0, Relaxed);
        DUE.store(now.saturating_add(quiet.saturating_mul(QUIET_SHARE)), Relaxed);
        return;
    }
    drop(drainer);
    if let Some(idle) = idle {
        IDLE_DRAINED.fetch_add(idle.shards().len() as u64, Relaxed);
        depot::leave(list);
    }
}

/// When shards are drained for the bound, and whether that last failed for want of a fence.
static PACE: Pace = Pace::new();
static NO_FENCE: AtomicBool = AtomicBool::new(false);

/// Drains the shards other than `own` that were changed least recently, if it is time to do so. What they had goes to
/// the depot, where others find it. Where no lock is held.
#[cold]
pub(super) fn make_room(own: &Shard, now: u64) -> Room {
    if !membarrier::available() {
        return Room::Never;
    }
    if !PACE.begin(now) {
        return if NO_FENCE.load(Relaxed) { Room::Never } else { Room::Later };
    }
    let Some(mut drainer) = try_drainer() else { return Room::Later };
    let Some(batch) = least_recent(gate::shards(), own, now, bound::VCPUS.enough()) else {
        PACE.end(now, false);
        return Room::Later;
    };
    let (held, unused, mut list) = (batch.held(), batch.unused(now), List::new());
    let drained = drainer.drain(&batch, &mut list);
    drop(drainer);
    let made = held > batch.held();
    PACE.end(now, made && unused);
    NO_FENCE.store(!drained, Relaxed);
    let mut rest = List::new();
    while let Some(magazine) = list.pop() {
        if magazine.is_empty() {
            depot::put_empty(magazine);
        } else if let Err(back) = depot::put_full(magazine) {
            rest.push(back);
        }
    }
    depot::leave(rest);
    BOUND_DRAINED.fetch_add(if drained { batch.shards().len() as u64 } else { 0 }, Relaxed);
    match (drained, made) {
        (false, _) => Room::Never,
        (true, true) => Room::Made,
        (true, false) => Room::Later,
    }
}

/// Of the shards that have magazines and are not `own`, those that have been as they are for longest, the largest of
/// those that changed at the same time: as many as have `enough` bytes together, a batch at most.
pub(super) fn least_recent<'a>(
    shards: impl Iterator<Item = &'a Shard>,
    own: &Shard,
    now: u64,
    enough: usize,
) -> Option<Batch<'a>> {
    let mut found: [Option<(u64, usize, &Shard)>; BATCH] = [None; BATCH];
    for shard in shards.filter(|shard| !core::ptr::eq(*shard, own)) {
        if shard.look(now, NEVER) == Look::Empty {
            continue;
        }
        let mut one = Some((shard.seen.since.load(Relaxed), usize::MAX - shard.held.load(Relaxed), shard));
        let order = |of: &Option<(u64, usize, &Shard)>| of.map_or((NEVER, 0), |(since, rest, _)| (since, rest));
        for place in &mut found {
            if order(&one) < order(place) {
                core::mem::swap(&mut one, place);
            }
        }
    }
    let mut found = found.into_iter().flatten().map(|(_, _, shard)| shard);
    let mut batch = Batch::new(found.next()?);
    for shard in found {
        if batch.held() >= enough {
            break;
        }
        batch.add(shard);
    }
    Some(batch)
}

#[cfg(test)]
mod tests {
    use super::super::tests::alone;
    use super::super::{Access, Visit, allocate, arena::OnArena, drain::give_back, free};
    use super::*;
    use crate::size_class::{bin, class_of_bin};
    extern crate std;
    use std::vec::Vec;

    /// A pair for each of these sizes, so that each has a magazine.
    fn load(access: &OnArena, sizes: &[usize]) {
        access.shard().toll.switch_off();
        for size in sizes {
            let bin = bin(size - 1).unwrap();
            while access.shard().top(bin).load(Relaxed) == NONE {
                let Visit::Done(block) = allocate(access, bin) else { panic!("alone") };
                assert!(matches!(free(access, bin, block), Visit::Done(())));
            }
        }
    }

    fn take(access: &OnArena, size: usize) -> usize {
        let Ok(block) = access.pop(bin(size - 1).unwrap()) else { panic!("loaded") };
        block
    }

    fn put(access: &OnArena, size: usize, block: usize) {
        assert!(access.push(bin(size - 1).unwrap(), block).is_ok());
    }

    /// Promise: a shard is idle when nothing changed for so long, and any change that is there at a look begins anew.
    #[test]
    fn idle_is_a_matter_of_time() {
        let access = alone();
        let shard = access.shard();
        assert_eq!(shard.look(5, 100), Look::Empty);
        load(&access, &[2000, 2200]);
        let looks = |times: &[u64]| -> Vec<Look> { times.iter().map(|&now| shard.look(now, 100)).collect() };
        assert_eq!(looks(&[1000, 1025, 1099, 1100]), [Look::Changed, Look::Quiet, Look::Quiet, Look::Idle]);
        let first = take(&access, 2000);
        assert_eq!(looks(&[1125, 1150]), [Look::Changed, Look::Quiet]);
        // One more in one bin and one less in another is a change.
        let second = take(&access, 2200);
        put(&access, 2000, first);
        assert_eq!(looks(&[1175, 1200, 1275]), [Look::Changed, Look::Quiet, Look::Idle]);
        put(&access, 2200, second);
        assert_eq!(looks(&[1300]), [Look::Changed]);
        give_back(&access);
        assert_eq!(looks(&[1400]), [Look::Empty]);
        load(&access, &[2000]);
        assert_eq!(looks(&[1401, 1501]), [Look::Changed, Look::Idle], "it was empty in between");
        give_back(&access);
    }

    /// Promise: a tick looks at so many shards and no more, drains at most a batch, and nobody is left out.
    #[test]
    fn rounds_are_cut_into_pieces() {
        const COUNT: usize = 100;
        let shards: Vec<OnArena> = (0..COUNT).map(|_| alone()).collect();
        for (at, access) in shards.iter().enumerate() {
            if !at.is_multiple_of(3) {
                load(access, &[2500]);
            }
        }
        let mut round = Round::new();
        let mut go_on = |now| {
            let (idle, over) = round.go_on(|id| shards.get(id).map(Access::shard), COUNT, now, 100);
            let idle = idle.map_or(Vec::new(), |batch| batch.shards().to_vec());
            for shard in &idle {
                let access = shards.iter().find(|access| core::ptr::eq(access.shard(), *shard)).unwrap();
                give_back(access);
            }
            let found = (idle.len(), over.then_some((round.loaded, round.quiet)));
            if over {
                round = Round::new();
            }
            found
        };
        assert_eq!([go_on(1), go_on(1)], [(0, None), (0, Some((66, 0)))]);
        // One of them is used.
        let block = take(&shards[1], 2500);
        assert_eq!([go_on(50), go_on(50)], [(0, None), (0, Some((66, 65)))]);
        let pieces: Vec<_> = (0..5).map(|_| go_on(101)).collect();
        assert_eq!(pieces, [(16, None), (16, None), (16, None), (16, None), (1, Some((66, 1)))]);
        assert_eq!([go_on(150), go_on(150)], [(1, None), (0, Some((1, 0)))], "and then it was not");
        crate::central::free_one(class_of_bin(bin(2500 - 1).unwrap()), block);
    }

    /// Promise: those that were not changed for longest are found first, the largest first of equals, as many as are
    /// wanted, and never the one that asks.
    #[test]
    fn the_least_recently_changed_are_found() {
        let shards: Vec<OnArena> = (0..5).map(|_| alone()).collect();
        let found = |own: usize, now, enough| -> Vec<usize> {
            let batch = least_recent(shards.iter().map(Access::shard), shards[own].shard(), now, enough);
            let at = |shard: &&Shard| shards.iter().position(|access| core::ptr::eq(access.shard(), *shard)).unwrap();
            batch.map_or(Vec::new(), |batch| batch.shards().iter().map(at).collect())
        };
        assert_eq!(found(0, 1, usize::MAX), []);
        load(&shards[1], &[2800]);
        load(&shards[2], &[2800, 3000]);
        load(&shards[3], &[2800]);
        assert_eq!(found(0, 1, usize::MAX), [2, 1, 3]);
        load(&shards[4], &[2800]);
        let block = take(&shards[2], 2800);
        assert_eq!(found(3, 2, usize::MAX), [1, 2, 4]);
        assert_eq!(found(0, 2, 1), [1]);
        assert_eq!(found(0, 2, shards[1].shard().held.load(Relaxed) + 1), [1, 3]);
        put(&shards[2], 2800, block);
        shards.iter().for_each(give_back);
    }
}
