//! The rules that new states of objects must satisfy, whatever wrote them.

use serde_json::{Value, json};
use slipway_core::clock::{now_ms, rfc3339};

use super::OTHER_CHANGE;
use crate::error::{Error, FieldError};
use crate::meta::ManagedFieldsEntry;
use crate::name::{finalizer_errors, metadata_errors, name_faults};
use crate::object::Object;
use crate::resource::Resource;
use crate::store::Part;

/// The field with the observed state.
const STATUS: &str = "status";
const SPEC: &str = "spec";

fn bad_request(message: impl Into<String>) -> Error {
    Error::BadRequest(message.into())
}

/// Checks that the namespace of an object is that of the request, and sets it.
fn place(resource: &Resource, namespace: &str, object: &mut Object) -> Result<(), Error> {
    if !resource.namespaced {
        object.metadata.namespace.clear();
    } else if object.metadata.namespace.is_empty() {
        object.metadata.namespace = namespace.to_owned();
    } else if object.metadata.namespace != namespace {
        return Err(bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Completes and checks an object to be created. `generated` is the name if the object has only the start of one.
pub(super) fn created(
    resource: &Resource,
    namespace: &str,
    mut object: Object,
    generated: &str,
) -> Result<Object, Error> {
    place(resource, namespace, &mut object)?;
    if !object.metadata.resource_version.is_empty() && object.metadata.resource_version != "0" {
        return Err(bad_request("resourceVersion should not be set on objects to be created"));
    }
    object.api_version = resource.api_version();
    object.kind = resource.kind.to_owned();
    let meta = &mut object.metadata;
    if meta.name.is_empty() && !meta.generate_name.is_empty() {
        meta.name = generated.to_owned();
    }
    meta.resource_version.clear();
    meta.uid = uuid::Uuid::new_v4().to_string();
    meta.creation_timestamp = Some(rfc3339(now_ms()));
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.generation = i64::from(resource.counts_generations);
    if resource.has_status {
        object.body.remove(STATUS);
    }
    (resource.rules.prepare)(&mut object, None);
    check(resource, &object, None, Vec::new())?;
    Ok(object)
}

/// Completes and checks a new state of an object.
pub(super) fn updated(
    resource: &Resource,
    namespace: &str,
    old: &Object,
    mut new: Object,
    part: Part,
) -> Result<Object, Error> {
    let name = &old.metadata.name;
    place(resource, namespace, &mut new)?;
    if new.metadata.name.is_empty() {
        new.metadata.name.clone_from(name);
    } else if new.metadata.name != *name {
        let message =
            format!("the name of the object ({}) does not match the name on the URL ({name})", new.metadata.name);
        return Err(bad_request(message));
    }
    if !new.metadata.uid.is_empty() && new.metadata.uid != old.metadata.uid {
        return Err(resource.uid_conflict(namespace, name, &new.metadata.uid, &old.metadata.uid));
    }
    let version = &new.metadata.resource_version;
    if version.bytes().any(|digit| !digit.is_ascii_digit()) {
        return Err(bad_request(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")));
    }
    if !matches!(&**version, "" | "0") && *version != old.metadata.resource_version {
        return Err(resource.conflict(name, OTHER_CHANGE));
    }
    if part == Part::Status {
        let status = new.body.remove(STATUS);
        let managed_fields = new.metadata.managed_fields.take();
        new = old.clone();
        new.metadata.managed_fields = managed_fields;
        match status {
            Some(status) => drop(new.body.insert(STATUS.into(), status)),
            None => drop(new.body.remove(STATUS)),
        }
    } else if resource.has_status {
        match old.body.get(STATUS) {
            Some(status) => drop(new.body.insert(STATUS.into(), status.clone())),
            None => drop(new.body.remove(STATUS)),
        }
    }
    new.api_version.clone_from(&old.api_version);
    new.kind.clone_from(&old.kind);
    let (meta, before) = (&mut new.metadata, &old.metadata);
    meta.resource_version.clone_from(&before.resource_version);
    meta.uid.clone_from(&before.uid);
    meta.creation_timestamp.clone_from(&before.creation_timestamp);
    meta.deletion_timestamp.clone_from(&before.deletion_timestamp);
    meta.deletion_grace_period_seconds = before.deletion_grace_period_seconds;
    meta.generation = before.generation;
    let given = new.body.get(SPEC).filter(|_| part == Part::Finalizers).cloned();
    (resource.rules.prepare)(&mut new, Some(old));
    if let Some(spec) = given {
        new.body.insert(SPEC.into(), spec);
    }
    if resource.counts_generations && desired(&new) != desired(old) {
        new.metadata.generation += 1;
    }
    keep_times(&mut new, old);
    if new == *old {
        return Ok(new);
    }
    let mut errors = Vec::new();
    if old.metadata.is_deleting() {
        let added: Vec<&str> =
            new.metadata.finalizers.iter().map(String::as_str).filter(|f| !old.metadata.has_finalizer(f)).collect();
        if !added.is_empty() {
            let added = added.iter().map(|finalizer| format!("{finalizer:?}")).collect::<Vec<_>>().join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{added}}}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    check(resource, &new, Some(old), errors)?;
    Ok(new)
}

/// Keeps the times of the managers if nothing else is changed, so that a write without an effect does not change the object.
fn keep_times(new: &mut Object, old: &Object) {
    let timeless = |entries: &[ManagedFieldsEntry]| {
        entries.iter().map(|entry| ManagedFieldsEntry { time: None, ..entry.clone() }).collect::<Vec<_>>()
    };
    let (Some(given), Some(before)) = (&new.metadata.managed_fields, &old.metadata.managed_fields) else { return };
    if given == before || timeless(given) != timeless(before) {
        return;
    }
    let given = new.metadata.managed_fields.replace(before.clone());
    if *new != *old {
        new.metadata.managed_fields = given;
    }
}

/// The fields of an object that are neither metadata nor status.
fn desired(object: &Object) -> impl PartialEq + use<'_> {
    object.body.iter().filter(|(field, _)| *field != STATUS).collect::<Vec<(&String, &Value)>>()
}

/// Completes an object that has its identity already. Its fields are not checked.
pub(super) fn imported(resource: &Resource, mut object: Object) -> Object {
    object.api_version = resource.api_version();
    object.kind = resource.kind.to_owned();
    object.metadata.resource_version.clear();
    (resource.rules.prepare)(&mut object, None);
    object
}

/// Checks the metadata and the fields of an object, and the difference from the object that it replaces.
fn faults(resource: &Resource, new: &Object, old: Option<&Object>) -> Vec<FieldError> {
    let mut errors = metadata_errors(&new.metadata, resource.names);
    if !resource.is_custom {
        errors.extend(finalizer_errors(&new.metadata.finalizers, "metadata.finalizers"));
    }
    if resource.namespaced {
        let namespace = &new.metadata.namespace;
        let faults = name_faults(crate::name::NameForm::Label, namespace);
        errors.extend(faults.iter().map(|f| FieldError::invalid("metadata.namespace", &json!(namespace), f)));
    }
    let fields = |object: &Object| {
        let mut fields = object.body.clone();
        if !resource.schema.rules.is_empty() {
            // The only metadata that the rules of a definition can use.
            let meta = &object.metadata;
            fields.insert("metadata".into(), json!({"name": meta.name, "generateName": meta.generate_name}));
        }
        Value::Object(fields)
    };
    errors.extend(resource.schema.validate_change(&fields(new), old.map(fields).as_ref(), ""));
    errors
}

fn check(resource: &Resource, new: &Object, old: Option<&Object>, mut errors: Vec<FieldError>) -> Result<(), Error> {
    let mut found = faults(resource, new, old);
    // As in the API server (`CRDValidationRatcheting`), a fault that the object has already does not prevent other changes.
    if let Some(old) = old.filter(|_| resource.is_custom && !found.is_empty()) {
        let known = faults(resource, old, None);
        found.retain(|error| !known.contains(error));
    }
    errors.extend(found);
    errors.extend((resource.rules.validate)(new, old));
    if errors.is_empty() { Ok(()) } else { Err(resource.invalid(&new.metadata.name, errors)) }
}
