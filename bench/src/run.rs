//! Runs every measure on every contender, in rounds.
//!
//! Every round visits every measure, and within a measure every contender, in an order that rotates from round to round:
//! what other programs do to the machine hits all alike. Each visit is a process of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bench_workloads::outcome::{Description, Outcome};
use serde::de::DeserializeOwned;

use crate::contenders::{Contender, GLIBC};
use crate::plan::{Kind, Measure};
use crate::programs::{Program, Programs, Wanted};
use crate::progress::Progress;
use crate::results::{FLOOR, Machine, Problem, Results};

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amounts {
    pub(crate) rounds: usize,
    /// Of a loop in each round: they are so short that what else the machine does at a moment shows in them.
    pub(crate) loop_visits: usize,
    pub(crate) loop_millis: u64,
    pub(crate) workload_millis: u64,
    pub(crate) latency_millis: u64,
    pub(crate) hellos: u32,
    /// See [`bench_workloads::workloads::Settings`].
    pub(crate) divisor: usize,
}

/// No process of the suite takes half as long, even on a machine with much other work; those that are told how long they
/// have to take have this in addition.
const LIMIT: Duration = Duration::from_secs(120);

/// Failures that are a peer's own and known: who, in which measure, and what is known of it. They are shown, and do not
/// make the comparison void.
const KNOWN: [(&str, &str, &str); 1] =
    [("rpmalloc", "parked", "its crate has an old version, which was seen to fail with thousands of threads")];

/// Runs programs for contenders.
#[derive(Debug)]
pub(crate) struct Runner<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) amounts: Amounts,
    pub(crate) texts: PathBuf,
    pub(crate) progress: &'a Progress,
}

/// Something of a contender.
type Named<T> = (String, T);

/// What a process printed.
struct Printed {
    text: String,
    time: Duration,
}

impl Runner<'_> {
    /// Builds what the contenders need and asks them what they are, leaves out those that are not what they should be,
    /// and notes why.
    pub(crate) fn prepare(&self, contenders: &mut Vec<Contender>, wanted: Wanted) -> Results {
        let mut missing = self.programs.build(contenders, wanted, self.progress);
        let (descriptions, unexpected) = self.describe(contenders);
        missing.extend(unexpected);
        let problem = |(contender, reason)| Problem { contender, measure: None, reason, known: false };
        Results {
            machine: machine(),
            rounds: self.amounts.rounds,
            contenders: descriptions,
            problems: missing.into_iter().map(problem).collect(),
            ..Results::default()
        }
    }

    /// Asks each contender what it is, and leaves out those that are not what they should be.
    fn describe(&self, contenders: &mut Vec<Contender>) -> (Vec<Named<Description>>, Vec<Named<String>>) {
        let (mut descriptions, mut missing) = (Vec::new(), Vec::new());
        contenders.retain(|contender| {
            let found = self.ask(contender, &["--describe".to_owned()], Duration::ZERO).and_then(|found| {
                contender.check(&found)?;
                Ok(found)
            });
            let name = contender.name.to_owned();
            match found {
                Ok(found) => descriptions.push((name, found)),
                Err(reason) => {
                    missing.push((name, reason));
                    return false;
                }
            }
            true
        });
        (descriptions, missing)
    }

    /// Runs all rounds.
    pub(crate) fn run(&self, measures: &[Measure], contenders: &[Contender], results: &mut Results) {
        let Some(glibc) = contenders.iter().find(|each| each.name == GLIBC) else { return };
        self.count_live(measures, glibc, results);
        for round in 0..self.amounts.rounds {
            self.progress.line(&format!("round {} of {}", round + 1, self.amounts.rounds));
            if let Ok(outcome) = self.outcome(glibc, Program::Child, &["idle".to_owned()]) {
                results.idle_rss_kib.push(outcome.peak_rss_kib as f64);
            }
            for measure in measures {
                let part = contenders.iter().filter(|each| measure.is_for(each)).map(|each| (each.name, each, false));
                let floor = measure.has_floor.then_some((FLOOR, glibc, true));
                let part: Vec<_> = part.chain(floor).collect();
                let visits = if measure.kind.is_loop() { self.amounts.loop_visits } else { 1 };
                for turn in 0..part.len() * visits {
                    // Another one begins each time.
                    let begins = round * visits + turn / part.len();
                    let (name, contender, floor) = part[(turn + begins) % part.len()];
                    let step = format!("round {} of {}: {}, {name}", round + 1, self.amounts.rounds, measure.key());
                    self.progress.show(&step);
                    // Who failed once has no figure any more, and some failures take long.
                    let outcome = if results.failed(&measure.key(), name) {
                        None
                    } else {
                        let outcome = self.visit(measure, contender, floor, round);
                        outcome.map_err(|reason| note(results, name, &measure.key(), reason)).ok()
                    };
                    let row = results.outcomes.entry(measure.key()).or_default();
                    row.entry(name.to_owned()).or_default().push(outcome);
                }
            }
        }
        self.progress.clear();
    }

    /// Counts once what each workload has live at its peak; it is made so that this does not depend on the allocator.
    fn count_live(&self, measures: &[Measure], glibc: &Contender, results: &mut Results) {
        for measure in measures.iter().filter(|measure| measure.kind == Kind::Workload) {
            self.progress.show(&format!("counting live bytes: {}", measure.name));
            let arguments = self.arguments(measure, self.amounts.workload_millis, 0);
            match self.outcome(glibc, Program::Live, &arguments) {
                Ok(outcome) => {
                    results.live.extend(outcome.peak_live.map(|live| (measure.name.clone(), live)));
                }
                Err(reason) => note(results, GLIBC, &measure.key(), reason),
            }
        }
    }

    /// What is random is something else in each round, and the same for all who take part, so that no one sequence decides.
    fn arguments(&self, measure: &Measure, millis: u64, round: usize) -> Vec<String> {
        let mut arguments = vec![measure.name.clone(), "--millis".to_owned(), millis.to_string()];
        arguments.extend(["--divisor".to_owned(), self.amounts.divisor.to_string()]);
        arguments.extend(["--seed".to_owned(), (round + 1).to_string()]);
        arguments.extend(["--texts".to_owned(), self.texts.display().to_string()]);
        arguments
    }

    fn visit(&self, measure: &Measure, contender: &Contender, floor: bool, round: usize) -> Result<Outcome, String> {
        let millis = match measure.kind {
            Kind::Loop | Kind::Calls | Kind::Constant => self.amounts.loop_millis,
            Kind::Workload | Kind::Memory => self.amounts.workload_millis,
            Kind::Latency => self.amounts.latency_millis,
            Kind::Hello => return self.hello(measure, contender),
        };
        let mut arguments = self.arguments(measure, millis, round);
        if measure.kind == Kind::Calls {
            arguments.push("--calls".to_owned());
        }
        if floor {
            arguments.push("--floor".to_owned());
        }
        self.outcome(contender, measure.program(contender), &arguments)
    }

    /// Starts a hello-world again and again; the time is that of all of them. One more tells its memory.
    fn hello(&self, measure: &Measure, contender: &Contender) -> Result<Outcome, String> {
        let program = measure.program(contender);
        let mut time = Duration::ZERO;
        for _ in 0..self.amounts.hellos {
            time += self.start(contender, program, &[], Duration::ZERO)?.time;
        }
        let told = self.start(contender, program, &["memory".to_owned()], Duration::ZERO)?.text;
        let peak = told.lines().nth(1).and_then(|line| line.parse().ok());
        Ok(Outcome {
            operations: u64::from(self.amounts.hellos),
            nanoseconds: time.as_nanos() as f64,
            peak_rss_kib: peak.ok_or_else(|| format!("printed {told:?}"))?,
            ..Outcome::default()
        })
    }

    fn outcome(&self, contender: &Contender, program: Program, arguments: &[String]) -> Result<Outcome, String> {
        parse(&self.start(contender, program, arguments, Duration::ZERO)?)
    }

    /// What the child of a contender answers to something that takes so long.
    pub(crate) fn ask<T: DeserializeOwned>(
        &self,
        contender: &Contender,
        arguments: &[String],
        takes: Duration,
    ) -> Result<T, String> {
        parse(&self.start(contender, Program::Child, arguments, takes)?)
    }

    /// Runs a program of a contender to its end, of which is known how long it takes at least.
    fn start(
        &self,
        contender: &Contender,
        program: Program,
        arguments: &[String],
        takes: Duration,
    ) -> Result<Printed, String> {
        let path = self.programs.path(contender, program);
        let mut command = Command::new(&path);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What the shell has set for some allocator must not reach any of them here.
        for variable in ["LD_PRELOAD", "GLIBC_TUNABLES", "RSEQ_ALLOC", "MALLOC_CONF", "_RJEM_MALLOC_CONF"] {
            command.env_remove(variable);
        }
        command.envs(contender.environment.iter().copied());
        if let Some(library) = contender.preload {
            command.env("LD_PRELOAD", library.find(&self.programs.library())?);
        }
        let begun = Instant::now();
        let child = command.spawn().map_err(|error| format!("cannot start {}: {error}", path.display()))?;
        let id = child.id();
        let (sender, receiver) = mpsc::channel();
        let waiter = thread::spawn(move || sender.send((child.wait_with_output(), begun.elapsed())));
        let (ended, late) = match receiver.recv_timeout(takes + LIMIT) {
            Ok(ended) => (Ok(ended), false),
            Err(_) => {
                // SAFETY: a plain system call; the child is not waited for yet, so the id is still its own.
                unsafe { libc::kill(id.cast_signed(), libc::SIGKILL) };
                (receiver.recv(), true)
            }
        };
        _ = waiter.join();
        let (output, time) = ended.map_err(|error| error.to_string())?;
        let output = output.map_err(|error| error.to_string())?;
        if late {
            return Err(format!("not done after {} s", (takes + LIMIT).as_secs()));
        }
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            return Err(format!("{}: {said}", output.status));
        }
        Ok(Printed { text: String::from_utf8_lossy(&output.stdout).trim().to_owned(), time })
    }
}

fn parse<T: DeserializeOwned>(printed: &Printed) -> Result<T, String> {
    serde_json::from_str(&printed.text).map_err(|error| format!("printed {:?}: {error}", printed.text))
}

/// Notes a failure, once for a contender and measure.
pub(crate) fn note(results: &mut Results, contender: &str, key: &str, reason: String) {
    let is_same = |problem: &Problem| problem.contender == contender && problem.measure.as_deref() == Some(key);
    if results.problems.iter().any(is_same) {
        return;
    }
    // The same with other numbers of threads is the same.
    let known = KNOWN.iter().find(|known| known.0 == contender && key.split('/').next() == Some(known.1));
    let reason = known.map_or(reason.clone(), |known| format!("{reason} (known: {})", known.2));
    let (contender, measure) = (contender.to_owned(), Some(key.to_owned()));
    results.problems.push(Problem { contender, measure, reason, known: known.is_some() });
}

fn machine() -> Machine {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let information = read("/proc/cpuinfo");
    let processor = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let load = read("/proc/loadavg");
    Machine {
        cpus: bench_workloads::crew::cpus(),
        processor: processor.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
        kernel: read("/proc/sys/kernel/osrelease"),
        load: load.split_whitespace().next().unwrap_or("unknown").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_noted_once_and_known_ones_are_marked() {
        let mut results = Results::default();
        note(&mut results, "rpmalloc", "parked", "signal 11".to_owned());
        note(&mut results, "rpmalloc", "parked", "signal 6".to_owned());
        note(&mut results, "rpmalloc", "parked/5000", "signal 6".to_owned());
        note(&mut results, "jemalloc", "parked", "signal 6".to_owned());
        let told: Vec<_> = results.problems.iter().map(|problem| (problem.contender.as_str(), problem.known)).collect();
        assert_eq!(told, [("rpmalloc", true), ("rpmalloc", true), ("jemalloc", false)]);
    }
}
