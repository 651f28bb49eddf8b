//! The kinds that every installation has.

mod config_map;
mod event;
mod namespace;
mod pod;
mod run;
mod secret;

use serde_json::{Value, json};

use crate::error::FieldError;
use crate::object::Object;
use crate::resource::{Cell, Column, Registry};
use crate::table::age;

/// Maximum bytes of all values of a config map or secret together.
const MAX_DATA: usize = 1024 * 1024;

/// The resources of these kinds.
pub fn registry() -> Registry {
    Registry::new([
        config_map::resource(),
        event::core(),
        event::grouped(),
        namespace::resource(),
        pod::resource(),
        secret::resource(),
        run::resource(),
    ])
}

/// The column with the time since the creation of an object.
fn age_column() -> Column {
    Column {
        name: "Age",
        kind: "string",
        format: "",
        description: "The time since the creation",
        priority: 0,
        cell: Cell::Computed(|object, now| json!(age(object.metadata.creation_timestamp.as_deref(), now))),
    }
}

/// The number of keys of a field.
fn keys(object: &Object, field: &str) -> usize {
    object.at(&[field]).as_object().map_or(0, serde_json::Map::len)
}

/// The errors of changing one of these fields of an object that declares itself immutable.
fn immutability_errors(new: &Object, old: &Object, fields: &[&str]) -> Vec<FieldError> {
    if old.at(&["immutable"]) != true {
        return Vec::new();
    }
    let empty = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
    let same = |field: &str| {
        let (new, old) = (new.at(&[field]), old.at(&[field]));
        new == old || (empty(new) && empty(old))
    };
    let unset = (new.at(&["immutable"]) != true).then_some("immutable");
    let changed = fields.iter().copied().filter(|field| !same(field));
    unset
        .into_iter()
        .chain(changed)
        .map(|field| FieldError::forbidden(field, "field is immutable when `immutable` is set"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::FieldValidation;

    #[test]
    fn every_schema_is_read_completely() {
        for file in [
            include_str!("../../schemas/metadata.json"),
            include_str!("../../schemas/config_map.json"),
            include_str!("../../schemas/secret.json"),
            include_str!("../../schemas/namespace.json"),
            include_str!("../../schemas/event.json"),
            include_str!("../../schemas/pod.json"),
        ] {
            let source: Value = serde_json::from_str(file).unwrap();
            let schema: crate::schema::Schema = serde_json::from_value(source.clone()).unwrap();
            assert_eq!(serde_json::to_value(schema).unwrap(), source, "a keyword of the schema is not supported");
        }
        assert_eq!(registry().resources().count(), 7);
    }

    #[test]
    fn unknown_fields_are_errors_only_in_strict_requests() {
        let registry = registry();
        let resource = registry.find("", "configmaps").unwrap();
        let manifest = || json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dato": {}});
        let strict = resource.decode(manifest(), FieldValidation::Strict, &[]).unwrap_err();
        assert_eq!(
            strict.to_string(),
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dato\""
        );
        let (object, warnings) = resource.decode(manifest(), FieldValidation::Warn, &[]).unwrap();
        assert_eq!(warnings, ["unknown field \"dato\""]);
        assert!(object.body.is_empty());
        assert!(resource.decode(json!({"kind": "Secret"}), FieldValidation::Ignore, &[]).is_err());
        assert!(resource.decode(json!([]), FieldValidation::Ignore, &[]).is_err());
        assert!(resource.decode(json!({"metadata": {"labels": {"a": 1}}}), FieldValidation::Ignore, &[]).is_err());
    }
}
