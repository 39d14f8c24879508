//! The process as a whole: before `main`, under signals, after fork, on threads without a registration.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

use super::{churn_collections, churn_patterned};
use crate::{child, configuration, report};

/// What the constructor left for `main` to check.
static LEFT: AtomicPtr<Vec<String>> = AtomicPtr::new(std::ptr::null_mut());
static THREAD_BEFORE_MAIN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn thread_before_main(_: *mut libc::c_void) -> *mut libc::c_void {
    churn_patterned(21, 2000);
    THREAD_BEFORE_MAIN.fetch_add(1, Ordering::Relaxed);
    std::ptr::null_mut()
}

/// The constructor: allocates before std's runtime is up, and on a thread of its own.
pub extern "C" fn before_main() {
    let strings: Vec<String> = (0..500).map(|number| format!("before main {number}")).collect();
    LEFT.store(Box::into_raw(Box::new(strings)), Ordering::Release);
    churn_patterned(20, 2000);
    // A number with glibc, a pointer with musl.
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: the thread function needs nothing that is not there before main; the thread is joined below.
    let started = unsafe {
        libc::pthread_create(thread.as_mut_ptr(), std::ptr::null(), thread_before_main, std::ptr::null_mut())
    };
    if started == 0 {
        // SAFETY: the call above has written it.
        let thread = unsafe { thread.assume_init() };
        // SAFETY: the thread was just created and nobody else joins it.
        unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
    }
}

/// Promise: blocks from before `main` are intact in it and may be freed there.
pub(super) fn allocations_before_main_survive() {
    assert_eq!(THREAD_BEFORE_MAIN.load(Ordering::Relaxed), 1, "the thread before main ran");
    let left = LEFT.swap(std::ptr::null_mut(), Ordering::AcqRel);
    assert!(!left.is_null(), "the constructor ran");
    // SAFETY: a box of ours, taken once.
    let strings = unsafe { Box::from_raw(left) };
    for (number, text) in strings.iter().enumerate() {
        assert_eq!(*text, format!("before main {number}"), "a string from before main changed");
    }
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Promise: signals whose handlers do not allocate may interrupt an allocation anywhere.
///
/// The stress test does this for longer and with handlers that run sequences; here every configuration sees some.
pub(super) fn signals_do_no_harm() {
    // SAFETY: all zero is a valid sigaction, with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count_signal as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only adds to an atomic.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    // SAFETY: all zero is a valid sigevent.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGUSR1;
    let mut timer = std::ptr::null_mut();
    // SAFETY: both pointers are valid.
    let created = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
    assert_eq!(created, 0, "a timer");
    let every = libc::timespec { tv_sec: 0, tv_nsec: 100_000 };
    let times = libc::itimerspec { it_interval: every, it_value: every };
    // SAFETY: the timer was just created.
    unsafe { libc::timer_settime(timer, 0, &raw const times, std::ptr::null_mut()) };
    std::thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || churn_patterned(40 + thread, 400_000));
        }
    });
    // SAFETY: the timer lives; nobody uses it afterwards.
    unsafe { libc::timer_delete(timer) };
    let signals = SIGNALS.load(Ordering::Relaxed);
    assert!(signals > 100, "only {signals} signals arrived");
}

/// Promise: a child of a multi-threaded process allocates, frees its parent's blocks and starts threads, whatever
/// the parent's other threads were doing at the moment of the fork.
pub(super) fn a_forked_child_allocates() {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    churn_patterned(50 + thread, 2000);
                }
            });
        }
        let mut outcome = Ok(());
        for round in 0..20_u64 {
            let blocks: Vec<Vec<u64>> = (1..200).map(|size| vec![round; size]).collect();
            outcome = child::fork(Duration::from_secs(20), || {
                configuration::still_promised();
                assert!(blocks.iter().flatten().all(|word| *word == round), "a block of the parent changed");
                churn_patterned(60, 3000);
                drop(blocks);
                churn_collections(61, 200);
                let threads: Vec<_> =
                    (0..3).map(|thread| std::thread::spawn(move || churn_patterned(70 + thread, 3000))).collect();
                for thread in threads {
                    thread.join().expect("a thread of the child");
                }
                // A grandchild: the child has become a parent with a history.
                child::fork(Duration::from_secs(10), || churn_patterned(80, 1000)).expect("the grandchild");
            });
            if outcome.is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        outcome.expect("every child ends well");
    });
}

/// Promise: threads whose registration is missing in a process that otherwise has it get their memory elsewhere
/// than from a vCPU's shard, and share no block with anybody.
///
/// Somebody takes the C library's registration of the main thread away; threads it creates afterwards are not
/// registered either (glibc registers a child only if its creator is). All of them read the vCPU id 0.
pub(super) fn unregistered_threads_allocate() {
    if !configuration::libc_registers() {
        return println!("skipped: the C library registers no threads here");
    }
    child::fork(Duration::from_secs(60), || {
        churn_patterned(90, 5000);
        // SAFETY: this child gives up its registration knowingly; that is the situation to be survived.
        unsafe { unregister() };
        // One thread alone first: slow visits have to notice before a second one runs on the same id.
        churn_patterned(91, 100_000);
        std::thread::scope(|scope| {
            for thread in 0..6 {
                scope.spawn(move || churn_patterned(92 + thread, 100_000));
            }
        });
    })
    .expect("unregistered threads allocate");
}

/// Takes the C library's registration of the calling thread away.
///
/// # Safety
///
/// From now on this thread's sequences are no sequences.
unsafe fn unregister() {
    use rseq_sys::abi::{FLAG_UNREGISTER, SIGNATURE, sys_rseq};
    let mode = rseq_sys::mode().expect("the C library registers threads");
    // SAFETY: unregistering touches only the area, which is the C library's own; the rest is the caller's affair.
    let answer = unsafe { sys_rseq(mode.area(), mode.registered_len, FLAG_UNREGISTER, SIGNATURE) };
    answer.expect("the registration could be taken away");
}

/// Promise: `stats()` and its text need no memory, and the figures fit together.
pub(super) fn statistics_need_no_memory() {
    use std::fmt::Write;
    let mut line = report::Line::new();
    // Threads of the check before may be in their last destructors, which free something.
    let silent = (0..100).any(|_| {
        let before = alloc_core::stats().allocated;
        for _ in 0..1000 {
            line = report::Line::new();
            write!(line, "{} {}", alloc_core::stats(), alloc_core::mode()).expect("a text");
        }
        before == alloc_core::stats().allocated
    });
    assert!(silent, "statistics allocate");
    let after = alloc_core::stats();
    let text = after.to_string();
    assert!(!text.contains('\n') && !text.is_empty(), "one line: {text}");
    std::hint::black_box(line);
    let block = std::hint::black_box(vec![1_u8; 40 << 10]);
    let grown = alloc_core::stats().allocated;
    assert!(grown >= after.allocated + block.len(), "40 KiB more are allocated: {} to {grown}", after.allocated);
    configuration::still_promised();
}
