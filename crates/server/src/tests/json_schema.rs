//! A validator for the subset of JSON Schema 2020-12 that the OpenAPI document uses.
//!
//! Invariant: nothing is left unchecked. A schema with an unsupported keyword is an error. Unlike in the standard, a property that no
//! schema names is an error too, because it means that a field is missing from the schema.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Keywords that do not constrain a value.
const ANNOTATIONS: [&str; 4] = ["title", "description", "default", "format"];

/// Validates a value against a schema of the document. The error names the position and the keyword.
pub(super) fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    Validator { document }.check(schema, value, "")
}

/// The properties of an object that the applied schemas cover.
#[derive(Default)]
struct Covered {
    names: BTreeSet<String>,
    all: bool,
}

impl Covered {
    fn add(&mut self, other: Self) {
        self.names.extend(other.names);
        self.all |= other.all;
    }
}

struct Validator<'a> {
    document: &'a Value,
}

impl Validator<'_> {
    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let covered = self.evaluate(schema, value, at)?;
        let unknown = value.as_object().into_iter().flatten().find(|(name, _)| !covered.names.contains(*name));
        match unknown.filter(|_| !covered.all) {
            Some((name, _)) => Err(format!("{at}/{name} is not in the schema")),
            None => Ok(()),
        }
    }

    /// Applies a schema without requiring that it covers all properties, because further schemas may apply to the same value.
    fn evaluate(&self, schema: &Value, value: &Value, at: &str) -> Result<Covered, String> {
        let mut covered = Covered::default();
        let keywords = match schema {
            Value::Bool(true) => return Ok(Covered { all: true, ..covered }),
            Value::Object(keywords) => keywords,
            _ => return Err(format!("{at}: no value is valid here, found {value}")),
        };
        // A schema with only annotations accepts any value.
        covered.all = keywords.keys().all(|keyword| ANNOTATIONS.contains(&keyword.as_str()));
        for (keyword, expected) in keywords {
            let unsatisfied = || format!("{at}: {value} does not satisfy {keyword} {expected}");
            let satisfied = match keyword.as_str() {
                annotation if ANNOTATIONS.contains(&annotation) => true,
                "$ref" => {
                    let pointer = expected.as_str().and_then(|r| r.strip_prefix('#')).unwrap_or_default();
                    let target =
                        self.document.pointer(pointer).ok_or_else(|| format!("{expected} does not resolve"))?;
                    covered.add(self.evaluate(target, value, at)?);
                    true
                }
                "type" => match expected {
                    Value::Array(types) => types.iter().any(|t| has_type(value, t)),
                    one => has_type(value, one),
                },
                "const" => value == expected,
                "enum" => list(expected).contains(value),
                "minimum" => value.as_f64().is_none_or(|n| expected.as_f64().is_some_and(|minimum| n >= minimum)),
                "maximum" => value.as_f64().is_none_or(|n| expected.as_f64().is_some_and(|maximum| n <= maximum)),
                "minItems" => value.as_array().is_none_or(|a| expected.as_u64().is_some_and(|n| a.len() as u64 >= n)),
                "maxItems" => value.as_array().is_none_or(|a| expected.as_u64().is_some_and(|n| a.len() as u64 <= n)),
                "required" => value.as_object().is_none_or(|o| {
                    list(expected).iter().all(|name| name.as_str().is_some_and(|name| o.contains_key(name)))
                }),
                "anyOf" | "oneOf" => {
                    let results = list(expected).iter().map(|branch| self.evaluate(branch, value, at));
                    let (mut valid, mut reasons) = (0, Vec::new());
                    for result in results {
                        match result {
                            Ok(branch) => {
                                covered.add(branch);
                                valid += 1;
                            }
                            Err(reason) => reasons.push(reason),
                        }
                    }
                    if valid == 0 {
                        return Err(format!("{at}: no branch of {keyword} is valid: {}", reasons.join("; ")));
                    }
                    keyword == "anyOf" || valid == 1
                }
                "properties" => {
                    for (name, schema) in expected.as_object().into_iter().flatten() {
                        if let Some(value) = value.get(name) {
                            self.check(schema, value, &format!("{at}/{name}"))?;
                        }
                        covered.names.insert(name.clone());
                    }
                    true
                }
                "additionalProperties" => {
                    let named = keywords.get("properties").and_then(Value::as_object);
                    let is_other = |name: &str| named.is_none_or(|n: &Map<String, Value>| !n.contains_key(name));
                    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| is_other(name)) {
                        self.check(expected, value, &format!("{at}/{name}"))?;
                        covered.names.insert(name.clone());
                    }
                    true
                }
                "prefixItems" => {
                    for (i, (schema, value)) in list(expected).iter().zip(list(value)).enumerate() {
                        self.check(schema, value, &format!("{at}/{i}"))?;
                    }
                    true
                }
                "items" => {
                    let before = keywords.get("prefixItems").map_or(0, |p| list(p).len());
                    for (i, value) in list(value).iter().enumerate().skip(before) {
                        self.check(expected, value, &format!("{at}/{i}"))?;
                    }
                    true
                }
                _ => return Err(format!("the validator does not support the keyword {keyword}")),
            };
            if !satisfied {
                return Err(unsatisfied());
            }
        }
        Ok(covered)
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0),
        _ => false,
    }
}

#[test]
fn invalid_values_are_rejected() {
    use serde_json::json;
    let document = json!({"defs": {
        "Point": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}}, "required": ["x"]},
        "Step": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "oneOf": [
            {"properties": {"state": {"const": "done"}}, "required": ["state"]},
            {"properties": {"state": {"const": "failed"}, "why": {"type": "string"}}, "required": ["state", "why"]},
        ]},
        "Pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}], "minItems": 2, "maxItems": 2},
        "Counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "Free": {"type": "object", "additionalProperties": true},
        "Any": {"description": "Anything."},
        "Maybe": {"anyOf": [{"$ref": "#/defs/Point"}, {"type": "null"}]},
        "Word": {"enum": ["a", "b"]},
        "Strange": {"maxLength": 1},
        "Lost": {"$ref": "#/defs/Nothing"},
    }});
    let validate = |name: &str, value: Value| check(&document, &json!({"$ref": format!("#/defs/{name}")}), &value);
    for (name, value) in [
        ("Point", json!({"x": 1})),
        ("Step", json!({"name": "a", "state": "failed", "why": "b"})),
        ("Pair", json!(["a", 1.5])),
        ("Counts", json!({"a": 1})),
        ("Free", json!({"a": {"b": [1]}})),
        ("Any", json!({"a": 1})),
        ("Maybe", json!(null)),
        ("Word", json!("a")),
    ] {
        assert_eq!(validate(name, value), Ok(()), "{name}");
    }
    for (name, value) in [
        ("Point", json!({})),
        ("Point", json!({"x": -1})),
        ("Point", json!({"x": 1.5})),
        ("Point", json!({"x": "1"})),
        ("Point", json!({"x": 1, "y": 2})),
        ("Point", json!([])),
        ("Step", json!({"name": "a"})),
        ("Step", json!({"name": "a", "state": "failed"})),
        ("Step", json!({"name": "a", "state": "done", "why": "b"})),
        ("Pair", json!(["a"])),
        ("Pair", json!([1, "a"])),
        ("Pair", json!(["a", 1, 2])),
        ("Counts", json!({"a": "b"})),
        ("Maybe", json!({"x": null})),
        ("Word", json!("c")),
        ("Strange", json!("a")),
        ("Lost", json!("a")),
    ] {
        assert!(validate(name, value.clone()).is_err(), "{name} accepts {value}");
    }
}
