//! Promises: the mode is what libc and the kernel really say; where libc does not register, each thread is registered
//! on first use and unregistered before it ends, after which it is told so; `fork` changes nothing; signals and first
//! calls from many threads at once do no harm; errno stays as it was.
//!
//! Both cases are run: each test that depends on who registers starts this binary again, once as it is and once with
//! glibc's own registration switched off. On a libc without rseq the two are the same.

#[path = "common/child.rs"]
mod child;
#[path = "common/work.rs"]
mod work;

use rseq_sys::abi::{FLAG_UNREGISTER, Rseq, SIGNATURE, sys_rseq};
use rseq_sys::probe::Probe;
use rseq_sys::sequence::{Outcome, Vcpu};
use rseq_sys::{Errno, FeatureSize, IndexKind, Mode, Registrar, Unavailable};
use rseq_sys::{current_mode, ensure_thread, mode, thread_is_registered};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use work::work;

/// Runs `body` in fresh processes: with libc's registration and, where it can be switched off, without.
fn in_both(test: &str, body: fn()) {
    if child::is_child() {
        return body();
    }
    for own in [false, true] {
        let output = child::command(test, own).output().expect("this binary can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "own {own}: {}\n{text}\n{errors}", output.status);
        assert!(text.contains("1 passed"), "own {own}: ran no test\n{text}");
        text.lines().filter(|line| line.contains("skipped: ")).for_each(|line| println!("own {own}: {line}"));
        for skipped in text.lines().filter(|line| line.starts_with("skipped")) {
            println!("own {own}: {skipped}");
        }
    }
}

/// The mode, or None with a line on why there is nothing to test.
fn mode_or_skip() -> Option<Mode> {
    mode().inspect_err(|reason| println!("skipped: {reason}")).ok()
}

/// `cpu_id`, `node_id` and `mm_cid` as the calling thread's area has them.
fn ids(mode: &Mode) -> [u32; 3] {
    let area = mode.area();
    // SAFETY: the calling thread's own area, 32 bytes at least; only its fields are borrowed.
    let fields = unsafe { [&(*area).cpu_id, &(*area).node_id, &(*area).mm_cid] };
    fields.map(|field| field.load(Ordering::Relaxed))
}

#[test]
fn mode_is_what_libc_and_the_kernel_say() {
    in_both("mode_is_what_libc_and_the_kernel_say", || {
        assert_eq!(current_mode(), None, "nobody asked yet");
        assert!(!thread_is_registered(), "nobody asked yet");
        let probe = Probe::take();
        let Some(mode) = mode_or_skip() else { return };
        assert_eq!(current_mode(), Some(Ok(mode)));

        let plan = probe.plan();
        assert_eq!(
            (mode.registrar, mode.features, mode.registered_len),
            (plan.registrar, plan.features, plan.registered_len)
        );
        assert_eq!(mode.libc_size, probe.libc.map(|symbols| symbols.size));
        let kernel = probe.auxv.feature_size.map_or(20, |size| size.min(mode.registered_len));
        let index = if kernel >= 28 { IndexKind::MmCid } else { IndexKind::CpuId };
        assert_eq!(mode.features, FeatureSize::new(kernel), "on every glibc so far, whatever it says");
        assert_eq!(mode.default_index(), index);

        let switched_off = std::env::var_os("GLIBC_TUNABLES").is_some();
        let own = probe.libc.is_none() || switched_off;
        assert_eq!(mode.registrar, if own { Registrar::Ourselves } else { Registrar::Libc });
        assert_eq!(mode.own_delta() == 0, own);
        let text = mode.to_string();
        assert!(text.starts_with(&index.to_string()), "{text}");
        assert!(text.contains(if own { "registered by ourselves" } else { "registered by libc" }), "{text}");
        println!("{text}");
    });
}

#[test]
fn every_thread_is_registered_and_its_ids_are_right() {
    in_both("every_thread_is_registered_and_its_ids_are_right", || {
        let Some(mode) = mode_or_skip() else { return };
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert_eq!(thread_is_registered(), mode.registrar == Registrar::Libc);
                    if mode.registrar == Registrar::Ourselves {
                        assert_eq!(Vcpu::new(&mode, mode.default_index()).id(), u32::MAX, "as in a fresh thread");
                    }
                    barrier.wait();
                    assert_eq!(ensure_thread(), Ok(()));
                    assert_eq!(ensure_thread(), Ok(()), "and again");
                    assert!(thread_is_registered());
                    // Not pinned: the two answers agree unless the thread is moved between them, every single time.
                    let agrees = (0..100).any(|_| {
                        // SAFETY: a question.
                        let cpu = unsafe { libc::sched_getcpu() };
                        ids(&mode)[0].cast_signed() == cpu
                    });
                    assert!(agrees);
                    if mode.features.has_mm_cid() {
                        // SAFETY: a question.
                        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
                        assert!(i64::from(ids(&mode)[2]) < cpus);
                    }
                    // All eight live at this point; none may have been given another's area.
                    barrier.wait();
                });
            }
        });
    });
}

#[test]
fn first_calls_at_once_agree() {
    in_both("first_calls_at_once_agree", || {
        let (barrier, answers) = (Barrier::new(16), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    barrier.wait();
                    let answer = (mode(), ensure_thread());
                    answers.lock().expect("nobody panics with it").push(answer);
                });
            }
        });
        let answers = answers.into_inner().expect("nobody panicked");
        assert_eq!(answers.len(), 16);
        assert!(answers.iter().all(|answer| *answer == (mode(), mode().map(drop))), "{answers:?}");
    });
}

#[test]
fn errno_stays_as_it_was() {
    in_both("errno_stays_as_it_was", || {
        // SAFETY: libc's pointer to the calling thread's errno.
        let errno = || unsafe { &mut *libc::__errno_location() };
        *errno() = 77;
        let _ = (Probe::take(), mode(), ensure_thread());
        assert_eq!(*errno(), 77);
        let other = move || {
            *errno() = 78;
            let _ = (mode(), ensure_thread(), rseq_sys::membarrier::fence());
            *errno()
        };
        assert_eq!(std::thread::spawn(other).join().expect("no panic"), 78);
    });
}

/// What a destructor of thread-specific data saw that ran after the exit hook.
#[derive(Clone, Copy, Debug, PartialEq)]
struct AtExit {
    ensured: Result<(), Unavailable>,
    registered: bool,
    ids: [u32; 3],
    registering_elsewhere: Result<(), Errno>,
}

static SEEN_AT_EXIT: Mutex<Option<AtExit>> = Mutex::new(None);

unsafe extern "C" fn late_destructor(_: *mut c_void) {
    let mode = mode().expect("it was there before");
    // Only a thread that the kernel holds for unregistered can be registered with another area.
    #[repr(align(64))]
    struct Room([u8; 64]);
    let mut room = Box::new(Room([0; 64]));
    let other = (&raw mut room.0).cast::<Rseq>();
    // SAFETY: the area outlives its registration.
    let registering_elsewhere =
        unsafe { sys_rseq(other, 32, 0, SIGNATURE).and_then(|()| sys_rseq(other, 32, FLAG_UNREGISTER, SIGNATURE)) };
    let seen =
        AtExit { ensured: ensure_thread(), registered: thread_is_registered(), ids: ids(&mode), registering_elsewhere };
    *SEEN_AT_EXIT.lock().expect("nobody panics with it") = Some(seen);
}

#[test]
fn a_thread_is_unregistered_before_it_ends() {
    in_both("a_thread_is_unregistered_before_it_ends", || {
        let Some(mode) = mode_or_skip() else { return };
        if mode.registrar == Registrar::Libc {
            return println!("skipped: libc's affair");
        }
        // The hook's key exists by now; destructors run in the order of their keys.
        let mut key = 0;
        // SAFETY: the destructor is a function of this binary.
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(late_destructor)) }, 0);
        let thread = std::thread::spawn(move || {
            assert_eq!(ensure_thread(), Ok(()));
            // SAFETY: the key was created above.
            assert_eq!(unsafe { libc::pthread_setspecific(key, (&raw const SEEN_AT_EXIT).cast()) }, 0);
        });
        thread.join().expect("no panic");
        let seen = SEEN_AT_EXIT.lock().expect("nobody panicked").expect("the destructor ran");
        let expected = AtExit {
            ensured: Err(Unavailable::Finished),
            registered: false,
            ids: [u32::MAX; 3],
            registering_elsewhere: Ok(()),
        };
        assert_eq!(seen, expected);
        assert_eq!(ensure_thread(), Ok(()), "this thread goes on");
    });
}

/// Adds 1 to `word` by a sequence; false if that is not possible.
fn add_one(mode: &Mode, word: &AtomicUsize) -> bool {
    let vcpu = Vcpu::new(mode, mode.default_index());
    loop {
        // SAFETY: a valid word; whoever calls this sees to it that one thread at a time does.
        match unsafe { vcpu.add(vcpu.id(), word.as_ptr(), 1) } {
            Outcome::Committed => return true,
            Outcome::Moved => {}
            Outcome::GaveUp | Outcome::Differs => return false,
        }
    }
}

#[test]
fn a_forked_child_goes_on() {
    in_both("a_forked_child_goes_on", || {
        let Some(mode) = mode_or_skip() else { return };
        let forker = std::thread::spawn(move || {
            assert_eq!(ensure_thread(), Ok(()));
            // SAFETY: the child does only what follows, and no other thread holds a lock that it needs.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let word = AtomicUsize::new(0);
                let forked = current_mode() == Some(Ok(mode)) && ensure_thread() == Ok(()) && add_one(&mode, &word);
                let thread =
                    std::thread::spawn(move || ensure_thread() == Ok(()) && add_one(&mode, &AtomicUsize::new(0)));
                let threaded = thread.join().unwrap_or(false);
                // SAFETY: ends the child without running what belongs to the parent.
                unsafe { libc::_exit(if forked && threaded { 0 } else { 1 }) }
            }
            let mut status = 0;
            // SAFETY: waits for our own child.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "wait status {status:#x}");
            assert_eq!(ensure_thread(), Ok(()), "the parent as well");
        });
        forker.join().expect("no panic");
    });
}

static IN_HANDLER: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

extern "C" fn handler(_: i32) {
    let kind = match ensure_thread() {
        Ok(()) => 0,
        Err(Unavailable::Busy) => 1,
        Err(Unavailable::Finished) => 2,
        Err(_) => 3,
    };
    IN_HANDLER[kind].fetch_add(1, Ordering::Relaxed);
}

/// Signals whose handler wants to be registered hit threads that start, register and end.
#[test]
fn signals_do_no_harm_while_threads_come_and_go() {
    in_both("signals_do_no_harm_while_threads_come_and_go", || {
        let Some(mode) = mode_or_skip() else { return };
        let every = libc::timeval { tv_sec: 0, tv_usec: 100 };
        let timer = libc::itimerval { it_interval: every, it_value: every };
        // SAFETY: the handler touches atomics and this crate only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as extern "C" fn(i32) as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
            assert_eq!(libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &timer, 0), 0);
        }
        for _ in 0..work(300).max(3) {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        // The handler may have come first; it may be in the middle, but not of this very call.
                        assert_eq!(ensure_thread(), Ok(()));
                        let word = AtomicUsize::new(0);
                        let added = (0..1000).filter(|_| add_one(&mode, &word)).count();
                        assert_eq!(word.load(Ordering::Relaxed), added);
                    });
                }
            });
        }
        let never: libc::itimerval = {
            let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
            libc::itimerval { it_interval: zero, it_value: zero }
        };
        // SAFETY: stops the timer.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &never, 0) }, 0);
        let [fine, busy, finished, other] = [0, 1, 2, 3].map(|kind| IN_HANDLER[kind].load(Ordering::Relaxed));
        println!("{mode}: {fine} handlers on registered threads, {busy} busy, {finished} finished, {other} other");
        assert!(fine > 0 && other == 0);
    });
}

/// The thread that found its area taken away, and what it was told.
#[test]
fn a_thread_that_libc_does_not_register_is_told() {
    in_both("a_thread_that_libc_does_not_register_is_told", || {
        let Some(mode) = mode_or_skip() else { return };
        if mode.registrar == Registrar::Ourselves {
            return println!("skipped: nothing of libc's to take away");
        }
        let thread = std::thread::spawn(move || {
            assert_eq!(ensure_thread(), Ok(()));
            // SAFETY: libc's registration of this thread, which runs nothing else; it is put back below.
            unsafe { sys_rseq(mode.area(), mode.registered_len, FLAG_UNREGISTER, SIGNATURE) }
                .expect("it is registered");
            assert_eq!(ensure_thread(), Err(Unavailable::NotRegistered(-1)));
            assert!(!thread_is_registered());
            // SAFETY: as libc did it.
            unsafe { sys_rseq(mode.area(), mode.registered_len, 0, SIGNATURE) }.expect("it was registered before");
            assert_eq!(ensure_thread(), Ok(()));
        });
        thread.join().expect("no panic");
    });
}

/// An area of somebody else, for the thread that first registers it.
#[repr(align(64))]
struct Foreign([AtomicU32; 16]);

impl Foreign {
    /// One that lives for ever.
    fn new() -> &'static Self {
        Box::leak(Box::new(Foreign([const { AtomicU32::new(0) }; 16])))
    }

    fn call(&self, flags: i32) -> Result<(), Errno> {
        // SAFETY: the area lives for ever; nothing but the kernel writes to it while it is registered.
        unsafe { sys_rseq(self.0.as_ptr().cast_mut().cast::<Rseq>(), 32, flags, SIGNATURE) }
    }

    /// Registers the calling thread.
    fn register(&self) {
        self.call(0).expect("nobody else has registered this thread");
    }

    fn unregister(&self) -> Result<(), Errno> {
        self.call(FLAG_UNREGISTER)
    }

    /// Whether the calling thread is still registered here and its `cpu_id` is kept.
    fn is_in_force(&self) -> bool {
        self.call(0) == Err(Errno(libc::EBUSY)) && self.0[1].load(Ordering::Relaxed).cast_signed() >= 0
    }

    /// `rseq_cs`, which only sequences that take this area for theirs would write.
    fn rseq_cs(&self) -> [u32; 2] {
        [2, 3].map(|word| self.0[word].load(Ordering::Relaxed))
    }
}

/// What the kernel answers to whoever comes second.
const SECOND: Unavailable = Unavailable::Register(Errno(libc::EINVAL));

/// The calling thread is not ours, and is told so however often it asks.
fn not_ours(mode: &Mode) {
    for _ in 0..2 {
        assert_eq!(ensure_thread(), Err(SECOND));
        assert!(!thread_is_registered());
    }
    assert_eq!(ids(mode), [u32::MAX; 3], "our own block was never registered");
    let (vcpu, word) = (Vcpu::new(mode, mode.default_index()), AtomicUsize::new(0));
    // SAFETY: a valid word that no other thread knows.
    assert_eq!(unsafe { vcpu.add(0, word.as_ptr(), 1) }, Outcome::Moved, "nothing may commit");
}

/// The calling thread is ours.
fn ours(mode: &Mode) {
    assert_eq!(ensure_thread(), Ok(()));
    assert!(thread_is_registered() && add_one(mode, &AtomicUsize::new(0)));
}

/// Whether libc leaves the registration to others here; a line on it if not.
fn free_to_register() -> bool {
    let free = Probe::take().plan().registrar == Registrar::Ourselves;
    if !free {
        println!("skipped: libc was first");
    }
    free
}

/// A thread that somebody else registered with an area of their own: an errno, not a crash, and only for that thread,
/// also when that registration goes away again. It is neither taken over nor taken away.
#[test]
fn somebody_elses_thread_is_left_to_them() {
    in_both("somebody_elses_thread_is_left_to_them", || {
        let Some(mode) = mode_or_skip() else { return };
        if !free_to_register() {
            return;
        }
        let thread = std::thread::spawn(move || {
            let foreign = Foreign::new();
            foreign.register();
            not_ours(&mode);
            assert!(foreign.is_in_force());
            assert_eq!(foreign.rseq_cs(), [0; 2], "a sequence of ours took the area for its own");
            // A thread that this one starts is not theirs.
            std::thread::scope(|scope| scope.spawn(|| ours(&mode)).join().expect("no panic"));
            assert_eq!(foreign.unregister(), Ok(()));
            not_ours(&mode);
            assert_eq!(foreign.unregister(), Err(Errno(libc::EINVAL)), "nobody has registered it again");
        });
        thread.join().expect("no panic");
        ours(&mode);
    });
}

/// One that is still in force when the thread ends: our exit hook was never set there, nor does it unregister anything.
#[test]
fn somebody_elses_thread_ends() {
    in_both("somebody_elses_thread_ends", || {
        let Some(mode) = mode_or_skip() else { return };
        if !free_to_register() {
            return;
        }
        for _ in 0..100 {
            let thread = std::thread::spawn(move || {
                Foreign::new().register();
                not_ours(&mode);
            });
            thread.join().expect("no panic");
        }
        std::thread::spawn(move || ours(&mode)).join().expect("no panic");
    });
}

/// The main thread is somebody else's, and it asks first: the process does without rseq for good.
#[test]
fn somebody_elses_main_thread_asks_first() {
    in_both("somebody_elses_main_thread_asks_first", || {
        if !free_to_register() {
            return;
        }
        let foreign = Foreign::new();
        foreign.register();
        assert_eq!((mode(), ensure_thread(), current_mode()), (Err(SECOND), Err(SECOND), Some(Err(SECOND))));
        assert!(!thread_is_registered() && foreign.is_in_force());
        let other = std::thread::spawn(|| {
            assert_eq!((mode(), ensure_thread()), (Err(SECOND), Err(SECOND)));
            // Not even tried: the kernel would let somebody else.
            Foreign::new().register();
        });
        other.join().expect("no panic");
        assert_eq!(foreign.unregister(), Ok(()));
        assert_eq!((mode(), ensure_thread()), (Err(SECOND), Err(SECOND)), "a verdict is final");
    });
}

/// The main thread is somebody else's, but another one asks first: all threads but the main one are ours.
#[test]
fn somebody_elses_main_thread_asks_later() {
    in_both("somebody_elses_main_thread_asks_later", || {
        if !free_to_register() {
            return;
        }
        let foreign = Foreign::new();
        foreign.register();
        let Some(mode) = std::thread::spawn(mode_or_skip).join().expect("no panic") else { return };
        assert_eq!(mode.registrar, Registrar::Ourselves);
        not_ours(&mode);
        std::thread::spawn(move || ours(&mode)).join().expect("no panic");
        assert!(foreign.is_in_force());
        assert_eq!(foreign.rseq_cs(), [0; 2], "a sequence of ours took the area for its own");
        assert_eq!(foreign.unregister(), Ok(()));
        not_ours(&mode);
        std::thread::spawn(move || ours(&mode)).join().expect("no panic");
    });
}

/// Somebody takes our registration away and registers the thread for themselves: noticed, and theirs when we leave.
#[test]
fn somebody_takes_a_thread_from_us() {
    in_both("somebody_takes_a_thread_from_us", || {
        let Some(mode) = mode_or_skip() else { return };
        if !free_to_register() {
            return;
        }
        let thread = std::thread::spawn(move || {
            ours(&mode);
            // SAFETY: our registration of this thread, which runs no sequence from here on.
            unsafe { sys_rseq(mode.area(), mode.registered_len, FLAG_UNREGISTER, SIGNATURE) }.expect("it is ours");
            Foreign::new().register();
            assert_eq!(ensure_thread(), Err(Unavailable::NotRegistered(-1)));
            assert!(!thread_is_registered());
        });
        thread.join().expect("no panic");
        ours(&mode);
    });
}
