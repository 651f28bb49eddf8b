//! Resources: what the API serves. The rules of a resource are data and functions here, and everything else (storage, routes, tables,
//! documents) is the same for all resources.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, FieldError, GroupResource, RequestOptions};
use crate::name::NameForm;
use crate::object::Object;
use crate::patch::Patch;
use crate::schema::{Findings, Schema, Type, WrongType};

/// A resource of the API.
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version of the group.
    pub version: &'static str,
    /// The kind of the objects, such as `ConfigMap`.
    pub kind: &'static str,
    /// The name in paths, such as `configmaps`.
    pub plural: &'static str,
    /// The name that kubectl accepts for one object.
    pub singular: &'static str,
    /// Shorter names that kubectl accepts.
    pub short_names: &'static [&'static str],
    /// Groups of resources that kubectl shows together, such as `all`.
    pub categories: Vec<&'static str>,
    /// Whether objects are in namespaces.
    pub namespaced: bool,
    /// Whether the kind is defined by a custom resource definition: strategic merge patches are refused, and fields that were invalid before a
    /// change do not prevent it.
    pub is_custom: bool,
    /// Whether only this program creates, changes and deletes objects.
    pub is_read_only: bool,
    /// Whether objects have a log, with a route of its own.
    pub has_log: bool,
    /// Whether the status has a route of its own, and is ignored by all others.
    pub has_status: bool,
    /// Whether changes of the desired state are counted in `metadata.generation`.
    pub counts_generations: bool,
    /// Whether objects are encrypted at rest.
    pub sealed: bool,
    /// How long an object is retained after its last change, in milliseconds; forever, if absent.
    pub retention_ms: Option<i64>,
    /// The form of names.
    pub names: NameForm,
    /// The fields of the kind.
    pub schema: Schema,
    /// The columns of `kubectl get`.
    pub columns: Vec<Column>,
    /// Fields that selectors can use in addition to the name and namespace.
    pub selectable: &'static [SelectableField],
    /// How objects are stored as those of another resource, which has the same objects; `None` if they are stored as they are.
    pub conversion: Option<Conversion>,
    /// The rules of the kind.
    pub rules: Rules,
}

/// How objects are stored as those of another resource, whose plural name and kind are the same.
#[derive(Debug, Clone, Copy)]
pub struct Conversion {
    /// The API group of the other resource; empty for the core group.
    pub group: &'static str,
    /// From this form to the stored one.
    pub to_stored: fn(&mut Object),
    /// From the stored form to this one.
    pub from_stored: fn(&mut Object),
}

/// A field that selectors can use: its path, and its value in an object.
pub type SelectableField = (&'static str, fn(&Object) -> String);

/// A column of a table.
pub struct Column {
    /// The heading.
    pub name: &'static str,
    /// The type of OpenAPI, or `date`.
    pub kind: &'static str,
    /// The format of OpenAPI, such as `name`; usually empty.
    pub format: &'static str,
    /// What the column shows.
    pub description: &'static str,
    /// 0 for columns that are always shown, 1 for those of `-o wide`.
    pub priority: u8,
    /// The cells.
    pub cell: Cell,
}

impl Column {
    /// The column with the names of the objects, which is the first one of each table.
    pub fn of_names() -> Self {
        Self {
            name: "Name",
            kind: "string",
            format: "name",
            description: "The name of the object",
            priority: 0,
            cell: Cell::Computed(|object, _| json!(object.metadata.name)),
        }
    }
}

/// How the cells of a column are made.
#[derive(Clone, Copy)]
pub enum Cell {
    /// By this program. Times are relative to the second argument, in milliseconds since the Unix epoch.
    Computed(fn(&Object, i64) -> Value),
    /// As a custom resource definition says.
    Printed(&'static PrinterColumn),
}

/// A column of a custom resource definition.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrinterColumn {
    /// The heading.
    pub name: String,
    /// The type of OpenAPI, or `date`, of which the time since then is shown.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the column shows.
    pub description: String,
    /// 0 for columns that are always shown, 1 for those of `-o wide`.
    pub priority: u8,
    /// The path of the value, of names of fields only, such as `.status.phase`.
    pub json_path: String,
}

/// The rules of a kind, in addition to its schema. The default has none.
pub struct Rules {
    /// Adds the fields that objects always have, also if they are empty.
    pub fill: fn(&mut Object),
    /// Sets the defaults of absent fields, which then count as set by the client.
    pub default: fn(&mut Object),
    /// Completes an object that is created, or that replaces another, with what the server sets.
    pub prepare: fn(&mut Object, Option<&Object>),
    /// Finds faults in an object that is created, or that replaces another.
    pub validate: fn(&Object, Option<&Object>) -> Vec<FieldError>,
    /// Changes an object whose deletion begins.
    pub terminate: fn(&mut Object),
    /// Whether something other than finalizers delays the deletion.
    pub is_held: fn(&Object) -> bool,
    /// Why the object with this name may never be deleted.
    pub undeletable: fn(&str) -> Option<&'static str>,
    /// Whether a replacement of an object that does not exist creates it.
    pub creates_on_update: bool,
    /// Whether the finalizers in the specification of an object have a route of their own, `finalize`.
    pub has_finalize: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            fill: |_| {},
            default: |_| {},
            prepare: |_, _| {},
            validate: |_, _| Vec::new(),
            terminate: |_| {},
            is_held: |_| false,
            undeletable: |_| None,
            creates_on_update: false,
            has_finalize: false,
        }
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Resource").field(&self.group_resource().to_string()).finish()
    }
}

/// How a request wants fields that the schema does not have to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and warn.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl FieldValidation {
    /// Reads the parameter `fieldValidation`, one of the options of a request.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other text than the three names.
    pub fn parse(text: &str, options: RequestOptions) -> Result<Self, Error> {
        match text {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => {
                let supported = ["", "Ignore", "Strict", "Warn"].map(str::to_owned);
                Err(options.invalid(vec![FieldError::not_supported("fieldValidation", &json!(other), &supported)]))
            }
        }
    }
}

impl Resource {
    /// A resource of which only the names matter, because an API server has its schema and rules: its group (empty for the core group),
    /// version, kind, and name in paths.
    pub fn named(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self {
            group,
            version,
            kind,
            plural,
            singular: "",
            short_names: &[],
            categories: Vec::new(),
            namespaced: true,
            is_custom: false,
            is_read_only: false,
            has_log: false,
            has_status: true,
            counts_generations: false,
            sealed: false,
            retention_ms: None,
            names: NameForm::Subdomain,
            schema: Schema::default(),
            columns: Vec::new(),
            selectable: &[],
            conversion: None,
            rules: Rules::default(),
        }
    }

    /// The media types of patches of its objects, in the order in which the API server lists them.
    pub fn patch_types(&self) -> &'static [&'static str] {
        if self.is_custom { Patch::CUSTOM_MEDIA_TYPES } else { Patch::MEDIA_TYPES }
    }

    /// The resource in its group: `configmaps` or `runs.slipway.dev`.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource { group: self.group.to_owned(), resource: self.plural.to_owned() }
    }

    /// The resource as which objects are stored, unique over all groups.
    pub fn stored_as(&self) -> GroupResource {
        GroupResource { group: self.stored_group().to_owned(), resource: self.plural.to_owned() }
    }

    fn stored_group(&self) -> &'static str {
        self.conversion.as_ref().map_or(self.group, |conversion| conversion.group)
    }

    /// `v1` or `slipway.dev/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of the group and version: `/api/v1` or `/apis/slipway.dev/v1`.
    pub fn base_path(&self) -> String {
        let prefix = if self.group.is_empty() { "/api" } else { "/apis" };
        format!("{prefix}/{}", self.api_version())
    }

    /// The error of a missing object.
    pub fn not_found(&self, name: &str) -> Error {
        Error::NotFound { resource: self.group_resource(), name: name.to_owned() }
    }

    /// The error of a write of the object with a unique id, where the stored object has another one; empty if there is none.
    pub fn uid_conflict(&self, namespace: &str, name: &str, given: &str, stored: &str) -> Error {
        let group = if self.group.is_empty() { String::new() } else { format!("{}/", self.group) };
        let key: Vec<&str> = [namespace, name].into_iter().filter(|part| !part.is_empty()).collect();
        let detail = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{group}{}/{}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: UID in precondition: {given}, UID in object meta: {stored}",
            self.plural,
            key.join("/"),
        );
        self.conflict(name, detail)
    }

    /// The error of an object that another change came before, or whose precondition does not hold.
    pub fn conflict(&self, name: &str, detail: impl Into<String>) -> Error {
        Error::Conflict { resource: self.group_resource(), name: name.to_owned(), detail: detail.into() }
    }

    /// The error of an object with invalid fields.
    pub fn invalid(&self, name: &str, errors: Vec<FieldError>) -> Error {
        Error::Invalid {
            group: self.stored_group().to_owned(),
            kind: self.kind.to_owned(),
            name: name.to_owned(),
            errors,
        }
    }

    /// The namespace, name and kind of an object in the messages of a server that is written in Go.
    pub(crate) fn described(&self, object: &Value) -> String {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let version = self.api_version();
        let version = if version.contains('/') { version } else { format!("/{version}") };
        format!("{}/{}; {version}, Kind={}", text("namespace"), text("name"), self.kind)
    }

    /// Decodes JSON as an object of this kind. `strict` are faults of the text that the JSON was read from, such as duplicate fields. Returns
    /// warnings about these and unknown fields, which are dropped.
    ///
    /// # Errors
    /// [`Error::Undecodable`] for another kind, values of wrong types, and with [`FieldValidation::Strict`] unknown fields and the faults of
    /// the text.
    pub fn decode(
        &self,
        value: Value,
        validation: FieldValidation,
        strict: &[String],
    ) -> Result<(Object, Vec<String>), Error> {
        self.decode_arranged(value, validation, strict, |_| {})
    }

    /// As [`Self::decode`]; `arrange` sorts the messages about fields if there are several.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_arranged(
        &self,
        mut value: Value,
        validation: FieldValidation,
        strict: &[String],
        arrange: impl FnOnce(&mut [String]),
    ) -> Result<(Object, Vec<String>), Error> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, api_version) = (text("kind"), text("apiVersion"));
        let undecodable = |kind: &str, version: &str, detail: String| Error::Undecodable {
            kind: kind.to_owned(),
            version: version.rsplit('/').next().unwrap_or_default().to_owned(),
            expected: self.kind.to_owned(),
            detail,
        };
        let refuse = |detail: &str| undecodable(self.kind, self.version, detail.to_owned());
        let Value::Object(fields) = &mut value else {
            return Err(refuse("json: cannot unmarshal a value that is not an object"));
        };
        if !kind.is_empty() && kind != self.kind {
            let detail = format!("converting ({}.{kind}) to (core.{}): unknown conversion", self.version, self.kind);
            return Err(undecodable(&kind, &api_version, detail));
        }
        if !api_version.is_empty() && api_version != self.api_version() {
            let detail = format!("no kind {:?} is registered for version {api_version:?}", self.kind);
            return Err(undecodable(self.kind, &api_version, detail));
        }
        fields.insert("apiVersion".into(), json!(self.api_version()));
        fields.insert("kind".into(), json!(self.kind));
        let Findings { unknown, wrong } = self.schema.decode(&mut value);
        if self.is_custom && !wrong.is_empty() {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            return Err(self.invalid(name, wrong.iter().map(WrongType::field_error).collect()));
        }
        if let Some(first) = wrong.first() {
            return Err(refuse(&first.decoding_error(self.kind)));
        }
        let unknown = unknown.iter().map(|path| unknown_field(path));
        let mut unknown: Vec<String> = strict.iter().cloned().chain(unknown).collect();
        if unknown.len() > 1 {
            arrange(&mut unknown);
        }
        if validation == FieldValidation::Strict && !unknown.is_empty() {
            return Err(refuse(&format!("strict decoding error: {}", unknown.join(", "))));
        }
        let object = serde_json::from_value(value).map_err(|error| refuse(&error.to_string()))?;
        Ok((object, if validation == FieldValidation::Warn { unknown } else { Vec::new() }))
    }

    /// Adds the fields that objects always have, and defaults.
    pub fn complete(&self, object: &mut Object) {
        if object.api_version.is_empty() {
            object.api_version = self.api_version();
        }
        if object.kind.is_empty() {
            self.kind.clone_into(&mut object.kind);
        }
        (self.rules.fill)(object);
        (self.rules.default)(object);
    }

    /// Whether an object that is being deleted must be retained for now.
    pub fn is_held(&self, object: &Object) -> bool {
        !object.metadata.finalizers.is_empty() || (self.rules.is_held)(object)
    }

    /// The value of a field that selectors can use; `None` if the field is not one of them.
    pub fn selectable_value(&self, object: &Object, field: &str) -> Option<String> {
        match field {
            "metadata.name" => Some(object.metadata.name.clone()),
            "metadata.namespace" => Some(object.metadata.namespace.clone()),
            _ => self.selectable.iter().find(|(name, _)| *name == field).map(|(_, value)| value(object)),
        }
    }
}

/// The message about a field that a schema does not have.
pub fn unknown_field(path: &str) -> String {
    format!("unknown field {path:?}")
}

/// All resources of an API, in the order in which discovery lists them.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Vec<Arc<Resource>>>);

impl Registry {
    /// Creates a registry. Every schema gets the fields that all kinds have.
    pub fn new(resources: impl IntoIterator<Item = Resource>) -> Self {
        let complete = |mut resource: Resource| {
            let text = || Schema { kind: Some(Type::String), ..Schema::default() };
            for (name, description) in
                [("apiVersion", "The group and version of the kind"), ("kind", "The kind of the object")]
            {
                let schema = Schema { description: description.into(), ..text() };
                resource.schema.properties.insert(name.into(), schema);
            }
            resource.schema.properties.insert("metadata".into(), metadata_schema());
            Arc::new(resource)
        };
        Self(Arc::new(resources.into_iter().map(complete).collect()))
    }

    /// All resources.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.iter()
    }

    /// The resource with this name.
    pub fn find(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.0.iter().find(|resource| resource.group == group && resource.plural == plural)
    }

    /// The resource whose objects are stored under this name.
    pub fn stored_as(&self, name: &str) -> Option<&Arc<Resource>> {
        let (plural, group) = name.split_once('.').unwrap_or((name, ""));
        self.find(group, plural)
    }

    /// The groups with their versions, the core group first.
    pub fn groups(&self) -> Vec<(&'static str, &'static str)> {
        let mut groups: Vec<_> = self.0.iter().map(|resource| (resource.group, resource.version)).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// Reads a schema that is part of this program.
pub(crate) fn embedded_schema(json: &str) -> Schema {
    serde_json::from_str(json).expect("schemas of this program are valid; a test reads each of them")
}

/// The schema of the metadata of all kinds.
pub(crate) fn metadata_schema() -> Schema {
    embedded_schema(include_str!("../schemas/metadata.json"))
}
