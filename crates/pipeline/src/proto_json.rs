//! Reads JSON as protobuf maps it: names in camel or snake case, `null` for "not set", 64-bit integers as texts or numbers, times in
//! RFC 3339. Unknown fields are refused.

use std::fmt::Write as _;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use slipway_core::clock::parse_rfc3339;

/// The name of a field in snake case.
pub(crate) fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// A message with the fields of `T`, whose names are in snake case.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Message<T>(pub(crate) T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Message<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Map::deserialize(deserializer)?;
        let mut normalized = Map::new();
        for (name, value) in fields {
            if !value.is_null() && normalized.insert(snake_case(&name), value).is_some() {
                return Err(D::Error::custom(format!("duplicate field {name:?}")));
            }
        }
        serde_json::from_value(Value::Object(normalized)).map(Self).map_err(D::Error::custom)
    }
}

/// A 64-bit integer, as a number or text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Int64(pub(crate) i64);

impl<'de> Deserialize<'de> for Int64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let number = match &value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.map(Self).ok_or_else(|| D::Error::custom(format!("invalid value for int64 field: {value}")))
    }
}

/// A time, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) i64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_rfc3339(&text)
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("invalid google.protobuf.Timestamp value {text:?}")))
    }
}

/// Reads a message from the body of a request.
pub(crate) fn read<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice::<Message<T>>(body).map(|message| message.0).map_err(|error| {
        let mut text = "proto: ".to_owned();
        if error.line() > 0 {
            let _ = write!(text, "(line {}:{}): ", error.line(), error.column());
        }
        let reason = error.to_string();
        text.push_str(reason.split(" at line ").next().unwrap_or(&reason));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        interval_second: Int64,
        start_time: Option<Time>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        display_name: String,
        periodic_schedule: Option<Message<Inner>>,
        parameters: Map<String, Value>,
    }

    #[test]
    fn both_cases_nulls_and_texts_for_numbers_are_read() {
        let text = r#"{"displayName": "a", "periodic_schedule": {"intervalSecond": "60", "start_time": "1970-01-01T00:00:01Z"},
            "parameters": {"camelCase": null}}"#;
        let outer: Outer = read(text.as_bytes()).unwrap();
        assert_eq!(outer.display_name, "a");
        assert_eq!(
            outer.periodic_schedule.unwrap().0,
            Inner { interval_second: Int64(60), start_time: Some(Time(1000)) }
        );
        assert_eq!(outer.parameters["camelCase"], Value::Null);
        assert_eq!(read::<Outer>(br#"{"displayName": null}"#).unwrap(), Outer::default());
        assert_eq!(read::<Outer>(b"").unwrap(), Outer::default());
    }

    #[test]
    fn unknown_and_duplicate_fields_are_refused() {
        for (text, reason) in [
            (r#"{"x": 1}"#, "unknown field `x`"),
            (r#"{"displayName": "a", "display_name": "b"}"#, "duplicate field"),
            (r#"{"periodicSchedule": {"interval": 1}}"#, "unknown field `interval`"),
            (r#"{"periodicSchedule": {"startTime": "soon"}}"#, "Timestamp"),
            ("[1", "proto: (line 1:"),
        ] {
            let error = read::<Outer>(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
