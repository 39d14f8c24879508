//! Promise: counters that belong to vCPUs lose no increment, whichever thread adds on whichever CPU, and however often
//! threads are moved in between. The crate is used here as anybody would use it who wants cheap statistics.

#[path = "common/affinity.rs"]
mod affinity;
#[path = "common/disturb.rs"]
mod disturb;
#[path = "common/work.rs"]
mod work;

use affinity::{allowed_cpus, ids};
use disturb::{Hopper, fence_until};
use rseq_sys::sequence::{Outcome, Vcpu, aborts};
use rseq_sys::{IndexKind, ensure_thread, mode};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use work::work;

/// Additions in all.
const ROUNDS: usize = 8_000_000;
const ROUNDS_PER_HOP: usize = 1000;

/// One counter, on cache lines of its own.
#[repr(align(128))]
struct Counter(AtomicUsize);

/// A counter for each vCPU, and one for threads without.
struct PerVcpu {
    vcpu: Vcpu,
    counters: Vec<Counter>,
    shared: AtomicUsize,
}

impl PerVcpu {
    fn new(index: IndexKind) -> Self {
        let mode = mode().expect("asked before");
        let counters = (0..ids()).map(|_| Counter(AtomicUsize::new(0))).collect();
        PerVcpu { vcpu: Vcpu::new(&mode, index), counters, shared: AtomicUsize::new(0) }
    }

    fn add(&self, n: usize) {
        loop {
            let id = self.vcpu.id();
            let counter = self.counters[id as usize].0.as_ptr();
            // SAFETY: a valid word that only sequences for this id change.
            match unsafe { self.vcpu.add(id, counter, n) } {
                Outcome::Committed => return,
                Outcome::Moved => {}
                Outcome::GaveUp => break,
                Outcome::Differs => unreachable!("add compares nothing"),
            }
        }
        self.shared.fetch_add(n, Ordering::Relaxed);
    }

    /// The same out of two steps, the way a maximum or a saturating sum would be done.
    fn add_by_compare(&self, n: usize) {
        loop {
            let id = self.vcpu.id();
            let counter = &self.counters[id as usize].0;
            let old = counter.load(Ordering::Relaxed);
            // SAFETY: a valid word that only sequences for this id change.
            match unsafe { self.vcpu.compare_store(id, counter.as_ptr(), old, old.wrapping_add(n)) } {
                Outcome::Committed => return,
                Outcome::Moved | Outcome::Differs => {}
                Outcome::GaveUp => break,
            }
        }
        self.shared.fetch_add(n, Ordering::Relaxed);
    }

    fn sum(&self) -> usize {
        let counted: usize = self.counters.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
        counted + self.shared.load(Ordering::Relaxed)
    }
}

fn run(index: IndexKind, add: fn(&PerVcpu, usize)) {
    match mode() {
        Ok(mode) if mode.has_index(index) => {}
        Ok(_) => return println!("skipped: this kernel has no {index}"),
        Err(reason) => return println!("skipped: {reason}"),
    }
    let per_vcpu = PerVcpu::new(index);
    let threads = 4 * allowed_cpus().len();
    let rounds = work(ROUNDS).div_ceil(threads);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| fence_until(&stop));
        let worker = |thread| {
            let per_vcpu = &per_vcpu;
            scope.spawn(move || {
                ensure_thread().expect("every thread of this process can be registered");
                let mut hopper = Hopper::new(thread);
                for round in 0..rounds {
                    if round.is_multiple_of(ROUNDS_PER_HOP) {
                        hopper.hop(0);
                    }
                    add(per_vcpu, 1 + round % 3);
                }
            })
        };
        let workers: Vec<_> = (0..threads).map(worker).collect();
        let all_fine = workers.into_iter().map(|worker| worker.join()).all(|answer| answer.is_ok());
        stop.store(true, Ordering::Relaxed);
        assert!(all_fine);
    });
    let expected: usize = threads * (0..rounds).map(|round| 1 + round % 3).sum::<usize>();
    assert_eq!(per_vcpu.sum(), expected);
    println!("{index}: {expected} in {threads} threads, {} aborts so far", aborts());
}

#[test]
fn add_by_concurrency_id() {
    run(IndexKind::MmCid, PerVcpu::add);
}

#[test]
fn add_by_cpu() {
    run(IndexKind::CpuId, PerVcpu::add);
}

#[test]
fn compare_and_store_by_concurrency_id() {
    run(IndexKind::MmCid, PerVcpu::add_by_compare);
}

#[test]
fn compare_and_store_by_cpu() {
    run(IndexKind::CpuId, PerVcpu::add_by_compare);
}
