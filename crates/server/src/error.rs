//! Errors of starting a server.

use std::net::SocketAddr;
use std::path::PathBuf;

use slipway_core::Explain;

/// An error of starting or running a server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another server holds the state folder.
    #[error("another slipway server uses {}{}", path.display(), pid.map(|p| format!(" (process {p})")).unwrap_or_default())]
    Locked {
        /// The state folder.
        path: PathBuf,
        /// Process id of the other server, if known.
        pid: Option<u32>,
    },
    /// The state folder cannot be used.
    #[error("the state folder {} cannot be used: {source}", path.display())]
    Home {
        /// The state folder, or a file in it.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
    },
    /// An address that is not loopback, with `--no-auth`.
    #[error("refusing to listen on {0} with --no-auth: anyone who can reach it would have full access")]
    Unauthenticated(SocketAddr),
    /// A text in `cors-origin` that is not the origin of a web page.
    #[error("cors-origin: '{0}' is not an origin, such as https://app.example or http://localhost:5173")]
    CorsOrigin(String),
    /// The server cannot listen on the address, or stopped serving it.
    #[error("cannot listen on {address} (`{option}`): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The command line option that sets the address.
        option: &'static str,
        /// The underlying error.
        source: std::io::Error,
    },
    /// The token file cannot be used.
    #[error("the token file {} cannot be used: {reason}", path.display())]
    TokenFile {
        /// The token file.
        path: PathBuf,
        /// A human-readable reason.
        reason: String,
    },
    /// A gateway-only server without a shared database and object store.
    #[error("a gateway-only server has to share its database and object store with a control plane")]
    NotShared,
    /// The data of runs cannot be used.
    #[error(transparent)]
    Data(#[from] slipway_data::DataError),
    /// A TLS certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] slipway_core::tls::TlsError),
    /// The database or object store cannot be opened.
    #[error(transparent)]
    Store(#[from] slipway_store::StoreError),
    /// The tracking store cannot be opened.
    #[error(transparent)]
    Track(#[from] slipway_track::Error),
    /// The executor of runs cannot be started.
    #[error(transparent)]
    Exec(#[from] slipway_exec::ExecError),
    /// The store of objects cannot be opened.
    #[error(transparent)]
    Objects(#[from] slipway_objects::Error),
    /// Pipelines cannot be opened.
    #[error(transparent)]
    Pipeline(#[from] slipway_pipeline::Error),
    /// The inference gateway cannot be opened.
    #[error(transparent)]
    Serve(#[from] slipway_serve::Error),
}

impl Explain for ServerError {
    fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "home.locked",
            Self::Home { .. } => "home.unusable",
            Self::Unauthenticated(_) => "listen.unauthenticated",
            Self::CorsOrigin(_) => "listen.cors_origin",
            Self::Listen { .. } => "listen.in_use",
            Self::TokenFile { .. } => "auth.token_file",
            Self::NotShared => "store.not_shared",
            Self::Tls(e) => e.code(),
            Self::Data(e) => e.code(),
            Self::Store(e) => e.code(),
            Self::Track(e) => Explain::code(e),
            Self::Exec(e) => e.code(),
            Self::Objects(e) => e.code(),
            Self::Pipeline(e) => e.code(),
            Self::Serve(e) => e.code(),
        }
    }
}
