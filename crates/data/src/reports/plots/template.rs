//! Templates of plots in Vega-Lite. The placeholders `<DVC_METRIC_…>` are those of DVC, so that a project's own templates work with both.

use std::collections::BTreeSet;
use std::path::Path;

use super::Series;
use super::points::{FIELD, FILENAME, Point, REVISION, get, set};
use crate::error::DataError;
use crate::json::{self, Json};
use crate::reports::python;
use crate::yaml::Value;

/// The names of the templates that every project has.
pub const NAMES: &[&str] = &[
    "simple",
    "linear",
    "confusion",
    "confusion_normalized",
    "scatter",
    "scatter_jitter",
    "smooth",
    "bar_horizontal_sorted",
    "bar_horizontal",
];
/// The template of plots that do not name one.
pub const DEFAULT: &str = "linear";
/// The folder of a project's own templates, below `.dvc`.
const FOLDER: &str = "plots";
/// Maximum bytes of a template.
const MAX_BYTES: u64 = 4 << 20;

/// The optional placeholders, which are empty where they do not apply.
const OPTIONAL: &[&str] = &[
    "color",
    "column",
    "group_by_x",
    "group_by_y",
    "group_by",
    "pivot_field",
    "plot_height",
    "plot_width",
    "row",
    "shape",
    "stroke_dash",
    "tooltip",
    "zoom_and_pan",
];
/// The placeholders that `--split` leaves in place.
const SPLIT: &[&str] = &[
    "color",
    "data",
    "plot_height",
    "plot_width",
    "shape",
    "stroke_dash",
    "title",
    "tooltip",
    "x_label",
    "y_label",
    "zoom_and_pan",
];
/// The colours of revisions, in DVC's order.
pub(super) const COLORS: &[&str] = &["#945dd6", "#13adc7", "#f46837", "#48bb78", "#4299e1", "#ed8936", "#f56565"];

/// A template of slipway; `None` for another name.
pub fn built_in(name: &str) -> Option<Value> {
    let axis = |axis: &str, options: &str| {
        let upper = axis.to_uppercase();
        format!(r#""{axis}": {{"field": "<DVC_METRIC_{upper}>", "title": "<DVC_METRIC_{upper}_LABEL>", {options}}}"#)
    };
    let quantitative = r#""type": "quantitative", "scale": {"zero": false}"#;
    let (x, y) = (axis("x", quantitative), axis("y", quantitative));
    let common = r#""color": "<DVC_METRIC_COLOR>", "tooltip": "<DVC_METRIC_TOOLTIP>""#;
    let line = format!(r#""encoding": {{{x}, {y}, {common}, "strokeDash": "<DVC_METRIC_STROKE_DASH>"}}"#);
    let zoom = r#""params": ["<DVC_METRIC_ZOOM_AND_PAN>"]"#;
    let bars = |sort: &str| {
        let (value, category) =
            (axis("x", r#""type": "quantitative""#), axis("y", &format!(r#""type": "nominal", "sort": {sort}"#)));
        let offset = r#""yOffset": {"field": "rev"}"#;
        format!(r#""mark": "bar", "encoding": {{{value}, {category}, {offset}, {common}}}"#)
    };
    let confusion = |cell: &str, transform: &str| {
        let (x, y) = (axis("x", r#""type": "nominal""#), axis("y", r#""type": "nominal""#));
        let count = r#"{"aggregate": [{"op": "count", "as": "count"}], "groupby": ["<DVC_METRIC_Y>", "<DVC_METRIC_X>", "rev"]}"#;
        format!(
            r#""transform": [{count}{transform}], "mark": "rect", "encoding": {{{x}, {y}, "color": {{"field": "{cell}", "type": "quantitative"}}, "facet": {{"field": "rev", "type": "nominal"}}, "tooltip": {{"field": "{cell}"}}}}"#
        )
    };
    let body = match name {
        "simple" => format!(r#""mark": "line", {line}"#),
        "linear" => format!(r#"{zoom}, "mark": {{"type": "line", "point": true}}, {line}"#),
        "smooth" => format!(
            r#"{zoom}, "transform": [{{"loess": "<DVC_METRIC_Y>", "on": "<DVC_METRIC_X>", "groupby": "<DVC_METRIC_GROUP_BY>", "bandwidth": 0.3}}], "mark": "line", {line}"#
        ),
        "scatter" => format!(
            r#"{zoom}, "mark": {{"type": "point", "filled": true}}, "encoding": {{{x}, {y}, {common}, "shape": "<DVC_METRIC_SHAPE>"}}"#
        ),
        "scatter_jitter" => {
            let x = axis("x", r#""type": "nominal""#);
            format!(
                r#""transform": [{{"calculate": "random()", "as": "jitter"}}], "mark": {{"type": "point", "filled": true}}, "encoding": {{{x}, {y}, {common}, "xOffset": {{"field": "jitter", "type": "quantitative"}}, "shape": "<DVC_METRIC_SHAPE>"}}"#
            )
        }
        "bar_horizontal" => bars("null"),
        "bar_horizontal_sorted" => bars(r#""-x""#),
        "confusion" => confusion("count", ""),
        "confusion_normalized" => confusion(
            "share",
            r#", {"joinaggregate": [{"op": "sum", "field": "count", "as": "total"}], "groupby": ["<DVC_METRIC_Y>", "rev"]}, {"calculate": "datum.count / datum.total", "as": "share"}"#,
        ),
        _ => return None,
    };
    let text = format!(
        r#"{{"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "data": {{"values": "<DVC_METRIC_DATA>"}}, "title": "<DVC_METRIC_TITLE>", "width": "<DVC_METRIC_PLOT_WIDTH>", "height": "<DVC_METRIC_PLOT_HEIGHT>", {body}}}"#
    );
    json::parse(&text).ok()
}

/// The template with a name: of the project, a file, or of slipway.
///
/// # Errors
/// If there is none, or it is not JSON.
pub(super) fn load(name: &str, dvc_dir: &Path, current: &Path) -> Result<Value, DataError> {
    let own = dvc_dir.join(FOLDER);
    for path in [own.join(name), own.join(format!("{name}.json")), current.join(name)] {
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if !metadata.is_file() {
            continue;
        }
        if metadata.len() > MAX_BYTES {
            return Err(DataError::file(&path, 0, "it is too large for a template"));
        }
        let text = std::fs::read_to_string(&path).map_err(DataError::io(&path))?;
        return json::parse(&text).map_err(|(reason, line)| DataError::file(&path, line, reason));
    }
    let known = NAMES.join(", ");
    built_in(name).ok_or_else(|| DataError::Plot(format!("there is no template '{name}'; there are {known}")))
}

/// A specification in Vega-Lite, and the values of placeholders that are left in it.
pub(super) struct Filled {
    pub(super) content: Value,
    pub(super) left: Vec<(String, Value)>,
}

/// Fills a template with the points and axes of a plot. With `split`, the placeholders that an editor fills are left.
///
/// # Errors
/// If a field is in no point, or the template has no place for the points.
pub(super) fn fill(template: &Value, series: &Series, split: bool) -> Result<Filled, String> {
    let axes = &series.axes;
    for field in [&axes.x, &axes.y] {
        if !field.is_empty() && !series.points.iter().any(|point| get(point, field).is_some()) {
            return Err(format!("the field '{field}' is in none of the points"));
        }
    }
    if !contains(template, &placeholder("data")) {
        return Err(format!("the template does not contain '{}'", placeholder("data")));
    }
    let mut filled = Filled { content: template.clone(), left: Vec::new() };
    let used: Vec<&str> = OPTIONAL.iter().copied().filter(|name| contains(template, &placeholder(name))).collect();
    let varied = varied_keys(series);
    for name in &used {
        let value = optional(name, series, &varied);
        filled.put(name, value, split);
    }
    let mut points = series.points.clone();
    if !used.is_empty() {
        keep_varied(&mut points, &varied);
    }
    let points = Value::List(points.into_iter().map(Value::Map).collect());
    let escape = |field: &str| field.replace('.', "\\.").replace('[', "\\[").replace(']', "\\]");
    for (name, value) in [
        ("title", Value::string(&series.title)),
        ("x", Value::string(escape(&axes.x))),
        ("y", Value::string(escape(&axes.y))),
        ("x_label", Value::string(&axes.x_label)),
        ("y_label", Value::string(&axes.y_label)),
        ("data", points),
    ] {
        filled.put(name, value, split);
    }
    Ok(filled)
}

impl Filled {
    fn put(&mut self, name: &str, value: Value, split: bool) {
        let placeholder = placeholder(name);
        if split && SPLIT.contains(&name) {
            self.left.push((placeholder, value));
        } else {
            self.content = replace(&self.content, &placeholder, &value);
        }
    }

    /// The specification as JSON.
    pub(super) fn to_json(&self) -> Json {
        python::value_to_json(&self.content)
    }
}

fn placeholder(name: &str) -> String {
    format!("<DVC_METRIC_{}>", name.to_uppercase())
}

fn contains(value: &Value, text: &str) -> bool {
    match value {
        Value::String(known) => known == text,
        Value::List(items) => items.iter().any(|item| contains(item, text)),
        Value::Map(entries) => entries.iter().any(|(_, value)| contains(value, text)),
        _ => false,
    }
}

fn replace(value: &Value, text: &str, new: &Value) -> Value {
    match value {
        Value::String(known) if known == text => new.clone(),
        Value::String(known) => match new {
            Value::String(new) if known.contains(text) => Value::String(known.replace(text, new)),
            _ => value.clone(),
        },
        Value::List(items) => Value::List(items.iter().map(|item| replace(item, text, new)).collect()),
        Value::Map(entries) => {
            Value::Map(entries.iter().map(|(key, value)| (key.clone(), replace(value, text, new))).collect())
        }
        other => other.clone(),
    }
}

/// Which of the file and the field differ between the series.
fn varied_keys(series: &Series) -> Vec<&'static str> {
    let list = &series.axes.series;
    let varies = |second: bool| list.iter().map(|(a, b)| if second { b } else { a }).collect::<BTreeSet<_>>().len() > 1;
    [(FILENAME, false), (FIELD, true)].into_iter().filter(|(_, second)| varies(*second)).map(|(key, _)| key).collect()
}

/// Keeps of the file and the field only what differs between the series; if both do, in one field.
fn keep_varied(points: &mut [Point], varied: &[&str]) {
    for point in points {
        if let [first, second] = varied {
            let text = |name: &str| get(point, name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let joined = format!("{}::{}", text(first), text(second));
            set(point, &varied.join("::"), Value::String(joined));
        }
        let is_kept = |name: &str| varied.len() == 1 && varied.contains(&name);
        point.retain(|(name, _)| (name != FILENAME && name != FIELD) || is_kept(name));
    }
}

fn optional(name: &str, series: &Series, varied: &[&str]) -> Value {
    let map = |entries: Vec<(&str, Value)>| {
        Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let strings = |items: Vec<&str>| Value::List(items.into_iter().map(Value::string).collect());
    let axes = &series.axes;
    let joined = varied.join("::");
    let is_single = axes.series.len() <= 1;
    let mut group = vec![REVISION];
    if !is_single {
        group.push(&joined);
    }
    let field = |name: &str| map(vec![("field", Value::string(name))]);
    match name {
        "color" => {
            let revisions: Vec<&str> = series.revisions.iter().map(String::as_str).collect();
            let range = revisions.iter().enumerate().map(|(i, _)| COLORS[i % COLORS.len()]).collect();
            let scale = map(vec![("domain", strings(revisions)), ("range", strings(range))]);
            map(vec![("field", Value::string(REVISION)), ("scale", scale)])
        }
        "zoom_and_pan" => map(vec![
            ("name", Value::string("grid")),
            ("select", Value::string("interval")),
            ("bind", Value::string("scales")),
        ]),
        "plot_height" | "plot_width" => Value::number(300),
        "group_by" => strings(group),
        "group_by_x" | "group_by_y" => {
            group.push(if name == "group_by_x" { &axes.x } else { &axes.y });
            strings(group)
        }
        "pivot_field" if is_single => Value::string(format!("datum.{REVISION}")),
        "pivot_field" => {
            let parts: Vec<String> =
                std::iter::once(&REVISION).chain(varied).map(|key| format!("datum.{key}")).collect();
            Value::String(parts.join(" + '::' + "))
        }
        "tooltip" => {
            let mut fields = vec![field(REVISION), field(&axes.x), field(&axes.y)];
            fields.extend((!is_single).then(|| field(&joined)));
            Value::List(fields)
        }
        "row" | "column" if !is_single => {
            map(vec![("field", Value::string(&joined)), ("sort", Value::List(Vec::new()))])
        }
        "stroke_dash" | "shape" if !is_single => {
            let names: BTreeSet<String> = axes
                .series
                .iter()
                .map(|(file, name)| match varied {
                    [_, _] => format!("{file}::{name}"),
                    [FILENAME] => file.clone(),
                    _ => name.clone(),
                })
                .collect();
            let range = (0..names.len()).map(|i| range_value(name, i)).collect();
            let scale = map(vec![
                ("domain", Value::List(names.into_iter().map(Value::String).collect())),
                ("range", Value::List(range)),
            ]);
            let legend = map(vec![
                ("symbolFillColor", Value::string("transparent")),
                ("symbolStrokeColor", Value::string("grey")),
            ]);
            map(vec![("field", Value::string(&joined)), ("scale", scale), ("legend", legend)])
        }
        _ => Value::Map(Vec::new()),
    }
}

fn range_value(name: &str, i: usize) -> Value {
    const DASHES: [[u64; 2]; 7] = [[1, 0], [8, 8], [8, 4], [4, 4], [4, 2], [2, 1], [1, 1]];
    const SHAPES: [&str; 4] = ["circle", "square", "triangle", "diamond"];
    match name {
        "shape" => Value::string(SHAPES[i % SHAPES.len()]),
        _ => Value::List(DASHES[i % DASHES.len()].map(Value::number).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_templates_have_a_place_for_points() {
        for name in NAMES {
            let template = built_in(name).unwrap();
            for part in ["data", "title", "x", "y"] {
                assert!(contains(&template, &placeholder(part)), "{name} {part}");
            }
        }
        assert!(built_in("none").is_none());
    }
}
