//! More sandboxes than `enosys` and `eperm`, one process each: rseq answers EINVAL, or membarrier is refused.
//!
//! Promises: without rseq, thread arenas with the reason in the mode. Without membarrier, vCPU shards all the same where
//! the processor keeps loads in order, arenas with that reason elsewhere; `purge()` then reaches the caches of the
//! current vCPU only, and says so in the mode. Every case runs the body that all configurations share, or the parts of it
//! that are about threads and processes.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use alloc_core::{Mode, RseqAlloc};
use integration::configuration::{
    self, Call, Configuration, best_index, execute_with_refusal, expect_arenas, expect_index, libc_registers,
};
use integration::harness::{self, Check};
use integration::{body, child};

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

// The C library calls the functions of this section before main
// (https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html#init_fini).
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = body::before_main;

/// Names the case that a child is about.
const CASE: &str = "INTEGRATION_SANDBOX";

/// The cases: what is refused, and with what.
const CASES: [(&str, Call, i32); 4] = [
    ("rseq_einval", Call::Rseq, libc::EINVAL),
    ("membarrier_enosys", Call::Membarrier, libc::ENOSYS),
    ("membarrier_eperm", Call::Membarrier, libc::EPERM),
    ("membarrier_einval", Call::Membarrier, libc::EINVAL),
];

/// What a case runs of the shared body. The number matters when the mode is decided and never again, so a second one
/// leaves out what does not look at the mode: blocks one after the other, and memory that runs out.
fn body_of(call: Call, errno: i32) -> &'static [&'static [Check]] {
    // Without rseq ENOSYS is another test's.
    if call == Call::Membarrier && errno == libc::ENOSYS { body::ALL } else { &[body::THREADS, body::PROCESS] }
}

const WITHOUT_RSEQ: Configuration = Configuration {
    name: "rseq refused",
    enter: enter_case,
    promise: promise_arenas,
    body: body::ALL,
    checks: &[Check::new("libc_could_not_register", || assert!(!libc_registers(), "the filter was there first"))],
};

const WITHOUT_MEMBARRIER: Configuration = Configuration {
    name: "membarrier refused",
    enter: enter_case,
    promise: promise_without_membarrier,
    body: body::ALL,
    checks: &[Check::new("purge_reaches_its_own_vcpu", purge_reaches_its_own_vcpu)],
};

fn main() -> ExitCode {
    if std::env::var_os(CASE).is_some() {
        let (_, call, errno) = case();
        let what = if call == Call::Rseq { WITHOUT_RSEQ } else { WITHOUT_MEMBARRIER };
        return configuration::main(Box::leak(Box::new(Configuration { body: body_of(call, errno), ..what })));
    }
    const CHECKS: [Check; CASES.len()] = {
        let mut checks = [Check::indexed(CASES[0].0, play, 0).within(400); CASES.len()];
        let mut index = 1;
        while index < checks.len() {
            checks[index] = Check::indexed(CASES[index].0, play, index).within(400);
            index += 1;
        }
        checks
    };
    harness::main(&[&CHECKS])
}

/// Runs all checks of a case in a process of its own.
fn play(index: usize) {
    let case = CASES[index].0;
    let finished = child::run(child::again().env(CASE, case), Duration::from_secs(390));
    print!("{}", finished.stdout);
    finished.expect_success(case);
}

/// The case that this process is about.
fn case() -> (&'static str, Call, i32) {
    let name = std::env::var(CASE).expect("set by the parent");
    CASES.into_iter().find(|case| case.0 == name).unwrap_or_else(|| panic!("no such case: {name}"))
}

fn enter_case() {
    let (_, call, errno) = case();
    execute_with_refusal(call, errno);
}

fn promise_arenas(mode: &Mode) -> Result<(), String> {
    expect_arenas(mode, "EINVAL")
}

fn promise_without_membarrier(mode: &Mode) -> Result<(), String> {
    let Some(index) = best_index() else { return expect_arenas(mode, "ENOSYS") };
    if !rseq_sys::LOADS_IN_ORDER {
        return expect_arenas(mode, "the kernel has no membarrier for rseq");
    }
    expect_index(mode, index, if libc_registers() { "registered by libc" } else { "registered by ourselves" })?;
    if !mode.to_string().ends_with(", no membarrier: a shard is drained by its own threads only") {
        return Err("expected the lack of membarrier in the text".to_owned());
    }
    Ok(())
}

/// Promise: what this thread freed on the vCPU where it calls `purge()` goes back, without a drain of other vCPUs.
fn purge_reaches_its_own_vcpu() {
    if alloc_core::mode().is_arenas() {
        return println!("skipped: no vCPUs in arenas");
    }
    const BLOCKS: usize = 500;
    const SIZE: usize = 64;
    let before = alloc_core::stats();
    // The thread may be moved between the two; not ten times in a row.
    let reached = (0..10).any(|_| {
        let blocks: Vec<_> = (0..BLOCKS).map(|_| black_box(Box::new([1_u8; SIZE]))).collect();
        drop(blocks);
        let full = alloc_core::stats().cached_shards;
        alloc_core::purge();
        full.saturating_sub(alloc_core::stats().cached_shards) >= BLOCKS * SIZE / 2
    });
    assert!(reached, "nothing of what was just freed here went back");
    assert_eq!(alloc_core::stats().drains, before.drains, "a shard was drained from outside without a fence");
    assert_eq!(before.drains, 0, "a shard was drained from outside without a fence");
}
