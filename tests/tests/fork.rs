//! Fork under load. Promise: of two hundred children, forked while four threads are in the middle of allocations, none
//! hangs on a lock that a lost thread held and none finds the heap inconsistent.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alloc_core::RseqAlloc;
use integration::body::churn_patterned;
use integration::child;
use integration::configuration::execute_with;
use integration::harness::{self, Check};

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

const FORKS: u64 = 200;
const CHILD_LIMIT: Duration = Duration::from_secs(20);

/// Set in the run on arenas, whose locks are held on the fast path already.
const ARENAS: &str = "INTEGRATION_FORK_ARENAS";

fn main() -> ExitCode {
    if std::env::var_os(ARENAS).is_some() {
        execute_with("RSEQ_ALLOC", "index=arenas");
        return harness::main(&[&[Check::new("fork_under_load", fork_under_load)]]);
    }
    harness::main(&[&[
        Check::new("fork_under_load", fork_under_load),
        Check::new("fork_under_load_on_arenas", || {
            let finished = child::run(child::again().env(ARENAS, "1"), Duration::from_secs(110));
            finished.expect_success("forks on arenas");
        }),
    ]])
}

fn fork_under_load() {
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || {
                let mut kept: Vec<Vec<u8>> = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    churn_patterned(thread, 300);
                    // All locks are to be found held now and then: large blocks, spans that come and go, drains.
                    kept.push(vec![thread as u8; 3 << 20]);
                    kept.push(vec![thread as u8; 200 << 10]);
                    if kept.len() > 6 {
                        kept.clear();
                    }
                    if rounds.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
                        alloc_core::purge();
                    }
                }
            });
        }
        let mut outcome = Ok(());
        for number in 0..FORKS {
            let blocks: Vec<Vec<u64>> = (1..100).map(|size| vec![number; size * 7]).collect();
            let begin = Instant::now();
            outcome = child::fork(CHILD_LIMIT, || {
                assert!(blocks.iter().flatten().all(|word| *word == number), "a block of the parent changed");
                drop(blocks);
                churn_patterned(100 + number, 1000);
                let large = vec![1_u8; 5 << 20];
                let thread = std::thread::spawn(move || {
                    churn_patterned(200 + number, 1000);
                    drop(large);
                });
                churn_patterned(300 + number, 1000);
                alloc_core::purge();
                thread.join().expect("a thread of the child");
            })
            .map_err(|reason| format!("fork {number}: {reason}"));
            slowest = slowest.max(begin.elapsed());
            if outcome.is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        if let Err(reason) = outcome {
            panic!("{reason}");
        }
    });
    let rounds = rounds.load(Ordering::Relaxed);
    assert!(rounds > FORKS, "the threads were busy meanwhile");
    println!(
        "fork: {FORKS} children in {:.1} s, the slowest took {:.0} ms, {rounds} rounds of the threads meanwhile; {}",
        start.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3,
        alloc_core::mode()
    );
}
