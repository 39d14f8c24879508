//! `cargo run --release -p bench -- memory`: what heaps cost over time, by the means of the rest.
//!
//! | module | what it does |
//! |---|---|
//! | [`results`] | what came out, and figures from it |
//! | [`bars`] | what is promised, and whether it holds |
//! | [`table`], [`report`] | tells it |
//!
//! Heaps that are watched and heaps under changing use mostly wait, so these run side by side, as many as the machine's
//! memory has room for; parked threads and hello-worlds, whose time counts, run one by one.

mod bars;
mod report;
mod results;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use bench_workloads::memory::give_back::{Activity, Case, Freed, GiveBack, Mix};
use bench_workloads::memory::soak::{self, Soak};
use serde::de::DeserializeOwned;

use self::results::Memory;
use crate::contenders::{self, Contender};
use crate::plan::{self, Kind, Measure};
use crate::programs::{self, Programs, Wanted};
use crate::progress::Progress;
use crate::run::{Amounts, Runner, note};

/// Peaks, what is given back after much was freed, parked threads, changing phases, hello-worlds; for this allocator and
/// the others in one run.
///
/// Status 2 if a peer is missing or a program failed; with --check, 1 if a bar falls short.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A trial of a minute in small, with two peers; no verdict on times, nor on thousands of threads
    #[arg(long, conflicts_with_all = ["rounds", "peers", "heap_mib", "seconds", "soak_minutes"])]
    quick: bool,

    /// Rounds of parked threads; hello-worlds have five times as many, the others one
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Only measures with one of these texts in their names, for instance give-back/small or soak; --list has them
    #[arg(long, value_name = "TEXTS", value_delimiter = ',')]
    only: Vec<String>,

    /// Only these peers, separated by commas (and glibc, on which floors are measured)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    peers: Option<Vec<String>>,

    /// MiB of live blocks in a heap that is watched; a quarter of it is the most in a soak
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=4096))]
    heap_mib: u32,

    /// For how many seconds a heap is watched after the last free
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,

    /// Minutes of the soak
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    soak_minutes: u32,

    /// Where memory.json and memory.html are written [default: bench in the target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Prints contenders and measures, and ends
    #[arg(long)]
    list: bool,

    /// Exit with status 1 if a bar falls short
    #[arg(long)]
    check: bool,
}

/// What is measured, and how much of it.
struct Plan {
    cases: Vec<Case>,
    parked: Vec<usize>,
    soak: bool,
    hello: bool,
    rounds: usize,
    heap_mib: usize,
    watched: Duration,
    soaked: Duration,
    phase: Duration,
}

impl Plan {
    fn new(options: &Options) -> Self {
        let quick = options.quick;
        let is_wanted =
            |name: String| options.only.is_empty() || options.only.iter().any(|text| name.contains(text.as_str()));
        // What the bars are about, and the peak of mixed sizes.
        let is_in_trial =
            |case: &Case| case.activity == Activity::Light && (case.mix, case.freed) != (Mix::Mixed, Freed::Most);
        let threads: &[usize] = if quick { &[64, 512] } else { &[64, 512, 2000, 5000] };
        Plan {
            cases: Case::all()
                .into_iter()
                .filter(|case| (!quick || is_in_trial(case)) && is_wanted(case.to_string()))
                .collect(),
            parked: threads.iter().copied().filter(|&threads| is_wanted(results::parked(threads))).collect(),
            soak: is_wanted(soak::NAME.to_owned()),
            hello: is_wanted(results::HELLO.to_owned()),
            rounds: if quick { 1 } else { options.rounds as usize },
            heap_mib: if quick { 64 } else { options.heap_mib as usize },
            watched: Duration::from_secs(if quick { 10 } else { u64::from(options.seconds) }),
            soaked: Duration::from_secs(if quick { 1 } else { u64::from(options.soak_minutes) * 60 }),
            phase: Duration::from_millis(if quick { 100 } else { 1000 }),
        }
    }

    fn names(&self) -> Vec<String> {
        let cases = self.cases.iter().map(Case::to_string);
        let parked = self.parked.iter().map(|&threads| results::parked(threads));
        let soak = self.soak.then(|| soak::NAME.to_owned());
        cases.chain(parked).chain(soak).chain(self.hello.then(|| results::HELLO.to_owned())).collect()
    }
}

/// Measures everything, prints it and writes it.
pub(crate) fn run(options: &Options) -> Result<ExitCode, String> {
    let plan = Plan::new(options);
    if plan.names().is_empty() {
        return Err(format!("no measure has {} in its name; --list prints them", options.only.join(" or ")));
    }
    let mut contenders = contenders::chosen(options.quick, options.peers.as_deref())?;
    if options.list {
        contenders.iter().for_each(|each| println!("contender  {}", each.name));
        plan.names().iter().for_each(|name| println!("measure    {name}"));
        return Ok(ExitCode::SUCCESS);
    }

    let progress = Progress::new();
    let programs = Programs::below(&programs::target_folder()?);
    let out = crate::out_folder(options.out.as_deref())?;
    let runner = |rounds| Runner {
        programs: &programs,
        amounts: Amounts {
            rounds,
            loop_visits: 1,
            loop_millis: 1,
            workload_millis: 1,
            latency_millis: 1,
            hellos: 20,
            divisor: 1,
        },
        // Nothing here reads text.
        texts: PathBuf::new(),
        progress: &progress,
    };
    let wanted = Wanted { constant: false, workloads: false, hello: plan.hello };
    let mut memory = Memory {
        suite: runner(plan.rounds).prepare(&mut contenders, wanted),
        huge_pages: huge_pages(),
        heap_mib: plan.heap_mib,
        ..Memory::default()
    };
    contenders::need_floors(&contenders)?;
    give_back(&plan, &runner(1), &contenders, &mut memory);
    if plan.soak {
        soak(&plan, &runner(1), &contenders, &mut memory);
    }
    let parked: Vec<Measure> = plan.parked.iter().map(|&threads| parked(threads)).collect();
    if !parked.is_empty() {
        runner(plan.rounds).run(&parked, &contenders, &mut memory.suite);
    }
    if plan.hello {
        runner(plan.rounds * 5).run(&plan::all(&[results::HELLO], &[]), &contenders, &mut memory.suite);
    }
    progress.clear();

    let bars = bars::all(&memory, &contenders, !options.quick);
    print!("{}", table::all(&memory, &contenders, &bars));
    let html = report::page(&memory, &contenders, &bars)?;
    crate::write(&out, "memory.json", &memory, "memory.html", &html)?;
    Ok(crate::verdict(&memory.suite, &bars, options.check))
}

fn parked(threads: usize) -> Measure {
    Measure { kind: Kind::Memory, name: results::parked(threads), operation: "thread", has_floor: true }
}

fn give_back(plan: &Plan, runner: &Runner<'_>, contenders: &[Contender], memory: &mut Memory) {
    let jobs: Vec<(String, &Contender)> =
        plan.cases.iter().flat_map(|case| contenders.iter().map(|each| (case.to_string(), each))).collect();
    let amounts = ["--mib".to_owned(), plan.heap_mib.to_string()];
    let all: Vec<(&str, String, GiveBack)> = together(runner, &jobs, &amounts, plan.heap_mib, plan.watched, memory);
    for (contender, case, found) in all {
        memory.give_back.entry(case).or_default().insert(contender.to_owned(), found);
    }
}

fn soak(plan: &Plan, runner: &Runner<'_>, contenders: &[Contender], memory: &mut Memory) {
    let jobs: Vec<(String, &Contender)> = contenders.iter().map(|each| (soak::NAME.to_owned(), each)).collect();
    let mib = plan.heap_mib / 4;
    let amounts =
        ["--mib".to_owned(), mib.to_string(), "--phase-millis".to_owned(), plan.phase.as_millis().to_string()];
    let all: Vec<(&str, String, Soak)> = together(runner, &jobs, &amounts, mib, plan.soaked, memory);
    memory.soak = all.into_iter().map(|(contender, _, found)| (contender.to_owned(), found)).collect();
}

/// What processes side by side may take longer because of each other: on few CPUs with other work, filling 20 heaps of
/// 256 MiB was seen to take 70 s.
const MUTUAL: Duration = Duration::from_secs(180);

/// Runs the jobs, as many side by side as there is room for, and notes those that fail.
fn together<'a, T: DeserializeOwned + Send>(
    runner: &Runner<'_>,
    jobs: &[(String, &'a Contender)],
    amounts: &[String],
    mib: usize,
    takes: Duration,
    memory: &mut Memory,
) -> Vec<(&'a str, String, T)> {
    let mut all = Vec::new();
    let seconds = takes.as_secs();
    let mut done = 0;
    for jobs_now in jobs.chunks(side_by_side(available_mib(), mib, jobs.len())) {
        let from = done + 1;
        done += jobs_now.len();
        runner.progress.line(&format!(
            "{from} to {done} of {} side by side, {seconds} s: {} …",
            jobs.len(),
            jobs_now.first().map_or("", |job| job.0.as_str())
        ));
        let found: Vec<Result<T, String>> = thread::scope(|scope| {
            let threads: Vec<_> = jobs_now
                .iter()
                .map(|(name, contender)| {
                    let mut arguments = vec![name.clone(), "--seconds".to_owned(), seconds.to_string()];
                    arguments.extend_from_slice(amounts);
                    scope.spawn(move || runner.ask(contender, &arguments, takes + MUTUAL))
                })
                .collect();
            let panicked = |_| Err("the thread that waited for it panicked".to_owned());
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
        });
        for ((name, contender), found) in jobs_now.iter().zip(found) {
            match found {
                Ok(found) => all.push((contender.name, name.clone(), found)),
                Err(reason) => note(&mut memory.suite, contender.name, name, reason),
            }
        }
    }
    all
}

/// How many of `jobs` heaps of so many live MiB run at a time, so that all turns are about alike: half of what is
/// available is left alone, and a heap is taken to need twice what is live. More than 32 would be too much for few CPUs.
fn side_by_side(available_mib: usize, mib: usize, jobs: usize) -> usize {
    let most = (available_mib / 2 / (mib * 2)).clamp(1, 32);
    jobs.div_ceil(jobs.div_ceil(most).max(1)).max(1)
}

/// What the kernel thinks could be used without swapping, in MiB.
fn available_mib() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) / 1024
}

/// The system's setting, for instance "always [madvise] never".
fn huge_pages() -> String {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.map_or_else(|_| "not available".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn plan(arguments: &[&str]) -> Plan {
        Plan::new(&Line::parse_from([&["bench"], arguments].concat()).options)
    }

    #[test]
    fn everything_is_measured_unless_told_otherwise() {
        assert_eq!(plan(&[]).names().len(), 8 + 4 + 1 + 1);
        assert_eq!(plan(&["--only", "parked/2000,soak"]).names(), ["parked/2000", "soak"]);
        assert!(plan(&["--only", "no such"]).names().is_empty());
        // Every bar but that on 2000 threads has its measure in a trial, which is done within a minute.
        let quick = plan(&["--quick"]);
        assert!(quick.names().iter().any(|name| name == "give-back/small/90/light"));
        assert!(quick.watched + quick.soaked < Duration::from_secs(15) && quick.rounds == 1);
    }

    #[test]
    fn memory_limits_how_many_run_at_a_time() {
        assert_eq!([21, 22, 64].map(|jobs| side_by_side(22_000, 256, jobs)), [21, 11, 16]);
        assert_eq!(side_by_side(500, 256, 64), 1);
        assert_eq!([side_by_side(1 << 20, 16, 64), side_by_side(1 << 20, 16, 0)], [32, 1]);
        assert!(available_mib() > 0);
    }
}
