//! The soft limit.

use super::{ALLOC, Blocks, MIB, MODES, layout, settled_stats};
use integration::scenes;
use std::alloc::GlobalAlloc;

const LIMIT: usize = 64 * MIB;

/// Promise: what is free is given back before the process goes beyond the soft limit, and then the request is served.
pub(super) fn purges_first() {
    for mode in MODES {
        scenes::run("soft", &format!("{mode},decay=never,soft_limit=64M"));
    }
}

pub(super) fn play() {
    let mut purges = 0;
    for (free, wanted) in [(500, 3 * MIB), (3 * MIB, 40_000), (70_000, 20 * MIB)] {
        drop(Blocks::of(free, 50 * MIB));
        let before = settled_stats();
        assert_eq!(before.soft_limit, LIMIT);
        let blocks = Blocks::of(wanted, 45 * MIB);
        let after = settled_stats();
        println!("{free} before {wanted}: {after}");
        assert!(after.counted <= LIMIT, "{after}");
        assert!(after.soft_limit_purges > purges && after.soft_limit_hits > before.soft_limit_hits, "{after}");
        assert!(after.soft_limit_purges <= purges + 3, "{after}");
        purges = after.soft_limit_purges;
        drop(blocks);
    }
    // It refuses nothing: neither a block longer than itself nor what comes then.
    let mut blocks = Blocks::of(3 * LIMIT, 3 * LIMIT);
    assert!((0..1000).all(|_| blocks.add(900)));
    assert_eq!(settled_stats().hard_limit_hits, 0);
}

/// Promise: a process that lives above its soft limit purges once for each eighth that it grows, not at each growth.
pub(super) fn does_not_purge_at_each_growth() {
    for mode in MODES {
        scenes::run("soft_growth", &format!("{mode},soft_limit=64M"));
    }
}

pub(super) fn play_growth() {
    let mut blocks = Blocks::of(50_000, 10 * LIMIT);
    let grown = settled_stats();
    println!("ten times the soft limit: {grown}");
    // 9/8 to the 20th is 10.5.
    assert!((10..=24).contains(&grown.soft_limit_purges), "{grown}");
    // Coming and going far above it.
    for round in 0..2000 {
        drop(Blocks::of(1500 + 100 * (round % 7), MIB));
        drop(Blocks::of(MIB + 50_000 * (round % 5), 4 * MIB));
    }
    let churned = settled_stats();
    println!("after coming and going: {churned}");
    assert!(churned.soft_limit_purges <= grown.soft_limit_purges + 2, "{churned}");
    // Below it again, the limit is where it was.
    blocks.retain(|_| false);
    alloc_core::purge();
    drop(Blocks::of(500, 50 * MIB));
    let _blocks = Blocks::of(3 * MIB, 40 * MIB);
    let below = settled_stats();
    assert!(below.soft_limit_purges > churned.soft_limit_purges && below.counted <= LIMIT, "{below}");
}

/// Promise: above the soft limit caches keep a quarter, and freed large mappings are not kept.
pub(super) fn shrinks_caches() {
    let kept = |options: &str| -> Vec<usize> {
        let finished = scenes::run("soft_caches", options);
        let line = finished.stdout.lines().find_map(|line| line.strip_prefix("cached ")).expect("figures");
        line.split(' ').map(|figure| figure.parse().expect("a number")).collect()
    };
    for mode in MODES {
        let (free, shrunk) = (kept(mode), kept(&format!("{mode},soft_limit=1M")));
        // Large mappings; blocks in shards and depot. A loaded magazine is never too much.
        assert!(free[0] >= 8 * MIB && shrunk[0] == 0, "{free:?} {shrunk:?}");
        assert!(shrunk[1] * 2 < free[1], "{free:?} {shrunk:?}");
    }
}

pub(super) fn play_caches() {
    let _live = Blocks::of(20_000, 4 * MIB);
    drop(Blocks::of(8 * MIB, 8 * MIB));
    drop(Blocks::of(1024, 16 * MIB));
    let stats = settled_stats();
    println!("cached {} {}", stats.cached_large, stats.cached_shards + stats.cached_depot);
}

/// Promise: a large block that grows beyond the soft limit is moved as it would be without one, not copied into a second
/// one beside it.
pub(super) fn resize_is_not_turned_into_a_copy() {
    scenes::run("soft_resize", "soft_limit=64M,hard_limit=120M");
}

pub(super) fn play_resize() {
    drop(Blocks::of(500, 10 * MIB));
    let mut size = 40 * MIB;
    // SAFETY: the size is not zero.
    let mut block = unsafe { ALLOC.alloc(layout(size)) };
    // There is no room for two of them below the hard limit.
    while size < 110 * MIB {
        // SAFETY: the block is ours, of that size.
        block = unsafe { ALLOC.realloc(block, layout(size), size + MIB) };
        size += MIB;
        assert!(!block.is_null(), "{size} bytes: {}", settled_stats());
    }
    let stats = settled_stats();
    println!("{stats}");
    assert!((1..=6).contains(&stats.soft_limit_purges) && stats.hard_limit_hits == 0, "{stats}");
    // SAFETY: the block is ours.
    unsafe { ALLOC.dealloc(block, layout(size)) };
}
