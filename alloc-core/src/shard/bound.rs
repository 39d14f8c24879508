//! The bound for the shards of all vCPUs together: bytes of blocks for which their magazines may have room.
//!
//! Budgets are those of a shard, but how many shards there are depends on the ids that the kernel hands out: up to one
//! for each CPU of the machine, however few of them a process may use at a time. So each magazine that a header gets is
//! counted here before, and taken off when it is taken out; one that takes the place of another changes nothing.
//!
//! ```text
//!   limit = for everybody                 + a share for each shard, 64 KiB, or less where the limit is small
//!           whoever comes first             its first bytes, to be had whatever the others have
//! ```
//!
//! So the limit is never exceeded (while the number of shards stays; a new one brings its share), and no shard is left
//! without. When what is for everybody is used up, chains do not grow any more, as if the shard's own budget were. A
//! header without a magazine gets one after the shards that were changed least recently have been drained, which is
//! done at most every [`PAUSE`] milliseconds, and more rarely if there is nothing to be had or all of them are in use;
//! until then the depot and the spans serve its calls, and after [`GIVE_UP_AFTER`](super::GIVE_UP_AFTER) of them the shard gives up another of
//! its chains.
//!
//! Without membarrier nobody can drain others, and then only the chains are kept from growing: a header without a
//! magazine always gets one, and the shard gives up a chain for it if it has one. There are so many arenas for each CPU
//! that the process may use and no more, and nobody can drain those of other threads: they are not bounded.
//!
//! The sum is exact while nobody is at it. Only in the child of a fork it may hold magazines that other threads of the
//! parent were about to load, or to take out.

use super::{Access, Shard, counted, gate, give_up_another, refused_often};
use crate::limit::{self, cache_budget};
use crate::size_class::class_of_bin;
use core::mem::forget;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use crossbeam_utils::CachePadded;

/// What the default is for each CPU that the process may use: one magazine of every size up to 1 KiB, at its deepest
/// (7 MiB), and the budget of a shard for chains (4 MiB). So where there are no more ids in use than CPUs, the bound is
/// met only by programs that have very many sizes above 1 KiB in use on all of them.
const PER_CPU: usize = 12 << 20;
/// And at least: a shard with a magazine of every size there is, and its budget, counts for 28 MiB.
const LEAST_DEFAULT: usize = 32 << 20;
/// The least that can be set: below that the shares would not hold a magazine.
const LEAST: usize = 1 << 20;
/// Bytes of a shard that do not depend on others: one magazine at its deepest, or 20 of small blocks.
const SHARE: usize = 64 << 10;

/// Milliseconds between two drains for the bound, which take some 100 µs each with what they cause; and at most, where
/// they found nothing but shards in use.
pub(super) const PAUSE: u64 = 16;
const LONGEST_PAUSE: u64 = 1024;

/// See the module's description.
pub(crate) struct Bound {
    limit: AtomicUsize,
    /// How many shards there are.
    shards: fn() -> usize,
    /// Bytes for which there is room now.
    held: CachePadded<AtomicUsize>,
}

/// The one of the vCPUs, and that of the arenas, which is none.
pub(super) static VCPUS: Bound = Bound::new(LEAST_DEFAULT, gate::count);
pub(super) static ARENAS: Bound = Bound::new(usize::MAX, || 1);

/// Sets the bytes for the shards of all vCPUs.
pub(crate) fn set(bytes: usize) {
    VCPUS.limit.store(bytes.max(LEAST), Relaxed);
}

/// What they are by default in a process that may run on so many CPUs. A quota of its cgroup counts as fewer: that is
/// what this is for, since the ids that come up are as many as the machine has CPUs, whatever the quota is.
pub(crate) fn default(cpus: usize) -> usize {
    let bytes = |cpus: usize| cpus.saturating_mul(PER_CPU).max(LEAST_DEFAULT);
    // Where the quota makes no difference, its files are not read.
    let usable = if bytes(cpus) > LEAST_DEFAULT { limit::cpus().map_or(cpus, |quota| quota.min(cpus)) } else { cpus };
    bytes(usable)
}

/// What [`usage`] reports.
pub(crate) struct Usage {
    pub(crate) limit: usize,
    pub(crate) held: usize,
}

/// The limit, or 0 for none, and for how much there is room.
pub(crate) fn usage() -> Usage {
    let limit = VCPUS.limit.load(Relaxed);
    Usage { limit: if limit == usize::MAX { 0 } else { limit }, held: VCPUS.held.load(Relaxed) }
}

/// Room that was counted for a magazine. Dropped, it is taken off again; kept, it is when the magazine leaves the shard.
#[must_use = "the room is taken off again"]
pub(super) struct Charge<'a> {
    bound: &'static Bound,
    shard: &'a Shard,
    bytes: usize,
}

impl Charge<'_> {
    /// The header has got the magazine.
    pub(super) fn keep(self) {
        forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.bound.release(self.shard, self.bytes);
    }
}

impl Bound {
    const fn new(limit: usize, shards: fn() -> usize) -> Self {
        Self { limit: AtomicUsize::new(limit), shards, held: CachePadded::new(AtomicUsize::new(0)) }
    }

    /// Counts a magazine of so many bytes for a shard, unless that would be too much for all.
    pub(super) fn charge<'a>(&'static self, shard: &'a Shard, bytes: usize) -> Option<Charge<'a>> {
        let limit = cache_budget(self.limit.load(Relaxed));
        let shards = (self.shards)().max(1);
        let share = SHARE.min(limit / 2 / shards);
        let up_to = |most: usize| move |held: usize| held.checked_add(bytes).filter(|&sum| sum <= most);
        if shard.held.fetch_update(Relaxed, Relaxed, up_to(share)).is_ok() {
            self.held.fetch_add(bytes, Relaxed);
        } else if self.held.fetch_update(Relaxed, Relaxed, up_to(limit - shards * share)).is_ok() {
            shard.held.fetch_add(bytes, Relaxed);
        } else {
            // Of the shard, so that those who are refused do not wait for each other; lost counts do no harm.
            shard.hits.store(shard.hits.load(Relaxed) + 1, Relaxed);
            return None;
        }
        Some(Charge { bound: self, shard, bytes })
    }

    /// Counts it whatever there is.
    fn charge_anyway<'a>(&'static self, shard: &'a Shard, bytes: usize) -> Charge<'a> {
        self.held.fetch_add(bytes, Relaxed);
        shard.held.fetch_add(bytes, Relaxed);
        Charge { bound: self, shard, bytes }
    }

    /// Takes the bytes of magazines off that have left a shard.
    pub(super) fn release(&self, shard: &Shard, bytes: usize) {
        shard.held.fetch_sub(bytes, Relaxed);
        self.held.fetch_sub(bytes, Relaxed);
    }

    /// How many bytes are enough to be drained at a time.
    pub(super) fn enough(&self) -> usize {
        self.limit.load(Relaxed) / 8
    }
}

/// What can be done for a shard when all that is for everybody is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// Others were drained.
    Made,
    /// Nothing now; later perhaps.
    Later,
    /// Nothing, ever: nobody takes from others' shards.
    Never,
}

/// Room for the first magazine of `bin`, at the time `now` in milliseconds; `None` if the call is to be served without
/// one. See the module's description.
#[inline]
pub(super) fn first<A: Access>(access: &A, bin: usize, now: u64) -> Option<Charge<'_>> {
    let charge = access.bound().charge(access.shard(), counted(class_of_bin(bin)));
    charge.or_else(|| first_beyond(access, bin, now))
}

#[cold]
fn first_beyond<A: Access>(access: &A, bin: usize, now: u64) -> Option<Charge<'_>> {
    let (bound, shard, bytes) = (access.bound(), access.shard(), counted(class_of_bin(bin)));
    match access.make_room(now) {
        Room::Made => {
            if let Some(charge) = bound.charge(shard, bytes) {
                return Some(charge);
            }
        }
        Room::Later => {}
        Room::Never => {
            give_up_another(access, bin, false);
            return Some(bound.charge_anyway(shard, bytes));
        }
    }
    if !refused_often(shard) {
        return None;
    }
    give_up_another(access, bin, true);
    bound.charge(shard, bytes)
}

/// When others may be drained for the bound.
pub(super) struct Pace {
    /// Not before this time, in milliseconds.
    next: AtomicU64,
    /// Milliseconds between two drains.
    pause: AtomicU64,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self { next: AtomicU64::new(0), pause: AtomicU64::new(PAUSE) }
    }

    /// Whether it is time; for one thread.
    pub(super) fn begin(&self, now: u64) -> bool {
        let next = self.next.load(Relaxed);
        let then = now.saturating_add(self.pause.load(Relaxed));
        next <= now && self.next.compare_exchange(next, then, Relaxed, Relaxed).is_ok()
    }

    /// Notes whether there was anything to be had that nobody uses.
    pub(super) fn end(&self, now: u64, unused: bool) {
        let pause = if unused { PAUSE } else { (self.pause.load(Relaxed) * 2).min(LONGEST_PAUSE) };
        self.pause.store(pause, Relaxed);
        self.next.store(now.saturating_add(pause), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::idle::least_recent;
    use super::super::tests::{alone, through};
    use super::super::{HEADERS, Miss, Visit, allocate, arena::OnArena, bin_of, free, take_chain};
    use super::*;
    use crate::magazine::{List, NONE, Owned, for_each_of_chain};
    use crate::size_class::bin;
    use crate::{central, depot};
    extern crate std;
    use std::boxed::Box;
    use std::cell::Cell;
    use std::vec::Vec;

    const MIB: usize = 1 << 20;

    fn bound(limit: usize, shards: fn() -> usize) -> &'static Bound {
        Box::leak(Box::new(Bound::new(limit, shards)))
    }

    /// Promise: the limit is never exceeded, and the share of each shard is there however much the others have.
    #[test]
    fn shares_are_kept() {
        let bound = bound(MIB, || 4);
        let shards = [alone(), alone(), alone(), alone()];
        let [greedy, others @ ..] = shards.each_ref().map(Access::shard);
        let mut charges: Vec<Charge<'_>> = core::iter::from_fn(|| bound.charge(greedy, 10_000)).collect();
        assert_eq!(charges.len(), (MIB - 4 * SHARE) / 10_000);
        assert_eq!(greedy.hits.load(Relaxed), 1);
        for shard in others {
            let own: Vec<Charge<'_>> = core::iter::from_fn(|| bound.charge(shard, 10_000)).collect();
            assert_eq!(own.len(), SHARE / 10_000);
            charges.extend(own);
        }
        assert!(bound.held.load(Relaxed) <= MIB);
        // What goes is there for others.
        charges.pop();
        assert!(bound.charge(greedy, 10_000).is_none());
        charges.drain(..2);
        charges.extend(bound.charge(others[0], 10_000));
        drop(charges);
        assert_eq!(bound.held.load(Relaxed), 0);
        assert!(shards.iter().all(|access| access.shard().held.load(Relaxed) == 0));
    }

    /// Promise: others are drained at most every [`PAUSE`] milliseconds, and hardly ever where there is nothing to be had.
    #[test]
    fn drains_for_nothing_become_rare() {
        let pace = Pace::new();
        let played = |from: u64, some: bool| {
            let tried = |now: &u64| {
                let begun = pace.begin(*now);
                if begun {
                    pace.end(*now, some);
                }
                begun
            };
            (from..from + 10_000).filter(tried).count() as u64
        };
        assert_eq!(played(1, true), 10_000 / PAUSE);
        let rare = played(10_001, false);
        assert!((10..=17).contains(&rare), "{rare} times");
        let often = played(30_001, true);
        assert_eq!(often, 10_000 / PAUSE, "at once again");
    }

    /// Shards that nobody else knows, with a bound and a clock of their own.
    struct World {
        shards: Vec<OnArena>,
        bound: &'static Bound,
        pace: Pace,
        now: Cell<u64>,
        drains: Cell<usize>,
    }

    /// One of them, as if it were a vCPU's: others are drained for it.
    struct Fake<'a>(&'a World, usize);

    impl Fake<'_> {
        fn own(&self) -> &OnArena {
            &self.0.shards[self.1]
        }
    }

    impl World {
        fn new(shards: fn() -> usize, limit: usize) -> Self {
            Self {
                shards: (0..shards()).map(|_| alone()).collect(),
                bound: bound(limit, shards),
                pace: Pace::new(),
                now: Cell::new(1),
                drains: Cell::new(0),
            }
        }

        fn drain(&self, shard: &Shard, list: &mut List) {
            for top in &shard.tops {
                match top.swap(NONE, Relaxed) {
                    NONE => {}
                    // SAFETY: one thread has all shards of this world.
                    top => unsafe { take_chain(self.bound, shard, top, list) },
                }
            }
        }

        fn flush(mut list: List) {
            while let Some(mut magazine) = list.pop() {
                if !magazine.is_empty() {
                    central::flush(&mut magazine);
                }
                depot::put_empty(magazine);
            }
        }

        /// For what there is room, counted anew.
        fn recount(&self) -> usize {
            let mut sum = 0;
            for access in &self.shards {
                let mut own = 0;
                for header in 0..HEADERS {
                    let count = |_| own += counted(class_of_bin(bin_of(header)));
                    for_each_of_chain(access.shard().top(header).load(Relaxed), count);
                }
                assert_eq!(own, access.shard().held.load(Relaxed));
                sum += own;
            }
            sum
        }
    }

    impl Access for Fake<'_> {
        fn shard(&self) -> &Shard {
            self.own().shard()
        }
        fn bound(&self) -> &'static Bound {
            self.0.bound
        }
        fn make_room(&self, _: u64) -> Room {
            let world = self.0;
            let now = world.now.get();
            if !world.pace.begin(now) {
                return Room::Later;
            }
            let shards = world.shards.iter().map(Access::shard);
            let mut list = List::new();
            let batch = least_recent(shards, self.shard(), now, world.bound.enough());
            batch.iter().flat_map(|batch| batch.shards()).for_each(|shard| world.drain(shard, &mut list));
            world.pace.end(now, batch.as_ref().is_some_and(|batch| batch.unused(now)));
            world.drains.set(world.drains.get() + 1);
            World::flush(list);
            if batch.is_some() { Room::Made } else { Room::Later }
        }
        through!(self => self.own());
    }

    /// Bursts on all shards in turn, of 16 sizes; a millisecond is 2000 calls. Returns how many calls were served by a
    /// magazine of the shard at once, in percent, and how often others were drained.
    fn play(world: &World, rounds: usize) -> (usize, usize) {
        let mut random = 1_u64;
        let (mut calls, mut hits, mut most) = (0_usize, 0_usize, 0);
        for round in 0..rounds {
            for at in 0..world.shards.len() {
                let access = Fake(world, at);
                access.shard().toll.switch_off();
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let bin = bin(335 + 16 * (random >> 33) as usize % 256).unwrap();
                let burst = 10 + (random >> 50) as usize % 200;
                let blocks: Vec<usize> = (0..burst)
                    .map(|_| match access.pop(bin) {
                        Ok(block) => {
                            hits += 1;
                            block
                        }
                        Err(_) => loop {
                            match allocate(&access, bin) {
                                Visit::Done(block) => break block,
                                Visit::Again => {}
                                Visit::Bypass => {
                                    break central::allocate_one(class_of_bin(bin))
                                        .unwrap()
                                        .as_ptr()
                                        .expose_provenance();
                                }
                            }
                        },
                    })
                    .collect();
                for block in blocks {
                    if access.push(bin, block).is_ok() {
                        hits += 1;
                        continue;
                    }
                    loop {
                        match free(&access, bin, block) {
                            Visit::Done(()) => break,
                            Visit::Again => {}
                            Visit::Bypass => break central::free_one(class_of_bin(bin), block),
                        }
                    }
                }
                calls += 2 * burst;
                world.now.set(1 + calls as u64 / 2000);
                most = most.max(world.bound.held.load(Relaxed));
                assert!(most <= world.bound.limit.load(Relaxed), "{most} bytes");
            }
            if round.is_multiple_of(10) {
                assert_eq!(world.recount(), world.bound.held.load(Relaxed));
            }
        }
        let percent = hits * 100 / calls;
        std::println!("{calls} calls, {percent}% hit, {} drains, {} KiB at most", world.drains.get(), most >> 10);
        (percent, world.drains.get())
    }

    /// Promise: with shards for 64 CPUs that are all in use, and want more than there is, the bound holds at every
    /// moment, the sums are exact, and nobody is served without a magazine for long.
    #[test]
    #[cfg_attr(miri, ignore = "takes long")]
    fn it_holds_for_many_shards_in_use() {
        let world = World::new(|| 64, 24 * MIB);
        let (percent, drains) = play(&world, 40);
        assert!(percent >= 70, "{percent}%");
        assert!(drains as u64 <= 1 + world.now.get() / PAUSE);
        // So little that no shard's share holds a magazine.
        let world = World::new(|| 64, MIB);
        let (percent, _) = play(&world, 40);
        assert!(percent >= 1, "{percent}%");
        assert!(world.shards.iter().any(|access| access.shard().held.load(Relaxed) > 0));
        let mut list = List::new();
        world.shards.iter().for_each(|access| world.drain(access.shard(), &mut list));
        World::flush(list);
        assert_eq!(world.bound.held.load(Relaxed), 0);
    }

    /// Promise: the one shard that is in use gets what many have left, by draining those.
    #[test]
    #[cfg_attr(miri, ignore = "takes long")]
    fn who_is_in_use_gets_what_others_left() {
        let world = World::new(|| 64, 8 * MIB);
        play(&world, 20);
        let access = Fake(&world, 0);
        let bins: Vec<usize> = (0..16).map(|step| bin(335 + 16 * step).unwrap()).collect();
        for call in 0..200_000_usize {
            let bin = bins[call % bins.len()];
            if let Ok(block) = access.pop(bin) {
                access.push(bin, block).ok().unwrap();
            } else if let Visit::Done(block) = allocate(&access, bin) {
                while let Visit::Again = free(&access, bin, block) {}
            }
            world.now.set(world.now.get() + u64::from(call.is_multiple_of(2000)));
        }
        let loaded = bins.iter().filter(|&&bin| access.shard().top(bin).load(Relaxed) != NONE).count();
        std::println!("{loaded} of 16 loaded");
        assert_eq!(loaded, 16, "sizes have a magazine");
    }
}
