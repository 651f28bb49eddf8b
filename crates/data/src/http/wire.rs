//! The types of requests and responses.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_core::Explain;
use slipway_store::StoreError;

use crate::error::DataError;
use crate::layout::Item;

/// Items of a remote.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataItems")]
pub struct Items {
    /// Their paths below the remote, such as `files/md5/d4/1d8cd98f00b204e9800998ecf8427e`.
    pub items: Vec<String>,
}

impl Items {
    pub(crate) fn of(items: &[Item]) -> Self {
        Self { items: items.iter().map(Item::to_string).collect() }
    }

    pub(crate) fn parse(&self) -> Result<Vec<Item>, DataError> {
        self.items.iter().map(|path| Item::parse(path).ok_or_else(|| DataError::ItemName(path.clone()))).collect()
    }
}

/// The remotes of a namespace.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataRemotes")]
pub struct Remotes {
    /// Their names, sorted.
    pub remotes: Vec<String>,
}

/// The parts of an unfinished upload that have arrived.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataParts")]
pub struct Parts {
    /// The parts, sorted by their numbers.
    pub parts: Vec<Part>,
}

/// A part of an upload.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataPart")]
pub struct Part {
    /// Counted from 1.
    pub number: u32,
    /// Bytes.
    pub size: u64,
}

/// Joins the parts of an upload into the object.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CompleteDataUpload")]
pub struct Complete {
    /// Number of parts of the object.
    pub parts: u32,
}

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
