//! The form of errors on the wire: errors become statuses, and the statuses of an API server become errors.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Conflict, Error, FieldError, GroupResource, aggregate};

/// The body of an error response, and of the response to a deletion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Always `Status`.
    pub kind: Cow<'static, str>,
    /// Always `v1`.
    pub api_version: Cow<'static, str>,
    /// Always empty.
    #[serde(default)]
    pub metadata: serde_json::Map<String, Value>,
    /// `Success` or `Failure`.
    #[serde(default)]
    pub status: Cow<'static, str>,
    /// The message for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The machine-readable reason, such as `NotFound`.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'static, str>,
    /// The object that the response is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// The HTTP status; absent from successes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
}

/// The object that a [`Status`] is about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// The name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource, or for an invalid object its kind.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The unique id of a deleted object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// What is invalid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// The time after which the request can be repeated, in seconds; 0 if it is unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// One cause of an error.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// The machine-readable reason.
    pub reason: String,
    /// The message for people.
    pub message: String,
    /// The path of the field; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Status {
    /// The response to a successful deletion.
    pub fn deleted(resource: &GroupResource, name: &str, uid: &str) -> Self {
        Self {
            status: "Success".into(),
            details: Some(Details { uid: uid.to_owned(), ..Details::of(resource, name) }),
            code: None,
            ..Self::failure(200, "", String::new())
        }
    }

    /// A failure without details.
    pub fn failure(code: u16, reason: &'static str, message: String) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: serde_json::Map::new(),
            status: "Failure".into(),
            message,
            reason: reason.into(),
            details: None,
            code: Some(code),
        }
    }
}

impl Details {
    /// The details of an error about one object.
    pub fn of(resource: &GroupResource, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            group: resource.group.clone(),
            kind: resource.resource.clone(),
            ..Self::default()
        }
    }
}

impl Error {
    /// The response for this error.
    pub fn status(&self) -> Status {
        let (code, reason) = match self {
            Self::Refused(status) => return Status::clone(status),
            Self::Unreachable(_) => (503, "ServiceUnavailable"),
            Self::NotFound { .. } => (404, "NotFound"),
            Self::AlreadyExists { .. } => (409, "AlreadyExists"),
            Self::Conflict { .. } | Self::ApplyConflict(_) => (409, "Conflict"),
            // The API server reports these as failures of its own, without a reason.
            Self::Unmergeable(_) => (500, ""),
            Self::Invalid { .. } | Self::Unprocessable(_) => (422, "Invalid"),
            Self::Forbidden { .. } => (403, "Forbidden"),
            Self::BadRequest(_) | Self::Undecodable { .. } => (400, "BadRequest"),
            Self::Expired(_) => (410, "Expired"),
            Self::TooLarge(_) => (413, "RequestEntityTooLarge"),
            Self::UnsupportedMediaType(_) => (415, "UnsupportedMediaType"),
            Self::Sealed(_) | Self::Store(_) => (500, "InternalError"),
        };
        let details = match self {
            Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::Conflict { resource, name, .. } => Some(Details::of(resource, name)),
            Self::Forbidden { resource, name, cause, .. } => {
                let causes = cause.iter().map(|cause| Cause::clone(cause)).collect();
                Some(Details { causes, ..Details::of(resource, name) })
            }
            Self::ApplyConflict(conflicts) => Some(Details {
                causes: conflicts
                    .iter()
                    .map(|conflict| Cause {
                        reason: "FieldManagerConflict".into(),
                        message: format!("conflict with {}", conflict.manager),
                        field: conflict.field.clone(),
                    })
                    .collect(),
                ..Details::default()
            }),
            Self::Invalid { group, kind, name, errors } => Some(Details {
                name: name.clone(),
                group: group.clone(),
                kind: kind.clone(),
                causes: errors
                    .iter()
                    .map(|e| Cause { reason: e.reason.to_string(), message: e.message.clone(), field: e.field.clone() })
                    .collect(),
                ..Details::default()
            }),
            _ => None,
        };
        Status { details, ..Status::failure(code, reason, self.message()) }
    }

    /// The error that an API server reported. Its status is exactly the reported one.
    pub fn from_status(status: Status) -> Self {
        match Self::recognized(&status) {
            Some(error) if error.status() == status => error,
            _ => Self::Refused(Box::new(status)),
        }
    }

    /// The error with a reason of its own that a status probably is.
    fn recognized(status: &Status) -> Option<Self> {
        let message = &status.message;
        let about = |details: &Details| {
            (GroupResource { group: details.group.clone(), resource: details.kind.clone() }, details.name.clone())
        };
        let named = || status.details.as_ref().map(about);
        let causes = || status.details.iter().flat_map(|details| &details.causes);
        Some(match &*status.reason {
            "NotFound" => named().map(|(resource, name)| Self::NotFound { resource, name })?,
            "AlreadyExists" => named().map(|(resource, name)| Self::AlreadyExists { resource, name })?,
            "Conflict" if causes().next().is_some() => Self::ApplyConflict(
                causes()
                    .map(|cause| {
                        let manager = cause.message.strip_prefix("conflict with ")?.to_owned();
                        Some(Conflict { manager, field: cause.field.clone() })
                    })
                    .collect::<Option<_>>()?,
            ),
            "Conflict" => {
                let (resource, name) = named()?;
                let start = format!("Operation cannot be fulfilled on {resource} {name:?}: ");
                Self::Conflict { resource, name, detail: message.strip_prefix(&start)?.to_owned() }
            }
            "Forbidden" => {
                let (resource, name) = named()?;
                let start = format!("{resource} {name:?} is forbidden: ");
                let detail = message.strip_prefix(&start)?.to_owned();
                Self::Forbidden { resource, name, detail, cause: causes().next().cloned().map(Box::new) }
            }
            "Invalid" if causes().next().is_some() => {
                let Details { name, group, kind, .. } = status.details.clone()?;
                let errors = causes().map(|cause| FieldError {
                    field: cause.field.clone(),
                    reason: cause.reason.clone().into(),
                    message: cause.message.clone(),
                });
                Self::Invalid { errors: errors.collect(), name, group, kind }
            }
            "Invalid" => Self::Unprocessable(message.clone()),
            "BadRequest" => Self::BadRequest(message.clone()),
            "Expired" => Self::Expired(message.clone()),
            _ => return None,
        })
    }

    /// Whether the object, or its namespace, does not exist.
    pub fn is_not_found(&self) -> bool {
        self.has_reason("NotFound")
    }

    /// Whether the object was changed since the client read it, or another manager has a field, or a precondition does not hold.
    pub fn is_conflict(&self) -> bool {
        self.has_reason("Conflict")
    }

    /// Whether the name of a new object is taken.
    pub fn is_taken(&self) -> bool {
        self.has_reason("AlreadyExists")
    }

    /// Whether a version is no longer retained, so that a list has to begin anew.
    pub fn is_expired(&self) -> bool {
        self.has_reason("Expired") || matches!(self, Self::Refused(status) if status.code == Some(410))
    }

    fn has_reason(&self, reason: &str) -> bool {
        match self {
            Self::NotFound { .. } => reason == "NotFound",
            Self::AlreadyExists { .. } => reason == "AlreadyExists",
            Self::Conflict { .. } | Self::ApplyConflict(_) => reason == "Conflict",
            Self::Expired(_) => reason == "Expired",
            Self::Refused(status) => status.reason == reason,
            _ => false,
        }
    }

    /// The message with the group of an invalid kind, which the API server prints behind its name.
    fn message(&self) -> String {
        match self {
            Self::Invalid { group, kind, name, errors } if !group.is_empty() => {
                format!("{kind}.{group} \"{name}\" is invalid: {}", aggregate(errors))
            }
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_are_recovered_from_their_statuses() {
        let resource = GroupResource { group: "slipway.dev".into(), resource: "runs".into() };
        let (name, detail) = ("a".to_owned(), "because".to_owned());
        let conflict = |field: &str| Conflict { manager: "\"m\"".into(), field: field.into() };
        for error in [
            Error::NotFound { resource: resource.clone(), name: name.clone() },
            Error::AlreadyExists { resource: resource.clone(), name: name.clone() },
            Error::Conflict { resource: resource.clone(), name: name.clone(), detail: detail.clone() },
            Error::Forbidden { resource, name: name.clone(), detail, cause: None },
            Error::ApplyConflict(vec![conflict(".a"), conflict(".b")]),
            Error::Invalid {
                group: "slipway.dev".into(),
                kind: "Run".into(),
                name,
                errors: vec![FieldError::required("spec", ""), FieldError::invalid("x", &json!(1), "odd")],
            },
            Error::Unprocessable("u".into()),
            Error::BadRequest("b".into()),
            Error::Expired("e".into()),
        ] {
            let sent = serde_json::to_string(&error.status()).unwrap();
            let received = Error::from_status(serde_json::from_str(&sent).unwrap());
            assert_eq!(std::mem::discriminant(&received), std::mem::discriminant(&error), "{received:?}");
            assert_eq!(received.status(), error.status());
        }
    }

    #[test]
    fn other_statuses_are_kept_as_they_are() {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "wait",
            "reason": "TooManyRequests", "details": {"retryAfterSeconds": 1}, "code": 429});
        let received = Error::from_status(serde_json::from_value(status.clone()).unwrap());
        assert!(matches!(received, Error::Refused(_)) && !received.is_conflict());
        assert_eq!(serde_json::to_value(received.status()).unwrap(), status);
        let odd = json!({"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "message": "no such resource", "code": 404});
        assert!(Error::from_status(serde_json::from_value(odd).unwrap()).is_not_found());
    }
}
