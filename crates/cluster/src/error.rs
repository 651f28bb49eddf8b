//! What can go wrong on the way to a cluster.

use slipway_core::Explain;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the message says it
pub enum ClusterError {
    #[error("{file}: {reason}")]
    Spec { file: String, reason: String },
    #[error("the secret {name} cannot be read: {reason}")]
    Secret { name: String, reason: String },
    #[error("these commands of the cluster's file would run on this machine, and nobody agreed to them:{0}")]
    Untrusted(String),
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    #[error("{host} shows another host key than before: {reason}")]
    HostKey { host: String, reason: String },
    #[error("{host}: sudo refuses: {reason}")]
    Sudo { host: String, reason: String },
    #[error("{host}: {reason}")]
    Host { host: String, reason: String },
    #[error("{host} would go from MicroK8s {now} to {then}, which is an upgrade of the cluster")]
    Upgrade { host: String, now: String, then: String },
    #[error("{provider}: {message}{}", match .status { 0 => String::new(), n => format!(" (status {n})") })]
    Provider { provider: String, status: u16, message: String },
    #[error("{0}")]
    Foreign(String),
    #[error("another apply works on this cluster: {0}")]
    Locked(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{failed} of {steps} steps failed: {first}")]
    Failed { failed: usize, steps: usize, first: String },
}

impl ClusterError {
    /// A file or folder that cannot be read or written.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl Explain for ClusterError {
    fn code(&self) -> &'static str {
        match self {
            Self::Spec { .. } => "cluster.spec",
            Self::Secret { .. } => "cluster.secret",
            Self::Untrusted(_) => "cluster.untrusted",
            Self::Unreachable { .. } => "cluster.unreachable",
            Self::HostKey { .. } => "cluster.host_key",
            Self::Sudo { .. } => "cluster.sudo",
            Self::Host { .. } => "cluster.host",
            Self::Upgrade { .. } => "cluster.upgrade",
            Self::Provider { status: 401 | 403, .. } => "cluster.provider_auth",
            Self::Provider { .. } => "cluster.provider",
            Self::Foreign(_) => "cluster.foreign",
            Self::Locked(_) => "cluster.locked",
            Self::Io { .. } => "cluster.io",
            Self::Failed { .. } => "cluster.failed",
        }
    }
}
