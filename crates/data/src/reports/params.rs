//! `params diff`.

use std::path::{Path, PathBuf};

use super::Files;
use super::changes::Changes;
use super::definitions::{Definitions, Keys};
use super::metrics::{compare_revisions, read_each, read_values};
use crate::config::relative_path;
use crate::error::DataError;
use crate::pipeline::DEFAULT_PARAMS_FILE;
use crate::project::Project;
use crate::tree::Tree;
use crate::yaml::Value;

/// The parameters of a version of the project: those of the targets, or all. With `only_dependencies` these are only those of stages.
///
/// # Errors
/// If the definitions cannot be read; failures of a file are part of the result.
pub fn gather(tree: &Tree<'_>, targets: &[PathBuf], only_dependencies: bool) -> Result<Files, DataError> {
    let mut keys: Vec<Keys> = targets.iter().map(|path| (path.clone(), Vec::new())).collect();
    let mut variables = Vec::new();
    if targets.is_empty() {
        let definitions = Definitions::read(tree)?;
        keys = definitions.params;
        if !only_dependencies {
            keys.extend(definitions.top_params.into_iter().map(|path| (path, Vec::new())));
            let default = tree.project().root.join(DEFAULT_PARAMS_FILE);
            if tree.read(&default)?.is_some() {
                keys.push((default, Vec::new()));
            }
        }
        variables = merge(definitions.variables);
    }
    let keys = merge(keys);
    let paths: Vec<PathBuf> = keys.iter().map(|(path, _)| path.clone()).collect();
    let selected = |path: &Path| keys.iter().find(|(root, _)| path.starts_with(root)).map(|(_, keys)| keys.as_slice());
    let mut files = read_each(tree, &paths, |path, shown| {
        let value = read_values(tree, path, shown)?;
        Ok(match selected(path) {
            Some(keys) if !keys.is_empty() => select(&value, keys),
            _ => value,
        })
    })?;
    for (path, keys) in variables {
        let shown = relative_path(&path, &tree.project().root).to_string_lossy().into_owned();
        if files.iter().any(|(known, _)| *known == shown) {
            continue;
        }
        let value = read_values(tree, &path, &shown).map(|value| {
            let entries = keys.iter().filter_map(|key| Some((key.clone(), value.find(key)?.clone())));
            Value::Map(entries.collect())
        });
        // What a template needs has been read before; what is missing now was not needed.
        if value.is_ok() {
            files.push((shown, value));
        }
    }
    Ok(files)
}

/// Each file once. One without keys counts as a whole.
fn merge(keys: Vec<Keys>) -> Vec<Keys> {
    let whole: Vec<PathBuf> = keys.iter().filter(|(_, keys)| keys.is_empty()).map(|(path, _)| path.clone()).collect();
    let mut merged: Vec<Keys> = Vec::new();
    for (path, mut names) in keys {
        if whole.contains(&path) {
            names.clear();
        }
        match merged.iter_mut().find(|(known, _)| *known == path) {
            Some((_, known)) => known.extend(names),
            None => merged.push((path, names)),
        }
    }
    merged
}

/// The parts of a value that keys name, in nested mappings as in the value.
fn select(value: &Value, keys: &[String]) -> Value {
    let mut selected = Value::Map(Vec::new());
    for key in keys {
        if let Some(found) = value.find(key) {
            insert(&mut selected, key, found);
        }
    }
    selected
}

fn insert(target: &mut Value, key: &str, value: &Value) {
    let Value::Map(entries) = target else { return };
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let place = entries.iter().position(|(known, _)| known == first).unwrap_or_else(|| {
        entries.push((first.to_owned(), Value::Map(Vec::new())));
        entries.len() - 1
    });
    match rest {
        Some(rest) => insert(&mut entries[place].1, rest, value),
        None => entries[place].1 = value.clone(),
    }
}

/// The differences of the parameters between two revisions, and the names of those that could not be read completely.
///
/// # Errors
/// If a revision does not exist.
pub fn diff(
    project: &Project,
    revisions: (&str, &str),
    targets: &[PathBuf],
    unchanged: bool,
    only_dependencies: bool,
) -> Result<(Changes, Vec<String>), DataError> {
    compare_revisions(project, revisions, unchanged, |tree| gather(tree, targets, only_dependencies))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_select_parts() {
        let value = crate::json::parse(r#"{"a": {"b": 1, "c": 2, "d": {"e": 3}}, "f": 4}"#).unwrap();
        let selected = select(&value, &["a.d.e".into(), "f".into(), "none".into(), "a.b".into()]);
        assert_eq!(
            super::super::python::value_to_json(&selected).to_text(),
            r#"{"a": {"d": {"e": 3}, "b": 1}, "f": 4}"#
        );
    }

    #[test]
    fn a_file_without_keys_counts_as_a_whole() {
        let key = |path: &str, keys: &[&str]| (PathBuf::from(path), keys.iter().map(|k| (*k).to_owned()).collect());
        let merged = merge(vec![key("a", &["x"]), key("b", &["y"]), key("a", &[]), key("b", &["z"])]);
        assert_eq!(merged, [key("a", &[]), key("b", &["y", "z"])]);
    }
}
