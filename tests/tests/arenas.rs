//! Thread arenas, asked for by the builder.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alloc_core::{IndexChoice, Mode, RseqAlloc};
use integration::body::churn_patterned;
use integration::child;
use integration::configuration::{Configuration, expect_arenas};
use integration::harness::Check;

/// Set in a process that has not used any arenas before.
const ALONE: &str = "INTEGRATION_ARENAS_ALONE";

integration::configuration!(
    RseqAlloc::new().index(IndexChoice::Arenas),
    Configuration {
        name: "arenas",
        enter: || {
            match std::env::var(ALONE).as_deref() {
                Ok("threads") => threads_have_arenas_of_their_own(),
                Ok("purges") => arenas_are_made_beside_purges(),
                _ => return,
            }
            std::process::exit(0);
        },
        promise,
        body: integration::body::ALL,
        checks: &[
            Check::new("threads_have_arenas_of_their_own", || {
                let finished = child::run(child::again().env(ALONE, "threads"), Duration::from_secs(60));
                finished.expect_success("a process of its own");
            }),
            Check::new("arenas_are_made_beside_purges", || {
                for _ in 0..50 {
                    let finished = child::run(child::again().env(ALONE, "purges"), Duration::from_secs(60));
                    finished.expect_success("a process of its own");
                }
            }),
            Check::new("more_threads_share", more_threads_share),
            Check::new("a_purge_asks_the_other_threads", a_purge_asks_the_other_threads),
        ],
    }
);

fn promise(mode: &Mode) -> Result<(), String> {
    expect_arenas(mode, "")
}

/// Lets so many threads churn at the same time.
fn churn_in(threads: usize, operations: usize) {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                churn_patterned(thread as u64, operations);
                barrier.wait();
            });
        }
    });
}

/// Promise: threads have arenas of their own while there are some, and an arena that a thread leaves is the next one's.
fn threads_have_arenas_of_their_own() {
    for thread in 0..200 {
        std::thread::scope(|scope| scope.spawn(move || churn_patterned(thread, 100)).join()).expect("no panic");
    }
    let used = alloc_core::stats().arenas_used;
    println!("{used} arenas used by 200 threads, one after the other");
    // The main thread's, the others', and shared ones for what comes before and after.
    assert!(used <= 4, "{used} arenas used by 200 threads, one after the other");
    churn_in(4, 50_000);
    let used = alloc_core::stats().arenas_used;
    println!("{used} arenas used by four threads");
    assert!(used >= 5, "{used} arenas used by four threads and the main one");
}

/// Promise: a purge may come at any moment of an arena's life, its first one included.
fn arenas_are_made_beside_purges() {
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let ended = &ended;
            scope.spawn(move || {
                churn_patterned(thread, 20);
                ended.fetch_add(1, Ordering::Relaxed);
            });
            alloc_core::purge();
        }
        while ended.load(Ordering::Relaxed) < 16 {
            alloc_core::purge();
        }
    });
}

/// Promise: any number of threads is served; those that find all arenas taken share others, under locks.
fn more_threads_share() {
    churn_in(150, 2_000);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let used = alloc_core::stats().arenas_used;
    println!("{used} arenas used by 150 threads on {cpus} CPUs");
    assert!(used > (8 * cpus).min(64) && used <= (8 * cpus).min(64) + cpus, "{used} arenas on {cpus} CPUs");
}

/// Promise: what a thread's own arena holds is given back by the thread itself, when it comes to the slow path after a
/// purge.
fn a_purge_asks_the_other_threads() {
    const BLOCKS: usize = 2000;
    const SIZE: usize = 904;
    let fill = || drop((0..BLOCKS).map(|_| Vec::<u8>::with_capacity(SIZE)).collect::<Vec<_>>());
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fill();
            barrier.wait();
            barrier.wait();
            // A size that was never used: there is no magazine for it.
            drop(Vec::<u8>::with_capacity(24_000));
            barrier.wait();
            barrier.wait();
        });
        barrier.wait();
        let before = alloc_core::stats().cached_shards;
        alloc_core::purge();
        let asked = alloc_core::stats().cached_shards;
        barrier.wait();
        barrier.wait();
        let after = alloc_core::stats().cached_shards;
        println!("{before} bytes cached, {asked} after the purge, {after} after the thread's next call");
        assert!(asked > 100 * SIZE && after + 100 * SIZE < asked, "{before}, {asked}, {after}");
        barrier.wait();
    });
}
