//! The tables, group by group, and all of it as it stands on the terminal.

use std::fmt::Write as _;

use bench_workloads::memory::give_back::{Activity, Case, Freed, GiveBack, Mix};
use bench_workloads::memory::soak::{self, PHASES};
use bench_workloads::outcome::Outcome;

use super::results::{HELLO, Memory, PhaseFigure, parked};
use crate::bars::{Bar, Figure, values};
use crate::contenders::{Contender, GLIBC, Group};
use crate::results::FLOOR;
use crate::statistics::{geometric_mean, median};
use crate::table::{self, GROUPS, Table, columns, mib, participants, short, time, with_spread};

/// When what was given back is printed, in seconds after the last free.
const TIMES: [f64; 4] = [1.0, 3.0, 10.0, 30.0];

/// Everything: who took part, the figures by group, what went wrong, the bars.
pub(super) fn all(memory: &Memory, contenders: &[Contender], bars: &[Bar]) -> String {
    let mut text = String::new();
    _ = writeln!(text, "{}\n{}", circumstances(memory), participants(&memory.suite).trim_end());
    for table in tables(memory, contenders) {
        table.print(&mut text);
    }
    table::problems(&mut text, &memory.suite);
    table::verdicts(&mut text, bars);
    text
}

/// Where it ran, and how much, in a line.
pub(super) fn circumstances(memory: &Memory) -> String {
    let (mib, huge_pages) = (memory.heap_mib, &memory.huge_pages);
    format!("{}; heaps of {mib} MiB; transparent huge pages: {huge_pages}", table::circumstances(&memory.suite))
}

/// A case in words.
pub(super) fn words(case: Case) -> String {
    let mix = blocks(case.mix);
    let freed = match case.freed {
        Freed::Most => "90%",
        Freed::All => "all",
    };
    let activity = match case.activity {
        Activity::Light => "light activity",
        Activity::None => "no activity",
    };
    format!("{mix}, {freed} freed, {activity}")
}

fn blocks(mix: Mix) -> &'static str {
    match mix {
        Mix::Small => "16-1024 bytes",
        Mix::Mixed => "16 bytes-64 KiB",
    }
}

/// The figures.
pub(super) fn tables(memory: &Memory, contenders: &[Contender]) -> Vec<Table> {
    let mut tables = Vec::new();
    for (group, name) in GROUPS {
        let of = Of { memory, group, name, columns: columns(contenders, group) };
        if of.columns.len() > 1 {
            tables.extend([of.peaks(), of.give_back(), of.parked(), of.soak(), of.hello()]);
        }
    }
    tables.retain(|table| !table.rows.is_empty());
    tables
}

/// A figure of a heap at its peak, with its name and its form.
type AtPeak = (&'static str, fn(&GiveBack) -> f64, Form);
type Form = fn(f64) -> String;

/// What all tables of a group have in common.
struct Of<'a> {
    memory: &'a Memory,
    group: Group,
    name: &'static str,
    columns: Vec<&'static str>,
}

impl Of<'_> {
    fn table(&self, title: &str, last: &[&str]) -> Table {
        Table::of(self.name, title, &self.columns, last)
    }

    /// Adds a row unless nobody has a figure in it. Who failed in `measure` is seen.
    fn row(
        &self,
        table: &mut Table,
        label: String,
        measure: &str,
        cell: impl Fn(&str) -> Option<String>,
        last: Option<String>,
    ) {
        let failed = |name: &str| {
            let problems = &self.memory.suite.problems;
            problems.iter().any(|each| each.contender == name && each.measure.as_deref() == Some(measure))
        };
        let cells: Vec<Option<String>> = self.columns.iter().map(|name| cell(name)).collect();
        if cells.iter().all(Option::is_none) {
            return;
        }
        let names = self.columns.iter();
        let shown = |(cell, name): (Option<String>, &&str)| {
            cell.unwrap_or_else(|| if failed(name) { "fails".to_owned() } else { String::new() })
        };
        table.rows.push((label, cells.into_iter().zip(names).map(shown).chain(last).collect()));
    }

    fn peaks(&self) -> Table {
        let mut table = self.table("heaps at their peaks", &[]);
        let huge = |found: &GiveBack| found.peak.huge_kib as f64 / found.peak.rss_kib as f64;
        let faults = |found: &GiveBack| found.faults as f64 / (found.live >> 20) as f64;
        // Not a number where the allocator cannot tell.
        let metadata = |found: &GiveBack| {
            let share = found.metadata.map_or(f64::NAN, |bytes| bytes as f64 / found.live as f64);
            share * f64::from(1 << 20)
        };
        let figures: [AtPeak; 4] = [
            ("RSS over live bytes", GiveBack::peak_over_live, |ratio| format!("{ratio:.3}")),
            ("of it in huge pages", huge, |share| format!("{:.0}%", share * 100.0)),
            ("page faults for a MiB", faults, short),
            ("metadata for a GiB", metadata, mib),
        ];
        for mix in [Mix::Small, Mix::Mixed] {
            let measure = Case { mix, freed: Freed::All, activity: Activity::Light }.to_string();
            for (what, value, form) in figures {
                let cell = |name: &str| {
                    let found = median(&self.memory.at_peak(mix, name, value)?);
                    found.is_finite().then(|| form(found))
                };
                self.row(&mut table, format!("{}: {what}", blocks(mix)), &measure, cell, None);
            }
        }
        table
    }

    fn give_back(&self) -> Table {
        let mut table = self.table("RSS after much was freed, and in percent of the peak", &["live"]);
        for case in Case::all() {
            let outcomes = self.columns.iter().find_map(|name| self.memory.case(case, name));
            let live = outcomes.map(|found| mib(found.left as f64 / 1024.0));
            for seconds in TIMES {
                let cell = |name: &str| {
                    let found = self.memory.case(case, name)?;
                    let left = found.after(seconds)?;
                    Some(format!("{} {:.0}%", mib(left), left / found.peak.rss_kib as f64 * 100.0))
                };
                let label = format!("{}: after {seconds} s", words(case));
                self.row(&mut table, label, &case.to_string(), cell, live.clone());
            }
        }
        table
    }

    fn parked(&self) -> Table {
        let mut table =
            self.table("parked threads that each freed 1 MiB, above threads without allocation", &["floor"]);
        let results = &self.memory.suite;
        for threads in self.memory.parked() {
            let measure = parked(threads);
            let resident = |name: &str| Some(mib(median(&values(results, Figure::Resident, &measure, name)?)));
            let floor = results.median(&measure, FLOOR, |outcome| outcome.rss_kib.unwrap_or_default() as f64);
            self.row(&mut table, format!("{threads} threads: RSS"), &measure, resident, floor.map(mib));
            let spent = |name: &str| {
                let all: Vec<f64> = values(results, Figure::Time, &measure, name)?;
                let all: Vec<f64> = all.into_iter().map(|each| each * threads as f64).collect();
                Some(with_spread(&all, time))
            };
            let floor = results.median(&measure, FLOOR, |outcome| outcome.nanoseconds);
            self.row(&mut table, format!("{threads} threads: time"), &measure, spent, floor.map(time));
        }
        table
    }

    fn soak(&self) -> Table {
        let title = "RSS over live bytes at the ends of changing phases, and its drift over the repetitions";
        let mut table = self.table(title, &[]);
        for (number, phase) in PHASES.iter().enumerate() {
            let cell = |name: &str| Some(ratio_and_drift(self.memory.phases(name)?[number]));
            self.row(&mut table, phase.name.to_owned(), soak::NAME, cell, None);
        }
        let mean = |name: &str| {
            let phases = self.memory.phases(name)?;
            let over_live = geometric_mean(&phases.map(|phase| phase.over_live));
            Some(ratio_and_drift(PhaseFigure { over_live, drift: geometric_mean(&phases.map(|phase| phase.drift)) }))
        };
        self.row(&mut table, "geometric mean".to_owned(), soak::NAME, mean, None);
        let repetitions = |name: &str| Some(self.memory.soak.get(name)?.repetitions.len().to_string());
        self.row(&mut table, "repetitions".to_owned(), soak::NAME, repetitions, None);
        table
    }

    fn hello(&self) -> Table {
        let mut table = self.table("hello-world", &[]);
        if self.group == Group::Forced {
            return table;
        }
        let results = &self.memory.suite;
        // Preloaded libraries need a dynamic program, and the C library's own is static.
        let is_comparable = |name: &str| self.group == Group::Crates || name != GLIBC;
        let peak = |name: &str| results.median(HELLO, name, |outcome| outcome.peak_rss_kib as f64);
        let spent = |name: &str| results.median(HELLO, name, Outcome::per_operation);
        let system = self.group == Group::Crates;
        let cell = |name: &str| is_comparable(name).then(|| peak(name).map(mib))?;
        self.row(&mut table, "peak RSS".to_owned(), HELLO, cell, None);
        let cell = |name: &str| is_comparable(name).then(|| spent(name).map(time))?;
        self.row(&mut table, "wall time".to_owned(), HELLO, cell, None);
        if system {
            let more = |name: &str| Some(signed_mib(peak(name)? - peak(GLIBC)?));
            self.row(&mut table, "peak RSS above the C library's".to_owned(), HELLO, more, None);
            let ratio = |name: &str| Some(format!("{:.2}", spent(name)? / spent(GLIBC)?));
            self.row(&mut table, "wall time to the C library's".to_owned(), HELLO, ratio, None);
        }
        let metadata = |name: &str| {
            let (_, found) = results.contenders.iter().find(|(each, _)| each == name)?;
            Some(mib(found.metadata? as f64 / 1024.0))
        };
        self.row(&mut table, "metadata of a process that does nothing".to_owned(), HELLO, metadata, None);
        table
    }
}

fn ratio_and_drift(figure: PhaseFigure) -> String {
    format!("{:.2} {:+.1}%", figure.over_live, (figure.drift - 1.0) * 100.0)
}

fn signed_mib(kib: f64) -> String {
    format!("{:+.2} MiB", kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{soaked, with_heaps};
    use super::*;
    use crate::contenders;
    use crate::results::tests::with_times;
    use crate::run::note;

    #[test]
    fn every_figure_is_in_a_table() {
        let mut memory = with_heaps(&[("rseq", 264.0, 3.0), ("jemalloc", 300.0, 150.0)]);
        memory.suite = with_times("parked/2000", &[("rseq", &[1.0]), ("jemalloc", &[2.0]), (FLOOR, &[0.5])]);
        memory.suite.outcomes.extend(with_times(HELLO, &[("rseq", &[1.1e6]), ("glibc", &[1e6])]).outcomes);
        memory.soak.insert("rseq".to_owned(), soaked(&[1.5, 1.25, 1.5]));
        note(&mut memory.suite, "snmalloc", "give-back/small/all/light", "signal 9".to_owned());
        let text = all(&memory, &contenders::all(), &super::super::bars::all(&memory, &contenders::all(), true));
        for part in ["1.031", "150 MiB 50%", "3.00 MiB 1%", "2000 threads: RSS", "+20.0%", "1.10", "fails", "signal 9"]
        {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(text.contains("FALLS SHORT") && text.contains("pass"), "{text}");
        // 30 s were not watched.
        assert!(!text.contains("after 30 s"), "{text}");
    }
}
