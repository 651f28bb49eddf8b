//! `metrics show` and `metrics diff`.

use std::path::{Path, PathBuf};

use super::changes::{Changes, compare, flatten, with_lists_as_text};
use super::definitions::Definitions;
use super::python::{self, Rounding};
use super::revisions::{Covered, WORKSPACE, values};
use super::table::Table;
use super::{Failure, Files, Revision};
use crate::error::DataError;
use crate::pipeline::params::parse;
use crate::project::Project;
use crate::tree::Tree;
use crate::yaml::Value;

/// The metrics of a version of the project: those of the targets, or all.
///
/// # Errors
/// If the definitions cannot be read; failures of a file are part of the result.
pub fn gather(tree: &Tree<'_>, targets: &[PathBuf]) -> Result<Files, DataError> {
    let paths = if targets.is_empty() {
        let definitions = Definitions::read(tree)?;
        definitions.metrics.into_iter().chain(definitions.top_metrics).collect()
    } else {
        targets.to_vec()
    };
    read_each(tree, &paths, |path, shown| {
        let value = read_values(tree, path, shown)?;
        // A metric is a number or text, also in nested mappings.
        Ok(match metric(&value) {
            Some(value) if !is_falsy(&value) => value,
            _ => Value::Map(Vec::new()),
        })
    })
}

/// Reads each of the files; folders stand for the files in them.
pub(super) fn read_each(
    tree: &Tree<'_>,
    paths: &[PathBuf],
    read: impl Fn(&Path, &str) -> Result<Value, Failure>,
) -> Result<Files, DataError> {
    let root = &tree.project().root;
    let mut files = Files::new();
    for path in paths {
        let below = tree.files_below(path)?.map_or_else(|| vec![path.clone()], |below| below.into_iter().collect());
        for path in below {
            let shown = crate::config::relative_path(&path, root).to_string_lossy().into_owned();
            if !files.iter().any(|(known, _)| *known == shown) {
                let value = read(&path, &shown);
                files.push((shown, value));
            }
        }
    }
    Ok(files)
}

/// The values of a file with parameters or metrics.
pub(super) fn read_values(tree: &Tree<'_>, path: &Path, shown: &str) -> Result<Value, Failure> {
    let text = tree.read_text(path).map_err(|error| Failure::from_error(&error, shown))?;
    let text = text.ok_or_else(|| Failure::missing(shown))?;
    parse(path, &text).map_err(|error| Failure::from_error(&error, shown))
}

fn metric(value: &Value) -> Option<Value> {
    match value {
        Value::Number(_) | Value::String(_) | Value::Bool(_) => Some(value.clone()),
        Value::Map(entries) => {
            let entry = |(key, value): &(String, Value)| {
                let value = metric(value).filter(|value| !matches!(value, Value::Map(entries) if entries.is_empty()));
                value.map(|value| (key.clone(), value))
            };
            Some(Value::Map(entries.iter().filter_map(entry).collect()))
        }
        Value::Null | Value::List(_) => None,
    }
}

fn is_falsy(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        value => python::number(value).is_some_and(|number| number.as_f64() == 0.0),
    }
}

/// The metrics of the covered revisions.
///
/// # Errors
/// If a revision does not exist.
pub fn show(project: &Project, targets: &[PathBuf], covered: &Covered) -> Result<Vec<Revision>, DataError> {
    values(project, covered, true, |tree| gather(tree, targets))
}

/// The differences of the metrics between two revisions, and the names of those that could not be read completely.
///
/// # Errors
/// If a revision does not exist.
pub fn diff(
    project: &Project,
    revisions: (&str, &str),
    targets: &[PathBuf],
    unchanged: bool,
) -> Result<(Changes, Vec<String>), DataError> {
    compare_revisions(project, revisions, unchanged, |tree| gather(tree, targets))
}

/// The differences of values between two revisions, and the names of those that could not be read completely.
pub(super) fn compare_revisions(
    project: &Project,
    (old, new): (&str, &str),
    unchanged: bool,
    read: impl Fn(&Tree<'_>) -> Result<Files, DataError>,
) -> Result<(Changes, Vec<String>), DataError> {
    if project.git.as_ref().is_none_or(|git| git.resolve("HEAD").ok().flatten().is_none()) {
        return Ok((Changes::new(), Vec::new()));
    }
    let covered = Covered { named: vec![old.to_owned(), new.to_owned()], ..Covered::default() };
    let found = values(project, &covered, false, read)?;
    let files = |name: &str| {
        let is_wanted = |revision: &&Revision| revision.name.split(',').any(|known| known == name);
        found.iter().find(is_wanted).and_then(|revision| revision.files.clone().ok()).unwrap_or_default()
    };
    let is_asked = |name: &str| name != WORKSPACE || old == WORKSPACE || new == WORKSPACE;
    let failed = found.iter().filter(|revision| is_asked(&revision.name) && revision.has_failures());
    Ok((compare(&files(old), &files(new), unchanged), failed.map(|revision| revision.name.clone()).collect()))
}

/// The revision, the file, and the cells of its metrics.
type Row = (String, String, Vec<(String, String)>);

/// A table of metrics with a column for each, and with columns for the revision unless there is only one.
pub fn to_table(revisions: &[Revision], with_revision: bool, rounding: Rounding) -> Table {
    let mut rows: Vec<Row> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for revision in revisions {
        for (path, value) in revision.files.iter().flatten() {
            let cells = match value.as_ref().map(with_lists_as_text) {
                Ok(Value::Map(entries)) => flatten(&Value::Map(entries)),
                Ok(value) => vec![(String::new(), value)],
                Err(_) => Vec::new(),
            };
            let cells: Vec<_> = cells.into_iter().map(|(name, value)| (name, python::text(&value, rounding))).collect();
            for (name, _) in &cells {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            rows.push((revision.name.clone(), path.clone(), cells));
        }
    }
    names.sort();
    let mut table = Table::new(&["Revision", "Path"]);
    table.columns.extend(names.iter().cloned());
    for (revision, path, cells) in rows {
        let mut row = vec![revision, path];
        let cell = |name: &String| cells.iter().find(|(known, _)| known == name).map_or("-", |(_, text)| text.as_str());
        row.extend(names.iter().map(|name| cell(name).to_owned()));
        table.rows.push(row);
    }
    if !with_revision {
        table.keep_columns(|_, i| i > 0);
    }
    table
}
