//! The error type of this crate.

use slipway_core::Explain;

use crate::cluster::ClusterError;

/// An error of the node agent.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the error messages describe the variants
pub enum NodeError {
    #[error("the configuration {file}: {reason}")]
    Config { file: String, reason: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Invalid(String),
    #[error("the kubelet does not respond at {path}: {reason}")]
    Kubelet { path: String, reason: String },
    #[error("the NVIDIA driver is not available: {0}")]
    NoDriver(String),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Gpu(#[from] slipway_gpu::GpuError),
    #[error(transparent)]
    Store(#[from] slipway_store::StoreError),
}

impl NodeError {
    /// Wraps an I/O error; `what` is the path or the step that failed.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl Explain for NodeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } => "node.config",
            Self::Io { .. } => "node.io",
            Self::Invalid(_) => "node.invalid",
            Self::Kubelet { .. } => "node.kubelet",
            Self::NoDriver(_) => "node.no_driver",
            Self::Cluster(e) => e.code(),
            Self::Gpu(e) => e.code(),
            Self::Store(e) => e.code(),
        }
    }
}
