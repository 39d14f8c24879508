//! Measures this allocator side by side with others and judges the ratios.
//!
//!     cargo run --release -p bench
//!
//! Everything is measured in programs of their own, one build for each allocator, which this builds when it starts. A
//! contender is such a program and its environment, so that allocators that are compiled in, libraries that are
//! preloaded and modes that are forced are all one kind of thing.
//!
//! | module | what it does |
//! |---|---|
//! | [`contenders`] | who takes part |
//! | [`programs`], [`texts`] | builds what runs, writes what it reads |
//! | [`plan`] | what is measured |
//! | [`run`] | starts the programs, in rounds |
//! | [`results`], [`statistics`] | what came out, and numbers from it |
//! | [`bars`] | what is promised, and whether it holds |
//! | [`table`], [`report`], [`plots`], [`progress`] | tells it |
//! | [`memory`] | `-- memory`: what heaps cost over time, by the same means |

mod bars;
mod contenders;
mod memory;
mod plan;
mod plots;
mod programs;
mod progress;
mod report;
mod results;
mod run;
mod statistics;
mod table;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::bars::Bar;
use crate::plan::Kind;
use crate::programs::{Programs, Wanted};
use crate::progress::Progress;
use crate::results::Results;
use crate::run::{Amounts, Runner};

/// Compares this allocator with jemalloc, mimalloc, snmalloc, tcmalloc, gperftools, rpmalloc and glibc in one run, whose
/// measures are interleaved, and prints whether the promised ratios hold.
///
/// Status 2 if a peer is missing or a program failed; with --check, 1 if a bar falls short.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,

    /// Rounds; each measures everything once, and loops, which are short, four times
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(5..=1000))]
    rounds: u32,

    /// A trial of everything in its smallest form, with two peers and one round; no verdict on times
    #[arg(long, conflicts_with_all = ["rounds", "check", "peers"])]
    quick: bool,

    /// Only measures with one of these texts in their names, for instance pairs,bursts/1000 or latency; --list has them
    #[arg(long, value_name = "TEXTS", value_delimiter = ',')]
    only: Vec<String>,

    /// No measures with one of these texts in their names
    #[arg(long, value_name = "TEXTS", value_delimiter = ',')]
    without: Vec<String>,

    /// Only these peers, separated by commas (and glibc, on which floors are measured)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    peers: Option<Vec<String>>,

    /// Milliseconds of a workload; loops take a twelfth of it, the clock around every call half
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(12..=60_000))]
    millis: u64,

    /// Where results.json and report.html are written [default: bench in the target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Prints contenders and measures, and ends
    #[arg(long)]
    list: bool,

    /// Builds everything, asks each contender what it is, and ends
    #[arg(long)]
    build: bool,

    /// Exit with status 1 if a bar falls short
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
enum Command {
    /// What heaps cost over time: peaks, what is given back, parked threads, phases, hello-worlds
    Memory(memory::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.command {
        Some(Command::Memory(options)) => memory::run(options),
        None => run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, String> {
    let mut measures = plan::all(&options.only, &options.without);
    if options.quick {
        // Link-time optimisation takes longer than the whole trial.
        measures.retain(|measure| measure.kind != Kind::Constant);
    }
    if measures.is_empty() {
        let (only, without) = (options.only.join(","), options.without.join(","));
        return Err(format!("--only '{only}' --without '{without}' leaves no measure; --list prints them"));
    }
    let mut contenders = contenders::chosen(options.quick, options.peers.as_deref())?;
    if options.list {
        contenders.iter().for_each(|each| println!("contender  {}", each.name));
        measures.iter().for_each(|each| println!("measure    {} ({})", each.key(), each.operation));
        return Ok(ExitCode::SUCCESS);
    }

    let progress = Progress::new();
    let programs = Programs::below(&programs::target_folder()?);
    let out = out_folder(options.out.as_deref())?;
    let texts = out.join("texts");
    texts::write(&texts)?;
    let wanted = Wanted {
        constant: measures.iter().any(|measure| measure.kind == Kind::Constant),
        workloads: measures.iter().any(|measure| !measure.kind.is_loop()),
        hello: measures.iter().any(|measure| measure.kind == Kind::Hello),
    };
    let runner = Runner { programs: &programs, amounts: amounts(options), texts, progress: &progress };
    let mut results = runner.prepare(&mut contenders, wanted);
    if options.build {
        progress.clear();
        print!("{}", table::participants(&results));
        return Ok(verdict(&results, &[], false));
    }
    contenders::need_floors(&contenders)?;
    runner.run(&measures, &contenders, &mut results);

    // A trial says nothing about times.
    let bars = (!options.quick).then(|| bars::all(&results, &contenders));
    print!("{}", table::all(&results, &contenders, &measures, bars.as_deref()));
    let html = report::page(&results, &contenders, &measures, bars.as_deref())?;
    write(&out, "results.json", &results, "report.html", &html)?;
    Ok(verdict(&results, bars.as_deref().unwrap_or_default(), options.check))
}

/// See [`Amounts`].
const LOOP_VISITS: usize = 4;

fn amounts(options: &Options) -> Amounts {
    if options.quick {
        let (loop_millis, workload_millis, latency_millis) = (5, 15, 15);
        return Amounts {
            rounds: 1,
            loop_visits: 1,
            loop_millis,
            workload_millis,
            latency_millis,
            hellos: 2,
            divisor: 20,
        };
    }
    Amounts {
        rounds: options.rounds as usize,
        loop_visits: LOOP_VISITS,
        loop_millis: options.millis / 12,
        workload_millis: options.millis,
        latency_millis: options.millis / 2,
        hellos: 20,
        divisor: 1,
    }
}

/// Makes the folder for what is written.
fn out_folder(given: Option<&Path>) -> Result<PathBuf, String> {
    let out = match given {
        Some(out) => out.to_owned(),
        None => programs::target_folder()?.join("bench"),
    };
    fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    Ok(out)
}

fn write(out: &Path, json: &str, results: &impl Serialize, page: &str, html: &str) -> Result<(), String> {
    let text = serde_json::to_string_pretty(results).map_err(|error| error.to_string())?;
    for (name, text) in [(json, text.as_str()), (page, html)] {
        let path = out.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// A comparison with somebody missing is none; a bar that falls short is a failure where that was asked.
fn verdict(results: &Results, bars: &[Bar], check: bool) -> ExitCode {
    let unknown = results.problems.iter().filter(|problem| !problem.known).count();
    if unknown > 0 {
        println!("NOT A FULL COMPARISON: {unknown} failures, named above");
        return ExitCode::from(2);
    }
    ExitCode::from(u8::from(check && !bars.iter().all(Bar::holds)))
}
