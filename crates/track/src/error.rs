//! Errors in the form that MLflow's clients expect: an error code, a message and an HTTP status.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use slipway_core::Explain;
use slipway_store::StoreError;

/// MLflow's error codes that this server uses (`databricks.proto`, `ErrorCode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the protocol's own
pub enum ErrorCode {
    BadRequest,
    InvalidParameterValue,
    InvalidState,
    InternalError,
    NotImplemented,
    PermissionDenied,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TemporarilyUnavailable,
    /// The disk or the bucket is full: MLflow's `RESOURCE_EXHAUSTED` with HTTP status 507. With MLflow's own status 429, clients would
    /// send the same data again and again.
    StorageFull,
    /// The request or object is larger than the limit: MLflow's `INVALID_PARAMETER_VALUE` with HTTP status 413.
    TooLarge,
}

impl ErrorCode {
    /// The name on the wire, HTTP status, SQLSTATE and error class (`mlflow/exceptions.py` and
    /// `mlflow/error_classification.py` of MLflow 3.17).
    fn row(self) -> (&'static str, StatusCode, Option<(&'static str, &'static str)>) {
        match self {
            Self::BadRequest => ("BAD_REQUEST", StatusCode::BAD_REQUEST, Some(("KAM00", "INVALID_PARAMETER_VALUE"))),
            Self::InvalidParameterValue => {
                ("INVALID_PARAMETER_VALUE", StatusCode::BAD_REQUEST, Some(("KAM00", "INVALID_PARAMETER_VALUE")))
            }
            Self::InvalidState => {
                ("INVALID_STATE", StatusCode::INTERNAL_SERVER_ERROR, Some(("XXM00", "CLIENT_INTERNAL_ERROR")))
            }
            Self::InternalError => {
                ("INTERNAL_ERROR", StatusCode::INTERNAL_SERVER_ERROR, Some(("XXM00", "CLIENT_INTERNAL_ERROR")))
            }
            Self::NotImplemented => ("NOT_IMPLEMENTED", StatusCode::NOT_IMPLEMENTED, None),
            Self::PermissionDenied => {
                ("PERMISSION_DENIED", StatusCode::FORBIDDEN, Some(("KAM00", "PERMISSION_DENIED")))
            }
            Self::ResourceAlreadyExists => {
                ("RESOURCE_ALREADY_EXISTS", StatusCode::BAD_REQUEST, Some(("KAM00", "RESOURCE_ALREADY_EXISTS")))
            }
            Self::ResourceDoesNotExist => {
                ("RESOURCE_DOES_NOT_EXIST", StatusCode::NOT_FOUND, Some(("KAM00", "RESOURCE_NOT_FOUND")))
            }
            Self::TemporarilyUnavailable => {
                ("TEMPORARILY_UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE, Some(("XXM00", "CLIENT_INTERNAL_ERROR")))
            }
            Self::StorageFull => ("RESOURCE_EXHAUSTED", StatusCode::INSUFFICIENT_STORAGE, None),
            Self::TooLarge => {
                let class = Some(("KAM00", "INVALID_PARAMETER_VALUE"));
                ("INVALID_PARAMETER_VALUE", StatusCode::PAYLOAD_TOO_LARGE, class)
            }
        }
    }

    /// The name on the wire, such as `RESOURCE_DOES_NOT_EXIST`.
    pub fn name(self) -> &'static str {
        self.row().0
    }
}

/// The error of a rejected or failed request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// MLflow's error code.
    pub code: ErrorCode,
    /// MLflow's message, word for word where the client shows it.
    pub message: String,
}

impl Error {
    /// An error with this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    /// `INVALID_PARAMETER_VALUE`, status 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidParameterValue, message)
    }
    /// `RESOURCE_DOES_NOT_EXIST`, status 404.
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ResourceDoesNotExist, message)
    }
}

impl Explain for Error {
    fn code(&self) -> &'static str {
        "track.refused"
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(path) => Self::missing(format!("No such artifact: '{path}'")),
            StoreError::BadPath(_) => Self::invalid("Invalid path"),
            StoreError::IsFolder(path) => {
                Self::invalid(format!("Artifact path refers to a directory, not a file: '{path}'"))
            }
            StoreError::Closed => Self::new(ErrorCode::TemporarilyUnavailable, "The server is shutting down."),
            full @ StoreError::OutOfSpace { .. } => {
                tracing::error!(error = %full, "no space left to store data from clients");
                Self::new(ErrorCode::StorageFull, full.to_string())
            }
            large @ StoreError::TooLarge { .. } => Self::new(ErrorCode::TooLarge, large.to_string()),
            invalid @ StoreError::BadPart { .. } => Self::invalid(invalid.to_string()),
            busy @ (StoreError::TooManyUploads { .. } | StoreError::Busy { .. }) => {
                Self::new(ErrorCode::TemporarilyUnavailable, busy.to_string())
            }
            StoreError::Unreachable(reason) => {
                Self::new(ErrorCode::TemporarilyUnavailable, format!("The database cannot be reached: {reason}"))
            }
            other => {
                tracing::error!(error = %other, "the store failed");
                Self::new(ErrorCode::InternalError, other.to_string())
            }
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (name, status, class) = self.code.row();
        let mut body = serde_json::json!({ "error_code": name, "message": self.message });
        if let Some((sqlstate, class)) = class {
            body["sqlstate"] = sqlstate.into();
            body["error_class"] = class.into();
        }
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_errors_have_their_own_http_status() {
        let full = || StoreError::OutOfSpace { what: "writing".into(), reason: "disk full".into() };
        for (error, status) in [
            (full(), StatusCode::INSUFFICIENT_STORAGE),
            (StoreError::TooLarge { what: "the object", limit: 4 }, StatusCode::PAYLOAD_TOO_LARGE),
            (StoreError::BadPart { number: 0, reason: "is not from 1 to 10000" }, StatusCode::BAD_REQUEST),
            (StoreError::TooManyUploads { limit: 1 }, StatusCode::SERVICE_UNAVAILABLE),
            (StoreError::Panicked("a change"), StatusCode::INTERNAL_SERVER_ERROR),
        ] {
            let text = error.to_string();
            assert_eq!(Error::from(error).into_response().status(), status, "{text}");
        }
    }
}
