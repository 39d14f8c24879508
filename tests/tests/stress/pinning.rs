//! Pins running threads to random CPUs. Each time a running thread is pinned elsewhere the kernel takes it off its
//! CPU in the middle of whatever it does.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use integration::random::Random;

use crate::{MAX_THREADS, Shared};

/// Thread ids of the workers, zero before they have started.
static TIDS: [AtomicI32; MAX_THREADS] = [const { AtomicI32::new(0) }; MAX_THREADS];

/// Enters the calling thread among those that are pinned.
pub(crate) fn enrol(index: usize) {
    // SAFETY: no preconditions.
    let tid = unsafe { libc::gettid() };
    TIDS[index].store(tid, Ordering::Release);
}

/// Takes the calling thread off; it still has to outlive the controller.
pub(crate) fn leave(index: usize) {
    TIDS[index].store(0, Ordering::Release);
}

/// Pins random workers to random CPUs until the run stops; the number of times it did so.
pub(crate) fn control(shared: &Shared, threads: usize, cpus: &[usize], period: Duration) -> u64 {
    let mut random = Random::from_environment(0x0091_77ed);
    let mut pins = 0;
    // The sleeps are to be as long as they say, not 50 µs longer.
    // SAFETY: a plain option of the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    preempt_others(2);
    while !shared.stop.load(Ordering::Relaxed) {
        // Half of the threads each time: a thread runs a period or two where it is.
        for _ in 0..threads.div_ceil(2) {
            let tid = TIDS[random.below(threads)].load(Ordering::Acquire);
            let cpu = cpus[random.below(cpus.len())];
            if tid != 0 {
                // SAFETY: all zero is a valid set.
                let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
                // SAFETY: the number is below the size of the set.
                unsafe { libc::CPU_SET(cpu, &mut set) };
                // SAFETY: the set is valid; the thread is one of ours, which all wait for the end of this loop.
                let answer = unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &raw const set) };
                pins += u64::from(answer == 0);
            }
        }
        std::thread::sleep(period / 2 + period * random.below(1000) as u32 / 1000);
    }
    pins
}

/// Gives the calling thread a real-time priority, so that it preempts ordinary threads whenever it wakes up. Without
/// the privilege it stays an ordinary one, which preempts less often
/// ([sched(7)](https://man7.org/linux/man-pages/man7/sched.7.html)).
pub(crate) fn preempt_others(sched_priority: i32) {
    // SAFETY: all zero is a valid parameter; with musl there are fields beside the priority.
    let mut priority: libc::sched_param = unsafe { std::mem::zeroed() };
    priority.sched_priority = sched_priority;
    // SAFETY: a valid parameter for the calling thread.
    unsafe { libc::pthread_setschedparam(libc::pthread_self(), libc::SCHED_FIFO, &raw const priority) };
}
