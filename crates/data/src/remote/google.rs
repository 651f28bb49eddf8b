//! Credentials of Google for machines in its cloud: a token of the service account of the machine or pod, from the metadata server. Outside of the
//! cloud there is none, which is found out within seconds.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::CredentialProvider;
use object_store::gcp::GcpCredential;
use reqwest::Client;
use serde::Deserialize;

/// The metadata server by name, and by address for pods without a name service.
const HOSTS: [&str; 2] = ["metadata.google.internal", "169.254.169.254"];
const PATH: &str = "computeMetadata/v1/instance/service-accounts/default/token";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum bytes of a response.
const MAX_BYTES: usize = 1 << 16;
/// Tokens are replaced this long before they expire.
const MIN_TTL: Duration = Duration::from_secs(240);
/// Time during which a failure is the result of further requests, too.
const FAILURE_TTL: Duration = Duration::from_secs(10);

/// There are no credentials. The reason is part of the message.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "no credentials of Google were found ({0}); set 'credentialpath' of the remote or GOOGLE_APPLICATION_CREDENTIALS to a file with a key, run \
     `gcloud auth application-default login`, or set 'allow_anonymous_login' for a public bucket"
)]
struct Missing(String);

#[derive(Deserialize)]
struct Token {
    access_token: String,
    /// Seconds.
    expires_in: u64,
}

type Known = (Instant, Result<Arc<GcpCredential>, Missing>);

/// The service account of this machine.
#[derive(Debug)]
pub(super) struct ServiceAccount {
    http: Client,
    hosts: Vec<String>,
    /// The last result, and until when it is valid.
    known: tokio::sync::Mutex<Option<Known>>,
}

impl ServiceAccount {
    /// `host` is the metadata server (`GCE_METADATA_HOST`); Google's by default.
    pub(super) fn new(tls: rustls::ClientConfig, host: Option<String>) -> reqwest::Result<Self> {
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            .build()?;
        let hosts = host.map_or_else(|| HOSTS.map(str::to_owned).to_vec(), |host| vec![host]);
        Ok(Self { http, hosts, known: tokio::sync::Mutex::default() })
    }

    async fn token(&self, host: &str) -> Result<Token, String> {
        let request = self.http.get(format!("http://{host}/{PATH}")).header("Metadata-Flavor", "Google");
        let failed = |error: reqwest::Error| super::http::cause(&error);
        let mut response = request.send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_BYTES {
                return Err("the response is too large".into());
            }
        }
        serde_json::from_slice(&body).map_err(|_| "the response is no token".into())
    }

    async fn request(&self) -> Known {
        let mut reasons = Vec::new();
        for host in &self.hosts {
            match self.token(host).await {
                Ok(token) => {
                    let ttl = Duration::from_secs(token.expires_in.min(86_400)).saturating_sub(MIN_TTL);
                    return (Instant::now() + ttl, Ok(Arc::new(GcpCredential { bearer: token.access_token })));
                }
                Err(reason) => reasons.push(format!("{host}: {reason}")),
            }
        }
        (Instant::now() + FAILURE_TTL, Err(Missing(reasons.join("; "))))
    }

    async fn credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        // Concurrent requests wait for the first one.
        let mut known = self.known.lock().await;
        let result = match known.as_ref().filter(|(until, _)| Instant::now() < *until) {
            Some((_, result)) => result.clone(),
            None => known.insert(self.request().await).1.clone(),
        };
        result.map_err(|missing| object_store::Error::Unauthenticated { path: String::new(), source: missing.into() })
    }
}

impl CredentialProvider for ServiceAccount {
    type Credential = GcpCredential;

    fn get_credential<'a, 'async_trait>(
        &'a self,
    ) -> Pin<Box<dyn Future<Output = object_store::Result<Arc<GcpCredential>>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.credential())
    }
}

#[cfg(test)]
mod tests {
    use slipway_core::tls::{self, Trust};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn account(host: String) -> ServiceAccount {
        ServiceAccount::new(tls::client(Trust::System).unwrap(), Some(host)).unwrap()
    }

    #[tokio::test]
    async fn without_a_metadata_server_it_fails_within_seconds() {
        // It accepts connections and never responds.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let account = account(silent.local_addr().unwrap().to_string());
        let started = Instant::now();
        let error = account.get_credential().await.unwrap_err();
        assert!(started.elapsed() < REQUEST_TIMEOUT * 3, "{:?}", started.elapsed());
        assert!(error.to_string().contains("credentialpath"), "{error}");
        let started = Instant::now();
        assert!(account.get_credential().await.is_err());
        assert!(started.elapsed() < CONNECT_TIMEOUT, "a failure is not repeated for each file");
    }

    #[tokio::test]
    async fn the_token_of_the_machine_is_used_until_it_expires() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let account = account(listener.local_addr().unwrap().to_string());
        let server = tokio::spawn(async move {
            let mut requests = 0;
            for ttl in [0, 3600] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                assert!(String::from_utf8_lossy(&request[..read]).to_lowercase().contains("metadata-flavor: google"));
                requests += 1;
                let body = format!(r#"{{"access_token":"token-{requests}","expires_in":{ttl},"token_type":"Bearer"}}"#);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        let mut tokens = Vec::new();
        for _ in 0..3 {
            tokens.push(account.get_credential().await.unwrap().bearer.clone());
        }
        assert_eq!(tokens, ["token-1", "token-2", "token-2"]);
        server.await.unwrap();
    }
}
