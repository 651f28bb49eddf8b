//! Bodies of error responses.

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
    /// What went wrong, for people.
    error: String,
    /// A stable code, such as `serve.not_found`; `slipway explain CODE` tells more.
    code: &'static str,
    /// What helps, if anything is known to.
    hint: Option<String>,
}

impl ErrorBody {
    /// The response for an error.
    pub(crate) fn response(status: StatusCode, error: &impl Explain) -> Response {
        Self { error: error.to_string(), code: error.code(), hint: error.hint() }.with_status(status)
    }

    /// The response for an error of a catalogued code, of which there is only a message.
    pub(crate) fn of_code(status: StatusCode, code: &'static str, error: String) -> Response {
        let hint = slipway_core::explain::find(code).map(|topic| topic.remedy.to_owned());
        Self { error, code, hint }.with_status(status)
    }

    fn with_status(self, status: StatusCode) -> Response {
        (status, Json(self)).into_response()
    }
}

// It is written in `slipway_track::Error` and `slipway_access::refusal`; a test compares this description with what they write.
/// An error as MLflow's API writes it: from tracking, or from the guard in front of all routes.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MlflowError")]
pub(crate) struct MlflowErrorBody {
    /// MLflow's code, such as `RESOURCE_DOES_NOT_EXIST`.
    error_code: String,
    /// What went wrong, for people.
    message: String,
    /// slipway's stable code, where the request was refused before its handler.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// MLflow's SQLSTATE, where it has one for the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<String>,
    /// MLflow's class of the error, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<String>,
}
