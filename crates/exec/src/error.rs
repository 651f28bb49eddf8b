//! Why a run cannot be had.

use slipway_core::Explain;

/// A refusal, or a failure, of an executor.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The manifest cannot be used.
    #[error("{0}")]
    Manifest(String),
    /// More than there is.
    #[error("{0}")]
    TooLarge(String),
    /// There is no such run, attempt or log.
    #[error("{0}")]
    NotFound(String),
    /// There is one of that name.
    #[error("{0}")]
    Exists(String),
    /// Not in the state that the run is in.
    #[error("{0}")]
    NotNow(String),
    /// It was waited for, and ended without success.
    #[error("{0}")]
    Failed(String),
    /// Whoever asked may not.
    #[error("{0}")]
    Forbidden(String),
    /// What carries runs out does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// A process could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// Which.
        program: String,
        /// Why.
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
