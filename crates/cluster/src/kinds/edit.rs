//! Parts of files that others write too.

use std::path::Path;

use yaml_edit::path::YamlPath;

use super::diff;
use super::file::found;
use crate::probe::Facts;
use crate::resource::{Change, Edit};
use crate::shell::Node;

/// The text with all parts as wanted.
fn all_edited(text: &str, edits: &[Edit]) -> Result<String, String> {
    edits.iter().try_fold(text.to_owned(), |text, edit| edited(&text, edit))
}

/// The text with the part as wanted; the same text when it is already so.
///
/// # Errors
/// When the file is not of the form that the edit needs.
fn edited(text: &str, edit: &Edit) -> Result<String, String> {
    match edit {
        Edit::Block { name, text: wanted } => {
            let (begin, end) = (format!("# BEGIN {name}"), format!("# END {name}"));
            let block = format!("{begin}\n{}\n{end}\n", wanted.trim_end());
            let lines: Vec<&str> = text.lines().collect();
            let at = |mark: &str| lines.iter().position(|l| l.trim_end() == mark);
            let (before, after) = match (at(&begin), at(&end)) {
                (Some(from), Some(to)) if from < to => (&lines[..from], &lines[to + 1..]),
                (None, None) => (&lines[..], &[][..]),
                _ => return Err(format!("the marks '{begin}' and '{end}' do not belong together")),
            };
            let join = |lines: &[&str]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
            Ok(join(before) + &block + &join(after))
        }
        Edit::Line { line, begins } => {
            let ours = |l: &str| l == line || begins.as_ref().is_some_and(|b| l.starts_with(b.as_str()));
            let mut out: Vec<&str> = Vec::new();
            let mut there = false;
            for old in text.lines() {
                if !ours(old) {
                    out.push(old);
                } else if !there {
                    there = true;
                    out.push(line);
                }
            }
            if !there {
                out.push(line);
            }
            Ok(out.iter().map(|l| format!("{l}\n")).collect())
        }
        Edit::Toml { path, value } => {
            let mut document: toml_edit::DocumentMut = text.parse().map_err(|e| format!("no TOML: {e}"))?;
            let value: toml_edit::Value = value.parse().map_err(|e| format!("'{value}' is no value of TOML: {e}"))?;
            let (key, tables) = path.split_last().ok_or("the key is missing")?;
            let mut table = document.as_table_mut();
            for name in tables {
                let next = table.entry(name).or_insert_with(|| {
                    let mut table = toml_edit::Table::new();
                    table.set_implicit(true);
                    toml_edit::Item::Table(table)
                });
                table = next.as_table_mut().ok_or_else(|| format!("'{name}' is no table"))?;
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
        Edit::Yaml { path, value } => yaml(text, path, value),
    }
}

/// The text with a value in its place; where it is already this value, however it is written, the text stays.
fn yaml(text: &str, path: &[String], value: &serde_json::Value) -> Result<String, String> {
    let found = |text: &str| -> Result<Option<serde_json::Value>, String> {
        let all: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| format!("no YAML: {e}"))?;
        Ok(path.iter().try_fold(&all, |at, name| at.get(name)).cloned())
    };
    // A file of nothing but comments is one that nobody has begun to write.
    let empty = text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
    if !empty && found(text)?.as_ref() == Some(value) {
        return Ok(text.to_owned());
    }
    let file: yaml_edit::YamlFile = text.parse().map_err(|e| format!("no YAML: {e}"))?;
    // The library reads dots, brackets and backslashes in a path, but for those after a backslash.
    let escaped = |name: &String| ["\\", ".", "["].iter().fold(name.clone(), |n, c| n.replace(c, &format!("\\{c}")));
    let place = path.iter().map(escaped).collect::<Vec<_>>().join(".");
    // JSON is YAML.
    let value_text: yaml_edit::Document = value.to_string().parse().map_err(|e| format!("{value}: {e}"))?;
    let document = file.ensure_document();
    let set = if let Some(mapping) = value_text.as_mapping() {
        document.try_set_path(&place, mapping)
    } else if let Some(sequence) = value_text.as_sequence() {
        document.try_set_path(&place, sequence)
    } else if let Some(scalar) = value_text.as_scalar() {
        document.try_set_path(&place, scalar)
    } else {
        return Err(format!("{value} is no value"));
    };
    set.map_err(|e| format!("{}: {e}", path.join(".")))?;
    let new = file.to_string();
    // What was written is read again, so that nothing else became of it.
    if found(&new)?.as_ref() != Some(value) {
        return Err(format!("{} cannot be changed in its place", path.join(".")));
    }
    Ok(new)
}

pub(crate) fn check(facts: &Facts, id: &str, path: &str, edits: &[Edit]) -> Vec<Change> {
    let now = found(facts, id);
    let text = now.as_ref().map_or("", |(_, text)| text.as_str());
    match all_edited(text, edits) {
        Ok(wanted) if wanted == text && now.is_some() => Vec::new(),
        Ok(wanted) if now.is_some() => vec![Change::alter(format!("file {path}\n{}", diff(text, &wanted)))],
        Ok(wanted) => vec![Change::add(format!("file {path}\n{}", diff("", &wanted)))],
        Err(why) => vec![Change::alter(format!("file {path} cannot be edited: {why}"))],
    }
}

pub(crate) fn apply(facts: &Facts, id: &str, path: &str, edits: &[Edit], node: &mut Node<'_>) -> Result<(), String> {
    let mode = found(facts, id).map_or_else(|| "644".into(), |(mode, _)| mode);
    let text = node.read(Path::new(path))?.unwrap_or_default();
    let wanted = all_edited(&text, edits).map_err(|why| format!("{path} cannot be edited: {why}"))?;
    node.write(Path::new(path), wanted.as_bytes(), &mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_put_in_and_found_again() {
        let block = |text: &str| Edit::Block { name: "slipway".into(), text: text.into() };
        let once = edited("127.0.0.1 localhost\n", &block("10.0.0.1 a")).unwrap();
        assert_eq!(once, "127.0.0.1 localhost\n# BEGIN slipway\n10.0.0.1 a\n# END slipway\n");
        assert_eq!(edited(&once, &block("10.0.0.1 a")).unwrap(), once);
        let other = edited(&(once + "::1 six\n"), &block("10.0.0.2 b")).unwrap();
        assert_eq!(other, "127.0.0.1 localhost\n# BEGIN slipway\n10.0.0.2 b\n# END slipway\n::1 six\n");
        assert!(edited("# END slipway\n# BEGIN slipway\n", &block("")).is_err());
    }

    #[test]
    fn a_line_replaces_those_that_begin_so() {
        let edit = Edit::Line { line: "PermitRootLogin no".into(), begins: Some("PermitRootLogin".into()) };
        let text = "Port 22\nPermitRootLogin yes\nPermitRootLogin what\n";
        assert_eq!(edited(text, &edit).unwrap(), "Port 22\nPermitRootLogin no\n");
        assert_eq!(edited("", &edit).unwrap(), "PermitRootLogin no\n");
    }

    #[test]
    fn a_value_is_set_and_comments_stay() {
        let cri = "io.containerd.grpc.v1.cri";
        let edit = Edit::Toml { path: vec!["plugins".into(), cri.into(), "enable_cdi".into()], value: "true".into() };
        let text = format!("# containerd\nversion = 2\n\n[plugins.\"{cri}\"] # ours\n  sandbox_image = \"pause\"\n");
        let once = edited(&text, &edit).unwrap();
        assert!(once.starts_with(text.trim_end()) && once.contains("enable_cdi = true"), "{once}");
        assert_eq!(edited(&once, &edit).unwrap(), once);
        assert_eq!(edited("", &edit).unwrap(), format!("[plugins.\"{cri}\"]\nenable_cdi = true\n"));
        assert!(edited("= 1", &edit).unwrap_err().contains("no TOML"));
    }

    #[test]
    fn a_value_of_yaml_is_set_and_comments_stay() {
        let edit = |path: &[&str], value: serde_json::Value| Edit::Yaml {
            path: path.iter().map(|p| (*p).to_owned()).collect(),
            value,
        };
        let text = "# top\na:\n  b: 1 # one\n  c: [x, y]\nd: 'yes'\n";
        let set = |text: &str, path: &[&str], value: serde_json::Value| edited(text, &edit(path, value));
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
