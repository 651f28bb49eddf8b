//! Definitions of custom resources, from which the resources of their kinds are made: names, schema, rules and columns.

use serde::Deserialize;
use serde_json::{Value, json};
use slipway_core::clock::parse_rfc3339;

use crate::name::NameForm;
use crate::object::Object;
use crate::resource::{Cell, Column, Resource, Rules};
use crate::schema::Schema;
use crate::table::age;

/// A custom resource definition with one version (`apiextensions.k8s.io/v1`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Definition {
    spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Spec {
    group: String,
    scope: String,
    names: Names,
    versions: [Version; 1],
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Names {
    kind: String,
    plural: String,
    singular: String,
    #[serde(default)]
    categories: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    name: String,
    #[serde(default)]
    subresources: Subresources,
    #[serde(default)]
    additional_printer_columns: Vec<PrinterColumn>,
    schema: VersionSchema,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
struct Subresources {
    status: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct VersionSchema {
    #[serde(rename = "openAPIV3Schema")]
    schema: Schema,
}

/// A column of `kubectl get`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub struct PrinterColumn {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    description: String,
    priority: u8,
    json_path: String,
}

impl PrinterColumn {
    /// The cell of an object: the value at the path, which has only names of fields; for a date the time since then.
    pub(crate) fn cell(&self, object: &Object, now: i64) -> Value {
        let metadata = self.json_path.starts_with(".metadata.").then(|| json!({"metadata": object.metadata}));
        let mut names = self.json_path.split('.').filter(|name| !name.is_empty());
        let value = match &metadata {
            Some(metadata) => names.fold(metadata, |value, name| &value[name]),
            None => {
                let first = names.next().and_then(|name| object.body.get(name)).unwrap_or(&Value::Null);
                names.fold(first, |value, name| &value[name])
            }
        };
        match (self.kind.as_str(), value) {
            ("date", Value::String(time)) if parse_rfc3339(time).is_some() => json!(age(Some(time), now)),
            (_, value) => value.clone(),
        }
    }
}

impl Definition {
    /// Reads a definition that is part of this program.
    pub(crate) fn embedded(yaml: &str) -> Self {
        serde_saphyr::from_str(yaml).expect("definitions of this program are valid; a test reads each of them")
    }

    /// The resource of the kind, with further rules.
    pub(crate) fn resource(&'static self, rules: Rules) -> Resource {
        let Spec { group, scope, names, versions: [version] } = &self.spec;
        let name = Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "The name of the object",
            priority: 0,
            cell: Cell::Computed(|object, _| json!(object.metadata.name)),
        };
        let printed = version.additional_printer_columns.iter().map(|column| Column {
            name: &column.name,
            kind: &column.kind,
            format: "",
            description: &column.description,
            priority: column.priority,
            cell: Cell::Printed(column),
        });
        Resource {
            group,
            version: &version.name,
            kind: &names.kind,
            plural: &names.plural,
            singular: &names.singular,
            short_names: &[],
            categories: names.categories.iter().map(String::as_str).collect(),
            namespaced: scope == "Namespaced",
            is_custom: true,
            is_read_only: false,
            has_status: version.subresources.status.is_some(),
            has_log: false,
            counts_generations: true,
            sealed: false,
            retention_ms: None,
            names: NameForm::Subdomain,
            schema: version.schema.schema.clone(),
            columns: std::iter::once(name).chain(printed).collect(),
            selectable: &[],
            rules,
        }
    }
}
