//! What disturbs threads: a periodic signal to each of them, and the CPUs that they can be moved to.

use std::time::Duration;

/// The signal of the timers.
fn signal() -> i32 {
    libc::SIGRTMIN() + 3
}

/// Installs the handler of all timers' signals. It gets the number that the timer was started with.
pub fn install(handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
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
#[derive(Debug)]
pub struct Timer(libc::timer_t);

impl Timer {
    /// Starts the timer; the handler gets `number` as its value.
    pub fn start(number: usize, period: Duration) -> Self {
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
        times.it_value.tv_nsec += 1 + number as libc::c_long * 7919;
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
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all zero is a valid set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid for the length given.
    let answer = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(answer, 0, "sched_getaffinity");
    // SAFETY: the numbers are below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Has the calling thread run on CPU `cpu` only.
pub fn pin(cpu: usize) {
    // SAFETY: all zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for the length given.
    let answer = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(answer, 0, "sched_setaffinity");
}
