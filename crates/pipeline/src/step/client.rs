//! Requests to the control plane. They are repeated while it is away, as when it is restarted: the work of a step must not be lost.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Body, Method, RequestBuilder, Response, Url};
use ring::digest::{Context, SHA256};
use serde::de::DeserializeOwned;
use serde_json::Value;
use slipway_core::hex;
use slipway_core::tls::{self, Trust};
use tokio::io::AsyncWriteExt;

use super::Server;
use crate::launch::content;
use crate::launch::pods::artifacts::Files;
use crate::launch::pods::http::{MAX_OUTCOME_BYTES, Order, Received};
use crate::launch::pods::pool::{Next, Report};
use crate::model::Outcome;

/// How long a request is repeated.
const RETRY_FOR: Duration = Duration::from_secs(3600);
/// Pause before a request is repeated; it doubles up to the maximum.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Timeout for a connection, and for the next bytes of a response.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// A client for the step of one pod.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
}

/// Why a request failed.
enum Fault {
    /// Another attempt may succeed.
    Temporary(String),
    Permanent(String),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Permanent(error.to_string())
    }
}

/// The reason of an error, which is that of the innermost one.
fn cause(error: reqwest::Error) -> Fault {
    let mut inner: &dyn std::error::Error = &error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    Fault::Temporary(inner.to_string())
}

async fn parsed<T: DeserializeOwned>(response: Response) -> Result<T, Fault> {
    let bytes = response.bytes().await.map_err(cause)?;
    serde_json::from_slice(&bytes).map_err(|error| Fault::Permanent(format!("the response is malformed: {error}")))
}

impl Client {
    pub(super) fn new(server: &Server) -> Result<Self, String> {
        let invalid = |reason: String| format!("the control plane {}: {reason}", server.url);
        let trust = server.authorities.as_deref().map_or(Trust::System, Trust::SystemAnd);
        let tls = tls::client(trust).map_err(|error| invalid(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // The token is sent to the control plane only.
            .no_proxy()
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let base = format!("{}/api/v1/pipelines/", server.url.trim_end_matches('/'));
        let base = Url::parse(&base).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { http, base, token: server.token.clone() })
    }

    /// What this pod is to do.
    pub(super) async fn order(&self) -> Result<Order, String> {
        let url = self.url(&["step"], "");
        self.repeated(async || self.json(&url).await).await
    }

    /// What the worker in this pod is to do next.
    pub(super) async fn next(&self, report: &Report) -> Result<Next, String> {
        let body = serde_json::to_vec(report).map_err(|error| error.to_string())?;
        let url = self.url(&["worker", "next"], "");
        let response = async || {
            let mut request = self.request(Method::POST, &url).header(CONTENT_TYPE, "application/json");
            request = request.body(body.clone());
            parsed(self.response(request).await?).await
        };
        self.repeated(response).await
    }

    /// Delivers how the program ended.
    pub(super) async fn deliver(&self, outcome: &Outcome) -> Result<(), String> {
        let body = serde_json::to_vec(outcome).map_err(|error| error.to_string())?;
        if body.len() > MAX_OUTCOME_BYTES {
            let size = body.len();
            return Err(format!(
                "the outputs of the step have {size} bytes; the limit is {MAX_OUTCOME_BYTES}. Pass large values on as an artifact"
            ));
        }
        let url = self.url(&["step", "outcome"], "");
        self.repeated(async || self.send(Method::POST, &url, Some(body.clone().into())).await.map(drop)).await
    }

    /// Fetches an input artifact to a path.
    pub(super) async fn fetch(&self, name: &str, index: usize, path: &Path) -> Result<(), String> {
        let index = index.to_string();
        let url = self.url(&["step", "inputs", name, &index], "");
        let files: Files = self.repeated(async || self.json(&url).await).await?;
        if files.is_file {
            let url = self.url(&["step", "inputs", name, &index, "file"], "");
            return self.repeated(async || self.fetch_file(&url, path).await).await;
        }
        tokio::fs::create_dir_all(path).await.map_err(|error| error.to_string())?;
        for file in &files.paths {
            if file.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
                return Err(format!("it has a file '{file}' outside of its folder"));
            }
            let url = self.url(&["step", "inputs", name, &index, "file"], file);
            self.repeated(async || self.fetch_file(&url, &path.join(file)).await).await?;
        }
        Ok(())
    }

    /// Uploads an output artifact: a file or a folder.
    pub(super) async fn upload(&self, name: &str, index: usize, path: &Path) -> Result<(), String> {
        let index = index.to_string();
        for file in content::files(path).map_err(|error| error.to_string())? {
            let relative = file.strip_prefix(path).unwrap_or(Path::new(""));
            let relative = relative.to_str().ok_or_else(|| format!("the name of {} is not UTF-8", file.display()))?;
            let url = self.url(&["step", "outputs", name, &index, "file"], relative);
            self.repeated(async || self.send_file(&url, &file).await).await?;
        }
        Ok(())
    }

    /// The URL of a path below that of pipelines; `file` is a path in the folder of an artifact, or empty.
    fn url(&self, segments: &[&str], file: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !file.is_empty() {
            url.query_pairs_mut().append_pair("path", file);
        }
        url
    }

    /// Repeats a request until it succeeds or cannot succeed.
    async fn repeated<T>(&self, request: impl AsyncFn() -> Result<T, Fault>) -> Result<T, String> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match request().await {
                Ok(done) => return Ok(done),
                Err(Fault::Permanent(reason)) => return Err(reason),
                Err(Fault::Temporary(reason)) if started.elapsed() > RETRY_FOR => return Err(reason),
                Err(Fault::Temporary(reason)) => {
                    eprintln!("slipway: the control plane cannot be used, the next attempt follows: {reason}");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn send(&self, method: Method, url: &Url, body: Option<Body>) -> Result<Response, Fault> {
        let mut request = self.request(method, url);
        if let Some(body) = body {
            request = request.body(body);
        }
        self.response(request).await
    }

    fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        self.http.request(method, url.clone()).bearer_auth(&self.token)
    }

    /// The response to a request that was successful.
    async fn response(&self, request: RequestBuilder) -> Result<Response, Fault> {
        let response = request.send().await.map_err(cause)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        let message =
            serde_json::from_slice::<Value>(&body).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
        let reason = message.unwrap_or_else(|| format!("the control plane responded with {status}"));
        // Without its store, or behind a proxy that does not reach it, the control plane answers with a 5xx.
        let is_temporary = status.is_server_error() || status.as_u16() == 429;
        Err(if is_temporary { Fault::Temporary(reason) } else { Fault::Permanent(reason) })
    }

    async fn json<T: DeserializeOwned>(&self, url: &Url) -> Result<T, Fault> {
        parsed(self.send(Method::GET, url, None).await?).await
    }

    async fn fetch_file(&self, url: &Url, path: &Path) -> Result<(), Fault> {
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        let mut pieces = self.send(Method::GET, url, None).await?.bytes_stream();
        let mut file = tokio::fs::File::create(path).await?;
        while let Some(piece) = pieces.next().await {
            file.write_all(&piece.map_err(cause)?).await?;
        }
        Ok(file.flush().await?)
    }

    async fn send_file(&self, url: &Url, path: &Path) -> Result<(), Fault> {
        let file = tokio::fs::File::open(path).await?;
        let sent = Arc::new(Mutex::new(Context::new(&SHA256)));
        let digest = Arc::clone(&sent);
        let pieces = content::pieces(file).inspect_ok(move |piece| digest.lock().update(piece));
        let response = self.send(Method::PUT, url, Some(Body::wrap_stream(pieces))).await?;
        let received: Received = parsed(response).await?;
        let sent = hex::encode(sent.lock().clone().finish().as_ref());
        if sent == received.sha256 {
            return Ok(());
        }
        Err(Fault::Temporary(format!("{} changed on its way", path.display())))
    }
}
