//! Events.

use serde_json::{Value, json};

use crate::error::FieldError;
use crate::name::NameForm;
use crate::object::Object;
use crate::resource::{Cell, Column, Resource, Rules, embedded_schema};
use crate::table::age;

/// How long an event is retained, in milliseconds.
const RETENTION_MS: i64 = 60 * 60 * 1000;

fn column(name: &'static str, description: &'static str, priority: u8, cell: fn(&Object, i64) -> Value) -> Column {
    let format = if name == "Name" { "name" } else { "" };
    Column { name, kind: "string", format, description, priority, cell: Cell::Computed(cell) }
}

pub(super) fn resource() -> Resource {
    Resource {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        categories: Vec::new(),
        is_custom: false,
        is_read_only: false,
        has_log: false,
        namespaced: true,
        has_status: false,
        counts_generations: false,
        sealed: false,
        retention_ms: Some(RETENTION_MS),
        names: NameForm::Subdomain,
        schema: embedded_schema(include_str!("../../schemas/event.json")),
        columns: vec![
            column("Last Seen", "When it happened last", 0, |object, now| json!(last_seen(object, now))),
            column("Type", "Normal or Warning", 0, |object, _| json!(object.text(&["type"]))),
            column("Reason", "The reason in one word", 0, |object, _| json!(object.text(&["reason"]))),
            column("Object", "The object that the event is about", 0, |object, _| json!(target(object))),
            column("Subobject", "The part of the object", 1, |object, _| {
                json!(object.text(&["involvedObject", "fieldPath"]))
            }),
            column("Source", "The component that reported the event", 1, |object, _| json!(source(object))),
            column("Message", "What happened", 0, |object, _| json!(object.text(&["message"]).trim())),
            column("First Seen", "When it happened first", 1, |object, now| json!(first_seen(object, now))),
            column("Count", "How often it happened", 1, |object, _| count(object)),
            column("Name", "The name of the event", 1, |object, _| json!(object.metadata.name)),
        ],
        selectable: &[
            ("involvedObject.kind", |object| object.text(&["involvedObject", "kind"]).to_owned()),
            ("involvedObject.namespace", |object| object.text(&["involvedObject", "namespace"]).to_owned()),
            ("involvedObject.name", |object| object.text(&["involvedObject", "name"]).to_owned()),
            ("involvedObject.uid", |object| object.text(&["involvedObject", "uid"]).to_owned()),
            ("involvedObject.apiVersion", |object| object.text(&["involvedObject", "apiVersion"]).to_owned()),
            ("involvedObject.resourceVersion", |object| object.text(&["involvedObject", "resourceVersion"]).to_owned()),
            ("involvedObject.fieldPath", |object| object.text(&["involvedObject", "fieldPath"]).to_owned()),
            ("reason", |object| object.text(&["reason"]).to_owned()),
            ("reportingComponent", |object| object.text(&["reportingComponent"]).to_owned()),
            ("source", |object| match object.text(&["source", "component"]) {
                "" => object.text(&["reportingComponent"]).to_owned(),
                component => component.to_owned(),
            }),
            ("type", |object| object.text(&["type"]).to_owned()),
        ],
        rules: Rules { fill, validate, ..Rules::default() },
    }
}

/// Events always have these fields, also if they are empty.
fn fill(event: &mut Object) {
    for (field, empty) in [
        ("involvedObject", json!({})),
        ("source", json!({})),
        ("eventTime", Value::Null),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("reportingComponent", json!("")),
        ("reportingInstance", json!("")),
    ] {
        event.body.entry(field).or_insert(empty);
    }
}

fn validate(new: &Object, _: Option<&Object>) -> Vec<FieldError> {
    // Events about objects without a namespace are in the namespace `default`.
    let expected = match new.text(&["involvedObject", "namespace"]) {
        "" => "default",
        namespace => namespace,
    };
    if expected == new.metadata.namespace {
        return Vec::new();
    }
    let value = new.at(&["involvedObject", "namespace"]);
    let value = if value.is_null() { json!("") } else { value.clone() };
    vec![FieldError::invalid("involvedObject.namespace", &value, "does not match event.namespace")]
}

fn first_seen(object: &Object, now: i64) -> String {
    let time = object.at(&["firstTimestamp"]).as_str();
    age(time.or_else(|| object.at(&["eventTime"]).as_str()), now)
}

fn last_seen(object: &Object, now: i64) -> String {
    let series = object.at(&["series"]);
    if series.is_object() {
        return age(series["lastObservedTime"].as_str(), now);
    }
    match object.at(&["lastTimestamp"]).as_str() {
        Some(time) => age(Some(time), now),
        None => first_seen(object, now),
    }
}

fn count(object: &Object) -> Value {
    let series = object.at(&["series"]);
    let count = if series.is_object() { &series["count"] } else { object.at(&["count"]) };
    json!(count.as_i64().filter(|count| *count > 0).unwrap_or(1))
}

fn target(object: &Object) -> String {
    let kind = object.text(&["involvedObject", "kind"]).to_lowercase();
    match object.text(&["involvedObject", "name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(object: &Object) -> String {
    let or = |first: &str, second: &str| if first.is_empty() { second.to_owned() } else { first.to_owned() };
    let component = or(object.text(&["source", "component"]), object.text(&["reportingComponent"]));
    let host = or(object.text(&["source", "host"]), object.text(&["reportingInstance"]));
    if host.is_empty() { component } else { format!("{component}, {host}") }
}
