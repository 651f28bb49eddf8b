//! Errors of the object API. Each becomes a `Status` with the code, reason and wording of the Kubernetes API server, because clients
//! decide by these what to do next.

mod status;

use std::borrow::Cow;

use serde_json::Value;
use slipway_core::Explain;

pub use status::{Cause, Details, Status};

/// A resource in its group, such as `configmaps` or `runs.slipway.dev`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupResource {
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural name.
    pub resource: String,
}

impl std::fmt::Display for GroupResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.resource)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

/// An invalid field of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The path of the field, such as `metadata.labels`.
    pub field: String,
    /// The machine-readable reason, such as `FieldValueInvalid`.
    pub reason: Cow<'static, str>,
    /// The message without the path.
    pub message: String,
}

impl FieldError {
    /// The value is of the right type but not acceptable.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl std::fmt::Display) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {value}: {detail}"),
        }
    }

    /// The value is of another type than the schema's.
    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: impl std::fmt::Display) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueTypeInvalid".into(),
            message: format!("Invalid value: {value}: {detail}"),
        }
    }

    /// The field is missing.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let separator = if detail.is_empty() { "" } else { ": " };
        Self {
            field: field.into(),
            reason: "FieldValueRequired".into(),
            message: format!("Required value{separator}{detail}"),
        }
    }

    /// The field may not have this value now.
    pub fn forbidden(field: impl Into<String>, detail: impl std::fmt::Display) -> Self {
        Self { field: field.into(), reason: "FieldValueForbidden".into(), message: format!("Forbidden: {detail}") }
    }

    /// The value is not one of the supported ones.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[String]) -> Self {
        let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        Self {
            field: field.into(),
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {value}: supported values: {}", supported.join(", ")),
        }
    }

    /// The list has more elements than allowed.
    pub fn too_many(field: impl Into<String>, count: usize, limit: usize) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueTooMany".into(),
            message: format!("Too many: {count}: must have at most {limit} items"),
        }
    }

    /// The value has more bytes than allowed.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {limit} bytes"),
        }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// A field that another manager has with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as messages describe it.
    pub manager: String,
    /// The path of the field.
    pub field: String,
}

/// The message about conflicts, which are grouped by manager.
fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [Conflict { manager, field }] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {manager}: {field}");
    }
    let mut lines = Vec::new();
    let mut current = None;
    for Conflict { manager, field } in conflicts {
        if current != Some(manager) {
            lines.push(format!("conflicts with {manager}:"));
            current = Some(manager);
        }
        lines.push(format!("- {field}"));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Why a request to the object API failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object does not exist.
    #[error("{resource} \"{name}\" not found")]
    NotFound {
        /// The resource that was searched.
        resource: GroupResource,
        /// The name of the object.
        name: String,
    },
    /// The name is already taken.
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists {
        /// The resource of the object.
        resource: GroupResource,
        /// The name of the object.
        name: String,
    },
    /// The object was changed since the client read it, or a precondition does not hold.
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {detail}")]
    Conflict {
        /// The resource of the object.
        resource: GroupResource,
        /// The name of the object.
        name: String,
        /// What does not match.
        detail: String,
    },
    /// Other managers have fields of an applied configuration with other values.
    #[error("{}", conflict_message(.0))]
    ApplyConflict(Vec<Conflict>),
    /// An applied configuration does not fit the schema of its kind.
    #[error("{0}")]
    Unmergeable(String),
    /// Fields of the object are invalid.
    #[error("{kind} \"{name}\" is invalid: {}", aggregate(.errors))]
    Invalid {
        /// The API group of the kind.
        group: String,
        /// The kind, such as `ConfigMap`.
        kind: String,
        /// The name of the object; may be empty.
        name: String,
        /// What is invalid.
        errors: Vec<FieldError>,
    },
    /// The operation is not allowed on this object.
    #[error("{resource} \"{name}\" is forbidden: {detail}")]
    Forbidden {
        /// The resource of the object.
        resource: GroupResource,
        /// The name of the object; may be empty.
        name: String,
        /// Why it is not allowed.
        detail: String,
        /// A machine-readable cause.
        cause: Option<Box<Cause>>,
    },
    /// The body of the request is not an object of the kind.
    #[error("{kind} in version \"{version}\" cannot be handled as a {expected}: {detail}")]
    Undecodable {
        /// The kind that the body names.
        kind: String,
        /// The version that the body names, without its group.
        version: String,
        /// The kind of the route.
        expected: String,
        /// What is wrong.
        detail: String,
    },
    /// The request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// The requested version of the list is no longer retained.
    #[error("{0}")]
    Expired(String),
    /// A patch cannot be applied to the object.
    #[error("{0}")]
    Unprocessable(String),
    /// The request body or the object is larger than allowed.
    #[error("Request entity too large: limit is {0}")]
    TooLarge(usize),
    /// The body has a media type that this operation does not accept.
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(String),
    /// Encrypted data of an object cannot be read.
    #[error("Internal error occurred: {0}")]
    Sealed(String),
    /// The store failed.
    #[error("Internal error occurred: {0}")]
    Store(#[from] slipway_store::StoreError),
    /// The API server of a cluster rejected the request for a reason that no other variant has.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// The API server of a cluster sent no response that can be read.
    #[error("request to the API server failed: {0}")]
    Unreachable(String),
}

/// Several errors in one line, as the API server prints them.
fn aggregate(errors: &[FieldError]) -> String {
    match errors {
        [one] => one.to_string(),
        many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Options of a request, which the API server checks like an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOptions {
    /// Of a creation.
    Create,
    /// Of a replacement.
    Update,
    /// Of a patch.
    Patch,
    /// Of a deletion.
    Delete,
    /// Of a list or watch.
    List,
}

impl RequestOptions {
    /// The error of invalid options.
    pub fn invalid(self, errors: Vec<FieldError>) -> Error {
        let (group, kind) = ("meta.k8s.io".to_owned(), format!("{self:?}Options"));
        Error::Invalid { group, kind, name: String::new(), errors }
    }
}

/// An error of reading JSON in the words of Go's decoder, in which the API server and its clients are written.
pub fn json_error(text: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    // The column of the error is that of the unexpected byte, counted from 1.
    let line = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    match line.get(error.column().saturating_sub(1)) {
        Some(byte) => format!("invalid character '{}' looking for beginning of value", char::from(*byte)),
        None => error.to_string(),
    }
}

impl Explain for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "objects.not_found",
            Self::AlreadyExists { .. } => "objects.exists",
            Self::Conflict { .. } | Self::ApplyConflict(_) => "objects.conflict",
            Self::Invalid { .. }
            | Self::Undecodable { .. }
            | Self::BadRequest(_)
            | Self::Unprocessable(_)
            | Self::Unmergeable(_)
            | Self::UnsupportedMediaType(_) => "objects.invalid",
            Self::Forbidden { .. } => "objects.forbidden",
            Self::Expired(_) => "objects.expired",
            Self::TooLarge(_) => "objects.too_large",
            Self::Sealed(_) => "objects.sealed",
            Self::Store(error) => error.code(),
            Self::Refused(_) => "kube.refused",
            Self::Unreachable(_) => "kube.unreachable",
        }
    }
}
