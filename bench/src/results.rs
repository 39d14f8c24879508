//! Everything that was measured, as it is kept in `results.json`.

use std::collections::BTreeMap;

use bench_workloads::outcome::{Description, Outcome};
use serde::{Deserialize, Serialize};

use crate::statistics::median;

/// The name under which a measure's floor stands beside the contenders.
pub(crate) const FLOOR: &str = "floor";

/// The outcome of each round; none where the program failed.
pub(crate) type Rounds = Vec<Option<Outcome>>;

/// A run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    /// Contenders in the order of the tables, and what they say they are.
    pub(crate) contenders: Vec<(String, Description)>,
    /// By measure, then by contender.
    pub(crate) outcomes: BTreeMap<String, BTreeMap<String, Rounds>>,
    /// The most bytes that a workload has live.
    pub(crate) live: BTreeMap<String, u64>,
    /// The peak of resident memory of a process that does nothing, on the C library.
    pub(crate) idle_rss_kib: Vec<f64>,
    /// Peers that did not take part, programs that failed, with the reason.
    pub(crate) problems: Vec<Problem>,
}

/// Where it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    pub(crate) processor: String,
    pub(crate) kernel: String,
    /// Runnable processes before the run: what else was going on.
    pub(crate) load: String,
}

/// Something that went wrong.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Problem {
    pub(crate) contender: String,
    /// None if the contender did not take part at all.
    pub(crate) measure: Option<String>,
    pub(crate) reason: String,
    /// Known of this contender, and no failure of the run.
    pub(crate) known: bool,
}

impl Results {
    /// The values of a contender's rounds; none if it did not take part, or failed in one of them.
    pub(crate) fn values(&self, measure: &str, contender: &str, value: impl Fn(&Outcome) -> f64) -> Option<Vec<f64>> {
        let rounds = self.outcomes.get(measure)?.get(contender)?;
        if rounds.is_empty() {
            return None;
        }
        rounds.iter().map(|outcome| outcome.as_ref().map(&value)).collect()
    }

    /// The median of those.
    pub(crate) fn median(&self, measure: &str, contender: &str, value: impl Fn(&Outcome) -> f64) -> Option<f64> {
        self.values(measure, contender, value).map(|values| median(&values))
    }

    /// Whether the contender took part and failed.
    pub(crate) fn failed(&self, measure: &str, contender: &str) -> bool {
        let rounds = self.outcomes.get(measure).and_then(|row| row.get(contender));
        rounds.is_some_and(|rounds| rounds.iter().any(Option::is_none))
    }

    /// Peak of resident memory, less that of an idle process, over the peak of live bytes. None for workloads with
    /// little of it.
    pub(crate) fn memory(&self, measure: &str, contender: &str) -> Option<Vec<f64>> {
        const LEAST: u64 = 1 << 20;
        let live = *self.live.get(measure).filter(|live| **live >= LEAST)?;
        let idle = median(&self.idle_rss_kib);
        self.values(measure, contender, |outcome| (outcome.peak_rss_kib as f64 - idle) * 1024.0 / live as f64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results with a round for each time given, in nanoseconds for an operation.
    pub(crate) fn with_times(measure: &str, times: &[(&str, &[f64])]) -> Results {
        let outcome = |time: f64| Outcome {
            operations: 10,
            nanoseconds: time * 10.0,
            peak_rss_kib: 4096,
            rss_kib: Some(4096),
            ..Outcome::default()
        };
        let row = times.iter().map(|(contender, times)| {
            ((*contender).to_owned(), times.iter().map(|&time| (!time.is_nan()).then(|| outcome(time))).collect())
        });
        Results { outcomes: [(measure.to_owned(), row.collect())].into(), ..Results::default() }
    }

    #[test]
    fn one_failed_round_leaves_no_value() {
        let results = with_times("pairs/16", &[("a", &[1.0, 3.0, 2.0]), ("b", &[1.0, f64::NAN])]);
        assert_eq!(results.median("pairs/16", "a", Outcome::per_operation), Some(2.0));
        assert_eq!(results.median("pairs/16", "b", Outcome::per_operation), None);
        assert!(results.failed("pairs/16", "b") && !results.failed("pairs/16", "a") && !results.failed("x", "a"));
    }

    #[test]
    fn memory_is_what_is_above_an_idle_process() {
        let mut results = with_times("server", &[("a", &[1.0])]);
        results.idle_rss_kib = vec![2048.0];
        assert_eq!(results.memory("server", "a"), None);
        results.live = [("server".to_owned(), 1 << 20)].into();
        assert_eq!(results.memory("server", "a"), Some(vec![2.0]));
    }
}
