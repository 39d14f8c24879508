//! The bars on memory. Those on what is given back are judged 10 s after the last free, with light activity.

use bench_workloads::memory::give_back::{Activity, Case, Freed, GiveBack, Mix};

use super::results::{HELLO, Memory, parked};
use crate::bars::{Bar, Comparison, Figure, compare, peers};
use crate::contenders::{Contender, GLIBC, Group, OURS, OURS_PRELOADED};
use crate::statistics::{median, range};
use crate::table::mib;

/// When what was given back is judged, in seconds.
const AFTER: f64 = 10.0;
/// What may be left of a heap that was freed: this share of the peak, or so many KiB, whichever is more.
const LEFT_SHARE: f64 = 0.05;
const LEFT_KIB: f64 = 16.0 * 1024.0;
/// What a hello-world may need more than on the C library's allocator, in KiB.
const HELLO_KIB: f64 = 1024.0;
/// The number of threads that is judged, and tcmalloc where it has caches of CPUs.
const THREADS: usize = 2000;
const PER_CPU: &str = "tcmalloc-percpu";

/// Every bar for which something was measured; without `times` none on time.
pub(super) fn all(memory: &Memory, contenders: &[Contender], times: bool) -> Vec<Bar> {
    let mut bars = Bars { memory, bars: Vec::new() };
    for (group, ours, prefix) in [(Group::Crates, OURS, ""), (Group::Preloaded, OURS_PRELOADED, "preloaded: ")] {
        bars.peak(ours, prefix);
        bars.freed_all(ours, prefix);
        bars.freed_most(ours, prefix, &peers(contenders, group));
    }
    let is_there = |name: &str| contenders.iter().any(|each| each.name == name);
    bars.parked("the leanest peer", 0.2, &peers(contenders, Group::Crates));
    if is_there(PER_CPU) {
        bars.parked("tcmalloc with caches of CPUs", 1.1, &[PER_CPU]);
    }
    bars.hello(times);
    bars.bars
}

struct Bars<'a> {
    memory: &'a Memory,
    bars: Vec<Bar>,
}

impl Bars<'_> {
    /// Adds a bar if this allocator was measured in it, or failed.
    fn add(&mut self, name: String, most: f64, measure: &str, ours: &str, found: Option<Comparison>) {
        let tried = |problem: &crate::results::Problem| {
            problem.contender == ours && problem.measure.as_deref() == Some(measure)
        };
        if found.is_some() || self.memory.suite.problems.iter().any(tried) {
            self.bars.push(Bar { name, most, found });
        }
    }

    fn peak(&mut self, ours: &str, prefix: &str) {
        let values = self.memory.at_peak(Mix::Small, ours, GiveBack::peak_over_live);
        let found =
            values.map(|values| Comparison { ratio: median(&values), spread: range(&values), peer: "live".to_owned() });
        let measure = light(Freed::All).to_string();
        self.add(format!("{prefix}peak over live, 16-1024 bytes"), 1.04, &measure, ours, found);
    }

    fn freed_all(&mut self, ours: &str, prefix: &str) {
        for mix in [Mix::Small, Mix::Mixed] {
            let case = Case { mix, ..light(Freed::All) };
            let found = self.memory.case(case, ours).and_then(|found| {
                let (left, most) = (found.after(AFTER)?, LEFT_KIB.max(LEFT_SHARE * found.peak.rss_kib as f64));
                Some(once(left / most, format!("of {}", mib(most))))
            });
            let name = format!("{prefix}10 s after freeing all, {}", sizes(mix));
            self.add(name, 1.0, &case.to_string(), ours, found);
        }
    }

    fn freed_most(&mut self, ours: &str, prefix: &str, peers: &[&str]) {
        let case = light(Freed::Most);
        let left = |name: &str| self.memory.case(case, name)?.after(AFTER);
        let found = left(ours).and_then(|own| {
            let others = peers.iter().filter_map(|peer| Some((peer, left(peer)?)));
            let (peer, leanest) = others.min_by(|one, other| one.1.total_cmp(&other.1))?;
            Some(once(own / leanest, (*peer).to_owned()))
        });
        let name = format!("{prefix}10 s after freeing 90%, {}", sizes(case.mix));
        self.add(name, 0.8, &case.to_string(), ours, found);
    }

    fn parked(&mut self, whom: &str, most: f64, peers: &[&str]) {
        let measure = parked(THREADS);
        let found = compare(&self.memory.suite, Figure::Resident, std::slice::from_ref(&measure), OURS, peers);
        self.add(format!("{THREADS} parked threads, RSS to {whom}"), most, &measure, OURS, found);
    }

    fn hello(&mut self, times: bool) {
        let peaks = |name| self.memory.suite.values(HELLO, name, |outcome| outcome.peak_rss_kib as f64);
        let found = peaks(OURS).zip(peaks(GLIBC)).map(|(own, system)| {
            // Less than the C library's needs is nothing more.
            let more = |own: f64, system: f64| (own - system).max(HELLO_KIB / 100.0) / HELLO_KIB;
            let rounds: Vec<f64> = own.iter().zip(&system).map(|(own, system)| more(*own, *system)).collect();
            let ratio = more(median(&own), median(&system));
            Comparison { ratio, spread: range(&rounds), peer: format!("of {} more", mib(HELLO_KIB)) }
        });
        self.add("static hello-world, RSS above the C library's".to_owned(), 1.0, HELLO, OURS, found);
        if times {
            let found = compare(&self.memory.suite, Figure::Time, &[HELLO.to_owned()], OURS, &[GLIBC]);
            self.add("static hello-world, wall time".to_owned(), 1.05, HELLO, OURS, found);
        }
    }
}

fn light(freed: Freed) -> Case {
    Case { mix: Mix::Small, freed, activity: Activity::Light }
}

fn sizes(mix: Mix) -> &'static str {
    match mix {
        Mix::Small => "16-1024 bytes",
        Mix::Mixed => "mixed to 64 KiB",
    }
}

/// What was measured once.
fn once(ratio: f64, peer: String) -> Comparison {
    Comparison { ratio, spread: (ratio, ratio), peer }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::with_heaps;
    use super::*;
    use crate::contenders;
    use crate::results::tests::with_times;
    use crate::run::note;

    fn bar(memory: &Memory, name: &str) -> Option<Bar> {
        all(memory, &contenders::all(), true).into_iter().find(|bar| bar.name == name)
    }

    #[test]
    fn a_heap_that_was_freed_is_judged_by_the_share_or_the_least() {
        let found =
            |peak, after| bar(&with_heaps(&[(OURS, peak, after)]), "10 s after freeing all, 16-1024 bytes").unwrap();
        // 5% of 280 MiB is less than 16 MiB; 5% of 400 is 20.
        assert!(found(280.0, 16.0).holds() && !found(280.0, 17.0).holds());
        assert!(found(400.0, 20.0).holds() && !found(400.0, 20.5).holds());
    }

    #[test]
    fn most_of_a_heap_is_judged_by_the_leanest_peer_of_the_group() {
        let heaps = [(OURS, 260.0, 100.0), ("jemalloc", 270.0, 200.0), ("snmalloc", 270.0, 130.0)];
        let shown = [("tcmalloc-percpu", 270.0, 1.0), ("gperftools", 270.0, 150.0), (OURS_PRELOADED, 270.0, 120.0)];
        let memory = with_heaps(&[&heaps[..], &shown[..]].concat());
        let found = bar(&memory, "10 s after freeing 90%, 16-1024 bytes").unwrap().found.unwrap();
        assert_eq!((found.peer.as_str(), found.ratio), ("snmalloc", 100.0 / 130.0));
        let found = bar(&memory, "preloaded: 10 s after freeing 90%, 16-1024 bytes").unwrap();
        assert!(found.holds() && found.found.unwrap().peer == "gperftools");
    }

    #[test]
    fn peaks_are_judged_against_what_is_live() {
        let found = |peak| bar(&with_heaps(&[(OURS, peak, 1.0)]), "peak over live, 16-1024 bytes").unwrap();
        assert!(found(266.0).holds() && !found(267.0).holds());
    }

    #[test]
    fn parked_threads_and_hello_worlds_are_compared_where_they_were_measured() {
        let mut memory = Memory::default();
        assert!(all(&memory, &contenders::all(), true).is_empty());
        memory.suite = with_times(HELLO, &[(OURS, &[1.04]), (GLIBC, &[1.0])]);
        assert_eq!(all(&memory, &contenders::all(), false).len(), 1);
        let both = all(&memory, &contenders::all(), true);
        assert!(both.len() == 2 && both.iter().all(Bar::holds), "{both:?}");
        memory.suite = with_times(HELLO, &[(OURS, &[1.06]), (GLIBC, &[1.0])]);
        assert!(!bar(&memory, "static hello-world, wall time").unwrap().holds());

        // All of them end with the same memory, so the ratio is 1.
        memory.suite = with_times(&parked(2000), &[(OURS, &[1.0]), (PER_CPU, &[1.0]), ("jemalloc", &[1.0])]);
        let found = all(&memory, &contenders::all(), true);
        assert_eq!(found.iter().map(Bar::holds).collect::<Vec<_>>(), [false, true], "{found:?}");
        assert!(found.iter().all(|bar| bar.found.as_ref().unwrap().ratio == 1.0));
    }

    #[test]
    fn a_failure_of_ours_is_a_bar_that_falls_short() {
        let mut memory = Memory::default();
        note(&mut memory.suite, OURS, &light(Freed::All).to_string(), "signal 6".to_owned());
        let found = all(&memory, &contenders::all(), true);
        assert!(!found.is_empty() && !found.iter().any(Bar::holds), "{found:?}");
    }
}
