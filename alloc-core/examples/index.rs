//! An inverted index over every text file below some directories, built by many threads at once.
//!
//!     cargo run --release -p alloc-core --example index -- --query "thread local" DIRECTORY...
//!
//! Threads take files one after another, split them into words and collect postings (document, line numbers) in maps of
//! their own. Every so often they hand these maps over to the shards of the common index, cut up by the words' hashes,
//! and whichever thread finds a shard free merges what has arrived there. So strings, hash tables and growing vectors
//! are allocated by one thread and freed by another all the time: the work an allocator is chosen for.
//!
//! The result does not depend on the threads' timing, so its checksum is the same on every run, with any number of
//! threads and on either allocator; `--compare` runs both in child processes and checks that, beside time and memory.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

#[path = "index/allocator.rs"]
mod allocator;
#[path = "index/compare.rs"]
mod compare;
#[path = "index/corpus.rs"]
mod corpus;
#[path = "index/inverted.rs"]
mod inverted;
#[path = "index/query.rs"]
mod query;

use allocator::{Choice, Chosen};
use compare::Summary;
use corpus::Corpus;
use inverted::Index;

/// The allocator of this program. One that offers no choice would only say
/// `static GLOBAL: alloc_core::RseqAlloc = alloc_core::RseqAlloc::new();`.
#[global_allocator]
static GLOBAL: Chosen = Chosen::new();

/// Builds and queries an inverted index over the text files below some directories.
#[derive(Parser)]
#[command(name = "index", version)]
struct Options {
    /// Directories and files to index [default: this workspace and the sources in cargo's registry]
    paths: Vec<PathBuf>,

    /// Threads that read and merge [default: twice the CPUs]
    #[arg(long, short, value_parser = clap::value_parser!(u16).range(1..=4096))]
    threads: Option<u16>,

    /// Words that a document must contain, all of them; may be given several times [default: some frequent words]
    #[arg(long, short)]
    query: Vec<String>,

    /// How many words and documents to print in each list
    #[arg(long, default_value_t = 10)]
    top: usize,

    /// Which allocator this process runs on
    #[arg(long, value_enum, default_value_t = Choice::Rseq)]
    allocator: Choice,

    /// Run on both allocators in turn and print the ratios of time and memory
    #[arg(long, conflicts_with = "allocator")]
    compare: bool,

    /// Measured runs on each allocator for --compare
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Print nothing but one line of results, for --compare
    #[arg(long, hide = true)]
    summary: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = if options.compare { compare::run(&options) } else { run(&options) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough, as in `… | head`.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("index: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What can stop the program.
enum Error {
    /// The output cannot be written.
    Output(io::Error),
    /// Anything else, in words.
    Message(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Output(error)
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Error::Message(message)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Output(error) => write!(f, "cannot write: {error}"),
            Error::Message(message) => f.write_str(message),
        }
    }
}

impl Options {
    /// How many threads to build with.
    fn thread_count(&self) -> usize {
        self.threads
            .map_or_else(|| 2 * std::thread::available_parallelism().map_or(1, |count| count.get()), usize::from)
    }
}

/// Prints phases as they end, with their times.
struct Phases<'a> {
    output: &'a mut dyn Write,
    begun: Instant,
    times: Vec<(&'static str, Duration)>,
}

impl Phases<'_> {
    fn end(&mut self, name: &'static str, what: &str) -> io::Result<()> {
        let elapsed = self.begun.elapsed();
        self.times.push((name, elapsed));
        writeln!(self.output, "{name:>8} {:9.1} ms  {what}", milliseconds(elapsed))?;
        self.output.flush()?;
        self.begun = Instant::now();
        Ok(())
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn run(options: &Options) -> Result<(), Error> {
    if GLOBAL.in_use() != options.allocator {
        return Err(Error::Message(format!(
            "--allocator {} was not seen before main; write it as `--allocator NAME` or `--allocator=NAME`",
            options.allocator
        )));
    }
    let mut stdout = io::stdout().lock();
    let mut nowhere = io::sink();
    let output: &mut dyn Write = if options.summary { &mut nowhere } else { &mut stdout };

    let threads = options.thread_count();
    let begun = Instant::now();
    let mut phases = Phases { output, begun, times: Vec::new() };

    let corpus = Corpus::find(&options.paths)?;
    phases.end("find", &format!("{} files", corpus.len()))?;

    let built = inverted::build(&corpus, threads)?;
    let read = &built.read;
    phases.end(
        "read",
        &format!(
            "{} documents, {:.1} MiB, {} words by {threads} threads; skipped: {} not UTF-8, {} too large, {} unreadable",
            read.documents,
            read.bytes as f64 / f64::from(1 << 20),
            read.words,
            read.not_text,
            read.too_large,
            read.unreadable,
        ),
    )?;
    let read_words = read.words;

    let shards = built.merge(threads)?;
    phases.end("merge", "what was still waiting at the shards")?;

    let index = Index::sort(shards, threads)?;
    phases.end("sort", &format!("{} different words, {} postings", index.len(), index.postings()))?;
    if index.occurrences() != read_words {
        return Err(Error::Message(format!(
            "{read_words} words were read but {} are in the index",
            index.occurrences()
        )));
    }

    let top = index.top(options.top);
    let queries = if options.query.is_empty() { query::built_in(&index) } else { options.query.clone() };
    let answers: Vec<_> = queries.iter().map(|text| query::answer(&index, text)).collect();
    phases.end("query", &format!("{} queries", queries.len()))?;

    let checksum = index.checksum();
    phases.end("checksum", &format!("{checksum:016x}"))?;
    let elapsed = begun.elapsed();
    let output = phases.output;

    writeln!(output, "\nmost frequent words")?;
    for (word, entry) in top {
        writeln!(output, "{:>10}  {word} (in {} documents)", entry.occurrences(), entry.documents())?;
    }
    for (text, answer) in queries.iter().zip(&answers) {
        writeln!(output, "\nquery \"{text}\": {} documents", answer.len())?;
        for hit in answer.iter().take(options.top) {
            writeln!(output, "{:10.2}  {}:{}", hit.score, corpus.path(hit.document).display(), hit.line)?;
        }
    }

    let peak = peak_rss_kib().unwrap_or(0);
    writeln!(output, "\nelapsed   {:.1} ms", milliseconds(elapsed))?;
    writeln!(output, "peak RSS  {:.1} MiB", peak as f64 / 1024.0)?;
    match options.allocator {
        Choice::Rseq => writeln!(output, "allocator rseq: {}; {}", alloc_core::mode(), alloc_core::stats())?,
        Choice::System => writeln!(output, "allocator system")?,
    }
    output.flush()?;

    if options.summary {
        let summary = Summary {
            elapsed_us: elapsed.as_micros() as u64,
            peak_rss_kib: peak,
            words: index.len() as u64,
            postings: index.postings(),
            checksum,
        };
        // Freeing the index belongs to a program's life, but no reader waits for it: it is outside the time.
        drop(index);
        writeln!(stdout, "{summary}")?;
    } else if stdout.is_terminal() && options.query.is_empty() {
        writeln!(stdout, "(try --query \"word word\", --compare, or directories of your own)")?;
    }
    Ok(())
}

/// The most memory this process ever had resident, in KiB: `VmHWM` of
/// [proc_pid_status(5)](https://man7.org/linux/man-pages/man5/proc_pid_status.5.html).
fn peak_rss_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
