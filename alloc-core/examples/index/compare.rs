//! Both allocators in turn, each run in a process of its own.
//!
//! The program starts itself again with `--summary`, first once on each allocator unmeasured, so that all files are in
//! the page cache, and then in interleaved rounds whose order alternates: whatever else the machine does hits both.

use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::allocator::Choice;
use crate::{Error, Options};

/// What one run found and needed. Its text form is one line of `name=value` pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) elapsed_us: u64,
    pub(crate) peak_rss_kib: u64,
    pub(crate) words: u64,
    pub(crate) postings: u64,
    pub(crate) checksum: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { elapsed_us, peak_rss_kib, words, postings, checksum } = self;
        write!(
            f,
            "elapsed_us={elapsed_us} peak_rss_kib={peak_rss_kib} words={words} postings={postings} checksum={checksum}"
        )
    }
}

impl Summary {
    fn parse(line: &str) -> Option<Self> {
        let value = |name: &str| -> Option<u64> {
            let mut pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name)?.1.parse().ok()
        };
        Some(Summary {
            elapsed_us: value("elapsed_us")?,
            peak_rss_kib: value("peak_rss_kib")?,
            words: value("words")?,
            postings: value("postings")?,
            checksum: value("checksum")?,
        })
    }

    /// Everything that must not depend on the allocator.
    fn result(&self) -> (u64, u64, u64) {
        (self.words, self.postings, self.checksum)
    }
}

/// Runs and compares; a different result on the two allocators is an error.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let mut output = std::io::stdout().lock();
    let threads = options.thread_count();
    writeln!(output, "{} rounds with {threads} threads, after one unmeasured run on each allocator", options.rounds)?;
    let expected = child(options, Choice::System)?.result();
    let mut runs: [Vec<Summary>; 2] = Default::default();
    check(expected, &child(options, Choice::Rseq)?)?;

    for round in 0..options.rounds {
        let mut order = [(0, Choice::Rseq), (1, Choice::System)];
        if round % 2 == 1 {
            order.reverse();
        }
        for (slot, choice) in order {
            let summary = child(options, choice)?;
            check(expected, &summary)?;
            runs[slot].push(summary);
        }
        if let [Some(rseq), Some(system)] = [runs[0].last(), runs[1].last()] {
            writeln!(
                output,
                "round {:2}: rseq {:8.1} ms {:7.1} MiB   system {:8.1} ms {:7.1} MiB",
                round + 1,
                milliseconds(rseq.elapsed_us),
                mebibytes(rseq.peak_rss_kib),
                milliseconds(system.elapsed_us),
                mebibytes(system.peak_rss_kib)
            )?;
            output.flush()?;
        }
    }

    let [time, system_time] = [0, 1].map(|slot| median(&runs[slot], |run| run.elapsed_us));
    let [memory, system_memory] = [0, 1].map(|slot| median(&runs[slot], |run| run.peak_rss_kib));
    let (words, postings, checksum) = expected;
    writeln!(output, "\nmedians          rseq      system   rseq/system")?;
    let (left, right) = (milliseconds(time), milliseconds(system_time));
    writeln!(output, "time      {left:8.1} ms {right:8.1} ms   {:11.2}", left / right)?;
    let (left, right) = (mebibytes(memory), mebibytes(system_memory));
    writeln!(output, "peak RSS {left:8.1} MiB {right:7.1} MiB   {:11.2}", left / right)?;
    writeln!(output, "the same result in every run: {words} words, {postings} postings, checksum {checksum:016x}")?;
    Ok(())
}

fn check((words, postings, checksum): (u64, u64, u64), summary: &Summary) -> Result<(), Error> {
    if summary.result() == (words, postings, checksum) {
        return Ok(());
    }
    Err(Error::Message(format!(
        "the results differ: {words} words, {postings} postings, checksum {checksum:016x} in the first run, now {summary} \
         (did a file change meanwhile?)"
    )))
}

/// Runs this program once on the chosen allocator.
fn child(options: &Options, choice: Choice) -> Result<Summary, Error> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["--allocator", &choice.to_string(), "--summary", "--threads"]);
    command.arg(options.thread_count().to_string());
    for query in &options.query {
        command.arg(format!("--query={query}"));
    }
    command.arg("--").args(&options.paths);
    let finished = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start the run on {choice}: {error}"))?;
    let printed = String::from_utf8_lossy(&finished.stdout);
    match Summary::parse(&printed) {
        Some(summary) if finished.status.success() => Ok(summary),
        _ => Err(Error::Message(format!("the run on {choice} failed: {}", finished.status))),
    }
}

/// The middle value, or the mean of the two middle ones.
fn median(runs: &[Summary], value: impl Fn(&Summary) -> u64) -> u64 {
    let mut values: Vec<u64> = runs.iter().map(value).collect();
    values.sort_unstable();
    match values.len() {
        0 => 0,
        n if n % 2 == 1 => values[n / 2],
        n => values[n / 2 - 1].midpoint(values[n / 2]),
    }
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}

fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}
