//! Structural schemas: the fields of a kind, their types, and how patches merge them. The form is that of the `openAPIV3Schema` of a custom
//! resource definition, so the schemas of upstream's kinds can be used as they are.

use std::collections::BTreeMap;

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::error::FieldError;
use crate::rule::Rule;

/// Maximum depth of an object, so that a recursive schema or a malicious body cannot exhaust the stack.
const MAX_DEPTH: usize = 64;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// Fields by name, or values by key.
    Object,
    /// A list.
    Array,
    /// Text.
    String,
    /// A number without a fraction.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
}

/// The schema of a value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Schema {
    /// What the value is, for `kubectl explain`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The type; any, if it is absent.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<Type>,
    /// The format of a text or number, such as `date-time` or `byte`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// The fields of an object.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, Schema>,
    /// The values of an object with arbitrary keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_properties: Option<Box<Schema>>,
    /// The elements of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Box<Schema>>,
    /// Fields that must be present.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    /// The allowed values.
    #[serde(rename = "enum", skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<Value>,
    /// The least value of a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Number>,
    /// The greatest value of a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum: Option<Number>,
    /// Minimum number of characters of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_length: Option<usize>,
    /// Maximum number of characters of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// The regular expression of a text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pattern: String,
    /// Maximum number of elements of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_items: Option<usize>,
    /// Minimum number of fields of an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_properties: Option<usize>,
    /// Maximum number of fields of an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_properties: Option<usize>,
    /// Rules about the value and its earlier value.
    #[serde(rename = "x-kubernetes-validations", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Whether the value may be `null`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nullable: bool,
    /// The value of an absent field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Whether fields that the schema does not name are kept.
    #[serde(rename = "x-kubernetes-preserve-unknown-fields", skip_serializing_if = "std::ops::Not::not")]
    pub preserve_unknown: bool,
    /// Whether the value is a number or a text.
    #[serde(rename = "x-kubernetes-int-or-string", skip_serializing_if = "std::ops::Not::not")]
    pub int_or_string: bool,
    /// The field by which a strategic merge patch merges the elements of a list.
    #[serde(rename = "x-kubernetes-patch-merge-key", skip_serializing_if = "String::is_empty")]
    pub patch_merge_key: String,
    /// How a strategic merge patch changes the value: `merge`, `replace`, or these with `retainKeys`.
    #[serde(rename = "x-kubernetes-patch-strategy", skip_serializing_if = "String::is_empty")]
    pub patch_strategy: String,
    /// How appliers share a list: `atomic`, `set` or `map`.
    #[serde(rename = "x-kubernetes-list-type", skip_serializing_if = "String::is_empty")]
    pub list_type: String,
    /// The fields that identify an element of a list of type `map`.
    #[serde(rename = "x-kubernetes-list-map-keys", skip_serializing_if = "Vec::is_empty")]
    pub list_map_keys: Vec<String>,
    /// How appliers share an object: `atomic` or `granular`.
    #[serde(rename = "x-kubernetes-map-type", skip_serializing_if = "String::is_empty")]
    pub map_type: String,
}

/// What [`Schema::decode`] found in a value.
#[derive(Debug, Default, PartialEq)]
pub struct Findings {
    /// Paths of fields that the schema does not have. They were removed.
    pub unknown: Vec<String>,
    /// Values of a wrong type.
    pub wrong: Vec<WrongType>,
}

/// A value of another type than its schema's.
#[derive(Debug, Clone, PartialEq)]
pub struct WrongType {
    /// The path of the value.
    pub path: String,
    /// The path up to the last field that the schema names.
    pub field: String,
    /// The value.
    pub value: Value,
    /// The type of the schema.
    pub expected: Expected,
}

/// What a value should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A value of this type.
    Type(Type),
    /// Bytes in base64; the text is wrong at this offset.
    Base64(usize),
}

impl WrongType {
    /// The error of a validated kind.
    pub fn field_error(&self) -> FieldError {
        let expected = match self.expected {
            Expected::Type(expected) => type_name(expected),
            Expected::Base64(_) => "byte",
        };
        let actual = json_type(&self.value);
        let detail = format!("{} in body must be of type {expected}: {actual:?}", self.path);
        FieldError::type_invalid(self.path.clone(), &Value::from(actual), detail)
    }

    /// The error of decoding a kind that is native to the API server, which is written in Go.
    pub fn decoding_error(&self, kind: &str) -> String {
        let expected = match self.expected {
            Expected::Type(Type::Object) => "map[string]interface {}",
            Expected::Type(Type::Array) => "[]interface {}",
            Expected::Type(Type::String) => "string",
            Expected::Type(Type::Integer) => "int32",
            Expected::Type(Type::Number) => "float64",
            Expected::Type(Type::Boolean) => "bool",
            Expected::Base64(at) => return format!("illegal base64 data at input byte {at}"),
        };
        let actual = match json_type(&self.value) {
            "integer" | "number" => "number",
            "boolean" => "bool",
            other => other,
        };
        format!("json: cannot unmarshal {actual} into Go struct field {kind}.{} of type {expected}", self.field)
    }
}

fn type_name(kind: Type) -> &'static str {
    match kind {
        Type::Object => "object",
        Type::Array => "array",
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The offset of the first fault of a text in base64.
fn base64_fault(text: &str) -> Option<usize> {
    match STANDARD.decode(text) {
        Ok(_) => None,
        Err(DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol { offset: at, .. }) => Some(at),
        Err(_) => Some(text.len()),
    }
}

/// Whether a text matches a regular expression of a schema. One that cannot be read matches nothing.
fn is_match(pattern: &str, text: &str) -> bool {
    regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Schema {
    /// The schema of a field; `None` if there is no such field.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.additional_properties.as_deref())
    }

    /// Removes unknown and null fields, sets defaults, and reports unknown fields and values of wrong types.
    pub fn decode(&self, value: &mut Value) -> Findings {
        let mut findings = Findings::default();
        self.decode_at(value, ["", ""], 0, &mut findings);
        findings
    }

    /// Decodes a value at a path, whose second form ends with the last field that the schema names.
    fn decode_at(&self, value: &mut Value, [path, field]: [&str; 2], depth: usize, findings: &mut Findings) {
        let Some(kind) = self.kind else { return };
        let fits = match (kind, &*value) {
            (Type::Object, Value::Object(_))
            | (Type::Array, Value::Array(_))
            | (Type::String, Value::String(_))
            | (Type::Boolean, Value::Bool(_))
            | (Type::Number, Value::Number(_)) => depth < MAX_DEPTH,
            (Type::Integer, Value::Number(number)) => !number.is_f64(),
            _ => false,
        };
        let mut expect = |expected| {
            let (path, field) = (path.to_owned(), field.to_owned());
            findings.wrong.push(WrongType { path, field, value: value.clone(), expected });
        };
        if !fits {
            expect(Expected::Type(kind));
            return;
        }
        if self.format == "byte"
            && let Some(at) = value.as_str().and_then(base64_fault)
        {
            expect(Expected::Base64(at));
            return;
        }
        match value {
            Value::Object(fields) => self.decode_fields(fields, [path, field], depth, findings),
            Value::Array(elements) => {
                let Some(schema) = &self.items else { return };
                for (i, element) in elements.iter_mut().enumerate() {
                    schema.decode_at(element, [&format!("{path}[{i}]"), field], depth + 1, findings);
                }
            }
            _ => {}
        }
    }

    fn decode_fields(
        &self,
        fields: &mut Map<String, Value>,
        [path, field]: [&str; 2],
        depth: usize,
        findings: &mut Findings,
    ) {
        let is_null = |(name, value): &(&String, &Value)| {
            value.is_null() && self.field(name).is_some_and(|schema| !schema.nullable)
        };
        let null: Vec<String> = fields.iter().filter(is_null).map(|(name, _)| name.clone()).collect();
        for name in null {
            // A null value in a map of texts is the empty text, and everywhere else absence.
            let is_text = self.properties.is_empty() && self.field(&name).is_some_and(|s| s.kind == Some(Type::String));
            if is_text {
                fields.insert(name, Value::String(String::new()));
            } else {
                fields.remove(&name);
            }
        }
        for (name, schema) in &self.properties {
            if let Some(default) = &schema.default
                && !fields.contains_key(name)
            {
                fields.insert(name.clone(), default.clone());
            }
        }
        fields.retain(|name, value| {
            let Some(schema) = self.field(name) else {
                if !self.preserve_unknown {
                    findings.unknown.push(joined(path, name));
                }
                return self.preserve_unknown;
            };
            if !value.is_null() {
                let named = if self.properties.contains_key(name) { &joined(field, name) } else { field };
                schema.decode_at(value, [&joined(path, name), named], depth + 1, findings);
            }
            true
        });
    }

    /// Checks required fields, allowed values and bounds of a decoded value at a path.
    pub fn validate(&self, value: &Value, path: &str) -> Vec<FieldError> {
        self.validate_change(value, None, path)
    }

    /// Checks a decoded value at a path, and its difference from the value that it replaces.
    pub fn validate_change(&self, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.validate_at(value, old, path, &mut errors);
        errors
    }

    /// Checks the number of characters, elements or fields, and the pattern.
    fn validate_size(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let mut refuse =
            |detail: String| errors.push(FieldError::invalid(path, value, format!("{path} in body {detail}")));
        match value {
            Value::String(text) => {
                let count = text.chars().count();
                if let Some(minimum) = self.min_length.filter(|minimum| count < *minimum) {
                    refuse(format!("should be at least {minimum} chars long"));
                }
                if !self.pattern.is_empty() && !is_match(&self.pattern, text) {
                    refuse(format!("should match '{}'", self.pattern));
                }
                if let Some(maximum) = self.max_length.filter(|maximum| count > *maximum) {
                    errors.push(FieldError::too_long(path, maximum));
                }
            }
            Value::Array(elements) => {
                if let Some(maximum) = self.max_items.filter(|maximum| elements.len() > *maximum) {
                    errors.push(FieldError::too_many(path, elements.len(), maximum));
                }
            }
            Value::Object(fields) => {
                if let Some(minimum) = self.min_properties.filter(|minimum| fields.len() < *minimum) {
                    refuse(format!("should have at least {minimum} properties"));
                }
                if let Some(maximum) = self.max_properties.filter(|maximum| fields.len() > *maximum) {
                    refuse(format!("should have at most {maximum} properties"));
                }
            }
            _ => {}
        }
    }

    fn validate_at(&self, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
        self.validate_size(value, path, errors);
        let broken = self.rules.iter().filter_map(|rule| rule.fault(value, old));
        errors.extend(broken.map(|fault| FieldError::invalid(path, value, fault)));
        if !self.allowed.is_empty() && !self.allowed.contains(value) {
            let allowed: Vec<String> =
                self.allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            errors.push(FieldError::not_supported(path, value, &allowed));
        }
        if let Some(number) = value.as_f64() {
            if let Some(minimum) =
                self.minimum.as_ref().filter(|minimum| minimum.as_f64().is_some_and(|minimum| number < minimum))
            {
                let detail = format!("{path} in body should be greater than or equal to {minimum}");
                errors.push(FieldError::invalid(path, value, detail));
            }
            if let Some(maximum) =
                self.maximum.as_ref().filter(|maximum| maximum.as_f64().is_some_and(|maximum| number > maximum))
            {
                let detail = format!("{path} in body should be less than or equal to {maximum}");
                errors.push(FieldError::invalid(path, value, detail));
            }
        }
        match value {
            Value::Object(fields) => {
                for name in self.required.iter().filter(|name| !fields.contains_key(*name)) {
                    errors.push(FieldError::required(joined(path, name), ""));
                }
                for (name, value) in fields {
                    if let Some(schema) = self.field(name) {
                        schema.validate_at(value, old.and_then(|old| old.get(name)), &joined(path, name), errors);
                    }
                }
            }
            Value::Array(elements) => {
                if let Some(schema) = &self.items {
                    for (i, element) in elements.iter().enumerate() {
                        schema.validate_at(element, None, &format!("{path}[{i}]"), errors);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(value: Value) -> Schema {
        serde_json::from_value(value).unwrap()
    }

    fn example() -> Schema {
        schema(json!({"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1},
            "mode": {"type": "string", "enum": ["A", "B"], "default": "A"},
            "data": {"type": "object", "additionalProperties": {"type": "string"}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "boolean"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }}))
    }

    #[test]
    fn unknown_fields_are_removed_and_reported_with_their_paths() {
        let mut value =
            json!({"size": 1, "odd": 1, "list": [{"x": true, "y": 2}], "free": {"z": 1}, "data": {"a": null}});
        let findings = example().decode(&mut value);
        assert_eq!(findings.unknown, ["list[0].y", "odd"]);
        assert_eq!(findings.wrong, []);
        let expected = json!({"size": 1, "mode": "A", "list": [{"x": true}], "free": {"z": 1}, "data": {"a": ""}});
        assert_eq!(value, expected);
    }

    #[test]
    fn wrong_types_are_reported_in_both_wordings() {
        let findings = example().decode(&mut json!({"size": "x", "data": {"a": 1}}));
        assert_eq!(
            findings.wrong[0].decoding_error("Kind"),
            "json: cannot unmarshal number into Go struct field Kind.data of type string"
        );
        assert_eq!(
            findings.wrong[1].field_error().to_string(),
            "size: Invalid value: \"string\": size in body must be of type integer: \"string\""
        );
    }

    #[test]
    fn bytes_are_in_base64() {
        let bytes = schema(json!({"type": "object", "additionalProperties": {"type": "string", "format": "byte"}}));
        assert_eq!(bytes.decode(&mut json!({"a": "eA==", "b": ""})).wrong, []);
        let findings = bytes.decode(&mut json!({"a": "not base64"}));
        assert_eq!(findings.wrong[0].decoding_error("Kind"), "illegal base64 data at input byte 3");
    }

    #[test]
    fn bounds_required_fields_and_allowed_values_are_checked() {
        let errors = example().validate(&json!({"mode": "C"}), "spec");
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            ["spec.size: Required value", "spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\""]
        );
        assert_eq!(example().validate(&json!({"size": 0}), "")[0].reason, "FieldValueInvalid");
    }

    #[test]
    fn deep_values_are_refused() {
        let mut recursive = schema(json!({"type": "object"}));
        for _ in 0..100 {
            let properties = BTreeMap::from([("a".to_owned(), recursive)]);
            recursive = Schema { kind: Some(Type::Object), properties, ..Schema::default() };
        }
        let mut value = json!({});
        for _ in 0..90 {
            value = json!({"a": value});
        }
        assert_eq!(recursive.decode(&mut value).wrong.len(), 1);
    }
}
