//! Values in the form in which Python shows them, because tables and JSON of DVC contain that form.

use crate::json::Json;
use crate::pipeline::value;
use crate::yaml::Value;

/// A number as Python reads it. Integers that need more than 127 bits are read as floats.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    /// Reads the text of a number in any form of YAML, JSON or Python.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let Value::Number(text) = value::canonical(Value::Number(text.to_owned())) else { return None };
        if let Ok(value) = text.parse() {
            return Some(Self::Int(value));
        }
        Some(Self::Float(match text.as_str() {
            ".inf" => f64::INFINITY,
            "-.inf" => f64::NEG_INFINITY,
            ".nan" => f64::NAN,
            text => text.parse().ok()?,
        }))
    }

    /// The value as a float.
    #[allow(clippy::cast_precision_loss)] // Python converts integers to floats in the same way.
    pub(crate) fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }

    fn to_value(self) -> Value {
        Value::Number(match self {
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value::float(value),
        })
    }

    fn minus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => {
                a.checked_sub(b).map_or_else(|| Self::Float(self.as_f64() - other.as_f64()), Self::Int)
            }
            _ => Self::Float(self.as_f64() - other.as_f64()),
        }
    }
}

/// A float with this number of significant digits, as `%g` writes it.
fn general(value: f64, digits: usize) -> String {
    let digits = digits.max(1);
    let text = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    match usize::try_from(exponent) {
        Ok(whole) if whole < digits => trim(&format!("{value:.*}", digits - 1 - whole)),
        Err(_) if exponent >= -4 => {
            let fraction = digits - 1 + usize::try_from(-exponent).unwrap_or(0);
            trim(&format!("{value:.fraction$}"))
        }
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
        }
    }
}

/// How floats in tables are shortened.
#[derive(Debug, Clone, Copy)]
pub enum Rounding {
    /// They are not.
    None,
    /// To this number of digits after the point.
    Decimals(usize),
    /// To this number of significant digits.
    Significant(usize),
}

/// A float has at most this number of decimal digits that are not zero.
const MAX_DIGITS: usize = 1100;

impl Rounding {
    /// The value with its floats shortened. DVC turns floats with significant digits into text, which shows in lists.
    fn apply(self, value: &Value, inside: bool) -> Value {
        match value {
            Value::Number(text) => match (Number::parse(text), self) {
                (Some(Number::Float(value)), Self::Decimals(digits)) if digits > 0 && value.is_finite() => {
                    let rounded = format!("{value:.*}", digits.min(MAX_DIGITS)).parse().unwrap_or(value);
                    Number::Float(rounded).to_value()
                }
                (Some(Number::Float(value)), Self::Significant(digits)) if digits > 0 && value.is_finite() => {
                    let text = general(value, digits.min(MAX_DIGITS));
                    if inside { Value::String(text) } else { Value::Number(text) }
                }
                (Some(number), _) => number.to_value(),
                (None, _) => value.clone(),
            },
            Value::List(items) => Value::List(items.iter().map(|item| self.apply(item, true)).collect()),
            Value::Map(entries) => {
                Value::Map(entries.iter().map(|(key, value)| (key.clone(), self.apply(value, true))).collect())
            }
            other => other.clone(),
        }
    }
}

/// The text of `str(value)`, with shortened floats.
pub(crate) fn text(value: &Value, rounding: Rounding) -> String {
    value::text(&rounding.apply(value, false))
}

/// The value as JSON.
pub fn value_to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(text) => match Number::parse(text) {
            Some(Number::Float(value)) if !value.is_finite() => Json::Number(
                match value {
                    f64::INFINITY => "Infinity",
                    f64::NEG_INFINITY => "-Infinity",
                    _ => "NaN",
                }
                .into(),
            ),
            Some(number) => Json::Number(value::text(&number.to_value())),
            None => Json::string(text),
        },
        Value::String(text) => Json::string(text),
        Value::List(items) => Json::List(items.iter().map(value_to_json).collect()),
        Value::Map(entries) => {
            Json::Map(entries.iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect())
        }
    }
}

/// The number in a value; booleans count as 0 and 1, as in Python.
pub(crate) fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Number(text) => Number::parse(text),
        Value::Bool(value) => Some(Number::Int((*value).into())),
        _ => None,
    }
}

/// The difference of two numbers.
pub(crate) fn difference(new: &Value, old: &Value) -> Option<Value> {
    Some(number(new)?.minus(number(old)?).to_value())
}

/// Whether two values are equal in Python, where a number that is not one differs from itself.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    let is_nan = |value: &Value| number(value).is_some_and(|number| number.as_f64().is_nan());
    !is_nan(a) && !is_nan(b) && value::equal(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_all_forms() {
        let cases = [
            ("1", "1"),
            ("+7", "7"),
            ("0x1F", "31"),
            ("1e-3", "0.001"),
            ("0.00001", "1e-05"),
            ("1e16", "1e+16"),
            ("1e15", "1000000000000000.0"),
            ("-.inf", "-Infinity"),
            ("NaN", "NaN"),
            ("1_000", "1000"),
            ("-0.0", "-0.0"),
        ];
        for (text, expected) in cases {
            assert_eq!(value_to_json(&Value::Number(text.into())), Json::Number(expected.into()), "{text}");
        }
        assert!(Number::parse("1.2.3").is_none());
    }

    #[test]
    fn floats_are_rounded_as_by_python() {
        let float = |value: f64, rounding| text(&Number::Float(value).to_value(), rounding);
        assert_eq!(float(0.123_456_789, Rounding::Decimals(5)), "0.12346");
        assert_eq!(float(1234.5, Rounding::Decimals(5)), "1234.5");
        assert_eq!(float(0.000_001, Rounding::Decimals(5)), "0.0");
        assert_eq!(float(0.123_456_789, Rounding::Significant(5)), "0.12346");
        assert_eq!(float(123_456.789, Rounding::Significant(5)), "1.2346e+05");
        assert_eq!(float(12345.6, Rounding::Significant(5)), "12346");
        assert_eq!(float(0.000_012_345_6, Rounding::Significant(5)), "1.2346e-05");
        assert_eq!(float(0.000_5, Rounding::Significant(5)), "0.0005");
        assert_eq!(float(1.0, Rounding::Significant(5)), "1");
        assert_eq!(float(0.0, Rounding::Significant(5)), "0");
    }

    #[test]
    fn collections_are_shown_as_by_python() {
        let value = Value::Map(vec![
            ("a".into(), Value::List(vec![Value::number(1), Value::Number("2.50".into()), Value::string("it's")])),
            ("b".into(), Value::Null),
            ("c\n".into(), Value::Bool(true)),
        ]);
        assert_eq!(text(&value, Rounding::None), "{'a': [1, 2.5, \"it's\"], 'b': None, 'c\\n': True}");
        assert_eq!(value_to_json(&value).to_text(), r#"{"a": [1, 2.5, "it's"], "b": null, "c\n": true}"#);
    }

    #[test]
    fn values_are_compared_as_by_python() {
        let n = |text: &str| Value::Number(text.into());
        assert!(equal(&n("1"), &n("1.0")));
        assert!(equal(&Value::Bool(true), &n("1")));
        assert!(!equal(&n(".nan"), &n(".nan")));
        assert!(!equal(&n("1"), &Value::string("1")));
        assert_eq!(difference(&n("0.3"), &n("0.1")).unwrap(), n("0.19999999999999998"));
        assert_eq!(difference(&n("3"), &Value::string("x")), None);
    }
}
