//! Access to slipway servers that are remotes. The program that uses this crate knows the user's credentials; this crate only asks for them.

use std::fmt;
use std::sync::Arc;

use crate::error::DataError;

/// How to reach a server.
#[derive(Clone)]
pub struct ServerAccess {
    /// The token that the server gets.
    pub token: Option<String>,
    /// How its certificate is verified.
    pub tls: rustls::ClientConfig,
}

impl fmt::Debug for ServerAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerAccess").finish_non_exhaustive()
    }
}

type Find = dyn Fn(&str) -> Result<ServerAccess, DataError> + Send + Sync;

/// Finds the access to the server with a URL.
#[derive(Clone)]
pub struct Servers(Arc<Find>);

impl Servers {
    /// Finds it with a function.
    pub fn new(find: impl Fn(&str) -> Result<ServerAccess, DataError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// The access to the server of a remote.
    ///
    /// # Errors
    /// [`DataError::Config`] if the credentials cannot be used.
    pub fn find(&self, server: &str) -> Result<ServerAccess, DataError> {
        (self.0)(server)
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Servers")
    }
}

/// The URL of the slipway server, if the URL is that of a remote on one: `SERVER/api/v1/data/remotes/NAME`, or with `namespaces/NAMESPACE/`
/// before `remotes`.
pub fn server_of(url: &str) -> Option<&str> {
    let (server, path) = url.split_once("/api/v1/data/")?;
    let segments: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    matches!(segments[..], ["remotes", _] | ["namespaces", _, "remotes", _]).then_some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers_are_recognised() {
        for url in [
            "http://h:7070/api/v1/data/remotes/team",
            "http://h:7070/api/v1/data/remotes/team/",
            "http://h:7070/api/v1/data/namespaces/a/remotes/team",
        ] {
            assert_eq!(server_of(url), Some("http://h:7070"), "{url}");
        }
        for url in ["http://h/data", "http://h/api/v1/data/remotes", "http://h/api/v1/data/remotes/a/b"] {
            assert_eq!(server_of(url), None, "{url}");
        }
    }
}
