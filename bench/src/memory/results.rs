//! What was measured, as it is kept in `memory.json`, and figures from it.

use std::collections::BTreeMap;

use bench_workloads::memory::give_back::{Case, GiveBack, Mix};
use bench_workloads::memory::soak::{End, PHASES, Soak};
use serde::{Deserialize, Serialize};

use crate::results::Results;
use crate::statistics::{geometric_mean, median};

/// The measure of hello-worlds.
pub(crate) const HELLO: &str = "hello";

/// The measure of so many parked threads.
pub(crate) fn parked(threads: usize) -> String {
    format!("parked/{threads}")
}

/// A run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The machine, who took part, parked threads and hello-worlds in rounds, failures.
    #[serde(flatten)]
    pub(crate) suite: Results,
    /// The system's setting of transparent huge pages.
    pub(crate) huge_pages: String,
    /// MiB of live blocks in heaps that were watched.
    pub(crate) heap_mib: usize,
    /// By case, then by contender.
    pub(crate) give_back: BTreeMap<String, BTreeMap<String, GiveBack>>,
    /// By contender.
    pub(crate) soak: BTreeMap<String, Soak>,
}

/// What a phase of a soak came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PhaseFigure {
    /// Resident memory over live bytes at the phase's end: the median over all repetitions but the first.
    pub(crate) over_live: f64,
    /// The same at the end of the run over that at the beginning: medians of the last and the first quarter of the
    /// repetitions, the first repetition left out.
    pub(crate) drift: f64,
}

impl Memory {
    /// The outcome of a case.
    pub(crate) fn case(&self, case: Case, contender: &str) -> Option<&GiveBack> {
        self.give_back.get(&case.to_string())?.get(contender)
    }

    /// Figures of the heaps at their peaks: every case with these blocks has one.
    pub(crate) fn at_peak(&self, mix: Mix, contender: &str, value: impl Fn(&GiveBack) -> f64) -> Option<Vec<f64>> {
        let cases = Case::all().into_iter().filter(|case| case.mix == mix);
        let values: Vec<f64> = cases.filter_map(|case| Some(value(self.case(case, contender)?))).collect();
        (!values.is_empty()).then_some(values)
    }

    /// Numbers of parked threads that were measured, in order.
    pub(crate) fn parked(&self) -> Vec<usize> {
        let number = |key: &String| key.strip_prefix("parked/")?.parse().ok();
        let mut all: Vec<usize> = self.suite.outcomes.keys().filter_map(number).collect();
        all.sort_unstable();
        all
    }

    /// Figures of all phases; none without a soak.
    pub(crate) fn phases(&self, contender: &str) -> Option<[PhaseFigure; PHASES.len()]> {
        let repetitions = self.soak.get(contender)?.repetitions.get(1..).filter(|rest| !rest.is_empty())?;
        Some(std::array::from_fn(|phase| {
            let ratios: Vec<f64> = repetitions.iter().map(|ends| over_live(&ends[phase])).collect();
            let quarter = (ratios.len() / 4).max(1);
            let drift = median(&ratios[ratios.len() - quarter..]) / median(&ratios[..quarter]);
            PhaseFigure { over_live: median(&ratios), drift }
        }))
    }
}

/// Resident memory over live bytes.
fn over_live(end: &End) -> f64 {
    end.rss_kib as f64 * 1024.0 / end.live as f64
}

/// Resident memory over live bytes of a repetition: the mean over its phases, against the time of its end in minutes.
pub(crate) fn repetition(ends: &[End; PHASES.len()]) -> (f64, f64) {
    let minutes = ends.iter().map(|end| end.seconds / 60.0).fold(0.0, f64::max);
    (minutes, geometric_mean(&ends.each_ref().map(over_live)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::results::tests::with_times;
    use bench_workloads::memory::give_back::Sample;

    /// A heap of 256 MiB with this peak, and this much 10 s after the free, in MiB.
    pub(crate) fn given_back(peak: f64, after: f64) -> GiveBack {
        let sample = |seconds, mib: f64| Sample { seconds, rss_kib: (mib * 1024.0) as u64, huge_kib: 0 };
        GiveBack {
            live: 256 << 20,
            peak: sample(0.0, peak),
            curve: vec![sample(0.0, peak), sample(1.0, peak / 2.0), sample(10.0, after)],
            ..GiveBack::default()
        }
    }

    /// Heaps of these contenders, in all cases.
    pub(crate) fn with_heaps(heaps: &[(&str, f64, f64)]) -> Memory {
        let row = || heaps.iter().map(|&(name, peak, after)| (name.to_owned(), given_back(peak, after)));
        let give_back = Case::all().into_iter().map(|case| (case.to_string(), row().collect())).collect();
        Memory { give_back, heap_mib: 256, ..Memory::default() }
    }

    /// A soak of as many repetitions as there are ratios.
    pub(crate) fn soaked(ratios: &[f64]) -> Soak {
        let end = |ratio: f64| End { seconds: 60.0, live: 1 << 20, rss_kib: (ratio * 1024.0) as u64 };
        Soak { repetitions: ratios.iter().map(|&ratio| [end(ratio); PHASES.len()]).collect() }
    }

    #[test]
    fn drift_leaves_the_first_repetition_out() {
        let mut memory = Memory::default();
        memory.soak.insert("a".to_owned(), soaked(&[9.0, 1.0, 1.25, 1.25, 1.5]));
        memory.soak.insert("b".to_owned(), soaked(&[9.0]));
        let found = memory.phases("a").unwrap();
        assert_eq!(found[0], PhaseFigure { over_live: 1.25, drift: 1.5 });
        assert!(memory.phases("b").is_none() && memory.phases("c").is_none());
        let (minutes, ratio) = repetition(&memory.soak["a"].repetitions[1]);
        assert!(minutes == 1.0 && (ratio - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let mut memory = with_heaps(&[("rseq", 260.0, 10.0)]);
        memory.suite = with_times("parked/64", &[("rseq", &[1.0])]);
        memory.soak.insert("rseq".to_owned(), soaked(&[1.0, 2.0]));
        let read: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
        assert_eq!((read.give_back, read.soak), (memory.give_back.clone(), memory.soak.clone()));
        assert_eq!((read.suite.outcomes.len(), memory.parked()), (1, vec![64]));
    }

    #[test]
    fn every_case_with_the_blocks_has_a_peak() {
        let memory = with_heaps(&[("rseq", 260.0, 10.0)]);
        assert_eq!(memory.at_peak(Mix::Small, "rseq", GiveBack::peak_over_live).unwrap(), [260.0 / 256.0; 4]);
        assert!(memory.at_peak(Mix::Small, "jemalloc", GiveBack::peak_over_live).is_none());
    }
}
