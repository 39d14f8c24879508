//! The page: one file without anything beside it, that opens from disk.

use std::fmt::Write as _;

use bench_workloads::outcome::{Latency, Outcome};

use crate::bars::{Bar, Figure, ours_in, values};
use crate::contenders::{Contender, Group};
use crate::plan::{Kind, Measure};
use crate::plots::{self, Dot, Row};
use crate::results::Results;
use crate::statistics::{median, range};
use crate::table::{self, GROUPS, Table, circumstances, columns, described, named};

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1150px; padding: 0 1em; color: #1a1a1a; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 2px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; }
.pass { color: #00704a; } .short { color: #b71c1c; font-weight: 600; }
details { margin: 0.6em 0; } summary { cursor: pointer; }
";

/// Writes the page.
pub(crate) fn page(
    results: &Results,
    contenders: &[Contender],
    measures: &[Measure],
    bars: Option<&[Bar]>,
) -> Result<String, String> {
    let mut html = begin("Allocators side by side", &circumstances(results));
    html.push_str(
        "<p>Everything was measured in one run: every round visits every measure, and in it every allocator, each in a \
         process of its own. Figures are medians over the rounds, those of bars medians of the ratios of single visits; \
         lines and ± give the spread. Absolute times mean nothing on shared machines, ratios do.</p>\n",
    );
    participants(&mut html, results);
    if let Some(bars) = bars {
        verdicts(&mut html, bars)?;
    }
    for (group, name) in GROUPS {
        let of = columns(contenders, group);
        if of.len() > 1 {
            _ = writeln!(html, "<h2>Plots: {}</h2>", escaped(name));
            figures(&mut html, results, group, &of, measures)?;
        }
    }
    end(&mut html, &table::tables(results, contenders, measures));
    Ok(html)
}

/// The tables, and the page's end.
pub(crate) fn end(html: &mut String, tables: &[Table]) {
    html.push_str("<h2>All figures</h2>\n");
    for table in tables {
        _ = writeln!(html, "<details><summary>{}</summary>", escaped(&table.title));
        as_html(html, table);
        html.push_str("</details>\n");
    }
    html.push_str("</body>\n</html>\n");
}

/// The page's head, its title and where it was measured.
pub(crate) fn begin(title: &str, circumstances: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escaped(circumstances)
    )
}

/// Who took part, and what failed.
pub(crate) fn participants(html: &mut String, results: &Results) {
    let rows = results.contenders.iter().map(|(name, found)| (name.clone(), vec![described(found)])).collect();
    as_html(html, &Table { title: String::new(), columns: vec!["what it says it is".to_owned()], rows });
    if !results.problems.is_empty() {
        html.push_str("<h2>Failures</h2>\n<ul>\n");
        for problem in &results.problems {
            _ = writeln!(html, "<li class=\"short\">{}</li>", escaped(&named(problem)));
        }
        html.push_str("</ul>\n");
    }
}

/// The bars, as a plot and as a table.
pub(crate) fn verdicts(html: &mut String, bars: &[Bar]) -> Result<(), String> {
    let held = bars.iter().filter(|bar| bar.holds()).count();
    _ = writeln!(html, "<h2>Bars: {held} of {} pass</h2>\n{}", bars.len(), plots::bars(bars)?);
    html.push_str("<details><summary>The same as a table</summary>\n<div class=\"wide\"><table>\n");
    html.push_str("<tr><th></th><th>at most</th><th>ratio</th><th>spread</th><th>best peer</th><th></th></tr>\n");
    for bar in bars {
        let (class, mark) = if bar.holds() { ("pass", "pass") } else { ("short", "falls short") };
        let found = bar.found.as_ref().map_or_else(
            || "<td>–</td><td></td><td></td>".to_owned(),
            |found| {
                let (least, greatest) = found.spread;
                let peer = escaped(&found.peer);
                format!("<td>{:.2}</td><td>{least:.2} – {greatest:.2}</td><td>{peer}</td>", found.ratio)
            },
        );
        let name = escaped(&bar.name);
        _ = writeln!(html, "<tr><td>{name}</td><td>{:.2}</td>{found}<td class=\"{class}\">{mark}</td></tr>", bar.most);
    }
    html.push_str("</table></div></details>\n");
    Ok(())
}

/// The plots of a group. All are relative to this allocator, which stands at 1.
fn figures(
    html: &mut String,
    results: &Results,
    group: Group,
    contenders: &[&'static str],
    measures: &[Measure],
) -> Result<(), String> {
    // This allocator is the first series, whatever the order of the columns.
    let ours = ours_in(group);
    let mut series: Vec<&str> = contenders.to_vec();
    series.sort_by_key(|name| *name != ours);
    let mut figure = |title: &str, axis: &str, rows: Vec<Row>| {
        let rows: Vec<Row> = rows.into_iter().filter(|row| row.dots.len() > 1).collect();
        if !rows.is_empty() {
            _ = writeln!(html, "<h3>{}</h3>\n{}", escaped(title), plots::dots(&rows, &series, axis)?);
        }
        Ok::<(), String>(())
    };
    let of_kind = |kind: Kind| measures.iter().filter(move |measure| measure.kind == kind);
    let times = |kind| {
        let row = |measure: &Measure| {
            relative(&measure.name, &series, |name| values(results, Figure::Time, &measure.key(), name))
        };
        of_kind(kind).map(row).collect()
    };
    let axis = "time relative to this allocator's; right of 1 is slower";
    figure("Loops, default profile", axis, times(Kind::Loop))?;
    figure("Pairs as in C, above the calls", axis, times(Kind::Calls))?;
    figure("Loops, fat LTO and constant layouts", axis, times(Kind::Constant))?;
    figure("Workloads, time of an operation", axis, times(Kind::Workload))?;
    figure("Start and end of a process", axis, times(Kind::Hello))?;
    let memory = |measure: &Measure| relative(&measure.name, &series, |name| results.memory(&measure.name, name));
    let axis = "peak of resident memory relative to this allocator's; right of 1 is more";
    figure("Workloads, peak of resident memory", axis, of_kind(Kind::Workload).map(memory).collect())?;
    for (call, get) in
        [("malloc", (|outcome| outcome.malloc) as fn(&Outcome) -> Option<Latency>), ("free", |outcome| outcome.free)]
    {
        for (name, at) in [
            ("P50", (|latency| latency.p50) as fn(Latency) -> f64),
            ("P99", |latency| latency.p99),
            ("P99.9", |latency| latency.p999),
        ] {
            let value = |outcome: &Outcome| get(outcome).map_or(f64::NAN, at);
            let row = |measure: &Measure| {
                relative(&measure.name, &series, |name| results.values(&measure.key(), name, value))
            };
            let axis = format!("{name} of a call of {call} relative to this allocator's; right of 1 is slower");
            figure(&format!("{call}, {name}"), &axis, of_kind(Kind::Latency).map(row).collect())?;
        }
    }
    Ok(())
}

/// The contenders' values over the median of the first of them.
fn relative(label: &str, series: &[&str], of: impl Fn(&str) -> Option<Vec<f64>>) -> Row {
    let base = series.first().and_then(|name| of(name)).map(|values| median(&values));
    let dot = |(series, name): (usize, &&str)| {
        let base = base?;
        let values: Vec<f64> = of(name)?.iter().map(|value| value / base).collect();
        let dot = Dot { series, value: median(&values), range: range(&values) };
        (dot.range.0 > 0.0 && dot.range.1.is_finite()).then_some(dot)
    };
    Row { label: label.to_owned(), dots: series.iter().enumerate().filter_map(dot).collect() }
}

fn as_html(html: &mut String, table: &Table) {
    html.push_str("<div class=\"wide\"><table>\n<tr><th></th>");
    for column in &table.columns {
        _ = write!(html, "<th>{}</th>", escaped(column));
    }
    html.push_str("</tr>\n");
    for (name, cells) in &table.rows {
        _ = write!(html, "<tr><td>{}</td>", escaped(name));
        for cell in cells {
            let class = if cell == "fails" { " class=\"short\"" } else { "" };
            _ = write!(html, "<td{class}>{}</td>", escaped(cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contenders;
    use crate::results::tests::with_times;

    #[test]
    fn the_page_stands_alone_and_has_everything() {
        let times: &[(&str, &[f64])] = &[("rseq", &[2.0, 3.0]), ("jemalloc", &[4.0, 5.0]), ("rpmalloc", &[f64::NAN])];
        let mut results = with_times("churn", times);
        results.machine.processor = "a <fast> one".to_owned();
        let contenders = contenders::all();
        let bars = crate::bars::all(&results, &contenders);
        let html = page(&results, &contenders, &crate::plan::all(&["churn"], &[]), Some(&bars)).unwrap();
        for text in ["a &lt;fast&gt; one", "<svg", "thread churn", "jemalloc", "fails", "0.55"] {
            assert!(html.contains(text), "no {text}");
        }
        // Names of XML spaces are no addresses that anything is loaded from.
        let loads = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!loads.contains("http") && !loads.contains("<script") && !loads.contains("src="));
    }
}
