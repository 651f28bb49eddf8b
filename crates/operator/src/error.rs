//! Errors of requests to a cluster.

use slipway_core::Explain;
use slipway_objects::{Error, Status};

/// Why a request to a cluster failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum KubeError {
    #[error("no cluster is configured: {0}")]
    NoConfig(String),
    #[error("request to the API server failed: {0}")]
    Unreachable(String),
    #[error("the API server rejected the request: {message} ({code})")]
    Refused { code: u16, message: String },
    #[error("{0}")]
    Invalid(String),
}

impl Explain for KubeError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoConfig(_) => "kube.no_config",
            Self::Unreachable(_) => "kube.unreachable",
            Self::Refused { .. } => "kube.refused",
            Self::Invalid(_) => "kube.invalid",
        }
    }
}

impl From<kube::Error> for KubeError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { code: status.code, message: status.message },
            other => {
                // Add the whole chain: the outermost error hides the address and the cause.
                let mut text = other.to_string();
                let mut source = std::error::Error::source(&other);
                while let Some(inner) = source {
                    text = format!("{text}: {inner}");
                    source = inner.source();
                }
                Self::Unreachable(text)
            }
        }
    }
}

impl From<KubeError> for Error {
    fn from(error: KubeError) -> Self {
        match error {
            KubeError::Unreachable(message) => Self::Unreachable(message),
            KubeError::Refused { code, message } => Self::from_status(Status::failure(code, "", message)),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

impl From<Error> for KubeError {
    fn from(error: Error) -> Self {
        match error {
            Error::Unreachable(message) => Self::Unreachable(message),
            other => {
                let Status { code, message, .. } = other.status();
                Self::Refused { code: code.unwrap_or(500), message }
            }
        }
    }
}
