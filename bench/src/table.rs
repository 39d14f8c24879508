//! The tables on the terminal.

use std::fmt::Write as _;

use bench_workloads::outcome::{Latency, Outcome};

use crate::bars::{Bar, Figure, compare, ours_in, peers, values};
use crate::contenders::{Contender, Group};
use crate::plan::{Kind, Measure};
use crate::results::{FLOOR, Results};
use crate::statistics::{median, range};

const FIRST: usize = 34;
const WIDTH: usize = 16;

/// Everything: who took part, the figures by group, what went wrong, the bars.
pub(crate) fn all(results: &Results, contenders: &[Contender], measures: &[Measure], bars: Option<&[Bar]>) -> String {
    let mut text = String::new();
    header(&mut text, results);
    for (group, title) in [
        (Group::Crates, "compiled in"),
        (Group::Preloaded, "preloaded, and the C library's own"),
        (Group::Forced, "this allocator, told what to index its caches by"),
    ] {
        let columns = columns(contenders, group);
        if columns.len() > 1 {
            times(&mut text, results, contenders, group, &columns, title, measures);
            memory(&mut text, results, group, &columns, title, measures);
            latencies(&mut text, results, &columns, title, measures);
            kernel(&mut text, results, &columns, title, measures);
        }
    }
    problems(&mut text, results);
    if let Some(bars) = bars {
        verdicts(&mut text, bars);
    }
    text
}

/// The contenders of a group's tables: its own, and who they are compared with.
pub(crate) fn columns(contenders: &[Contender], group: Group) -> Vec<&'static str> {
    let is_in = |each: &&Contender| {
        each.group == group
            || (group == Group::Preloaded && each.name == crate::contenders::GLIBC)
            || (group == Group::Forced && each.name == crate::contenders::OURS)
    };
    contenders.iter().filter(is_in).map(|each| each.name).collect()
}

fn header(text: &mut String, results: &Results) {
    let machine = &results.machine;
    _ = writeln!(
        text,
        "{}, {} CPUs, Linux {}, load {} before the run; {} rounds",
        machine.processor, machine.cpus, machine.kernel, machine.load, results.rounds
    );
    for (name, found) in &results.contenders {
        let mode = found.mode.as_ref().map_or_else(String::new, |mode| format!("; {mode}"));
        _ = writeln!(text, "  {name:<16} {} {}{mode}", found.name, found.version);
    }
}

fn row(text: &mut String, first: &str, cells: impl IntoIterator<Item = String>) {
    _ = write!(text, "{first:<FIRST$}");
    for cell in cells {
        _ = write!(text, " {cell:>WIDTH$}");
    }
    let length = text.trim_end().len();
    text.truncate(length);
    text.push('\n');
}

fn title(text: &mut String, of: &str, title: &str, columns: &[&str], last: Option<&str>) {
    _ = writeln!(text, "\n{of}, {title}");
    row(text, "", columns.iter().copied().chain(last).map(str::to_owned));
}

fn times(
    text: &mut String,
    results: &Results,
    contenders: &[Contender],
    group: Group,
    columns: &[&'static str],
    of: &str,
    measures: &[Measure],
) {
    title(text, of, "time of an operation, above the floor where there is one", columns, Some("ours/best"));
    let peers = peers(contenders, group);
    for measure in measures.iter().filter(|measure| measure.kind != Kind::Latency) {
        let key = measure.key();
        if !columns.iter().any(|name| results.outcomes.get(&key).is_some_and(|row| row.contains_key(*name))) {
            continue;
        }
        let mut cells: Vec<String> = columns
            .iter()
            .map(|name| match values(results, Figure::Time, &key, name) {
                Some(values) => with_spread(&values, time),
                None if results.failed(&key, name) => "fails".to_owned(),
                None => String::new(),
            })
            .collect();
        let ratio = match group {
            Group::Forced => None,
            _ => compare(results, Figure::Time, std::slice::from_ref(&key), ours_in(group), &peers),
        };
        cells.push(ratio.map_or_else(String::new, |found| format!("{:.2}", found.ratio)));
        if let Some(floor) = results.median(&key, FLOOR, Outcome::per_operation) {
            cells.push(format!("floor {}", time(floor)));
        }
        row(text, &key, cells);
    }
}

fn memory(
    text: &mut String,
    results: &Results,
    group: Group,
    columns: &[&'static str],
    of: &str,
    measures: &[Measure],
) {
    let mut rows = String::new();
    for measure in measures.iter().filter(|measure| measure.kind == Kind::Workload) {
        let cells: Vec<Option<Vec<f64>>> = columns.iter().map(|name| results.memory(&measure.name, name)).collect();
        if cells.iter().any(Option::is_some) {
            let cell = |values: Option<Vec<f64>>| values.map_or_else(String::new, |values| format!("{:.2}", median(&values)));
            let live = results.live.get(&measure.name).map(|live| format!("live {} MiB", live >> 20));
            row(&mut rows, &measure.name, cells.into_iter().map(cell).chain(live));
        }
    }
    if measures.iter().any(|measure| measure.name == "parked") {
        let cell = |name: &&str| match values(results, Figure::Resident, "parked", name) {
            Some(values) => format!("{:.1} MiB", median(&values) / 1024.0),
            None => String::new(),
        };
        row(&mut rows, "parked, RSS above the floor", columns.iter().map(cell));
    }
    if measures.iter().any(|measure| measure.kind == Kind::Hello) && group != Group::Forced {
        let peak = |name: &&str| results.median("hello", name, |outcome| outcome.peak_rss_kib as f64 / 1024.0);
        let cell = |name: &&str| peak(name).map_or_else(String::new, |mib| format!("{mib:.1} MiB"));
        row(&mut rows, "hello, peak RSS", columns.iter().map(cell));
    }
    if !rows.is_empty() {
        title(text, of, "peak RSS, less that of an idle process, over peak live bytes", columns, None);
        text.push_str(&rows);
    }
}

fn latencies(text: &mut String, results: &Results, columns: &[&'static str], of: &str, measures: &[Measure]) {
    let measures: Vec<&Measure> = measures.iter().filter(|measure| measure.kind == Kind::Latency).collect();
    for (call, get) in [("malloc", malloc as fn(&Outcome) -> Latency), ("free", free)] {
        if measures.is_empty() {
            continue;
        }
        title(text, of, &format!("ns of a call of {call}: P50 / P99 / P99.9 / max"), columns, None);
        for measure in &measures {
            let cell = |name: &&str| {
                let at = |value: fn(Latency) -> f64| results.median(&measure.key(), name, |outcome| value(get(outcome)));
                let all = [at(|l| l.p50), at(|l| l.p99), at(|l| l.p999), at(|l| l.max)];
                let all: Option<Vec<String>> = all.into_iter().map(|value| value.map(short)).collect();
                all.map_or_else(String::new, |all| all.join("/"))
            };
            row(text, &measure.name, columns.iter().map(cell));
        }
    }
}

/// The latency that the latency program reports.
pub(crate) fn malloc(outcome: &Outcome) -> Latency {
    outcome.malloc.unwrap_or_default()
}

/// As [`malloc`].
pub(crate) fn free(outcome: &Outcome) -> Latency {
    outcome.free.unwrap_or_default()
}

fn kernel(text: &mut String, results: &Results, columns: &[&'static str], of: &str, measures: &[Measure]) {
    let measures: Vec<&Measure> = measures.iter().filter(|measure| measure.kind == Kind::Workload).collect();
    if measures.is_empty() {
        return;
    }
    title(text, of, "page faults for 1000 operations, and time in the kernel for one", columns, None);
    for measure in measures {
        let cell = |name: &&str| {
            let faults = results.median(&measure.name, name, Outcome::faults_per_thousand)?;
            let system = results.median(&measure.name, name, Outcome::system_per_operation)?;
            Some(format!("{} {}", short(faults), time(system)))
        };
        row(text, &measure.name, columns.iter().map(|name| cell(name).unwrap_or_default()));
    }
}

fn problems(text: &mut String, results: &Results) {
    if !results.problems.is_empty() {
        text.push_str("\nfailures\n");
    }
    for problem in &results.problems {
        let place = problem.measure.as_ref().map_or_else(|| "did not take part".to_owned(), |key| format!("in {key}"));
        _ = writeln!(text, "  {} {place}: {}", problem.contender, problem.reason);
    }
}

fn verdicts(text: &mut String, bars: &[Bar]) {
    _ = writeln!(text, "\n{:<54} {:>8} {:>8} {:>16}  to the best peer", "bars", "at most", "ratio", "rounds");
    for bar in bars {
        let mark = if bar.holds() { "pass" } else { "FALLS SHORT" };
        match &bar.found {
            Some(found) => {
                let rounds = format!("{:.2} - {:.2}", found.rounds.0, found.rounds.1);
                _ = writeln!(
                    text,
                    "{:<54} {:>8.2} {:>8.2} {rounds:>16}  {:<16} {mark}",
                    bar.name, bar.most, found.ratio, found.peer
                );
            }
            None => _ = writeln!(text, "{:<54} {:>8.2} {:>8} {:>16}  {:<16} {mark}", bar.name, bar.most, "-", "", ""),
        }
    }
    let held = bars.iter().filter(|bar| bar.holds()).count();
    _ = writeln!(text, "{held} of {} bars pass", bars.len());
}

fn with_spread(values: &[f64], form: fn(f64) -> String) -> String {
    let (least, greatest) = range(values);
    let middle = median(values);
    format!("{} ±{:.0}%", form(middle), (greatest - least) / 2.0 / middle * 100.0)
}

/// A time in nanoseconds, with a unit that fits.
pub(crate) fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        value if value < 1e3 => format!("{} ns", digits(value)),
        value if value < 1e6 => format!("{} us", digits(value / 1e3)),
        value if value < 1e9 => format!("{} ms", digits(value / 1e6)),
        value => format!("{} s", digits(value / 1e9)),
    }
}

/// A number of any size in few characters.
fn short(value: f64) -> String {
    match value {
        value if value < 1e3 => digits(value),
        value if value < 1e6 => format!("{}k", digits(value / 1e3)),
        value => format!("{}M", digits(value / 1e6)),
    }
}

fn digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contenders;
    use crate::results::Problem;
    use crate::results::tests::with_times;

    #[test]
    fn numbers_are_short() {
        assert_eq!([time(3.456), time(34_560.0), time(2e9)], ["3.46 ns", "34.6 us", "2.00 s"]);
        assert_eq!([short(345.6), short(3456.0), short(3.4e6)], ["346", "3.46k", "3.40M"]);
    }

    #[test]
    fn a_peer_that_fails_is_seen_in_its_cell_and_named() {
        let mut results = with_times("churn", &[("rseq", &[2.0]), ("rpmalloc", &[f64::NAN]), ("jemalloc", &[4.0])]);
        results.problems.push(Problem {
            contender: "rpmalloc".to_owned(),
            measure: Some("churn".to_owned()),
            reason: "signal 11".to_owned(),
            known: false,
        });
        let contenders = contenders::all();
        let bars = crate::bars::all(&results, &contenders);
        let text = all(&results, &contenders, &crate::plan::all(&["churn"]), Some(&bars));
        assert!(text.contains("fails") && text.contains("rpmalloc in churn: signal 11"), "{text}");
        assert!(text.contains("0.50") && text.contains("jemalloc         pass"), "{text}");
    }
}
