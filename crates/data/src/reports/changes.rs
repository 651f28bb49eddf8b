//! The differences of the values in files: DVC's `diff` of parameters and metrics.

use std::collections::BTreeMap;

use super::Files;
use super::python::{self, Rounding};
use super::table::Table;
use crate::json::Json;
use crate::yaml::Value;

/// The change of one value. A value that does not exist is `Null`.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The older value.
    pub old: Value,
    /// The newer value.
    pub new: Value,
    /// The difference of two numbers.
    pub difference: Option<Value>,
}

/// Changes by file and by the path of the value in it, whose keys are joined by dots.
pub type Changes = BTreeMap<String, BTreeMap<String, Change>>;

/// Compares the values of two revisions. Values that are equal are included with `unchanged`.
pub fn compare(old: &Files, new: &Files, unchanged: bool) -> Changes {
    let empty = Value::Map(Vec::new());
    let mut changes = Changes::new();
    for (path, _) in old.iter().chain(new) {
        let value = |files: &Files| {
            let file = files.iter().find(|(known, _)| known == path);
            parsed(file.and_then(|(_, value)| value.as_ref().ok()).unwrap_or(&empty))
        };
        let (old, new) = (value(old), value(new));
        let in_file = match (&old, &new) {
            (Value::Map(_), _) | (_, Value::Map(_)) => compare_maps(&old, &new, unchanged),
            _ => compare_values(&old, &new, unchanged).map(|change| (String::new(), change)).into_iter().collect(),
        };
        if !in_file.is_empty() {
            changes.insert(path.clone(), in_file);
        }
    }
    changes
}

/// Lists are compared as their text; a file with only a string may contain JSON.
fn parsed(value: &Value) -> Value {
    match value {
        Value::Map(_) => with_lists_as_text(value),
        Value::String(text) => crate::json::parse(text).unwrap_or_else(|_| value.clone()),
        other => other.clone(),
    }
}

/// The value, in which each list below a mapping is replaced by its text in Python.
pub(crate) fn with_lists_as_text(value: &Value) -> Value {
    let Value::Map(entries) = value else { return value.clone() };
    let entry = |(key, value): &(String, Value)| match value {
        Value::List(_) => (key.clone(), Value::String(python::text(value, Rounding::None))),
        value => (key.clone(), with_lists_as_text(value)),
    };
    Value::Map(entries.iter().map(entry).collect())
}

fn compare_maps(old: &Value, new: &Value, unchanged: bool) -> BTreeMap<String, Change> {
    // A value that is not a mapping where the other is one has no entries.
    let flat = |value: &Value| flatten(value).into_iter().collect::<BTreeMap<_, _>>();
    let missing = |value: &Value| match value {
        Value::Map(_) | Value::Null => Value::Null,
        _ => Value::string("unable to parse"),
    };
    let (a, b) = (flat(old), flat(new));
    let mut changes = BTreeMap::new();
    for name in a.keys().chain(b.keys()) {
        let (before, after) = (
            a.get(name).cloned().unwrap_or_else(|| missing(old)),
            b.get(name).cloned().unwrap_or_else(|| missing(new)),
        );
        if let Some(change) = compare_values(&before, &after, unchanged) {
            changes.insert(name.clone(), change);
        }
    }
    changes
}

fn compare_values(old: &Value, new: &Value, unchanged: bool) -> Option<Change> {
    if let (Value::List(a), Value::List(b)) = (old, new)
        && let ([a], [b]) = (a.as_slice(), b.as_slice())
    {
        return compare_values(a, b, unchanged);
    }
    if !unchanged && python::equal(old, new) {
        return None;
    }
    Some(Change { old: old.clone(), new: new.clone(), difference: python::difference(new, old) })
}

/// The values in nested mappings, in their order, with the keys on the way joined by dots. Empty mappings are left out.
pub(crate) fn flatten(value: &Value) -> Vec<(String, Value)> {
    fn visit(prefix: &str, value: &Value, flat: &mut Vec<(String, Value)>) {
        for (key, value) in value.entries() {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Map(_) => visit(&name, value, flat),
                value => flat.push((name, value.clone())),
            }
        }
    }
    let mut flat = Vec::new();
    visit("", value, &mut flat);
    flat
}

/// The changes as JSON.
pub fn to_json(changes: &Changes) -> Json {
    let change = |change: &Change| {
        let mut members = vec![
            ("old".to_owned(), python::value_to_json(&change.old)),
            ("new".into(), python::value_to_json(&change.new)),
        ];
        members.extend(change.difference.as_ref().map(|diff| ("diff".into(), python::value_to_json(diff))));
        Json::Map(members)
    };
    let file = |changes: &BTreeMap<String, Change>| {
        Json::Map(changes.iter().map(|(name, value)| (name.clone(), change(value))).collect())
    };
    Json::Map(changes.iter().map(|(path, changes)| (path.clone(), file(changes))).collect())
}

/// What a table of changes shows.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The title of the column with the names of values.
    pub title: &'a str,
    /// The names of the revisions.
    pub revisions: (&'a str, &'a str),
    /// Whether the files are shown.
    pub paths: bool,
    /// Whether the differences are shown, and the text for values that are not numbers.
    pub differences: Option<&'a str>,
    /// How floats are shortened.
    pub rounding: Rounding,
}

/// The changes as a table.
pub fn to_table(changes: &Changes, shown: Shown<'_>) -> Table {
    let mut table = Table::new(&["Path", shown.title, shown.revisions.0, shown.revisions.1, "Change"]);
    let cell = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        value => python::text(value, shown.rounding),
    };
    for (path, changes) in changes {
        for (name, change) in changes {
            let difference = change.difference.as_ref().map(cell);
            let missing = || shown.differences.unwrap_or_default().to_owned();
            let cells = [cell(&change.old), cell(&change.new), difference.unwrap_or_else(missing)];
            table.rows.push([path.clone(), name.clone()].into_iter().chain(cells).collect());
        }
    }
    let first = usize::from(!shown.paths);
    let last = if shown.differences.is_some() { 4 } else { 3 };
    table.keep_columns(|_, i| (first..=last).contains(&i));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reports::table::Form;

    fn files(text: &str) -> Files {
        vec![("m.json".to_owned(), Ok(crate::json::parse(text).unwrap()))]
    }

    #[test]
    fn nested_values_are_compared() {
        let old = files(r#"{"a": {"b": 1, "c": [1, 2]}, "d": "x", "same": 2}"#);
        let new = files(r#"{"a": {"b": 1.5, "c": [1, 3]}, "same": 2.0, "e": true}"#);
        let changes = compare(&old, &new, false);
        let text = to_json(&changes).to_text();
        assert_eq!(
            text,
            r#"{"m.json": {"a.b": {"old": 1, "new": 1.5, "diff": 0.5}, "a.c": {"old": "[1, 2]", "new": "[1, 3]"}, "d": {"old": "x", "new": null}, "e": {"old": null, "new": true}}}"#
        );
        let shown = Shown {
            title: "Metric",
            revisions: ("HEAD", "workspace"),
            paths: false,
            differences: Some("-"),
            rounding: Rounding::Decimals(5),
        };
        let table = to_table(&changes, shown).render(Form::Text);
        assert_eq!(
            table,
            "Metric    HEAD    workspace    Change\na.b       1       1.5          0.5\na.c       [1, 2]  [1, 3]       -\nd         x       -            -\ne         -       True         -\n"
        );
    }

    #[test]
    fn a_single_value_is_compared() {
        let changes = compare(&files("0.25"), &files("0.5"), false);
        assert_eq!(to_json(&changes).to_text(), r#"{"m.json": {"": {"old": 0.25, "new": 0.5, "diff": 0.25}}}"#);
        assert!(compare(&files("0.5"), &files("0.5"), false).is_empty());
    }
}
