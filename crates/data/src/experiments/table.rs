//! Experiments as a table.

use std::collections::{BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use regex::Regex;

use super::show::{Content, State};
use crate::error::DataError;
use crate::reports::Files;
use crate::reports::changes::flatten;
use crate::reports::python::{self, Rounding};
use crate::reports::table::Table;
use crate::scm::Commit;
use crate::yaml::Value;

/// What a table of experiments shows.
#[derive(Debug, Clone)]
pub struct Options {
    /// For programs: a column for each part of a name, times in ISO 8601, empty cells instead of `-`.
    pub raw: bool,
    /// How floats are shortened.
    pub rounding: Rounding,
    /// Leave out columns with only one value.
    pub only_changed: bool,
    /// Leave out columns whose names begin with a match of one of these patterns.
    pub drop: Vec<String>,
    /// Columns to show in any case.
    pub keep: Vec<String>,
    /// The metric or parameter by which experiments are sorted, and whether the largest is first.
    pub sort_by: Option<(String, bool)>,
}

/// A table, and which of its columns are metrics, whose cells are aligned at the right.
#[derive(Debug)]
pub struct Experiments {
    /// The table.
    pub table: Table,
    /// The titles of the columns with metrics.
    pub metrics: BTreeSet<String>,
}

/// The names of values by file, in the order in which they are found.
type Names = Vec<(String, Vec<String>)>;

fn values(content: &Value, path: &str) -> Vec<(String, Value)> {
    match content {
        Value::Map(_) => flatten(content),
        single => vec![(path.to_owned(), single.clone())],
    }
}

fn add_names(names: &mut Names, files: &Files) {
    for (path, values) in files {
        let place = names.iter().position(|(known, _)| known == path).unwrap_or_else(|| {
            names.push((path.clone(), Vec::new()));
            names.len() - 1
        });
        for (name, _) in values.as_ref().map(flatten).unwrap_or_default() {
            if !names[place].1.contains(&name) {
                names[place].1.push(name);
            }
        }
    }
}

/// The rows of the table, before columns are selected.
struct Layout {
    metrics: Names,
    params: Names,
    deps: BTreeSet<String>,
    /// How often each name is used; one that is used once needs no file in its title.
    uses: HashMap<String, usize>,
}

const FIXED: [&str; 7] = ["Experiment", "rev", "typ", "Created", "parent", "State", "Executor"];

impl Layout {
    fn new(states: &[State]) -> Self {
        let mut layout =
            Self { metrics: Names::new(), params: Names::new(), deps: BTreeSet::new(), uses: HashMap::new() };
        for state in states.iter().flat_map(|state| std::iter::once(state).chain(&state.experiments)) {
            if let Ok(content) = &state.content {
                add_names(&mut layout.metrics, &content.metrics);
                add_names(&mut layout.params, &content.params);
                layout.deps.extend(content.deps.iter().map(|dep| dep.path.clone()));
            }
        }
        let fixed = FIXED.iter().map(|name| (*name).to_owned());
        let named = layout.metrics.iter().chain(&layout.params).flat_map(|(_, names)| names.iter().cloned());
        for name in fixed.chain(named) {
            *layout.uses.entry(name).or_default() += 1;
        }
        layout
    }

    fn title(&self, path: &str, name: &str) -> String {
        if self.uses.get(name) == Some(&1) { name.to_owned() } else { format!("{path}:{name}") }
    }

    fn titles(&self, names: &Names) -> Vec<String> {
        names.iter().flat_map(|(path, names)| names.iter().map(|name| self.title(path, name))).collect()
    }

    fn cells(&self, names: &Names, files: &Files, options: &Options) -> Vec<String> {
        let fill = fill(options);
        let mut cells = Vec::new();
        for (path, names) in names {
            let file = files.iter().find(|(known, _)| known == path).map(|(_, values)| values);
            let known = match file {
                Some(Ok(content)) => values(content, path),
                _ => Vec::new(),
            };
            let missing = if matches!(file, Some(Err(_))) { "!" } else { fill };
            for name in names {
                let value = known.iter().find(|(known, value)| known == name && *value != Value::Null);
                cells.push(value.map_or_else(|| missing.to_owned(), |(_, v)| python::text(v, options.rounding)));
            }
        }
        cells
    }

    fn row(&self, state: &State, kind: &str, options: &Options) -> Vec<String> {
        let fill = fill(options);
        let is_commit = state.commit.is_some();
        let short = if is_commit { &state.revision[..state.revision.len().min(7)] } else { &state.revision };
        let is_baseline = kind == "baseline";
        let name = state.name.clone().unwrap_or_default();
        let (experiment, revision) = match is_baseline {
            true if name.is_empty() => (String::new(), short.to_owned()),
            true => (String::new(), name),
            false => (name, short.to_owned()),
        };
        let created = match (&state.commit, &state.content) {
            (Some(commit), Ok(_)) => time(commit, options.raw),
            _ => fill.to_owned(),
        };
        let executor = state.executor.as_ref();
        let by = executor.and_then(|executor| executor.name).map_or_else(|| fill.to_owned(), capitalised);
        let task = executor.map_or_else(|| fill.to_owned(), |executor| executor.state.word().to_owned());
        let mut row = vec![experiment, revision, kind.to_owned(), created, String::new(), task, by];
        let empty = Content { params: Files::new(), metrics: Files::new(), deps: Vec::new(), outs: Vec::new() };
        let content = state.content.as_ref().unwrap_or(&empty);
        row.extend(self.cells(&self.metrics, &content.metrics, options));
        row.extend(self.cells(&self.params, &content.params, options));
        for path in &self.deps {
            let dep = content.deps.iter().find(|dep| dep.path == *path);
            row.push(dep.and_then(|dep| dep.digest.clone()).unwrap_or_else(|| fill.to_owned()));
        }
        row
    }

    /// The file and name of the value by which experiments are sorted, and whether it is a metric.
    fn sort_column(&self, wanted: &str) -> Result<(bool, String, String), DataError> {
        let all = |is_metric: bool, names: &Names| -> Vec<(bool, String, String)> {
            let of_file = |(path, names): &(String, Vec<String>)| {
                names.iter().map(|name| (is_metric, path.clone(), name.clone())).collect::<Vec<_>>()
            };
            names.iter().flat_map(of_file).collect()
        };
        let mut known = all(true, &self.metrics);
        known.extend(all(false, &self.params));
        let exact: Vec<_> = known.iter().filter(|(_, path, name)| format!("{path}:{name}") == wanted).collect();
        let short = wanted.strip_prefix(':').unwrap_or(wanted);
        let found = if exact.is_empty() { known.iter().filter(|(.., name)| name == short).collect() } else { exact };
        match found.as_slice() {
            [] => Err(DataError::Invalid(format!("there is no metric or parameter '{wanted}' to sort by"))),
            [one] => Ok((*one).clone()),
            several => {
                let names: Vec<String> = several.iter().map(|(_, path, name)| format!("{path}:{name}")).collect();
                Err(DataError::Invalid(format!("'{wanted}' may be any of {}", names.join(", "))))
            }
        }
    }
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    format!("{}{rest}", first.to_uppercase())
}

fn fill(options: &Options) -> &'static str {
    if options.raw { "" } else { "-" }
}

/// The table of experiments, each below its baseline.
///
/// # Errors
/// [`DataError::Invalid`] if a pattern is not valid, or there is no value by which to sort.
pub fn to_table(states: &[State], options: &Options) -> Result<Experiments, DataError> {
    let layout = Layout::new(states);
    let mut table = Table::new(&FIXED);
    let metrics = layout.titles(&layout.metrics);
    table.columns.extend(metrics.iter().cloned());
    table.columns.extend(layout.titles(&layout.params));
    table.columns.extend(layout.deps.iter().cloned());
    for state in states {
        table.rows.push(layout.row(state, "baseline", options));
        let mut experiments: Vec<&State> = state.experiments.iter().collect();
        if let Some((wanted, descending)) = &options.sort_by {
            sort(&mut experiments, &layout.sort_column(wanted)?, *descending);
        }
        for (i, experiment) in experiments.iter().enumerate() {
            let kind = if i + 1 == experiments.len() { "branch_base" } else { "branch_commit" };
            table.rows.push(layout.row(experiment, kind, options));
        }
    }
    let is_filled = |table: &Table, i: usize| table.rows.iter().any(|row| row[i] != fill(options));
    table.keep_columns(|table, i| !matches!(i, 5 | 6) || is_filled(table, i));
    if !options.raw {
        merge_names(&mut table);
    }
    select_columns(&mut table, options)?;
    Ok(Experiments { table, metrics: metrics.into_iter().collect() })
}

fn sort(experiments: &mut [&State], (is_metric, path, name): &(bool, String, String), descending: bool) {
    let value = |state: &State| {
        let content = state.content.as_ref().ok()?;
        let files = if *is_metric { &content.metrics } else { &content.params };
        let content = files.iter().find(|(known, _)| known == path)?.1.as_ref().ok()?;
        values(content, path).into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    };
    experiments.sort_by(|a, b| {
        let (a, b) = (value(a), value(b));
        // Experiments without the value come after all others, as in an ascending order of DVC.
        let order = a.is_none().cmp(&b.is_none()).then_with(|| match (&a, &b) {
            (Some(a), Some(b)) => match (python::number(a), python::number(b)) {
                (Some(x), Some(y)) => x.as_f64().total_cmp(&y.as_f64()),
                _ => python::text(a, Rounding::None).cmp(&python::text(b, Rounding::None)),
            },
            _ => std::cmp::Ordering::Equal,
        });
        if descending { order.reverse() } else { order }
    });
}

/// Joins the columns that name an experiment into one, with lines that show from which baseline it was derived.
fn merge_names(table: &mut Table) {
    for row in &mut table.rows {
        let branch = match row[2].as_str() {
            "branch_commit" => "├── ",
            "branch_base" => "└── ",
            _ => "",
        };
        row[0] = match row[0].as_str() {
            "" => format!("{branch}{}", row[1]),
            name => format!("{branch}{} [{name}]", row[1]),
        };
    }
    table.keep_columns(|table, i| !matches!(table.columns[i].as_str(), "rev" | "typ" | "parent") || i > 4);
}

fn select_columns(table: &mut Table, options: &Options) -> Result<(), DataError> {
    let compile = |patterns: &[String]| -> Result<Option<Regex>, DataError> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let pattern = format!("^(?:{})", patterns.join("|"));
        let invalid = |error| DataError::Invalid(format!("'{}' is not a valid pattern: {error}", patterns.join("|")));
        Regex::new(&pattern).map(Some).map_err(invalid)
    };
    let (keep, drop) = (compile(&options.keep)?, compile(&options.drop)?);
    let matches = |pattern: &Option<Regex>, name: &str| pattern.as_ref().is_some_and(|p| p.is_match(name));
    table.keep_columns(|table, i| {
        let name = &table.columns[i];
        let is_varied = table.rows.iter().any(|row| row[i] != table.rows[0][i]);
        matches(&keep, name) || (!matches(&drop, name) && (is_varied || !options.only_changed))
    });
    Ok(())
}

/// The time of a commit, for users: of today the time of the day, otherwise the day.
pub fn time(commit: &Commit, raw: bool) -> String {
    let (seconds, local) = &commit.time;
    if raw {
        return local.clone();
    }
    let part = |range: std::ops::Range<usize>| local.get(range).and_then(|text| text.parse::<i64>().ok());
    let (Some(year), Some(month), Some(day), Some(hour)) = (part(0..4), part(5..7), part(8..10), part(11..13)) else {
        return local.clone();
    };
    let minutes = local.get(14..16).unwrap_or("00");
    let days = days_since_epoch(year, month, day);
    let of_day = hour * 3600 + part(14..16).unwrap_or(0) * 60 + part(17..19).unwrap_or(0);
    let offset = days * DAY + of_day - seconds;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let is_today = i64::try_from(now).unwrap_or(0).saturating_add(offset).div_euclid(DAY) == days;
    if is_today {
        let half = if hour < 12 { "AM" } else { "PM" };
        return format!("{:02}:{minutes} {half}", (hour + 11) % 12 + 1);
    }
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = usize::try_from(month - 1).ok().and_then(|i| names.get(i)).copied().unwrap_or_default();
    format!("{name} {day:02}, {year}")
}

const DAY: i64 = 86_400;

/// Days from 1970-01-01 to a day of the Gregorian calendar, counted in years that begin in March, so that leap days are last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl Experiments {
    /// The table for a terminal: metrics at the right, lines above, below and under the titles.
    pub fn render(&self) -> String {
        let table = &self.table;
        let width = |text: &str| text.chars().count();
        let widths: Vec<usize> = (0..table.columns.len())
            .map(|i| table.rows.iter().map(|row| width(&row[i])).max().unwrap_or(0).max(width(&table.columns[i])))
            .collect();
        let total = widths.iter().map(|width| width + 3).sum::<usize>().saturating_sub(1);
        let rule = format!(" {} \n", "─".repeat(total));
        let line = |cells: &[String]| {
            let mut text = String::from(" ");
            for ((cell, width), title) in cells.iter().zip(&widths).zip(&table.columns) {
                let cell = cell.replace(['\n', '\r'], " ");
                text.push_str(&match self.metrics.contains(title) {
                    true => format!(" {cell:>width$}  "),
                    false => format!(" {cell:width$}  "),
                });
            }
            format!("{text}\n")
        };
        let rows: String = table.rows.iter().map(|row| line(row)).collect();
        format!("{rule}{}{rule}{rows}{rule}", line(&table.columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted() {
        assert_eq!(days_since_epoch(1970, 1, 1), 0);
        assert_eq!(days_since_epoch(2000, 2, 29), 11_016);
        assert_eq!(days_since_epoch(2026, 11, 29), 20_786);
        assert_eq!(days_since_epoch(1969, 12, 31), -1);
    }

    #[test]
    fn old_times_are_shown_as_days() {
        let commit = |local: &str| Commit { id: "c".into(), time: (1_000_000_000, local.into()) };
        assert_eq!(time(&commit("2001-09-09T01:46:40"), false), "Sep 09, 2001");
        assert_eq!(time(&commit("2001-09-09T01:46:40"), true), "2001-09-09T01:46:40");
        assert_eq!(time(&commit("nonsense"), false), "nonsense");
    }
}
