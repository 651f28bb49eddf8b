//! What can go wrong with an API server.

use slipway_core::Explain;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the message says it
pub enum KubeError {
    #[error("no cluster is configured: {0}")]
    NoConfig(String),
    #[error("the API server does not answer: {0}")]
    Unreachable(String),
    #[error("the API server refused: {message} ({code})")]
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
                // The chain says what the outermost error hides: which address, and why.
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
