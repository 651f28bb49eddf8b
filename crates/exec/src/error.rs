//! Errors of executors.

use slipway_core::Explain;

/// Why an executor refused a request or failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The manifest cannot be used.
    #[error("{0}")]
    Manifest(String),
    /// The run asks for more than the machine or the cluster has.
    #[error("{0}")]
    TooLarge(String),
    /// There is no such run, attempt or log.
    #[error("{0}")]
    NotFound(String),
    /// There is a run of that name already.
    #[error("{0}")]
    Exists(String),
    /// The run is not in a state in which this can be done.
    #[error("{0}")]
    NotNow(String),
    /// The run was waited for, and ended without success.
    #[error("{0}")]
    Failed(String),
    /// The caller is not allowed to do this.
    #[error("{0}")]
    Forbidden(String),
    /// The cluster, or the tracking store, does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// A process could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file or folder cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
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
