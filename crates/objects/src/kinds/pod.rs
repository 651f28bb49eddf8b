//! Pods: the attempts of runs, which are processes on one machine. They can be read and not changed.

use serde_json::{Value, json};

use super::age_column;
use crate::name::NameForm;
use crate::object::Object;
use crate::resource::{Cell, Column, Resource, Rules, embedded_schema};

fn column(name: &'static str, description: &'static str, priority: u8, cell: fn(&Object, i64) -> Value) -> Column {
    Column { name, kind: "string", format: "", description, priority, cell: Cell::Computed(cell) }
}

pub(super) fn resource() -> Resource {
    Resource {
        group: "",
        version: "v1",
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: vec!["all"],
        namespaced: true,
        is_custom: false,
        is_read_only: true,
        has_status: false,
        has_log: true,
        counts_generations: false,
        sealed: false,
        retention_ms: None,
        names: NameForm::Subdomain,
        schema: embedded_schema(include_str!("../../schemas/pod.json")),
        columns: vec![
            Column::of_names(),
            column("Ready", "How many of the containers are ready", 0, |object, _| {
                json!(if container(object)["ready"] == true { "1/1" } else { "0/1" })
            }),
            column("Status", "The state of the container", 0, |object, _| json!(status(object))),
            column("Restarts", "How often the container was restarted", 0, |_, _| json!("0")),
            age_column(),
            column("Node", "The name of the machine", 1, |object, _| json!(object.text(&["spec", "nodeName"]))),
        ],
        selectable: &[
            ("spec.nodeName", |object| object.text(&["spec", "nodeName"]).to_owned()),
            ("spec.restartPolicy", |object| object.text(&["spec", "restartPolicy"]).to_owned()),
            ("status.phase", |object| object.text(&["status", "phase"]).to_owned()),
        ],
        conversion: None,
        rules: Rules::default(),
    }
}

fn container(object: &Object) -> &Value {
    &object.at(&["status", "containerStatuses"])[0]
}

/// The state in one word, as kubectl prints it.
fn status(object: &Object) -> &str {
    let state = &container(object)["state"];
    let reason = ["waiting", "terminated"].iter().find_map(|name| state[*name]["reason"].as_str());
    if object.metadata.is_deleting() && !state["terminated"].is_object() {
        return "Terminating";
    }
    reason.unwrap_or_else(|| object.text(&["status", "phase"]))
}
