//! Promises about tolls, held through shards that nobody else knows. Where visits are played, the clock is the test's.

use super::*;
use crate::magazine::Owned;
use crate::shard::arena::OnArena;
use crate::shard::tests::{allocate_until_done, alone, free_until_done, through};
use crate::shard::{Access, Miss, allocate, drain, free};
use crate::size_class::{bin, class_of_bin};
use core::cell::Cell;
extern crate std;
use std::vec::Vec;

/// A shard with a clock of its own, where memory always waits.
struct Play {
    arena: OnArena,
    now: Cell<u64>,
    random: Cell<u64>,
    /// Visits that asked for the time, and those for tolls that a dense burst paid for.
    visits: Cell<usize>,
    paid: Cell<usize>,
}

impl Access for Play {
    fn shard(&self) -> &Shard {
        self.arena.shard()
    }
    fn bound(&self) -> &'static crate::shard::Bound {
        self.arena.bound()
    }
    fn tick(&self) -> u64 {
        self.visits.set(self.visits.get() + 1);
        self.now.get()
    }
    through!(self => self.arena);
}

impl Play {
    fn new(seed: u64) -> Self {
        let arena = alone();
        arena.shard().toll.pretend.store(2, Relaxed);
        let zero = || Cell::new(0);
        Self { arena, now: Cell::new(1 << 20), random: Cell::new(seed), visits: zero(), paid: zero() }
    }

    fn random(&self, below: usize) -> usize {
        let next = self.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random.set(next);
        (next >> 33) as usize % below
    }

    /// Runs a call, and notes whether it was paid for.
    fn call<T>(&self, bin: usize, call: impl FnOnce() -> T) -> T {
        let toll = &self.shard().toll;
        let bought = || (toll.credit.load(Relaxed), toll.paid.load(Relaxed));
        let (is_toll, before) = (self.shard().is_toll(bin), bought());
        let result = call();
        self.paid.set(self.paid.get() + usize::from(is_toll && bought() < before));
        result
    }

    fn take(&self, bin: usize) -> usize {
        self.call(bin, || self.pop(bin).unwrap_or_else(|_| allocate_until_done(bin, || allocate(self, bin))))
    }

    fn put(&self, bin: usize, block: usize) {
        self.call(bin, || {
            if self.push(bin, block).is_err() {
                free_until_done(bin, block, || free(self, bin, block));
            }
        });
    }

    /// A dense burst, 20 calls in a microsecond: `up` blocks of random bins, and `down` random ones of all go.
    fn burst(&self, bins: &[usize], live: &mut Vec<(usize, usize)>, up: usize, down: usize) {
        for call in 0..up + down {
            self.now.set(self.now.get() + u64::from(call % 20_000 == 0));
            if call < up {
                let bin = bins[self.random(bins.len())];
                live.push((bin, self.take(bin)));
            } else {
                let (bin, block) = live.swap_remove(self.random(live.len()));
                self.put(bin, block);
            }
        }
    }

    fn tolls(&self) -> Vec<usize> {
        (0..BINS).filter(|&bin| self.shard().is_toll(bin)).collect()
    }

    fn loaded(&self) -> usize {
        (0..BINS).filter(|&bin| self.shard().top(bin).load(Relaxed) != NONE).count()
    }
}

/// Bins of sizes up to 1 KiB, as the crate has them, or the C library.
fn bins(c: bool) -> Vec<usize> {
    (1..=128).map(|step| bin(8 * step - 1).unwrap()).filter(|bin| !c || bin % 2 == 1).collect()
}

/// Promise: a dense burst of one size or a few pays nothing beyond the light visits.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn few_bins_pay_nothing() {
    for few in [1, 2, 4, 16] {
        let (play, mut live) = (Play::new(1), Vec::new());
        let bins: Vec<usize> = (0..few).map(|step| bin(200 + 24 * step).unwrap()).collect();
        for _ in 0..20 {
            play.shard().toll.note_given(WORTH);
            play.burst(&bins, &mut live, 2000, 2000);
            assert_eq!(play.tolls(), []);
        }
        assert_eq!((play.paid.get(), play.loaded()), (0, few), "{few} bins, {} visits", play.visits.get());
        drain::give_back(&play.arena);
    }
    // The light visits are so many, and no more.
    for bins in [1, 2, 4_usize] {
        let access = alone();
        let light = (0..10_000).filter(|call| access.shard().toll.decide(call % bins, false, 0).light).count();
        assert_eq!(light, usize::from(LIGHT).max(bins * usize::from(LIGHT_BIN)));
    }
}

/// Promise: a program whose blocks come and go pays nothing, however many bins it has.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn a_steady_state_pays_nothing() {
    let (play, mut live) = (Play::new(3), Vec::new());
    play.burst(&bins(false), &mut live, 10_000, 0);
    for _ in 0..200 {
        play.burst(&bins(false), &mut live, 1000, 1000);
        assert_eq!(play.tolls(), []);
    }
    assert_eq!(play.paid.get(), 0);
    live.drain(..).for_each(|(bin, block)| play.put(bin, block));
    drain::give_back(&play.arena);
}

/// Promise: wherever a dense burst of frees over many bins ends, some of them are parked, for no more than a part of what its other
/// visits cost. Rare calls for most of the sizes are noticed then, and soon nearly all of them are visits.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn rare_calls_after_a_dense_burst_are_noticed() {
    in_a_process_of_its_own("shard::toll::tests::rare_calls_after_a_dense_burst_are_noticed", rare_calls_are_noticed);
}

/// Runs the body of the test of that name in a process of its own: other tests empty the depot and change what is due.
fn in_a_process_of_its_own(test: &str, body: fn()) {
    const ALONE: &str = "RSEQ_ALLOC_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let done = again.args([test, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = std::string::String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("1 passed"),
        "{said}{}",
        std::string::String::from_utf8_lossy(&done.stderr)
    );
}

fn rare_calls_are_noticed() {
    const ENDS: usize = 20;
    for c in [false, true] {
        let (play, bins, mut live) = (Play::new(5), bins(c), Vec::new());
        let mut all_places = 0;
        for _ in 0..ENDS {
            let (visits, paid) = (play.visits.get(), play.paid.get());
            let up = 100_000 - live.len();
            play.burst(&bins, &mut live, up, 50_000 + play.random(50_000));
            let (visits, paid) = (play.visits.get() - visits, play.paid.get() - paid);
            let tolls = play.tolls().len();
            assert!(tolls > 0, "nothing is parked where {} blocks are live", live.len());
            all_places += usize::from(tolls == TOLLS);
            assert!(paid <= visits * usize::from(CREDIT) + usize::from(MOST), "{paid} of {visits}");
            // A pair in each millisecond, of those sizes that are not among the least tenth.
            let rare = |pairs: usize| {
                let before = play.visits.get();
                for _ in 0..pairs {
                    play.now.set(play.now.get() + 1);
                    let bin = bins[bins.len() / 10 + play.random(bins.len() * 9 / 10)];
                    let block = play.take(bin);
                    play.put(bin, block);
                }
                play.visits.get() - before
            };
            // One toll alone may be among those that are not called for.
            let reached = play.tolls().iter().any(|toll| bins[bins.len() / 10..].contains(toll));
            assert!(reached || tolls < TOLLS, "no toll for any but the least sizes");
            let noticed = (0..1000).any(|_| rare(1) > 0);
            assert!(noticed || !reached, "no call came to the slow path");
            if !noticed {
                continue;
            }
            rare(500);
            let visits = rare(100);
            assert!(visits >= 190, "{visits} visits in 200 calls");
        }
        assert!(all_places * 10 >= ENDS * 9, "{all_places} of {ENDS} times");
        live.drain(..).for_each(|(bin, block)| play.put(bin, block));
        drain::give_back(&play.arena);
    }
}

/// Promise: when nothing waits any more, calls for tolls load their magazines again, and pay no longer.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn nothing_stays_parked_for_nothing() {
    let (play, bins, mut live) = (Play::new(9), bins(false), Vec::new());
    play.burst(&bins, &mut live, 100_000, 100_000);
    let tolls = play.tolls();
    assert!(!tolls.is_empty());
    play.shard().toll.switch_off();
    for bin in tolls {
        let held = play.shard().usage().cached;
        for _ in 0..CALLS {
            let block = play.take(bin);
            play.put(bin, block);
        }
        assert!(play.shard().top(bin).load(Relaxed) != NONE);
        assert_eq!(play.shard().usage().cached, held);
    }
    assert_eq!(play.tolls(), []);
    drain::give_back(&play.arena);
}

/// Magazines for these sizes, loaded; `blocks` in each.
fn load(access: &OnArena, bins: &[usize], blocks: usize) {
    access.shard().toll.switch_off();
    for &bin in bins {
        let blocks: Vec<usize> = (0..blocks).map(|_| allocate_until_done(bin, || allocate(access, bin))).collect();
        blocks.into_iter().for_each(|block| free_until_done(bin, block, || free(access, bin, block)));
    }
}

/// Promise: while a burst of one size goes on, headers that do not move lose their magazines, and those that do
/// keep them; so do parked ones.
#[test]
fn cold_headers_are_unloaded() {
    let access = alone();
    let bins = [520, 552, 584, 600, 616].map(|size| bin(size - 1).unwrap());
    load(&access, &bins, 10);
    for bin in &bins[3..] {
        carry(&access, *bin, parked(*bin)).ok().unwrap();
    }
    let headers = [bins[0], bins[1], bins[2], parked(bins[3]), parked(bins[4])];
    let loaded = || headers.map(|header| access.shard().top(header).load(Relaxed) != NONE);
    unload_others(&access, bins[0], stayed);
    assert_eq!(loaded(), [true; 5]);
    let moved = [bins[1], parked(bins[3])];
    let blocks = moved.map(|header| access.pop(header).ok().unwrap());
    unload_others(&access, bins[0], stayed);
    assert_eq!(loaded(), [true, true, false, true, false], "the first is being visited, two have moved");
    for (header, block) in moved.into_iter().zip(blocks) {
        assert!(access.push(header, block).is_ok());
    }
    drain::give_back(&access);
}

/// Promise: whoever calls rarely never hits, so decay goes on with each of its calls; but only so often.
#[test]
fn light_activity_installs_nothing() {
    let access = alone();
    let toll = &access.shard().toll;
    let asides = |calls: usize, now: u64, bin: fn(usize) -> usize| {
        (0..calls).filter(|&call| toll.decide(bin(call), false, now).way == Way::Aside).count()
    };
    for window in 1..50_u64 {
        assert_eq!(asides(240, window << WINDOW_SHIFT, |call| call % 3), 240);
    }
    assert_eq!(asides(1000, 99 << WINDOW_SHIFT, |_| 7), usize::from(LIGHT));
}

/// Loads a magazine in a bin that may have a parked one, as a visit does that has not seen that.
fn load_beside(access: &OnArena, bin: usize) {
    let place = crate::shard::place(access, bin, NONE, 0).unwrap();
    let magazine = crate::shard::filled_magazine(access, class_of_bin(bin)).unwrap();
    assert!(crate::shard::install(access, bin, place, magazine).is_ok());
}

/// Promise: a bin whose two headers both have a chain loses no block, hands none out twice, and both count.
#[test]
fn two_chains_of_a_bin_lose_nothing() {
    let (access, bin) = (alone(), bin(680 - 1).unwrap());
    let shard = access.shard();
    let take = |blocks: usize| -> Vec<usize> {
        (0..blocks).map(|_| allocate_until_done(bin, || allocate(&access, bin))).collect()
    };
    let put = |blocks: &[usize]| {
        blocks.iter().for_each(|&block| free_until_done(bin, block, || free(&access, bin, block)));
    };
    shard.toll.switch_off();
    let known = take(150);
    put(&known);
    carry(&access, bin, parked(bin)).ok().unwrap();
    let (held, cached) = (shard.held.load(Relaxed), shard.usage().cached);
    load_beside(&access, bin);
    assert!(shard.is_toll(bin) && shard.held.load(Relaxed) > held && shard.usage().cached > cached);
    // The light visits take what is parked, too.
    shard.toll.pretend.store(2, Relaxed);
    let all = shard.usage().cached / crate::size_class::class(class_of_bin(bin)).size as usize;
    let mut out = take(all);
    assert_eq!(shard.usage().cached, 0);
    out.sort_unstable();
    out.dedup();
    assert_eq!(out.len(), all, "handed out twice");
    assert!(known.iter().all(|block| out.binary_search(block).is_ok()), "lost");
    shard.toll.switch_off();
    put(&out);
    carry(&access, bin, parked(bin)).ok().unwrap();
    load_beside(&access, bin);
    drain::give_back(&access);
    assert_eq!((shard.held.load(Relaxed), shard.room.load(Relaxed), shard.usage().cached), (0, 0, 0));
}

/// Promise: where the other header has got a chain meanwhile, the one that was to be moved there goes to the depot.
#[test]
fn a_chain_that_finds_no_place_goes_to_the_depot() {
    let (access, bin) = (alone(), bin(696 - 1).unwrap());
    load(&access, &[bin], 10);
    carry(&access, bin, parked(bin)).ok().unwrap();
    let first = access.shard().top(parked(bin)).load(Relaxed);
    let held = access.shard().held.load(Relaxed);
    load_beside(&access, bin);
    assert_eq!(access.shard().held.load(Relaxed), 2 * held);
    carry(&access, bin, parked(bin)).ok().unwrap();
    assert_eq!(access.shard().top(parked(bin)).load(Relaxed), first);
    assert_eq!((access.shard().top(bin).load(Relaxed), access.shard().held.load(Relaxed)), (NONE, held));
    drain::give_back(&access);
    assert_eq!(access.shard().held.load(Relaxed), 0);
}
