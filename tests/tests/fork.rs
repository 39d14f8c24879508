//! Fork under load. Promise: of two hundred children, forked while four threads are in the middle of allocations, none
//! hangs on a lock that a lost thread held and none finds the heap inconsistent. With one thread, a handler that forks
//! does not hang either, whatever it interrupted.

use std::hint::black_box;
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
        // First, before there are threads.
        Check::new("fork_in_a_handler", fork_in_a_handler),
        Check::new("fork_under_load", fork_under_load),
        Check::new("fork_under_load_on_arenas", || {
            let finished = child::run(child::again().env(ARENAS, "1"), Duration::from_secs(110));
            finished.expect_success("forks on arenas");
        }),
    ]])
}

/// Forks of the handler that are wanted in the middle of an allocator's call.
const INTERRUPTIONS: u64 = 1000;
static FORKED: AtomicU64 = AtomicU64::new(0);

/// A child that ends at once.
extern "C" fn fork_and_wait(_signal: libc::c_int) {
    // SAFETY: the child calls nothing but `_exit`, the parent nothing but `waitpid`, with room for the status.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        let mut status = -1;
        while libc::waitpid(child, &raw mut status, 0) < 0 {}
        status
    };
    if status != 0 {
        integration::die!("a child of the handler ended with {status}");
    }
    FORKED.fetch_add(1, Ordering::Relaxed);
}

fn fork_in_a_handler() {
    let handler = fork_and_wait as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler only calls what it may call.
    unsafe { libc::signal(libc::SIGVTALRM, handler) };
    let set_timer = |micros| {
        let time = libc::timeval { tv_sec: 0, tv_usec: micros };
        let timer = libc::itimerval { it_interval: time, it_value: time };
        // SAFETY: a valid timer, and nobody asks for the old one.
        assert_eq!(unsafe { libc::setitimer(libc::ITIMER_VIRTUAL, &raw const timer, std::ptr::null_mut()) }, 0);
    };
    // Nearly all of the time goes to paths with locks: single large blocks, and more small ones than the caches hold.
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(60_000);
    set_timer(100);
    while FORKED.load(Ordering::Relaxed) < INTERRUPTIONS {
        blocks.extend((0..40_000).map(|number| Vec::with_capacity(200 + number % 1000)));
        for size in (32 << 10..2 << 20).step_by(20_000) {
            drop(black_box(Vec::<u8>::with_capacity(size)));
            blocks.push(Vec::with_capacity(size));
        }
        blocks.clear();
    }
    set_timer(0);
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
