//! What disturbs the threads beside their timers: somebody who moves them between CPUs and aborts sequences by fences.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use integration::disturb::allowed_cpus;
use integration::random::Random;
use rseq_sys::membarrier;

/// Pins random threads of `tids` (0: none there) to random CPUs until told to stop; how often it did. The threads must
/// not end before. With `fences`, aborts whatever sequence is running, of either side, just as often.
pub(crate) fn move_threads(tids: &[&AtomicI32], fences: bool, stop: &AtomicBool, period: Duration) -> u64 {
    let cpus = allowed_cpus();
    let mut random = Random::from_environment(0x00f0_4e16);
    let mut moves = 0;
    // The sleeps are to be as long as they say, not 50 µs longer.
    // SAFETY: a plain option of the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    while !stop.load(Ordering::Relaxed) {
        let tid = tids[random.below(tids.len())].load(Ordering::Acquire);
        if tid != 0 {
            // SAFETY: all zero is a valid set.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: the number came out of such a set.
            unsafe { libc::CPU_SET(cpus[random.below(cpus.len())], &mut set) };
            // SAFETY: the set is valid. A CPU may have been taken away meanwhile; then the thread stays where it is.
            moves += u64::from(unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &raw const set) } == 0);
        }
        if fences {
            membarrier::fence().expect("the process is registered for it");
        }
        std::thread::sleep(period);
    }
    moves
}
