//! Errors of pipelines, with stable codes.

use slipway_core::Explain;

/// Why a pipeline or a request was refused, or why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request or a parameter is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The file is not a pipeline, or the pipeline has faults; each with its place in the file, one per line.
    #[error("{0}")]
    Specification(String),
    /// The pipeline, version, experiment, run, task or schedule does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The name is already taken.
    #[error("{0}")]
    Exists(String),
    /// The operation is not possible in the current state.
    #[error("{0}")]
    NotNow(String),
    /// Another operation came first, or the object must stay as it is.
    #[error("{0}")]
    Conflict(String),
    /// The caller lacks the permission for this operation.
    #[error("{0}")]
    Forbidden(String),
    /// An operation on a file or folder failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation, such as `reading the log`.
        what: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The executor refused or failed.
    #[error(transparent)]
    Executor(#[from] slipway_exec::ExecError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] slipway_store::StoreError),
}

impl Explain for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "pipeline.invalid",
            Self::Specification(_) => "pipeline.specification",
            Self::NotFound(_) => "pipeline.not_found",
            Self::Exists(_) => "pipeline.exists",
            Self::NotNow(_) | Self::Conflict(_) => "pipeline.not_now",
            Self::Forbidden(_) => "pipeline.forbidden",
            Self::Io { .. } => "pipeline.io",
            Self::Executor(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}
