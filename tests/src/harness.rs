//! A test harness for binaries that must control their process: checks run one after another on the main thread,
//! every one under a watchdog.
//!
//! Arguments are those of libtest as far as they make sense: words select checks whose name contains one of them,
//! `--list` lists, other options are accepted and ignored, so that `cargo test -- --nocapture` works for all binaries.
//! The last line is `N passed, N failed`, with `, N filtered out` if words were given.

use std::process::ExitCode;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Instant;

/// The code of a check; it fails by panicking.
#[derive(Clone, Copy, Debug)]
enum Run {
    Plain(fn()),
    Indexed(fn(usize), usize),
}

/// One check: a name, the code, a limit.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Name, as printed and as matched by a filter.
    pub name: &'static str,
    run: Run,
    /// Seconds after which the check counts as hung and the process is aborted.
    pub limit: u32,
}

impl Check {
    /// A check with the usual limit of two minutes.
    pub const fn new(name: &'static str, run: fn()) -> Self {
        Self { name, run: Run::Plain(run), limit: 120 }
    }

    /// A check that is one of a table's: `run` gets its index.
    pub const fn indexed(name: &'static str, run: fn(usize), index: usize) -> Self {
        Self { name, run: Run::Indexed(run, index), limit: 120 }
    }

    /// The same check with another limit, in seconds.
    pub const fn within(mut self, seconds: u32) -> Self {
        self.limit = seconds;
        self
    }
}

/// The check that is running, for the watchdog.
static RUNNING: AtomicPtr<Check> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn hung(_signal: libc::c_int) {
    let check = RUNNING.load(Ordering::Acquire);
    // SAFETY: the pointer is null or leads into the slice of checks, which outlives their run.
    match unsafe { check.as_ref() } {
        Some(check) => crate::die!("check {} hung: no end after {} s", check.name, check.limit),
        None => crate::die!("hung outside of a check"),
    }
}

/// Aborts the process by `SIGALRM` after `seconds`, naming the running check; zero switches the watchdog off.
///
/// Forked children inherit the handler but not the alarm
/// ([alarm(2)](https://man7.org/linux/man-pages/man2/alarm.2.html)).
pub fn watchdog(seconds: u32) {
    let handler = hung as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler only formats on the stack, writes and aborts, which is async-signal-safe.
    unsafe { libc::signal(libc::SIGALRM, handler) };
    // SAFETY: no preconditions.
    unsafe { libc::alarm(seconds) };
}

/// Runs all checks that the command line selects, prints one line each and the sum.
pub fn main(checks: &[&[Check]]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let list = arguments.iter().any(|argument| argument == "--list");
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let (mut passed, mut failed, mut filtered) = (0, Vec::new(), 0);
    for check in checks.iter().copied().flatten() {
        if !words.is_empty() && !words.iter().any(|word| check.name.contains(word.as_str())) {
            filtered += 1;
            continue;
        }
        if list {
            println!("{}: test", check.name);
            continue;
        }
        RUNNING.store(std::ptr::from_ref(check).cast_mut(), Ordering::Release);
        watchdog(check.limit);
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(|| match check.run {
            Run::Plain(run) => run(),
            Run::Indexed(run, index) => run(index),
        });
        watchdog(0);
        RUNNING.store(std::ptr::null_mut(), Ordering::Release);
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("check {} ... ok ({seconds:.2} s)", check.name);
            }
            Err(_) => {
                failed.push(check.name);
                println!("check {} ... FAILED ({seconds:.2} s)", check.name);
            }
        }
    }
    if list {
        return ExitCode::SUCCESS;
    }
    for name in &failed {
        println!("failed: {name}");
    }
    let tail = if words.is_empty() { String::new() } else { format!(", {filtered} filtered out") };
    println!("{passed} passed, {} failed{tail}", failed.len());
    // A filter may leave nothing to run, as with libtest; without one an empty run is an error.
    if failed.is_empty() && (passed > 0 || !words.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
