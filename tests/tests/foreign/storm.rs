//! The storm: threads that run the C library's sequences, ours and the allocator, all mixed, while they are moved
//! between CPUs and interrupted by signals. The handler runs a sequence of the side that the thread is not just in.
//!
//! At the end the C library's counters per CPU, ours per vCPU, its lists of nodes and the contents of all blocks must
//! be exact.

use std::alloc::Layout;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use integration::disturb::{self, Timer};
use integration::random::Random;
use integration::{die, pattern};
use rseq_sys::sequence::{self, Outcome, Vcpu};
use rseq_sys::{Errno, Unavailable, membarrier};

use crate::library;
use crate::mover;

/// Who registers a thread, and so what it may run beside the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// libc or rseq-sys; the C library joins in. Both sides' sequences.
    Shared,
    /// The C library, before anybody else. Its sequences only.
    Foreign,
    /// Nobody. No sequences.
    Plain,
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) shared: usize,
    pub(crate) foreign: usize,
    pub(crate) plain: usize,
}

impl Plan {
    fn kinds(self) -> impl Iterator<Item = Kind> {
        let some = |kind, number| std::iter::repeat_n(kind, number);
        some(Kind::Shared, self.shared).chain(some(Kind::Foreign, self.foreign)).chain(some(Kind::Plain, self.plain))
    }
}

/// Operations of each thread.
const OPERATIONS: u64 = 3_000_000;
/// They go on until sequences of both sides have been aborted, but not beyond this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two signals to a thread.
const SIGNAL: Duration = Duration::from_micros(250);
/// Between two moves of a thread.
const MOVE: Duration = Duration::from_micros(50);

/// Rounds that a sequence of the C library holds its old value, at most: some microseconds.
const MOST_SPINS: usize = 8192;

const MAX_THREADS: usize = 16;
/// More ids than any machine of ours has.
const MAX_IDS: usize = 1024;

/// What the thread is in the middle of, for its handler.
const ALLOCATING: u8 = 0;
const IN_C: u8 = 1;
const IN_RUST: u8 = 2;

/// Of one thread; written by it and its handler.
#[repr(align(128))]
struct PerThread {
    tid: AtomicI32,
    doing: AtomicU8,
    kind: AtomicU8,
    handled: AtomicU64,
    counted_c: AtomicU64,
    counted_rust: AtomicU64,
    nodes_moved: AtomicU64,
}

static THREADS: [PerThread; MAX_THREADS] = [const {
    PerThread {
        tid: AtomicI32::new(0),
        doing: AtomicU8::new(ALLOCATING),
        kind: AtomicU8::new(Kind::Plain as u8),
        handled: AtomicU64::new(0),
        counted_c: AtomicU64::new(0),
        counted_rust: AtomicU64::new(0),
        nodes_moved: AtomicU64::new(0),
    }
}; MAX_THREADS];

/// A counter for each vCPU, changed by our sequences.
#[repr(align(128))]
struct PerId(AtomicUsize);

static PER_ID: [PerId; MAX_IDS] = [const { PerId(AtomicUsize::new(0)) }; MAX_IDS];

/// Blocks that wait for whoever takes them; 0: none.
static SLOTS: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];

/// Our sequences, where there are any.
static VCPU: OnceLock<Option<Vcpu>> = OnceLock::new();

static END: OnceLock<Barrier> = OnceLock::new();
/// Whether enough has been aborted.
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// The share of the usual amount of work that is asked for, in percent (`RSEQ_SYS_TEST_PERCENT`, at least 1).
fn percent() -> u64 {
    match std::env::var("RSEQ_SYS_TEST_PERCENT") {
        Ok(text) => text.parse().ok().filter(|percent| *percent > 0).expect("RSEQ_SYS_TEST_PERCENT is a number from 1"),
        Err(_) => 100,
    }
}

/// A slow machine handles fewer signals; it has to get something else done too.
fn slowed(period: Duration) -> Duration {
    period * u32::try_from((100 / percent()).clamp(1, 20)).expect("at most 20")
}

/// Runs the storm, once per process, and checks all totals.
pub(crate) fn run(plan: Plan) {
    let threads: Vec<Kind> = plan.kinds().collect();
    assert!(threads.len() <= MAX_THREADS);
    let mode = rseq_sys::mode();
    let vcpu = mode.ok().map(|mode| Vcpu::new(&mode, mode.default_index()));
    assert!(VCPU.set(vcpu).is_ok(), "one storm for each process");
    let end = END.get_or_init(|| Barrier::new(threads.len() + 1));
    // SAFETY: once, and nobody counts yet. Every CPU has a list; the threads find this one when they come by.
    let nodes = unsafe { library::prepare(first_cpu()) };
    disturb::install(handler);

    // Before there are threads, while it costs next to nothing. Where it is refused the moves have to do.
    let fences = membarrier::register().is_ok();
    let (start, aborts, stop) = (Instant::now(), sequence::aborts(), AtomicBool::new(false));
    let tids: Vec<&AtomicI32> = THREADS[..threads.len()].iter().map(|thread| &thread.tid).collect();
    let mut moves = 0;
    std::thread::scope(|scope| {
        let mut foreign = Vec::new();
        for (index, kind) in threads.iter().enumerate() {
            THREADS[index].kind.store(*kind as u8, Ordering::Relaxed);
            match kind {
                Kind::Foreign => foreign.push(library::Thread::start(foreign_body, index)),
                _ => drop(scope.spawn(move || body(index))),
            }
        }
        let mover = scope.spawn(|| mover::move_threads(&tids, fences, &stop, slowed(MOVE)));
        // The nodes start on the list of one CPU, which few threads come by where there are many.
        let moved = || THREADS.iter().any(|thread| thread.nodes_moved.load(Ordering::Relaxed) > 0);
        let aborted = || library::aborts() > 0 && (plan.shared == 0 || sequence::aborts() > aborts);
        while !(aborted() && moved()) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        ENOUGH.store(true, Ordering::Relaxed);
        // All threads are done, and wait for the mover to let go of them.
        end.wait();
        stop.store(true, Ordering::Relaxed);
        moves = mover.join().expect("the mover");
        end.wait();
        foreign.into_iter().for_each(library::Thread::join);
    });
    for slot in &SLOTS {
        release(slot.swap(0, Ordering::Acquire));
    }
    settle(plan, nodes, sequence::aborts() - aborts, moves, start.elapsed());
}

fn first_cpu() -> u32 {
    // SAFETY: a question.
    u32::try_from(unsafe { libc::sched_getcpu() }).expect("this thread runs on a CPU")
}

/// Checks the sums when all threads have ended.
fn settle(plan: Plan, nodes: u64, aborts: u64, moves: u64, time: Duration) {
    let sum = |field: fn(&PerThread) -> &AtomicU64| -> u64 {
        THREADS.iter().map(|thread| field(thread).load(Ordering::Relaxed)).sum()
    };
    let (counted_c, counted_rust) = (sum(|thread| &thread.counted_c), sum(|thread| &thread.counted_rust));
    let (handled, nodes_moved) = (sum(|thread| &thread.handled), sum(|thread| &thread.nodes_moved));
    // SAFETY: no thread counts any more.
    let c = unsafe { library::totals() };
    let rust: usize = PER_ID.iter().map(|id| id.0.load(Ordering::Relaxed)).sum();
    println!(
        "storm: {plan:?}: {:.1} s, {handled} signals ({:.1} kHz), {moves} moves",
        time.as_secs_f64(),
        handled as f64 / time.as_secs_f64() / 1e3
    );
    println!(
        "storm: C counted {counted_c} on {} CPUs, moved {nodes_moved} nodes, {} aborts; its descriptor was still set \
         {} times, another's {} times",
        c.cpus, c.aborts, c.found_own, c.found_others
    );
    println!("storm: Rust counted {counted_rust}, {aborts} aborts; {}", alloc_core::mode());
    assert_eq!(c.counted, counted_c, "the C library's counters do not hold as much as was committed");
    assert_eq!(c.nodes, nodes, "nodes of the C library's lists were lost or duplicated");
    assert_eq!(rust as u64, counted_rust, "our counters do not hold as much as was committed");

    // Without these the sums above prove nothing.
    assert!(handled > 0 && moves > 0, "nobody was disturbed");
    assert!(
        c.aborts > 0 && counted_c > 0 && nodes_moved > 0,
        "no sequence of the C library was aborted, or none took a node"
    );
    assert_eq!(counted_rust > 0, plan.shared > 0);
    if plan.shared > 0 {
        assert!(aborts > 0, "no sequence of ours was aborted");
        assert!(c.found_others > 0 && c.found_own > 0, "the two never met");
    }
}

extern "C" fn foreign_body(index: *mut libc::c_void) {
    body(index as usize);
}

/// One thread.
fn body(index: usize) {
    let me = &THREADS[index];
    let registered = rseq_sys::ensure_thread();
    let kind = if me.kind.load(Ordering::Relaxed) == Kind::Shared as u8 {
        assert_eq!(registered, Ok(()));
        assert!(library::has_area() && !library::is_registrar());
        Kind::Shared
    } else {
        // The kernel's answer where another area is registered already; to this thread, or to the one that asked for
        // the whole process.
        assert_eq!(registered, Err(Unavailable::Register(Errno(libc::EINVAL))));
        assert!(!rseq_sys::thread_is_registered());
        assert_eq!(library::has_area(), library::is_registrar());
        if library::is_registrar() { Kind::Foreign } else { Kind::Plain }
    };
    assert_eq!(me.kind.load(Ordering::Relaxed), kind as u8);

    // SAFETY: no preconditions.
    me.tid.store(unsafe { libc::gettid() }, Ordering::Release);
    let timer = Timer::start(index, slowed(SIGNAL));
    let mut random = Random::from_environment(index as u64);
    let (mut done, all) = (0, OPERATIONS * percent() / 100);
    while done < all || !ENOUGH.load(Ordering::Relaxed) {
        done += 1;
        match random.below(8) {
            0 | 1 if kind != Kind::Plain => in_c(me, || count_c(me, random.size(MOST_SPINS) as u32)),
            2 if kind != Kind::Plain => in_c(me, || move_node(me)),
            // SAFETY: the thread has an area.
            3 if kind != Kind::Plain && random.below(64) == 0 => unsafe { library::disarm() },
            4 | 5 if kind == Kind::Shared => {
                me.doing.store(IN_RUST, Ordering::Relaxed);
                count_rust(me);
                me.doing.store(ALLOCATING, Ordering::Relaxed);
            }
            _ => exchange_blocks(index, &mut random),
        }
    }
    drop(timer);
    let end = END.get().expect("set before the threads start");
    end.wait();
    end.wait();
    me.tid.store(0, Ordering::Release);
    if kind == Kind::Foreign {
        assert!(library::still_registered(), "somebody took the C library's registration away");
    }
}

fn in_c(me: &PerThread, run: impl FnOnce()) {
    me.doing.store(IN_C, Ordering::Relaxed);
    run();
    me.doing.store(ALLOCATING, Ordering::Relaxed);
}

fn count_c(me: &PerThread, spin: u32) {
    // SAFETY: called in threads with an area only.
    unsafe { library::count(spin) };
    me.counted_c.fetch_add(1, Ordering::Relaxed);
}

fn move_node(me: &PerThread) {
    // SAFETY: as above.
    let moved = unsafe { library::move_node() };
    me.nodes_moved.fetch_add(moved.into(), Ordering::Relaxed);
}

fn count_rust(me: &PerThread) {
    let Some(Some(vcpu)) = VCPU.get() else { die!("storm: no sequences of ours in this process") };
    loop {
        let id = vcpu.id();
        let Some(counter) = PER_ID.get(id as usize) else { die!("storm: the id {id} is beyond any CPU") };
        // SAFETY: the word belongs to this id and is changed by sequences only.
        match unsafe { vcpu.add(id, counter.0.as_ptr(), 1) } {
            Outcome::Committed => break,
            Outcome::Moved | Outcome::GaveUp => {}
            Outcome::Differs => die!("storm: add compares nothing and cannot answer Differs"),
        }
    }
    me.counted_rust.fetch_add(1, Ordering::Relaxed);
}

/// Runs the side that the thread is not in: the C library's sequences interrupt the allocator's and ours, and the
/// other way round.
extern "C" fn handler(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo with the value given to timer_create.
    let index = unsafe { (*info).si_value() }.sival_ptr as usize;
    let me = &THREADS[index];
    let kind = me.kind.load(Ordering::Relaxed);
    if kind == Kind::Shared as u8 && me.doing.load(Ordering::Relaxed) == IN_C {
        count_rust(me);
    } else if kind != Kind::Plain as u8 {
        count_c(me, 0);
        move_node(me);
    }
    me.handled.fetch_add(1, Ordering::Relaxed);
}

/// The first two words of a block: its size and its tag.
const HEADER: usize = 16;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 16).expect("a small size")
}

/// Puts a new block in a random slot, and verifies and frees the one that was there, whoever left it.
fn exchange_blocks(index: usize, random: &mut Random) {
    let size = HEADER + 8 + random.size(4096);
    // SAFETY: the size is not zero.
    let block = black_box(unsafe { std::alloc::alloc(layout(size)) });
    assert!(!block.is_null(), "{size} bytes are refused");
    let tag = (index as u64) << 48 | random.word() >> 16;
    // SAFETY: a fresh block of more than two words, aligned to 16.
    unsafe { block.cast::<[u64; 2]>().write([size as u64, tag]) };
    // SAFETY: the rest of the block.
    unsafe { pattern::fill(block.add(HEADER), size - HEADER, tag) };
    release(SLOTS[random.below(SLOTS.len())].swap(block as usize, Ordering::AcqRel));
}

fn release(block: usize) {
    if block == 0 {
        return;
    }
    let block = block as *mut u8;
    // SAFETY: a block out of a slot, with a header.
    let [size, tag] = unsafe { block.cast::<[u64; 2]>().read() };
    if !(24..=8192).contains(&size) {
        die!("storm: CORRUPTED: the header of block {block:p} says {size} bytes");
    }
    let size = size as usize;
    // SAFETY: as above.
    if let Err(mismatch) = unsafe { pattern::verify(block.add(HEADER), size - HEADER, tag) } {
        die!("storm: CORRUPTED: block {block:p} of {size} bytes: {mismatch}");
    }
    // SAFETY: a live block of that size, given up here.
    unsafe { std::alloc::dealloc(black_box(block), layout(size)) };
}
