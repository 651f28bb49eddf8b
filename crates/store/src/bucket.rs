//! The HTTP client of buckets, with slipway's own TLS settings.

use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector};
use slipway_core::tls::{self, Trust};

/// Timeout for connecting to the service.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a single read: how long the service may send nothing during a response.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Creates HTTP clients with slipway's own TLS settings, because `object_store`'s default client fails to start on a system without
/// root certificates.
#[derive(Debug)]
pub struct HttpFactory {
    tls: rustls::ClientConfig,
    /// Whether `http:` URLs are allowed, too.
    allow_http: bool,
    connect_timeout: Duration,
    read_timeout: Duration,
}

impl HttpConnector for HttpFactory {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .https_only(!self.allow_http)
            .connect_timeout(self.connect_timeout)
            .read_timeout(self.read_timeout)
            .build()
            .map_err(|source| object_store::Error::Generic { store: "HTTP", source: Box::new(source) })?;
        Ok(HttpClient::new(client))
    }
}

impl HttpFactory {
    /// A factory with the system's certificate authorities.
    pub(crate) fn new(allow_http: bool) -> Result<Self, tls::TlsError> {
        Ok(Self::with_tls(tls::client(Trust::System)?, allow_http))
    }

    /// A factory with these TLS settings.
    pub fn with_tls(tls: rustls::ClientConfig, allow_http: bool) -> Self {
        Self { tls, allow_http, connect_timeout: CONNECT_TIMEOUT, read_timeout: READ_TIMEOUT }
    }

    /// Changes the timeouts for connecting and for each read.
    #[must_use]
    pub fn with_timeouts(self, connect: Option<Duration>, read: Option<Duration>) -> Self {
        Self {
            connect_timeout: connect.unwrap_or(self.connect_timeout),
            read_timeout: read.unwrap_or(self.read_timeout),
            ..self
        }
    }
}
