//! Stress under CPU migration. Promise: whatever instruction of an allocation a thread is preempted, migrated or
//! interrupted at, no block is ever owned twice, lost or damaged.
//!
//! More threads than CPUs allocate, verify and free, while
//!
//! - a controller pins them to random CPUs every few hundred microseconds ([`pinning`]),
//! - every thread has a timer of 5 kHz whose handler runs rseq sequences of its own ([`signals`]),
//! - interrupters, threads that sleep between short bursts, preempt the others and use the same shards ([`worker`]),
//! - a thread purges, so that magazines are drained from other vCPUs' shards; in one run they are drained for a small
//!   bound, too.
//!
//! Every block is filled with a pattern of its address, owner and allocation and verified before it goes
//! ([`integration::pattern`]). The first difference ends the process with what was expected and what was found.
//!
//! Environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `STRESS_SECONDS` | how long to run at least | 45 |
//! | `STRESS_OPS` | operations to do at least, however long that takes (up to [`PATIENCE`]) | 120 000 000 |
//! | `STRESS_ABORTS` | aborts there must be at least, however long that takes (as above) | 1000 |
//! | `STRESS_HERTZ` | signals there must be at least, all threads together, per second | 5000 |
//! | `STRESS_HUNT` | 1: few sizes, many preemptions, constant purging, no goals: finds faults fast | 0 |
//! | `STRESS_THREADS` | busy threads per CPU | 8 |
//! | `STRESS_SIGNAL_US`, `STRESS_PIN_US`, `STRESS_PURGE_US` | periods in microseconds | 200, 200, 20 000 |
//! | `TEST_SEED` | seed of all random choices | fixed |
//!
//! `ci/faults.sh` runs this test against sequences with one deliberate fault each.

mod handover;
mod pinning;
mod signals;
mod worker;

use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alloc_core::RseqAlloc;
use integration::child;
use integration::configuration::best_index;
use integration::die;
use integration::harness::{self, Check};

#[global_allocator]
pub(crate) static GLOBAL: RseqAlloc = RseqAlloc::new();

/// Most threads of one run; tables of the handlers are this long.
pub(crate) const MAX_THREADS: usize = 1024;

/// How long a run goes on for the operations and aborts that it lacks. Where it lacks some then, it has failed.
const PATIENCE: Duration = Duration::from_secs(300);
/// Seconds after which a run has hung: where many emulated CPUs share few, its threads need a while to come to an end.
const LIMIT: u32 = 450;

/// What a run is made of.
pub(crate) struct Parameters {
    operations: u64,
    aborts: u64,
    hertz: f64,
    least: Duration,
    hunt: bool,
    busy_per_cpu: usize,
    interrupters_per_cpu: usize,
    signal: Duration,
    pin: Duration,
    purge: Duration,
}

impl Parameters {
    fn from_environment() -> Self {
        let number = |name: &str| -> Option<u64> {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
        };
        let hunt = number("STRESS_HUNT").is_some_and(|value| value != 0);
        let micros = |name: &str, usual: u64| Duration::from_micros(number(name).unwrap_or(usual));
        Self {
            operations: number("STRESS_OPS").unwrap_or(if hunt { 0 } else { 120_000_000 }),
            aborts: number("STRESS_ABORTS").unwrap_or(if hunt { 0 } else { 1000 }),
            hertz: number("STRESS_HERTZ").unwrap_or(5000) as f64,
            least: Duration::from_secs(number("STRESS_SECONDS").unwrap_or(if hunt { 60 } else { 45 })),
            hunt,
            busy_per_cpu: number("STRESS_THREADS").map_or(if hunt { 3 } else { 8 }, |count| count as usize),
            interrupters_per_cpu: if hunt { 2 } else { 1 },
            signal: micros("STRESS_SIGNAL_US", if hunt { 100 } else { 200 }),
            pin: micros("STRESS_PIN_US", 200),
            purge: micros("STRESS_PURGE_US", if hunt { 60 } else { 20_000 }),
        }
    }
}

/// State that all threads of a run look at.
pub(crate) struct Shared {
    pub(crate) stop: AtomicBool,
    pub(crate) phase: AtomicU32,
    pub(crate) operations: AtomicU64,
    pub(crate) handed_over: AtomicU64,
    pub(crate) ring: handover::Ring,
    pub(crate) hunt: bool,
    /// What each worker did, and the purger at the end.
    pub(crate) steps: [AtomicU64; MAX_THREADS + 1],
    /// Everybody has ended.
    done: AtomicBool,
    /// Workers wait here at their end until nobody pins them any more.
    pub(crate) end: Barrier,
}

fn main() -> ExitCode {
    const FULL: &[Check] = &[
        Check::new("stress", stress).within(LIMIT),
        Check::new("stress_cpu_id", || again("RSEQ_ALLOC", "index=cpu_id")).within(LIMIT),
        // Headers get and lose magazines all the time, and shards in use are drained for the bound.
        Check::new("stress_cache_limit", || again("RSEQ_ALLOC", "cache=1M,decay=0")).within(LIMIT),
        Check::new("stress_own_registration", || again("GLIBC_TUNABLES", "glibc.pthread.rseq=0")).within(LIMIT),
        Check::new("stress_arenas", || again("RSEQ_ALLOC", "index=arenas")).within(LIMIT),
    ];
    // A hunt and a child are one run only.
    let single = std::env::var_os("STRESS_HUNT").is_some() || std::env::var_os("STRESS_CHILD").is_some();
    harness::main(&[if single { &FULL[..1] } else { FULL }])
}

/// A shorter run in another mode.
fn again(variable: &str, value: &str) {
    let mut command = child::again();
    command.env("STRESS_CHILD", "1").env("STRESS_OPS", "4000000").env("STRESS_SECONDS", "8").env(variable, value);
    let finished = child::run(&mut command, Duration::from_secs(LIMIT.into()));
    finished.expect_success(&format!("stress under {variable}={value}"));
    for line in finished.stdout.lines().filter(|line| line.starts_with("stress")) {
        println!("  {line}");
    }
}

fn stress() {
    let parameters = Parameters::from_environment();
    let cpus = integration::disturb::allowed_cpus();
    let busy = (parameters.busy_per_cpu * cpus.len()).min(MAX_THREADS / 2);
    let interrupters = (parameters.interrupters_per_cpu * cpus.len()).min(MAX_THREADS / 2);
    let threads = busy + interrupters;
    let mode = alloc_core::mode();
    println!("stress: {busy} busy and {interrupters} interrupting threads on {} CPUs, {mode}", cpus.len());
    let sequences = signals::Sequences::prepare(&mode, threads);

    // Whatever std and the C library allocate once is allocated before the baseline is taken.
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| ())));
    });
    let before = alloc_core::stats();
    let switches = involuntary_switches();
    let start = Instant::now();
    let shared = Shared {
        stop: AtomicBool::new(false),
        phase: AtomicU32::new(0),
        operations: AtomicU64::new(0),
        handed_over: AtomicU64::new(0),
        ring: handover::Ring::new(),
        hunt: parameters.hunt,
        steps: [const { AtomicU64::new(0) }; MAX_THREADS + 1],
        done: AtomicBool::new(false),
        end: Barrier::new(threads + 1),
    };
    let (mut pins, mut purges) = (0, 0);
    std::thread::scope(|scope| {
        let (shared, sequences, parameters, cpus) = (&shared, &sequences, &parameters, &cpus);
        for index in 0..threads {
            let kind = if index < busy { worker::Kind::Busy } else { worker::Kind::Interrupting };
            scope.spawn(move || worker::run(index, kind, shared, sequences, parameters.signal));
        }
        let controller = scope.spawn(move || pinning::control(shared, threads, cpus, parameters.pin));
        let purger = scope.spawn(move || purge_now_and_then(shared, parameters));
        if parameters.hunt {
            scope.spawn(move || watch(shared, threads));
        }
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let passed = start.elapsed();
            let enough = shared.operations.load(Ordering::Relaxed) >= parameters.operations
                && (mode.is_arenas() || alloc_core::stats().aborts - before.aborts >= parameters.aborts);
            if passed >= parameters.least && (enough || passed >= PATIENCE) {
                break;
            }
            shared.phase.fetch_add(1, Ordering::Relaxed);
        }
        shared.stop.store(true, Ordering::Relaxed);
        pins = controller.join().expect("the controller");
        purges = purger.join().expect("the purger");
        shared.end.wait();
        shared.done.store(true, Ordering::Relaxed);
    });
    let seconds = start.elapsed().as_secs_f64();
    shared.ring.drain(worker::Block::free);
    let signals = sequences.settle();
    let operations = shared.operations.load(Ordering::Relaxed);
    let handed_over = shared.handed_over.load(Ordering::Relaxed);
    drop((shared, sequences));
    alloc_core::purge();
    let after = alloc_core::stats();

    let aborts = after.aborts - before.aborts;
    println!(
        "stress: {operations} operations in {seconds:.1} s ({:.2} million/s), {aborts} aborts, {} give-ups, {} bypasses",
        operations as f64 / seconds / 1e6,
        after.give_ups - before.give_ups,
        after.bypasses - before.bypasses,
    );
    println!(
        "stress: {signals} signals handled ({:.1} kHz), {pins} re-pins, {} involuntary switches, {purges} purges, \
         {} shard drains, {handed_over} blocks handed over",
        signals as f64 / seconds / 1e3,
        involuntary_switches() - switches,
        after.drains - before.drains,
    );
    println!("stress: {after}");

    // Everything was freed and nobody allocates: what is missing was lost on the way.
    assert!(
        after.allocated <= before.allocated + LEFT_BY_STD,
        "{} bytes are still allocated of what this run allocated: blocks were lost",
        after.allocated - before.allocated
    );
    if parameters.hunt {
        return;
    }
    assert!(
        operations >= parameters.operations,
        "only {operations} of {} operations in {seconds:.0} s",
        parameters.operations
    );
    assert!(signals as f64 / seconds >= parameters.hertz, "signals came with {:.0} Hz only", signals as f64 / seconds);
    if !mode.is_arenas() {
        assert!(aborts >= parameters.aborts, "only {aborts} of {} aborts in {seconds:.0} s", parameters.aborts);
    } else if best_index().is_some() && std::env::var_os("RSEQ_ALLOC").is_none() {
        panic!("arenas, although the kernel has rseq: nothing of this test applies to them");
    }
}

/// What std and the C library may keep of a run, in bytes: names and results of threads, buffers of standard output.
const LEFT_BY_STD: usize = 64 << 10;

/// Purges until the run stops; the number of purges.
fn purge_now_and_then(shared: &Shared, parameters: &Parameters) -> u64 {
    let mut purges = 0;
    if parameters.hunt {
        // Many drains, each while the other CPUs are in full swing.
        pinning::preempt_others(1);
    }
    while !shared.stop.load(Ordering::Relaxed) {
        alloc_core::purge();
        purges += 1;
        shared.steps[MAX_THREADS].fetch_add(1, Ordering::Relaxed);
        // One phase in four lets magazines fill up.
        let rest = parameters.hunt && shared.phase.load(Ordering::Relaxed) % 4 == 3;
        std::thread::sleep(if rest { Duration::from_millis(5) } else { parameters.purge });
    }
    purges
}

/// Ends the process if a thread does not get on: what is lost may be found as a list that has no end, or a lock that
/// nobody will release. Allocates nothing, since the heap may be what hangs.
fn watch(shared: &Shared, threads: usize) {
    let mut seen = [0; MAX_THREADS + 1];
    let mut since = Instant::now();
    while !shared.done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        if since.elapsed() < HANGS_AFTER {
            continue;
        }
        since = Instant::now();
        for (thread, (steps, seen)) in shared.steps.iter().zip(&mut seen).enumerate() {
            let now = steps.load(Ordering::Relaxed);
            if now == *seen && (thread < threads || thread == MAX_THREADS) {
                die!("stress: thread {thread} hung");
            }
            *seen = now;
        }
    }
}

/// Once a thread has done nothing for so long, it hangs; a hunt has many preemptions, but no other load.
const HANGS_AFTER: Duration = Duration::from_secs(12);

/// How often a thread of this process was preempted so far
/// ([getrusage(2)](https://man7.org/linux/man-pages/man2/getrusage.2.html)).
fn involuntary_switches() -> i64 {
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    usage.ru_nivcsw
}
