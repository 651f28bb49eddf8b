//! Requests to a provider: with a limit of time and size, patient where it asks for patience.

use std::time::{Duration, SystemTime};

use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use slipway_core::tls::{self, Trust};

use crate::ClusterError;

const CONNECT: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(60);
/// An answer that is longer is none.
const MOST_BYTES: usize = 16 << 20;
/// Tries of what may be tried again.
const ATTEMPTS: u32 = 6;
/// A provider that wants more patience than this is told of instead.
const MOST_PATIENCE: Duration = Duration::from_secs(120);
/// Pages of a list; a list that is longer goes in circles.
const MOST_PAGES: usize = 1000;

/// An account at a provider.
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
        let wrong = |message: String| ClusterError::Provider { provider: name.to_owned(), status: 0, message };
        let local = ["http://127.0.0.1:", "http://localhost:"].iter().any(|l| endpoint.starts_with(l));
        if !endpoint.starts_with("https://") && !local {
            return Err(wrong(format!("'{endpoint}': the token goes over https only")));
        }
        let tls = tls::client(Trust::System).map_err(|e| wrong(e.to_string()))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            // Nobody but the account's own API gets the token.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("slipway/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.to_owned(),
            client,
        })
    }

    pub(super) fn wrong(&self, status: u16, message: impl Into<String>) -> ClusterError {
        ClusterError::Provider { provider: self.name.clone(), status, message: message.into() }
    }

    /// One request; `None` for what is not there. What may be asked twice is asked again after trouble on the way; an order for a
    /// machine is not, since nobody knows whether it was taken: who orders looks whether the machine is there.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, ClusterError> {
        let again = method != Method::POST;
        let mut pause = Duration::from_millis(500);
        let mut attempt = 1;
        loop {
            let mut request = self.client.request(method.clone(), format!("{}{path}", self.endpoint));
            request = request.bearer_auth(&self.token).header("accept", "application/json");
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body.to_string());
            }
            let last = attempt >= ATTEMPTS;
            attempt += 1;
            match request.send().await {
                Err(error) if !again || last => return Err(self.wrong(0, plain(&error))),
                Err(_) => {}
                Ok(answer) => {
                    let status = answer.status();
                    // Who asks for too much was not heard, so that may be said again whatever it was.
                    if status == StatusCode::TOO_MANY_REQUESTS && !last {
                        let asked = patience(&answer);
                        if asked > MOST_PATIENCE {
                            let seconds = asked.as_secs();
                            return Err(
                                self.wrong(429, format!("the account's limit of requests is used up for {seconds} s"))
                            );
                        }
                        pause = pause.max(asked);
                    } else if !(status.is_server_error() && again && !last) {
                        return self.read(status, answer).await;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(20));
        }
    }

    async fn read(&self, status: StatusCode, mut answer: Response) -> Result<Option<Value>, ClusterError> {
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|e| self.wrong(0, plain(&e)))? {
            bytes.extend_from_slice(&part);
            if bytes.len() > MOST_BYTES {
                return Err(self.wrong(status.as_u16(), "an answer without end"));
            }
        }
        let value = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice::<Value>(&bytes) };
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            // Both say `message`; DigitalOcean an `id` of the error with it, Paperspace a `code`.
            let said = value.ok().and_then(|v| {
                let code = v["id"].as_str().or(v["code"].as_str()).unwrap_or_default().to_owned();
                Some(format!("{} [{code}]", v["message"].as_str()?))
            });
            return Err(self.wrong(status.as_u16(), said.unwrap_or_else(|| status.to_string())));
        }
        value.map(Some).map_err(|e| self.wrong(status.as_u16(), format!("an answer of another form: {e}")))
    }

    /// The same, of what must be there.
    pub(super) async fn must(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClusterError> {
        self.call(method, path, body).await?.ok_or_else(|| self.wrong(404, format!("{path} is not there")))
    }

    /// All pages of a list. `next` tells the path of the page after one.
    pub(super) async fn pages(
        &self,
        first: String,
        field: &str,
        next: impl Fn(&Value) -> Option<String>,
    ) -> Result<Vec<Value>, ClusterError> {
        let (mut out, mut path) = (Vec::new(), Some(first));
        for _ in 0..MOST_PAGES {
            let Some(page) = path else { return Ok(out) };
            let mut answer = self.must(Method::GET, &page, None).await?;
            let Value::Array(items) = answer[field].take() else {
                return Err(self.wrong(200, format!("the answer has no {field}")));
            };
            out.extend(items);
            path = next(&answer);
        }
        Err(self.wrong(200, format!("more than {MOST_PAGES} pages of {field}")))
    }
}

/// Without the address, which may hold what is nobody's business.
fn plain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time".to_owned() } else { "it does not answer".into() };
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// For how long a provider asks to be left alone: `retry-after` in seconds, or `ratelimit-reset` as a time.
fn patience(answer: &Response) -> Duration {
    let number = |name: &str| answer.headers().get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    if let Some(seconds) = number("retry-after") {
        return Duration::from_secs(seconds);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    number("ratelimit-reset").map_or(Duration::ZERO, |at| Duration::from_secs(at).saturating_sub(now))
}
