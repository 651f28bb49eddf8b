//! The filter of a list: `{"predicates": [{"operation": "EQUALS", "key": "state", "string_value": "FAILED"}]}`. All predicates must hold.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use slipway_core::clock::parse_rfc3339;

use super::{FieldKind, Fields, MAX_TEXT};
use crate::Error;

/// Maximum number of predicates, and of values in one.
const MAX_ITEMS: usize = 1000;

/// How a field is compared with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Operation {
    /// Equal.
    Equals,
    /// Not equal.
    NotEquals,
    /// Greater.
    GreaterThan,
    /// Greater or equal.
    GreaterThanEquals,
    /// Less.
    LessThan,
    /// Less or equal.
    LessThanEquals,
    /// Equal to one of a list.
    In,
    /// Contains a text, in any case.
    IsSubstring,
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// A text.
    Text(String),
    /// A number; for a time, seconds since the Unix epoch.
    Integer(i64),
    /// Texts.
    Texts(Vec<String>),
    /// Numbers.
    Integers(Vec<i64>),
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicate {
    /// Name of the field.
    pub key: String,
    /// How it is compared.
    pub operation: Operation,
    /// With what.
    pub value: Operand,
}

impl Operation {
    /// The operation with this name or number in protobuf; 0 for an unknown one.
    fn parse(value: &Value) -> Option<Self> {
        Some(match value {
            Value::String(name) => return serde_json::from_value(Value::String(name.clone())).ok(),
            Value::Number(number) => match number.as_i64()? {
                1 => Self::Equals,
                2 => Self::NotEquals,
                3 => Self::GreaterThan,
                5 => Self::GreaterThanEquals,
                6 => Self::LessThan,
                7 => Self::LessThanEquals,
                8 => Self::In,
                9 => Self::IsSubstring,
                _ => return None,
            },
            _ => return None,
        })
    }

    fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl Predicate {
    /// Checks that the field exists and that operation and value fit together.
    pub(super) fn check(&self, fields: &Fields) -> Result<(), Error> {
        let kind = if self.key.starts_with("tags.") && fields.has_tags {
            if self.operation != Operation::Equals {
                let (operation, key) = (self.operation.name(), &self.key);
                return Err(Error::Invalid(format!(
                    "only EQUALS operation is supported for tag filtering, got {operation} for key {key:?}"
                )));
            }
            if !matches!(self.value, Operand::Text(_)) {
                return Err(Error::Invalid(format!("tag filter value must be a string for key {:?}", self.key)));
            }
            FieldKind::Text
        } else {
            fields.find(&self.key).map(|field| field.kind).ok_or_else(|| {
                Error::Invalid(format!("no support for filtering on unrecognized field {:?}", self.key))
            })?
        };
        let is_list = matches!(self.value, Operand::Texts(_) | Operand::Integers(_));
        match self.operation {
            Operation::In if !is_list => {
                return Err(Error::Invalid(format!(
                    "cannot use IN operator with scalar type {}",
                    self.value.type_name()
                )));
            }
            Operation::IsSubstring if !matches!(self.value, Operand::Text(_)) => {
                return Err(Error::Invalid(format!(
                    "cannot use non string value type {} with operator IS_SUBSTRING",
                    self.value.type_name()
                )));
            }
            Operation::In | Operation::IsSubstring => {}
            operation if is_list => {
                return Err(Error::Invalid(format!(
                    "cannot use scalar operator {} on array type {}",
                    operation.name(),
                    self.value.type_name()
                )));
            }
            _ => {}
        }
        let is_number = matches!(self.value, Operand::Integer(_) | Operand::Integers(_));
        if (kind == FieldKind::Time) != is_number {
            let expected = if is_number { "a string value" } else { "a timestamp_value or long_value" };
            return Err(Error::Invalid(format!("the field {:?} is compared with {expected}", self.key)));
        }
        Ok(())
    }
}

impl Operand {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Integer(_) => "int64",
            Self::Texts(_) => "[]string",
            Self::Integers(_) => "[]int64",
        }
    }

    /// Reads the field `name` of a predicate; `None` if it is no value's field.
    fn parse(name: &str, value: &Value) -> Option<Result<Self, String>> {
        let texts = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("{other} is not a string")),
        };
        Some(match name {
            "string_value" => texts(value).map(Self::Text),
            "int_value" | "long_value" => integer(value).map(Self::Integer),
            "timestamp_value" => texts(value).and_then(|text| {
                let time = parse_rfc3339(&text).ok_or(format!("{text:?} is not an RFC 3339 time"))?;
                Ok(Self::Integer(time.div_euclid(1000)))
            }),
            "string_values" => list(value, texts).map(Self::Texts),
            "int_values" | "long_values" => list(value, integer).map(Self::Integers),
            _ => return None,
        })
    }
}

fn integer(value: &Value) -> Result<i64, String> {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| format!("{value} is not an integer"))
}

fn list<T>(value: &Value, item: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items = match value {
        Value::Object(fields) if fields.keys().all(|key| key == "values") => match fields.get("values") {
            Some(Value::Array(items)) => items.as_slice(),
            None => &[],
            Some(_) => return Err("`values` is not a list".into()),
        },
        _ => return Err("expected an object with the field `values`".into()),
    };
    if items.len() > MAX_ITEMS {
        return Err(format!("more than {MAX_ITEMS} values"));
    }
    items.iter().map(item).collect()
}

/// Reads a filter; an empty text is no filter. Clients send it URL-encoded twice, so it may still be encoded.
pub(super) fn parse(fields: &Fields, text: &str) -> Result<Vec<Predicate>, Error> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let invalid =
        |reason: String| Error::Invalid(format!("failed to parse valid filter from {:?}: {reason}", shorten(text)));
    if text.len() > MAX_TEXT {
        return Err(invalid(format!("it has more than {MAX_TEXT} bytes")));
    }
    let decoded = if text.trim_start().starts_with('{') { text.to_owned() } else { decode(text) };
    let filter: Map<String, Value> = serde_json::from_str(&decoded).map_err(|e| invalid(e.to_string()))?;
    let mut predicates = Vec::new();
    for (name, value) in &filter {
        match (name.as_str(), value) {
            ("predicates", Value::Array(items)) if items.len() <= MAX_ITEMS => {
                for item in items {
                    let predicate = predicate(item).map_err(invalid)?;
                    predicate.check(fields)?;
                    predicates.push(predicate);
                }
            }
            ("predicates", Value::Array(_)) => return Err(invalid(format!("more than {MAX_ITEMS} predicates"))),
            ("predicates", Value::Null) => {}
            ("predicates", _) => return Err(invalid("`predicates` is not a list".into())),
            (other, _) => return Err(invalid(format!("unknown field {other:?}"))),
        }
    }
    Ok(predicates)
}

fn predicate(item: &Value) -> Result<Predicate, String> {
    let Value::Object(item) = item else { return Err(format!("{item} is not a predicate")) };
    let (mut key, mut operation, mut value) = (String::new(), None, None);
    for (name, content) in item {
        let name = crate::proto_json::snake_case(name);
        match (name.as_str(), content) {
            (_, Value::Null) => {}
            ("key", Value::String(text)) => key.clone_from(text),
            ("operation", content) => {
                operation =
                    Some(Operation::parse(content).ok_or_else(|| format!("invalid predicate operation: {content}"))?);
            }
            (name, content) => match Operand::parse(name, content) {
                Some(_) if value.is_some() => return Err("a predicate has one value".into()),
                Some(operand) => value = Some(operand?),
                None => return Err(format!("unknown field {name:?}")),
            },
        }
    }
    let operation = operation.ok_or("invalid predicate operation: OPERATION_UNSPECIFIED")?;
    Ok(Predicate { key, operation, value: value.ok_or("a predicate needs a value")? })
}

fn decode(text: &str) -> String {
    form_urlencoded::parse(format!("f={text}").as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}
