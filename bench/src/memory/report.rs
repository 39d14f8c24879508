//! The page: resident memory over time, then all figures.

use std::fmt::Write as _;

use bench_workloads::memory::give_back::Case;

use super::results::{Memory, parked, repetition};
use super::table::{circumstances, tables, words};
use crate::bars::{Bar, Figure, ours_in, values};
use crate::contenders::{Contender, Group};
use crate::plots::{self, Curve, Dot, Row};
use crate::report::{begin, end, escaped, participants, verdicts};
use crate::statistics::{median, range};
use crate::table::{GROUPS, columns};

/// Writes it.
pub(super) fn page(memory: &Memory, contenders: &[Contender], bars: &[Bar]) -> Result<String, String> {
    let mut html = begin("What heaps cost over time", &circumstances(memory));
    html.push_str(
        "<p>Every allocator has processes of its own. Heaps that were watched, or soaked, ran side by side; parked \
         threads and hello-worlds one by one, in rounds. Memory is what the kernel counts as resident, above what was \
         there before the first block.</p>\n",
    );
    participants(&mut html, &memory.suite);
    verdicts(&mut html, bars)?;
    for (group, name) in GROUPS {
        let mut series = columns(contenders, group);
        // This allocator is the first series, whatever the order of the columns.
        series.sort_by_key(|name| *name != ours_in(group));
        if series.len() > 1 {
            _ = writeln!(html, "<h2>{}</h2>", escaped(name));
            figures(&mut html, memory, &series, group)?;
        }
    }
    end(&mut html, &tables(memory, contenders));
    Ok(html)
}

fn figures(html: &mut String, memory: &Memory, series: &[&str], group: Group) -> Result<(), String> {
    let mut figure = |title: &str, svg: String| _ = writeln!(html, "<h3>{}</h3>\n{svg}", escaped(title));
    for case in Case::all() {
        let curves = each(series, |name| {
            let found = memory.case(case, name)?;
            // What was there before the frees stands at the left edge.
            let readings = std::iter::once(&found.peak).chain(&found.curve);
            Some(readings.map(|sample| (sample.seconds, sample.rss_kib as f64 / 1024.0)).collect())
        });
        let left = series.iter().find_map(|name| memory.case(case, name)).map(|found| found.left);
        if let Some(left) = left {
            let level = left as f64 / f64::from(1 << 20);
            let y = "resident, MiB; the grey line is what is live";
            figure(&words(case), plots::curves(&curves, series, level, "seconds after the last free", y)?);
        }
    }
    let soaked = each(series, |name| Some(memory.soak.get(name)?.repetitions.iter().map(repetition).collect()));
    if !soaked.is_empty() {
        let y = "resident over live bytes, mean of the phases";
        figure("Changing phases, repeated", plots::curves(&soaked, series, 1.0, "minutes", y)?);
    }
    for (what, of, unit) in [
        ("resident memory", Figure::Resident, 1024.0),
        // Of all threads together.
        ("time", Figure::Time, 1e6),
    ] {
        let row = |threads: usize| {
            let scale = if of == Figure::Time { threads as f64 / unit } else { 1.0 / unit };
            let dot = |(series, name): (usize, &&str)| {
                let values = values(&memory.suite, of, &parked(threads), name)?;
                let values: Vec<f64> = values.into_iter().map(|value| value * scale).collect();
                Some(Dot { series, value: median(&values), range: range(&values) })
            };
            let dots = series.iter().enumerate().filter_map(dot).collect();
            Row { label: format!("{threads} threads"), dots }
        };
        let rows: Vec<Row> = memory.parked().into_iter().map(row).filter(|row| !row.dots.is_empty()).collect();
        if group != Group::Forced && !rows.is_empty() {
            let axis = if of == Figure::Time { "ms above the floor" } else { "MiB above the floor" };
            figure(&format!("Parked threads, {what}"), plots::dots(&rows, series, axis)?);
        }
    }
    Ok(())
}

/// The curves of those that have one.
fn each(series: &[&str], points: impl Fn(&str) -> Option<Vec<(f64, f64)>>) -> Vec<Curve> {
    let curve = |(series, name): (usize, &&str)| Some(Curve { series, points: points(name)? });
    series.iter().enumerate().filter_map(curve).collect()
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{soaked, with_heaps};
    use super::*;
    use crate::contenders;
    use crate::results::tests::with_times;

    #[test]
    fn the_page_stands_alone_and_has_every_curve() {
        let mut memory = with_heaps(&[("rseq", 264.0, 3.0), ("jemalloc", 300.0, 150.0)]);
        memory.suite = with_times("parked/64", &[("rseq", &[1.0]), ("jemalloc", &[2.0])]);
        memory.suite.machine.processor = "a <fast> one".to_owned();
        memory.soak.insert("rseq".to_owned(), soaked(&[1.5, 1.25, 1.5]));
        let contenders = contenders::all();
        let html = page(&memory, &contenders, &super::super::bars::all(&memory, &contenders, true)).unwrap();
        for text in ["a &lt;fast&gt; one", "16-1024 bytes, 90% freed, no activity", "jemalloc", "minutes", "64 threads"]
        {
            assert!(html.contains(text), "no {text}");
        }
        // The bars; eight cases, a soak and two plots of threads for the crates, and the first two for those forced.
        assert_eq!(html.matches("<svg").count(), 1 + (8 + 1 + 2) + (8 + 1));
        let loads = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!loads.contains("http") && !loads.contains("<script") && !loads.contains("src="));
    }
}
