//! Errors of the client of the control plane, and of the credentials that it sends.

use std::path::PathBuf;

use slipway_core::Explain;
use slipway_core::tls::{Refused, TlsError};

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no slipway server responds at {0}: {1}")]
    Unreachable(String, String),
    #[error("the server requires a token")]
    Unauthenticated,
    #[error("{0}")]
    Forbidden(String),
    #[error("{message}")]
    ErrorResponse { message: String, hint: Option<String> },
    #[error("'{0}' is not a URL of a slipway server, such as https://HOST:PORT; a user name or a query is not allowed")]
    Url(String),
    #[error("{server} is not trusted: {refused}")]
    Certificate { server: String, refused: Refused },
    #[error("the token for {0} was not sent: it would cross the network unencrypted")]
    Plaintext(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl Explain for ClientError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(..) | Self::Url(_) => "server.unreachable",
            Self::Unauthenticated => "auth.required",
            Self::Forbidden(_) => "auth.forbidden",
            Self::ErrorResponse { .. } => "server.answered",
            Self::Certificate { .. } => "tls.certificate",
            Self::Plaintext(_) => "tls.plaintext",
            Self::Tls(e) => e.code(),
            Self::Credentials(e) => e.code(),
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::ErrorResponse { hint: Some(hint), .. } => Some(hint.clone()),
            _ => slipway_core::explain::find(self.code()).map(|t| t.remedy.to_owned()),
        }
    }
}

/// Saved credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("{} can be read by other users (mode {mode:03o}), so its tokens are not used", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} belongs to another user, so its tokens are not used", path.display())]
    OtherOwner { path: PathBuf },
    #[error("{} cannot be used: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    // The parser's message is not included, because it may quote a token from the file.
    #[error("{} does not have the format that `slipway login` writes", path.display())]
    Malformed { path: PathBuf },
    #[error("there is no folder for credentials: neither XDG_CONFIG_HOME nor HOME is set")]
    NoConfigFolder,
}

impl Explain for CredentialsError {
    fn code(&self) -> &'static str {
        "auth.credentials"
    }
}
