//! Clients of buckets and of web servers, with slipway's own TLS settings.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::http::HttpBuilder;
use object_store::{ClientOptions, ObjectStore};
use slipway_core::tls::{self, Trust};

use crate::StoreError;

/// Timeout for connecting to the service.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a single read: how long the service may send nothing during a response.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Creates HTTP clients with slipway's own TLS settings, because `object_store`'s default client fails to start on a system without
/// root certificates.
#[derive(Debug)]
pub(crate) struct HttpFactory {
    tls: rustls::ClientConfig,
    /// Whether `http:` URLs are allowed, too.
    allow_http: bool,
}

impl HttpConnector for HttpFactory {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .https_only(!self.allow_http)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|source| object_store::Error::Generic { store: "HTTP", source: Box::new(source) })?;
        Ok(HttpClient::new(client))
    }
}

impl HttpFactory {
    /// A factory with the system's certificate authorities.
    pub(crate) fn new(allow_http: bool) -> Result<Self, tls::TlsError> {
        Ok(Self { tls: tls::client(Trust::System)?, allow_http })
    }
}

/// The settings of an S3 bucket. What is not set comes from the environment variables of Amazon's own tools (`AWS_ACCESS_KEY_ID` …).
#[derive(Debug, Clone, Default)]
pub struct S3Settings {
    /// The URL of the service, for services other than Amazon's; plain http is allowed if it is given here.
    pub endpoint: Option<String>,
    /// The region, such as `eu-central-1`.
    pub region: Option<String>,
    /// The id of the access key.
    pub access_key_id: Option<String>,
    /// The secret of the access key.
    pub secret_access_key: Option<String>,
    /// The token of temporary credentials.
    pub session_token: Option<String>,
    /// Whether requests are not signed.
    pub anonymous: bool,
}

/// Opens a bucket of S3.
///
/// # Errors
/// [`StoreError::Url`] or [`StoreError::Remote`] for an invalid name or setting.
pub fn s3(bucket: &str, settings: &S3Settings) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let plain = |url: &str| url.starts_with("http://");
    let from_env = std::env::var("AWS_ENDPOINT_URL").is_ok_and(|url| plain(&url));
    let allow_http = settings.endpoint.as_deref().map_or(from_env, plain);
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_allow_http(allow_http);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(id) = &settings.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = &settings.secret_access_key {
        builder = builder.with_secret_access_key(secret);
    }
    if let Some(token) = &settings.session_token {
        builder = builder.with_token(token);
    }
    let http = HttpFactory::new(allow_http).map_err(|e| StoreError::Url(e.to_string()))?;
    let store = builder.with_skip_signature(settings.anonymous).with_http_connector(http).build();
    let what = format!("s3://{bucket}");
    store.map(|store| Arc::new(store) as Arc<dyn ObjectStore>).map_err(|source| StoreError::Remote { what, source })
}

/// Opens a folder of a web server, for reading.
///
/// # Errors
/// [`StoreError::Url`] or [`StoreError::Remote`] for an invalid URL.
pub fn http(url: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let allow_http = url.starts_with("http://");
    let http = HttpFactory::new(allow_http).map_err(|e| StoreError::Url(e.to_string()))?;
    let options = ClientOptions::new().with_allow_http(allow_http);
    let store = HttpBuilder::new().with_url(url).with_client_options(options).with_http_connector(http).build();
    let what = url.to_owned();
    store.map(|store| Arc::new(store) as Arc<dyn ObjectStore>).map_err(|source| StoreError::Remote { what, source })
}
