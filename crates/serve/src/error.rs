//! Errors of inference requests and deployments, with their HTTP and gRPC status codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use slipway_core::Explain;
use slipway_store::StoreError;

/// A rejected or failed request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request does not fit the protocol or the model.
    #[error("{0}")]
    Invalid(String),
    /// The deployment, model or version does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The model that a manifest names does not exist: not in the registry, or not on the server's machine.
    #[error("{0}")]
    ModelNotFound(String),
    /// The model that a manifest names exists, but no runtime can load it.
    #[error("{0}")]
    ModelUnusable(String),
    /// The body's content encoding is not supported.
    #[error("the content encoding '{0}' is not supported; send the body with gzip, with deflate or without encoding")]
    ContentEncoding(String),
    /// The model is known but not loaded.
    #[error("{0}")]
    NotReady(String),
    /// The queue is full.
    #[error("model '{0}' is overloaded: its queue is full; retry later")]
    Overloaded(String),
    /// The deployment's timeout passed.
    #[error("model '{model}' did not respond within {limit_ms} ms")]
    Timeout {
        /// Name of the deployment.
        model: String,
        /// The timeout in milliseconds.
        limit_ms: u64,
    },
    /// The request body exceeds the limit, in bytes.
    #[error("the request body is larger than the limit of {0} bytes")]
    TooLarge(usize),
    /// The bodies of all requests in flight together reached the memory limit, in bytes.
    #[error("the bodies of the requests in flight have reached the memory limit of {0} bytes; retry later")]
    BodyMemory(usize),
    /// The request body arrives more slowly than the minimum rate.
    #[error("the request body arrives too slowly")]
    SlowBody,
    /// The manifest names a file on the server's machine, and the caller is not the machine's owner.
    #[error(
        "'{deployment}': model '{variant}' is a local path, which only the owner of the server's machine may deploy"
    )]
    LocalPath {
        /// Name of the deployment.
        deployment: String,
        /// The model's name in the manifest. The path is neither checked for existence nor put into the message, so a caller
        /// cannot use the error to probe the file system.
        variant: String,
    },
    /// The model failed while it was run, or the server failed while loading it.
    #[error("{0}")]
    Model(String),
    /// The deployment manifest is invalid.
    #[error("{0}")]
    Manifest(String),
    /// The store failed.
    #[error("{0}")]
    Store(String),
}

impl Error {
    /// The HTTP status code.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::Manifest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) | Self::ModelNotFound(_) => StatusCode::NOT_FOUND,
            Self::ModelUnusable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::ContentEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
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

    /// The gRPC status code.
    pub fn grpc(&self) -> tonic::Code {
        match self {
            Self::Invalid(_) | Self::Manifest(_) | Self::ModelUnusable(_) => tonic::Code::InvalidArgument,
            Self::NotFound(_) | Self::ModelNotFound(_) => tonic::Code::NotFound,
            Self::ContentEncoding(_) => tonic::Code::Unimplemented,
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
            Self::ModelNotFound(_) => "serve.model_not_found",
            Self::ModelUnusable(_) => "serve.model_unusable",
            Self::ContentEncoding(_) => "serve.content_encoding",
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
        // `error` is the Open Inference Protocol's field; `code` and `hint` are slipway's.
        let body = serde_json::json!({ "error": self.to_string(), "code": self.code(), "hint": self.hint() });
        let mut response =
            (self.status(), [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        if matches!(self, Self::Overloaded(_) | Self::BodyMemory(_)) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if matches!(self, Self::ContentEncoding(_)) {
            // RFC 9110, section 15.5.16: the encodings that a repeated request may use.
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
        }
        response
    }
}
