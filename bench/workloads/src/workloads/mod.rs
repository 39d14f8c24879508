//! What programs do, each in a process of its own, for a span of time. What each models and counts stands at the top of
//! its file.
//!
//! A workload whose frame costs something itself can also run on [`Places`], which are no allocator: its floor.

pub mod batches;
pub mod calloc;
pub mod churn;
pub mod free_only;
pub mod hash_map;
pub mod json;
pub mod large_replace;
pub mod many_to_many;
pub mod parked;
pub mod producer_consumer;
pub mod realloc_steps;
pub mod regexes;
pub mod replace;
pub mod server;
pub mod stealing;
pub mod survivors;

use std::fmt;
use std::path::PathBuf;

use crate::blocks::{Block, Random, Shape, Sizes, Subject, Uniform};
use crate::crew::{Pace, Span, cpus};
use crate::subjects::{FIXED, FORGOTTEN, Global, PLACES, Places};

/// How a workload is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For how long.
    pub span: Span,
    /// Numbers of threads that park, and of blocks that live, are divided by this: 1, or more for a trial.
    pub divisor: usize,
    /// What random replacements begin with: the same for the same.
    pub seed: usize,
    /// Where the files are that the workloads on real text read: see [`json::FILE`] and [`regexes::FILE`].
    pub texts: PathBuf,
}

impl Settings {
    /// A number that may be made smaller for a trial.
    fn scaled(&self, full: usize) -> usize {
        (full / self.divisor).max(1)
    }

    /// What a thread's begin with.
    fn seed_of(&self, thread: usize) -> usize {
        self.seed * 1000 + thread
    }
}

/// What a workload found.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What it counted.
    pub pace: Pace,
    /// Resident memory at its end, where the workload asks for it.
    pub rss_kib: Option<u64>,
}

impl From<Pace> for Report {
    fn from(pace: Pace) -> Self {
        Report { pace, rss_kib: None }
    }
}

/// What can go wrong, in words.
pub type Outcome = Result<Report, String>;

type Run = Box<dyn Fn(&Settings) -> Outcome>;

/// One of them.
pub struct Workload {
    /// Names it everywhere.
    pub name: String,
    /// What an operation is.
    pub operation: &'static str,
    /// Whether the time of calls is of interest; where a process has thousands of threads it is not.
    pub timed_calls: bool,
    run: Run,
    floor: Option<Run>,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Workload {
    fn new(name: impl Into<String>, operation: &'static str, run: impl Fn(&Settings) -> Outcome + 'static) -> Self {
        Workload { name: name.into(), operation, timed_calls: true, run: Box::new(run), floor: None }
    }

    fn above(mut self, floor: impl Fn(&Settings) -> Outcome + 'static) -> Self {
        self.floor = Some(Box::new(floor));
        self
    }

    /// Whether its frame costs something that has to be measured by itself.
    pub fn has_floor(&self) -> bool {
        self.floor.is_some()
    }

    /// Runs it on the program's own allocator, or its frame on none.
    ///
    /// # Errors
    ///
    /// In words, if a file or a thread is not to be had, or there is no floor.
    pub fn run(&self, settings: &Settings, floor: bool) -> Outcome {
        match (floor, &self.floor) {
            (false, _) => (self.run)(settings),
            (true, Some(frame)) => frame(settings),
            (true, None) => Err(format!("{} has no floor", self.name)),
        }
    }
}

/// How many threads there are for each CPU where more threads than CPUs are the point.
pub const CROWDS: [usize; 3] = [2, 8, 32];

/// All of them.
pub fn all() -> Vec<Workload> {
    let mut all = vec![
        Workload::new("server", "replacement", |settings| server::run(Global, settings)),
        of_sizes("producer-consumer/64", || Uniform::new(64), producer_consumer::run, producer_consumer::run),
        of_sizes("producer-consumer/mixed", Sizes::small, producer_consumer::run, producer_consumer::run),
        of_sizes("many-to-many", Sizes::small, many_to_many::run, many_to_many::run),
        Workload::new("free-only", "block", |settings| free_only::run(Global, settings)),
        Workload::new("batches", "block", |settings| batches::run(Global, settings)),
        Workload {
            timed_calls: false,
            ..Workload::new("churn", "thread", |settings| churn::run(Global, settings))
                .above(|settings| churn::run(FIXED, settings))
        },
    ];
    for crowd in CROWDS {
        all.push(
            Workload::new(format!("stealing/{crowd}x"), "task", move |settings| {
                stealing::run(Global, crowd * cpus(), settings)
            })
            .above(move |settings| stealing::run(FIXED, crowd * cpus(), settings)),
        );
    }
    let mut replacing = vec![("replace/1x".to_owned(), cpus()), ("replace/16".to_owned(), 16)];
    replacing.extend(CROWDS.map(|crowd| (format!("replace/{crowd}x"), crowd * cpus())));
    for (name, threads) in replacing {
        all.push(Workload::new(name, "replacement", move |settings| replace::run(Global, threads, settings)));
    }
    all.extend([
        Workload::new("survivors", "block", |settings| survivors::run(Global, settings)),
        Workload {
            timed_calls: false,
            ..Workload::new("parked", "thread", |settings| parked::run(Global, settings)).above(parked::run_floor)
        },
        Workload::new("realloc-steps", "buffer", |settings| realloc_steps::run(Global, settings)),
        Workload::new("calloc", "block", |settings| calloc::run(Global, settings)),
        Workload::new("large-replace", "replacement", |settings| large_replace::run(Global, settings)),
        Workload::new("json", "document", json::run),
        Workload::new("regex", "line", regexes::run),
        Workload::new("hash-map", "insertion", hash_map::run),
    ]);
    all
}

fn of_sizes<S: Shape>(
    name: &str,
    sizes: impl Fn() -> S + Copy + 'static,
    run: fn(Global, S, &Settings) -> Outcome,
    floor: fn(Places<PLACES>, S, &Settings) -> Outcome,
) -> Workload {
    Workload::new(name, "block", move |settings| run(Global, sizes(), settings))
        .above(move |settings| floor(FORGOTTEN, sizes(), settings))
}

/// The workload of that name: one of all, or parked threads in another number (`parked/64`).
pub fn find(name: &str) -> Option<Workload> {
    all().into_iter().find(|workload| workload.name == name).or_else(|| parked::of(name))
}

/// Blocks that are live at random places, of which one at a time is replaced.
#[derive(Debug)]
struct Slots<A: Subject, S> {
    allocator: A,
    shape: S,
    random: Random,
    slots: Vec<Block>,
}

impl<A: Subject, S: Shape> Slots<A, S> {
    fn new(allocator: A, shape: S, seed: usize, length: usize) -> Self {
        let slots = (0..length).map(|index| Block::new(allocator, shape.layout(seed + index))).collect();
        Slots { allocator, shape, random: Random::new(seed as u64 + 1), slots }
    }

    /// Frees one, chosen at random, and allocates another in its place.
    #[inline]
    fn replace(&mut self) -> &mut Block {
        let random = self.random.next();
        let place = (((random >> 32) * self.slots.len() as u64) >> 32) as usize;
        let new = Block::new(self.allocator, self.shape.layout(random as usize));
        std::mem::replace(&mut self.slots[place], new).free(self.allocator);
        &mut self.slots[place]
    }

    fn free(self) {
        for block in self.slots {
            block.free(self.allocator);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    fn settings() -> Settings {
        // Real text, though little: what is here.
        let texts = std::env::temp_dir().join(format!("bench-workloads-{}", std::process::id()));
        fs::create_dir_all(&texts).unwrap();
        fs::write(texts.join(regexes::FILE), include_str!("mod.rs")).unwrap();
        fs::write(texts.join(json::FILE), r#"{"packages":[{"name":"a","keywords":["b",1,null]},{"name":"c"}]}"#)
            .unwrap();
        Settings { span: Span::new(Duration::from_millis(15)), divisor: 100, seed: 1, texts }
    }

    #[test]
    fn every_workload_counts_something() {
        let settings = settings();
        for workload in all() {
            for floor in [false, true] {
                if floor && !workload.has_floor() {
                    assert!(workload.run(&settings, true).is_err());
                    continue;
                }
                // With much else to do, a machine may not get to a thread's first operation in the shortest span.
                let counts = [15, 150, 1500].map(Duration::from_millis).into_iter().any(|length| {
                    let settings = Settings { span: Span::new(length), ..settings.clone() };
                    let report = workload.run(&settings, floor).unwrap_or_else(|error| panic!("{workload:?}: {error}"));
                    report.pace.operations > 0
                });
                assert!(counts, "{workload:?}, floor: {floor}");
            }
        }
        fs::remove_dir_all(&settings.texts).unwrap();
    }

    #[test]
    fn names_differ_and_are_found() {
        let mut names: Vec<String> = all().into_iter().map(|workload| workload.name).collect();
        assert!(names.iter().all(|name| find(name).is_some_and(|found| found.name == *name)));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all().len());
        assert!(find("nothing").is_none() && find("parked/0").is_none());
    }

    #[test]
    fn parked_threads_come_in_any_number() {
        let settings =
            Settings { span: Span::new(Duration::from_millis(1)), divisor: 1, seed: 1, texts: PathBuf::new() };
        let counted = find("parked/7").unwrap().run(&settings, false).unwrap();
        assert!(counted.pace.operations == 7 && counted.rss_kib.is_some_and(|kib| kib > 0));
    }
}
