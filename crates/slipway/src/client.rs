//! The client of the control plane: over HTTP, or by calling the same routers in this process if no server is running.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client as HyperClient, ResponseFuture, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;
use slipway_access::Guard;
use slipway_core::config::{Config, Origin};
use slipway_core::tls::{self, TlsError};
use slipway_server::{Addresses, Platform, Stores};
use tower::ServiceExt;

use crate::client_error::ClientError;
use crate::credentials::{Access, ServerUrl, Sources, Token};
use crate::running_server::running_server;

/// Maximum size of a response that is held in memory.
const MAX_RESPONSE_BYTES: usize = 256 * 1024 * 1024;
/// The usual type of a request's body.
const JSON: &str = "application/json";
/// Time limit of a request, including the response body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Time limit for establishing a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

enum Transport {
    Remote { base: String, http: Box<Http>, token: Option<Token> },
    InProcess(Router),
}

/// An HTTP client that never follows redirects, so that a token is sent only to the server it belongs to.
enum Http {
    Plain(HyperClient<HttpConnector, Body>),
    Tls(HyperClient<HttpsConnector<HttpConnector>, Body>),
}

impl Http {
    fn new(url: &ServerUrl, access: &Access) -> Result<Self, TlsError> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let builder = HyperClient::builder(TokioExecutor::new());
        if !url.is_https {
            return Ok(Self::Plain(builder.build(tcp)));
        }
        tcp.enforce_http(false);
        let config = tls::client(access.trust())?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
        Ok(Self::Tls(builder.build(connector.wrap_connector(tcp))))
    }

    fn request(&self, request: Request<Body>) -> ResponseFuture {
        match self {
            Self::Plain(client) => client.request(request),
            Self::Tls(client) => client.request(request),
        }
    }
}

/// A client of the control plane.
pub(crate) struct Client {
    transport: Transport,
    /// The addresses of the server, if it is the running server of the state folder.
    pub(crate) addresses: Option<Addresses>,
}

/// The configured stores of a server: database, objects and upload limits.
///
/// # Errors
/// If a limit is not a number.
pub(crate) fn stores(config: &Config) -> Result<Stores, crate::Failure> {
    let get = |key| config.get(key).map(str::to_owned);
    let mut uploads = slipway_store::Limits::default();
    for (key, limit) in
        [("max-artifact-bytes", &mut uploads.max_object_bytes), ("min-free-bytes", &mut uploads.min_free_bytes)]
    {
        *limit = bytes_setting(config, key)?.unwrap_or(*limit);
    }
    let data_hosts = list_setting(config, "data-hosts");
    Ok(Stores { database: get("database"), objects: get("objects"), uploads, data_hosts })
}

/// The values of a comma-separated setting.
pub(crate) fn list_setting(config: &Config, key: &str) -> Vec<String> {
    let text = config.get(key).unwrap_or_default();
    text.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
}

/// A setting that is a number of bytes.
///
/// # Errors
/// If it is not a number.
pub(crate) fn bytes_setting(config: &Config, key: &str) -> Result<Option<u64>, crate::Failure> {
    let Some(text) = config.get(key) else { return Ok(None) };
    let invalid =
        || crate::Failure::with_code(format!("{key}: '{text}' is not a number of bytes"), "config.invalid", 2);
    text.parse().map(Some).map_err(|_| invalid())
}

impl Client {
    /// Creates a client of the server at `url`.
    pub(crate) fn new(url: &ServerUrl, access: Access) -> Result<Self, ClientError> {
        let http = Box::new(Http::new(url, &access)?);
        Ok(Self { transport: Transport::Remote { base: url.base.clone(), http, token: access.token }, addresses: None })
    }

    /// Creates a client of the running server of this state folder.
    pub(crate) fn for_own_server(addresses: Addresses, sources: &Sources) -> Result<Self, ClientError> {
        let url = ServerUrl::parse(&addresses.control_url())?;
        let access = Access::resolve(&url, &Origin::Default, sources)?;
        Ok(Self { addresses: Some(addresses), ..Self::new(&url, access)? })
    }

    /// Connects to the configured server, else to the running server of the state folder, else opens the state folder in this process.
    pub(crate) async fn connect(config: &Config, insecure: bool) -> Result<Self, crate::Failure> {
        let sources = Sources::from_config(config, insecure)?;
        if let Some(url) = config.get("server") {
            let named_by = config.origin("server").unwrap_or(&Origin::Default);
            let url = ServerUrl::parse(url)?;
            let access = Access::resolve(&url, named_by, &sources)?;
            return Ok(Self::new(&url, access)?);
        }
        let home = &sources.home;
        if let Some(addresses) = running_server(home) {
            return Ok(Self::for_own_server(addresses, &sources)?);
        }
        tracing::info!(home = %home.root().display(), "no server is running; using the state folder in this process");
        let runtime = config.get("runtime").unwrap_or("auto").parse().map_err(crate::Failure::from)?;
        let library = config.get("onnxruntime").map(Into::into);
        let platform = Platform::open(home, &stores(config)?, runtime, library, None).await?;
        Ok(Self {
            transport: Transport::InProcess(Guard::in_process().protect(platform.control_routes(None))),
            addresses: None,
        })
    }

    /// Whether the client calls the routers in this process instead of a server.
    pub(crate) fn is_in_process(&self) -> bool {
        matches!(self.transport, Transport::InProcess(_))
    }

    /// Sends a request and returns the status and the body, which is not read yet.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Body), ClientError> {
        let base = self.base_url();
        let failed = |e: String| ClientError::Unreachable(base.to_owned(), e);
        let mut request = Request::builder().method(method).uri(format!("{base}{path}"));
        request = request.header(header::CONTENT_TYPE, content_type);
        if let Transport::Remote { token: Some(token), .. } = &self.transport {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        let request = request.body(Body::from(body)).map_err(|e| failed(e.to_string()))?;
        match &self.transport {
            Transport::Remote { http, .. } => {
                let response = http.request(request).await.map_err(|e| match tls::refused(&e) {
                    Some(refused) => ClientError::Certificate { server: base.to_owned(), refused },
                    None if tls::is_not_tls(&e) => {
                        failed("the server does not speak TLS; the URL may have to begin with http://".into())
                    }
                    None => failed(root_cause(&e)),
                })?;
                Ok((response.status(), Body::new(response.into_body())))
            }
            Transport::InProcess(router) => {
                let response = router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
                Ok((response.status(), response.into_body()))
            }
        }
    }

    /// The URL that request paths are appended to.
    fn base_url(&self) -> &str {
        match &self.transport {
            Transport::Remote { base, .. } => base,
            Transport::InProcess(_) => "http://slipway",
        }
    }

    /// Sends a request and reads the complete body.
    async fn send_and_read(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let failed = |e: String| ClientError::Unreachable(self.base_url().to_owned(), e);
        let call = async {
            let (status, body) = self.send(method, path, content_type, body).await?;
            let bytes = Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(|e| failed(e.to_string()))?;
            Ok((status, bytes.to_bytes().to_vec()))
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
            Ok(done) => done,
            Err(_) => Err(failed(format!("no response within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }

    /// Sends a GET request without a time limit and passes the bytes of the response to `on_bytes` as they arrive, until it returns
    /// false.
    pub(crate) async fn follow(&self, path: &str, mut on_bytes: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
        let (status, mut body) = self.send(Method::GET, path, JSON, Vec::new()).await?;
        if !status.is_success() {
            let bytes = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
            return Err(response_error(path, status, &bytes.map(|b| b.to_bytes()).unwrap_or_default()));
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ClientError::Unreachable(self.base_url().to_owned(), e.to_string()))?;
            if let Some(bytes) = frame.data_ref()
                && !on_bytes(bytes)
            {
                break;
            }
        }
        Ok(())
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        self.call_with(method, path, JSON, body).await
    }

    async fn call_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let (status, bytes) = self.send_and_read(method, path, content_type, body).await?;
        if !status.is_success() {
            return Err(response_error(path, status, &bytes));
        }
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|e| ClientError::ErrorResponse {
            message: format!("the server's response to {path} is invalid: {e}"),
            hint: Some("Use a client with the same version as the server.".into()),
        })
    }

    /// Sends a GET request and parses the JSON response.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Vec::new()).await
    }

    /// Sends a POST request with a JSON body and parses the JSON response.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, ClientError> {
        self.call(Method::POST, path, body.to_string().into_bytes()).await
    }

    /// Sends a POST request with a text body and parses the JSON response.
    pub(crate) async fn post_text<T: DeserializeOwned>(&self, path: &str, body: String) -> Result<T, ClientError> {
        self.call(Method::POST, path, body.into_bytes()).await
    }

    /// Sends a form with one file (`multipart/form-data`) and parses the JSON response.
    pub(crate) async fn post_file<T: DeserializeOwned>(
        &self,
        path: &str,
        field: &str,
        file_name: &str,
        content: &[u8],
    ) -> Result<T, ClientError> {
        let boundary = slipway_core::ids::hex32();
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{file_name}\"\r\n\r\n"
        );
        let body = [head.as_bytes(), content, format!("\r\n--{boundary}--\r\n").as_bytes()].concat();
        let content_type = format!("multipart/form-data; boundary={boundary}");
        self.call_with(Method::POST, path, &content_type, body).await
    }

    /// Sends a DELETE request.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.call::<Value>(Method::DELETE, path, Vec::new()).await.map(drop)
    }
}

/// Converts an error response to a [`ClientError`], with the message of its body if there is one.
fn response_error(path: &str, status: StatusCode, body: &[u8]) -> ClientError {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let message = text("message").or_else(|| text("error"));
    let message = message.unwrap_or_else(|| {
        let plain = std::str::from_utf8(body).ok().map(str::trim).filter(|text| is_one_line(text));
        plain.map_or_else(
            || format!("the server responded to {path} with {status}"),
            |plain| format!("the server responded with {status}: {plain}"),
        )
    });
    match status {
        StatusCode::UNAUTHORIZED => ClientError::Unauthenticated,
        StatusCode::FORBIDDEN => ClientError::Forbidden(message),
        _ => ClientError::ErrorResponse { message, hint: text("hint") },
    }
}

/// Whether a response body is a one-line message that is safe to print, and not an HTML page.
fn is_one_line(text: &str) -> bool {
    (1..200).contains(&text.len()) && !text.starts_with('<') && !text.contains(char::is_control)
}

/// The message of the innermost error, which is the most specific one.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Percent-encodes a path segment or a query value.
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use slipway_core::Explain;
    use slipway_core::home::Home;
    use slipway_core::tls::Fingerprint;
    use slipway_server::{CertificateSource, Limits, Options, Server};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A running server with its own state folder; stopped when dropped.
    struct Running {
        folder: PathBuf,
        addresses: Addresses,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
    }

    impl Running {
        async fn start(certificate: impl FnOnce(&std::path::Path) -> Option<CertificateSource>) -> Self {
            let folder = std::env::temp_dir().join(format!("slipway-client-{}", slipway_core::ids::hex32()));
            std::fs::create_dir_all(&folder).unwrap();
            let any = "127.0.0.1:0".parse().unwrap();
            let options = Options {
                home: Home::at(folder.join("home")),
                stores: Stores::default(),
                control: any,
                inference: any,
                grpc: any,
                gateway_only: false,
                token_file: None,
                no_auth: false,
                run_environment: Vec::new(),
                pipeline_images: Vec::new(),
                data_cache_bytes: None,
                hosts: Vec::new(),
                cors_origins: Vec::new(),
                certificate: certificate(&folder),
                limits: Limits::default(),
                runtime: "builtin".parse().unwrap(),
                onnxruntime: None,
                cluster: None,
            };
            let server = Server::bind(options).await.unwrap();
            let addresses = server.addresses.clone();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            tokio::spawn(server.run(async {
                let _ = stopped.await; // An error means that the sender was dropped, which stops the server too.
            }));
            Self { folder, addresses, stop: Some(stop) }
        }

        fn sources(&self) -> Sources {
            Sources {
                home: Home::at(self.folder.join("home")),
                token: None,
                saved: None,
                fingerprint: None,
                authorities: None,
                insecure: false,
            }
        }

        /// Requests the status as a client does whose `--server` is `url`.
        async fn get_status(&self, url: &str, sources: &Sources) -> Result<Value, ClientError> {
            let url = ServerUrl::parse(url).unwrap();
            Client::new(&url, Access::resolve(&url, &Origin::Flag, sources)?)?.get("/api/v1/status").await
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            drop(self.stop.take());
            let _ = std::fs::remove_dir_all(&self.folder); // A leftover folder in /tmp must not fail the test.
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn own_server_is_trusted_by_its_fingerprint_and_others_by_explicit_trust() {
        let server = Running::start(|_| Some(CertificateSource::SelfSigned)).await;
        let home = server.sources().home;
        let own = running_server(&home).unwrap();
        assert!(own.tls && own.fingerprint.is_some() && own.control_url().starts_with("https://127.0.0.1:"));
        let status: Value =
            Client::for_own_server(own.clone(), &server.sources()).unwrap().get("/api/v1/status").await.unwrap();
        assert!(status["version"].is_string(), "{status}");

        // A client without access to the state folder.
        let token = Token::from_text(&slipway_server::auth::read_home_token(&home).unwrap());
        let home_of_another = Home::at(server.folder.join("nothing"));
        let elsewhere = || Sources { home: home_of_another.clone(), token: token.clone(), ..server.sources() };
        let url = own.control_url();
        let refused = server.get_status(&url, &elsewhere()).await.unwrap_err();
        assert!(refused.to_string().contains(&own.fingerprint.unwrap().to_string()), "{refused}");
        let crate::Failure::Error { code, exit, hint, .. } = crate::Failure::from(refused) else { unreachable!() };
        assert_eq!((code, exit), ("tls.certificate", 5));
        assert!(hint.unwrap().contains("--tls-fingerprint"));
        let pinned = Sources { fingerprint: own.fingerprint, ..elsewhere() };
        server.get_status(&url, &pinned).await.unwrap();
        let mismatched = Sources { fingerprint: Some(Fingerprint::from_der(b"another")), ..elsewhere() };
        assert_eq!(server.get_status(&url, &mismatched).await.unwrap_err().code(), "tls.certificate");
        let authority = Some(home.root().join("tls/certificate.pem"));
        let trusting = Sources { authorities: authority, ..elsewhere() };
        server.get_status(&url, &trusting).await.unwrap();
        server.get_status(&url.replace("127.0.0.1", "localhost"), &trusting).await.unwrap();

        let plain = server.get_status(&url.replace("https", "http"), &elsewhere()).await.unwrap_err().to_string();
        assert!(plain.contains("400") && plain.contains("https://"), "{plain}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn renewed_certificate_is_published_to_local_clients() {
        let write = |folder: &std::path::Path| {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate =
                rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
            std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
            std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
            Fingerprint::from_der(certificate.der())
        };
        let server = Running::start(|folder| {
            write(folder);
            Some(CertificateSource::Files { certificate: folder.join("tls.crt"), key: folder.join("tls.key") })
        })
        .await;
        let old = server.addresses.fingerprint;
        let new = write(&server.folder);
        let published = async {
            while running_server(&server.sources().home).and_then(|a| a.fingerprint) != Some(new) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), published).await.expect("the new fingerprint is published");
        assert_ne!(old, Some(new));
        let own = running_server(&server.sources().home).unwrap();
        let _: Value = Client::for_own_server(own, &server.sources()).unwrap().get("/api/v1/status").await.unwrap();
    }

    #[test]
    fn process_with_a_reused_pid_is_not_the_server() {
        let folder = std::env::temp_dir().join(format!("slipway-client-{}", slipway_core::ids::hex32()));
        let home = Home::at(&folder);
        home.create().unwrap();
        let address = "127.0.0.1:7070".parse().unwrap();
        let addresses = Addresses {
            pid: std::process::id(),
            control: address,
            inference: address,
            grpc: address,
            tls: false,
            fingerprint: None,
            version: "0".into(),
            started: 0,
        };
        std::fs::write(home.server_file(), serde_json::to_vec(&addresses).unwrap()).unwrap();
        assert!(running_server(&home).is_none(), "there is no lock file");
        let lock = std::fs::File::create(home.lock_file()).unwrap();
        assert!(running_server(&home).is_some());
        drop(lock);
        assert!(running_server(&home).is_none(), "this process exists, but it is not the server");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn https_to_a_plaintext_server_is_reported_as_such() {
        let server = Running::start(|_| None).await;
        let url = server.addresses.control_url().replace("http", "https");
        let error = server.get_status(&url, &server.sources()).await.unwrap_err();
        assert!(error.code() == "server.unreachable" && error.to_string().contains("does not speak TLS"), "{error}");
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let (configured, other) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("http://{}", configured.local_addr().unwrap());
        let location = format!("http://{}/", other.local_addr().unwrap());
        let received = tokio::spawn(async move {
            let (mut stream, _) = configured.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let response =
                format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let sources = Sources {
            home: Home::at("/nonexistent"),
            token: Token::from_text("of-the-environment"),
            saved: None,
            fingerprint: None,
            authorities: None,
            insecure: false,
        };
        let url = ServerUrl::parse(&url).unwrap();
        let client = Client::new(&url, Access::resolve(&url, &Origin::Flag, &sources).unwrap()).unwrap();
        let error = client.get::<Value>("/api/v1/status").await.unwrap_err();
        assert!(error.to_string().contains("307"), "{error}");
        assert!(
            received.await.unwrap().contains("Bearer of-the-environment"),
            "the configured server receives the token"
        );
        let followed = tokio::time::timeout(Duration::from_millis(100), other.accept()).await;
        assert!(followed.is_err(), "the redirect target receives no request");
    }
}
