//! Values of pipelines and parameter files as Python sees them: the text, equality, and JSON of numbers and strings, which DVC records and
//! hashes.

use std::cmp::Ordering;

use crate::json::write_string;
use crate::yaml::Value;

/// The value with every number in the form in which Python writes it, so that equal numbers have equal texts: `1_000` is `1000`, `1e-5` is
/// `1e-05`.
pub fn canonical(value: Value) -> Value {
    match value {
        Value::Number(text) => Value::Number(number(&text)),
        Value::List(items) => Value::List(items.into_iter().map(canonical).collect()),
        Value::Map(entries) => Value::Map(entries.into_iter().map(|(key, value)| (key, canonical(value))).collect()),
        other => other,
    }
}

/// The canonical form of a number in YAML 1.2's core schema. Dates stay as they are.
fn number(text: &str) -> String {
    let digits = text.replace('_', "");
    let (sign, unsigned) = match digits.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let with_sign = |n: String| if n == "0" { n } else { format!("{sign}{n}") };
    for (prefix, radix) in [("0b", 2), ("0o", 8), ("0x", 16)] {
        if let Some(rest) = unsigned.strip_prefix(prefix) {
            return u128::from_str_radix(rest, radix).map_or_else(|_| text.to_owned(), |n| with_sign(n.to_string()));
        }
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        let trimmed = unsigned.trim_start_matches('0');
        return with_sign(if trimmed.is_empty() { "0" } else { trimmed }.to_owned());
    }
    match unsigned.to_ascii_lowercase().as_str() {
        ".inf" | "infinity" => return format!("{sign}.inf"),
        ".nan" | "nan" => return ".nan".into(),
        _ => {}
    }
    if unsigned.contains(['.', 'e', 'E'])
        && let Ok(value) = format!("{sign}{unsigned}").parse::<f64>()
    {
        return float(value);
    }
    text.to_owned()
}

/// A float as a YAML scalar, with the digits of Python's `repr`: the shortest that are read back as the same number, with an exponent below
/// 1e-4 and from 1e16.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return ".nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf".into() } else { "-.inf".into() };
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// The text of a scalar as Python's `str` gives it.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(text) => python_number(text),
        Value::String(text) => text.clone(),
        Value::List(_) | Value::Map(_) => repr(value),
    }
}

fn python_number(text: &str) -> String {
    match text {
        ".inf" => "inf".into(),
        "-.inf" => "-inf".into(),
        ".nan" => "nan".into(),
        other => other.to_owned(),
    }
}

/// The value as Python's `repr` gives it.
pub fn repr(value: &Value) -> String {
    match value {
        Value::String(text) => repr_string(text),
        Value::List(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let entries = entries.iter().map(|(key, value)| format!("{}: {}", repr_string(key), repr(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        scalar => text(scalar),
    }
}

fn repr_string(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The name of the value's type in Python.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(text) if is_float(text) => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::List(_) => "list",
        Value::Map(_) => "dict",
    }
}

fn is_float(text: &str) -> bool {
    text.contains(['.', 'e'])
}

/// Whether Python considers the values equal: `1`, `1.0` and `True` are, and the order of keys does not count.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            x == y
                || matches!((x.parse::<f64>(), y.parse::<f64>()), (Ok(x), Ok(y)) if x.total_cmp(&y) == Ordering::Equal)
        }
        (Value::Bool(flag), Value::Number(number)) | (Value::Number(number), Value::Bool(flag)) => {
            number.parse::<f64>().is_ok_and(|number| number.total_cmp(&f64::from(u8::from(*flag))) == Ordering::Equal)
        }
        (Value::List(x), Value::List(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        (Value::Map(x), Value::Map(y)) => {
            x.len() == y.len() && x.iter().all(|(key, value)| b.get(key).is_some_and(|other| equal(value, other)))
        }
        _ => a == b,
    }
}

/// The JSON of a value as `json.dumps(value, sort_keys=True)` of Python writes it.
pub fn to_sorted_json(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_json(&mut out, value);
    out
}

fn write_json(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Value::Number(text) => out.extend_from_slice(match text.as_str() {
            ".inf" => b"Infinity",
            "-.inf" => b"-Infinity",
            ".nan" => b"NaN",
            other => other.as_bytes(),
        }),
        Value::String(text) => write_string(out, text),
        Value::List(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                out.extend_from_slice(if i > 0 { b", " } else { b"" });
                write_json(out, item);
            }
            out.push(b']');
        }
        Value::Map(entries) => {
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            out.push(b'{');
            for (i, (key, value)) in sorted.into_iter().enumerate() {
                out.extend_from_slice(if i > 0 { b", " } else { b"" });
                write_string(out, key);
                out.extend_from_slice(b": ");
                write_json(out, value);
            }
            out.push(b'}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for (text, expected) in [
            ("1e-5", "1e-05"),
            ("1_000", "1000"),
            ("0o17", "15"),
            ("017", "17"),
            ("+1", "1"),
            ("1.", "1.0"),
            (".5", "0.5"),
            ("0x1F", "31"),
            ("1e5", "100000.0"),
            ("-.inf", "-.inf"),
            (".NaN", ".nan"),
            ("1_0.5", "10.5"),
            ("1e22", "1e+22"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("-0", "0"),
            ("1e15", "1000000000000000.0"),
            ("99999999999999999999999999999999999999999999", "99999999999999999999999999999999999999999999"),
            ("2020-01-01", "2020-01-01"),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn equality_and_json_are_those_of_python() {
        let number = |text: &str| Value::Number(text.into());
        assert!(equal(&number("1"), &number("1.0")) && equal(&Value::Bool(true), &number("1")));
        assert!(!equal(&number("1"), &Value::string("1")) && !equal(&Value::Null, &Value::Bool(false)));
        let map = Value::Map(vec![("b".into(), number("1e-05")), ("a".into(), Value::List(vec![Value::Null]))]);
        assert_eq!(to_sorted_json(&map), b"{\"a\": [null], \"b\": 1e-05}");
        assert_eq!(repr(&map), "{'b': 1e-05, 'a': [None]}");
    }
}
