//! What the shards of several vCPUs hold. Promise: the shard of a vCPU that nobody uses gives its blocks back within the decay
//! interval, while there is light activity on another; and all together never have room for more than `cache=` says,
//! however many of them want it, and who comes last gets some of it.
//!
//! Each scene is a process of its own, with its options in the environment.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alloc_core::{IndexKind, RseqAlloc, Stats, stats};
use integration::configuration::best_index;
use integration::disturb::{allowed_cpus, pin};
use integration::harness::{self, Check};
use integration::random::Random;
use integration::resident::resident;
use integration::scenes::{self, Scenes};
use integration::touched::Block;

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

const MIB: usize = 1 << 20;
/// The interval of decay, and how long to wait for what takes little more.
const DECAY: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);

const SCENES: &Scenes = &[
    ("idle_goes", idle_goes),
    ("silent_goes", silent_goes),
    ("idle_stays", idle_stays),
    ("bound", bound_holds),
    ("last", last_gets_some),
];

fn main() -> ExitCode {
    scenes::enter(SCENES);
    harness::main(&[&[
        Check::new("an_idle_cpu_gives_back", || run("idle_goes", "index=cpu_id,decay=400")),
        Check::new("an_idle_id_gives_back", || run("idle_goes", "index=auto,decay=400")),
        Check::new("all_are_idle_in_a_silent_process", || run("silent_goes", "index=cpu_id,decay=400,background=on")),
        Check::new("an_idle_cpu_gives_back_with_decay_0", || run("idle_goes", "index=cpu_id,decay=0")),
        Check::new("nothing_is_idle_without_decay", || run("idle_stays", "index=cpu_id,decay=never")),
        Check::new("the_bound_holds_under_load", || run("bound", "index=cpu_id,decay=400,cache=1M")),
        Check::new("who_comes_last_gets_some", || run("last", "index=cpu_id,decay=never,cache=1M")),
    ]])
}

fn run(scene: &str, options: &str) {
    if best_index().is_none() || !rseq_sys::membarrier::available() || allowed_cpus().len() < 2 {
        return println!("skipped: not two vCPUs that can be drained");
    }
    scenes::run(scene, options);
}

/// Blocks of one size, all allocated and then freed.
fn burst(size: usize, blocks: usize) {
    drop((0..blocks).map(|_| Block::new(size)).collect::<Vec<_>>());
}

/// Has a thread on another CPU fill the caches there with blocks of many sizes, and end. This one runs meanwhile, so
/// that it has another concurrency id. Returns what the shards held at most: where this thread is not served for a while,
/// some may have gone when it comes to look.
fn fill_another() -> usize {
    let cpus = allowed_cpus();
    pin(cpus[1]);
    std::thread::scope(|scope| {
        let filling = scope.spawn(|| {
            pin(cpus[0]);
            let mut most = 0;
            // More often than calls are led past the magazines because memory waits.
            for _ in 0..20 {
                (100..1024).step_by(16).for_each(|size| burst(size, 300));
                most = most.max(stats().cached_shards);
            }
            most
        });
        while !filling.is_finished() {
            std::hint::spin_loop();
        }
        filling.join().expect("no panic")
    })
}

/// Waits until `done`, with a few pairs now and then. The time goes by when nobody else is served, too.
fn expect(what: &str, mut act: impl FnMut(), done: impl Fn(&Stats) -> bool) {
    let (start, before) = (Instant::now(), resident());
    while !done(&stats()) {
        assert!(start.elapsed() < PATIENCE, "not {what} after {PATIENCE:?}: {}", stats());
        act();
    }
    let (intervals, gone) = (start.elapsed().div_duration_f64(DECAY), before.saturating_sub(resident()));
    println!("{what} after {intervals:.2} intervals; {} KiB less resident", gone >> 10);
}

/// A thousand pairs per second.
fn light() -> impl FnMut() {
    let mut random = Random::new(2);
    move || {
        for _ in 0..5 {
            drop(Block::new(100 + random.below(900)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn idle_goes() {
    let filled = fill_another();
    println!("{} KiB in shards", filled >> 10);
    assert!(filled >= MIB, "{}", stats());
    expect("the shard is empty", light(), |stats| stats.cached_shards <= filled / 16);
    let after = stats();
    // Now that it is alone, a thread may be given the other one's concurrency id, and empty that shard itself.
    let shared = alloc_core::mode().index() != Some(IndexKind::CpuId) && after.drains == 0;
    assert!(shared || (after.idle_drains > 0 && after.idle_drains <= after.drains * 16), "{after}");
    expect("the blocks are with the system", light(), |stats| {
        stats.cached_shards + stats.cached_depot + stats.cached_central + stats.cached_pages <= 3 * MIB / 2
    });
}

/// The background thread comes by itself, and finds nothing left to be done.
fn silent_goes() {
    assert!(fill_another() >= MIB, "{}", stats());
    let sleep = || std::thread::sleep(Duration::from_millis(10));
    expect("all shards are empty", sleep, |stats| stats.cached_shards == 0 && stats.cache_room == 0);
    expect("the blocks are with the system", sleep, |stats| {
        stats.cached_depot + stats.cached_central + stats.cached_pages <= MIB
    });
    assert!(stats().idle_drains > 0, "{}", stats());
}

fn idle_stays() {
    fill_another();
    let before = stats();
    let start = Instant::now();
    let mut act = light();
    while start.elapsed() < 3 * DECAY {
        act();
    }
    let after = stats();
    assert_eq!((after.idle_drains, after.drains), (0, 0), "{after}");
    assert!(after.cached_shards >= before.cached_shards / 2, "{after}");
}

fn bound_holds() {
    let cpus = allowed_cpus();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (number, cpu) in cpus.iter().cycle().take(2 * cpus.len().min(8)).enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                pin(*cpu);
                let mut random = Random::new(number as u64);
                while !stop.load(Ordering::Relaxed) {
                    burst(100 + random.below(900), 1 + random.below(600));
                }
            });
        }
        let start = Instant::now();
        let mut most = 0;
        while start.elapsed() < Duration::from_secs(3) {
            let now = stats();
            most = most.max(now.cache_room);
            if now.cache_room > now.cache_limit {
                integration::die!("{} bytes of {}", now.cache_room, now.cache_limit);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        stop.store(true, Ordering::Relaxed);
        println!("{} KiB at most; {}", most >> 10, stats());
    });
    let after = stats();
    assert_eq!(after.cache_limit, MIB);
    assert!(after.cache_limit_hits > 0 && after.cached_shards <= after.cache_room, "{after}");
}

/// What another CPU's shard has taken of the limit is there for the one in use, by draining that; and then calls hit.
fn last_gets_some() {
    fill_another();
    let before = stats();
    assert!(before.cache_room > MIB / 2, "{before}");
    let pairs = |times: usize| {
        for round in 0..times {
            (100..1024).step_by(64).for_each(|size| drop(Block::new(size)));
            // What can be done only so often needs time.
            if round.is_multiple_of(16) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    };
    pairs(4000);
    let between = stats();
    assert!(between.cache_limit_drains > 0 && between.cache_room <= MIB, "{between}");
    pairs(1000);
    let after = stats();
    let missed = after.depot_exchanges - between.depot_exchanges + after.bypasses - between.bypasses;
    println!("{missed} of 30000 calls missed; {} drains for the bound", after.cache_limit_drains);
    assert!(missed < 10_000, "{after}");
}
