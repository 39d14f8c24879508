//! The tables, and how they look on the terminal.

use std::fmt::Write as _;

use bench_workloads::outcome::{Description, Latency, Outcome};

use crate::bars::{Bar, Figure, compare, ours_in, peers, values};
use crate::contenders::{Contender, Group};
use crate::plan::{Kind, Measure};
use crate::results::{FLOOR, Problem, Results};
use crate::statistics::{median, range};

/// Figures with a name for each row and column; printed on the terminal and on the page.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<String>)>,
}

impl Table {
    /// One without rows yet, of a group with these columns, and some more at their end.
    pub(crate) fn of(group: &str, title: &str, columns: &[&str], last: &[&str]) -> Self {
        let columns = columns.iter().chain(last).map(|&column| column.to_owned()).collect();
        Table { title: format!("{group}: {title}"), columns, rows: Vec::new() }
    }
}

/// Everything: who took part, the figures by group, what went wrong, the bars.
pub(crate) fn all(results: &Results, contenders: &[Contender], measures: &[Measure], bars: Option<&[Bar]>) -> String {
    let mut text = String::new();
    _ = writeln!(text, "{}\n{}", circumstances(results), participants(results).trim_end());
    for table in tables(results, contenders, measures) {
        table.print(&mut text);
    }
    problems(&mut text, results);
    if let Some(bars) = bars {
        verdicts(&mut text, bars);
    }
    text
}

/// The figures, group by group.
pub(crate) fn tables(results: &Results, contenders: &[Contender], measures: &[Measure]) -> Vec<Table> {
    let mut tables = Vec::new();
    for (group, name) in GROUPS {
        let of = Of { results, group, name, columns: columns(contenders, group) };
        if of.columns.len() > 1 {
            tables.push(of.times(&peers(contenders, group), measures));
            tables.push(of.memory(measures));
            tables.push(of.latencies("malloc", malloc, measures));
            tables.push(of.latencies("free", free, measures));
            tables.push(of.kernel(measures));
        }
    }
    tables.retain(|table| !table.rows.is_empty());
    tables
}

/// The groups, and what the tables call them.
pub(crate) const GROUPS: [(Group, &str); 3] = [
    (Group::Crates, "compiled in"),
    (Group::Preloaded, "preloaded, and the C library's own"),
    (Group::Forced, "this allocator, told what to index its caches by"),
];

/// The contenders of a group's tables: its own, and who they are compared with.
pub(crate) fn columns(contenders: &[Contender], group: Group) -> Vec<&'static str> {
    let is_in = |each: &&Contender| {
        each.group == group
            || (group == Group::Preloaded && each.name == crate::contenders::GLIBC)
            || (group == Group::Forced && each.name == crate::contenders::OURS)
    };
    contenders.iter().filter(is_in).map(|each| each.name).collect()
}

/// What all tables of a group have in common.
struct Of<'a> {
    results: &'a Results,
    group: Group,
    name: &'static str,
    columns: Vec<&'static str>,
}

impl Of<'_> {
    fn table(&self, title: &str, last: &[&str]) -> Table {
        Table::of(self.name, title, &self.columns, last)
    }

    fn cells(&self, cell: impl Fn(&str) -> Option<String>) -> Vec<String> {
        self.columns.iter().map(|name| cell(name).unwrap_or_default()).collect()
    }

    fn times(&self, peers: &[&str], measures: &[Measure]) -> Table {
        let mut table = self.table("time of an operation, above the floor where there is one", &["ours/best", "floor"]);
        for measure in measures.iter().filter(|measure| measure.kind != Kind::Latency) {
            let key = measure.key();
            let row = self.results.outcomes.get(&key);
            let own: Vec<_> =
                self.columns.iter().filter(|name| row.is_some_and(|row| row.contains_key(**name))).collect();
            if own.len() < 2 {
                continue;
            }
            let mut cells = self.cells(|name| match values(self.results, Figure::Time, &key, name) {
                Some(values) => Some(with_spread(&values, time)),
                None => self.results.failed(&key, name).then(|| "fails".to_owned()),
            });
            let ratio = match self.group {
                Group::Forced => None,
                _ => compare(self.results, Figure::Time, std::slice::from_ref(&key), ours_in(self.group), peers),
            };
            cells.push(ratio.map_or_else(String::new, |found| format!("{:.2}", found.ratio)));
            let floor = self.results.median(&key, FLOOR, Outcome::per_operation);
            cells.push(floor.map_or_else(String::new, time));
            table.rows.push((format!("{key} ({})", measure.operation), cells));
        }
        table
    }

    fn memory(&self, measures: &[Measure]) -> Table {
        let mut table = self.table("peak RSS, less that of an idle process, over peak live bytes", &["live"]);
        for measure in measures.iter().filter(|measure| measure.kind == Kind::Workload) {
            let memory = |name: &str| self.results.memory(&measure.name, name);
            if self.columns.iter().any(|name| memory(name).is_some()) {
                let mut cells = self.cells(|name| memory(name).map(|values| format!("{:.2}", median(&values))));
                cells.extend(self.results.live.get(&measure.name).map(|live| mib(*live as f64 / 1024.0)));
                table.rows.push((measure.name.clone(), cells));
            }
        }
        if measures.iter().any(|measure| measure.name == "parked") {
            let parked = |name: &str| values(self.results, Figure::Resident, "parked", name);
            let cells = self.cells(|name| parked(name).map(|values| mib(median(&values))));
            table.rows.push(("parked: RSS above the floor".to_owned(), cells));
        }
        if measures.iter().any(|measure| measure.kind == Kind::Hello) && self.group != Group::Forced {
            let peak = |name: &str| self.results.median("hello", name, |outcome| outcome.peak_rss_kib as f64);
            table.rows.push(("hello: peak RSS".to_owned(), self.cells(|name| peak(name).map(mib))));
        }
        table
    }

    fn latencies(&self, call: &str, get: fn(&Outcome) -> Latency, measures: &[Measure]) -> Table {
        let mut table = self.table(&format!("ns of a call of {call}: P50/P99/P99.9/max"), &[]);
        for measure in measures.iter().filter(|measure| measure.kind == Kind::Latency) {
            let cells = self.cells(|name| {
                let at = |value: fn(Latency) -> f64| {
                    self.results.median(&measure.key(), name, |outcome| value(get(outcome))).map(short)
                };
                Some([at(|l| l.p50)?, at(|l| l.p99)?, at(|l| l.p999)?, at(|l| l.max)?].join("/"))
            });
            table.rows.push((measure.name.clone(), cells));
        }
        table
    }

    fn kernel(&self, measures: &[Measure]) -> Table {
        let mut table = self.table("page faults for 1000 operations, and time in the kernel for one", &[]);
        for measure in measures.iter().filter(|measure| measure.kind == Kind::Workload) {
            let cells = self.cells(|name| {
                let faults = self.results.median(&measure.name, name, Outcome::faults_per_thousand)?;
                let system = self.results.median(&measure.name, name, Outcome::system_per_operation)?;
                Some(format!("{} {}", short(faults), time(system)))
            });
            table.rows.push((measure.name.clone(), cells));
        }
        table
    }
}

impl Table {
    /// In columns as wide as what stands in them.
    pub(crate) fn print(&self, text: &mut String) {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|(_, cells)| cells.get(column));
            cells.chain(self.columns.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let first = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut line = |name: &str, cells: &[String]| {
            let mut line = format!("{name:<first$}");
            for (cell, width) in cells.iter().zip(&widths) {
                _ = write!(line, "  {cell:>width$}");
            }
            _ = writeln!(text, "{}", line.trim_end());
        };
        line("", &[]);
        line(&self.title, &[]);
        line("", &self.columns);
        for (name, cells) in &self.rows {
            line(name, cells);
        }
    }
}

/// What a contender says about itself, in a line.
pub(crate) fn described(found: &Description) -> String {
    let mode = found.mode.as_ref().map_or_else(String::new, |mode| format!("; {mode}"));
    format!("{} {}{mode}", found.name, found.version)
}

/// Where it ran, and how often, in a line.
pub(crate) fn circumstances(results: &Results) -> String {
    let machine = &results.machine;
    format!(
        "{}, {} CPUs, Linux {}, load {} before the run; {} rounds",
        machine.processor, machine.cpus, machine.kernel, machine.load, results.rounds
    )
}

/// Who takes part and who does not.
pub(crate) fn participants(results: &Results) -> String {
    let mut text = String::new();
    for (name, found) in &results.contenders {
        _ = writeln!(text, "  {name:<16} {}", described(found));
    }
    for problem in results.problems.iter().filter(|problem| problem.measure.is_none()) {
        _ = writeln!(text, "  {}", named(problem));
    }
    text
}

/// The latency that the latency program reports.
fn malloc(outcome: &Outcome) -> Latency {
    outcome.malloc.unwrap_or_default()
}

/// As [`malloc`].
fn free(outcome: &Outcome) -> Latency {
    outcome.free.unwrap_or_default()
}

/// What failed while it was measured.
pub(crate) fn problems(text: &mut String, results: &Results) {
    let in_measures: Vec<_> = results.problems.iter().filter(|problem| problem.measure.is_some()).collect();
    if !in_measures.is_empty() {
        text.push_str("\nfailures\n");
    }
    for problem in in_measures {
        _ = writeln!(text, "  {}", named(problem));
    }
}

/// A failure in a line.
pub(crate) fn named(problem: &Problem) -> String {
    let place = problem.measure.as_ref().map_or_else(|| "did not take part".to_owned(), |key| format!("in {key}"));
    format!("{} {place}: {}", problem.contender, problem.reason)
}

/// The bars.
pub(crate) fn verdicts(text: &mut String, bars: &[Bar]) {
    _ = writeln!(text, "\n{:<54} {:>8} {:>8} {:>16}  to the best peer", "bars", "at most", "ratio", "spread");
    for bar in bars {
        let mark = if bar.holds() { "pass" } else { "FALLS SHORT" };
        match &bar.found {
            Some(found) => {
                let spread = format!("{:.2} - {:.2}", found.spread.0, found.spread.1);
                _ = writeln!(
                    text,
                    "{:<54} {:>8.2} {:>8.2} {spread:>16}  {:<16} {mark}",
                    bar.name, bar.most, found.ratio, found.peer
                );
            }
            None => _ = writeln!(text, "{:<54} {:>8.2} {:>8} {:>16}  {:<16} {mark}", bar.name, bar.most, "-", "", ""),
        }
    }
    let held = bars.iter().filter(|bar| bar.holds()).count();
    _ = writeln!(text, "{held} of {} bars pass", bars.len());
}

/// The median, and half of the range in percent of it.
pub(crate) fn with_spread(values: &[f64], form: fn(f64) -> String) -> String {
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

/// KiB as MiB.
pub(crate) fn mib(kib: f64) -> String {
    format!("{} MiB", digits(kib / 1024.0))
}

/// A number of any size in few characters.
pub(crate) fn short(value: f64) -> String {
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
        let text = all(&results, &contenders, &crate::plan::all(&["churn"], &[]), Some(&bars));
        assert!(text.contains("fails") && text.contains("rpmalloc in churn: signal 11"), "{text}");
        assert!(text.contains("0.50") && text.contains("jemalloc         pass"), "{text}");
    }
}
