//! Config maps.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{MAX_DATA, age_column, immutability_errors, keys};
use crate::error::FieldError;
use crate::name::{NameForm, config_key_faults};
use crate::object::Object;
use crate::resource::{Cell, Column, Resource, Rules, embedded_schema};

pub(super) fn resource() -> Resource {
    let data = Column {
        name: "Data",
        kind: "string",
        format: "",
        description: "The number of keys",
        priority: 0,
        cell: Cell::Computed(|object, _| json!(keys(object, "data") + keys(object, "binaryData"))),
    };
    Resource {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        categories: Vec::new(),
        is_custom: false,
        is_read_only: false,
        has_log: false,
        namespaced: true,
        has_status: false,
        counts_generations: false,
        sealed: false,
        retention_ms: None,
        names: NameForm::Subdomain,
        schema: embedded_schema(include_str!("../../schemas/config_map.json")),
        columns: vec![Column::of_names(), data, age_column()],
        selectable: &[],
        conversion: None,
        rules: Rules { validate, ..Rules::default() },
    }
}

fn validate(new: &Object, old: Option<&Object>) -> Vec<FieldError> {
    let mut errors = old.map(|old| immutability_errors(new, old, &["data", "binaryData"])).unwrap_or_default();
    let mut total = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in new.at(&[field]).as_object().into_iter().flatten() {
            let path = format!("{field}[{key}]");
            errors.extend(config_key_faults(key).iter().map(|f| FieldError::invalid(&*path, &json!(key), f)));
            let text = value.as_str().unwrap_or_default();
            if field == "data" {
                total += text.len();
                if new.at(&["binaryData", key]) != &Value::Null {
                    errors.push(FieldError::invalid(path, &json!(key), "duplicate of key present in binaryData"));
                }
            } else {
                // The schema has checked that it is base64.
                total += STANDARD.decode(text).map_or(0, |bytes| bytes.len());
            }
        }
    }
    if total > MAX_DATA {
        errors.push(FieldError::too_long("[]", MAX_DATA));
    }
    errors
}
