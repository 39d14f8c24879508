//! Promise: after a membarrier fence no section commits that began before it. What is written before the fence is
//! seen by every section that commits after it, so a flag that sections compare can stop them all.

#[path = "common/affinity.rs"]
mod affinity;
#[path = "common/work.rs"]
mod work;

use affinity::{allowed_cpus, ids, pin};
use rseq_sys::sequence::{Outcome, Vcpu, aborts};
use rseq_sys::{Errno, IndexKind, ensure_thread, membarrier, mode};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use work::work;

/// How long each of the tests below looks for a section that slips through, in milliseconds.
const LOOK: usize = 2000;

#[repr(align(128))]
struct Counter(AtomicUsize);

/// Sections that add to the counter of their vCPU while the flag is down.
struct Workers {
    vcpu: Vcpu,
    counters: Vec<Counter>,
    flag: AtomicUsize,
    stop: AtomicBool,
}

impl Workers {
    fn new(index: IndexKind) -> Option<Self> {
        let mode = match mode() {
            Ok(mode) if mode.has_index(index) && membarrier::available() => mode,
            answer => {
                println!("skipped: {answer:?}, membarrier {:?}", membarrier::register());
                return None;
            }
        };
        let counters = (0..ids()).map(|_| Counter(AtomicUsize::new(0))).collect();
        let (flag, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        Some(Workers { vcpu: Vcpu::new(&mode, index), counters, flag, stop })
    }

    fn work(&self) {
        ensure_thread().expect("every thread of this process can be registered");
        while !self.stop.load(Ordering::Relaxed) {
            let id = self.vcpu.id();
            let counter = &self.counters[id as usize].0;
            let old = counter.load(Ordering::Relaxed);
            // SAFETY: the counter is changed by sequences for this id only; the flag is a valid word.
            let outcome =
                unsafe { self.vcpu.compare_compare_store(id, counter.as_ptr(), old, self.flag.as_ptr(), 0, old + 1) };
            if outcome == Outcome::Differs {
                std::hint::spin_loop();
            }
        }
    }

    /// Stops the workers when dropped, also by a failed assertion.
    fn guard(&self) -> impl Drop {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Stop(&self.stop)
    }

    fn sum(&self) -> usize {
        self.counters.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum()
    }

    /// Raises the flag, fences, and looks whether anything still moves; again and again. Returns how often.
    fn stop_and_look(&self, fence: impl Fn()) -> usize {
        let _stop = self.guard();
        let (start, mut rounds) = (Instant::now(), 0);
        let look = Duration::from_millis(work(LOOK) as u64);
        while start.elapsed() < look || self.sum() == 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "no section committed in a minute");
            self.flag.store(1, Ordering::Relaxed);
            fence();
            let frozen = self.sum();
            for _ in 0..200 {
                assert_eq!(self.sum(), frozen, "a section committed after the fence");
            }
            self.flag.store(0, Ordering::Relaxed);
            rounds += 1;
            for _ in 0..rounds % 64 {
                std::hint::spin_loop();
            }
        }
        rounds
    }
}

#[test]
fn process_wide_fence_stops_sections() {
    let Some(workers) = Workers::new(IndexKind::MmCid) else { return };
    let before = aborts();
    std::thread::scope(|scope| {
        for _ in 0..allowed_cpus().len() {
            scope.spawn(|| workers.work());
        }
        let rounds = workers.stop_and_look(|| membarrier::fence().expect("available"));
        println!("{rounds} fences, {} increments, {} aborts", workers.sum(), aborts() - before);
    });
    assert!(workers.sum() > 0);
}

#[test]
fn fence_of_one_cpu_stops_sections_there() {
    let Some(workers) = Workers::new(IndexKind::CpuId) else { return };
    let cpu = allowed_cpus().pop().expect("at least one CPU");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                assert!(pin(0, cpu));
                workers.work();
            });
        }
        let fence = || membarrier::fence_cpu(cpu as u32).expect("available");
        let rounds = workers.stop_and_look(fence);
        println!("{rounds} fences of CPU {cpu}, {} increments", workers.sum());
    });
    assert!(workers.sum() > 0);
    assert_eq!(workers.sum(), workers.counters[cpu].0.load(Ordering::Relaxed), "they ran on that CPU alone");
}

/// Sections are aborted by fences, not only ordered: there are far more aborts than the timer of one CPU makes.
#[test]
fn fences_abort_sections() {
    let Some(workers) = Workers::new(IndexKind::MmCid) else { return };
    let cpus = allowed_cpus();
    if cpus.len() < 2 {
        return println!("skipped: one CPU cannot be interrupted by another");
    }
    let before = aborts();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(pin(0, cpus[0]));
            workers.work();
        });
        let _stop = workers.guard();
        assert!(pin(0, cpus[1]));
        let start = Instant::now();
        while aborts() - before < work(200) as u64 {
            assert!(start.elapsed() < Duration::from_secs(60), "{} aborts in a minute of fences", aborts() - before);
            membarrier::fence().expect("available");
        }
    });
}

#[test]
fn registering_is_idempotent_and_errors_are_values() {
    let first = membarrier::register();
    assert_eq!(membarrier::register(), first);
    assert_eq!(membarrier::available(), first.is_ok());
    assert_eq!(membarrier::fence_cpu(u32::MAX), Err(Errno(libc::EINVAL)));
    if first.is_ok() {
        assert_eq!(membarrier::fence_cpu(i32::MAX as u32), Ok(()), "no CPU, nothing to do");
    }
}
