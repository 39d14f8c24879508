//! Promises: a kernel that aborts preempted sections passes the self-test every time, whatever else runs; one that does
//! not is refused. The second is shown on such kernels (arm64, Linux 6.19 to 7.0.13), and elsewhere with the fault
//! `no_aborts`, which keeps the kernel from hearing of the section.

#[expect(dead_code, reason = "only one of the helpers is needed here")]
#[path = "common/affinity.rs"]
mod affinity;

use affinity::allowed_cpus;
use rseq_sys::self_test::{self, Verdict};
use rseq_sys::{Unavailable, mode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A trial with the registration of this process.
fn preemption() -> Verdict {
    self_test::preemption(mode().map_or(32, |mode| mode.registered_len))
}

/// What a trial must show where rseq can be had at all.
fn expected() -> Option<Verdict> {
    match mode() {
        Ok(_) => Some(Verdict::Aborts),
        Err(Unavailable::NoAborts) => Some(Verdict::DoesNotAbort),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

#[test]
fn every_trial_says_the_same() {
    let Some(expected) = expected() else { return };
    let (mut times, mut ended): (Vec<Duration>, usize) = (Vec::new(), 0);
    for _ in 0..100 {
        let (start, before) = (Instant::now(), allowed_cpus());
        let verdict = preemption();
        times.push(start.elapsed());
        ended += usize::from(verdict == expected);
        // A machine that is too busy may make it late, even often; what it must not do is make it wrong.
        assert!(verdict == expected || matches!(verdict, Verdict::Unknown(errno) if errno.0 == libc::ETIMEDOUT));
        assert_eq!(allowed_cpus(), before, "the thread may go where it could before");
    }
    times.sort_unstable();
    println!("{expected:?}; median {:?}, longest {:?}", times[50], times[99]);
    assert!(ended >= 10, "only {ended} of 100 trials came to an end");
}

/// With busy threads on every CPU, and from several threads at once.
#[test]
fn trials_on_a_busy_machine_are_never_wrong() {
    let Some(expected) = expected() else { return };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 * allowed_cpus().len() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let trials = || (0..5).map(|_| preemption()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(trials)).collect();
        let verdicts: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        stop.store(true, Ordering::Relaxed);
        println!("{verdicts:?}");
        assert!(verdicts.iter().all(|verdict| *verdict == expected || matches!(verdict, Verdict::Unknown(_))));
    });
}

#[test]
fn a_kernel_without_aborts_is_refused() {
    let broken = preemption() == Verdict::DoesNotAbort;
    assert!(broken || !cfg!(rseq_fault = "no_aborts"), "with the fault it must look so");
    if broken {
        // No such kernel is known but for aarch64, so nobody asks elsewhere.
        if !cfg!(any(target_arch = "aarch64", rseq_fault = "no_aborts")) {
            panic!("a new kind of broken kernel");
        }
        assert_eq!(mode(), Err(Unavailable::NoAborts));
        assert_eq!(rseq_sys::ensure_thread(), Err(Unavailable::NoAborts));
        assert!(!rseq_sys::thread_is_registered(), "as far as sequences go");
    } else {
        assert_ne!(mode(), Err(Unavailable::NoAborts));
    }
}

#[test]
fn errno_stays_as_it_was() {
    // SAFETY: libc's pointer to the calling thread's errno.
    let errno = || unsafe { &mut *libc::__errno_location() };
    *errno() = 77;
    let _ = preemption();
    assert_eq!(*errno(), 77);
}
