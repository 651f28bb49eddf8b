//! Definitions of custom resources, from which the resources of their kinds are made: names, schema, rules and columns.

use serde::Deserialize;
use serde_json::Value;

use crate::name::NameForm;
use crate::resource::{Cell, Column, PrinterColumn, Resource, Rules};
use crate::schema::Schema;

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

impl Definition {
    /// Reads a definition that is part of this program.
    pub(crate) fn embedded(yaml: &str) -> Self {
        serde_saphyr::from_str(yaml).expect("definitions of this program are valid; a test reads each of them")
    }

    /// The resource of the kind, with further rules.
    pub(crate) fn resource(&'static self, rules: Rules) -> Resource {
        let Spec { group, scope, names, versions: [version] } = &self.spec;
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
            columns: std::iter::once(Column::of_names()).chain(printed).collect(),
            selectable: &[],
            conversion: None,
            rules,
        }
    }
}
