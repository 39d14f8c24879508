//! Promise: a program that is single-stepped makes progress. Each step aborts the section it is in, so every sequence
//! gives up after a bounded number of attempts and the program goes on by its slow path.
//!
//! The program is this binary once more, from its first instruction in the loader to its exit (under emulation, where a
//! step takes a millisecond, from the start of its own work), with libc's registration and with one of our own. It does
//! its work before `main`, since the test harness would bring thousands of steps and threads that have nothing to do with
//! it.

#[expect(dead_code, reason = "only some of the helpers are needed here")]
#[path = "common/affinity.rs"]
mod affinity;
#[path = "common/child.rs"]
mod child;
#[path = "common/work.rs"]
mod work;

use rseq_sys::sequence::{MAX_ABORTS, Outcome, Vcpu, aborts};
use rseq_sys::{ensure_thread, mode};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const ROUNDS: usize = 20;

/// Set for a program that is to stop when it has been loaded, and is stepped through from there.
const STOP_FIRST: &str = "RSEQ_SYS_TEST_STOP_FIRST";

#[test]
fn with_the_registration_of_libc() {
    step_through(false);
}

#[test]
fn with_a_registration_of_our_own() {
    step_through(true);
}

#[used]
// SAFETY: the loader calls the functions in this section one after the other, before main.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    if child::is_child() && std::env::var_os(STOP_FIRST).is_none() {
        program();
        std::process::exit(0);
    }
}

#[used]
// SAFETY: exit calls the functions in this section one after the other, after main.
#[unsafe(link_section = ".fini_array")]
static AFTER_MAIN: extern "C" fn() = after_main;

/// After `main`, which had nothing to do, rather than before it: a static aarch64 program finds out in the very last of
/// its constructors that it has atomic instructions. Without them it repeats exclusive stores until one succeeds, and
/// none does that is stepped through.
extern "C" fn after_main() {
    if child::is_child() && std::env::var_os(STOP_FIRST).is_some() {
        // SAFETY: no preconditions; the parent goes on with us.
        unsafe { libc::raise(libc::SIGSTOP) };
        program();
        // SAFETY: this process is exiting.
        unsafe { libc::_exit(0) };
    }
}

/// What is stepped through: counts up, by sequences as long as they can be had.
fn program() {
    let mode = match mode() {
        Ok(mode) => mode,
        Err(reason) => return println!("skipped: {reason}"),
    };
    ensure_thread().expect("the first thread can be registered");
    let vcpu = Vcpu::new(&mode, mode.default_index());
    let (word, before) = (AtomicUsize::new(0), aborts());
    let (mut committed, mut slow) = (0, 0);
    while committed + slow < ROUNDS {
        // SAFETY: a valid word that nobody else changes.
        match unsafe { vcpu.add(vcpu.id(), word.as_ptr(), 1) } {
            Outcome::Committed => committed += 1,
            Outcome::Moved => {}
            Outcome::GaveUp => {
                word.fetch_add(1, Ordering::Relaxed);
                slow += 1;
            }
            Outcome::Differs => unreachable!("add compares nothing"),
        }
    }
    assert_eq!(word.load(Ordering::Relaxed), ROUNDS);
    let aborted = aborts() - before;
    println!("{mode}: {committed} committed, {slow} gave up, {aborted} aborts");
    assert_eq!(slow, ROUNDS, "a sequence that is stepped through cannot commit");
    assert_eq!(aborted, ROUNDS as u64 * u64::from(MAX_ABORTS));
}

fn step_through(own: bool) {
    // On one CPU a step costs no wake-up of another.
    affinity::pin(0, affinity::allowed_cpus()[0]);
    let mut command = child::command("", own);
    let all = work::work(100) == 100;
    if !all {
        command.env(STOP_FIRST, "1");
    }
    // SAFETY: ptrace is a plain system call.
    let traced = unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    let started = match traced.spawn() {
        Ok(child) => child,
        // Where tracing is forbidden (containers, Yama) nobody single-steps either.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    let (pid, start) = (started.id() as libc::pid_t, Instant::now());
    let (mut steps, mut status, mut stepping) = (0u64, 0, all);
    loop {
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        if !libc::WIFSTOPPED(status) {
            break;
        }
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP => 0,
            libc::SIGSTOP => {
                stepping = true;
                0
            }
            signal => signal,
        };
        let request = if stepping { libc::PTRACE_SINGLESTEP } else { libc::PTRACE_CONT };
        // SAFETY: resumes our own child, which is stopped.
        let resumed = unsafe { libc::ptrace(request, pid, 0, signal) };
        assert_eq!(resumed, 0, "{}", std::io::Error::last_os_error());
        steps += u64::from(stepping);
    }
    println!("{steps} steps in {:.1} s", start.elapsed().as_secs_f64());
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "wait status {status:#x}");
    assert!(steps > 3000, "even the work alone has more instructions than that");
    assert!(!all || steps > 10_000, "a whole program has more");
}
