//! Limits, and what the figures say of the memory that they limit. The process runs on the system's allocator and uses
//! ours directly; each scene is a child with options of its own in the environment, alone with the heap.

mod accounts;
mod advice;
mod cgroup;
mod hard;
mod soft;

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::process::ExitCode;

use alloc_core::{RseqAlloc, Stats};
use integration::harness::{self, Check};
use integration::scenes;

static ALLOC: RseqAlloc = RseqAlloc::new();

const MIB: usize = 1 << 20;

fn main() -> ExitCode {
    scenes::enter(&[
        ("hard", hard::play),
        ("hard_threads", hard::play_threads),
        ("hard_growth", hard::play_growth),
        ("hard_change", hard::play_change),
        ("soft", soft::play),
        ("soft_growth", soft::play_growth),
        ("soft_caches", soft::play_caches),
        ("soft_resize", soft::play_resize),
        ("cgroup", cgroup::play),
        ("accounts", accounts::play),
        ("names", advice::play_names),
        ("advice", advice::play_advice),
        ("limits", print_limits),
    ]);
    harness::main(&[&[
        Check::new("hard_limit_is_kept_and_recovered_from", hard::is_kept_and_recovered_from),
        Check::new("hard_limit_under_threads", hard::threads_recover),
        Check::new("hard_limit_and_growth", hard::growth_is_refused_without_harm),
        Check::new("hard_limit_at_run_time", hard::changes_at_run_time),
        Check::new("soft_limit_purges_first", soft::purges_first),
        Check::new("soft_limit_has_hysteresis", soft::does_not_purge_at_each_growth),
        Check::new("soft_limit_shrinks_caches", soft::shrinks_caches),
        Check::new("soft_limit_and_resize", soft::resize_is_not_turned_into_a_copy),
        Check::new("cgroup_percent", cgroup::percent_of_the_group),
        Check::new("wrong_values", wrong_values_are_named_and_ignored),
        Check::new("accounts_add_up", accounts::add_up),
        Check::new("regions_have_names", advice::regions_have_names),
        Check::new("huge_page_advice", advice::advice_is_what_was_chosen),
    ]])
}

/// Options of the two kinds of caches, to be joined with others.
const MODES: [&str; 2] = ["index=auto", "index=arenas"];

fn print_limits() {
    let stats = alloc_core::stats();
    println!("soft {} hard {}", stats.soft_limit, stats.hard_limit);
}

/// Promise: a value that makes no sense is named and ignored, and the others apply.
fn wrong_values_are_named_and_ignored() {
    let options = "soft_limit=much,hard_limit=101%,thp=always,soft_limit=7M";
    let finished = scenes::run("limits", options);
    assert_eq!(finished.stdout, format!("soft {} hard 0\n", 7 * MIB));
    for wrong in ["soft_limit=much", "hard_limit=101%", "thp=always"] {
        let line = format!("rseq-alloc: ignored '{wrong}' in RSEQ_ALLOC: expected ");
        assert!(finished.stderr.contains(&line), "{line} in: {}", finished.stderr);
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

/// Blocks of the heap under test, freed when this goes. The list itself is the system allocator's.
#[derive(Default)]
struct Blocks(Vec<(usize, Layout)>);

impl Blocks {
    /// Allocates a block and writes to its ends; false if it is refused.
    fn add(&mut self, size: usize) -> bool {
        // SAFETY: the size is not zero.
        let block = black_box(unsafe { ALLOC.alloc(layout(size)) });
        if block.is_null() {
            return false;
        }
        // SAFETY: a block of that size.
        unsafe {
            block.write(1);
            block.add(size - 1).write(2);
        }
        self.0.push((block.expose_provenance(), layout(size)));
        true
    }

    /// Blocks of one size, of so many bytes in all.
    fn of(size: usize, bytes: usize) -> Self {
        let mut blocks = Self::default();
        for _ in 0..bytes / size {
            assert!(blocks.add(size), "a block of {size} bytes is refused");
        }
        blocks
    }

    /// As many of one size as there are.
    fn exhaust(size: usize) -> Self {
        let mut blocks = Self::default();
        while blocks.add(size) {}
        blocks
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(_, layout)| layout.size()).sum()
    }

    /// Frees those for which `keep` says no.
    fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut index = 0;
        self.0.retain(|&(block, layout)| {
            index += 1;
            let kept = keep(index);
            if !kept {
                // SAFETY: allocated by `add` with this layout.
                unsafe { ALLOC.dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
            }
            kept
        });
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.retain(|_| false);
    }
}

/// The figures, after a look at whether they add up.
fn settled_stats() -> Stats {
    let stats = alloc_core::stats();
    let sum: usize = stats.parts().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(sum, stats.mapped, "the parts of what is mapped: {:?}", stats.parts());
    assert_eq!(stats.counted, stats.mapped - stats.returned, "what the limits count: {stats}");
    stats
}
