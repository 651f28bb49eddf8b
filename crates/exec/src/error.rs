//! Errors of executors.

use slipway_core::Explain;

/// Why an executor refused a request or failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The manifest is invalid, or this executor does not support a part of it.
    #[error("{0}")]
    Manifest(String),
    /// The run requests more than the machine or the cluster has in total.
    #[error("{0}")]
    TooLarge(String),
    /// The run, attempt or log does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A run with this name already exists.
    #[error("{0}")]
    Exists(String),
    /// The operation is not possible in the current state of the run.
    #[error("{0}")]
    NotNow(String),
    /// A run that the caller waited for failed or was cancelled.
    #[error("{0}")]
    Failed(String),
    /// The caller lacks the permission for this operation.
    #[error("{0}")]
    Forbidden(String),
    /// The cluster or the tracking store cannot be reached or does not respond in time.
    #[error("{0}")]
    Unreachable(String),
    /// A process could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// Path or name of the program.
        program: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// An operation on a file, folder or thread failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation, such as `reading the log`.
        what: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl ExecError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl Explain for ExecError {
    fn code(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "exec.manifest",
            Self::TooLarge(_) => "exec.too_large",
            Self::NotFound(_) => "exec.not_found",
            Self::Exists(_) => "exec.exists",
            Self::NotNow(_) => "exec.not_now",
            Self::Failed(_) => "exec.failed",
            Self::Forbidden(_) => "exec.forbidden",
            Self::Unreachable(_) => "exec.unreachable",
            Self::Spawn { .. } => "exec.spawn",
            Self::Io { .. } => "exec.io",
        }
    }
}
