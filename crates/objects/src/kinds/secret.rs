//! Secrets. Their data is encrypted at rest and never part of an error message.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{MAX_DATA, age_column, immutability_errors, keys};
use crate::error::{FieldError, json_error};
use crate::name::{NameForm, config_key_faults};
use crate::object::Object;
use crate::resource::{Cell, Column, Resource, Rules, embedded_schema};

/// What is shown instead of a value.
const REDACTED: &str = "<secret contents redacted>";

pub(super) fn resource() -> Resource {
    let kind = Column {
        name: "Type",
        kind: "string",
        format: "",
        description: "What the data is for",
        priority: 0,
        cell: Cell::Computed(|object, _| json!(object.text(&["type"]))),
    };
    let data = Column {
        name: "Data",
        kind: "string",
        format: "",
        description: "The number of keys",
        priority: 0,
        cell: Cell::Computed(|object, _| json!(keys(object, "data"))),
    };
    Resource {
        group: "",
        version: "v1",
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        short_names: &[],
        categories: Vec::new(),
        is_custom: false,
        is_read_only: false,
        has_log: false,
        namespaced: true,
        has_status: false,
        counts_generations: false,
        sealed: true,
        retention_ms: None,
        names: NameForm::Subdomain,
        schema: embedded_schema(include_str!("../../schemas/secret.json")),
        columns: vec![Column::of_names(), kind, data, age_column()],
        selectable: &[("type", |object| object.text(&["type"]).to_owned())],
        conversion: None,
        rules: Rules { default, validate, ..Rules::default() },
    }
}

fn default(new: &mut Object) {
    if new.text(&["type"]).is_empty() {
        new.body.insert("type".into(), json!("Opaque"));
    }
    if let Some(Value::Object(texts)) = new.body.remove("stringData")
        && !texts.is_empty()
    {
        let data = new.body.entry("data").or_insert_with(|| Value::Object(Map::new()));
        for (key, text) in texts {
            data[key] = json!(STANDARD.encode(text.as_str().unwrap_or_default()));
        }
    }
}

/// Keys that secrets of a type must have; of the first list all, of the second at least one.
fn required_keys(kind: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        "kubernetes.io/dockercfg" => (&[".dockercfg"], &[]),
        "kubernetes.io/dockerconfigjson" => (&[".dockerconfigjson"], &[]),
        "kubernetes.io/basic-auth" => (&[], &["username", "password"]),
        "kubernetes.io/ssh-auth" => (&["ssh-privatekey"], &[]),
        "kubernetes.io/tls" => (&["tls.crt", "tls.key"], &[]),
        _ => (&[], &[]),
    }
}

fn validate(new: &Object, old: Option<&Object>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = new.text(&["type"]);
    if let Some(old) = old {
        if old.text(&["type"]) != kind {
            errors.push(FieldError::invalid("type", &json!(kind), "field is immutable"));
        }
        errors.extend(immutability_errors(new, old, &["data"]));
    }
    let mut total = 0;
    for (key, value) in new.at(&["data"]).as_object().into_iter().flatten() {
        let path = format!("data[{key}]");
        errors.extend(config_key_faults(key).iter().map(|f| FieldError::invalid(&*path, &json!(key), f)));
        // The schema has checked that it is base64.
        let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
        let is_json = kind.starts_with("kubernetes.io/dockerc") && key.starts_with(".docker");
        if is_json && let Err(error) = serde_json::from_slice::<Map<String, Value>>(&bytes) {
            errors.push(FieldError::invalid(path, &json!(REDACTED), json_error(&bytes, &error)));
        }
        total += bytes.len();
    }
    if total > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA));
    }
    let (all, any) = required_keys(kind);
    let has = |key: &&&str| new.at(&["data", key]) != &Value::Null;
    let any_missing = if any.iter().any(|key| has(&key)) { &[] } else { any };
    for key in all.iter().filter(|key| !has(key)).chain(any_missing) {
        errors.push(FieldError::required(format!("data[{key}]"), ""));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(body: Value) -> Object {
        let Value::Object(body) = body else { panic!("a body is an object") };
        Object { body, ..Object::default() }
    }

    #[test]
    fn string_data_is_moved_into_data() {
        let mut object = secret(json!({"data": {"a": "MQ=="}, "stringData": {"b": "2"}}));
        default(&mut object);
        assert_eq!(object.body, secret(json!({"type": "Opaque", "data": {"a": "MQ==", "b": "Mg=="}})).body);
    }

    #[test]
    fn types_require_their_keys_and_errors_contain_no_data() {
        let errors = validate(&secret(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "MQ=="}})), None);
        assert_eq!(errors[0].to_string(), "data[tls.key]: Required value");
        let one = secret(json!({"type": "kubernetes.io/basic-auth", "data": {"username": "MQ=="}}));
        assert_eq!(validate(&one, None), []);
        let config = json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "aHVudGVyMg=="}});
        let errors = validate(&secret(config), None);
        assert!(!errors.is_empty() && !errors[0].to_string().contains("hunter2"), "{}", errors[0]);
    }
}
