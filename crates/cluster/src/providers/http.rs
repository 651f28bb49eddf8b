//! HTTP client for provider APIs.
//!
//! Requests have timeouts and size limits, are retried where that is safe, and respect the provider's rate limits.

use std::time::{Duration, SystemTime};

use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use slipway_core::tls::{self, Trust};

use crate::ClusterError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Larger responses are rejected so that a broken provider cannot exhaust memory.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Attempts of a request that may be retried.
const MAX_ATTEMPTS: u32 = 6;
/// A longer `Retry-After` fails the request with the provider's message instead of waiting.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// A list with more pages is rejected, because its links probably form a loop.
const MAX_PAGES: usize = 1000;

/// HTTP client of one provider account.
pub(super) struct Http {
    name: String,
    endpoint: String,
    token: String,
    client: reqwest::Client,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("name", &self.name).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Http {
    pub(super) fn new(name: &str, endpoint: &str, token: &str) -> Result<Self, ClusterError> {
        let error = |message: String| ClusterError::Provider { provider: name.to_owned(), status: 0, message };
        let local = ["http://127.0.0.1:", "http://localhost:"].iter().any(|l| endpoint.starts_with(l));
        if !endpoint.starts_with("https://") && !local {
            return Err(error(format!("'{endpoint}': the endpoint must use https, because the token is sent to it")));
        }
        let tls = tls::client(Trust::System).map_err(|e| error(e.to_string()))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            // A redirect could send the token to another server.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("slipway/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| error(e.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.to_owned(),
            client,
        })
    }

    pub(super) fn error(&self, status: u16, message: impl Into<String>) -> ClusterError {
        ClusterError::Provider { provider: self.name.clone(), status, message: message.into() }
    }

    /// Sends a request; `None` if the response is 404. Failed requests are retried, except POST: after a failed order it is unknown whether
    /// the provider accepted it, so the caller checks whether the machine exists.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, ClusterError> {
        let idempotent = method != Method::POST;
        let mut backoff = Duration::from_millis(500);
        let mut attempt = 1;
        loop {
            let mut request = self.client.request(method.clone(), format!("{}{path}", self.endpoint));
            request = request.bearer_auth(&self.token).header("accept", "application/json");
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body.to_string());
            }
            let last = attempt >= MAX_ATTEMPTS;
            attempt += 1;
            match request.send().await {
                Err(error) if !idempotent || last => return Err(self.error(0, describe(&error))),
                Err(_) => {}
                Ok(response) => {
                    let status = response.status();
                    // A rate-limited request was not executed, so even a POST may be retried.
                    if status == StatusCode::TOO_MANY_REQUESTS && !last {
                        let delay = retry_after(&response);
                        if delay > MAX_RETRY_AFTER {
                            let seconds = delay.as_secs();
                            return Err(
                                self.error(429, format!("the account's rate limit is exhausted for {seconds} s"))
                            );
                        }
                        backoff = backoff.max(delay);
                    } else if !(status.is_server_error() && idempotent && !last) {
                        return self.read(status, response).await;
                    }
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(Duration::from_secs(20));
        }
    }

    /// Reads the response; `None` for 404, and an error with the provider's message for any other status than 2xx.
    async fn read(&self, status: StatusCode, mut response: Response) -> Result<Option<Value>, ClusterError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.error(0, describe(&e)))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_RESPONSE_BYTES {
                return Err(self.error(status.as_u16(), "the response is larger than 16 MiB"));
            }
        }
        let value = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice::<Value>(&bytes) };
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            // Both providers send a `message`, DigitalOcean together with an `id` of the error and Paperspace with a `code`.
            let message = value.ok().and_then(|v| {
                let code = v["id"].as_str().or(v["code"].as_str()).unwrap_or_default().to_owned();
                Some(format!("{} [{code}]", v["message"].as_str()?))
            });
            return Err(self.error(status.as_u16(), message.unwrap_or_else(|| status.to_string())));
        }
        value.map(Some).map_err(|e| self.error(status.as_u16(), format!("the response is not valid JSON: {e}")))
    }

    /// Sends a request as [`Self::call`], and treats 404 as an error.
    pub(super) async fn call_existing(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClusterError> {
        self.call(method, path, body).await?.ok_or_else(|| self.error(404, format!("{path} was not found")))
    }

    /// Reads all pages of a list, whose items are in `field`. `next` returns the path of the page that follows a page.
    pub(super) async fn pages(
        &self,
        first: String,
        field: &str,
        next: impl Fn(&Value) -> Option<String>,
    ) -> Result<Vec<Value>, ClusterError> {
        let (mut out, mut path) = (Vec::new(), Some(first));
        for _ in 0..MAX_PAGES {
            let Some(page) = path else { return Ok(out) };
            let mut response = self.call_existing(Method::GET, &page, None).await?;
            let Value::Array(items) = response[field].take() else {
                return Err(self.error(200, format!("the response has no {field}")));
            };
            out.extend(items);
            path = next(&response);
        }
        Err(self.error(200, format!("more than {MAX_PAGES} pages of {field}")))
    }
}

/// Describes an error with its causes, but without the URL, which may contain private data.
fn describe(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "the request timed out".to_owned() } else { "the request failed".into() };
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// The delay that a rate-limited response requests: `retry-after` in seconds, or `ratelimit-reset` as a Unix time.
fn retry_after(response: &Response) -> Duration {
    let number = |name: &str| response.headers().get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    if let Some(seconds) = number("retry-after") {
        return Duration::from_secs(seconds);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    number("ratelimit-reset").map_or(Duration::ZERO, |at| Duration::from_secs(at).saturating_sub(now))
}
