//! Changes of parameters in TOML and Python files, which keep everything else as it is.

use regex::Regex;
use toml_edit::{Array, DocumentMut, InlineTable, Item, TableLike, Value as Toml};

use super::params::from_item;
use super::{python, value};
use crate::yaml::Value;

/// The text of a TOML file with new values.
///
/// # Errors
/// The reason why a value cannot be in TOML.
pub(crate) fn write_toml(text: &str, new: &Value) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    update(document.as_table_mut(), new)?;
    Ok(document.to_string())
}

fn update(table: &mut dyn TableLike, new: &Value) -> Result<(), String> {
    let old: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).collect();
    for key in old.iter().filter(|key| new.get(key).is_none()) {
        table.remove(key);
    }
    for (key, value) in new.entries() {
        match table.get_mut(key) {
            Some(item) if from_item(item) == *value => {}
            Some(item) => match (item.as_table_like_mut(), value) {
                (Some(inner), Value::Map(_)) => update(inner, value)?,
                _ => {
                    let mut next = to_toml(value)?;
                    if let Some(decor) = item.as_value().map(Toml::decor) {
                        *next.decor_mut() = decor.clone(); // It has the comment behind the value.
                    }
                    *item = Item::Value(next);
                }
            },
            None => drop(table.insert(key, Item::Value(to_toml(value)?))),
        }
    }
    Ok(())
}

fn to_toml(value: &Value) -> Result<Toml, String> {
    Ok(match value {
        Value::Null => return Err("TOML has no null".into()),
        Value::Bool(flag) => (*flag).into(),
        Value::String(text) => text.into(),
        Value::Number(text) => {
            // A text that is a number of TOML in the same form.
            let text = text.trim_start_matches('.').replace(".inf", "inf");
            text.parse::<Toml>().map_err(|_| format!("'{text}' is not a number of TOML"))?
        }
        Value::List(items) => {
            let mut array = Array::new();
            for item in items {
                array.push(to_toml(item)?);
            }
            array.into()
        }
        Value::Map(entries) => {
            let mut table = InlineTable::new();
            for (key, value) in entries {
                table.insert(key, to_toml(value)?);
            }
            table.into()
        }
    })
}

/// The text of a Python file with new values. Where a value is written is found by trying: a line that assigns the name is changed, and counts if
/// the file, read again, has the values that are wanted.
///
/// # Errors
/// The reason why it cannot be changed.
pub(crate) fn write_python(text: &str, new: &Value) -> Result<String, String> {
    let mut text = text.to_owned();
    loop {
        let old = python::parse(&text).map_err(|(_, reason)| reason)?;
        let Some((path, value)) = difference(&old, new)? else { return Ok(text) };
        text = assign(&text, &old, &path, value).ok_or_else(|| {
            format!("'{}' cannot be changed in Python code, because it is not assigned on one line", path.join("."))
        })?;
    }
}

/// The first value that differs.
fn difference<'a>(old: &Value, new: &'a Value) -> Result<Option<(Vec<String>, &'a Value)>, String> {
    for (key, value) in new.entries() {
        match old.get(key) {
            Some(known) if known == value => {}
            Some(known @ Value::Map(_)) if matches!(value, Value::Map(_)) => {
                if let Some((mut path, value)) = difference(known, value)? {
                    path.insert(0, key.clone());
                    return Ok(Some((path, value)));
                }
            }
            Some(_) => return Ok(Some((vec![key.clone()], value))),
            None => return Err(format!("'{key}' cannot be added to Python code")),
        }
    }
    match old.entries().iter().find(|(key, _)| new.get(key).is_none()) {
        Some((key, _)) => Err(format!("'{key}' cannot be removed from Python code")),
        None => Ok(None),
    }
}

/// Changes the line that gives the parameter at `path` its value.
fn assign(text: &str, old: &Value, path: &[String], value: &Value) -> Option<String> {
    let name = regex::escape(path.last()?);
    // `name = `, `self.name: int = `, or an item of a dictionary.
    let pattern = format!(r#"(?m)(^[ \t]*(?:self\.)?{name}[ \t]*(?::[^=\n]*)?=[ \t]*|["']{name}["'][ \t]*:[ \t]*)"#);
    let start = Regex::new(&pattern).ok()?;
    let mut wanted = old.clone();
    replace(&mut wanted, path, value)?;
    let new = literal(value);
    start.find_iter(text).find_map(|found| {
        let rest = &text[found.end()..];
        let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
        // The value ends at the end of the line, or before a comment or the rest of a dictionary.
        line.char_indices().map(|(i, c)| i + c.len_utf8()).find_map(|end| {
            let changed = format!("{}{new}{}", &text[..found.end()], &rest[end..]);
            python::parse(&changed).is_ok_and(|parsed| parsed == wanted).then_some(changed)
        })
    })
}

fn replace(target: &mut Value, path: &[String], value: &Value) -> Option<()> {
    let (first, rest) = path.split_first()?;
    let inner = target.get_mut(first)?;
    if rest.is_empty() {
        *inner = value.clone();
        return Some(());
    }
    replace(inner, rest, value)
}

/// A value as Python's `repr` writes it.
fn literal(value: &Value) -> String {
    let text = value::text(&Value::List(vec![value.clone()]));
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Value {
        crate::yaml::parse(text).map(crate::pipeline::value::canonical).unwrap()
    }

    #[test]
    fn toml_keeps_comments_and_order() {
        let old = "# top\nlr = 0.1 # rate\n[t.x]\nb = [1, \"y\"]\nc = true\n";
        let new = "# top\nlr = 0.2 # rate\n[t.x]\nb = [2]\nc = true\nd = \"new\"\n";
        assert_eq!(write_toml(old, &map("{lr: 0.2, t: {x: {b: [2], c: true, d: new}}}")).unwrap(), new);
        assert!(write_toml(old, &map("{lr: null}")).is_err());
    }

    #[test]
    fn python_keeps_all_other_code() {
        let old = "import os\nLR = 0.1  # rate\nNAME: str = 'a'\nD = {'x': 1, 'y': 2}\n\nclass A:\n    lr = 3\n\n    def __init__(self):\n        self.n = 5\n";
        let changed = "import os\nLR = 0.2  # rate\nNAME: str = 'b'\nD = {'x': 1, 'y': 7}\n\nclass A:\n    lr = 4\n\n    def __init__(self):\n        self.n = 6\n";
        let new = map("{LR: 0.2, NAME: b, D: {x: 1, y: 7}, A: {lr: 4, n: 6}}");
        assert_eq!(write_python(old, &new).unwrap(), changed);
        assert!(write_python(old, &map("{LR: 0.1, NEW: 1}")).is_err());
        assert!(write_python("A = [\n  1,\n]\n", &map("{A: [2]}")).is_err());
    }
}
