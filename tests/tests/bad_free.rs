//! Frees that are wrong. Promise: each ends the process by SIGABRT with one line on file descriptor 2 that names the
//! address and what is wrong with it, at the time that the documentation says.
//!
//! Every case runs in a child in each of three modes. The children use the allocator beside the system's, through its
//! `GlobalAlloc` methods, so that no allocation of std comes between the frees of a case.

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::time::Duration;

use alloc_core::RseqAlloc;
use integration::child;
use integration::harness::{self, Check};

static HEAP: RseqAlloc = RseqAlloc::new();

/// Names the case that a child plays.
const CASE: &str = "INTEGRATION_BAD_FREE";

struct Case {
    name: &'static str,
    /// One of these is in the line; none if nothing is wrong.
    said: &'static [&'static str],
    /// Plays the case: announces the faulty free, then does it.
    play: fn(),
}

const CASES: &[Case] = &[
    Case { name: "no_fault", said: &[], play: no_fault },
    Case { name: "in_a_row", said: &["double free of"], play: in_a_row },
    Case { name: "in_a_row_medium", said: &["double free of"], play: in_a_row_medium },
    Case { name: "later", said: &["double free of"], play: later },
    Case { name: "after_flush", said: &["double free of"], play: after_flush },
    Case { name: "off_grid", said: &["which is not the start of a block"], play: off_grid },
    Case { name: "foreign", said: &["which this allocator does not know"], play: foreign },
    Case { name: "wrong_class", said: &["as a block of 128 bytes"], play: wrong_class },
    Case { name: "large_foreign", said: &["which this allocator does not know"], play: large_foreign },
    Case {
        name: "large_interior",
        said: &["which this allocator does not know", "which is not the start"],
        play: large_interior,
    },
    Case { name: "large_twice", said: &["double free of", "which this allocator does not know"], play: large_twice },
    Case {
        name: "small_as_large",
        said: &["which this allocator does not know", "as a block of"],
        play: small_as_large,
    },
];

const SMALL: Layout = layout(64);
const LARGE: Layout = layout(8 << 20);

const fn layout(size: usize) -> Layout {
    match Layout::from_size_align(size, 8) {
        Ok(layout) => layout,
        Err(_) => panic!("a valid layout"),
    }
}

fn alloc(layout: Layout) -> *mut u8 {
    // SAFETY: no case asks for zero bytes.
    let block = unsafe { HEAP.alloc(layout) };
    assert!(!block.is_null(), "{layout:?} is refused");
    block
}

/// Prints the address that the message has to name; the faulty free of it comes next, with nothing between.
fn announce(block: *mut u8) {
    println!("faulty free of {:#x}", block as usize);
}

/// A free that may be wrong.
fn free(block: *mut u8, layout: Layout) {
    // SAFETY: not always; that the allocator notices is the test.
    unsafe { HEAP.dealloc(block, layout) };
}

/// Enough blocks that their frees fill magazines and shards, so that most of them go on to lower layers.
fn many() -> Vec<*mut u8> {
    (0..40_000).map(|_| alloc(SMALL)).collect()
}

/// Frees blocks without another allocation between, and has all magazines emptied into their spans.
fn free_and_flush(blocks: &[*mut u8]) {
    for block in blocks {
        free(*block, SMALL);
    }
    alloc_core::purge();
}

/// The middle of a system allocation: mapped, aligned, and none of ours.
fn foreign_address() -> *mut u8 {
    Box::leak(vec![0_u64; 1024].into_boxed_slice()).as_mut_ptr().cast::<u8>().wrapping_add(2048)
}

fn no_fault() {
    for _ in 0..3 {
        free_and_flush(&many());
        free(alloc(LARGE), LARGE);
    }
}

fn in_a_row() {
    let block = alloc(SMALL);
    announce(block);
    free(block, SMALL);
    free(block, SMALL);
}

fn in_a_row_medium() {
    let block = alloc(layout(10_000));
    announce(block);
    free(block, layout(10_000));
    free(block, layout(10_000));
}

fn later() {
    let mut blocks = many();
    let (once, twice) = (blocks[100], blocks[200]);
    blocks.retain(|block| *block != once && *block != twice);
    announce(twice);
    free(twice, SMALL);
    free(once, SMALL);
    free(twice, SMALL);
    free_and_flush(&blocks);
}

/// The first free has reached the span before the second comes.
fn after_flush() {
    let blocks = many();
    // The span of this block must stay in use, or its pages go back and the block is not a block any more.
    let (gone, kept) = blocks.split_at(20_000);
    let twice = gone[10_000];
    let neighbour = |block: &*mut u8| (*block as usize).abs_diff(twice as usize) < 4096;
    let rest: Vec<_> = gone.iter().copied().filter(|block| !neighbour(block)).collect();
    free(twice, SMALL);
    free_and_flush(&rest);
    announce(twice);
    free(twice, SMALL);
    free_and_flush(kept);
}

fn off_grid() {
    let mut blocks = many();
    let inside = blocks.swap_remove(1000).wrapping_add(24);
    announce(inside);
    free(inside, SMALL);
    free_and_flush(&blocks);
}

fn foreign() {
    let blocks = many();
    let address = foreign_address();
    announce(address);
    free(address, SMALL);
    free_and_flush(&blocks);
}

fn wrong_class() {
    let blocks = many();
    let block = alloc(SMALL);
    announce(block);
    free(block, layout(128));
    free_and_flush(&blocks);
}

fn large_foreign() {
    free(alloc(LARGE), LARGE);
    let address = foreign_address();
    announce(address);
    free(address, LARGE);
}

fn large_interior() {
    let address = alloc(LARGE).wrapping_add(4096);
    announce(address);
    free(address, LARGE);
}

fn large_twice() {
    let block = alloc(LARGE);
    announce(block);
    free(block, LARGE);
    free(block, LARGE);
}

fn small_as_large() {
    let block = alloc(SMALL);
    announce(block);
    free(block, LARGE);
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CASE) {
        let case = CASES.iter().find(|case| case.name == name).expect("a case of this name");
        let core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the limit is valid; a child that aborts on purpose leaves no core file.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const core) };
        (case.play)();
        println!("survived");
        return ExitCode::SUCCESS;
    }
    let checks: Vec<Check> =
        CASES.iter().enumerate().map(|(index, case)| Check::indexed(case.name, run, index)).collect();
    harness::main(&[&checks])
}

/// Runs one case in every mode and looks at how it ended.
fn run(index: usize) {
    let case = &CASES[index];
    for mode in ["index=auto", "index=cpu_id", "index=arenas"] {
        let finished = child::run(child::again().env(CASE, case.name).env("RSEQ_ALLOC", mode), Duration::from_secs(30));
        if case.said.is_empty() {
            finished.expect_success(&format!("{} under {mode}", case.name));
            assert_eq!(finished.stderr, "", "{} under {mode} complains", case.name);
            continue;
        }
        assert_eq!(finished.signal(), Some(libc::SIGABRT), "{} under {mode} ends by SIGABRT: {finished}", case.name);
        let address = finished.stdout.strip_prefix("faulty free of ").map(str::trim_end);
        let Some(address) = address.filter(|address| !address.contains('\n')) else {
            panic!("{} under {mode} goes on after the fault: {finished}", case.name);
        };
        assert!(finished.stderr.contains(address), "{} under {mode} names {address}: {finished}", case.name);
        assert_eq!(finished.stderr.lines().count(), 1, "{} under {mode}: one line: {finished}", case.name);
        assert!(finished.stderr.starts_with("rseq-alloc: "), "{} under {mode} says who speaks: {finished}", case.name);
        assert!(
            case.said.iter().any(|words| finished.stderr.contains(words)),
            "{} under {mode} says one of {:?}: {finished}",
            case.name,
            case.said
        );
    }
}
