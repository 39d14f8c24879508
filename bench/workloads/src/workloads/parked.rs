//! Models a server with a large thread pool that is idle: 2000 threads each allocate 1 MiB in blocks of 16 to 1024
//! bytes, free them all, and go to sleep. What an allocator keeps for threads that are there but idle is the resident
//! memory at the end.
//!
//! Counted: threads, from the start of the first until the last one sleeps; and that memory. The floor is the same with
//! threads that allocate nothing: their stacks, and their starts.

use std::alloc::Layout;
use std::ptr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::{Outcome, Report, Settings, Workload};
use crate::blocks::{Random, Subject, allocate};
use crate::crew::Pace;
use crate::subjects::{FIXED, Global};
use crate::usage;

const THREADS: usize = 2000;
/// Bytes that each thread allocates before it frees them.
const BYTES: usize = 1 << 20;
/// Enough for the little that a thread does here, and small, so that stacks do not drown the allocator's share.
const STACK: usize = 64 << 10;
/// Blocks are of 16 to 1024 bytes, in steps of 16.
const STEP: usize = 16;
const STEPS: usize = 64;

/// How many threads are asleep; the number is all they share, and nobody ever wakes them.
struct Dormitory {
    asleep: Mutex<usize>,
    changed: Condvar,
    never: Condvar,
}

/// `parked/N`: with N threads instead, whatever the divisor.
pub(super) fn of(name: &str) -> Option<Workload> {
    let threads = name.strip_prefix("parked/")?.parse().ok().filter(|&threads| threads > 0)?;
    let parked = Workload::new(name, "thread", move |_| park(Global, threads, BYTES));
    Some(Workload { timed_calls: false, ..parked.above(move |_| park(FIXED, threads, 0)) })
}

pub(super) fn run_floor(settings: &Settings) -> Outcome {
    park(FIXED, settings.scaled(THREADS), 0)
}

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    park(allocator, settings.scaled(THREADS), BYTES)
}

fn park<A: Subject>(allocator: A, threads: usize, bytes: usize) -> Outcome {
    // Leaked, because the threads outlive this function.
    let dormitory: &'static Dormitory =
        Box::leak(Box::new(Dormitory { asleep: Mutex::new(0), changed: Condvar::new(), never: Condvar::new() }));
    let begun = Instant::now();
    for _ in 0..threads {
        let work = move || {
            allocate_and_free(allocator, bytes);
            let mut asleep = dormitory.asleep.lock().unwrap_or_else(PoisonError::into_inner);
            *asleep += 1;
            dormitory.changed.notify_one();
            loop {
                asleep = dormitory.never.wait(asleep).unwrap_or_else(PoisonError::into_inner);
            }
        };
        thread::Builder::new().stack_size(STACK).spawn(work).map_err(|error| format!("no thread: {error}"))?;
    }
    let mut asleep = dormitory.asleep.lock().unwrap_or_else(PoisonError::into_inner);
    while *asleep < threads {
        asleep = dormitory.changed.wait(asleep).unwrap_or_else(PoisonError::into_inner);
    }
    let pace = Pace { operations: threads as u64, time: begun.elapsed() };
    let rss_kib = usage::rss_kib().map_err(|error| error.to_string())?;
    Ok(Report { pace, rss_kib: Some(rss_kib) })
}

/// Allocates blocks of together at least `bytes`, then frees them all.
///
/// The blocks form a list through their first words, so that nothing else is allocated; their second words hold their
/// sizes.
fn allocate_and_free<A: Subject>(allocator: A, bytes: usize) {
    type Head = (*mut u8, usize);
    let layout = |size| Layout::from_size_align(size, align_of::<Head>()).expect("a small size fits");
    let mut random = Random::new(4);
    let mut head: *mut u8 = ptr::null_mut();
    let mut total = 0;
    while total < bytes {
        let size = (1 + random.below(STEPS)) * STEP;
        let block = allocate(allocator, layout(size), 0);
        // SAFETY: a block has room for a head, and its alignment.
        unsafe { block.cast::<Head>().write((head, size)) };
        head = block;
        total += size;
    }
    while !head.is_null() {
        // SAFETY: every block of the list begins with the head written above.
        let (next, size) = unsafe { head.cast::<Head>().read() };
        // SAFETY: the block was allocated with this layout, and is not used any more.
        unsafe { allocator.dealloc(head, layout(size)) };
        head = next;
    }
}
