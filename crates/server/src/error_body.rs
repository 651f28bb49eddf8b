//! The bodies of error responses: slipway's own format, and MLflow's.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use slipway_core::Explain;

/// An error of slipway's own API.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct ErrorBody {
    /// Human-readable message.
    error: String,
    /// A stable code, such as `serve.not_found`; `slipway explain CODE` explains it.
    code: &'static str,
    /// How to fix the problem, if known.
    hint: Option<String>,
}

impl ErrorBody {
    /// The response for an error.
    pub(crate) fn response(status: StatusCode, error: &impl Explain) -> Response {
        Self { error: error.to_string(), code: error.code(), hint: error.hint() }.with_status(status)
    }

    /// The response for a message with a code of the catalogue ([`slipway_core::explain`]), which has the hint.
    pub(crate) fn from_code(status: StatusCode, code: &'static str, error: String) -> Response {
        let hint = slipway_core::explain::find(code).map(|topic| topic.remedy.to_owned());
        Self { error, code, hint }.with_status(status)
    }

    fn with_status(self, status: StatusCode) -> Response {
        (status, Json(self)).into_response()
    }
}

// Only for the schema: `slipway_track::Error` and `slipway_access::refusal` write these bodies; a test compares them with this type.
/// An error in the format of MLflow's API: from tracking, or from the guard in front of all routes.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MlflowError")]
pub(crate) struct MlflowErrorBody {
    /// MLflow's code, such as `RESOURCE_DOES_NOT_EXIST`.
    error_code: String,
    /// Human-readable message.
    message: String,
    /// slipway's stable code; only if the request was rejected before it reached its handler.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// MLflow's SQLSTATE, if the error has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<String>,
    /// MLflow's error class, if the error has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<String>,
}
