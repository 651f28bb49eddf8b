//! Calls to the control plane: over HTTP, or to the same routers in this process.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::{Client as HyperClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;
use slipway_core::Explain;
use slipway_core::config::Config;
use slipway_core::home::Home;
use slipway_server::auth::Guard;
use slipway_server::{Addresses, Platform, Stores};
use tower::ServiceExt;

/// Bytes of an answer.
const LIMIT: usize = 256 * 1024 * 1024;
/// Time for one call.
const TIMEOUT: Duration = Duration::from_secs(120);

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
    #[error("'{0}' is not a URL of a slipway server, which begins with http://")]
    Url(String),
}

impl Explain for ClientError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(..) | Self::Url(_) => "server.unreachable",
            Self::Unauthenticated => "auth.required",
            Self::Forbidden(_) => "auth.forbidden",
            Self::Answered { .. } => "server.answered",
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
    Remote { base: String, http: Box<HyperClient<HttpConnector, Body>>, token: Option<String> },
    InProcess(Router),
}

/// The control plane.
pub(crate) struct Client {
    transport: Transport,
    /// Where it is, if it listens.
    pub(crate) addresses: Option<Addresses>,
}

/// Where the configuration says that state is kept.
pub(crate) fn stores(config: &Config) -> Stores {
    let get = |key| config.get(key).map(str::to_owned);
    Stores { database: get("database"), objects: get("objects") }
}

/// The server of this state folder, if one runs.
pub(crate) fn running(home: &Home) -> Option<Addresses> {
    let text = std::fs::read(home.server_file()).ok()?;
    let addresses: Addresses = serde_json::from_slice(&text).ok()?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(addresses.pid).ok()?)?;
    rustix::process::test_kill_process(pid).ok()?;
    Some(addresses)
}

impl Client {
    /// A client of the server at `base`.
    pub(crate) fn remote(base: &str) -> Result<Self, ClientError> {
        if !base.starts_with("http://") {
            return Err(ClientError::Url(base.to_owned()));
        }
        let token = slipway_core::env::value(slipway_core::env::TOKEN);
        let http = Box::new(HyperClient::builder(TokioExecutor::new()).build_http());
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { transport: Transport::Remote { base, http, token }, addresses: None })
    }

    /// The same with this token.
    pub(crate) fn with_token(mut self, new: String) -> Self {
        if let Transport::Remote { token, .. } = &mut self.transport {
            *token = Some(new);
        }
        self
    }

    /// The server that is configured, the one of this machine, or the state folder itself.
    pub(crate) async fn connect(config: &Config) -> Result<Self, crate::Failure> {
        if let Some(url) = config.get("server") {
            return Ok(Self::remote(url)?);
        }
        let home = Home::at(config.get("home").unwrap_or_default());
        if let Some(addresses) = running(&home) {
            let mut client = Self::remote(&format!("http://{}", addresses.control))?;
            client.addresses = Some(addresses);
            return Ok(client);
        }
        tracing::info!(home = %home.root().display(), "no server runs; using the state folder in this process");
        let runtime = config.get("runtime").unwrap_or("auto").parse().map_err(crate::Failure::from)?;
        let library = config.get("onnxruntime").map(Into::into);
        let platform = Platform::open(&home, &stores(config), runtime, library).await?;
        Ok(Self {
            transport: Transport::InProcess(Guard::default().around(platform.control_router())),
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
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::from(body)).map_err(|e| failed(e.to_string()))?;
        match &self.transport {
            Transport::Remote { http, .. } => {
                let answer = http.request(request).await.map_err(|e| failed(cause(&e)))?;
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
            let bytes = Limited::new(body, LIMIT).collect().await.map_err(|e| failed(e.to_string()))?;
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
            let bytes = Limited::new(body, LIMIT).collect().await;
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
    let message = message.unwrap_or_else(|| format!("the server answered {status} to {path}"));
    match status {
        StatusCode::UNAUTHORIZED => ClientError::Unauthenticated,
        StatusCode::FORBIDDEN => ClientError::Forbidden(message),
        _ => ClientError::Answered { message, hint: text("hint") },
    }
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
