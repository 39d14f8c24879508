//! Measures alloc-core, jemalloc, snmalloc and the C library's malloc in one run and prints the ratios of their times
//! and memory.
//!
//!     cargo run --release -p bench --bin ratios
//!
//! Every round visits every measure, and within a measure every allocator, in an order that rotates from round to
//! round: what other programs do to the machine hits all allocators alike. Ratios are those of the medians over the
//! rounds. The last lines say whether the two promises made for these figures hold here: 64-byte pairs take no longer
//! than with jemalloc or snmalloc, and parked threads leave at most a quarter of jemalloc's resident memory.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use bench::contender::{self, Contender};
use bench::figures::{Rounds, iterations_for};
use bench::parked::{self, Helper};
use bench::single::{Order, Sizes};
use clap::Parser;

/// Compares alloc-core with jemalloc, snmalloc and the C library's malloc in one interleaved run.
#[derive(Parser)]
struct Options {
    /// Rounds; each measures everything once
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(5..=1000))]
    rounds: u32,

    /// Milliseconds for each allocator, measure and round
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    millis: u64,

    /// Threads that park
    #[arg(long, default_value_t = parked::THREADS)]
    threads: usize,

    /// Of the timed measures, only those with this text in their names
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,

    /// Leave the parked threads out
    #[arg(long)]
    no_parked: bool,

    /// Exit with status 1 if one of the promises does not hold
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if cfg!(debug_assertions) {
        eprintln!("ratios: this build is not optimised, its figures mean nothing; use --release");
    }
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(u8::from(options.check)),
        Err(message) => {
            eprintln!("ratios: {message}");
            ExitCode::from(2)
        }
    }
}

/// Measures and prints; says whether all promises hold.
fn run(options: &Options) -> Result<bool, String> {
    // Looked for first: nobody wants to learn after a minute that they are missing.
    let helpers = if options.no_parked { None } else { Some(helpers()?) };
    let progress = Progress::new();

    let mut measures = measures();
    measures.retain(|measure| measure.name.contains(&options.only));
    let results = time_all(&measures, options, &progress);
    let parked = helpers.map(|helpers| park_all(&helpers, options, &progress)).transpose()?;
    progress.clear();

    println!("{}; {} rounds", alloc_core::mode(), options.rounds);
    println!("rseq is compiled into the measuring loop, the others and \"rseq, called\" are behind a call\n");
    print_times(&measures, &results);
    if let Some(parked) = &parked {
        print_parked(parked, options);
    }

    println!();
    let pairs = measures.iter().zip(&results).find(|(measure, _)| measure.promised);
    let pairs_hold = pairs.is_none_or(|(_, results)| pairs_promise(results));
    let memory_holds = parked.is_none_or(|parked| memory_promise(&parked));
    Ok(pairs_hold && memory_holds)
}

/// Fewer blocks than this are never timed: some milliseconds for the slowest, so that being interrupted once, or having
/// to wait for the second thread to get a CPU, is not the figure.
const LEAST_BLOCKS: usize = 20_000;

/// Runs a number of iterations with one contender.
type Timed = dyn Fn(&Contender, u64) -> Duration;

/// Something to measure for every contender.
struct Measure {
    name: &'static str,
    run: Box<Timed>,
    /// Blocks allocated and freed in an iteration.
    blocks: usize,
    /// Whether the cost of the loop itself is large enough to be taken off.
    has_floor: bool,
    /// Whether the promise about pairs is about this one.
    promised: bool,
}

impl Measure {
    fn new(name: &'static str, blocks: usize, run: impl Fn(&Contender, u64) -> Duration + 'static) -> Self {
        Measure { name, run: Box::new(run), blocks, has_floor: false, promised: false }
    }

    fn pairs(name: &'static str, sizes: Sizes) -> Self {
        Measure::new(name, 1, move |contender, count| (contender.pairs)(&sizes, count))
    }

    fn bursts(name: &'static str, sizes: Sizes, order: Order) -> Self {
        Measure::new(name, order.len(), move |contender, count| (contender.bursts)(&sizes, &order, count))
    }

    fn exchange(name: &'static str, sizes: Sizes) -> Self {
        let run = move |contender: &Contender, count| (contender.exchange)(&sizes, count);
        Measure { has_floor: true, ..Measure::new(name, 1, run) }
    }
}

fn measures() -> Vec<Measure> {
    const BURST: usize = 1000;
    vec![
        Measure::pairs("pairs 16 B", Sizes::fixed(16)),
        Measure { promised: true, ..Measure::pairs("pairs 64 B", Sizes::fixed(64)) },
        Measure::pairs("pairs 256 B", Sizes::fixed(256)),
        Measure::pairs("pairs 1 KiB", Sizes::fixed(1 << 10)),
        Measure::pairs("pairs 8 KiB", Sizes::fixed(8 << 10)),
        Measure::pairs("pairs 64 KiB", Sizes::fixed(64 << 10)),
        Measure::pairs("pairs 16 B - 64 KiB", Sizes::spread(16, 64 << 10)),
        Measure::bursts("1000 of 64 B, LIFO", Sizes::fixed(64), Order::lifo(BURST)),
        Measure::bursts("1000 of 64 B, FIFO", Sizes::fixed(64), Order::fifo(BURST)),
        Measure::bursts("1000 of 64 B, random", Sizes::fixed(64), Order::random(BURST)),
        Measure::bursts("1000 mixed, random", Sizes::spread(16, 1024), Order::random(BURST)),
        Measure::exchange("producer/consumer 64 B", Sizes::fixed(64)),
        Measure::exchange("producer/consumer mixed", Sizes::spread(16, 1024)),
    ]
}

/// For one measure: nanoseconds per block of every contender, in the order of [`contender::ALL`], and of the floor.
struct Times {
    contenders: Vec<Rounds>,
    floor: Rounds,
}

impl Times {
    /// A contender's times, less the floor where the measure has one.
    fn of(&self, index: usize) -> Rounds {
        let floor = self.floor.median();
        if floor.is_nan() { self.contenders[index].clone() } else { self.contenders[index].above(floor) }
    }
}

const OURS: usize = 0;
const OURS_CALLED: usize = 1;
const JEMALLOC: usize = 2;
const SNMALLOC: usize = 3;

fn time_all(measures: &[Measure], options: &Options, progress: &Progress) -> Vec<Times> {
    let target = Duration::from_millis(options.millis);
    let mut results = Vec::new();
    let mut counts: Vec<Vec<u64>> = Vec::new();
    for measure in measures {
        progress.show(&format!("warming up: {}", measure.name));
        let least = (LEAST_BLOCKS / measure.blocks) as u64;
        let fitting = |contender: &Contender| iterations_for(target, least, |count| (measure.run)(contender, count));
        let mut fitted: Vec<u64> = contender::ALL.iter().map(fitting).collect();
        if measure.has_floor {
            fitted.push(fitting(&contender::FLOOR));
        }
        counts.push(fitted);
        results.push(Times { contenders: vec![Rounds::default(); contender::ALL.len()], floor: Rounds::default() });
    }
    for round in 0..options.rounds as usize {
        for (measure, (counts, times)) in measures.iter().zip(counts.iter().zip(&mut results)) {
            progress.show(&format!("round {} of {}: {}", round + 1, options.rounds, measure.name));
            for turn in 0..counts.len() {
                let index = (turn + round) % counts.len();
                let (contender, rounds) = match contender::ALL.get(index) {
                    Some(contender) => (contender, &mut times.contenders[index]),
                    None => (&contender::FLOOR, &mut times.floor),
                };
                let elapsed = (measure.run)(contender, counts[index]);
                let blocks = counts[index] * measure.blocks as u64;
                rounds.push(elapsed.as_nanos() as f64 / blocks as f64);
            }
        }
    }
    results
}

fn print_times(measures: &[Measure], results: &[Times]) {
    print!("{:<24}", "ns per block");
    for contender in contender::ALL {
        print!("{:>15}", contender.name);
    }
    println!("{:>10}{:>15}{:>15}", "floor", "rseq/jemalloc", "rseq/snmalloc");
    for (measure, times) in measures.iter().zip(results) {
        print!("{:<24}", measure.name);
        for index in 0..contender::ALL.len() {
            print!("{:>15}", with_spread(&times.of(index)));
        }
        if measure.has_floor {
            print!("{:>10.2}", times.floor.median());
        } else {
            print!("{:>10}", "");
        }
        let ratio = |peer: usize| ratio(times.of(OURS).median(), times.of(peer).median());
        println!("{:>15}{:>15}", ratio(JEMALLOC), ratio(SNMALLOC));
    }
    println!("(medians, with half the distance of least and greatest; where there is a floor, it is taken off)");
}

fn with_spread(rounds: &Rounds) -> String {
    let median = rounds.median();
    let spread = (rounds.greatest() - rounds.least()) / 2.0 / median.abs() * 100.0;
    format!("{median:.2} ±{spread:2.0}%")
}

/// A value below the floor is noise, and a ratio of it is meaningless.
fn ratio(ours: f64, peer: f64) -> String {
    if ours > 0.0 && peer > 0.0 { format!("{:.2}", ours / peer) } else { "-".to_owned() }
}

/// What parked threads leave behind: MiB and milliseconds.
struct Parked {
    /// By name; the last is the floor.
    rows: Vec<(&'static str, Rounds, Rounds)>,
}

impl Parked {
    /// Median MiB above the floor.
    fn memory(&self, name: &str) -> f64 {
        let of = |name: &str| {
            let row = self.rows.iter().find(|(row, ..)| *row == name);
            row.map_or(f64::NAN, |(_, memory, _)| memory.median())
        };
        of(name) - of("floor")
    }
}

fn park_all(helpers: &[(&'static str, Helper)], options: &Options, progress: &Progress) -> Result<Parked, String> {
    let mut rows: Vec<_> = helpers.iter().map(|(name, _)| (*name, Rounds::default(), Rounds::default())).collect();
    for round in 0..options.rounds as usize {
        for turn in 0..helpers.len() {
            let index = (turn + round) % helpers.len();
            let (name, helper) = &helpers[index];
            progress.show(&format!("round {} of {}: parked threads, {name}", round + 1, options.rounds));
            let parked = helper.run(options.threads, parked::BYTES)?;
            rows[index].1.push(parked.rss_kib as f64 / 1024.0);
            rows[index].2.push(parked.wall.as_secs_f64() * 1e3);
        }
    }
    Ok(Parked { rows })
}

fn print_parked(parked: &Parked, options: &Options) {
    println!("\n{} parked threads that each freed {} KiB", options.threads, parked::BYTES >> 10);
    println!("{:<24}{:>15}{:>15}{:>19}{:>15}", "", "RSS MiB", "above floor", "rseq/this, above", "time ms");
    for (name, memory, wall) in &parked.rows {
        let above = parked.memory(name);
        println!(
            "{name:<24}{:>15.1}{above:>15.1}{:>19}{:>15}",
            memory.median(),
            ratio(parked.memory("rseq"), above),
            with_spread(wall),
        );
    }
}

/// Prints whether 64-byte pairs take no longer than with either peer. The promise is about the loop with our code in
/// it; the same behind a call is printed for the reader.
fn pairs_promise(times: &Times) -> bool {
    let median = |index: usize| times.of(index).median();
    let least = |index: usize| times.of(index).least();
    let described = |index: usize| {
        format!(
            "{:.2} ns, {:.2} and {:.2} of theirs (of the least times {:.2} and {:.2})",
            median(index),
            median(index) / median(JEMALLOC),
            median(index) / median(SNMALLOC),
            least(index) / least(JEMALLOC),
            least(index) / least(SNMALLOC),
        )
    };
    let holds = median(OURS) <= median(JEMALLOC) && median(OURS) <= median(SNMALLOC);
    println!("{}: 64-byte pairs take no longer than with jemalloc and snmalloc: {}", verdict(holds), described(OURS));
    println!("       behind a call: {}", described(OURS_CALLED));
    holds
}

/// Prints whether parked threads leave at most a quarter of jemalloc's memory.
fn memory_promise(parked: &Parked) -> bool {
    let (ours, jemalloc) = (parked.memory("rseq"), parked.memory("jemalloc"));
    let holds = ours <= jemalloc / 4.0;
    println!(
        "{}: parked threads leave at most a quarter of jemalloc's memory: {ours:.1} of {jemalloc:.1} MiB above the floor, \
         {:.3}",
        verdict(holds),
        ours / jemalloc,
    );
    holds
}

fn verdict(holds: bool) -> &'static str {
    if holds { "HOLDS" } else { "FAILS" }
}

/// The programs for the parked threads, which stand beside this one. Under `cargo run --bin ratios` cargo has not built
/// them, so it is asked to.
fn helpers() -> Result<Vec<(&'static str, Helper)>, String> {
    let this = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let folder = this.parent().ok_or("this program stands in no folder")?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        build_beside(&PathBuf::from(cargo), folder)?;
    }
    let program = |name: &str| folder.join(format!("parked_{name}"));
    let names = ["rseq", "jemalloc", "snmalloc", "system"];
    let mut helpers: Vec<_> = names.iter().map(|&name| (name, Helper::new(program(name)))).collect();
    helpers.push(("floor", Helper::new(program("system")).floor()));
    for (_, helper) in &helpers {
        if !helper.program().is_file() {
            return Err(format!(
                "{} is missing; build it with `cargo build --release -p bench --bins`, or leave it out with --no-parked",
                helper.program().display()
            ));
        }
    }
    Ok(helpers)
}

/// Builds all programs of this crate into `folder`, which is named after the profile.
fn build_beside(cargo: &Path, folder: &Path) -> Result<(), String> {
    let (Some(target), Some(profile)) = (folder.parent(), folder.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let profile = if profile == "debug" { "dev" } else { profile };
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--bins", "--profile", profile, "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status()
        .map_err(|error| format!("cannot run {}: {error}", cargo.display()))?;
    if status.success() { Ok(()) } else { Err(format!("building the helper programs failed: {status}")) }
}

/// One line on a terminal that says what is being measured; nothing elsewhere.
struct Progress {
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Progress { shown: std::io::stderr().is_terminal() }
    }

    fn show(&self, what: &str) {
        if self.shown {
            eprint!("\r\x1b[K{what}");
            // A progress line that cannot be written is no reason to stop.
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
