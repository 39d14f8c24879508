//! The attack itself: threads that work on one set of per-vCPU data, each interrupted by a timer of its own whose
//! handler works on the same data, while one thread moves them between CPUs and another one fences.

use crate::affinity::allowed_cpus;
use crate::disturb::{Hopper, fence_until};
use crate::work::work;
use rseq_sys::ensure_thread;
use rseq_sys::sequence::aborts;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Barrier, Once};
use std::time::{Duration, Instant};

/// The timers' period, if the machine can keep up: 10 kHz.
const PERIOD: Duration = Duration::from_micros(100);
/// And if it can by no means.
const LONGEST_PERIOD: Duration = Duration::from_millis(10);
/// A signal may cost a thread this part of its time; where it costs more (in an emulator) the timers tick slower, or
/// nothing but handlers would run.
const SHARE: u32 = 4;
/// Signals that are sent to find out what one costs.
const SAMPLES: usize = 20;
/// Aborts that must have happened before the work counts as attacked: 100, fewer where little work is done. Threads go
/// on until then …
fn min_aborts() -> u64 {
    work(1000).clamp(20, 100) as u64
}
/// … but not for longer than this, after their work is done …
const EXTRA: Duration = Duration::from_secs(10);
/// … and not for longer than this, if there was none at all.
const EXTRA_FOR_NONE: Duration = Duration::from_secs(3);
/// How often a thread asks the clock after its work is done.
const STEPS_PER_LOOK: usize = 1000;
/// "Tell one thread", which not every version of the libc crate has for every libc.
const SIGEV_THREAD_ID: libc::c_int = 4;

/// A set of per-vCPU data under attack.
pub(crate) trait Data: Sync {
    /// One step of a thread's own work. `held` is what it holds in between.
    fn step(&self, round: usize, held: &mut Vec<usize>);

    /// One step of its signal handler: sequences and atomics only. `pocket` is what the handler holds in between.
    fn interrupt(&self, pocket: &AtomicUsize);

    /// Sequences that gave up so far.
    fn gave_up(&self) -> usize;
}

/// What was done, and what was left in hands.
pub(crate) struct Harvest {
    /// Steps of all threads, handlers not counted.
    pub(crate) steps: usize,
    /// What each thread holds at the end.
    pub(crate) held: Vec<Vec<usize>>,
    /// What each handler holds at the end.
    pub(crate) pockets: Vec<usize>,
    aborted: u64,
    gave_up: usize,
    signals: usize,
}

/// One thread, as its signal handler finds it.
struct Seat<'a> {
    data: &'a dyn Data,
    tid: AtomicI32,
    pocket: AtomicUsize,
    signals: AtomicUsize,
}

/// Lets `steps` steps be done on `data`, by more threads than there are CPUs, and reports under `name`.
pub(crate) fn attack<D: Data>(name: &str, data: &D, steps: usize) -> Harvest {
    listen();
    let threads = 2 * allowed_cpus().len() + 2;
    let share = steps.div_ceil(threads);
    let seat = |_| Seat { data, tid: AtomicI32::new(0), pocket: AtomicUsize::new(0), signals: AtomicUsize::new(0) };
    let seats: Vec<Seat> = (0..threads).map(seat).collect();
    let (ready, stop) = (Barrier::new(threads), AtomicBool::new(false));
    let (before, start) = (aborts(), Instant::now());
    let ((held, worked), hops, fences) = std::thread::scope(|scope| {
        let mover = scope.spawn(|| hop_until(&stop, &seats));
        let fencer = scope.spawn(|| fence_until(&stop));
        let worker = |seat| {
            let ready = &ready;
            scope.spawn(move || work_at(seat, data, share, ready, before))
        };
        let workers: Vec<_> = seats.iter().map(worker).collect();
        let answers: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let (hops, fences) = (mover.join().expect("no panic"), fencer.join().expect("no panic"));
        let done = answers.into_iter().map(|answer| answer.expect("a thread found a fault"));
        (done.unzip::<_, _, Vec<_>, Vec<_>>(), hops, fences)
    });
    let seconds = start.elapsed().as_secs_f64();
    let steps = worked.iter().map(|(steps, _)| steps).sum::<usize>();
    let period = worked.iter().map(|(_, period)| *period).max().expect("there are threads");
    let signals = seats.iter().map(|seat| seat.signals.load(Ordering::Relaxed)).sum::<usize>();
    let (aborted, gave_up) = (aborts() - before, data.gave_up());
    println!(
        "{name}: {steps} operations in {threads} threads in {seconds:.1} s, {aborted} aborts, {signals} signals of \
         timers at {:.0} Hz, {hops} moves, {fences} fences, {gave_up} gave up",
        1.0 / period.as_secs_f64()
    );
    let pockets = seats.iter().map(|seat| seat.pocket.load(Ordering::Relaxed)).collect();
    Harvest { steps, held, pockets, aborted, gave_up, signals }
}

impl Harvest {
    /// Fails if the kernel did not abort sections, or if too few of them were used: then nothing was attacked.
    pub(crate) fn was_attacked(&self) {
        let Harvest { steps, aborted, gave_up, signals, .. } = self;
        assert!(*aborted >= min_aborts(), "only {aborted} aborts: this attacked nothing");
        assert!(*gave_up <= 10 + (steps + signals) / 100, "{gave_up} of {steps} operations gave up");
        assert!(*signals >= 10, "only {signals} signals: this attacked nothing");
    }
}

/// A thread's part. Returns what it holds, its steps and the period of its timer.
fn work_at<D: Data>(
    seat: &Seat<'_>,
    data: &D,
    steps: usize,
    ready: &Barrier,
    aborts_before: u64,
) -> (Vec<usize>, (usize, Duration)) {
    ensure_thread().expect("every thread of this process can be registered");
    // SAFETY: a question.
    seat.tid.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    ready.wait();
    let timer = Timer::new(seat);
    let period = timer.start();
    let (mut held, mut round) = (Vec::new(), 0);
    while round < steps {
        data.step(round, &mut held);
        round += 1;
    }
    let done = Instant::now();
    let enough = min_aborts();
    let wait = |seen| if seen == 0 { EXTRA_FOR_NONE } else { EXTRA };
    let aborted = || aborts() - aborts_before;
    while aborted() < enough && done.elapsed() < wait(aborted()) {
        for _ in 0..STEPS_PER_LOOK {
            data.step(round, &mut held);
            round += 1;
        }
    }
    (held, (round, period))
}

/// Moves the threads about, whatever they are in the middle of; returns how often.
fn hop_until(stop: &AtomicBool, seats: &[Seat<'_>]) -> usize {
    let (mut hopper, mut hops) = (Hopper::new(seats.len()), 0);
    while !stop.load(Ordering::Relaxed) {
        for seat in seats {
            let tid = seat.tid.load(Ordering::Relaxed);
            // A thread may have ended meanwhile. 0 is one that has not come yet.
            hops += usize::from(tid != 0 && hopper.hop(tid));
            std::thread::sleep(Duration::from_micros(10));
        }
    }
    hops
}

/// Sets the handler of the timers' signal.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a handler that does what handlers may: sequences and atomics.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
        }
    });
}

extern "C" fn on_signal(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's word on the signal; it was sent with the address of a seat that outlives its timer, by the
    // timer or by the thread itself.
    let seat = unsafe { &*(*info).si_value().sival_ptr.cast::<Seat<'_>>() };
    seat.signals.fetch_add(1, Ordering::Relaxed);
    seat.data.interrupt(&seat.pocket);
}

/// A timer that interrupts the thread which made it, until dropped there.
struct Timer<'a> {
    id: libc::c_int,
    seat: &'a Seat<'a>,
}

impl<'a> Timer<'a> {
    fn new(seat: &'a Seat<'a>) -> Self {
        // SAFETY: plain data.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGUSR1;
        event.sigev_notify_thread_id = seat.tid.load(Ordering::Relaxed);
        event.sigev_value.sival_ptr = std::ptr::from_ref(seat).cast_mut().cast();
        let mut id: libc::c_int = 0;
        // By system call: not every libc knows this kind of notification.
        // See [timer_create(2)](https://man7.org/linux/man-pages/man2/timer_create.2.html).
        // SAFETY: creates a timer; both structures outlive the call.
        let made = unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &event, &mut id) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        Timer { id, seat }
    }

    /// Finds out what a signal costs, starts the timer and returns its period.
    fn start(&self) -> Duration {
        let mut costs = [Duration::ZERO; SAMPLES];
        for cost in &mut costs {
            let (start, seen) = (Instant::now(), self.seat.signals.load(Ordering::Relaxed));
            self.set(Duration::from_nanos(1), Duration::ZERO);
            while start.elapsed() < Duration::from_secs(1) && self.seat.signals.load(Ordering::Relaxed) == seen {
                std::hint::spin_loop();
            }
            *cost = start.elapsed();
        }
        // The least, since others waited for a CPU. While a thread does that its timer does not go on.
        let cost = costs.into_iter().min().expect("there are samples");
        let period = (cost * SHARE).clamp(PERIOD, LONGEST_PERIOD);
        self.set(period, period);
        period
    }

    fn set(&self, first: Duration, then: Duration) {
        let spec = |duration: Duration| libc::timespec {
            tv_sec: duration.as_secs() as _,
            tv_nsec: duration.subsec_nanos().into(),
        };
        let times = libc::itimerspec { it_interval: spec(then), it_value: spec(first) };
        // SAFETY: sets a timer of our own.
        let set = unsafe { libc::syscall(libc::SYS_timer_settime, self.id, 0, &times, 0) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        // A signal that is on its way stays pending and goes away with the thread.
        // SAFETY: blocks one signal in this thread and deletes a timer of its own.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::syscall(libc::SYS_timer_delete, self.id);
        }
    }
}
