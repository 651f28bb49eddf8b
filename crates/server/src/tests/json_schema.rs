//! A validator for the part of JSON Schema 2020-12 that the OpenAPI document uses. It knows no keyword that the document does not have, and
//! refuses a schema with another, so that nothing goes unchecked. It is stricter than the standard in one thing: a property that no schema
//! names is an error, since it shows that a description lacks a field.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Keywords that constrain nothing.
const ANNOTATIONS: [&str; 4] = ["title", "description", "default", "format"];

/// Says what is wrong with a value, by the schemas of this document.
pub(super) fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    Validator { document }.check(schema, value, "")
}

/// Properties of an object that schemas spoke of.
#[derive(Default)]
struct Described {
    names: BTreeSet<String>,
    all: bool,
}

impl Described {
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
        let described = self.evaluate(schema, value, at)?;
        let unknown = value.as_object().into_iter().flatten().find(|(name, _)| !described.names.contains(*name));
        match unknown.filter(|_| !described.all) {
            Some((name, _)) => Err(format!("{at}/{name} is not in the schema")),
            None => Ok(()),
        }
    }

    /// Applies a schema without asking whether it speaks of all properties: others may apply to the same value.
    fn evaluate(&self, schema: &Value, value: &Value, at: &str) -> Result<Described, String> {
        let mut described = Described::default();
        let keywords = match schema {
            Value::Bool(true) => return Ok(Described { all: true, ..described }),
            Value::Object(keywords) => keywords,
            _ => return Err(format!("{at}: nothing is valid here, but there is {value}")),
        };
        // A schema that only describes in words takes anything.
        described.all = keywords.keys().all(|keyword| ANNOTATIONS.contains(&keyword.as_str()));
        for (keyword, wanted) in keywords {
            let wrong = || format!("{at}: {value} does not satisfy {keyword} {wanted}");
            let satisfied = match keyword.as_str() {
                annotation if ANNOTATIONS.contains(&annotation) => true,
                "$ref" => {
                    let pointer = wanted.as_str().and_then(|r| r.strip_prefix('#')).unwrap_or_default();
                    let target = self.document.pointer(pointer).ok_or_else(|| format!("{wanted} leads nowhere"))?;
                    described.add(self.evaluate(target, value, at)?);
                    true
                }
                "type" => match wanted {
                    Value::Array(types) => types.iter().any(|t| has_type(value, t)),
                    one => has_type(value, one),
                },
                "const" => value == wanted,
                "enum" => list(wanted).contains(value),
                "minimum" => value.as_f64().is_none_or(|n| wanted.as_f64().is_some_and(|least| n >= least)),
                "minItems" => value.as_array().is_none_or(|a| wanted.as_u64().is_some_and(|n| a.len() as u64 >= n)),
                "maxItems" => value.as_array().is_none_or(|a| wanted.as_u64().is_some_and(|n| a.len() as u64 <= n)),
                "required" => value.as_object().is_none_or(|o| {
                    list(wanted).iter().all(|name| name.as_str().is_some_and(|name| o.contains_key(name)))
                }),
                "anyOf" | "oneOf" => {
                    let results = list(wanted).iter().map(|branch| self.evaluate(branch, value, at));
                    let (mut valid, mut reasons) = (0, Vec::new());
                    for result in results {
                        match result {
                            Ok(branch) => {
                                described.add(branch);
                                valid += 1;
                            }
                            Err(reason) => reasons.push(reason),
                        }
                    }
                    if valid == 0 {
                        return Err(format!("{at}: no branch of {keyword}: {}", reasons.join("; ")));
                    }
                    keyword == "anyOf" || valid == 1
                }
                "properties" => {
                    for (name, schema) in wanted.as_object().into_iter().flatten() {
                        if let Some(value) = value.get(name) {
                            self.check(schema, value, &format!("{at}/{name}"))?;
                        }
                        described.names.insert(name.clone());
                    }
                    true
                }
                "additionalProperties" => {
                    let named = keywords.get("properties").and_then(Value::as_object);
                    let is_other = |name: &str| named.is_none_or(|n: &Map<String, Value>| !n.contains_key(name));
                    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| is_other(name)) {
                        self.check(wanted, value, &format!("{at}/{name}"))?;
                        described.names.insert(name.clone());
                    }
                    true
                }
                "prefixItems" => {
                    for (i, (schema, value)) in list(wanted).iter().zip(list(value)).enumerate() {
                        self.check(schema, value, &format!("{at}/{i}"))?;
                    }
                    true
                }
                "items" => {
                    let before = keywords.get("prefixItems").map_or(0, |p| list(p).len());
                    for (i, value) in list(value).iter().enumerate().skip(before) {
                        self.check(wanted, value, &format!("{at}/{i}"))?;
                    }
                    true
                }
                _ => return Err(format!("the validator does not know the keyword {keyword}")),
            };
            if !satisfied {
                return Err(wrong());
            }
        }
        Ok(described)
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
fn what_does_not_fit_a_schema_is_refused() {
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
    let fits = |name: &str, value: Value| check(&document, &json!({"$ref": format!("#/defs/{name}")}), &value);
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
        assert_eq!(fits(name, value), Ok(()), "{name}");
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
        assert!(fits(name, value.clone()).is_err(), "{name} takes {value}");
    }
}
