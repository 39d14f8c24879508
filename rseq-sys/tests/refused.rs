//! Sandboxes: seccomp filters that answer the system calls rseq or membarrier with an errno, from before the program
//! starts or from the middle of it on.
//!
//! Promises: the errno is the reason that is given, to the threads that it concerns and to no others; no sequence commits
//! in a thread that nobody registered, as long as its owner asks [`ensure_thread`] first; whoever was registered before
//! goes on; without membarrier everything but the fences works, and those answer the errno. A filter that lets rseq
//! "succeed" without doing it is noticed. Nothing aborts, and errno stays as it was.
//!
//! Each case runs in a process of its own, since a filter cannot be taken off again.

#[path = "common/child.rs"]
mod child;

use rseq_sys::abi::{FLAG_UNREGISTER, SIGNATURE, sys_rseq};
use rseq_sys::probe::Probe;
use rseq_sys::sequence::{Outcome, Vcpu};
use rseq_sys::{Errno, IndexKind, Mode, Registrar, Unavailable};
use rseq_sys::{ensure_thread, membarrier, mode, thread_is_registered};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What sandboxes answer to system calls that they do not know or do not want.
const ERRNOS: [i32; 3] = [libc::ENOSYS, libc::EPERM, libc::EINVAL];

/// Tells a child which errno it is about.
const ANSWER: &str = "RSEQ_SYS_TEST_ANSWER";

/// A filter that answers `call` with `errno`, 0 being a success that never was.
fn filter(call: libc::c_long, errno: i32) -> BpfProgram {
    let rules = [(call, Vec::new())].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()), arch);
    filter.expect("a valid filter").try_into().expect("a filter that compiles")
}

/// Puts a filter on the calling thread and all that it starts
/// ([seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html)).
fn refuse(call: libc::c_long, errno: i32) {
    seccompiler::apply_filter(&filter(call, errno)).expect("seccomp is available");
}

/// The errno that this child is about.
fn answer() -> i32 {
    std::env::var(ANSWER).expect("set by the parent").parse().expect("a number")
}

/// In the parent, runs `body` in a fresh process for each errno, without and with glibc's registration switched off;
/// under a filter for `call` from before its start, if one is given. In such a process runs `body`.
fn for_each(test: &str, errnos: &[i32], call: Option<libc::c_long>, body: fn()) {
    if child::is_child() {
        return keeping_errno(body);
    }
    for own in [false, true] {
        for errno in errnos {
            let mut command = child::command(test, own);
            command.env(ANSWER, errno.to_string());
            if let Some(call) = call {
                let program = filter(call, *errno);
                // SAFETY: the filter is compiled already; applying it is two system calls.
                unsafe {
                    command.pre_exec(move || {
                        seccompiler::apply_filter(&program).map_err(|_| std::io::Error::last_os_error())
                    })
                };
            }
            let output = command.output().expect("this binary can be started");
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            let what = format!("{} (own {own})", Errno(*errno));
            assert!(output.status.success(), "{what}: {}\n{text}\n{errors}", output.status);
            assert!(text.contains("1 passed"), "{what}: ran no test\n{text}");
            for skipped in text.lines().filter(|line| line.starts_with("skipped")) {
                println!("{what}: {skipped}");
            }
        }
    }
}

/// Runs `body` and sees to it that errno is then what it was. Everything in it that changes errno besides this crate
/// (filters, threads, assertions' own allocations) has to go through [`aside`].
fn keeping_errno(body: impl FnOnce()) {
    set_errno(77);
    body();
    assert_eq!(errno(), 77, "errno was changed");
}

/// Runs something that may change errno, and puts it back.
fn aside<R>(run: impl FnOnce() -> R) -> R {
    let before = errno();
    let result = run();
    set_errno(before);
    result
}

fn errno() -> i32 {
    // SAFETY: libc's pointer to the calling thread's errno.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Runs `body` in a new thread and waits for it.
fn in_thread<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    aside(|| {
        std::thread::scope(|scope| {
            let run = || {
                let mut result = None;
                keeping_errno(|| result = Some(body()));
                result.expect("it ran")
            };
            scope.spawn(run).join().expect("the thread does not panic")
        })
    })
}

/// The mode, or None with a line on why there is nothing to test.
fn mode_or_skip() -> Option<Mode> {
    mode().inspect_err(|reason| aside(|| println!("skipped: {reason}"))).ok()
}

/// Both kinds of index that the kernel fills in.
fn indices(mode: &Mode) -> impl Iterator<Item = IndexKind> + use<> {
    let mode = *mode;
    [IndexKind::MmCid, IndexKind::CpuId].into_iter().filter(move |index| mode.has_index(*index))
}

/// A thread that is registered: it is told so, and its sequences commit.
fn works(mode: &Mode) {
    assert_eq!(ensure_thread(), Ok(()));
    assert!(thread_is_registered());
    for index in indices(mode) {
        let (vcpu, word) = (Vcpu::new(mode, index), AtomicUsize::new(0));
        let mut committed = 0;
        while committed < 1000 {
            // SAFETY: a valid word that no other thread knows.
            match unsafe { vcpu.add(vcpu.id(), word.as_ptr(), 1) } {
                Outcome::Committed => committed += 1,
                Outcome::Moved | Outcome::GaveUp => {}
                Outcome::Differs => panic!("add compares nothing"),
            }
        }
        assert_eq!(word.load(Ordering::Relaxed), 1000, "{index}");
    }
}

/// A thread that nobody could register: it is told so each time, and where its id says so too, no sequence commits.
fn is_told(mode: &Mode, reason: Unavailable) {
    for _ in 0..2 {
        assert_eq!(ensure_thread(), Err(reason));
        assert!(!thread_is_registered());
    }
    for index in indices(mode) {
        // libc's area holds an mm_cid of 0 then, which nobody can tell from an id: that is why one has to ask.
        if mode.registrar == Registrar::Libc && index == IndexKind::MmCid {
            continue;
        }
        let (vcpu, word) = (Vcpu::new(mode, index), AtomicUsize::new(0));
        assert!(vcpu.id().cast_signed() < 0, "{index}");
        for id in [0, 1] {
            // SAFETY: a valid word that no other thread knows.
            assert_eq!(unsafe { vcpu.add(id, word.as_ptr(), 1) }, Outcome::Moved, "{index}");
        }
        assert_eq!(word.load(Ordering::Relaxed), 0, "{index}");
    }
}

#[test]
fn rseq_is_refused_from_the_start() {
    for_each("rseq_is_refused_from_the_start", &ERRNOS, Some(libc::SYS_rseq), || {
        let refused = Unavailable::Register(Errno(answer()));
        assert_eq!(Probe::take().libc.map_or(0, |libc| libc.size), 0, "libc was refused too");
        for _ in 0..2 {
            assert_eq!(mode(), Err(refused));
            assert_eq!(ensure_thread(), Err(refused));
            assert!(!thread_is_registered());
        }
        in_thread(|| {
            assert_eq!(ensure_thread(), Err(refused));
            assert!(!thread_is_registered());
        });
        assert_eq!(refused.to_string(), format!("rseq registration answered {}", Errno(answer())));
    });
}

/// A filter that answers 0. Nobody is registered, whatever libc believes.
#[test]
fn rseq_pretends_from_the_start() {
    for_each("rseq_pretends_from_the_start", &[0], Some(libc::SYS_rseq), || {
        let told = mode();
        assert!(told.is_err(), "nobody is registered, but: {told:?}");
        assert!(ensure_thread().is_err());
        assert!(!thread_is_registered());
        in_thread(|| {
            assert!(ensure_thread().is_err());
            assert!(!thread_is_registered());
        });
    });
}

/// What threads of [`unregistered_threads`] are told under the filter.
fn told_later(mode: &Mode) -> Unavailable {
    match (mode.registrar, answer()) {
        (Registrar::Libc, _) => Unavailable::NotRegistered(-2),
        (Registrar::Ourselves, 0) => Unavailable::NotRegistered(-1),
        (Registrar::Ourselves, errno) => Unavailable::Register(Errno(errno)),
    }
}

/// Under the filter, runs `body` in a thread that nobody registered, and in a thread that this one has started.
///
/// glibc leaves a thread alone whose creator is not registered; one that it wants to register and cannot is the end of
/// the process, by its own hands: see [`glibc_starts_no_registered_thread_under_a_filter`]. So there the creator's
/// registration is taken away first.
fn unregistered_threads(mode: &Mode, body: impl Fn() + Send + Sync) {
    let twice = || {
        body();
        in_thread(&body);
    };
    match mode.registrar {
        Registrar::Ourselves => in_thread(twice),
        Registrar::Libc => {
            // SAFETY: libc's registration of this thread, which runs no sequence until it is put back.
            unsafe { sys_rseq(mode.area(), mode.registered_len, FLAG_UNREGISTER, SIGNATURE) }.expect("registered");
            assert_eq!(ensure_thread(), Err(Unavailable::NotRegistered(-1)));
            in_thread(|| {
                aside(|| refuse(libc::SYS_rseq, answer()));
                twice();
            });
            // SAFETY: as libc did it.
            unsafe { sys_rseq(mode.area(), mode.registered_len, 0, SIGNATURE) }.expect("it was registered before");
        }
    }
}

#[test]
fn rseq_is_refused_later() {
    for_each("rseq_is_refused_later", &ERRNOS, None, || {
        let Some(mode) = mode_or_skip() else { return };
        works(&mode);
        if mode.registrar == Registrar::Libc {
            unregistered_threads(&mode, || is_told(&mode, told_later(&mode)));
            works(&mode);
        }
        aside(|| refuse(libc::SYS_rseq, answer()));
        works(&mode);
        if mode.registrar == Registrar::Ourselves {
            unregistered_threads(&mode, || is_told(&mode, told_later(&mode)));
            works(&mode);
        }
        assert_eq!(rseq_sys::mode(), Ok(mode), "decided for good");
    });
}

/// As above, but nobody has asked before the filter is there: libc's registration stands and is found; where it was to
/// be our own it cannot be made.
#[test]
fn rseq_is_refused_before_anybody_asks() {
    for_each("rseq_is_refused_before_anybody_asks", &ERRNOS, None, || {
        let registrar = Probe::take().plan().registrar;
        aside(|| refuse(libc::SYS_rseq, answer()));
        match registrar {
            Registrar::Libc => {
                let Some(mode) = mode_or_skip() else { return };
                works(&mode);
            }
            Registrar::Ourselves => {
                let refused = Unavailable::Register(Errno(answer()));
                assert_eq!((mode(), ensure_thread()), (Err(refused), Err(refused)));
                in_thread(|| assert_eq!(ensure_thread(), Err(refused)));
            }
        }
    });
}

/// Not our promise, but what programs meet that put such a filter on: glibc ends a process in which it can no longer
/// register a new thread. If some glibc does not, the thread must be told.
#[test]
fn glibc_starts_no_registered_thread_under_a_filter() {
    const TEST: &str = "glibc_starts_no_registered_thread_under_a_filter";
    if child::is_child() {
        let Some(mode) = mode_or_skip() else { return };
        refuse(libc::SYS_rseq, answer());
        return in_thread(|| is_told(&mode, told_later(&mode)));
    }
    for errno in ERRNOS {
        let output = child::command(TEST, false).env(ANSWER, errno.to_string()).output().expect("it can be started");
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let by_glibc = output.status.signal() == Some(libc::SIGABRT) && errors.contains("rseq registration failed");
        assert!(by_glibc || output.status.success() && text.contains("1 passed"), "{errno}\n{text}\n{errors}");
        println!("{}: {}", Errno(errno), if by_glibc { "glibc ended the process" } else { "the thread was told" });
    }
}

/// A filter that answers 0 from the middle on: threads that are started under it believe nobody.
#[test]
fn rseq_pretends_later() {
    for_each("rseq_pretends_later", &[0], None, || {
        let Some(mode) = mode_or_skip() else { return };
        aside(|| refuse(libc::SYS_rseq, 0));
        works(&mode);
        in_thread(|| match mode.registrar {
            // glibc 2.35 to 2.39 as released: README.md, "Limits".
            Registrar::Libc if mode.libc_size == Some(32) => {
                println!("skipped: this glibc leaves 0 in the cpu_id of such a thread, which looks like a CPU");
            }
            Registrar::Libc => {
                assert!(ensure_thread().is_err(), "libc believes what it was told");
                assert!(!thread_is_registered());
            }
            Registrar::Ourselves => is_told(&mode, told_later(&mode)),
        });
        works(&mode);
    });
}

/// A thread that was registered and may not unregister: it ends all the same, and so do many.
#[test]
fn a_thread_may_not_unregister() {
    for_each("a_thread_may_not_unregister", &[libc::ENOSYS, libc::EPERM, 0], None, || {
        let Some(mode) = mode_or_skip() else { return };
        for _ in 0..100 {
            in_thread(|| {
                works(&mode);
                aside(|| refuse(libc::SYS_rseq, answer()));
                works(&mode);
            });
        }
        works(&mode);
        in_thread(|| works(&mode));
    });
}

/// Fences answer `errno`, everything else works, on several threads.
fn works_without_fences(mode: &Mode, errno: i32) {
    for _ in 0..2 {
        assert_eq!(membarrier::fence(), Err(Errno(errno)));
        assert_eq!(membarrier::fence_cpu(0), Err(Errno(errno)));
    }
    works(mode);
    in_thread(|| {
        works(mode);
        assert_eq!(membarrier::fence(), Err(Errno(errno)));
    });
}

#[test]
fn membarrier_is_refused_from_the_start() {
    for_each("membarrier_is_refused_from_the_start", &ERRNOS, Some(libc::SYS_membarrier), || {
        let Some(mode) = mode_or_skip() else { return };
        let probe = Probe::take();
        assert_eq!(probe.membarrier, Err(Errno(answer())));
        assert_eq!(probe.membarrier_commands().count(), 0);
        assert!(!membarrier::available());
        assert_eq!(membarrier::register(), Err(Errno(answer())));
        assert!(!membarrier::available());
        works_without_fences(&mode, answer());
    });
}

/// A filter that answers 0: to the question which commands there are, that means none.
#[test]
fn membarrier_pretends_from_the_start() {
    for_each("membarrier_pretends_from_the_start", &[0], Some(libc::SYS_membarrier), || {
        let Some(mode) = mode_or_skip() else { return };
        assert!(!membarrier::available());
        assert_eq!(membarrier::register(), Err(Errno(libc::EINVAL)));
        works_without_fences(&mode, libc::EINVAL);
    });
}

#[test]
fn membarrier_is_refused_later() {
    for_each("membarrier_is_refused_later", &ERRNOS, None, || {
        let Some(mode) = mode_or_skip() else { return };
        if let Err(errno) = membarrier::fence() {
            return aside(|| println!("skipped: the kernel has no fence: {errno}"));
        }
        aside(|| refuse(libc::SYS_membarrier, answer()));
        works_without_fences(&mode, answer());
    });
}
