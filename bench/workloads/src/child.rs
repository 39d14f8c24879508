//! The `main` of the programs: runs one loop or workload and prints its outcome as a line of JSON.
//!
//! ```text
//! PROGRAM NAME [--millis N] [--divisor N] [--seed N] [--texts FOLDER] [--calls] [--floor]
//! PROGRAM MEMORY-NAME [--mib N] [--seconds N] [--phase-millis N]
//! PROGRAM --describe
//! PROGRAM --list
//! ```
//!
//! Whoever starts it chooses the allocator, by the program and its environment, and reads the line. What
//! [`crate::memory`] measures has outcomes of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::crew::Span;
use crate::latency::Recording;
use crate::live;
use crate::loops::{Layouts, Loop};
use crate::memory;
use crate::outcome::{Description, Outcome};
use crate::subjects::{Calls, EmptyCalls, FORGOTTEN, Global};
use crate::usage::{self, Usage};
use crate::workloads::{self, Settings};

/// What a program measures beside time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Nothing.
    None,
    /// Its allocator is [`crate::latency::Timed`].
    Latency,
    /// Its allocator is [`live::Counted`].
    Live,
}

/// Runs loops and workloads.
pub fn main(extra: Extra, describe: fn() -> Description) -> ExitCode {
    end(run(describe, names, |arguments| match arguments.name.parse() {
        Ok(each) => a_loop(each, Layouts::AtRunTime, arguments),
        Err(()) => workload(extra, arguments),
    }))
}

/// Runs loops with constant layouts, and has nothing else in it that link-time optimisation would take long for.
pub fn main_of_loops(describe: fn() -> Description) -> ExitCode {
    end(run(describe, names_of_loops, |arguments| match arguments.name.parse() {
        Ok(each) => a_loop(each, Layouts::Constant, arguments),
        Err(()) => Err(format!("there is no {}", arguments.name)),
    }))
}

fn end(line: Result<String, String>) -> ExitCode {
    match line {
        Ok(line) => {
            println!("{line}");
            // Ends threads that still sleep with the process.
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    name: String,
    millis: u64,
    divisor: usize,
    seed: usize,
    texts: PathBuf,
    calls: bool,
    floor: bool,
    memory: memory::Amounts,
}

/// How often a workload that did nothing is given a longer span.
const LONGER: usize = 3;

const USAGE: &str = "usage: NAME [--millis N] [--divisor N] [--seed N] [--texts FOLDER] [--calls] [--floor] [--mib N] \
                     [--seconds N] [--phase-millis N], or --describe, or --list";

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        name: String::new(),
        millis: 300,
        divisor: 1,
        seed: 1,
        texts: PathBuf::new(),
        calls: false,
        floor: false,
        memory: memory::Amounts::default(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{argument} needs a value; {USAGE}"));
        let number = |text: String| text.parse().ok().filter(|&number| number > 0).ok_or(format!("{text}? {USAGE}"));
        match argument.as_str() {
            "--millis" => arguments.millis = number(value()?)?,
            "--divisor" => arguments.divisor = number(value()?)? as usize,
            "--seed" => arguments.seed = number(value()?)? as usize,
            "--texts" => arguments.texts = value()?.into(),
            "--calls" => arguments.calls = true,
            "--floor" => arguments.floor = true,
            "--mib" => arguments.memory.mib = number(value()?)? as usize,
            "--seconds" => arguments.memory.time = Duration::from_secs(number(value()?)?),
            "--phase-millis" => arguments.memory.phase = Duration::from_millis(number(value()?)?),
            _ if arguments.name.is_empty() => arguments.name = argument,
            _ => return Err(USAGE.to_owned()),
        }
    }
    if arguments.name.is_empty() { Err(USAGE.to_owned()) } else { Ok(arguments) }
}

fn run(
    describe: fn() -> Description,
    names: fn() -> Vec<String>,
    measure: impl Fn(&Arguments) -> Result<Outcome, String>,
) -> Result<String, String> {
    let arguments = arguments()?;
    if let Some(line) = memory::run(&arguments.name, arguments.memory, describe) {
        return line;
    }
    let outcome = match arguments.name.as_str() {
        "--describe" => return serde_json::to_string(&describe()).map_err(|error| error.to_string()),
        "--list" => return Ok(names().join("\n")),
        // The process itself: what all workloads hold before they begin.
        "idle" => Outcome { operations: 1, nanoseconds: 1.0, ..Outcome::default() },
        _ => {
            let (before, begun) = (Usage::now(), Instant::now());
            let outcome = measure(&arguments)?;
            let usage = Usage::now().since(before);
            let (faults, system_micros) = (usage.faults, usage.system_micros);
            Outcome { faults, system_micros, whole_nanoseconds: begun.elapsed().as_nanos() as f64, ..outcome }
        }
    };
    if outcome.operations == 0 {
        return Err(format!("{} did nothing in {} ms", arguments.name, arguments.millis));
    }
    let outcome = Outcome { peak_rss_kib: usage::peak_rss_kib().map_err(|error| error.to_string())?, ..outcome };
    serde_json::to_string(&outcome).map_err(|error| error.to_string())
}

fn names_of_loops() -> Vec<String> {
    Loop::all().into_iter().map(|each| each.to_string()).collect()
}

fn names() -> Vec<String> {
    names_of_loops().into_iter().chain(workloads::all().into_iter().map(|workload| workload.name)).collect()
}

fn a_loop(each: Loop, layouts: Layouts, arguments: &Arguments) -> Result<Outcome, String> {
    // What is called there has no other functions, and without an allocator behind it one word.
    if arguments.calls && !matches!(each, Loop::Pairs(_)) {
        return Err(format!("{each} is not for --calls"));
    }
    let timed = match (arguments.calls, arguments.floor) {
        (true, true) => each.on(EmptyCalls::default(), layouts),
        (true, false) => each.on(Calls::default(), layouts),
        (false, true) => each.on(FORGOTTEN, layouts),
        (false, false) => each.on(Global, layouts),
    };
    Ok(timed.sample(Duration::from_millis(arguments.millis)))
}

fn workload(extra: Extra, arguments: &Arguments) -> Result<Outcome, String> {
    let workload = workloads::find(&arguments.name).ok_or_else(|| format!("there is no {}", arguments.name))?;
    let mut settings = Settings {
        span: Span::new(Duration::from_millis(arguments.millis)),
        divisor: arguments.divisor,
        seed: arguments.seed,
        texts: arguments.texts.clone(),
    };
    let recording = (extra == Extra::Latency).then(Recording::begin);
    let mut report = workload.run(&settings, arguments.floor)?;
    // On a machine with much else to do, threads may not get to their first operation in a short span.
    for _ in 0..LONGER {
        if report.pace.operations == 0 {
            settings.span = Span::new(settings.span.length * 8);
            report = workload.run(&settings, arguments.floor)?;
        }
    }
    let (malloc, free) = recording.map(Recording::end).unzip();
    Ok(Outcome {
        operations: report.pace.operations,
        nanoseconds: report.pace.time.as_nanos() as f64,
        rss_kib: report.rss_kib,
        peak_live: (extra == Extra::Live).then(live::peak),
        malloc,
        free,
        ..Outcome::default()
    })
}
