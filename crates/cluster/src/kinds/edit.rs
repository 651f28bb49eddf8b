//! Edits of files that slipway shares with other programs and people: blocks, lines, and TOML or YAML values.
//!
//! An edit keeps everything else in the file, including comments, and changes nothing when it was applied before.

use std::path::Path;

use yaml_edit::path::YamlPath;

use super::diff;
use super::file::current_file;
use crate::probe::Facts;
use crate::resource::{Change, Edit};
use crate::shell::ChangeContext;

/// Applies all edits to the text, one after the other.
fn apply_edits(text: &str, edits: &[Edit]) -> Result<String, String> {
    edits.iter().try_fold(text.to_owned(), |text, edit| apply_edit(&text, edit))
}

/// Applies an edit to the text. Returns the text unchanged when the edit is in it already.
///
/// # Errors
/// When the text is not valid TOML or YAML, or has only one of a block's two marks.
pub(crate) fn apply_edit(text: &str, edit: &Edit) -> Result<String, String> {
    match edit {
        Edit::Block { name, text: content } => {
            let (begin, end) = (format!("# BEGIN {name}"), format!("# END {name}"));
            let lines: Vec<&str> = text.lines().collect();
            let at = |mark: &str| lines.iter().position(|l| l.trim_end() == mark);
            let block = if content.trim().is_empty() {
                if at(&begin).is_none() && at(&end).is_none() {
                    return Ok(text.to_owned());
                }
                String::new()
            } else {
                format!("{begin}\n{}\n{end}\n", content.trim_end())
            };
            let (before, after) = match (at(&begin), at(&end)) {
                (Some(from), Some(to)) if from < to => (&lines[..from], &lines[to + 1..]),
                (None, None) => (&lines[..], &[][..]),
                _ => return Err(format!("the marks '{begin}' and '{end}' are not a pair")),
            };
            let join = |lines: &[&str]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
            Ok(join(before) + &block + &join(after))
        }
        Edit::Line { line, begins } => {
            let is_replaced = |l: &str| l == line || begins.as_ref().is_some_and(|b| l.starts_with(b.as_str()));
            let mut out: Vec<&str> = Vec::new();
            let mut written = false;
            for old in text.lines() {
                if !is_replaced(old) {
                    out.push(old);
                } else if !written {
                    written = true;
                    out.push(line);
                }
            }
            if !written {
                out.push(line);
            }
            Ok(out.iter().map(|l| format!("{l}\n")).collect())
        }
        Edit::Toml { path, value } => {
            let mut document: toml_edit::DocumentMut = text.parse().map_err(|e| format!("invalid TOML: {e}"))?;
            let value: toml_edit::Value =
                value.parse().map_err(|e| format!("'{value}' is not a valid TOML value: {e}"))?;
            let (key, tables) = path.split_last().ok_or("the key is missing")?;
            let mut table = document.as_table_mut();
            for name in tables {
                let next = table.entry(name).or_insert_with(|| {
                    let mut table = toml_edit::Table::new();
                    table.set_implicit(true);
                    toml_edit::Item::Table(table)
                });
                table = next.as_table_mut().ok_or_else(|| format!("'{name}' is not a table"))?;
            }
            let same = table
                .get(key)
                .and_then(|i| i.as_value())
                .is_some_and(|v| v.to_string().trim() == value.to_string().trim());
            if !same {
                table.insert(key, toml_edit::Item::Value(value));
            }
            Ok(document.to_string())
        }
        Edit::Yaml { path, value } => set_yaml_value(text, path, value),
    }
}

/// Sets a value in a YAML text. The text stays as it is if it has an equal value, however that is written.
fn set_yaml_value(text: &str, path: &[String], value: &serde_json::Value) -> Result<String, String> {
    let current_value = |text: &str| -> Result<Option<serde_json::Value>, String> {
        let all: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| format!("invalid YAML: {e}"))?;
        Ok(path.iter().try_fold(&all, |at, name| at.get(name)).cloned())
    };
    // A file that only has comments is not a YAML mapping yet, so it is not parsed for a current value.
    let empty = text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
    if !empty && current_value(text)?.as_ref() == Some(value) {
        return Ok(text.to_owned());
    }
    let file: yaml_edit::YamlFile = text.parse().map_err(|e| format!("invalid YAML: {e}"))?;
    // yaml-edit interprets dots, brackets and backslashes in a path, so these are escaped with a backslash.
    let escaped = |name: &String| ["\\", ".", "["].iter().fold(name.clone(), |n, c| n.replace(c, &format!("\\{c}")));
    let yaml_path = path.iter().map(escaped).collect::<Vec<_>>().join(".");
    // JSON is valid YAML, so the value is parsed from its JSON text.
    let value_document: yaml_edit::Document = value.to_string().parse().map_err(|e| format!("{value}: {e}"))?;
    let document = file.ensure_document();
    let result = if let Some(mapping) = value_document.as_mapping() {
        document.try_set_path(&yaml_path, mapping)
    } else if let Some(sequence) = value_document.as_sequence() {
        document.try_set_path(&yaml_path, sequence)
    } else if let Some(scalar) = value_document.as_scalar() {
        document.try_set_path(&yaml_path, scalar)
    } else {
        return Err(format!("{value} is not a valid value"));
    };
    result.map_err(|e| format!("{}: {e}", path.join(".")))?;
    let new = file.to_string();
    // Parse the new text to verify that the edit had the intended effect.
    if current_value(&new)?.as_ref() != Some(value) {
        return Err(format!("{} cannot be changed without rewriting the file", path.join(".")));
    }
    Ok(new)
}

pub(crate) fn check(facts: &Facts, id: &str, path: &str, edits: &[Edit]) -> Vec<Change> {
    let current = current_file(facts, id);
    let text = current.as_ref().map_or("", |(_, text)| text.as_str());
    match apply_edits(text, edits) {
        // A file that does not exist is not created to be empty.
        Ok(desired) if desired == text && (current.is_some() || desired.is_empty()) => Vec::new(),
        Ok(desired) if current.is_some() => vec![Change::alter(format!("file {path}\n{}", diff(text, &desired)))],
        Ok(desired) => vec![Change::add(format!("file {path}\n{}", diff("", &desired)))],
        Err(why) => vec![Change::alter(format!("file {path} cannot be edited: {why}"))],
    }
}

pub(crate) fn apply(
    facts: &Facts,
    id: &str,
    path: &str,
    edits: &[Edit],
    context: &mut ChangeContext<'_>,
) -> Result<(), String> {
    let mode = current_file(facts, id).map_or_else(|| "644".into(), |(mode, _)| mode);
    let text = context.read(Path::new(path))?.unwrap_or_default();
    let desired = apply_edits(&text, edits).map_err(|why| format!("{path} cannot be edited: {why}"))?;
    context.write(Path::new(path), desired.as_bytes(), &mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_is_inserted_and_replaced() {
        let block = |text: &str| Edit::Block { name: "slipway".into(), text: text.into() };
        let once = apply_edit("127.0.0.1 localhost\n", &block("10.0.0.1 a")).unwrap();
        assert_eq!(once, "127.0.0.1 localhost\n# BEGIN slipway\n10.0.0.1 a\n# END slipway\n");
        assert_eq!(apply_edit(&once, &block("10.0.0.1 a")).unwrap(), once);
        let other = apply_edit(&(once + "::1 six\n"), &block("10.0.0.2 b")).unwrap();
        assert_eq!(other, "127.0.0.1 localhost\n# BEGIN slipway\n10.0.0.2 b\n# END slipway\n::1 six\n");
        let removed = apply_edit(&other, &block("\n")).unwrap();
        assert_eq!(removed, "127.0.0.1 localhost\n::1 six\n");
        assert_eq!(apply_edit(&removed, &block("")).unwrap(), removed);
        let facts = crate::probe::tests::facts(&[]);
        assert!(
            check(&facts, "f", "/etc/f", &[block("")]).is_empty()
                && check(&facts, "f", "/etc/f", &[block("a")]).len() == 1
        );
        assert!(apply_edit("# END slipway\n# BEGIN slipway\n", &block("")).is_err());
    }

    #[test]
    fn line_replaces_lines_with_the_same_prefix() {
        let edit = Edit::Line { line: "PermitRootLogin no".into(), begins: Some("PermitRootLogin".into()) };
        let text = "Port 22\nPermitRootLogin yes\nPermitRootLogin what\n";
        assert_eq!(apply_edit(text, &edit).unwrap(), "Port 22\nPermitRootLogin no\n");
        assert_eq!(apply_edit("", &edit).unwrap(), "PermitRootLogin no\n");
    }

    #[test]
    fn toml_value_is_set_and_comments_are_kept() {
        let cri = "io.containerd.grpc.v1.cri";
        let edit = Edit::Toml { path: vec!["plugins".into(), cri.into(), "enable_cdi".into()], value: "true".into() };
        let text = format!("# containerd\nversion = 2\n\n[plugins.\"{cri}\"] # ours\n  sandbox_image = \"pause\"\n");
        let once = apply_edit(&text, &edit).unwrap();
        assert!(once.starts_with(text.trim_end()) && once.contains("enable_cdi = true"), "{once}");
        assert_eq!(apply_edit(&once, &edit).unwrap(), once);
        assert_eq!(apply_edit("", &edit).unwrap(), format!("[plugins.\"{cri}\"]\nenable_cdi = true\n"));
        assert!(apply_edit("= 1", &edit).unwrap_err().contains("invalid TOML"));
    }

    #[test]
    fn yaml_value_is_set_and_comments_are_kept() {
        let edit = |path: &[&str], value: serde_json::Value| Edit::Yaml {
            path: path.iter().map(|p| (*p).to_owned()).collect(),
            value,
        };
        let text = "# top\na:\n  b: 1 # one\n  c: [x, y]\nd: 'yes'\n";
        let set = |text: &str, path: &[&str], value: serde_json::Value| apply_edit(text, &edit(path, value));
        assert_eq!(set(text, &["a", "b"], 2.into()).unwrap(), text.replace("b: 1", "b: 2"));
        assert_eq!(set(text, &["d"], "yes".into()).unwrap(), text);
        let once = set(text, &["a", "x.y[0]", "z"], serde_json::json!({"k": [1, "two", null, true]})).unwrap();
        assert!(once.starts_with("# top\na:\n  b: 1 # one\n") && once.contains("x.y[0]"), "{once}");
        assert_eq!(set(&once, &["a", "x.y[0]", "z"], serde_json::json!({"k": [1, "two", null, true]})).unwrap(), once);
        assert_eq!(set("# none yet\n", &["a"], "true".into()).unwrap(), "# none yet\na: \"true\"\n");
        assert!(set("- 1\n", &["a"], 1.into()).is_err() && set("a: [\n", &["a"], 1.into()).is_err());
        assert!(set(text, &["d", "x"], 1.into()).is_err() && set("a: 1\n---\nb: 1\n", &["a"], 2.into()).is_err());
    }
}
