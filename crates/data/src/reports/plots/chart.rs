//! Charts as SVG: lines, points, bars and confusion matrices.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Series;
use super::points::{FIELD, FILENAME, Point, REVISION, get};
use super::template::COLORS;
use crate::reports::python::{self, Number, Rounding};
use crate::yaml::Value;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// The space around the chart for axes: top, right, bottom, left.
const MARGIN: [f64; 4] = [12.0, 16.0, 46.0, 64.0];
/// Lines with more points are drawn with the smallest and largest of neighbouring points, which looks the same.
const MAX_POINTS: usize = 1200;
/// Lines with more points have no marks.
const MAX_MARKS: usize = 60;
/// More bars or cells cannot be told apart.
const MAX_CATEGORIES: usize = 60;
/// Dashes of the series in a revision.
const DASHES: &[&str] = &["", "7 5", "7 3 2 3", "3 3", "3 2", "1 2", "10 4"];

/// A line, or a group of points or bars: a series of values in one revision.
struct Group<'a> {
    color: usize,
    dash: usize,
    name: String,
    points: Vec<&'a Point>,
}

/// What identifies a group in the legend.
pub(super) struct LegendEntry {
    pub(super) name: String,
    pub(super) color: usize,
    pub(super) dash: Option<&'static str>,
}

/// The chart of a plot, and its legend.
pub(super) fn draw(series: &Series) -> (String, Vec<LegendEntry>) {
    let groups = groups(series);
    let kind = series.template.as_deref().unwrap_or_default();
    let body = match kind {
        _ if kind.contains("confusion") => return (confusion(series, kind.contains("normalized")), Vec::new()),
        _ if kind.contains("bar") => bars(series, &groups, kind.contains("sorted")),
        _ => lines(series, &groups, kind.contains("scatter")),
    };
    let several = series.axes.series.len() > 1;
    let legend = groups.into_iter().map(|group| LegendEntry {
        name: group.name,
        color: group.color,
        dash: several.then(|| DASHES[group.dash % DASHES.len()]),
    });
    (body, legend.collect())
}

fn groups(series: &Series) -> Vec<Group<'_>> {
    let definitions = &series.axes.series;
    let mut groups = Vec::new();
    for (color, revision) in series.revisions.iter().enumerate() {
        for (dash, (file, field)) in definitions.iter().enumerate() {
            let is_of = |point: &&Point, name: &str, text: &str| get(point, name).and_then(Value::as_str) == Some(text);
            let points: Vec<&Point> = series
                .points
                .iter()
                .filter(|p| is_of(p, REVISION, revision) && is_of(p, FILENAME, file) && is_of(p, FIELD, field))
                .collect();
            let same_field = definitions.iter().all(|(_, other)| other == field);
            let same_file = definitions.iter().all(|(other, _)| other == file);
            let name = match (definitions.len(), same_field, same_file) {
                (1, ..) => revision.clone(),
                (_, true, _) => format!("{revision} · {file}"),
                (_, _, true) => format!("{revision} · {field}"),
                _ => format!("{revision} · {file}::{field}"),
            };
            if !points.is_empty() {
                groups.push(Group { color, dash, name, points });
            }
        }
    }
    groups
}

/// The number in a field; text of a table may be one, too.
fn number(point: &Point, field: &str) -> Option<f64> {
    let value = get(point, field)?;
    let number = match value {
        Value::String(text) => Number::parse(text.trim())?,
        value => python::number(value)?,
    };
    Some(number.as_f64()).filter(|value| value.is_finite())
}

fn text(point: &Point, field: &str) -> String {
    get(point, field).map_or_else(String::new, |value| python::text(value, Rounding::Significant(6)))
}

/// An axis with numbers or categories.
enum Scale {
    Numbers { from: f64, to: f64, ticks: Vec<f64> },
    Names(Vec<String>),
}

impl Scale {
    /// From the smallest to the largest number; with `zero` from zero.
    fn numbers(values: impl Iterator<Item = f64>, zero: bool) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        values.for_each(|value| (from, to) = (from.min(value), to.max(value)));
        if zero || from > to {
            (from, to) = if from > to { (0.0, 1.0) } else { (from.min(0.0), to.max(0.0)) };
        }
        if (to - from).abs() < f64::EPSILON * to.abs().max(1.0) {
            (from, to) = (from - 0.5, to + 0.5);
        }
        let ticks = ticks(from, to);
        let (first, last) = (ticks.first().copied().unwrap_or(from), ticks.last().copied().unwrap_or(to));
        Self::Numbers { from: from.min(first), to: to.max(last), ticks }
    }

    #[allow(clippy::cast_precision_loss)] // Numbers of categories are small.
    fn place(&self, point: &Point, field: &str) -> Option<f64> {
        match self {
            Self::Numbers { from, to, .. } => number(point, field).map(|value| (value - from) / (to - from)),
            Self::Names(names) => {
                let name = text(point, field);
                let place = names.iter().position(|known| *known == name)?;
                Some(if names.len() > 1 { place as f64 / (names.len() - 1) as f64 } else { 0.5 })
            }
        }
    }

    /// Places between 0 and 1 with their labels.
    #[allow(clippy::cast_precision_loss)] // Numbers of categories are small.
    fn labels(&self) -> Vec<(f64, String)> {
        match self {
            Self::Numbers { from, to, ticks } => {
                ticks.iter().map(|tick| ((tick - from) / (to - from), label(*tick, ticks))).collect()
            }
            Self::Names(names) => {
                let step = names.len().div_ceil(8).max(1);
                let place = |i: usize| if names.len() > 1 { i as f64 / (names.len() - 1) as f64 } else { 0.5 };
                (0..names.len()).step_by(step).map(|i| (place(i), names[i].clone())).collect()
            }
        }
    }
}

/// Round numbers that cover an interval.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let rough = (to - from) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|f| f * power).find(|step| *step >= rough).unwrap_or(rough);
    if !step.is_finite() || step <= 0.0 {
        return vec![from, to];
    }
    let first = (from / step).floor();
    (0..=12).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick < to + step * 0.999).collect()
}

/// The text of a tick, with as many digits as all ticks need.
fn label(tick: f64, ticks: &[f64]) -> String {
    let largest = ticks.iter().fold(0.0_f64, |max, tick| max.max(tick.abs()));
    let step = ticks.windows(2).next().map_or(largest, |pair| pair[1] - pair[0]);
    if largest >= 1e6 || (largest > 0.0 && largest < 1e-3) {
        return python::text(&Value::Number(format!("{tick:e}")), Rounding::Significant(3));
    }
    let digits =
        (0..6).find(|digits| ((step * 10_f64.powi(*digits)).round() / 10_f64.powi(*digits) - step).abs() < step * 1e-6);
    format!("{tick:.*}", usize::try_from(digits.unwrap_or(6)).unwrap_or(6))
}

/// Text in SVG and HTML.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The start of a long text.
fn short(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let start: String = text.chars().take(limit - 1).collect();
    format!("{start}…")
}

/// Appends to the text of a picture.
macro_rules! put {
    ($svg:expr, $($part:tt)*) => {
        let _ = writeln!($svg, $($part)*); // A String takes any text.
    };
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        escape(title)
    )
}

/// The place of a point in the chart.
fn spot(x: f64, y: f64) -> (f64, f64) {
    let [top, right, bottom, left] = MARGIN;
    (left + x * (WIDTH - left - right), HEIGHT - bottom - y * (HEIGHT - top - bottom))
}

fn axes(svg: &mut String, series: &Series, x: &Scale, y: &Scale) {
    let ((left, bottom), (right, top)) = (spot(0.0, 0.0), spot(1.0, 1.0));
    for (place, label) in y.labels() {
        let (_, at) = spot(0.0, place);
        put!(svg, "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        put!(
            svg,
            "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 8.0,
            at + 4.0,
            escape(&short(&label, 9))
        );
    }
    for (place, label) in x.labels() {
        let (at, _) = spot(place, 0.0);
        put!(svg, "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom:.1}\" y2=\"{:.1}\"/>", bottom + 4.0);
        put!(
            svg,
            "<text class=\"tick\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 18.0,
            escape(&short(&label, 11))
        );
    }
    put!(svg, "<line class=\"axis\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{bottom:.1}\" y2=\"{bottom:.1}\"/>");
    let (middle_x, middle_y) = (f64::midpoint(left, right), f64::midpoint(top, bottom));
    put!(
        svg,
        "<text class=\"label\" text-anchor=\"middle\" x=\"{middle_x:.1}\" y=\"{:.1}\">{}</text>",
        HEIGHT - 8.0,
        escape(&short(&series.axes.x_label, 60))
    );
    put!(
        svg,
        "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(14 {middle_y:.1}) rotate(-90)\">{}</text>",
        escape(&short(&series.axes.y_label, 40))
    );
}

/// The categories of a field, in the order in which they occur.
fn categories<'a>(points: impl Iterator<Item = &'a Point>, field: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut known = std::collections::HashSet::new();
    for point in points {
        let name = text(point, field);
        if known.insert(name.clone()) {
            names.push(name);
        }
    }
    names
}

fn lines(series: &Series, groups: &[Group<'_>], only_points: bool) -> String {
    let all = || groups.iter().flat_map(|group| group.points.iter().copied());
    let (field_x, field_y) = (&series.axes.x, &series.axes.y);
    let x = match all().all(|point| number(point, field_x).is_some()) {
        true => Scale::numbers(all().filter_map(|point| number(point, field_x)), false),
        false => Scale::Names(categories(all(), field_x)),
    };
    let y = Scale::numbers(all().filter_map(|point| number(point, field_y)), false);
    let mut svg = open(&series.title, HEIGHT);
    axes(&mut svg, series, &x, &y);
    for group in groups {
        let placed: Vec<(f64, f64, &Point)> = group
            .points
            .iter()
            .filter_map(|point| {
                let (x, y) = spot(x.place(point, field_x)?, y.place(point, field_y)?);
                Some((x, y, *point))
            })
            .collect();
        let color = group.color % COLORS.len();
        if !only_points {
            let path: Vec<String> = thin(&placed).iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let dash = DASHES[group.dash % DASHES.len()];
            put!(svg, "<polyline class=\"line c{color}\" stroke-dasharray=\"{dash}\" points=\"{}\"/>", path.join(" "));
        }
        if only_points || placed.len() <= MAX_MARKS {
            let radius = if only_points { 3.5 } else { 2.5 };
            for (x, y, point) in placed.iter().take(MAX_POINTS * 4) {
                let tip = format!(
                    "{}\n{}: {}\n{}: {}",
                    group.name,
                    series.axes.x_label,
                    text(point, field_x),
                    series.axes.y_label,
                    text(point, field_y)
                );
                put!(
                    svg,
                    "<circle class=\"mark c{color}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}</title></circle>",
                    escape(&tip)
                );
            }
        }
    }
    svg + "</svg>\n"
}

/// The points of a line that are drawn.
fn thin(placed: &[(f64, f64, &Point)]) -> Vec<(f64, f64)> {
    if placed.len() <= MAX_POINTS {
        return placed.iter().map(|(x, y, _)| (*x, *y)).collect();
    }
    let mut kept = Vec::new();
    for chunk in placed.chunks(placed.len().div_ceil(MAX_POINTS / 2)) {
        let order = |i: usize| {
            chunk
                .iter()
                .enumerate()
                .map(|(place, point)| (place, point.1))
                .reduce(|a, b| if (b.1 < a.1) == (i == 0) { b } else { a })
        };
        let mut both: Vec<usize> = [order(0), order(1)].into_iter().flatten().map(|(place, _)| place).collect();
        both.sort_unstable();
        both.dedup();
        kept.extend(both.into_iter().map(|place| (chunk[place].0, chunk[place].1)));
    }
    kept
}

#[allow(clippy::cast_precision_loss)] // Numbers of bars are small.
fn bars(series: &Series, groups: &[Group<'_>], sorted: bool) -> String {
    let (field_value, field_name) = (&series.axes.x, &series.axes.y);
    let all = || groups.iter().flat_map(|group| group.points.iter().copied());
    let mut names = categories(all(), field_name);
    if sorted {
        let mut largest: BTreeMap<String, f64> = BTreeMap::new();
        for point in all() {
            let value = number(point, field_value).unwrap_or(0.0);
            let known = largest.entry(text(point, field_name)).or_insert(value);
            *known = known.max(value);
        }
        names.sort_by(|a, b| largest[b].total_cmp(&largest[a]));
    }
    names.truncate(MAX_CATEGORIES);
    let bar = 14.0;
    let row = bar * groups.len() as f64 + 8.0;
    let (left, top) = (170.0, 10.0);
    let bottom = top + row * names.len() as f64;
    let height = bottom + 46.0;
    let scale = Scale::numbers(all().filter_map(|point| number(point, field_value)), true);
    let across = |place: f64| left + place * (WIDTH - left - 24.0);
    let mut svg = open(&series.title, height);
    for (place, label) in scale.labels() {
        let at = across(place);
        put!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom:.1}\"/>");
        put!(
            svg,
            "<text class=\"tick\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 18.0,
            escape(&label)
        );
    }
    let zero = match &scale {
        Scale::Numbers { from, to, .. } => across(-from / (to - from)),
        Scale::Names(_) => left,
    };
    for (i, name) in names.iter().enumerate() {
        let start = top + row * i as f64 + 4.0;
        let middle = start + bar * groups.len() as f64 / 2.0 + 4.0;
        put!(
            svg,
            "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
            left - 8.0,
            escape(&short(name, 24))
        );
        for (j, group) in groups.iter().enumerate() {
            let Some(point) = group.points.iter().find(|point| text(point, field_name) == *name) else { continue };
            let Some(place) = scale.place(point, field_value) else { continue };
            let (from, to) = (zero.min(across(place)), zero.max(across(place)));
            let tip = format!("{}\n{name}: {}", group.name, text(point, field_value));
            put!(
                svg,
                "<rect class=\"bar c{}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                group.color % COLORS.len(),
                start + bar * j as f64,
                (to - from).max(1.0),
                bar - 2.0,
                escape(&tip)
            );
        }
    }
    put!(
        svg,
        "<text class=\"label\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        across(0.5),
        height - 8.0,
        escape(&short(&series.axes.x_label, 60))
    );
    svg + "</svg>\n"
}

/// A matrix for each revision of how often the values of two fields occur together; with `normalized` as shares of each row.
#[allow(clippy::cast_precision_loss)] // Numbers of cells are small.
fn confusion(series: &Series, normalized: bool) -> String {
    let (field_x, field_y) = (&series.axes.x, &series.axes.y);
    let mut columns = categories(series.points.iter(), field_x);
    let mut rows = categories(series.points.iter(), field_y);
    columns.sort();
    rows.sort();
    columns.truncate(MAX_CATEGORIES);
    rows.truncate(MAX_CATEGORIES);
    let across = series.revisions.len().clamp(1, 2);
    let block = WIDTH / across as f64;
    let (left, top) = (78.0, 28.0);
    let cell = (block - left - 14.0) / columns.len().max(1) as f64;
    let cell_height = cell.min(46.0);
    let block_height = top + cell_height * rows.len() as f64 + 52.0;
    let mut svg = open(&series.title, block_height * series.revisions.len().div_ceil(across) as f64);
    for (i, revision) in series.revisions.iter().enumerate() {
        let (x0, y0) = ((i % across) as f64 * block + left, (i / across) as f64 * block_height + top);
        let is_of = |point: &&Point| get(point, REVISION).and_then(Value::as_str) == Some(revision);
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        for point in series.points.iter().filter(is_of) {
            *counts.entry((text(point, field_y), text(point, field_x))).or_default() += 1;
        }
        let total = |row: &String| counts.iter().filter(|((known, _), _)| known == row).map(|(_, n)| *n).sum::<u64>();
        let share = |row: &String, column: &String| {
            let count = counts.get(&(row.clone(), column.clone())).copied().unwrap_or(0);
            if normalized { count as f64 / total(row).max(1) as f64 } else { count as f64 }
        };
        let largest = rows
            .iter()
            .flat_map(|r| columns.iter().map(move |c| (r, c)))
            .map(|(r, c)| share(r, c))
            .fold(f64::MIN_POSITIVE, f64::max);
        put!(svg, "<text class=\"label\" x=\"{x0:.1}\" y=\"{:.1}\">{}</text>", y0 - 10.0, escape(&short(revision, 30)));
        for (r, row) in rows.iter().enumerate() {
            let y = y0 + cell_height * r as f64;
            put!(
                svg,
                "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x0 - 6.0,
                y + cell_height / 2.0 + 4.0,
                escape(&short(row, 10))
            );
            for (c, column) in columns.iter().enumerate() {
                let (x, value) = (x0 + cell * c as f64, share(row, column));
                let shown = if normalized { format!("{value:.2}") } else { format!("{value:.0}") };
                let (opacity, dark) = (0.08 + 0.87 * value / largest, value / largest > 0.55);
                put!(
                    svg,
                    "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{opacity:.2}\"><title>{}</title></rect>",
                    cell - 1.5,
                    cell_height - 1.5,
                    escape(&format!("{row} / {column}: {shown}"))
                );
                if cell >= 22.0 {
                    put!(
                        svg,
                        "<text class=\"tick{}\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{shown}</text>",
                        if dark { " on" } else { "" },
                        x + cell / 2.0,
                        y + cell_height / 2.0 + 4.0
                    );
                }
            }
        }
        let bottom = y0 + cell_height * rows.len() as f64;
        for (c, column) in columns.iter().enumerate() {
            put!(
                svg,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x0 + cell * (c as f64 + 0.5),
                bottom + 15.0,
                escape(&short(column, 10))
            );
        }
        put!(
            svg,
            "<text class=\"label\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x0 + cell * columns.len() as f64 / 2.0,
            bottom + 36.0,
            escape(&short(&format!("{} (rows: {})", series.axes.x_label, series.axes.y_label), 50))
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_interval() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        for (from, to) in [(0.013, 0.87), (-5.0, 3.0), (1e-9, 2e-9), (1.0, 1e9)] {
            let found = ticks(from, to);
            assert!(found[0] <= from && found[found.len() - 1] >= to, "{from} {to} {found:?}");
            assert!(found.len() <= 9, "{found:?}");
        }
        assert_eq!(label(0.6000000000000001, &[0.0, 0.2]), "0.6");
        assert_eq!(label(2.5e6, &[0.0, 2.5e6]), "2.5e+06");
    }

    #[test]
    fn text_of_files_is_escaped() {
        assert_eq!(escape("<b>\"&\u{1b}"), "&lt;b&gt;&quot;&amp;\u{fffd}");
    }

    #[test]
    fn long_lines_keep_their_extremes() {
        let point = Point::new();
        let placed: Vec<_> = (0..10_000).map(|i| (f64::from(i), if i == 7777 { 9.0 } else { 1.0 }, &point)).collect();
        let thin = thin(&placed);
        assert!(thin.len() <= MAX_POINTS + 2);
        assert!(thin.iter().any(|(x, y)| (*x - 7777.0).abs() < 0.5 && (*y - 9.0).abs() < 0.5));
    }
}
