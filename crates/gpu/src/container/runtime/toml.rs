//! TOML that people edit: errors with their place, and changes that keep comments, order and line ends.

use std::collections::BTreeMap;
use std::ops::Range;

use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use super::invalid;
use crate::GpuError;

/// Maximum number of characters of a file's line in an error message.
const MAX_EXCERPT: usize = 80;

/// Parses TOML. The error has the line, the column and the part of the line around them.
pub(super) fn parse(text: &str) -> Result<DocumentMut, GpuError> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        let message = error.message().lines().next().unwrap_or_default();
        match error.span() {
            Some(span) => invalid(place(text, &span, message)),
            None => invalid(message),
        }
    })
}

/// An error message for a position in a text.
fn place(text: &str, span: &Range<usize>, message: &str) -> String {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let column = before[line_start..].chars().count();
    let excerpt: String = line.chars().skip(column.saturating_sub(MAX_EXCERPT / 2)).take(MAX_EXCERPT).collect();
    let number = before.matches('\n').count() + 1;
    format!("line {number}, column {}: {message}: `{}`", column + 1, excerpt.trim())
}

/// Applies a change to TOML text. Text that the change leaves alone keeps its line ends, and text without any change stays as it is.
pub(super) fn edit(
    text: &str,
    change: impl FnOnce(&mut DocumentMut) -> Result<(), GpuError>,
) -> Result<String, GpuError> {
    let mut document = parse(text)?;
    let before = document.to_string();
    change(&mut document)?;
    let after = document.to_string();
    if after == before {
        return Ok(text.to_owned());
    }
    let after = keep_line_ends(text, &after);
    parse(&after)?; // A file that the runtime could not read must never be written.
    Ok(after)
}

/// Gives every line of `after` the line end that it has in `before`, and new lines that of the line above.
fn keep_line_ends(before: &str, after: &str) -> String {
    let split = |line: &'_ str| line.trim_end_matches(['\r', '\n']).to_owned();
    let end = |line: &str| if line.ends_with("\r\n") { "\r\n" } else { "\n" };
    let mut old: Vec<&str> = before.split_inclusive('\n').collect();
    old.reverse();
    let mut last = old.last().map_or("\n", |line| end(line));
    let mut out = String::with_capacity(after.len());
    for line in after.split_inclusive('\n') {
        let content = split(line);
        if let Some(found) = old.iter().rposition(|line| split(line) == content) {
            last = old.get(found).map_or(last, |line| end(line));
            old.truncate(found);
        }
        out.push_str(&content);
        if line.ends_with('\n') {
            out.push_str(last);
        }
    }
    out
}

/// The item at a path.
pub(super) fn get<'t>(table: &'t dyn TableLike, path: &[&str]) -> Option<&'t Item> {
    let (first, rest) = path.split_first()?;
    let item = table.get(first)?;
    if rest.is_empty() { Some(item) } else { get(item.as_table_like()?, rest) }
}

/// The text at a path.
pub(super) fn get_str<'t>(table: &'t dyn TableLike, path: &[&str]) -> Option<&'t str> {
    get(table, path)?.as_str()
}

/// The list of texts at a path; other elements are left out.
pub(super) fn get_strings(table: &dyn TableLike, path: &[&str]) -> Option<Vec<String>> {
    let list = get(table, path)?.as_array()?;
    Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// The table at a path. Missing tables are created and written as `[a.b.c]`.
pub(super) fn table<'t>(parent: &'t mut dyn TableLike, path: &[&str]) -> Result<&'t mut dyn TableLike, GpuError> {
    let Some((first, rest)) = path.split_first() else { return Ok(parent) };
    if !parent.contains_key(first) {
        let mut new = Table::new();
        new.set_implicit(true);
        parent.insert(first, Item::Table(new));
    }
    let next = parent.get_mut(first).and_then(Item::as_table_like_mut);
    table(next.ok_or_else(|| invalid(format!("'{first}' is not a table")))?, rest)
}

/// Sets a value, and keeps the comment beside it.
pub(super) fn set(table: &mut dyn TableLike, key: &str, value: impl Into<Value>) {
    let mut value: Value = value.into();
    value.decor_mut().clear();
    if let Some(old) = table.get(key).and_then(Item::as_value) {
        let mut plain = old.clone();
        plain.decor_mut().clear();
        if plain.to_string() == value.to_string() {
            return;
        }
        *value.decor_mut() = old.decor().clone();
    }
    match table.get_mut(key) {
        Some(item) => *item = Item::Value(value),
        None => drop(table.insert(key, Item::Value(value))),
    }
}

/// Copies the values of `source` and its tables. Other values of `target` stay.
pub(super) fn merge(target: &mut dyn TableLike, source: &dyn TableLike) -> Result<(), GpuError> {
    for (key, item) in source.iter() {
        match (item.as_table_like(), item.as_value()) {
            (Some(inner), _) => merge(table(target, &[key])?, inner)?,
            (None, Some(value)) => set(target, key, value.clone()),
            (None, None) => {}
        }
    }
    Ok(())
}

/// All values below a table as path and text, without comments.
pub(super) fn values(table: &dyn TableLike) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (key, item) in table.iter() {
        if let Some(inner) = item.as_table_like() {
            out.extend(values(inner).into_iter().map(|(path, value)| (format!("{key}.{path}"), value)));
        } else if let Some(value) = item.as_value() {
            let mut value = value.clone();
            value.decor_mut().clear();
            out.insert(key.to_owned(), value.to_string());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_a_place_and_long_lines_are_cut() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        let text = error("version = 2\nroot = [\n");
        assert!(text.contains("line 2") || text.contains("line 3"), "{text}");
        let text = error("version = 2\nroot = /var\n");
        assert!(text.contains("line 2, column 8") && text.contains("`root = /var`"), "{text}");
        for giant in
            ["a = ".to_owned() + &"[".repeat(50_000), format!("a = \"{}", "ü".repeat(50_000)), "x".repeat(9_000)]
        {
            assert!(error(&giant).len() < 400, "{}", error(&giant).len());
        }
    }

    #[test]
    fn line_ends_are_kept_line_by_line() {
        let enable = |text: &str| {
            edit(text, |document| {
                set(table(document.as_table_mut(), &["a"])?, "x", true);
                Ok(())
            })
            .unwrap()
        };
        assert_eq!(enable("# one\r\n[a]\r\ny = 1\r\n"), "# one\r\n[a]\r\ny = 1\r\nx = true\r\n");
        assert_eq!(enable("[a]\r\nx = false # why\r\n\n[b]\nz = 1\n"), "[a]\r\nx = true # why\r\n\n[b]\nz = 1\n");
        assert_eq!(enable("[a]\nx = true"), "[a]\nx = true", "a file without a final newline is not touched");
        assert_eq!(enable("a = {y = 1}\r\n"), "a = {y = 1, x = true }\r\n");
    }
}
