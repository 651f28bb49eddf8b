//! Parameter files: YAML, JSON, TOML, and Python with assignments of literals.

use std::path::Path;

use super::value::canonical;
use super::{python, value};
use crate::error::DataError;
use crate::json;
use crate::yaml::{self, Value};

/// The values of a parameter file. The suffix of the path decides its format; without a known one it is YAML.
///
/// # Errors
/// [`DataError::File`] with the line, if it is known.
pub fn parse(path: &Path, text: &str) -> Result<Value, DataError> {
    let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default().to_ascii_lowercase();
    let invalid = |line, reason: String| DataError::file(path, line, reason);
    match suffix.as_str() {
        "json" => json::parse(text).map(canonical).map_err(|(reason, line)| invalid(line, reason)),
        "toml" => parse_toml(text).map_err(|(line, reason)| invalid(line, reason)),
        "py" => python::parse(text).map_err(|(line, reason)| invalid(line, reason)),
        _ => {
            let value = yaml::parse(text).map_err(|error| invalid(error.line, error.reason.to_owned()))?;
            Ok(match canonical(value) {
                // As in DVC, a file without values has none.
                Value::Null => Value::Map(Vec::new()),
                value => value,
            })
        }
    }
}

fn parse_toml(text: &str) -> Result<Value, (usize, String)> {
    let document = toml_edit::Document::parse(text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        (line, error.message().to_owned())
    })?;
    Ok(from_table(document.as_table()))
}

fn from_table(table: &dyn toml_edit::TableLike) -> Value {
    Value::Map(table.iter().map(|(key, item)| (key.to_owned(), from_item(item))).collect())
}

pub(super) fn from_item(item: &toml_edit::Item) -> Value {
    match item {
        toml_edit::Item::None => Value::Null,
        toml_edit::Item::Value(value) => from_toml(value),
        toml_edit::Item::Table(table) => from_table(table),
        toml_edit::Item::ArrayOfTables(tables) => Value::List(tables.iter().map(|table| from_table(table)).collect()),
    }
}

fn from_toml(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::string(text.value().as_str()),
        toml_edit::Value::Integer(number) => Value::Number(number.value().to_string()),
        toml_edit::Value::Float(number) => Value::Number(value::float(*number.value())),
        toml_edit::Value::Boolean(flag) => Value::Bool(*flag.value()),
        toml_edit::Value::Datetime(time) => Value::Number(time.value().to_string()),
        toml_edit::Value::Array(items) => Value::List(items.iter().map(from_toml).collect()),
        toml_edit::Value::InlineTable(table) => from_table(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_formats_have_the_same_values() {
        let expected = parse(Path::new("p.yaml"), "b: 0.00001\na: {x: [1, two, true]}\ns: text\n").unwrap();
        for (name, text) in [
            ("p.json", r#"{"b": 1e-5, "a": {"x": [1, "two", true]}, "s": "text"}"#),
            ("p.TOML", "b = 1e-5\na.x = [1, \"two\", true]\ns = \"text\"\n"),
            ("p.py", "b = 1e-5\na = {'x': [1, 'two', True]}\ns: str = \"text\"\n"),
        ] {
            let value = parse(Path::new(name), text).unwrap();
            assert_eq!(value, expected, "{name}");
            assert_eq!(value.find("a.x.1"), Some(&Value::string("two")));
        }
    }

    #[test]
    fn invalid_files_are_rejected_with_the_line() {
        for (name, text) in
            [("p.json", "{\n]"), ("p.toml", "a = 1\nb ="), ("p.yaml", "a: 1\n b: 2\n"), ("p.py", "a = 1\nb = (")]
        {
            let Err(DataError::File { line, .. }) = parse(Path::new(name), text) else { unreachable!("{name}") };
            assert_eq!(line, 2, "{name}");
        }
    }
}
