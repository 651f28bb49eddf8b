//! The errors of this crate.

use slipway_core::Explain;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum ClusterError {
    #[error("{file}: {reason}")]
    Spec { file: String, reason: String },
    #[error("the secret {name} cannot be read: {reason}")]
    Secret { name: String, reason: String },
    #[error("these commands of the cluster file would run on this machine, and you have not allowed them:{0}")]
    Untrusted(String),
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    #[error("the SSH host key of {host} is not the known one: {reason}")]
    HostKey { host: String, reason: String },
    #[error("{host}: sudo failed: {reason}")]
    Sudo { host: String, reason: String },
    #[error("{host}: {reason}")]
    Host { host: String, reason: String },
    #[error("{host} would go from Kubernetes {now} to {then}, which is an upgrade of the cluster")]
    Upgrade { host: String, now: String, then: String },
    #[error("{provider}: {message}{}", match .status { 0 => String::new(), n => format!(" (status {n})") })]
    Provider { provider: String, status: u16, message: String },
    #[error("{0}")]
    Foreign(String),
    #[error("another command is changing this cluster: {0}")]
    Locked(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{failed} of {steps} steps failed: {first}")]
    Failed { failed: usize, steps: usize, first: String },
}

impl ClusterError {
    /// Wraps an I/O error; `what` is the path, or another name of what could not be read or written.
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
