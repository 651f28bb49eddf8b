//! What can go wrong on a node.

use slipway_core::Explain;

use crate::cluster::ClusterError;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the message says it
pub enum NodeError {
    #[error("the device plugin configuration {file}: {reason}")]
    Config { file: String, reason: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Invalid(String),
    #[error("the kubelet does not answer at {path}: {reason}")]
    Kubelet { path: String, reason: String },
    #[error("the driver is not there: {0}")]
    NoDriver(String),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Gpu(#[from] slipway_gpu::GpuError),
    #[error(transparent)]
    Store(#[from] slipway_store::StoreError),
}

impl NodeError {
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
