//! What transparent huge pages do to time, page faults and resident memory, on work of different kinds:
//!
//!     cargo run --release -p alloc-core --example huge_pages -- survivors | holes | threads | growth | run COMMAND...
//!
//! | work | |
//! |---|---|
//! | `survivors` | 600 MiB in blocks of 16 to 512 bytes, of which a random nine tenths are freed; then the decay, and as many seconds more as a number behind it says |
//! | `holes` | the same, where neighbours are freed together: a random nine tenths of all groups of 5000 |
//! | `threads` | four threads replace blocks of 16 to 1024 bytes at random and hand their tables on, 4 million times each |
//! | `growth` | a vector grows to 64 MiB, eight bytes at a time, 20 times |
//! | `run` | a command, as a child |
//!
//! One line comes out. `ci/huge-pages.sh` runs all that in each of the system's modes and with each setting of `thp`.

use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: alloc_core::RseqAlloc = alloc_core::RseqAlloc::new().decay_ms(1000);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [work @ ("survivors" | "holes"), seconds @ ..] => {
            let seconds = seconds.first().map_or(0, |seconds| seconds.parse().expect("seconds"));
            let group = if *work == "holes" { 5000 } else { 1 };
            survivors(work, group, Duration::from_secs(seconds));
        }
        ["threads"] => threads(),
        ["growth"] => growth(),
        ["run", program, arguments @ ..] => return run(Command::new(program).args(arguments)),
        _ => {
            eprintln!("usage: huge_pages survivors [SECONDS] | holes [SECONDS] | threads | growth | run COMMAND...");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// xorshift64*, good enough to choose sizes and victims.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) * bound as u64) >> 32) as usize
    }
}

/// MiB of this process in a line of smaps_rollup.
fn mib(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("procfs");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.split_whitespace().next().and_then(|kib| kib.parse::<usize>().ok()).expect("a number") >> 10
}

fn usage(who: i32) -> libc::rusage {
    // SAFETY: an all-zero rusage is valid, and a place for the answer.
    unsafe {
        let mut usage = std::mem::zeroed();
        libc::getrusage(who, &raw mut usage);
        usage
    }
}

fn cpu_seconds(usage: &libc::rusage) -> f64 {
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn report(work: &str, took: Duration, more: &str) {
    let usage = usage(libc::RUSAGE_SELF);
    println!(
        "{work}: {:.2} s, {:.2} s of CPU, {} faults, peak {} MiB, now {} MiB, of it huge {} MiB{more}",
        took.as_secs_f64(),
        cpu_seconds(&usage),
        usage.ru_minflt,
        usage.ru_maxrss >> 10,
        mib("Rss:"),
        mib("AnonHugePages:"),
    );
}

/// `group`: how many neighbours are freed or kept together.
fn survivors(name: &str, group: usize, wait: Duration) {
    let mut random = Random(9);
    let start = Instant::now();
    let (mut blocks, mut bytes) = (Vec::new(), 0);
    while bytes < 600 << 20 {
        let size = 16 + random.below(497);
        blocks.push(Some(vec![1_u8; size].into_boxed_slice()));
        bytes += size;
    }
    for group in blocks.chunks_mut(group) {
        if random.below(10) != 0 {
            group.fill(None);
        }
    }
    let took = start.elapsed();
    // Light work drives the decay; what is in caches goes with a purge.
    alloc_core::purge();
    let work = |time: Duration, random: &mut Random| {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let churn: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 16 + random.below(2000)]).collect();
            drop(churn);
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    work(Duration::from_millis(1500), &mut random);
    let settled = mib("Rss:");
    work(wait, &mut random);
    report(name, took, &format!(", after the decay {settled} MiB"));
    let live: usize = blocks.iter().flatten().map(|block| block.len()).sum();
    assert!(live < 80 << 20);
}

fn threads() {
    const SLOTS: usize = 5000;
    let start = Instant::now();
    let tables: Mutex<Vec<Vec<Vec<u8>>>> = Mutex::new((0..5).map(|_| vec![Vec::new(); SLOTS]).collect());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let tables = &tables;
            scope.spawn(move || {
                let mut random = Random(thread + 1);
                for _ in 0..400 {
                    let mut table = tables.lock().expect("no thread fails").remove(0);
                    for _ in 0..10_000 {
                        let slot = random.below(SLOTS);
                        table[slot] = vec![1; 16 + random.below(1009)];
                    }
                    tables.lock().expect("no thread fails").push(table);
                }
            });
        }
    });
    report("threads", start.elapsed(), "");
}

fn growth() {
    let start = Instant::now();
    for round in 0..20_u64 {
        let mut numbers = Vec::new();
        while numbers.len() < (64 << 20) / 8 {
            numbers.push(round);
        }
        std::hint::black_box(&numbers);
    }
    report("growth", start.elapsed(), "");
}

fn run(command: &mut Command) -> ExitCode {
    let start = Instant::now();
    let status = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    let took = start.elapsed();
    let usage = usage(libc::RUSAGE_CHILDREN);
    println!(
        "run: {:.2} s, {:.2} s of CPU, {} faults, peak {} MiB",
        took.as_secs_f64(),
        cpu_seconds(&usage),
        usage.ru_minflt,
        usage.ru_maxrss >> 10
    );
    if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
