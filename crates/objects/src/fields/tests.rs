//! Repeats the writes that were recorded with upstream's field managers, and compares what becomes of the object and its managers.
//!
//! The program in `conformance/kube-api/managers` records them. `SCENARIOS=FILE` repeats the writes of another file.

use serde::Deserialize;
use serde_json::{Value, json};
use slipway_core::clock::parse_rfc3339;

use super::{Set, Tracker};
use crate::error::Error;
use crate::name::NameForm;
use crate::object::Object;
use crate::resource::{Registry, Resource, Rules, embedded_schema};
use crate::store::Part;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Step {
    operation: String,
    manager: String,
    subresource: String,
    force: bool,
    object: Value,
    error: String,
    causes: Option<Vec<(String, String)>>,
    result: Value,
    managers: Option<Vec<Entry>>,
}

#[derive(Deserialize, Debug, PartialEq, Default, Clone)]
#[serde(default)]
struct Entry {
    manager: String,
    operation: String,
    version: String,
    subresource: String,
    time: String,
    fields: String,
}

fn resource() -> Resource {
    let schema = embedded_schema(include_str!("../../../../conformance/kube-api/managers/example.json"));
    Resource {
        group: "",
        version: "v1",
        kind: "Example",
        plural: "examples",
        singular: "example",
        short_names: &[],
        categories: vec![],
        is_custom: false,
        is_read_only: false,
        has_log: false,
        namespaced: true,
        has_status: true,
        counts_generations: false,
        sealed: false,
        retention_ms: None,
        names: NameForm::Subdomain,
        schema,
        columns: vec![],
        selectable: &[],
        conversion: None,
        rules: Rules::default(),
    }
}

/// Reads an object without the rules of the schema, so that lists and objects stay as they were written.
fn object(value: &Value) -> Object {
    let mut value = value.clone();
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(value).unwrap()
}

fn entries(object: &Object) -> Vec<Entry> {
    let entry = |entry: &crate::meta::ManagedFieldsEntry| Entry {
        manager: entry.manager.clone(),
        operation: entry.operation.clone(),
        version: entry.api_version.clone(),
        subresource: entry.subresource.clone(),
        time: entry.time.clone().unwrap_or_default(),
        fields: serde_json::to_string(&entry.fields_v1).unwrap(),
    };
    object.metadata.managed_fields.iter().flatten().map(entry).collect()
}

/// A value without empty objects in metadata, which typed metadata does not have.
fn comparable(mut value: Value) -> Value {
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.remove("managedFields");
        metadata.remove("uid");
        metadata.retain(|_, value| *value != json!({}) && *value != json!([]) && !value.is_null());
    }
    value
}

/// Carries out one write. Returns the object after it.
fn run(resource: &Resource, live: Option<&Object>, step: &Step, now: i64) -> Result<Object, Error> {
    let part = if step.subresource == "status" { Part::Status } else { Part::Main };
    let tracker = Tracker { resource, manager: &step.manager, part, now };
    let mut new = if step.operation == "apply" {
        let outcome = tracker.apply(live, &step.object, step.force)?;
        let mut new = match (outcome.object, live) {
            (Some(value), _) => object(&value),
            (None, Some(live)) => live.clone(),
            (None, None) => object(&json!({"apiVersion": "v1", "kind": "Example"})),
        };
        new.metadata.managed_fields = outcome.managers.encode();
        new
    } else {
        let mut new = object(&step.object);
        if let Some(live) = live {
            new.metadata.uid.clone_from(&live.metadata.uid);
        }
        tracker.update(live, &mut new);
        new
    };
    if let (Part::Main, Some(live)) = (part, live) {
        new.body.remove("status");
        new.body.extend(live.body.get("status").map(|status| ("status".to_owned(), status.clone())));
    }
    new.metadata.uid = "1".into();
    Ok(new)
}

#[test]
fn recorded_writes_have_the_same_results() {
    let text = match std::env::var("SCENARIOS") {
        Ok(file) => std::fs::read_to_string(file).unwrap(),
        Err(_) => include_str!("../../../../conformance/kube-api/managers/recorded/managers.json").to_owned(),
    };
    let sequences: Vec<Vec<Step>> = serde_json::from_str(&text).unwrap();
    let registry = Registry::new([resource()]);
    let resource = registry.find("", "examples").unwrap();
    let begin = parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
    let mut failures = Vec::new();
    for (number, steps) in sequences.iter().enumerate() {
        let mut live: Option<Object> = None;
        for (i, step) in steps.iter().enumerate() {
            let now = begin + 1000 * (i64::try_from(i).unwrap() + 1);
            let what =
                format!("sequence {number}, step {i}: {} by {} of {}", step.operation, step.manager, step.object);
            match run(resource, live.as_ref(), step, now) {
                Err(error) => {
                    let status = error.status();
                    let causes: Vec<(String, String)> = status
                        .details
                        .iter()
                        .flat_map(|d| &d.causes)
                        .map(|c| (c.message.clone(), c.field.clone()))
                        .collect();
                    let mut expected = step.causes.clone().unwrap_or_default();
                    // Upstream lists managers in any order.
                    let mut sorted = causes.clone();
                    expected.sort();
                    sorted.sort();
                    // Upstream also validates fields in any order.
                    let lines = |message: &str| {
                        let mut lines: Vec<String> = message.lines().map(str::to_owned).collect();
                        lines.sort();
                        lines
                    };
                    if lines(&status.message) != lines(&step.error) || sorted != expected {
                        failures
                            .push(format!("{what}\n  {} {causes:?}\n  {} {expected:?}", status.message, step.error));
                    }
                }
                Ok(object) => {
                    let (found, expected) = (comparable(object.to_value()), comparable(step.result.clone()));
                    if found != expected || !step.error.is_empty() {
                        failures.push(format!("{what}\n  {found}\n  {expected} {}", step.error));
                        break;
                    }
                    let mut expected = step.managers.clone().unwrap_or_default();
                    // Upstream's program keeps the fields in a map, which has another order.
                    for entry in &mut expected {
                        let set: Set = serde_json::from_str(&entry.fields).unwrap();
                        entry.fields = serde_json::to_string(&set).unwrap();
                    }
                    let found = entries(&object);
                    if found != expected {
                        let live = live.map(|live| comparable(live.to_value()));
                        failures.push(format!("{what}\n  before {live:?}\n  {found:?}\n  {expected:?}"));
                        break;
                    }
                    live = Some(object);
                }
            }
        }
    }
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(failures.is_empty(), "{} of {} sequences differ:\n{shown}", failures.len(), sequences.len());
}
