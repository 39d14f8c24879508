//! The whole allocator against a simple model. Promise: whatever is asked for in whatever order, no two live blocks
//! overlap, alignments hold, contents survive (also a realloc), zeroed blocks are zero, and the accounting adds up.
//!
//! The allocator is used beside the system's, through its `GlobalAlloc` methods: the test's own memory is not in its
//! books, so that these can be compared with the model's to the byte.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use alloc_core::RseqAlloc;
use integration::{pattern, report};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

static HEAP: RseqAlloc = RseqAlloc::new();

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Statistics are the process's, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[derive(Clone, Debug)]
enum Step {
    Alloc {
        size: usize,
        align: usize,
        zeroed: bool,
    },
    Free {
        victim: usize,
    },
    Realloc {
        victim: usize,
        size: usize,
    },
    /// Frees every second block, youngest first.
    Thin,
    Purge,
}

/// Sizes over all layers: small ones most often, some around and beyond the largest class.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 1..=256_usize,
        4 => 257..=8192_usize,
        2 => 8193..=256 * KIB,
        1 => 256 * KIB..=3 * MIB,
        1 => prop_oneof![Just(MIB), Just(MIB + 1), Just(2 * MIB), Just(64 * KIB), Just(KIB)],
    ]
}

fn align() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => Just(8_usize),
        4 => (0..=4_u32).prop_map(|shift| 1 << shift),
        2 => (5..=12_u32).prop_map(|shift| 1 << shift),
        1 => (13..=22_u32).prop_map(|shift| 1 << shift),
    ]
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let victim = || any::<usize>();
    let step = prop_oneof![
        12 => (size(), align(), any::<bool>()).prop_map(|(size, align, zeroed)| Step::Alloc { size, align, zeroed }),
        8 => victim().prop_map(|victim| Step::Free { victim }),
        4 => (victim(), size()).prop_map(|(victim, size)| Step::Realloc { victim, size }),
        1 => Just(Step::Thin),
        1 => Just(Step::Purge),
    ];
    vec(step, 1..most)
}

#[derive(Clone, Copy, Debug)]
struct Live {
    layout: Layout,
    tag: u64,
}

/// The live blocks by address.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<usize, Live>,
    tag: u64,
}

impl Model {
    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Alloc { size, align, zeroed } => self.alloc(size, align, zeroed),
                Step::Free { victim } => {
                    if let Some(address) = self.pick(victim) {
                        self.free(address);
                    }
                }
                Step::Realloc { victim, size } => {
                    if let Some(address) = self.pick(victim) {
                        self.realloc(address, size);
                    }
                }
                Step::Thin => {
                    let mut young: Vec<_> = self.blocks.iter().map(|(address, live)| (live.tag, *address)).collect();
                    young.sort_unstable_by(|one, two| two.cmp(one));
                    young.into_iter().step_by(2).for_each(|(_, address)| self.free(address));
                }
                Step::Purge => {
                    alloc_core::purge();
                }
            }
        }
    }

    fn pick(&self, victim: usize) -> Option<usize> {
        let count = self.blocks.len();
        if count == 0 { None } else { self.blocks.keys().nth(victim % count).copied() }
    }

    /// Enters a block and checks it against its neighbours.
    fn enter(&mut self, at: *mut u8, layout: Layout) {
        let address = at as usize;
        assert_eq!(address % layout.align(), 0, "{at:p} is not aligned for {layout:?}");
        let end = address.checked_add(layout.size()).expect("a block ends within the address space");
        if let Some((other, live)) = self.blocks.range(..end).next_back() {
            assert!(other + live.layout.size() <= address, "{layout:?} at {at:p} overlaps {live:?} at {other:#x}");
        }
        self.tag += 1;
        // SAFETY: a fresh block of that size.
        unsafe { pattern::fill(at, layout.size(), self.tag) };
        self.blocks.insert(address, Live { layout, tag: self.tag });
    }

    fn alloc(&mut self, size: usize, align: usize, zeroed: bool) {
        let layout = Layout::from_size_align(size, align).expect("a valid layout");
        // SAFETY: the size is not zero.
        let at = unsafe { if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } };
        assert!(!at.is_null(), "{layout:?} is refused");
        if zeroed {
            // SAFETY: a fresh block of that size.
            assert_eq!(unsafe { pattern::first_nonzero(at, size) }, None, "{layout:?} at {at:p} is not zero");
        }
        self.enter(at, layout);
    }

    fn free(&mut self, address: usize) {
        let live = self.blocks.remove(&address).expect("a live block");
        let at = address as *mut u8;
        // SAFETY: a live block that was filled with this tag.
        let verdict = unsafe { pattern::verify(at, live.layout.size(), live.tag) };
        assert_eq!(verdict, Ok(()), "{live:?} at {at:p} changed");
        // SAFETY: given up here.
        unsafe { HEAP.dealloc(at, live.layout) };
    }

    fn realloc(&mut self, address: usize, size: usize) {
        let live = self.blocks.remove(&address).expect("a live block");
        // SAFETY: a live block, and the size is not zero.
        let at = unsafe { HEAP.realloc(address as *mut u8, live.layout, size) };
        assert!(!at.is_null(), "realloc of {live:?} to {size} is refused");
        let old = live.layout.size();
        // SAFETY: both sizes are within their blocks.
        let verdict = unsafe { pattern::verify_moved(at, address, old.min(size), old, live.tag) };
        assert_eq!(verdict, Ok(()), "realloc of {live:?} from {address:#x} to {size} at {at:p} lost contents");
        self.enter(at, Layout::from_size_align(size, live.layout.align()).expect("a valid layout"));
    }

    /// What was asked for, and the most that it may cost when each size is rounded up to a class: a quarter and a grain
    /// more, on top of what the alignment costs.
    fn bounds(&self) -> (usize, usize) {
        let rounded = |layout: Layout| ((layout.size() - 1) | (layout.align() - 1)) + 1;
        self.blocks.values().fold((0, 0), |(least, most), live| {
            let rounded = rounded(live.layout);
            (least + live.layout.size(), most + rounded + rounded / 4 + if rounded > 1024 { 4096 } else { 16 })
        })
    }

    fn free_all(&mut self) {
        while let Some(address) = self.blocks.keys().next().copied() {
            self.free(address);
        }
    }
}

/// Compares the allocator's books with the model's.
fn compare(model: &Model, baseline: usize) {
    let stats = alloc_core::stats();
    let (least, most) = model.bounds();
    let held = stats.allocated.checked_sub(baseline).expect("never less than before the first block");
    assert!(held >= least, "{held} bytes are said to be allocated, {least} are in use");
    assert!(held <= most, "{held} bytes are said to be allocated for {least}, at most {most} are needed");
    assert!(stats.active >= stats.allocated, "active {} below allocated {}", stats.active, stats.allocated);
    assert!(stats.resident >= stats.active, "resident {} below active {}", stats.resident, stats.active);
    assert!(stats.mapped >= stats.active, "mapped {} below active {}", stats.mapped, stats.active);
}

/// Another seed in every run, or `TEST_SEED`. The seed is written past libtest's capture: a run that the allocator
/// itself ends by an abort has no other way to say how to repeat it.
fn config(cases: u32) -> ProptestConfig {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let chosen = std::env::var("TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = chosen.unwrap_or(now.as_nanos() as u64);
    let mut line = report::Line::new();
    writeln!(line, "model: {cases} cases with TEST_SEED={seed}").expect("a short line");
    line.write_to_stderr();
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(300))]

    /// One thread, exact books.
    #[test]
    fn one_thread(first in steps(300), second in steps(300)) {
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let baseline = alloc_core::stats().allocated;
        let mut model = Model::default();
        model.run(&first);
        compare(&model, baseline);
        model.run(&second);
        compare(&model, baseline);
        model.free_all();
        prop_assert_eq!(alloc_core::stats().allocated, baseline, "everything was freed");
    }
}

proptest! {
    #![proptest_config(config(60))]

    /// Four threads with a model each, the blocks of one freed by the next; the books are exact again at the end.
    #[test]
    fn four_threads(steps in vec(steps(200), 4)) {
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let baseline = alloc_core::stats().allocated;
        let mut models: Vec<Model> = std::thread::scope(|scope| {
            let threads: Vec<_> = steps
                .iter()
                .map(|steps| {
                    scope.spawn(move || {
                        let mut model = Model::default();
                        model.run(steps);
                        model
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a model holds")).collect()
        });
        let mut all: Vec<(usize, usize)> = models
            .iter()
            .flat_map(|model| model.blocks.iter().map(|(address, live)| (*address, live.layout.size())))
            .collect();
        all.sort_unstable();
        for pair in all.windows(2) {
            prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "blocks of two threads overlap: {:x?}", pair);
        }
        let together = models.iter().map(Model::bounds).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let held = alloc_core::stats().allocated - baseline;
        prop_assert!(held >= together.0 && held <= together.1, "{held} allocated, between {together:?} expected");
        models.rotate_left(1);
        std::thread::scope(|scope| {
            for model in &mut models {
                scope.spawn(|| model.free_all());
            }
        });
        prop_assert_eq!(alloc_core::stats().allocated, baseline, "everything was freed");
    }
}

/// The books are exact once everything is quiet, also if shards were drained while threads used them.
#[test]
fn books_survive_concurrent_purges() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let baseline = alloc_core::stats().allocated;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let stop = &stop;
            scope.spawn(move || {
                let layout = Layout::from_size_align(64 + 64 * (thread % 2), 8).expect("a valid layout");
                while !stop.load(Ordering::Relaxed) {
                    // Bursts, so that magazines go to the shard's lists and come back from there.
                    // SAFETY: the size is not zero.
                    let blocks: Vec<*mut u8> = (0..1000).map(|_| unsafe { HEAP.alloc(layout) }).collect();
                    for block in blocks {
                        assert!(!block.is_null(), "{layout:?} is refused");
                        // SAFETY: a live block, given up here.
                        unsafe { HEAP.dealloc(block, layout) };
                    }
                }
            });
        }
        // The threads go on for a while after the last purge, which might put the books right again.
        for _ in 0..2000 {
            alloc_core::purge();
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        stop.store(true, Ordering::Relaxed);
    });
    // Some blocks rest in the caches: what those hold and what is allocated has to be told apart without a purge.
    let layout = Layout::from_size_align(64, 8).expect("a valid layout");
    // SAFETY: the size is not zero.
    let blocks: Vec<*mut u8> = (0..5000).map(|_| unsafe { HEAP.alloc(layout) }).collect();
    let held = alloc_core::stats().allocated - baseline;
    assert_eq!(held, blocks.len() * 64, "5000 blocks of 64 bytes are live and nothing else");
    for block in blocks {
        // SAFETY: a live block, given up here.
        unsafe { HEAP.dealloc(block, layout) };
    }
    let stats = alloc_core::stats();
    assert_eq!(stats.allocated, baseline, "everything was freed; {stats}");
}
