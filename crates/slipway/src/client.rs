//! Calls to the control plane: over HTTP, or to the same routers in this process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
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
use slipway_core::Explain;
use slipway_core::config::{Config, Origin};
use slipway_core::home::Home;
use slipway_core::tls::{self, Refused, TlsError};
use slipway_server::{Addresses, Platform, Stores};
use tower::ServiceExt;

use crate::credentials::{Access, CredentialsError, ServerUrl, Sources, Token};

/// Bytes of an answer that is held in memory.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Time for one call.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a connection to be made, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no slipway server answers at {0}: {1}")]
    Unreachable(String, String),
    #[error("the server asks for a token")]
    Unauthenticated,
    #[error("{0}")]
    Forbidden(String),
    #[error("{message}")]
    Answered { message: String, hint: Option<String> },
    #[error(
        "'{0}' is not a URL of a slipway server, such as https://HOST:PORT, without a user's name and without a query"
    )]
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
            Self::Answered { .. } => "server.answered",
            Self::Certificate { .. } => "tls.certificate",
            Self::Plaintext(_) => "tls.plaintext",
            Self::Tls(e) => e.code(),
            Self::Credentials(e) => e.code(),
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Answered { hint: Some(hint), .. } => Some(hint.clone()),
            _ => slipway_core::explain::find(self.code()).map(|t| t.remedy.to_owned()),
        }
    }
}

enum Transport {
    Remote { base: String, http: Box<Http>, token: Option<Token> },
    InProcess(Router),
}

/// Neither follows redirects, so that a token goes to nobody but the server it is for.
enum Http {
    Plain(HyperClient<HttpConnector, Body>),
    Tls(HyperClient<HttpsConnector<HttpConnector>, Body>),
}

impl Http {
    fn of(url: &ServerUrl, access: &Access) -> Result<Self, TlsError> {
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

/// The control plane.
pub(crate) struct Client {
    transport: Transport,
    /// Where it is, if it listens.
    pub(crate) addresses: Option<Addresses>,
}

/// Where the configuration says that state is kept.
///
/// # Errors
/// A limit that is not a number.
pub(crate) fn stores(config: &Config) -> Result<Stores, crate::Failure> {
    let get = |key| config.get(key).map(str::to_owned);
    let mut uploads = slipway_store::Limits::default();
    for (key, limit) in
        [("max-artifact-bytes", &mut uploads.max_object_bytes), ("min-free-bytes", &mut uploads.min_free_bytes)]
    {
        if let Some(text) = config.get(key) {
            let wrong =
                || crate::Failure::known(format!("{key}: '{text}' is not a number of bytes"), "config.invalid", 2);
            *limit = text.parse().map_err(|_| wrong())?;
        }
    }
    Ok(Stores { database: get("database"), objects: get("objects"), uploads })
}

/// The server of this state folder, if one runs.
pub(crate) fn running(home: &Home) -> Option<Addresses> {
    let text = std::fs::read(home.server_file()).ok()?;
    let addresses: Addresses = serde_json::from_slice(&text).ok()?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(addresses.pid).ok()?)?;
    rustix::process::test_kill_process(pid).ok()?;
    has_open(addresses.pid, &home.lock_file()).then_some(addresses)
}

/// Whether a process has a file open. The file of a server that was killed stays, and another process may have got its number: that one
/// is neither stopped, nor does whoever listens on the port get the token.
fn has_open(pid: u32, file: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let Some(wanted) = identity(file) else { return false };
    match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(open) => open.flatten().any(|entry| identity(&entry.path()) == Some(wanted)),
        // Only a system without /proc leaves this open; of others' processes it is no business of ours.
        Err(_) => !Path::new("/proc/self/fd").exists(),
    }
}

impl Client {
    /// A client of the server at `url`.
    pub(crate) fn to(url: &ServerUrl, access: Access) -> Result<Self, ClientError> {
        let http = Box::new(Http::of(url, &access)?);
        Ok(Self { transport: Transport::Remote { base: url.base.clone(), http, token: access.token }, addresses: None })
    }

    /// A client of the server that runs with this state folder.
    pub(crate) fn own(addresses: Addresses, sources: &Sources) -> Result<Self, ClientError> {
        let url = ServerUrl::parse(&addresses.control_url())?;
        let access = Access::to(&url, &Origin::Default, sources)?;
        Ok(Self { addresses: Some(addresses), ..Self::to(&url, access)? })
    }

    /// The server that is configured, the one of this machine, or the state folder itself.
    pub(crate) async fn connect(config: &Config, insecure: bool) -> Result<Self, crate::Failure> {
        let sources = Sources::of(config, insecure)?;
        if let Some(url) = config.get("server") {
            let named_by = config.origin("server").unwrap_or(&Origin::Default);
            let url = ServerUrl::parse(url)?;
            let access = Access::to(&url, named_by, &sources)?;
            return Ok(Self::to(&url, access)?);
        }
        let home = &sources.home;
        if let Some(addresses) = running(home) {
            return Ok(Self::own(addresses, &sources)?);
        }
        tracing::info!(home = %home.root().display(), "no server runs; using the state folder in this process");
        let runtime = config.get("runtime").unwrap_or("auto").parse().map_err(crate::Failure::from)?;
        let library = config.get("onnxruntime").map(Into::into);
        let platform = Platform::open(home, &stores(config)?, runtime, library).await?;
        Ok(Self {
            transport: Transport::InProcess(Guard::in_process().protect(platform.control_routes(None))),
            addresses: None,
        })
    }

    /// Whether the routers are called in this process.
    pub(crate) fn is_in_process(&self) -> bool {
        matches!(self.transport, Transport::InProcess(_))
    }

    /// Sends a request; the answer's status, and its body still to come.
    async fn open(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Body), ClientError> {
        let place = self.place();
        let failed = |e: String| ClientError::Unreachable(place.to_owned(), e);
        let mut request = Request::builder().method(method).uri(format!("{place}{path}"));
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Transport::Remote { token: Some(token), .. } = &self.transport {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        let request = request.body(Body::from(body)).map_err(|e| failed(e.to_string()))?;
        match &self.transport {
            Transport::Remote { http, .. } => {
                let answer = http.request(request).await.map_err(|e| match tls::refused(&e) {
                    Some(refused) => ClientError::Certificate { server: place.to_owned(), refused },
                    None if tls::is_not_tls(&e) => {
                        failed("it does not speak TLS; its address may begin with http://".into())
                    }
                    None => failed(cause(&e)),
                })?;
                Ok((answer.status(), Body::new(answer.into_body())))
            }
            Transport::InProcess(router) => {
                let answer = router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
                Ok((answer.status(), answer.into_body()))
            }
        }
    }

    fn place(&self) -> &str {
        match &self.transport {
            Transport::Remote { base, .. } => base,
            Transport::InProcess(_) => "http://slipway",
        }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let failed = |e: String| ClientError::Unreachable(self.place().to_owned(), e);
        let call = async {
            let (status, body) = self.open(method, path, body).await?;
            let bytes = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|e| failed(e.to_string()))?;
            Ok((status, bytes.to_bytes().to_vec()))
        };
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(done) => done,
            Err(_) => Err(failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    /// GET of something that goes on for as long as it likes; `each` gets its bytes as they come.
    pub(crate) async fn follow(&self, path: &str, mut each: impl FnMut(&[u8])) -> Result<(), ClientError> {
        let (status, mut body) = self.open(Method::GET, path, Vec::new()).await?;
        if !status.is_success() {
            let bytes = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            return Err(refusal(path, status, &bytes.map(|b| b.to_bytes()).unwrap_or_default()));
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ClientError::Unreachable(self.place().to_owned(), e.to_string()))?;
            if let Some(bytes) = frame.data_ref() {
                each(bytes);
            }
        }
        Ok(())
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let (status, bytes) = self.send(method, path, body).await?;
        if !status.is_success() {
            return Err(refusal(path, status, &bytes));
        }
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|e| ClientError::Answered {
            message: format!("the server's answer to {path} is not understood: {e}"),
            hint: Some("Use a client of the server's version.".into()),
        })
    }

    /// GET.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Vec::new()).await
    }

    /// POST with JSON.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, ClientError> {
        self.call(Method::POST, path, body.to_string().into_bytes()).await
    }

    /// POST with a text as it is.
    pub(crate) async fn post_text<T: DeserializeOwned>(&self, path: &str, body: String) -> Result<T, ClientError> {
        self.call(Method::POST, path, body.into_bytes()).await
    }

    /// DELETE.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.call::<Value>(Method::DELETE, path, Vec::new()).await.map(drop)
    }
}

/// What an answer that is none says.
fn refusal(path: &str, status: StatusCode, body: &[u8]) -> ClientError {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let message = text("message").or_else(|| text("error"));
    let message = message.unwrap_or_else(|| {
        let plain = std::str::from_utf8(body).ok().map(str::trim).filter(|text| is_one_line(text));
        plain.map_or_else(
            || format!("the server answered {status} to {path}"),
            |plain| format!("the server answered {status}: {plain}"),
        )
    });
    match status {
        StatusCode::UNAUTHORIZED => ClientError::Unauthenticated,
        StatusCode::FORBIDDEN => ClientError::Forbidden(message),
        _ => ClientError::Answered { message, hint: text("hint") },
    }
}

/// Whether a text is a message for people, and not a page or what would change the terminal.
fn is_one_line(text: &str) -> bool {
    (1..200).contains(&text.len()) && !text.starts_with('<') && !text.contains(char::is_control)
}

/// The innermost reason, which is the one that helps.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// A path segment or query value, percent-encoded.
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

    use slipway_core::tls::Fingerprint;
    use slipway_server::{CertificateSource, Limits, Options, Server};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server with a state folder of its own, until it is dropped.
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
                hosts: Vec::new(),
                certificate: certificate(&folder),
                limits: Limits::default(),
                runtime: "tract".parse().unwrap(),
                onnxruntime: None,
                cluster: None,
            };
            let server = Server::bind(options).await.unwrap();
            let addresses = server.addresses.clone();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            tokio::spawn(server.run(async {
                let _ = stopped.await; // Dropping the sender is a stop, too.
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

        /// What a client hears that was told of this server by `--server`.
        async fn named(&self, url: &str, sources: &Sources) -> Result<Value, ClientError> {
            let url = ServerUrl::parse(url).unwrap();
            Client::to(&url, Access::to(&url, &Origin::Flag, sources)?)?.get("/api/v1/status").await
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            drop(self.stop.take());
            let _ = std::fs::remove_dir_all(&self.folder); // A folder that is left behind in /tmp fails no test.
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_own_server_is_known_by_its_certificate_and_others_by_what_is_named() {
        let server = Running::start(|_| Some(CertificateSource::SelfSigned)).await;
        let home = server.sources().home;
        let own = running(&home).unwrap();
        assert!(own.tls && own.fingerprint.is_some() && own.control_url().starts_with("https://127.0.0.1:"));
        let status: Value = Client::own(own.clone(), &server.sources()).unwrap().get("/api/v1/status").await.unwrap();
        assert!(status["version"].is_string(), "{status}");

        // Who does not have the state folder.
        let token = Token::from_text(&slipway_server::auth::read_home_token(&home).unwrap());
        let home_of_another = Home::at(server.folder.join("nothing"));
        let elsewhere = || Sources { home: home_of_another.clone(), token: token.clone(), ..server.sources() };
        let url = own.control_url();
        let refused = server.named(&url, &elsewhere()).await.unwrap_err();
        assert!(refused.to_string().contains(&own.fingerprint.unwrap().to_string()), "{refused}");
        let crate::Failure::Error { code, exit, hint, .. } = crate::Failure::from(refused) else { unreachable!() };
        assert_eq!((code, exit), ("tls.certificate", 5));
        assert!(hint.unwrap().contains("--tls-fingerprint"));
        let pinned = Sources { fingerprint: own.fingerprint, ..elsewhere() };
        server.named(&url, &pinned).await.unwrap();
        let wrong = Sources { fingerprint: Some(Fingerprint::of(b"another")), ..elsewhere() };
        assert_eq!(server.named(&url, &wrong).await.unwrap_err().code(), "tls.certificate");
        let authority = Some(home.root().join("tls/certificate.pem"));
        let trusting = Sources { authorities: authority, ..elsewhere() };
        server.named(&url, &trusting).await.unwrap();
        server.named(&url.replace("127.0.0.1", "localhost"), &trusting).await.unwrap();

        let plain = server.named(&url.replace("https", "http"), &elsewhere()).await.unwrap_err().to_string();
        assert!(plain.contains("400") && plain.contains("https://"), "{plain}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_certificate_is_told_to_clients_of_this_machine() {
        let write = |folder: &std::path::Path| {
            let key = rcgen::KeyPair::generate().unwrap();
            let made = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
            std::fs::write(folder.join("tls.crt"), made.pem()).unwrap();
            std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
            Fingerprint::of(made.der())
        };
        let server = Running::start(|folder| {
            write(folder);
            Some(CertificateSource::Files { certificate: folder.join("tls.crt"), key: folder.join("tls.key") })
        })
        .await;
        let old = server.addresses.fingerprint;
        let new = write(&server.folder);
        let told = async {
            while running(&server.sources().home).and_then(|a| a.fingerprint) != Some(new) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told).await.expect("the new fingerprint is published");
        assert_ne!(old, Some(new));
        let own = running(&server.sources().home).unwrap();
        let _: Value = Client::own(own, &server.sources()).unwrap().get("/api/v1/status").await.unwrap();
    }

    #[test]
    fn a_process_that_only_has_the_number_of_a_server_is_none() {
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
        assert!(running(&home).is_none(), "there is no lock");
        let lock = std::fs::File::create(home.lock_file()).unwrap();
        assert!(running(&home).is_some());
        drop(lock);
        assert!(running(&home).is_none(), "this process lives, but it is not the server");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn https_to_a_server_without_tls_says_what_is_wrong() {
        let server = Running::start(|_| None).await;
        let url = server.addresses.control_url().replace("http", "https");
        let error = server.named(&url, &server.sources()).await.unwrap_err();
        assert!(error.code() == "server.unreachable" && error.to_string().contains("does not speak TLS"), "{error}");
    }

    #[tokio::test]
    async fn a_redirect_takes_the_token_nowhere() {
        let (named, other) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("http://{}", named.local_addr().unwrap());
        let location = format!("http://{}/", other.local_addr().unwrap());
        let answering = tokio::spawn(async move {
            let (mut stream, _) = named.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let answer =
                format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
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
        let client = Client::to(&url, Access::to(&url, &Origin::Flag, &sources).unwrap()).unwrap();
        let error = client.get::<Value>("/api/v1/status").await.unwrap_err();
        assert!(error.to_string().contains("307"), "{error}");
        assert!(answering.await.unwrap().contains("Bearer of-the-environment"), "the server that was named gets it");
        let followed = tokio::time::timeout(Duration::from_millis(100), other.accept()).await;
        assert!(followed.is_err(), "the other one is not asked");
    }
}
