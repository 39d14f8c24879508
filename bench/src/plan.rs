//! What is measured, and by whom.

use bench_workloads::crew::cpus;
use bench_workloads::loops::Loop;
use bench_workloads::workloads;

use crate::contenders::{Contender, GLIBC, Group};
use crate::programs::Program;

/// How a measure is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A loop, in the default release profile.
    Loop,
    /// A loop that calls `malloc` and `free` as programs in C do, whose time is mostly that of the calls.
    Calls,
    /// A loop with constant layouts and fat LTO.
    Constant,
    /// A workload, for throughput and memory.
    Workload,
    /// A workload with the clock around every call.
    Latency,
    /// A workload for the memory that it ends with.
    Memory,
    /// The start and the end of a process.
    Hello,
}

impl Kind {
    /// Whether it is a loop, which is short and has no program of its own for calls and live bytes.
    pub(crate) fn is_loop(self) -> bool {
        matches!(self, Kind::Loop | Kind::Calls | Kind::Constant)
    }
}

/// One row.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    pub(crate) kind: Kind,
    /// As the programs know it.
    pub(crate) name: String,
    /// What an operation is.
    pub(crate) operation: &'static str,
    pub(crate) has_floor: bool,
}

impl Measure {
    /// What results are kept under: kinds share names.
    pub(crate) fn key(&self) -> String {
        key(self.kind, &self.name)
    }

    /// The program that it runs in.
    pub(crate) fn program(&self, contender: &Contender) -> Program {
        match self.kind {
            Kind::Loop | Kind::Calls | Kind::Workload | Kind::Memory => Program::Child,
            Kind::Constant => Program::Constant,
            Kind::Latency => Program::Latency,
            Kind::Hello if contender.group == Group::Preloaded => Program::Hello,
            Kind::Hello => Program::StaticHello,
        }
    }

    /// Whether this contender takes part.
    pub(crate) fn is_for(&self, contender: &Contender) -> bool {
        match self.kind {
            Kind::Loop | Kind::Workload | Kind::Latency | Kind::Memory => true,
            // Preloaded libraries are never inlined, and forcing a mode changes nothing about inlining.
            Kind::Constant => contender.group == Group::Crates,
            Kind::Calls => contender.group == Group::Preloaded || contender.name == GLIBC,
            Kind::Hello => contender.group != Group::Forced,
        }
    }
}

/// See [`Measure::key`].
pub(crate) fn key(kind: Kind, name: &str) -> String {
    match kind {
        Kind::Loop | Kind::Workload | Kind::Memory | Kind::Hello => name.to_owned(),
        Kind::Calls => format!("c {name}"),
        Kind::Constant => format!("lto {name}"),
        Kind::Latency => format!("latency {name}"),
    }
}

/// The workload that has 16 threads, which is another's twin where 8 threads for each CPU are as many.
pub(crate) fn sixteen_threads() -> &'static str {
    if cpus() == 2 { "replace/8x" } else { "replace/16" }
}

/// Everything whose name has one of the texts of `only` in it, or just everything if there are none, and none of `without`.
pub(crate) fn all<T: AsRef<str>>(only: &[T], without: &[T]) -> Vec<Measure> {
    let mut all = Vec::new();
    for each in Loop::all() {
        // The workloads have producers and consumers, too.
        if each.has_floor() {
            continue;
        }
        let name = each.to_string();
        let measure = Measure { kind: Kind::Loop, name, operation: "block", has_floor: false };
        let constant = matches!(each, Loop::Pairs(_) | Loop::Bursts(..) | Loop::Together(..));
        if matches!(each, Loop::Pairs(_)) {
            all.push(Measure { kind: Kind::Calls, has_floor: true, ..measure.clone() });
        }
        if constant {
            all.push(Measure { kind: Kind::Constant, ..measure.clone() });
        }
        all.push(measure);
    }
    for workload in workloads::all() {
        if workload.name == "replace/16" && sixteen_threads() != "replace/16" {
            continue;
        }
        let (name, operation, has_floor) = (workload.name.clone(), workload.operation, workload.has_floor());
        let measure = Measure { kind: Kind::Workload, name, operation, has_floor };
        if workload.timed_calls {
            all.push(Measure { kind: Kind::Latency, has_floor: false, ..measure.clone() });
        }
        all.push(measure);
    }
    let hello = "hello".to_owned();
    all.push(Measure { kind: Kind::Hello, name: hello, operation: "process", has_floor: false });
    // Kinds one after the other, for those who watch.
    all.sort_by_key(|measure| measure.kind as u8);
    let has_one = |measure: &Measure, texts: &[&str]| texts.iter().any(|text| measure.key().contains(text));
    let (only, without) = (texts(only), texts(without));
    all.retain(|measure| (only.is_empty() || has_one(measure, &only)) && !has_one(measure, &without));
    all
}

fn texts<T: AsRef<str>>(texts: &[T]) -> Vec<&str> {
    texts.iter().map(AsRef::as_ref).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ() {
        let mut keys: Vec<String> = all(&[""], &[]).iter().map(Measure::key).collect();
        keys.sort();
        let length = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), length);
        assert!(keys.iter().any(|key| key == sixteen_threads()));
    }

    #[test]
    fn measures_are_selected_by_a_part_of_their_names() {
        let keys: Vec<String> = all(&["pairs/64"], &[]).iter().map(Measure::key).collect();
        assert_eq!(keys, ["pairs/64", "c pairs/64", "lto pairs/64"]);
        assert!(all(&["latency json"], &[]).len() == 1 && all(&["no such"], &[]).is_empty());
        assert_eq!(all(&["latency json", "bursts/1000/lifo"], &[]).len(), 3);
        let keys: Vec<String> = all(&["pairs/64"], &["lto", "c "]).iter().map(Measure::key).collect();
        assert_eq!(keys, ["pairs/64"]);
    }
}
