//! Promises held here: through a shard, by lock or by commits, no block is handed out twice or lost, and the sums of
//! the layers add up. The model is the set of blocks that are out.
//!
//! The layers below are one for the process, so each test uses bins of its own.

use super::*;
use crate::options::Options;
use crate::setup::{Route, route};
use crate::shard::vcpu::OnVcpu;
use crate::size_class::bin;
use proptest::prelude::*;
extern crate std;
use std::collections::BTreeSet;
use std::vec::Vec;

/// A shard that nobody else knows.
pub(super) fn alone() -> arena::OnArena {
    let shard = crate::meta::alloc(size_of::<Shard>(), align_of::<Shard>()).unwrap();
    // SAFETY: fresh zeroed memory of the right size and alignment, which is never freed.
    arena::OnArena::owned(unsafe { shard.cast().as_ref() })
}

/// The methods of an [`Access`] that reach a shard, as those of another one.
macro_rules! through {
    ($self:ident => $own:expr) => {
        fn pop(&$self, header: usize) -> Result<usize, Miss> {
            $own.pop(header)
        }
        fn push(&$self, header: usize, block: usize) -> Result<(), Miss> {
            $own.push(header, block)
        }
        fn replace(&$self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
            $own.replace(header, expect, new)
        }
        fn exchange(&$self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
            $own.exchange(header, expect, new)
        }
        fn extend(&$self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
            $own.extend(header, expect, new)
        }
        fn confirm(&$self, header: usize, top: usize, block: usize) -> bool {
            $own.confirm(header, top, block)
        }
        fn list_pop(&$self, head: &AtomicUsize) -> Result<Owned, Miss> {
            $own.list_pop(head)
        }
        fn list_push(&$self, head: &AtomicUsize, expect: usize, magazine: &Owned) -> Result<(), Miss> {
            $own.list_push(head, expect, magazine)
        }
    };
}
pub(super) use through;

/// Bursts of allocations (positive) and frees (negative), with the end to free from.
fn bursts() -> impl Strategy<Value = Vec<(i32, bool)>> {
    proptest::collection::vec((-600..600i32, any::<bool>()), 1..40)
}

/// Runs bursts through `take` and `put`; all blocks that `take` gives must be new.
fn run(bursts: &[(i32, bool)], mut take: impl FnMut() -> usize, mut put: impl FnMut(usize)) {
    let mut order = std::collections::VecDeque::new();
    let mut out = BTreeSet::new();
    for &(burst, oldest) in bursts {
        for _ in 0..burst.unsigned_abs() {
            if burst > 0 {
                let block = take();
                assert_ne!(block, 0);
                assert!(out.insert(block), "handed out twice");
                order.push_back(block);
            } else if let Some(block) = if oldest { order.pop_front() } else { order.pop_back() } {
                out.remove(&block);
                put(block);
            }
        }
    }
    order.into_iter().for_each(put);
}

/// Until the visit is over; what bypasses goes to the central layer, as in the front.
pub(super) fn allocate_until_done(bin: usize, access: impl Fn() -> Visit<usize>) -> usize {
    loop {
        match access() {
            Visit::Done(block) => return block,
            Visit::Again => {}
            Visit::Bypass => return central::allocate_one(class_of_bin(bin)).unwrap().as_ptr().addr(),
        }
    }
}

pub(super) fn free_until_done(bin: usize, block: usize, access: impl Fn() -> Visit<()>) {
    loop {
        match access() {
            Visit::Done(()) => return,
            Visit::Again => {}
            Visit::Bypass => return central::free_one(class_of_bin(bin), block),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 32 }))]

    #[test]
    fn through_an_arena(bursts in bursts()) {
        let bin = bin(344 - 1).unwrap();
        run(
            &bursts,
            || allocate_until_done(bin, || allocate(&arena::acquire().unwrap(), bin)),
            |block| free_until_done(bin, block, || free(&arena::acquire().unwrap(), bin, block)),
        );
    }

    #[test]
    fn through_a_vcpu(bursts in bursts()) {
        if route(&Options::new()) != Route::Vcpu {
            return Ok(());
        }
        let bin = bin(408 - 1).unwrap();
        run(
            &bursts,
            || allocate_until_done(bin, || allocate(&OnVcpu::current().unwrap(), bin)),
            |block| free_until_done(bin, block, || free(&OnVcpu::current().unwrap(), bin, block)),
        );
    }

    #[test]
    fn two_bins_share_a_class(bursts in bursts(), other in bursts()) {
        // 504 and 512 bytes: magazines of their own, the same spans.
        let (low, high) = (bin(504 - 1).unwrap(), bin(512 - 1).unwrap());
        prop_assert_eq!(class_of_bin(low), class_of_bin(high));
        for (bin, bursts) in [(low, bursts), (high, other)] {
            run(
                &bursts,
                || allocate_until_done(bin, || allocate(&arena::acquire().unwrap(), bin)),
                |block| free_until_done(bin, block, || free(&arena::acquire().unwrap(), bin, block)),
            );
        }
    }
}

#[test]
fn draining_other_vcpus_loses_nothing() {
    if route(&Options::new()) != Route::Vcpu {
        return;
    }
    let bin = bin(632 - 1).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let bursts: Vec<(i32, bool)> =
                    (0..40).map(|i| (if i % 2 == 0 { 300 } else { -290 }, i % 3 == 0)).collect();
                while !stop.load(Ordering::Relaxed) {
                    run(
                        &bursts,
                        || allocate_until_done(bin, || OnVcpu::current().map_or(Visit::Bypass, |a| allocate(&a, bin))),
                        |block| {
                            free_until_done(bin, block, || {
                                OnVcpu::current().map_or(Visit::Bypass, |a| free(&a, bin, block))
                            });
                            // Chains change between the two headers, in both directions.
                            if block % 7 == 0
                                && let Some(access) = OnVcpu::current()
                            {
                                let (from, to) = if (block >> 7).is_multiple_of(2) {
                                    (bin, parked(bin))
                                } else {
                                    (parked(bin), bin)
                                };
                                let _ = carry(&access, from, to);
                            }
                        },
                    );
                }
            });
        }
        let before = drain::drains();
        while drain::drains() < before + 300 {
            drain::purge();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Promise: a purge takes the parked magazines of all vCPUs, too.
#[test]
fn a_purge_takes_parked_magazines() {
    if route(&Options::new()) != Route::Vcpu {
        return;
    }
    let bin = bin(648 - 1).unwrap();
    // Other tests may purge at any time.
    let shard = loop {
        let Some(access) = OnVcpu::current() else { continue };
        let Some(place) = place(&access, parked(bin), NONE, 0) else { continue };
        let magazine = filled_magazine(&access, class_of_bin(bin)).unwrap();
        if let Err((_, mut magazine)) = install(&access, parked(bin), place, magazine) {
            central::flush(&mut magazine);
            depot::put_empty(magazine);
        }
        if let Some(shard) = gate::shards().find(|shard| shard.top(parked(bin)).load(Ordering::Relaxed) != NONE) {
            break shard;
        }
    };
    drain::purge();
    assert_eq!(shard.top(parked(bin)).load(Ordering::Relaxed), NONE);
}

#[test]
fn capacity_grows_with_misses_and_not_beyond_its_bound() {
    let class_index = class_of_bin(bin(712 - 1).unwrap());
    let of = class(class_index);
    assert_eq!(capacity(class_index), usize::from(of.capacity));
    for _ in 0..1000 {
        miss(class_index);
    }
    assert_eq!(capacity(class_index), usize::from(of.capacity_max));
}

#[test]
fn a_shard_starts_empty_and_full() {
    let shard = crate::meta::alloc(size_of::<Shard>(), align_of::<Shard>()).unwrap();
    // SAFETY: fresh zeroed memory of the right size and alignment.
    let shard: &Shard = unsafe { shard.cast().as_ref() };
    for header in 0..HEADERS {
        let top = shard.top(header).load(Ordering::Relaxed);
        assert!(peek(top) == 0 && magazine::is_full(top));
        assert_eq!(bin_at(displacement(bin_of(header))), bin_of(header));
    }
    assert_eq!(shard.usage().cached, 0);
}

/// Promise: a shard's budget moves to the bins that need it: when all of it is in chains that were filled once, another
/// bin gets its own by others losing theirs.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn the_budget_moves_to_the_bins_that_miss() {
    let access = alone();
    let shard = access.shard();
    shard.toll.switch_off();
    let burst = |bin: usize, blocks: usize| {
        let blocks: Vec<usize> = (0..blocks).map(|_| allocate_until_done(bin, || allocate(&access, bin))).collect();
        blocks.into_iter().for_each(|block| free_until_done(bin, block, || free(&access, bin, block)));
    };
    let longest = |bin: usize| CHAIN_BUDGET / counted(class_of_bin(bin));
    let chain = |bin: usize| {
        let mut magazines = 0_usize;
        magazine::for_each_of_chain(shard.top(bin).load(Ordering::Relaxed), |_| magazines += 1);
        magazines
    };
    let room = || shard.room.load(Ordering::Relaxed);
    let others: Vec<usize> = (0..40).map(|step| bin(399 + 16 * step).unwrap()).collect();
    for &bin in &others {
        burst(bin, 600);
    }
    assert!(room() <= DEFAULT_BUDGET && room() + CHAIN_BUDGET > DEFAULT_BUDGET, "{} bytes", room());
    let before: usize = others.iter().map(|&bin| chain(bin)).sum();
    let wanting = bin(320 - 1).unwrap();
    let mut bursts = 0;
    while chain(wanting) < longest(wanting) {
        assert!(bursts < 100 * GIVE_UP_AFTER, "{} of {}", chain(wanting), longest(wanting));
        burst(wanting, 1000);
        bursts += 1;
    }
    let after: usize = others.iter().map(|&bin| chain(bin)).sum();
    std::println!("{before} magazines in other chains, {after} after {bursts} bursts");
    assert!(after < before && room() <= DEFAULT_BUDGET);
    drain::give_back(&access);
    assert_eq!((room(), shard.held.load(Ordering::Relaxed)), (0, 0));
}
