//! What can go wrong with an inference request or a deployment.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use slipway_core::Explain;
use slipway_store::StoreError;

/// A refused or failed request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request does not fit the protocol or the model.
    #[error("{0}")]
    Invalid(String),
    /// No such deployment, model or version.
    #[error("{0}")]
    NotFound(String),
    /// Known but not loaded.
    #[error("{0}")]
    NotReady(String),
    /// The queue is full.
    #[error("model '{0}' is overloaded: its queue is full; retry later")]
    Overloaded(String),
    /// The time limit passed.
    #[error("model '{model}' did not answer within {limit_ms} ms")]
    Timeout {
        /// The deployment.
        model: String,
        /// Its limit.
        limit_ms: u64,
    },
    /// The body is too large.
    #[error("the request body is larger than the limit of {0} bytes")]
    TooLarge(usize),
    /// The bodies of requests take all the memory that they may.
    #[error("the requests that are being answered take all of the {0} bytes that their bodies may; retry later")]
    BodyMemory(usize),
    /// The body does not arrive fast enough.
    #[error("the request body arrives too slowly")]
    SlowBody,
    /// The manifest names a file of the server's machine, which the caller may not.
    #[error(
        "'{deployment}': model '{variant}' is a local path, which only the owner of the server's machine may deploy"
    )]
    LocalPath {
        /// The deployment.
        deployment: String,
        /// The model's name in the manifest. The message leaves the path out, and nobody looked whether it exists.
        variant: String,
    },
    /// The model cannot be loaded or run.
    #[error("{0}")]
    Model(String),
    /// The deployment file cannot be used.
    #[error("{0}")]
    Manifest(String),
    /// The store failed.
    #[error("{0}")]
    Store(String),
}

impl Error {
    /// Status for REST.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::Manifest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Overloaded(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyMemory(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::LocalPath { .. } => StatusCode::FORBIDDEN,
            Self::Model(_) | Self::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Status for gRPC.
    pub fn grpc(&self) -> tonic::Code {
        match self {
            Self::Invalid(_) | Self::Manifest(_) => tonic::Code::InvalidArgument,
            Self::NotFound(_) => tonic::Code::NotFound,
            Self::NotReady(_) | Self::Overloaded(_) => tonic::Code::Unavailable,
            Self::Timeout { .. } | Self::SlowBody => tonic::Code::DeadlineExceeded,
            Self::TooLarge(_) | Self::BodyMemory(_) => tonic::Code::ResourceExhausted,
            Self::LocalPath { .. } => tonic::Code::PermissionDenied,
            Self::Model(_) | Self::Store(_) => tonic::Code::Internal,
        }
    }
}

impl Explain for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "serve.invalid",
            Self::NotFound(_) => "serve.not_found",
            Self::NotReady(_) => "serve.not_ready",
            Self::Overloaded(_) => "serve.overloaded",
            Self::Timeout { .. } => "serve.timeout",
            Self::TooLarge(_) => "serve.too_large",
            Self::BodyMemory(_) => "serve.body_memory",
            Self::SlowBody => "serve.slow_body",
            Self::LocalPath { .. } => "serve.local_path",
            Self::Model(_) => "serve.model",
            Self::Manifest(_) => "serve.manifest",
            Self::Store(_) => "store.sql",
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        tonic::Status::new(error.grpc(), error.to_string())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        // `error` is the protocol's field; `code` and `hint` are ours.
        let body = serde_json::json!({ "error": self.to_string(), "code": self.code(), "hint": self.hint() });
        let mut response =
            (self.status(), [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        if matches!(self, Self::Overloaded(_) | Self::BodyMemory(_)) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
