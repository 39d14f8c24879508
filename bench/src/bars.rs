//! The bars: what this allocator promises in comparison with the best of the others, and whether a run shows it.
//!
//! A ratio is the median of those of the single visits, in which both were measured within seconds, to the peer with
//! which it is worst; its spread is their range. So a neighbour that comes and goes for minutes weighs on both sides of
//! each. Where several measures count together, the ratio to a peer is the geometric mean over the measures that both
//! finished.

use bench_workloads::outcome::Outcome;
use bench_workloads::workloads;

use crate::contenders::{self, Contender, GLIBC, Group, OURS, OURS_ARENAS, OURS_CPU_ID, OURS_PRELOADED, Role};
use crate::plan::{Kind, key, sixteen_threads};
use crate::results::{FLOOR, Results};
use crate::statistics::{above, geometric_mean, median, range};

/// A bar and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) most: f64,
    /// None if it could not be judged: nothing was measured, or this allocator failed.
    pub(crate) found: Option<Comparison>,
}

impl Bar {
    pub(crate) fn holds(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.ratio <= self.most)
    }
}

/// How this allocator stands to the peer with which it stands worst.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) ratio: f64,
    /// The least and the greatest ratio of a visit or round.
    pub(crate) spread: (f64, f64),
    pub(crate) peer: String,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Time of an operation, above the floor if there is one.
    Time,
    /// Resident memory at the end, above the floor.
    Resident,
    /// Peak of resident memory over live bytes.
    Memory,
}

/// The values of a contender's rounds, above the floor where there is one.
pub(crate) fn values(results: &Results, figure: Figure, measure: &str, contender: &str) -> Option<Vec<f64>> {
    let value = match figure {
        Figure::Time => Outcome::per_operation,
        Figure::Resident => |outcome: &Outcome| outcome.rss_kib.map_or(f64::NAN, |kib| kib as f64),
        Figure::Memory => return results.memory(measure, contender),
    };
    let values = results.values(measure, contender, value)?;
    Some(match results.median(measure, FLOOR, value) {
        Some(floor) => values.into_iter().map(|value| above(value, floor)).collect(),
        None => values,
    })
}

/// Compares over all the measures.
pub(crate) fn compare(
    results: &Results,
    figure: Figure,
    measures: &[String],
    ours: &str,
    peers: &[&str],
) -> Option<Comparison> {
    let own: Vec<_> =
        measures.iter().filter_map(|measure| Some((measure, values(results, figure, measure, ours)?))).collect();
    // A measure that this allocator failed in must not just be left out.
    if own.is_empty() || measures.iter().any(|measure| results.failed(measure, ours)) {
        return None;
    }
    let with = |peer: &str| {
        let of_measure = |own: &[f64], measure: &String| -> Option<Vec<f64>> {
            Some(own.iter().zip(values(results, figure, measure, peer)?).map(|(own, other)| own / other).collect())
        };
        let ratios: Vec<Vec<f64>> = own.iter().filter_map(|(measure, own)| of_measure(own, measure)).collect();
        let ratio = geometric_mean(&ratios.iter().map(|ratios| median(ratios)).collect::<Vec<_>>());
        let visits = ratios.iter().map(Vec::len).min()?;
        let of_visit = |visit| geometric_mean(&ratios.iter().map(|ratios| ratios[visit]).collect::<Vec<_>>());
        let of_visits: Vec<f64> = (0..visits).map(of_visit).collect();
        Some(Comparison { ratio, spread: range(&of_visits), peer: peer.to_owned() })
    };
    let comparisons = peers.iter().filter(|peer| **peer != ours).filter_map(|peer| with(peer));
    comparisons.max_by(|one, other| one.ratio.total_cmp(&other.ratio))
}

/// Those that this allocator is judged against in a group; the C library is in both.
pub(crate) fn peers(contenders: &[Contender], group: Group) -> Vec<&'static str> {
    let of_group = |each: &&Contender| each.role == Role::Peer && (each.group == group || each.name == GLIBC);
    contenders.iter().filter(of_group).map(|each| each.name).collect()
}

const SMALL: [usize; 4] = [16, 64, 256, 1 << 10];
const ORDERS: [&str; 3] = ["lifo", "fifo", "random"];

/// Every bar for which something was measured.
pub(crate) fn all(results: &Results, contenders: &[Contender]) -> Vec<Bar> {
    let mut bars = Bars { results, linked: peers(contenders, Group::Crates), bars: Vec::new() };
    bars.loops();
    bars.workloads();
    bars.memory();
    bars.preloaded(&peers(contenders, Group::Preloaded));
    bars.forced();
    bars.bars
}

struct Bars<'a> {
    results: &'a Results,
    linked: Vec<&'static str>,
    bars: Vec<Bar>,
}

impl Bars<'_> {
    fn add(&mut self, name: String, most: f64, figure: Figure, measures: &[String], ours: &str, peers: &[&str]) {
        let measured = |measure: &String| {
            self.results.failed(measure, ours) || values(self.results, figure, measure, ours).is_some()
        };
        if !measures.iter().any(measured) {
            return;
        }
        let found = compare(self.results, figure, measures, ours, peers);
        self.bars.push(Bar { name, most, found });
    }

    /// A bar on one measure's time, against the crates.
    fn one(&mut self, name: &str, most: f64, kind: Kind, measure: &str) {
        let peers = self.linked.clone();
        self.add(name.to_owned(), most, Figure::Time, &[key(kind, measure)], OURS, &peers);
    }

    fn loops(&mut self) {
        for size in SMALL {
            let measure = format!("pairs/{size}");
            self.one(&format!("pairs, {}", bytes(size)), 1.0, Kind::Loop, &measure);
            self.one(&format!("pairs, {}, LTO and constant layouts", bytes(size)), 0.75, Kind::Constant, &measure);
        }
        for (size, most) in [(8 << 10, 1.0), (64 << 10, 1.0), (1 << 20, 1.5)] {
            self.one(&format!("pairs, {}", bytes(size)), most, Kind::Loop, &format!("pairs/{size}"));
        }
        for order in ORDERS {
            self.one(&format!("bursts of 1000, {order}"), 0.85, Kind::Loop, &format!("bursts/1000/{order}"));
        }
        self.one("random sizes over a live set", 1.0, Kind::Loop, "live-set");
        for order in ORDERS {
            let name = format!("bursts of 1000, {order}, on all CPUs");
            self.one(&name, 1.0, Kind::Loop, &format!("bursts-together/1000/{order}"));
        }
        self.one("Vec growth to 64 MiB", 1.0, Kind::Loop, "vec-growth");
        self.one("zeroed 1 MiB", 1.0, Kind::Loop, "zeroed/1048576");
    }

    fn workloads(&mut self) {
        for (name, most, measure) in [
            ("producer/consumer, 64 bytes, above the ring", 0.7, "producer-consumer/64"),
            ("producer/consumer, mixed sizes, above the ring", 0.7, "producer-consumer/mixed"),
            ("threads at 8x CPUs, random replace", 0.9, "replace/8x"),
            ("threads at 32x CPUs, random replace", 0.9, "replace/32x"),
            ("thread churn, above its floor", 1.0, "churn"),
            ("realloc in steps of 64 KiB", 1.5, "realloc-steps"),
            ("calloc of 8 MiB", 1.2, "calloc"),
            ("random replace of large blocks", 1.0, "large-replace"),
            ("2000 parked threads, time above the floor", 0.5, "parked"),
        ] {
            self.one(name, most, Kind::Workload, measure);
        }
    }

    fn memory(&mut self) {
        let peers = self.linked.clone();
        let name = "2000 parked threads, RSS above the floor".to_owned();
        self.add(name, 0.2, Figure::Resident, &["parked".to_owned()], OURS, &peers);
        let name = "peak RSS over live bytes, geometric mean".to_owned();
        self.add(name, 1.05, Figure::Memory, &all_workloads(), OURS, &peers);
    }

    fn preloaded(&mut self, peers: &[&str]) {
        for size in SMALL.into_iter().chain([8 << 10, 64 << 10]) {
            let name = format!("preloaded: pairs, {}, above the calls", bytes(size));
            self.add(name, 0.85, Figure::Time, &[key(Kind::Calls, &format!("pairs/{size}"))], OURS_PRELOADED, peers);
        }
        let name = "preloaded: the workloads, geometric mean".to_owned();
        self.add(name, 0.9, Figure::Time, &all_workloads(), OURS_PRELOADED, peers);
    }

    fn forced(&mut self) {
        let own_mode = self.results.contenders.iter().find(|(name, _)| name == OURS).map(|(_, found)| &found.mode);
        // Where the kernel has no concurrency ids there is nothing to compare cpu_id with.
        if own_mode.is_some_and(|mode| mode.as_ref().is_some_and(|mode| mode.starts_with("mm_cid"))) {
            let pairs: Vec<String> = SMALL.iter().map(|size| format!("pairs/{size}")).collect();
            let name = |what: &str| format!("cpu_id to mm_cid: {what}, geometric mean");
            self.add(name("pairs"), 1.1, Figure::Time, &pairs, OURS_CPU_ID, &[OURS]);
            self.add(name("the workloads"), 1.1, Figure::Time, &all_workloads(), OURS_CPU_ID, &[OURS]);
        }
        for size in SMALL {
            let name = format!("arenas to glibc: pairs, {}", bytes(size));
            self.add(name, 1.0, Figure::Time, &[format!("pairs/{size}")], OURS_ARENAS, &[GLIBC]);
        }
        let name = "arenas to jemalloc: 16 threads, random replace".to_owned();
        let peers: Vec<&str> = self.linked.iter().copied().filter(|peer| *peer == "jemalloc").collect();
        if !peers.is_empty() {
            self.add(name, 1.0, Figure::Time, &[sixteen_threads().to_owned()], OURS_ARENAS, &peers);
        }
    }
}

fn all_workloads() -> Vec<String> {
    workloads::all().into_iter().map(|workload| workload.name).collect()
}

fn bytes(size: usize) -> String {
    match size {
        0..1024 => format!("{size} bytes"),
        1024..0x10_0000 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}

/// The contender that stands for this allocator in a group's tables.
pub(crate) fn ours_in(group: Group) -> &'static str {
    match group {
        Group::Crates | Group::Forced => contenders::OURS,
        Group::Preloaded => OURS_PRELOADED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::with_times;

    fn one(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    #[test]
    fn the_best_peer_counts() {
        let times: &[(&str, &[f64])] =
            &[("rseq", &[4.0, 8.0, 6.0]), ("a", &[8.0, 16.0, 8.0]), ("b", &[5.0, 10.0, 5.0])];
        let results = with_times("pairs/16", times);
        let found = compare(&results, Figure::Time, &one("pairs/16"), "rseq", &["a", "b", "absent"]).unwrap();
        assert_eq!(found, Comparison { ratio: 0.8, spread: (0.8, 1.2), peer: "b".to_owned() });
    }

    #[test]
    fn times_are_compared_above_the_floor() {
        let results = with_times("churn", &[("rseq", &[12.0]), ("a", &[20.0]), (FLOOR, &[10.0])]);
        let found = compare(&results, Figure::Time, &one("churn"), "rseq", &["a"]).unwrap();
        assert_eq!(found.ratio, 0.2);
    }

    #[test]
    fn a_failure_of_ours_is_no_success_and_one_of_a_peer_no_obstacle() {
        let results = with_times("churn", &[("rseq", &[1.0, f64::NAN]), ("a", &[2.0, 2.0])]);
        assert_eq!(compare(&results, Figure::Time, &one("churn"), "rseq", &["a"]), None);
        let bars = all(&results, &contenders::all());
        // Its own bar and the mean of all workloads' memory.
        assert!(bars.len() == 2 && !bars.iter().any(Bar::holds), "{bars:?}");
        let results = with_times("churn", &[("rseq", &[1.0]), ("a", &[f64::NAN]), ("b", &[4.0])]);
        assert_eq!(compare(&results, Figure::Time, &one("churn"), "rseq", &["a", "b"]).unwrap().peer, "b");
    }

    #[test]
    fn several_measures_are_one_geometric_mean() {
        let mut results = with_times("server", &[("rseq", &[1.0]), ("a", &[2.0])]);
        results.outcomes.extend(with_times("json", &[("rseq", &[4.0]), ("a", &[2.0])]).outcomes);
        let found = compare(&results, Figure::Time, &all_workloads(), "rseq", &["a"]).unwrap();
        assert!((found.ratio - 1.0).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn there_is_a_bar_for_every_line_of_the_promise() {
        // Equal times everywhere: ratios of 1, so the bars are told apart by their limits.
        let names: Vec<&str> = contenders::all().iter().map(|each| each.name).collect();
        let times: Vec<(&str, &[f64])> = names.iter().map(|name| (*name, &[7.0][..])).collect();
        let mut results = Results::default();
        for measure in crate::plan::all(&[""], &[]) {
            results.outcomes.extend(with_times(&measure.key(), &times).outcomes);
        }
        results.idle_rss_kib = vec![2048.0];
        results.live = [("server".to_owned(), 2 << 20)].into();
        let mode = Some("mm_cid, registered by libc".to_owned());
        results.contenders =
            vec![(OURS.to_owned(), bench_workloads::outcome::Description { mode, ..Default::default() })];
        let bars = all(&results, &contenders::all());
        assert_eq!(bars.len(), 45);
        let held = bars.iter().filter(|bar| bar.holds()).count();
        let at_least_1 = bars.iter().filter(|bar| bar.most >= 1.0 && bar.found.is_some()).count();
        assert_eq!(held, at_least_1);
    }
}
