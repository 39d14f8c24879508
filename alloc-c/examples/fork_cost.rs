//! What the fork handlers cost: the time that `fork` takes in a process on this heap, beside that of the system call
//! alone, in the same run and in turn.
//!
//!     cargo run --release -p alloc-c --example fork_cost [ROUNDS]
//!
//! The handlers take every lock once and give it back, so their cost does not depend on what the heap holds, while the
//! kernel's grows with the pages of the process. Exit status 2 for a wrong argument.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

// Names the library, so that its `malloc` is the one of this program.
use rseqalloc::own::rseqalloc_mode;

fn main() -> ExitCode {
    let rounds = match std::env::args().nth(1).map_or(Ok(400), |argument| argument.parse()) {
        Ok(rounds) if rounds > 0 => rounds,
        _ => {
            eprintln!("usage: fork_cost [ROUNDS]");
            return ExitCode::from(2);
        }
    };
    // SAFETY: a text that stays valid.
    let mode = unsafe { std::ffi::CStr::from_ptr(rseqalloc_mode()) };
    println!("{}; {rounds} forks of each kind", mode.to_string_lossy());
    println!("{:>12} {:>14} {:>14} {:>14}", "blocks of 64", "fork, µs", "alone, µs", "handlers, µs");
    let mut blocks: Vec<Box<[u8; 64]>> = Vec::new();
    for count in [0, 100_000, 1_000_000] {
        while blocks.len() < count {
            blocks.push(black_box(Box::new([1; 64])));
        }
        let (with, without) = medians(rounds);
        let handlers = with.as_secs_f64() - without.as_secs_f64();
        println!("{count:>12} {:>14.1} {:>14.1} {:>14.1}", micros(with), micros(without), handlers * 1e6);
    }
    ExitCode::SUCCESS
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Median times of `fork` and of the system call that it makes.
fn medians(rounds: usize) -> (Duration, Duration) {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // SAFETY: the child does nothing but end.
        with.push(forked(|| unsafe { libc::fork() }));
        // SAFETY: as above. <https://man7.org/linux/man-pages/man2/clone.2.html>
        without.push(forked(|| unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::pid_t }));
    }
    (median(with), median(without))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The time until `fork` is back in the parent; the child ends at once.
fn forked(fork: impl Fn() -> libc::pid_t) -> Duration {
    let begun = Instant::now();
    let child = fork();
    let took = begun.elapsed();
    if child == 0 {
        // SAFETY: always sound.
        unsafe { libc::_exit(0) };
    }
    assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
    // SAFETY: waits for the child; its status is of no interest.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    took
}
