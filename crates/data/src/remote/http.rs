//! Remotes on web servers, `http(s)://`, and the HTTP client of all remotes that speak HTTP.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderName, HeaderValue, LAST_MODIFIED, RANGE};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, redirect};
use slipway_core::tls::{self, Trust};
use slipway_store::reach::Reach;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::backend::{Backend, Chunks, Entry, Failure, Reply};
use super::options::{Settings, Verification};
use super::password;
use crate::error::DataError;

/// DVC's timeouts for connecting, and for each read.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a chunk of an upload.
const CHUNK_BYTES: usize = 256 << 10;
/// Maximum bytes of an error response of which the message is shown.
const MAX_MESSAGE_BYTES: usize = 2000;

/// A header that authenticates each request.
type Authentication = Option<(HeaderName, HeaderValue)>;

/// A client of one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    authentication: Authentication,
    /// How long the server may send nothing, or receive nothing of an upload.
    read_timeout: Duration,
}

impl Client {
    /// A client with these timeouts, which reaches these servers, and sends the authentication to the first one only.
    pub(crate) fn new(
        tls: rustls::ClientConfig,
        timeouts: (Option<Duration>, Option<Duration>),
        authentication: Authentication,
        reach: &Reach,
    ) -> Result<Self, DataError> {
        let allowed = reach.clone();
        let is_authenticated = authentication.is_some();
        // A redirect to another server must not receive the credentials.
        let follow = redirect::Policy::custom(move |attempt| {
            let first = attempt.previous().first().map(reqwest::Url::origin);
            if attempt.previous().len() > 10 {
                attempt.error("too many redirects")
            } else if is_authenticated && first != Some(attempt.url().origin()) {
                attempt.stop()
            } else if let Err(reason) = allowed.check(attempt.url()) {
                attempt.error(reason)
            } else {
                attempt.follow()
            }
        });
        let builder = reach.limit(reqwest::Client::builder()).tls_backend_preconfigured(tls).redirect(follow);
        let http = builder.connect_timeout(timeouts.0.unwrap_or(DEFAULT_TIMEOUT)).build();
        let http = http.map_err(|error| DataError::Config(format!("the HTTP client: {}", cause(&error))))?;
        Ok(Self { http, authentication, read_timeout: timeouts.1.unwrap_or(DEFAULT_TIMEOUT) })
    }

    /// The client for a URL with the options of a remote.
    pub(crate) fn open(settings: &Settings) -> Result<Self, DataError> {
        let authentication = authentication_of(settings)?;
        let timeouts = (settings.seconds("connect_timeout")?, settings.seconds("read_timeout")?);
        Self::new(tls_of(settings)?, timeouts, authentication, &settings.reach)
    }

    /// A request with the authentication.
    pub(crate) fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.authentication {
            Some((name, value)) => request.header(name, value),
            None => request,
        }
    }

    /// Sends a request without a body, or with a short one.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        match tokio::time::timeout(self.read_timeout, request.send()).await {
            Ok(sent) => sent.map_err(broken),
            Err(_) => Err(self.silent()),
        }
    }

    /// Sends a request with the bytes `from..to` of a file.
    pub(crate) async fn send_file(
        &self,
        request: RequestBuilder,
        source: &Path,
        range: std::ops::Range<u64>,
    ) -> Result<Response, Failure> {
        let unreadable = |error: std::io::Error| Failure::Permanent(format!("{}: {error}", source.display()));
        let mut file = tokio::fs::File::open(source).await.map_err(unreadable)?;
        file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(unreadable)?;
        let size = range.end - range.start;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let chunks = futures_util::stream::try_unfold((file.take(size), counter), |(mut file, counter)| async move {
            let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES);
            let read = file.read_buf(&mut chunk).await?;
            counter.fetch_add(read as u64, Ordering::Relaxed);
            Ok::<_, std::io::Error>((read > 0).then(|| (chunk.freeze(), (file, counter))))
        });
        let request = request.header(CONTENT_LENGTH, size).body(Body::wrap_stream(chunks)).send();
        let mut request = std::pin::pin!(request);
        // A large upload may take long, but not stand still.
        loop {
            let before = sent.load(Ordering::Relaxed);
            match tokio::time::timeout(self.read_timeout, &mut request).await {
                Ok(response) => return response.map_err(broken),
                Err(_) if sent.load(Ordering::Relaxed) == before => return Err(self.silent()),
                Err(_) => {}
            }
        }
    }

    /// The body of a response.
    pub(crate) async fn body(&self, mut response: Response, max_bytes: usize) -> Result<Bytes, Failure> {
        let mut body = bytes::BytesMut::new();
        loop {
            match tokio::time::timeout(self.read_timeout, response.chunk()).await {
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() <= max_bytes => body.extend_from_slice(&chunk),
                Ok(Ok(Some(_))) => return Err(Failure::Permanent(format!("the response exceeds {max_bytes} bytes"))),
                Ok(Ok(None)) => return Ok(body.freeze()),
                Ok(Err(error)) => return Err(broken(error)),
                Err(_) => return Err(self.silent()),
            }
        }
    }

    fn silent(&self) -> Failure {
        Failure::Temporary(format!("the server did not respond for {} s", self.read_timeout.as_secs_f64()))
    }

    /// Downloads from a byte on.
    pub(crate) async fn read(&self, url: &str, from: u64) -> Result<Chunks, Failure> {
        let mut request = self.request(Method::GET, url);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = self.send(request).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(futures_util::stream::empty().boxed()); // All of it has been received.
        }
        let response = checked(response).await?;
        // A server without ranges sends all of it again.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { from };
        let client = self.clone();
        let received = response.bytes_stream().map_err(broken).boxed();
        let timed = futures_util::stream::try_unfold((received, client), |(mut received, client)| async move {
            match tokio::time::timeout(client.read_timeout, received.try_next()).await {
                Ok(next) => Ok(next?.map(|chunk| (chunk, (received, client)))),
                Err(_) => Err(client.silent()),
            }
        });
        let chunks = timed.map_ok(move |mut chunk: Bytes| {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            chunk.split_off(skipped)
        });
        Ok(chunks.boxed())
    }

    /// Uploads a file.
    pub(crate) async fn write(&self, method: Method, url: &str, source: &Path) -> Result<(), Failure> {
        let size = size_of(source)?;
        match checked(self.send_file(self.request(method, url), source, 0..size).await?).await {
            Ok(_) => Ok(()),
            Err(Failure::NotFound) => {
                Err(Failure::Permanent("404 Not Found; the server does not accept uploads at this URL".into()))
            }
            Err(failure) => Err(failure),
        }
    }

    /// The response to a query for the headers of a URL; `None` if it does not exist.
    async fn head(&self, url: &str) -> Result<Option<Response>, Failure> {
        let mut response = self.send(self.request(Method::HEAD, url)).await?;
        if matches!(response.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
            response = self.send(self.request(Method::GET, url)).await?;
        }
        match checked(response).await {
            Ok(response) => Ok(Some(response)),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether a URL exists.
    pub(crate) async fn exists(&self, url: &str) -> Result<bool, Failure> {
        Ok(self.head(url).await?.is_some())
    }

    /// The bytes of a URL, and what changes with its content: its entity tag, or the MD5 or the time of the last change that the server
    /// gives. `None` if it does not exist.
    pub(crate) async fn describe(&self, url: &str) -> Result<Option<(Option<u64>, Option<String>)>, Failure> {
        let Some(response) = self.head(url).await? else { return Ok(None) };
        let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        let size = text(CONTENT_LENGTH).and_then(|size| size.parse().ok());
        let tag = [ETAG, HeaderName::from_static("content-md5"), LAST_MODIFIED].into_iter().find_map(text);
        Ok(Some((size, tag.map(str::to_owned))))
    }

    /// Deletes a URL, if it exists.
    pub(crate) async fn delete(&self, url: &str) -> Result<(), Failure> {
        match checked(self.send(self.request(Method::DELETE, url)).await?).await {
            Ok(_) | Err(Failure::NotFound) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

/// Bytes of a file that is sent.
pub(crate) fn size_of(source: &Path) -> Result<u64, Failure> {
    let unreadable = |error: std::io::Error| Failure::Permanent(format!("{}: {error}", source.display()));
    std::fs::metadata(source).map(|metadata| metadata.len()).map_err(unreadable)
}

/// The failure of a request whose connection broke off.
pub(crate) fn broken(error: reqwest::Error) -> Failure {
    match tls::refused(&error) {
        Some(refused) => Failure::Permanent(format!("the certificate was rejected: {}", refused.reason)),
        None if error.is_builder() || error.is_redirect() => Failure::Permanent(cause(&error)),
        None => Failure::Temporary(cause(&error)),
    }
}

/// The innermost cause of an error; the outer messages repeat the URL, which may contain a password.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The response, or the failure that its status means.
pub(crate) async fn checked(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
        return Err(Failure::NotFound);
    }
    let hint = match status {
        StatusCode::UNAUTHORIZED => "; the remote needs credentials, or rejects those that it got",
        StatusCode::FORBIDDEN => "; the credentials do not permit this",
        StatusCode::METHOD_NOT_ALLOWED => "; the server does not accept this method",
        _ if status.is_redirection() => "; credentials are not sent to the server that it redirects to",
        _ => "",
    };
    let message = format!("{status}{}{hint}", message_of(response).await);
    let is_temporary = matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
    Err(if is_temporary { Failure::Temporary(message) } else { Failure::Permanent(message) })
}

/// The message in an error response of slipway.
async fn message_of(mut response: Response) -> String {
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_MESSAGE_BYTES {
            return String::new();
        }
    }
    let body: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let message = body.get("error").or_else(|| body.get("message")).and_then(serde_json::Value::as_str);
    message.map(|message| format!(": {message}")).unwrap_or_default()
}

/// The TLS settings of the options `ssl_verify`, `cert_path` and `key_path`.
pub(crate) fn tls_of(settings: &Settings) -> Result<rustls::ClientConfig, DataError> {
    let invalid = |error: tls::TlsError| DataError::Config(format!("remote '{}': {error}", settings.name));
    let client = match settings.verification() {
        Verification::System => tls::client(Trust::System),
        Verification::File(path) => tls::client(Trust::SystemAnd(Path::new(&path))),
        Verification::Off => tls::client(Trust::Unverified),
    };
    let client = client.map_err(invalid)?;
    match (settings.text("cert_path"), settings.text("key_path")) {
        (None, None) => Ok(client),
        (None, Some(_)) => Err(settings.invalid("key_path", "it needs 'cert_path'")),
        // A single file may contain both.
        (Some(certificate), key) => {
            tls::with_identity(client, Path::new(certificate), Path::new(key.unwrap_or(certificate))).map_err(invalid)
        }
    }
}

/// The password of the option `password`, or that which the user enters for `ask_password`.
pub(crate) fn password_of(settings: &Settings) -> Result<Option<String>, DataError> {
    match settings.text("password") {
        Some(password) => Ok(Some(password.to_owned())),
        None if settings.is_true("ask_password") => {
            password::ask(&settings.url, settings.text("user").unwrap_or("custom")).map(Some)
        }
        None => Ok(None),
    }
}

/// A header whose value is a secret.
pub(crate) fn secret_header(settings: &Settings, name: &str, value: &str) -> Result<Authentication, DataError> {
    let name: HeaderName = name.parse().map_err(|_| settings.invalid("custom_auth_header", "it is no header name"))?;
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| settings.invalid("password", "it has characters that a header cannot contain"))?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}

/// The header of basic authentication.
pub(crate) fn basic_header(settings: &Settings, user: &str, password: &str) -> Result<Authentication, DataError> {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    secret_header(settings, AUTHORIZATION.as_str(), &format!("Basic {encoded}"))
}

/// The authentication of the options `auth`, `user`, `password` and `custom_auth_header`.
pub(crate) fn authentication_of(settings: &Settings) -> Result<Authentication, DataError> {
    let password = password_of(settings)?;
    let kind = settings.text("auth").map(str::to_lowercase);
    match (kind.as_deref(), settings.text("user"), password) {
        (None, ..) => Ok(None),
        (Some("basic"), Some(user), Some(password)) => basic_header(settings, user, &password),
        (Some("basic"), ..) => Err(settings.invalid("auth", "basic needs both 'user' and 'password'")),
        (Some("custom"), _, password) => match (settings.text("custom_auth_header"), password) {
            (Some(header), Some(password)) => secret_header(settings, header, &password),
            _ => Err(settings.invalid("auth", "custom needs both 'custom_auth_header' and 'password'")),
        },
        (Some(_), ..) => Err(settings.unsupported("auth = digest", "use basic over https, or a custom header")),
    }
}

/// A remote on a web server.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    base: String,
    upload_method: Method,
}

impl Http {
    /// Opens the remote.
    pub(crate) fn open(settings: &Settings) -> Result<Self, DataError> {
        let method = settings.text("method").unwrap_or("POST").to_uppercase();
        let upload_method = match method.as_str() {
            "POST" => Method::POST,
            "PUT" => Method::PUT,
            _ => return Err(settings.invalid("method", "it is neither POST nor PUT")),
        };
        let client = Client::open(settings)?;
        Ok(Self { client, base: settings.url.trim_end_matches('/').to_owned(), upload_method })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }
}

impl Backend for Http {
    fn exists<'a>(&'a self, path: &'a str) -> Reply<'a, bool> {
        Box::pin(async move { self.client.exists(&self.url(path)).await })
    }

    fn entries<'a>(&'a self, _: &'a str) -> Reply<'a, Vec<Entry>> {
        Box::pin(std::future::ready(Err(Failure::Permanent("a web server cannot list its files".into()))))
    }

    fn read<'a>(&'a self, path: &'a str, from: u64) -> Reply<'a, Chunks> {
        Box::pin(async move { self.client.read(&self.url(path), from).await })
    }

    fn write<'a>(&'a self, path: &'a str, source: &'a Path) -> Reply<'a, ()> {
        Box::pin(async move { self.client.write(self.upload_method.clone(), &self.url(path), source).await })
    }

    fn remove<'a>(&'a self, path: &'a str) -> Reply<'a, ()> {
        Box::pin(async move { self.client.delete(&self.url(path)).await })
    }

    fn lists(&self) -> bool {
        false
    }

    fn list_from(&self) -> usize {
        usize::MAX
    }
}
