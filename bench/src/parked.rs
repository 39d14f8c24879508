//! Many threads that each allocated, freed and then went to sleep: what an allocator keeps for threads that are there
//! but idle, as in a server with a large thread pool.
//!
//! Resident memory belongs to a process, so each allocator has a program of its own (`src/bin/parked_*.rs`) that names
//! it as the global allocator and calls [`child`]. [`Helper::run`] starts such a program and reads its result. The
//! floor, for the threads' stacks and the runtime, is the system's program with threads that allocate nothing.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, ptr, thread};

use crate::single::Random;

/// Threads, unless told otherwise.
pub const THREADS: usize = 2000;
/// Bytes that each thread allocates before it frees them, unless told otherwise.
pub const BYTES: usize = 1 << 20;
/// Enough for the little that a thread does here, and small, so that stacks do not drown the allocator's share.
const STACK: usize = 64 << 10;
/// Blocks are of 16 to 1024 bytes, in steps of 16.
const STEP: usize = 16;
const STEPS: u64 = 64;

/// What a run of a helper program found.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    /// Resident memory with all threads asleep, in KiB.
    pub rss_kib: u64,
    /// From the start of the first thread until the last one slept.
    pub wall: Duration,
}

/// One of the helper programs.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
    floor: bool,
}

impl Helper {
    /// The helper at `program`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Helper { program: program.into(), floor: false }
    }

    /// The same helper with threads that allocate nothing.
    #[must_use]
    pub fn floor(mut self) -> Self {
        self.floor = true;
        self
    }

    /// Where the program is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs the program once with `threads` threads of `bytes` each.
    ///
    /// # Errors
    ///
    /// In words, if the program cannot be started, fails, or prints something else than a result.
    pub fn run(&self, threads: usize, bytes: usize) -> Result<Parked, String> {
        let bytes = if self.floor { 0 } else { bytes };
        let output = Command::new(&self.program)
            .args([threads.to_string(), bytes.to_string()])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let mut numbers = printed.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(rss_kib)), Some(Ok(micros))) if output.status.success() => {
                Ok(Parked { rss_kib, wall: Duration::from_micros(micros) })
            }
            _ => Err(format!("{} failed: {}", self.program.display(), output.status)),
        }
    }
}

/// The `main` of a helper program: arguments are the number of threads and the bytes of each; prints resident KiB and
/// microseconds.
pub fn child() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let (Some(Ok(threads)), Some(Ok(bytes)), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: parked_NAME THREADS BYTES");
        return ExitCode::from(2);
    };
    match park(threads, bytes) {
        Ok(Parked { rss_kib, wall }) => {
            println!("{rss_kib} {}", wall.as_micros());
            // Ends the sleeping threads with the process.
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("parked: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many threads are asleep; the number is all they share, and nobody ever wakes them.
struct Dormitory {
    asleep: Mutex<usize>,
    changed: Condvar,
    never: Condvar,
}

fn park(threads: usize, bytes: usize) -> io::Result<Parked> {
    // Leaked, because the threads outlive this function.
    let dormitory: &'static Dormitory =
        Box::leak(Box::new(Dormitory { asleep: Mutex::new(0), changed: Condvar::new(), never: Condvar::new() }));
    let begun = Instant::now();
    for _ in 0..threads {
        thread::Builder::new().stack_size(STACK).spawn(move || {
            allocate_and_free(bytes);
            let mut asleep = dormitory.asleep.lock().unwrap_or_else(PoisonError::into_inner);
            *asleep += 1;
            dormitory.changed.notify_one();
            loop {
                asleep = dormitory.never.wait(asleep).unwrap_or_else(PoisonError::into_inner);
            }
        })?;
    }
    let mut asleep = dormitory.asleep.lock().unwrap_or_else(PoisonError::into_inner);
    while *asleep < threads {
        asleep = dormitory.changed.wait(asleep).unwrap_or_else(PoisonError::into_inner);
    }
    let wall = begun.elapsed();
    Ok(Parked { rss_kib: resident_kib()?, wall })
}

/// Allocates blocks of together at least `bytes`, then frees them all.
///
/// The blocks form a list through their first words, so that nothing else is allocated; their second words hold their
/// sizes.
fn allocate_and_free(bytes: usize) {
    type Head = (*mut u8, usize);
    let layout = |size| Layout::from_size_align(size, align_of::<Head>()).expect("a small size fits");
    let mut random = Random::new();
    let mut head: *mut u8 = ptr::null_mut();
    let mut total = 0;
    while total < bytes {
        let size = (1 + (random.next() % STEPS) as usize) * STEP;
        // SAFETY: the size is not zero.
        let block = unsafe { alloc(layout(size)) };
        if block.is_null() {
            handle_alloc_error(layout(size));
        }
        // SAFETY: a block has room for a head, and its alignment.
        unsafe { block.cast::<Head>().write((head, size)) };
        head = block;
        total += size;
    }
    while !head.is_null() {
        // SAFETY: every block of the list begins with the head written above.
        let (next, size) = unsafe { head.cast::<Head>().read() };
        // SAFETY: the block was allocated with this layout, and is not used any more.
        unsafe { dealloc(head, layout(size)) };
        head = next;
    }
}

/// This process's resident memory in KiB, counted exactly by the kernel
/// ([proc_pid_smaps(5)](https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html)); the cheaper figures elsewhere in
/// `/proc` are kept per thread or CPU and may lag behind.
fn resident_kib() -> io::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Rss:")?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no Rss in /proc/self/smaps_rollup"))
}
