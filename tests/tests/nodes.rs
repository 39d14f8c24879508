//! Several NUMA nodes and last-level caches, as the allocator is told: CPUs with even numbers are of one node, those with
//! odd ones of another, and each node has two caches. Apart from the parts of the shared body that this can change the promises are those that such systems
//! need; they take two CPUs, one of each node.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use alloc_core::{Mode, RseqAlloc, Stats};
use integration::configuration::{Configuration, best_index, expect_arenas, why_no_index};
use integration::disturb::{allowed_cpus, pin};
use integration::harness::Check;
use integration::{body, child, pattern, scenes};

/// Node and cache by number of the CPU.
static PLACES: [(u8, u8); 1024] = {
    let four = [(0, 0), (1, 2), (0, 1), (1, 3)];
    let mut places = [(0, 0); 1024];
    let mut cpu = 0;
    while cpu < places.len() {
        places[cpu] = four[cpu % 4];
        cpu += 1;
    }
    places
};

integration::configuration!(
    RseqAlloc::new().places(&PLACES),
    Configuration {
        name: "nodes",
        enter: || scenes::enter(&[("exhaust", exhaust_one_node), ("age", leave_magazines_to_another_cache)]),
        promise,
        // Signals, registrations and the like know nothing of nodes; forks are below.
        body: &[body::BLOCKS, body::THREADS, body::MEMORY],
        checks: &[
            Check::new("memory_comes_from_the_node_of_the_thread", memory_comes_from_the_node_of_the_thread),
            Check::new("frees_from_elsewhere_go_back_to_the_owner", frees_from_elsewhere_go_back_to_the_owner),
            Check::new("what_flows_between_caches_does_not_pile_up", what_flows_between_caches_does_not_pile_up),
            Check::new("another_node_helps_out_on_vcpus", || play("exhaust", "hard_limit=64M,decay=never")),
            Check::new("another_node_helps_out_on_arenas", || play(
                "exhaust",
                "hard_limit=64M,decay=never,index=arenas"
            )),
            Check::new("unneeded_magazines_of_every_depot_go", || play("age", "decay=800,background=on")),
            Check::new("blocks_grow_and_shrink_where_they_are", blocks_grow_and_shrink_where_they_are),
            Check::new("forks_under_load", forks_under_load),
        ],
    }
);

fn promise(mode: &Mode) -> Result<(), String> {
    let stats = alloc_core::stats();
    if (stats.nodes, stats.depots) != (2, 4) {
        return Err(format!("{} nodes and {} depots", stats.nodes, stats.depots));
    }
    match best_index() {
        Some(_) if mode.is_arenas() => Err("arenas".to_owned()),
        Some(_) => Ok(()),
        None => expect_arenas(mode, why_no_index()),
    }
}

/// A CPU of each node, if this process may use such.
fn cpus() -> Option<[usize; 2]> {
    let cpus = allowed_cpus();
    let of = |node| cpus.iter().copied().find(|cpu| cpu % 2 == node && *cpu < PLACES.len());
    let both = of(0).zip(of(1));
    if both.is_none() {
        println!("skipped: only the CPUs {cpus:?}");
    }
    both.map(|(even, odd)| [even, odd])
}

/// Runs `f` in a thread that runs on `cpu` only.
fn on<R: Send>(cpu: usize, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            pin(cpu);
            f()
        });
        pinned.join().expect("the pinned thread")
    })
}

/// A block with contents that depend on its address.
struct Block(usize, usize);

impl Block {
    fn new(size: usize) -> Option<Self> {
        // SAFETY: the size is not 0.
        let start = unsafe { GLOBAL.alloc(Self::layout(size)) };
        if start.is_null() {
            return None;
        }
        // SAFETY: the block is that long.
        unsafe { pattern::fill(start, size, size as u64) };
        Some(Self(start as usize, size))
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("a valid layout")
    }

    fn free(self) {
        let start = self.0 as *mut u8;
        // SAFETY: a live block of that length, filled when it was made.
        if let Err(mismatch) = unsafe { pattern::verify(start, self.1, self.1 as u64) } {
            integration::die!("nodes: a block of {} bytes at {start:p} changed: {mismatch}", self.1);
        }
        // SAFETY: given up here.
        unsafe { GLOBAL.dealloc(start, Self::layout(self.1)) };
    }
}

/// Blocks of many sizes up to 512 KiB, 48 MiB together, and their bytes.
fn blocks() -> (Vec<Block>, usize) {
    let mut bytes = 0;
    let sizes = (0..).map(|number: usize| match number % 64 {
        0 => 64 << (10 + number / 64 % 4),
        step => 16 + step * 40,
    });
    let sizes = sizes.take_while(|size| {
        bytes += size;
        bytes < 48 << 20
    });
    let blocks: Vec<Block> = sizes.map(|size| Block::new(size).expect("memory")).collect();
    let bytes = blocks.iter().map(|block| block.1).sum();
    (blocks, bytes)
}

fn purged() -> Stats {
    alloc_core::purge();
    let stats = alloc_core::stats();
    assert_eq!(stats.parts().iter().map(|(_, bytes)| bytes).sum::<usize>(), stats.mapped);
    stats
}

/// What other threads and the caches may add meanwhile, and what finds room in spans in use.
const SLACK: usize = 2 << 20;

/// Promise: what a thread allocates lies on the node of its CPU, and after everything was freed there and given back,
/// as much is in use on each node as before.
fn memory_comes_from_the_node_of_the_thread() {
    let Some(cpus) = cpus() else { return };
    for (node, cpu) in cpus.into_iter().enumerate() {
        let before = purged().spans_by_node;
        let bytes = on(cpu, || {
            let (blocks, bytes) = blocks();
            let now = alloc_core::stats().spans_by_node;
            println!("node {node}: {before:?} to {now:?}");
            assert!(now[node] + SLACK >= before[node] + bytes);
            assert!(now[1 - node] <= before[1 - node] + SLACK);
            blocks.into_iter().for_each(Block::free);
            bytes
        });
        assert!(bytes > 40 << 20);
        let after = purged();
        assert!([0, 1].iter().all(|&node| after.spans_by_node[node] <= before[node] + SLACK), "{after}");
        assert_eq!(after.cached_depot, 0);
    }
}

/// Promise: blocks that a thread of another node frees leave the owner's heap, not the other one's, and nothing stays
/// behind.
fn frees_from_elsewhere_go_back_to_the_owner() {
    let Some(cpus) = cpus() else { return };
    for (node, [owner, other]) in [cpus, [cpus[1], cpus[0]]].into_iter().enumerate() {
        let before = purged();
        let (blocks, bytes) = on(owner, blocks);
        let between = alloc_core::stats().spans_by_node;
        assert!(between[node] + SLACK >= before.spans_by_node[node] + bytes);
        on(other, || blocks.into_iter().for_each(Block::free));
        let after = purged();
        println!("node {node}: {:?}, {between:?}, {:?}", before.spans_by_node, after.spans_by_node);
        for node in [0, 1] {
            assert!(after.spans_by_node[node] <= before.spans_by_node[node] + SLACK);
        }
        assert!(after.counted <= before.counted + 2 * SLACK, "{before}\n{after}");
    }
}

/// Promise: where one cache always allocates and another one always frees, the memory in use stays what is under way and
/// what the bounds of the caches allow.
fn what_flows_between_caches_does_not_pile_up() {
    const BATCHES: usize = 4000;
    const BATCH: usize = 256;
    let Some([even, odd]) = cpus() else { return };
    for (from, to) in [(even, odd), (odd, even)] {
        let before = purged();
        let (full, filled): (SyncSender<Vec<Block>>, Receiver<Vec<Block>>) = sync_channel(8);
        let mut grown = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                pin(from);
                for batch in 0..BATCHES {
                    let block = |number: usize| Block::new([24, 64, 200, 1024][(batch + number) % 4]).expect("memory");
                    full.send((0..BATCH).map(block).collect()).expect("a consumer");
                }
            });
            scope.spawn(|| {
                pin(to);
                for (number, batch) in filled.into_iter().enumerate() {
                    batch.into_iter().for_each(Block::free);
                    if number % (BATCHES / 8) == 0 {
                        let used: usize = alloc_core::stats().spans_by_node.iter().sum();
                        grown.push(used.saturating_sub(before.spans_by_node.iter().sum()));
                    }
                }
            });
        });
        let after = alloc_core::stats();
        println!(
            "from {from} to {to}: {grown:?} bytes of spans; {} depot exchanges, {} refills, {} flushes",
            after.depot_exchanges - before.depot_exchanges,
            after.refills - before.refills,
            after.flushes - before.flushes,
        );
        // 4 classes with a chain and a depot's share on either side, and what is under way: 2 MiB.
        assert!(grown.iter().all(|&bytes| bytes < 14 << 20), "{grown:?}");
        assert!(grown[grown.len() - 1] <= grown[1] + SLACK, "{grown:?}");
        // They come back by whole magazines: some 60 blocks at first, up to 251 soon.
        assert!(after.depot_exchanges - before.depot_exchanges >= (BATCHES * BATCH / 251) as u64);
        let left = purged();
        assert!(left.spans_by_node.iter().sum::<usize>() <= before.spans_by_node.iter().sum::<usize>() + SLACK);
    }
}

/// Promise: a block of a node that is resized by a thread of another one stays in the sums of its own.
fn blocks_grow_and_shrink_where_they_are() {
    let Some([even, odd]) = cpus() else { return };
    let before = purged().spans_by_node;
    let start = on(even, || {
        // SAFETY: the size is not 0.
        unsafe { GLOBAL.alloc(Block::layout(96 << 10)) as usize }
    });
    let size = on(odd, move || {
        let (mut start, mut old) = (start as *mut u8, 96 << 10);
        for new in [128 << 10, 448 << 10, 224 << 10, 64 << 10, 256 << 10] {
            // SAFETY: a live block of that layout.
            start = unsafe { GLOBAL.realloc(start, Block::layout(old), new) };
            assert!(!start.is_null());
            // SAFETY: the block is that long.
            unsafe { start.write_bytes(7, new) };
            old = new;
        }
        // SAFETY: given up here.
        unsafe { GLOBAL.dealloc(start, Block::layout(old)) };
        old
    });
    assert_eq!(size, 256 << 10);
    let after = purged().spans_by_node;
    assert!([0, 1].iter().all(|&node| after[node] <= before[node] + SLACK), "{before:?} {after:?}");
}

fn play(scene: &str, options: &str) {
    scenes::run(scene, options);
}

/// Promise: magazines in the depot of a cache where nobody runs any more go back to the spans, too.
fn leave_magazines_to_another_cache() {
    let Some([even, odd]) = cpus() else { return };
    on(odd, || {
        let blocks: Vec<Block> = (0..40_000).map(|_| Block::new(64).expect("memory")).collect();
        blocks.into_iter().for_each(Block::free);
    });
    let before = alloc_core::stats();
    println!("{} KiB in the depots", before.cached_depot >> 10);
    assert!(before.cached_depot >= 256 << 10, "{before}");
    on(even, || {
        let start = Instant::now();
        while alloc_core::stats().cached_depot >= 128 << 10 {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", alloc_core::stats());
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("gone after {:?}", start.elapsed());
    });
}

/// Promise: where a node gets no more memory, free memory of another one is used before anything else is tried.
fn exhaust_one_node() {
    let Some([even, odd]) = cpus() else { return };
    const SIZE: usize = 256 << 10;
    let take = |bytes: usize| (0..bytes / SIZE).map_while(|_| Block::new(SIZE)).collect::<Vec<_>>();
    on(even, || {
        let blocks = take(40 << 20);
        assert_eq!(blocks.len(), 160);
        blocks.into_iter().for_each(Block::free);
    });
    let free = alloc_core::stats();
    assert!(free.counted >= 40 << 20, "{free}");
    on(odd, || {
        // No more than before, so that no descriptors are wanted, for which there may be no room either.
        let blocks = take(40 << 20);
        let stats = alloc_core::stats();
        let (by_node, refused) = (stats.spans_by_node, stats.hard_limit_hits);
        println!("{} blocks, {by_node:?} bytes by node, refused {refused} times", blocks.len());
        assert_eq!(blocks.len(), 160);
        // How much depends on where there is room: a run that would take returned pages as well is refused, and then
        // all that is free is given back, which helps this node.
        assert!(refused > 0 && by_node[0] >= 1 << 20 && by_node[1] >= 8 << 20);
        // Now neither has much.
        let more = take(64 << 20);
        assert!(more.len() < 100, "the limit holds");
        more.into_iter().chain(blocks).for_each(Block::free);
    });
    let blocks = on(even, || take(48 << 20));
    assert_eq!(blocks.len(), 192, "all came back");
    on(odd, || blocks.into_iter().for_each(Block::free));
    assert!(purged().spans_by_node.iter().sum::<usize>() < 4 << 20);
}

/// Promise: children that are forked while threads of both nodes are in the middle of allocations can allocate.
fn forks_under_load() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for cpu in cpus().unwrap_or([allowed_cpus()[0]; 2]) {
            let stop = &stop;
            scope.spawn(move || {
                pin(cpu);
                let mut rounds = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    body::churn_patterned(rounds, 200);
                    rounds += 1;
                    if rounds % 16 == 0 {
                        alloc_core::purge();
                    }
                }
            });
        }
        let mut outcome = Ok(());
        for number in 0..40 {
            outcome = child::fork(Duration::from_secs(20), || {
                for cpu in cpus().into_iter().flatten() {
                    on(cpu, || body::churn_patterned(100 + number, 300));
                }
                alloc_core::purge();
            });
            if outcome.is_err() {
                break;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.expect("a child");
    });
}
