//! A program to be checkpointed and restored between sequences and inside of them (`ci/criu.sh` does it).
//!
//!     checkpoint FILE [ROUNDS]
//!
//! Some threads count by sequences all the time, in counters of the current vCPU, so that a checkpoint finds some of
//! them inside a section; one thread sleeps for ten rounds at a time. After each round the counters must add up to what
//! the threads have counted, and the first difference ends the program.
//!
//! The program cannot notice by itself that it was restored. So whoever restores it creates FILE before. When the file
//! is there the threads look at their registrations, the fence is tried once as it comes, ROUNDS (40) more rounds run,
//! and the last line is the verdict. Exit code 0 means that everything was as promised. For as long as there is a file
//! FILE.pause, all threads wait between two rounds, outside of any section.
//!
//! `RSEQ_INDEX=cpu_id` asks for that index instead of the default one.

use rseq_sys::abi::SIGNATURE;
use rseq_sys::sequence::{Outcome, Vcpu, aborts};
use rseq_sys::{IndexKind, Mode, ensure_thread, membarrier, mode};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Twice as many as this machine has CPUs, within reason, so that the threads are preempted too.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(4, |cpus| 2 * cpus.get()).min(16)
}

/// How long a round takes.
const ROUND: Duration = Duration::from_millis(100);
/// Rounds that the sleeper sleeps for.
const SLEEP: usize = 10;
/// As many as there can be CPUs.
const VCPUS: usize = 8192;

#[repr(align(128))]
struct Counter(AtomicUsize);

static COUNTERS: [Counter; VCPUS] = [const { Counter(AtomicUsize::new(0)) }; VCPUS];
/// Counted by all threads, added after each round.
static COUNTED: AtomicUsize = AtomicUsize::new(0);
/// Ends the round.
static PAUSE: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
/// Set once FILE is there.
static RESTORED: AtomicBool = AtomicBool::new(false);
/// Threads that found themselves registered after that, and not.
static REGISTERED: AtomicU32 = AtomicU32::new(0);
static UNREGISTERED: AtomicU32 = AtomicU32::new(0);

/// Adds 1 to the counter of the current vCPU.
fn count(vcpu: Vcpu, by_compare: bool) {
    loop {
        let id = vcpu.id();
        let counter = &COUNTERS[id as usize].0;
        let outcome = if by_compare {
            let old = counter.load(Ordering::Relaxed);
            // SAFETY: the counter of `id` is a valid word that is changed by sequences for `id` only.
            unsafe { vcpu.compare_store(id, counter.as_ptr(), old, old + 1) }
        } else {
            // SAFETY: as above.
            unsafe { vcpu.add(id, counter.as_ptr(), 1) }
        };
        if outcome == Outcome::Committed {
            return;
        }
    }
}

/// Asks the kernel whether the calling thread is registered, and notes the answer.
fn look_at_registration(mode: &Mode) {
    let area = mode.area();
    // SAFETY: registers the area that is, or should be, the registered one; nothing else happens if it is.
    let answer = unsafe { libc::syscall(libc::SYS_rseq, area, mode.registered_len, 0, SIGNATURE) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    // SAFETY: the area is the thread's own; the kernel writes it when the thread is not running.
    let (flags, rseq_cs) = unsafe { ((*area).flags.load(Ordering::Relaxed), (*area).rseq_cs.load(Ordering::Relaxed)) };
    // EBUSY is how the kernel answers to the registration that there is.
    if answer == -1 && errno == Some(libc::EBUSY) && ensure_thread().is_ok() {
        REGISTERED.fetch_add(1, Ordering::Relaxed);
        println!("thread: registered, flags {flags:#x}, rseq_cs {}", if rseq_cs == 0 { "clear" } else { "set" });
    } else {
        UNREGISTERED.fetch_add(1, Ordering::Relaxed);
        println!("thread: NOT registered: the kernel answers {answer}, errno {errno:?}, flags {flags:#x}");
    }
}

/// The fence, as the kernel answers it without registering again.
fn bare_fence() -> String {
    // SAFETY: the command only orders and aborts.
    match unsafe { libc::syscall(libc::SYS_membarrier, rseq_sys::abi::MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0) } {
        0 => "its registration was kept".to_owned(),
        _ => format!("its registration was lost ({})", std::io::Error::last_os_error()),
    }
}

fn work(mode: Mode, number: usize, barrier: &Barrier) {
    ensure_thread().expect("a thread can be registered");
    let vcpu = Vcpu::new(&mode, index());
    let mut looked = false;
    loop {
        let mut counted = 0;
        while !PAUSE.load(Ordering::Relaxed) {
            for _ in 0..100 {
                count(vcpu, number % 2 == 1);
            }
            counted += 100;
        }
        if RESTORED.load(Ordering::Relaxed) && !std::mem::replace(&mut looked, true) {
            look_at_registration(&mode);
        }
        COUNTED.fetch_add(counted, Ordering::Relaxed);
        barrier.wait();
        // Between the two the counters stand still.
        barrier.wait();
        if STOP.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Wakes up for one count at a time.
fn sleep(mode: Mode, wakes: &(Mutex<usize>, Condvar)) {
    ensure_thread().expect("a thread can be registered");
    let vcpu = Vcpu::new(&mode, index());
    let (mut woken, mut looked) = (0, false);
    loop {
        let guard = wakes.0.lock().expect("nobody panics with it");
        woken = *wakes.1.wait_while(guard, |wakes| *wakes == woken).expect("nobody panics with it");
        count(vcpu, false);
        COUNTED.fetch_add(1, Ordering::Relaxed);
        if RESTORED.load(Ordering::Relaxed) && !std::mem::replace(&mut looked, true) {
            look_at_registration(&mode);
        }
        if STOP.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// `RSEQ_INDEX=cpu_id` asks for the other index.
fn index() -> IndexKind {
    let asked = std::env::var("RSEQ_INDEX").is_ok_and(|index| index == "cpu_id");
    if asked { IndexKind::CpuId } else { mode().expect("it was there").default_index() }
}

/// The sum of the counters, and how many of them are in use.
fn sum() -> (usize, usize) {
    let counters = COUNTERS.iter().map(|counter| counter.0.load(Ordering::Relaxed));
    counters.fold((0, 0), |(sum, used), counter| (sum + counter, used + usize::from(counter > 0)))
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().expect("usage: checkpoint FILE [ROUNDS]");
    let rounds_after: usize = arguments.next().map_or(40, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let mode = mode().expect("rseq is available");
    println!("mode: {}, length {}", mode.with_index(index()), mode.registered_len);
    // Before there are threads, when it costs nothing.
    membarrier::register().expect("the fence is available");

    let workers = workers();
    let barrier = Arc::new(Barrier::new(workers + 1));
    let wakes = Arc::new((Mutex::new(0), Condvar::new()));
    let mut threads = Vec::new();
    for number in 0..workers {
        let barrier = barrier.clone();
        threads.push(std::thread::spawn(move || work(mode, number, &barrier)));
    }
    let for_sleeper = wakes.clone();
    threads.push(std::thread::spawn(move || sleep(mode, &for_sleeper)));

    let pause = format!("{file}.pause");
    let (mut good, mut left, mut aborts_before) = (true, usize::MAX, 0);
    for round in 1.. {
        let begun = Instant::now();
        let mut fences = 0;
        while begun.elapsed() < ROUND {
            std::thread::sleep(ROUND / 20);
            // Before rseq-sys can register again.
            if left == usize::MAX && Path::new(&file).exists() {
                println!("restored: the fence: {}; with rseq_sys: {:?}", bare_fence(), membarrier::fence());
                left = rounds_after;
                aborts_before = aborts();
                RESTORED.store(true, Ordering::Relaxed);
            }
            match membarrier::fence() {
                Ok(()) => fences += 1,
                Err(errno) => {
                    println!("round {round}: no fence: {errno}");
                    good = false;
                }
            }
        }
        PAUSE.store(true, Ordering::Relaxed);
        barrier.wait();
        // The sleeper counts in two steps; between them the sums differ.
        let mut matched = false;
        for _ in 0..1000 {
            let counted = COUNTED.load(Ordering::Relaxed);
            matched = sum().0 == counted && COUNTED.load(Ordering::Relaxed) == counted;
            if matched {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (total, used) = sum();
        if !matched {
            println!(
                "round {round}: WRONG, the counters hold {total}, counted were {}",
                COUNTED.load(Ordering::Relaxed)
            );
            good = false;
            left = 0;
        } else {
            println!("round {round}: {total} in {used} counters, exact; {} aborts, {fences} fences", aborts());
        }
        if Path::new(&pause).exists() {
            println!("paused");
            while Path::new(&pause).exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if left != usize::MAX {
            left = left.saturating_sub(1);
        }
        STOP.store(left == 0, Ordering::Relaxed);
        PAUSE.store(false, Ordering::Relaxed);
        barrier.wait();
        if left == 0 || round % SLEEP == 0 {
            *wakes.0.lock().expect("nobody panics with it") += 1;
            wakes.1.notify_all();
        }
        if left == 0 {
            break;
        }
    }
    for thread in threads {
        thread.join().expect("no thread panics");
    }
    let (registered, unregistered) = (REGISTERED.load(Ordering::Relaxed), UNREGISTERED.load(Ordering::Relaxed));
    let more_aborts = aborts() - aborts_before;
    good &= unregistered == 0 && registered as usize == workers + 1 && more_aborts > 0;
    println!(
        "{}: {registered} threads registered, {unregistered} not; {more_aborts} aborts since",
        if good { "PASSED" } else { "FAILED" }
    );
    std::process::exit(i32::from(!good));
}
