//! Responses for errors.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use slipway_core::Explain;
use slipway_store::StoreError;

use crate::error::DataError;

/// The response for an error, in slipway's own format.
pub(super) fn error_response(error: &DataError) -> Response {
    let status = match error {
        DataError::HostedName(_) | DataError::ItemName(_) | DataError::Batch(_) => StatusCode::BAD_REQUEST,
        DataError::UnknownRepository(_) | DataError::Target(_) => StatusCode::NOT_FOUND,
        DataError::Exists(_) => StatusCode::CONFLICT,
        DataError::TooManyReaders => StatusCode::SERVICE_UNAVAILABLE,
        // What a request names, or what a repository contains.
        DataError::Invalid(_)
        | DataError::Git(_)
        | DataError::Repository { .. }
        | DataError::File { .. }
        | DataError::Config(_)
        | DataError::NoRemote(_)
        | DataError::Remote { .. }
        | DataError::Unavailable { .. }
        | DataError::Corrupt { .. }
        | DataError::Overlap(_)
        | DataError::Plot(_)
        | DataError::Limit(_) => StatusCode::UNPROCESSABLE_ENTITY,
        DataError::Mismatch(_) => StatusCode::UNPROCESSABLE_ENTITY,
        DataError::Store(StoreError::NotFound(_) | StoreError::IsFolder(_)) => StatusCode::NOT_FOUND,
        DataError::Store(StoreError::BadPath(_) | StoreError::BadPart { .. }) => StatusCode::BAD_REQUEST,
        DataError::Store(StoreError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        DataError::Store(StoreError::OutOfSpace { .. }) => StatusCode::INSUFFICIENT_STORAGE,
        DataError::Store(StoreError::TooManyUploads { .. } | StoreError::Busy { .. } | StoreError::Closed) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(%error, "a request for versioned data failed");
    }
    let body = serde_json::json!({ "error": error.to_string(), "code": error.code(), "hint": error.hint() });
    let mut response = (status, Json(body)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

impl IntoResponse for DataError {
    fn into_response(self) -> Response {
        error_response(&self)
    }
}
