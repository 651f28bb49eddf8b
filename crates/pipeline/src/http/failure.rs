//! Errors as Kubeflow's gateway returns them: `{"code", "message", "details"}` with the codes of gRPC. `message` tells what was attempted,
//! `details` has the reason alone.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use slipway_access::refusal::Refusal;
use slipway_core::Explain;

use super::request::json_response;
use crate::Error;

/// Codes of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    FailedPrecondition = 9,
    Aborted = 10,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::Aborted => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }

    /// How the kind of an error begins its message.
    fn prefix(self) -> &'static str {
        match self {
            Self::InvalidArgument => "Invalid input error: ",
            Self::NotFound => "ResourceNotFoundError: ",
            Self::AlreadyExists => "Already exist error: ",
            Self::PermissionDenied => "PermissionDenied: ",
            Self::FailedPrecondition => "FailedPreconditionError: ",
            Self::Aborted => "BadRequestError: ",
            Self::Internal => "InternalServerError: ",
            Self::Unavailable => "ServiceUnavailable: ",
            Self::Unauthenticated => "Unauthenticated: ",
        }
    }
}

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    code: Code,
    status: StatusCode,
    /// What was attempted and why it failed.
    message: String,
    /// Why it failed.
    reason: String,
}

impl Failure {
    pub(super) fn new(code: Code, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { code, status: code.status(), message: format!("{}{reason}", code.prefix()), reason }
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Adds what was attempted.
    pub(super) fn context(self, attempt: &str) -> Self {
        Self { message: format!("{attempt}: {}", self.message), ..self }
    }

    pub(super) fn code(&self) -> Code {
        self.code
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

/// Adds what was attempted to an error.
pub(super) trait Attempt<T> {
    fn attempt(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| error.into().context(what))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Invalid(_) | Error::Specification(_) => Code::InvalidArgument,
            Error::NotFound(_) => Code::NotFound,
            Error::Exists(_) => Code::AlreadyExists,
            Error::NotNow(_) => Code::FailedPrecondition,
            Error::Conflict(_) => Code::Aborted,
            Error::Forbidden(_) => Code::PermissionDenied,
            Error::Executor(slipway_exec::ExecError::NotFound(_)) => Code::NotFound,
            Error::Executor(slipway_exec::ExecError::Unreachable(_)) => Code::Unavailable,
            Error::Io { .. } | Error::Executor(_) | Error::Store(_) => Code::Internal,
        };
        if code == Code::Internal {
            tracing::error!(code = error.code(), %error, "a request for pipelines failed");
        }
        Self::new(code, error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Unauthenticated => Code::Unauthenticated,
            Refusal::Unavailable(_) => Code::Unavailable,
            Refusal::Unguarded => Code::Internal,
            _ => Code::PermissionDenied,
        };
        let status = refusal.status();
        Self::new(code, refusal.message()).with_status(status)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = self.code as i32;
        let detail = json!({"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": self.reason});
        let body = json!({"code": code, "message": self.message, "details": [detail]});
        json_response(self.status, body.to_string())
    }
}
