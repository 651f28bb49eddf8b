//! Why a server does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use slipway_core::Explain;

/// A reason not to start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another server holds the state folder.
    #[error("another slipway server uses {}{}", path.display(), pid.map(|p| format!(" (process {p})")).unwrap_or_default())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The other server, if it is known.
        pid: Option<u32>,
    },
    /// The state folder cannot be used.
    #[error("the state folder {} cannot be used: {source}", path.display())]
    Home {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address beyond loopback with `--no-auth`.
    #[error("refusing to listen on {0} with --no-auth: everybody who can reach it could do everything")]
    Unauthenticated(SocketAddr),
    /// The address is taken.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The token file cannot be used.
    #[error("the token file {} cannot be used: {reason}", path.display())]
    TokenFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A gateway alone, with nothing to share.
    #[error("a gateway alone has to share its database and objects with a control plane")]
    NotShared,
    /// A certificate or a key cannot be used.
    #[error(transparent)]
    Tls(#[from] slipway_core::tls::TlsError),
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] slipway_store::StoreError),
    /// Tracking does not open.
    #[error(transparent)]
    Track(#[from] slipway_track::Error),
    /// Runs cannot be carried out.
    #[error(transparent)]
    Exec(#[from] slipway_exec::ExecError),
    /// The gateway does not open.
    #[error(transparent)]
    Serve(#[from] slipway_serve::Error),
}

impl Explain for ServerError {
    fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "home.locked",
            Self::Home { .. } => "home.unusable",
            Self::Unauthenticated(_) => "listen.unauthenticated",
            Self::Listen { .. } => "listen.in_use",
            Self::TokenFile { .. } => "auth.token_file",
            Self::NotShared => "store.not_shared",
            Self::Tls(e) => e.code(),
            Self::Store(e) => e.code(),
            Self::Track(e) => Explain::code(e),
            Self::Exec(e) => e.code(),
            Self::Serve(e) => e.code(),
        }
    }
}
