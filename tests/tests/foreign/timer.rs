//! What disturbs the threads: a periodic signal to each, and somebody who moves them between CPUs and aborts sequences
//! by fences.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use integration::random::Random;
use rseq_sys::membarrier;

/// The signal of the timers.
fn signal() -> i32 {
    libc::SIGRTMIN() + 4
}

/// Installs the handler of all timers' signals. It gets the number that the timer was started with.
pub(crate) fn install(handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
    // SAFETY: all zero is a valid sigaction, with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the caller's handler has the signature that the flags ask for.
    let answer = unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) };
    assert_eq!(answer, 0, "sigaction");
}

/// A periodic timer that signals the thread which started it, by
/// [timer_create(2)](https://man7.org/linux/man-pages/man2/timer_create.2.html) with `SIGEV_THREAD_ID`.
pub(crate) struct Timer(libc::timer_t);

impl Timer {
    /// Starts the timer; the handler gets `number` as its value.
    pub(crate) fn start(number: usize, period: Duration) -> Self {
        // SAFETY: all zero is a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_value.sival_ptr = number as *mut libc::c_void;
        // SAFETY: no preconditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = std::ptr::null_mut();
        // SAFETY: both pointers are valid.
        let created = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        assert_eq!(created, 0, "timer_create: {}", std::io::Error::last_os_error());
        // SAFETY: all zero is a valid structure; musl's has padding that cannot be named.
        let mut times: libc::itimerspec = unsafe { std::mem::zeroed() };
        times.it_interval.tv_sec = period.as_secs() as _;
        times.it_interval.tv_nsec = period.subsec_nanos() as _;
        // The first signals of the threads are spread over the period.
        times.it_value = times.it_interval;
        times.it_value.tv_nsec += number as libc::c_long * 7919;
        // SAFETY: the timer was just created.
        let answer = unsafe { libc::timer_settime(timer, 0, &raw const times, std::ptr::null_mut()) };
        assert_eq!(answer, 0, "timer_settime: {}", std::io::Error::last_os_error());
        Self(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer lives and is used no more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// The CPUs this process may run on, by
/// [sched_getaffinity(2)](https://man7.org/linux/man-pages/man2/sched_setaffinity.2.html).
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all zero is a valid set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid for the length given.
    let answer = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(answer, 0, "sched_getaffinity");
    // SAFETY: the numbers are below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

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
