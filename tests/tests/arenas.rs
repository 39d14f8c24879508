//! Thread arenas, asked for by the builder.

use std::sync::Barrier;

use alloc_core::{IndexChoice, Mode, RseqAlloc};
use integration::body::churn_patterned;
use integration::configuration::{Configuration, expect_arenas};
use integration::harness::Check;

integration::configuration!(
    RseqAlloc::new().index(IndexChoice::Arenas),
    Configuration {
        name: "arenas",
        enter: || (),
        promise,
        checks: &[Check::new("two_arenas_are_used", two_arenas_are_used)],
    }
);

fn promise(mode: &Mode) -> Result<(), String> {
    expect_arenas(mode, "")
}

/// Promise: threads are spread over the arenas; with four of them at least two arenas are in use wherever two CPUs
/// are allowed.
fn two_arenas_are_used() {
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                churn_patterned(thread, 50_000);
                barrier.wait();
            });
        }
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let used = alloc_core::stats().arenas_used;
    println!("{used} arenas used by four threads on {cpus} CPUs");
    assert!(used >= cpus.min(2), "{used} arenas used by four threads on {cpus} CPUs");
    assert!(used <= cpus, "{used} arenas on {cpus} CPUs");
}
