//! Plots, as SVG that is put into the page.
//!
//! Most are of one kind: a row for each measure, and in it a dot for each contender, on a logarithmic axis. The others
//! are curves over time.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::bars::Bar;
use crate::statistics::range;

/// A row of a plot.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) dots: Vec<Dot>,
}

/// A contender's place in a row.
#[derive(Clone, Debug)]
pub(crate) struct Dot {
    /// Which of the series it belongs to.
    pub(crate) series: usize,
    pub(crate) value: f64,
    /// The least and the greatest, drawn as a line.
    pub(crate) range: (f64, f64),
}

/// Colours that can be told apart by most people: those of Okabe and Ito, and three more.
const COLOURS: [RGBColor; 10] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(160, 140, 20),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
    RGBColor(110, 60, 160),
];
const PASSES: RGBColor = RGBColor(0, 128, 80);
const FALLS_SHORT: RGBColor = RGBColor(200, 40, 40);

const WIDTH: u32 = 1100;
const ROW: u32 = 22;
/// Room for labels on the left, and for the axis and the legend.
const LABELS: u32 = 300;
const FRAME: u32 = 80;
/// Height of a plot of curves, without its legend.
const CURVES: u32 = 380;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;

/// A plot of rows, with a legend of the series; a line marks 1.
pub(crate) fn dots(rows: &[Row], series: &[&str], axis: &str) -> Result<String, String> {
    let extremes: Vec<f64> = rows.iter().flat_map(|row| &row.dots).flat_map(|dot| [dot.range.0, dot.range.1]).collect();
    let labels: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
    draw(&labels, &extremes, axis, series.len().div_ceil(7) as u32, |area, chart| {
        for (number, row) in rows.iter().enumerate() {
            let y = height(number, rows.len());
            for dot in &row.dots {
                let colour = COLOURS[dot.series % COLOURS.len()];
                // Ours, which is the first, stands out.
                let size = if dot.series == 0 { 6 } else { 4 };
                let line = PathElement::new(vec![(dot.range.0, y), (dot.range.1, y)], colour.mix(0.35));
                chart.draw_series([line])?;
                chart.draw_series([Circle::new((dot.value, y), size, colour.filled())])?;
            }
        }
        legend(area, series)
    })
}

/// The names of the series with their colours, seven in a line.
fn legend(area: &DrawingArea<SVGBackend<'_>, Shift>, series: &[&str]) -> Drawn {
    for (number, name) in series.iter().enumerate() {
        let (x, y) = (20 + number as i32 % 7 * 150, 14 + number as i32 / 7 * 18);
        area.draw(&Circle::new((x, y), 5, COLOURS[number % COLOURS.len()].filled()))?;
        area.draw(&Text::new((*name).to_owned(), (x + 10, y - 6), ("sans-serif", 13)))?;
    }
    Ok(())
}

/// A series over time.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// Which of the series it is.
    pub(crate) series: usize,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Curves on axes that begin at 0, with a legend of the series, and a grey line at `level`.
pub(crate) fn curves(curves: &[Curve], series: &[&str], level: f64, x: &str, y: &str) -> Result<String, String> {
    let mut svg = String::new();
    let greatest = |value: fn(&(f64, f64)) -> f64| curves.iter().flat_map(|curve| &curve.points).map(value);
    let right = greatest(|point| point.0).fold(0.0, f64::max).max(1e-3);
    let top = greatest(|point| point.1).fold(level, f64::max).max(1e-3) * 1.05;
    let rows = series.len().div_ceil(7) as u32;
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, CURVES + rows * 18)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_top(12 + rows * 18)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..right, 0.0..top)?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).x_desc(x).y_desc(y).label_style(("sans-serif", 13)).draw()?;
        chart.draw_series([PathElement::new(vec![(0.0, level), (right, level)], BLACK.mix(0.4))])?;
        // The first, which is ours, is drawn over the others.
        for curve in curves.iter().rev() {
            let colour = COLOURS[curve.series % COLOURS.len()];
            let width = if curve.series == 0 { 3 } else { 2 };
            chart.draw_series([PathElement::new(curve.points.clone(), colour.stroke_width(width))])?;
        }
        legend(&area, series)?;
        area.present()
    })();
    drawn.map_err(|error: DrawingAreaErrorKind<std::io::Error>| format!("a plot could not be drawn: {error}"))?;
    Ok(svg)
}

/// A plot of the bars: the ratio found, the range over the visits, and the limit as a black mark.
pub(crate) fn bars(bars: &[Bar]) -> Result<String, String> {
    let judged: Vec<_> = bars.iter().filter_map(|bar| Some((bar, bar.found.as_ref()?))).collect();
    let extremes: Vec<f64> =
        judged.iter().flat_map(|(bar, found)| [found.spread.0, found.spread.1, found.ratio, bar.most]).collect();
    let labels: Vec<&str> = judged.iter().map(|(bar, _)| bar.name.as_str()).collect();
    draw(&labels, &extremes, "ratio to the best peer; the black mark is the bar", 0, |_, chart| {
        for (number, (bar, found)) in judged.iter().enumerate() {
            let y = height(number, judged.len());
            let colour = if bar.holds() { PASSES } else { FALLS_SHORT };
            chart.draw_series([PathElement::new(
                vec![(found.spread.0, y), (found.spread.1, y)],
                colour.mix(0.4).stroke_width(3),
            )])?;
            chart.draw_series([Circle::new((found.ratio, y), 5, colour.filled())])?;
            let mark = vec![(bar.most, y - 0.4), (bar.most, y + 0.4)];
            chart.draw_series([PathElement::new(mark, BLACK.stroke_width(2))])?;
        }
        Ok(())
    })
}

/// The first row is at the top.
fn height(number: usize, rows: usize) -> f64 {
    (rows - number) as f64 - 0.5
}

/// Rounds out to the next steps of 1, 2, 5 on either side, so that outermost dots are not on the frame.
fn bounds(extremes: &[f64]) -> (f64, f64) {
    let good: Vec<f64> = extremes.iter().copied().filter(|value| value.is_finite() && *value > 0.0).collect();
    if good.is_empty() {
        return (0.5, 2.0);
    }
    let (least, greatest) = range(&good);
    (least.min(0.9) / 1.15, greatest.max(1.1) * 1.15)
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(
    labels: &[&str],
    extremes: &[f64],
    axis: &str,
    legend: u32,
    paint: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>, &mut Chart<'_, '_>) -> Drawn,
) -> Result<String, String> {
    let mut svg = String::new();
    let rows = labels.len();
    let size = (WIDTH, rows as u32 * ROW + FRAME + legend * 18);
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let (least, greatest) = bounds(extremes);
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_top(12 + legend * 18)
            .x_label_area_size(44)
            .margin_left(LABELS)
            .build_cartesian_2d((least..greatest).log_scale(), 0.0..rows.max(1) as f64)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|value| format!("{value}"))
            .x_desc(axis)
            .label_style(("sans-serif", 13))
            .draw()?;
        for (number, label) in labels.iter().enumerate() {
            let y = height(number, rows);
            chart.draw_series([PathElement::new(vec![(least, y), (greatest, y)], BLACK.mix(0.08))])?;
            let (_, place) = chart.backend_coord(&(least, y));
            area.draw(&Text::new((*label).to_owned(), (10, place - 7), ("sans-serif", 13)))?;
        }
        let one = vec![(1.0, 0.0), (1.0, rows as f64)];
        chart.draw_series([PathElement::new(one, BLACK.mix(0.5))])?;
        paint(&area, &mut chart)?;
        area.present()
    })();
    drawn.map_err(|error| format!("a plot could not be drawn: {error}"))?;
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bars::Comparison;

    #[test]
    fn every_row_and_series_is_named_in_the_plot() {
        let dot = |series, value| Dot { series, value, range: (value * 0.9, value * 1.1) };
        let rows = [
            Row { label: "pairs/16".to_owned(), dots: vec![dot(0, 1.0), dot(1, 1.5)] },
            Row { label: "churn".to_owned(), dots: vec![dot(0, 1.0), dot(1, 250.0)] },
        ];
        let svg = dots(&rows, &["rseq", "jemalloc"], "time").unwrap();
        assert!(svg.trim_start().starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["pairs/16", "churn", "rseq", "jemalloc", "time"] {
            assert!(svg.contains(text), "no {text}");
        }
        assert_eq!(svg.matches("<circle").count(), 4 + 2);
        assert!(dots(&[], &[], "nothing").is_ok());
    }

    #[test]
    fn curves_have_their_names_and_as_many_lines() {
        let curve = |series, height| Curve { series, points: vec![(0.0, height), (1.0, 1.0), (30.0, 0.0)] };
        let svg = curves(&[curve(0, 9.0), curve(1, 20.0)], &["rseq", "jemalloc"], 3.0, "seconds", "MiB").unwrap();
        for text in ["rseq", "jemalloc", "seconds", "MiB"] {
            assert!(svg.contains(text), "no {text}");
        }
        let coloured = |colour: &str| svg.matches(colour).count();
        assert_eq!((coloured("stroke=\"#D55E00\""), coloured("stroke=\"#0072B2\"")), (1, 1), "{svg}");
        assert!(curves(&[], &[], 0.0, "", "").is_ok());
    }

    #[test]
    fn bars_that_could_not_be_judged_are_left_out() {
        let found = Comparison { ratio: 0.8, spread: (0.7, 0.9), peer: "jemalloc".to_owned() };
        let bar = |found| Bar { name: "pairs".to_owned(), most: 1.0, found };
        let svg = super::bars(&[bar(Some(found)), bar(None)]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
    }
}
