//! Namespaces.

use serde_json::json;

use super::age_column;
use crate::meta::NAMESPACE_FINALIZER;
use crate::name::{NameForm, finalizer_errors};
use crate::object::Object;
use crate::resource::{Cell, Column, Resource, Rules, embedded_schema};

/// The label with the name of a namespace, which selectors can use.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn resource() -> Resource {
    let status = Column {
        name: "Status",
        kind: "string",
        format: "",
        description: "The status of the namespace",
        priority: 0,
        cell: Cell::Computed(|object, _| json!(object.text(&["status", "phase"]))),
    };
    Resource {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        categories: Vec::new(),
        is_custom: false,
        is_read_only: false,
        has_log: false,
        namespaced: false,
        has_status: true,
        counts_generations: false,
        sealed: false,
        retention_ms: None,
        names: NameForm::Label,
        schema: embedded_schema(include_str!("../../schemas/namespace.json")),
        columns: vec![Column::of_names(), status, age_column()],
        selectable: &[("status.phase", |object| object.text(&["status", "phase"]).to_owned())],
        conversion: None,
        rules: Rules {
            fill: |namespace| {
                for field in ["spec", "status"] {
                    namespace.body.entry(field).or_insert_with(|| json!({}));
                }
                if namespace.at(&["spec", "finalizers"]) == &json!([]) {
                    namespace.body.insert("spec".into(), json!({}));
                }
            },
            default,
            prepare,
            terminate: |object| {
                object.metadata.deletion_grace_period_seconds = None;
                object.body["status"]["phase"] = json!("Terminating");
            },
            is_held: |object| object.at(&["spec", "finalizers"]).as_array().is_some_and(|list| !list.is_empty()),
            validate: |namespace, _| {
                let finalizers: Vec<String> =
                    serde_json::from_value(namespace.at(&["spec", "finalizers"]).clone()).unwrap_or_default();
                finalizer_errors(&finalizers, "spec.finalizers")
            },
            has_finalize: true,
            undeletable: |name| (name == "default").then_some("this namespace may not be deleted"),
            ..Rules::default()
        },
    }
}

fn default(namespace: &mut Object) {
    if !namespace.metadata.name.is_empty() {
        namespace.metadata.labels.insert(NAME_LABEL.into(), namespace.metadata.name.clone());
    }
}

fn prepare(new: &mut Object, old: Option<&Object>) {
    // The name may have been generated.
    default(new);
    match old {
        None => {
            // Released by the garbage collector once the namespace is empty.
            new.body.insert("spec".into(), json!({"finalizers": [NAMESPACE_FINALIZER]}));
            new.body.insert("status".into(), json!({"phase": "Active"}));
        }
        // The route `finalize` changes them.
        Some(old) => {
            new.body.insert("spec".into(), old.at(&["spec"]).clone());
        }
    }
}
