//! Events: one set of objects, which two resources show with different names of fields.

mod form;
mod rules;

use serde_json::{Value, json};

use self::form::{field, part, text};
use crate::name::NameForm;
use crate::object::Object;
use crate::resource::{Cell, Column, Conversion, Resource, Rules, embedded_schema};
use crate::table::age;

/// How long an event is retained, in milliseconds.
const RETENTION_MS: i64 = 60 * 60 * 1000;

fn column(name: &'static str, description: &'static str, priority: u8, cell: fn(&Object, i64) -> Value) -> Column {
    let format = if name == "Name" { "name" } else { "" };
    Column { name, kind: "string", format, description, priority, cell: Cell::Computed(cell) }
}

/// Events in the core group.
pub(super) fn core() -> Resource {
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
        schema: embedded_schema(include_str!("../../../schemas/event.json")),
        columns: columns(),
        selectable: &[
            ("involvedObject.kind", |event| part(event, "involvedObject", "kind").to_owned()),
            ("involvedObject.namespace", |event| part(event, "involvedObject", "namespace").to_owned()),
            ("involvedObject.name", |event| part(event, "involvedObject", "name").to_owned()),
            ("involvedObject.uid", |event| part(event, "involvedObject", "uid").to_owned()),
            ("involvedObject.apiVersion", |event| part(event, "involvedObject", "apiVersion").to_owned()),
            ("involvedObject.resourceVersion", |event| part(event, "involvedObject", "resourceVersion").to_owned()),
            ("involvedObject.fieldPath", |event| part(event, "involvedObject", "fieldPath").to_owned()),
            ("reason", |event| text(event, "reason").to_owned()),
            ("reportingComponent", |event| text(event, "reportingComponent").to_owned()),
            ("source", |event| match part(event, "source", "component") {
                "" => text(event, "reportingComponent").to_owned(),
                component => component.to_owned(),
            }),
            ("type", |event| text(event, "type").to_owned()),
        ],
        conversion: None,
        rules: Rules {
            fill: form::fill_core,
            validate: rules::validate_core,
            creates_on_update: true,
            ..Rules::default()
        },
    }
}

/// The same events in the group `events.k8s.io`, which new recorders write.
pub(super) fn grouped() -> Resource {
    let mut resource = core();
    let fields = std::mem::take(&mut resource.schema.properties);
    resource.schema.properties =
        fields.into_iter().map(|(name, schema)| (form::grouped_name(&name).to_owned(), schema)).collect();
    Resource {
        group: "events.k8s.io",
        selectable: &[
            ("regarding.kind", |event| part(event, "involvedObject", "kind").to_owned()),
            ("regarding.namespace", |event| part(event, "involvedObject", "namespace").to_owned()),
            ("regarding.name", |event| part(event, "involvedObject", "name").to_owned()),
            ("regarding.uid", |event| part(event, "involvedObject", "uid").to_owned()),
            ("regarding.apiVersion", |event| part(event, "involvedObject", "apiVersion").to_owned()),
            ("regarding.resourceVersion", |event| part(event, "involvedObject", "resourceVersion").to_owned()),
            ("regarding.fieldPath", |event| part(event, "involvedObject", "fieldPath").to_owned()),
            ("reason", |event| text(event, "reason").to_owned()),
            ("reportingController", |event| text(event, "reportingComponent").to_owned()),
            ("type", |event| text(event, "type").to_owned()),
        ],
        conversion: Some(Conversion { group: "", to_stored: form::to_core, from_stored: form::from_core }),
        rules: Rules {
            fill: form::fill_grouped,
            validate: rules::validate_grouped,
            creates_on_update: true,
            ..Rules::default()
        },
        ..resource
    }
}

/// The columns of either form.
fn columns() -> Vec<Column> {
    vec![
        column("Last Seen", "When it happened last", 0, |event, now| json!(last_seen(event, now))),
        column("Type", "Normal or Warning", 0, |event, _| json!(text(event, "type"))),
        column("Reason", "The reason in one word", 0, |event, _| json!(text(event, "reason"))),
        column("Object", "The object that the event is about", 0, |event, _| json!(target(event))),
        column("Subobject", "The part of the object", 1, |event, _| json!(part(event, "involvedObject", "fieldPath"))),
        column("Source", "The component that reported the event", 1, |event, _| json!(source(event))),
        column("Message", "What happened", 0, |event, _| json!(text(event, "message").trim())),
        column("First Seen", "When it happened first", 1, |event, now| json!(first_seen(event, now))),
        column("Count", "How often it happened", 1, |event, _| count(event)),
        column("Name", "The name of the event", 1, |event, _| json!(event.metadata.name)),
    ]
}

fn first_seen(event: &Object, now: i64) -> String {
    let time = field(event, "firstTimestamp").as_str();
    age(time.or_else(|| field(event, "eventTime").as_str()), now)
}

fn last_seen(event: &Object, now: i64) -> String {
    let series = field(event, "series");
    if series.is_object() {
        return age(series["lastObservedTime"].as_str(), now);
    }
    match field(event, "lastTimestamp").as_str() {
        Some(time) => age(Some(time), now),
        None => first_seen(event, now),
    }
}

fn count(event: &Object) -> Value {
    let series = field(event, "series");
    let count = if series.is_object() { &series["count"] } else { field(event, "count") };
    json!(count.as_i64().filter(|count| *count > 0).unwrap_or(1))
}

fn target(event: &Object) -> String {
    let kind = part(event, "involvedObject", "kind").to_lowercase();
    match part(event, "involvedObject", "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Object) -> String {
    let or = |first: &str, second: &str| if first.is_empty() { second.to_owned() } else { first.to_owned() };
    let component = or(part(event, "source", "component"), text(event, "reportingComponent"));
    let host = or(part(event, "source", "host"), text(event, "reportingInstance"));
    if host.is_empty() { component } else { format!("{component}, {host}") }
}
