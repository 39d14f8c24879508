//! A debugger that single-steps the whole program. Promise: it makes progress and ends.
//!
//! A step is a trap, and a trap inside a sequence aborts it; no sequence ever commits. So this fails, by hanging, if
//! anything retries without bound. The program, this binary in another role, is stepped from its first instruction in
//! the loader to its exit, with all its threads
//! ([ptrace(2)](https://man7.org/linux/man-pages/man2/ptrace.2.html)).

use std::alloc::{GlobalAlloc, Layout};
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use alloc_core::RseqAlloc;
use integration::harness::{self, Check};
use integration::{child, pattern};

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

/// Set in the program that is stepped.
const STEPPED: &str = "INTEGRATION_STEPPED";

/// Fifteen times what the program needs: some six minutes.
const MOST_STEPS: u64 = 10_000_000;
/// Seconds for these, on a machine that is slower by a third; the program itself needs a minute on one that is slower by
/// a factor of three.
const LIMIT: u32 = 500;

/// Exit status of a stepped program whose sequences all committed: then nothing was tested.
const NO_GIVE_UPS: i32 = 3;

fn main() -> ExitCode {
    if std::env::var_os(STEPPED).is_some() {
        return stepped();
    }
    harness::main(&[&[
        Check::new("default", || step("RSEQ_ALLOC", "index=auto")).within(LIMIT),
        Check::new("own_registration", || step("GLIBC_TUNABLES", "glibc.pthread.rseq=0")).within(LIMIT),
    ]])
}

/// The program: some blocks of several sizes on two threads, verified, freed by the other thread, drained.
fn stepped() -> ExitCode {
    let first = some_blocks(1);
    let thread = std::thread::spawn(|| {
        let blocks = some_blocks(2);
        alloc_core::purge();
        blocks
    });
    let second = thread.join().expect("the stepped thread");
    for (address, layout, tag) in first.into_iter().chain(second) {
        let block = address as *mut u8;
        // SAFETY: a live block that was filled with this tag.
        unsafe { pattern::verify(block, layout.size(), tag) }.expect("a block is intact");
        // SAFETY: given up here.
        unsafe { GLOBAL.dealloc(block, layout) };
    }
    let stats = alloc_core::stats();
    if !stats.mode.is_arenas() && stats.give_ups + stats.aborts == 0 {
        return ExitCode::from(NO_GIVE_UPS as u8);
    }
    ExitCode::SUCCESS
}

fn some_blocks(tag: u64) -> Vec<(usize, Layout, u64)> {
    (1..40_usize)
        .map(|number| {
            let layout = Layout::from_size_align(number % 4 * 40 + 8, 8).expect("a valid layout");
            // SAFETY: the size is not zero.
            let block = unsafe { GLOBAL.alloc(layout) };
            assert!(!block.is_null(), "{layout:?} is refused");
            // SAFETY: a fresh block of that size.
            unsafe { pattern::fill(block, layout.size(), tag) };
            (block as usize, layout, tag)
        })
        .collect()
}

/// Runs the program under these circumstances, one instruction at a time.
#[expect(clippy::zombie_processes, reason = "the loop over waitpid ends with the program's own end")]
fn step(variable: &str, value: &str) {
    let mut command = child::again();
    command.env(STEPPED, "1").env(variable, value).stdin(Stdio::null());
    // Program and debugger take turns; on one CPU a turn costs a fraction of what it does on two.
    let alone = OneCpu::enter();
    // SAFETY: both calls are async-signal-safe and concern the child only.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })
    };
    let program = command.spawn().expect("ptrace is allowed for our own child");
    let pid = program.id() as libc::pid_t;
    let start = Instant::now();
    let (mut steps, mut threads) = (0_u64, 1);
    let status = loop {
        let mut status = 0;
        // SAFETY: the pointer is valid. __WALL waits for threads of the traced process too.
        let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        assert!(tid > 0, "waitpid: {}", std::io::Error::last_os_error());
        if !libc::WIFSTOPPED(status) {
            if tid == pid {
                break status;
            }
            continue; // one of its threads has ended
        }
        if steps == 0 {
            // SAFETY: the program is stopped after its execve.
            let set = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_TRACECLONE) };
            assert_eq!(set, 0, "PTRACE_SETOPTIONS: {}", std::io::Error::last_os_error());
        }
        threads += u64::from(status >> 16 == libc::PTRACE_EVENT_CLONE);
        steps += 1;
        if steps > MOST_STEPS {
            // SAFETY: our own child, not yet reaped.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            panic!("no end after {MOST_STEPS} steps: something retries without bound");
        }
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP | libc::SIGSTOP => 0,
            other => other,
        };
        // SAFETY: the thread is stopped. It may have been killed since then, which the next wait reports.
        unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, tid, 0, signal) };
    };
    drop(alone);
    println!(
        "singlestep: {variable}={value}: {steps} steps, {threads} threads, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    assert_eq!(threads, 2, "both threads of the program were stepped");
    assert!(libc::WIFEXITED(status), "the program ended with the raw status {status:#x}");
    match libc::WEXITSTATUS(status) {
        0 => {}
        NO_GIVE_UPS => panic!("no sequence was aborted although every instruction was stepped"),
        other => panic!("the program ended with {other}"),
    }
}

/// This thread, and children it starts, on one CPU until the value is dropped.
struct OneCpu(libc::cpu_set_t);

impl OneCpu {
    fn enter() -> Self {
        // SAFETY: all zero is a valid set.
        let (mut before, mut one): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
        // SAFETY: the set is valid for the length given.
        unsafe { libc::sched_getaffinity(0, size_of_val(&before), &raw mut before) };
        // SAFETY: no preconditions; the answer is a CPU of the set above.
        let cpu = unsafe { libc::sched_getcpu() } as usize;
        // SAFETY: the number is below the size of the set.
        unsafe { libc::CPU_SET(cpu, &mut one) };
        // SAFETY: the set is valid. If it is refused, the test is only slower.
        unsafe { libc::sched_setaffinity(0, size_of_val(&one), &raw const one) };
        Self(before)
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was in force before.
        unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), &raw const self.0) };
    }
}
