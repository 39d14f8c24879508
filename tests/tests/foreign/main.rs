//! Another library in the process that uses rseq by itself, in C with sequences of its own (`foreign/`).
//!
//! Promises: where it shares the area that libc or rseq-sys registered, both sides' sequences and the allocator are
//! exact, on the same threads and in each other's signal handlers, although each overwrites `rseq_cs` and leaves it
//! set. Where it registers threads first, with areas of its own, these threads run on arenas, or the whole process if
//! its first thread is among them; the foreign registration is neither used nor taken away, and when it goes nothing
//! changes.
//!
//! Each check runs in a process of its own, since registrars are for life.

use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use alloc_core::RseqAlloc;
use integration::child;
use integration::configuration::{best_index, expect_arenas, libc_registers, why_no_index};
use integration::harness::{self, Check};
use rseq_sys::sequence::{Outcome, Vcpu};
use rseq_sys::{Errno, Mode, Registrar, Unavailable};

mod library;
mod mover;
mod storm;

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

/// Names the part that a re-executed child plays.
const ROLE: &str = "FOREIGN_ROLE";
/// Makes the C library register the main thread, ahead of all other constructors.
const REGISTERS: &str = "FOREIGN_REGISTERS";

const REFUSED: Result<(), Unavailable> = Err(Unavailable::Register(Errno(libc::EINVAL)));

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("libcs_area") => shares_an_area(Registrar::Libc),
        Ok("our_area") => shares_an_area(Registrar::Ourselves),
        Ok("main_thread") => registered_the_main_thread(),
        Ok("some_threads") => registers_some_threads(),
        Ok(role) => panic!("no such role: {role}"),
        Err(_) => {
            return harness::main(&[&[
                Check::new("on_the_area_of_libc", || play("libcs_area", false)).within(600),
                Check::new("on_the_area_of_ours", || play("our_area", false)).within(600),
                Check::new("foreign_registers_the_main_thread", || play("main_thread", true)).within(600),
                Check::new("foreign_registers_some_threads", || play("some_threads", false)).within(600),
            ]]);
        }
    }
    ExitCode::SUCCESS
}

/// Runs a role in a process of its own.
fn play(role: &str, registers: bool) {
    if best_index().is_none() {
        return println!("skipped: {role}: no rseq on this kernel: {}", why_no_index());
    }
    let mut command = child::again();
    command.env(ROLE, role).env_remove(REGISTERS).env_remove("RSEQ_ALLOC");
    if role == "libcs_area" {
        if !libc_registers() {
            return println!("skipped: {role}: this libc registers no threads here");
        }
    } else {
        // Without effect on a libc that does not register anyway.
        command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    }
    if registers {
        command.env(REGISTERS, "1");
    }
    let finished = child::run(&mut command, Duration::from_secs(550));
    print!("{}", finished.stdout);
    finished.expect_success(role);
}

fn expect_registrar(registrar: Registrar) -> Mode {
    let mode = match rseq_sys::mode() {
        Ok(mode) => mode,
        // There no sequence of anybody is safe, in C as little as here.
        Err(reason @ Unavailable::NoAborts) => {
            println!("skipped: {reason}");
            std::process::exit(0);
        }
        Err(reason) => panic!("rseq is to be had, but: {reason}"),
    };
    assert_eq!(mode.registrar, registrar);
    assert!(!alloc_core::mode().is_arenas(), "{}", alloc_core::mode());
    mode
}

/// One area for both, in all threads.
fn shares_an_area(registrar: Registrar) {
    let mode = expect_registrar(registrar);
    if registrar == Registrar::Ourselves {
        assert!(!library::has_area(), "it cannot find ours by itself");
        library::use_offset(mode.area_offset());
    }
    assert!(library::has_area() && !library::is_registrar());
    assert_eq!(library::register(), Err(Errno(libc::EINVAL)), "a thread has one area");
    storm::run(storm::Plan { shared: 6, foreign: 0, plain: 0 });
}

/// The C library was there first: no rseq for the process, but for what the C library does.
fn registered_the_main_thread() {
    assert!(library::is_registrar() && library::has_area());
    let arenas = |when: &str| {
        assert_eq!(rseq_sys::mode(), REFUSED.map(|()| unreachable!()), "{when}");
        assert_eq!(rseq_sys::ensure_thread(), REFUSED, "{when}");
        let complaint = expect_arenas(&alloc_core::mode(), "EINVAL");
        complaint.unwrap_or_else(|complaint| panic!("{when}: {complaint}; the mode is: {}", alloc_core::mode()));
    };
    arenas("at first");
    assert!(library::still_registered(), "somebody took the registration away");
    storm::run(storm::Plan { shared: 0, foreign: 4, plain: 2 });
    arenas("after the storm");
    assert!(library::still_registered(), "somebody took the registration away");
    // The verdict is for the process: other threads, which could be registered, are left alone.
    let other = std::thread::spawn(|| {
        let asked = rseq_sys::ensure_thread();
        (asked, library::register(), library::unregister())
    });
    assert_eq!(other.join().expect("no panic"), (REFUSED, Ok(()), Ok(())));
    assert_eq!(library::unregister(), Ok(()));
    arenas("after the registration has gone");
    integration::body::churn_patterned(1, 10_000);
}

static WORD: AtomicUsize = AtomicUsize::new(0);

/// The main thread is ours; some later threads are the C library's.
fn registers_some_threads() {
    let mode = expect_registrar(Registrar::Ourselves);
    assert!(rseq_sys::thread_is_registered());
    library::use_offset(mode.area_offset());
    library::Thread::start(loses_its_registration, 0).join();
    storm::run(storm::Plan { shared: 3, foreign: 3, plain: 0 });
    assert_eq!(rseq_sys::ensure_thread(), Ok(()), "this thread has nothing to do with it");
    expect_registrar(Registrar::Ourselves);
}

/// A thread whose foreign registration goes away in the middle of its life.
extern "C" fn loses_its_registration(_: *mut libc::c_void) {
    let mode = rseq_sys::mode().expect("the process has one");
    let vcpu = Vcpu::new(&mode, mode.default_index());
    let refused = |when: &str| {
        assert_eq!(rseq_sys::ensure_thread(), REFUSED, "{when}");
        assert!(!rseq_sys::thread_is_registered(), "{when}");
        assert_eq!(vcpu.id(), u32::MAX, "{when}: our own area was never in use");
        // SAFETY: a valid word that nobody else uses.
        assert_eq!(unsafe { vcpu.add(0, WORD.as_ptr(), 1) }, Outcome::Moved, "{when}: nothing may commit");
        integration::body::churn_patterned(2, 10_000);
    };
    refused("while registered");
    assert!(library::still_registered());
    assert_eq!(library::unregister(), Ok(()));
    refused("after that");
    assert_eq!(WORD.load(std::sync::atomic::Ordering::Relaxed), 0);
}
