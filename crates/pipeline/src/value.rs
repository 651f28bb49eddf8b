//! Values of parameters: their types, how a value of one type becomes another, and their text.
//!
//! All numbers are IEEE doubles, as in `google.protobuf.Value`, so an integer above 2^53 is rounded wherever it enters. A number that is
//! whole is kept as an integer, so that it is written without a fraction.

use serde_json::{Map, Number, Value};

use crate::proto::ml_pipelines::parameter_type::ParameterTypeEnum;

/// Type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `STRING`
    String,
    /// `NUMBER_INTEGER`
    Integer,
    /// `NUMBER_DOUBLE`
    Double,
    /// `BOOLEAN`
    Boolean,
    /// `LIST`
    List,
    /// `STRUCT`
    Struct,
    /// `TASK_FINAL_STATUS`
    TaskFinalStatus,
    /// `TASK_CONFIG`
    TaskConfig,
}

/// Maximum depth of lists and objects in a value.
pub const MAX_DEPTH: usize = 100;

/// The largest number up to which every integer is a double.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_992.0;

/// The type with this number in `ParameterTypeEnum`; `None` for an unspecified or unknown one.
pub fn kind(parameter_type: i32) -> Option<Kind> {
    Some(match ParameterTypeEnum::try_from(parameter_type).ok()? {
        ParameterTypeEnum::Unspecified => return None,
        ParameterTypeEnum::NumberDouble => Kind::Double,
        ParameterTypeEnum::NumberInteger => Kind::Integer,
        ParameterTypeEnum::String => Kind::String,
        ParameterTypeEnum::Boolean => Kind::Boolean,
        ParameterTypeEnum::List => Kind::List,
        ParameterTypeEnum::Struct => Kind::Struct,
        ParameterTypeEnum::TaskFinalStatus => Kind::TaskFinalStatus,
        ParameterTypeEnum::TaskConfig => Kind::TaskConfig,
    })
}

impl Kind {
    /// Name in the specification, such as `NUMBER_INTEGER`.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "STRING",
            Self::Integer => "NUMBER_INTEGER",
            Self::Double => "NUMBER_DOUBLE",
            Self::Boolean => "BOOLEAN",
            Self::List => "LIST",
            Self::Struct => "STRUCT",
            Self::TaskFinalStatus => "TASK_FINAL_STATUS",
            Self::TaskConfig => "TASK_CONFIG",
        }
    }

    /// Whether a value has this type, without any conversion.
    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Self::String => value.is_string(),
            Self::Integer | Self::Double => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Struct | Self::TaskFinalStatus | Self::TaskConfig => value.is_object(),
        }
    }
}

/// A word for the type of a value, for errors.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value of a task's input. A string accepts every value as its text; the other types accept only their own.
///
/// # Errors
/// The types do not match.
pub fn coerce(kind: Kind, value: &Value) -> Result<Value, String> {
    if kind == Kind::String && !value.is_string() && !value.is_null() {
        return Ok(Value::String(to_text(value)));
    }
    check_exact(kind, value)?;
    Ok(normalized(value))
}

/// Checks a parameter of a run, which must have exactly the declared type.
///
/// # Errors
/// The types do not match.
pub fn check_exact(kind: Kind, value: &Value) -> Result<(), String> {
    if kind.accepts(value) {
        Ok(())
    } else {
        Err(format!("type mismatch: expected {}, got {}", kind.name(), type_name(value)))
    }
}

/// Checks a value against the allowed values of a parameter, if it lists any.
///
/// # Errors
/// The value is not among them.
pub fn check_literals(literals: &[prost_types::Value], value: &Value) -> Result<(), String> {
    if literals.is_empty() {
        return Ok(());
    }
    let allowed: Vec<Value> = literals.iter().map(from_prost).collect();
    let value = normalized(value);
    if allowed.contains(&value) {
        return Ok(());
    }
    let allowed: Vec<String> = allowed.iter().map(to_json_text).collect();
    Err(format!("the value {} is not allowed; allowed are {}", to_json_text(&value), allowed.join(", ")))
}

/// The text of a value, as a string parameter or a placeholder receives it: numbers in decimal notation without a needless fraction and
/// without an exponent, lists and objects as compact JSON with sorted keys, null as nothing.
pub fn to_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::String(text) => text.clone(),
        // Rust's decimal notation of doubles is the shortest one that is read back exactly, and has no exponent.
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), |number| format!("{number}")),
        Value::Array(_) | Value::Object(_) => to_json_text(value),
    }
}

/// Compact JSON with sorted keys. `<`, `>`, `&` and the two line separators of Unicode are escaped, as Go's encoder does.
pub fn to_json_text(value: &Value) -> String {
    let text = normalized(value).to_string();
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    // These characters occur only inside strings of JSON, where an escape has the same meaning.
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Whether lists and objects are not nested more deeply.
pub fn is_within(value: &Value, depth: usize) -> bool {
    let mut parts: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(values) => Box::new(values.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => return true,
    };
    depth > 0 && parts.all(|part| is_within(part, depth - 1))
}

/// Fails for a value that is nested more deeply than [`MAX_DEPTH`]: what is stored of it could not be read again.
///
/// # Errors
/// It is.
pub fn check_depth(value: &Value) -> Result<(), String> {
    if is_within(value, MAX_DEPTH) {
        Ok(())
    } else {
        Err(format!("it has more than {MAX_DEPTH} lists and objects inside each other"))
    }
}

/// Bytes of memory that a value takes, roughly.
pub fn weight(value: &Value) -> usize {
    const NODE: usize = 32;
    NODE + match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(fields) => fields.iter().map(|(key, value)| NODE + key.len() + weight(value)).sum(),
    }
}

/// The value in an output file.
///
/// # Errors
/// The text is not a value of this type.
pub fn parse_output(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Integer | Kind::Double => parse_number(text.trim()),
        Kind::Boolean => match text.trim() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            other => Err(format!("'{}' is not a boolean; write true or false", shortened(other))),
        },
        Kind::List | Kind::Struct | Kind::TaskFinalStatus | Kind::TaskConfig => {
            let value: Value = serde_json::from_str(text).map_err(|error| format!("not valid JSON: {error}"))?;
            check_depth(&value)?;
            coerce(kind, &value)
        }
    }
}

fn parse_number(text: &str) -> Result<Value, String> {
    // Go's underscores, hexadecimal digits and infinities have no JSON form or are surprising, so only decimal numbers are accepted.
    let number: Option<f64> = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.map(from_double).ok_or_else(|| format!("'{}' is not a number", shortened(text)))
}

/// The first characters of a text, for errors.
pub(crate) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A value with all its numbers as doubles; see the module.
pub fn normalized(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or(Value::Null, from_double),
        Value::Array(values) => Value::Array(values.iter().map(normalized).collect()),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (key.clone(), normalized(value))).collect())
        }
        other => other.clone(),
    }
}

fn from_double(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() <= MAX_SAFE_INTEGER {
        return Value::Number(Number::from(number as i64));
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

/// The JSON value of a protobuf value. Infinities and NaN, which JSON cannot express, become null.
pub fn from_prost(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind as K;
    match &value.kind {
        None | Some(K::NullValue(_)) => Value::Null,
        Some(K::NumberValue(number)) => from_double(*number),
        Some(K::StringValue(text)) => Value::String(text.clone()),
        Some(K::BoolValue(value)) => Value::Bool(*value),
        Some(K::StructValue(fields)) => Value::Object(from_struct(fields)),
        Some(K::ListValue(list)) => Value::Array(list.values.iter().map(from_prost).collect()),
    }
}

/// The JSON object of a protobuf struct.
pub fn from_struct(fields: &prost_types::Struct) -> Map<String, Value> {
    fields.fields.iter().map(|(key, value)| (key.clone(), from_prost(value))).collect()
}

/// The protobuf value of a JSON value.
pub fn to_prost(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind as K;
    let kind = match value {
        Value::Null => K::NullValue(0),
        Value::Bool(value) => K::BoolValue(*value),
        Value::Number(number) => K::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => K::StringValue(text.clone()),
        Value::Array(values) => K::ListValue(prost_types::ListValue { values: values.iter().map(to_prost).collect() }),
        Value::Object(fields) => K::StructValue(prost_types::Struct {
            fields: fields.iter().map(|(key, value)| (key.clone(), to_prost(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_has_no_needless_fraction_and_no_exponent() {
        for (value, text) in [
            (json!(20.0), "20"),
            (json!(1e21), "1000000000000000000000"),
            (json!(1e-7), "0.0000001"),
            (json!(-0.5), "-0.5"),
            (json!(true), "true"),
            (json!(null), ""),
            (json!(" a "), " a "),
            (json!({"b": [1.0, 2.5], "a": "<&>"}), r#"{"a":"\u003c\u0026\u003e","b":[1,2.5]}"#),
        ] {
            assert_eq!(to_text(&value), text);
        }
    }

    #[test]
    fn numbers_are_doubles() {
        assert_eq!(normalized(&json!([9_007_199_254_740_993_i64])), json!([9_007_199_254_740_992_i64]));
        assert_eq!(normalized(&json!({"a": 2.0})).to_string(), r#"{"a":2}"#);
        assert_eq!(from_prost(&to_prost(&json!({"a": [1, null, "x", false]}))), json!({"a": [1, null, "x", false]}));
    }

    #[test]
    fn a_string_accepts_everything_and_other_types_only_their_own() {
        assert_eq!(coerce(Kind::String, &json!([1, "a"])).unwrap(), json!("[1,\"a\"]"));
        assert_eq!(coerce(Kind::Integer, &json!(2.5)).unwrap(), json!(2.5));
        for (kind, value) in [
            (Kind::Integer, json!("2")),
            (Kind::Boolean, json!(1)),
            (Kind::List, json!({})),
            (Kind::Struct, json!([])),
            (Kind::String, json!(null)),
        ] {
            assert!(coerce(kind, &value).unwrap_err().contains("type mismatch: expected"), "{value}");
        }
        check_exact(Kind::String, &json!(1)).unwrap_err();
    }

    #[test]
    fn output_files_are_parsed_by_type() {
        assert_eq!(parse_output(Kind::String, " a\n").unwrap(), json!(" a\n"));
        assert_eq!(parse_output(Kind::Integer, " 3\n").unwrap(), json!(3));
        assert_eq!(parse_output(Kind::Double, "1e3").unwrap(), json!(1000));
        assert_eq!(parse_output(Kind::Boolean, "T\n").unwrap(), json!(true));
        assert_eq!(parse_output(Kind::List, "[1.0]").unwrap(), json!([1]));
        for (kind, text) in [
            (Kind::Integer, "inf"),
            (Kind::Integer, ""),
            (Kind::Boolean, "yes"),
            (Kind::List, "{}"),
            (Kind::Struct, "{"),
        ] {
            parse_output(kind, text).unwrap_err();
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        parse_output(Kind::List, &nested(MAX_DEPTH)).unwrap();
        let error = parse_output(Kind::List, &nested(MAX_DEPTH + 1)).unwrap_err();
        assert_eq!(error, "it has more than 100 lists and objects inside each other");
    }

    #[test]
    fn the_weight_of_a_value_is_at_least_that_of_its_texts() {
        assert!(weight(&json!({"key": ["abc", {"d": "efg"}]})) >= "keyabcdefg".len());
        assert!(weight(&json!(vec![0; 1000])) >= 1000 * size_of::<Value>());
    }

    #[test]
    fn literals_compare_numbers_as_doubles() {
        let literals = [to_prost(&json!(1)), to_prost(&json!("a"))];
        check_literals(&literals, &json!(1.0)).unwrap();
        assert_eq!(
            check_literals(&literals, &json!("b")).unwrap_err(),
            "the value \"b\" is not allowed; allowed are 1, \"a\""
        );
    }
}
