//! Tokens: a request carries one as bearer token, or as the password of basic authentication (which is how
//! MLflow's clients send `MLFLOW_TRACKING_TOKEN` and `MLFLOW_TRACKING_PASSWORD`).

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::ServerError;

/// Characters a token has at least.
const MIN_TOKEN: usize = 16;
/// Paths that anyone may read: they tell that a server is there, and nothing about what it holds.
const OPEN: &[&str] = &["/health", "/healthz", "/readyz", "/version", "/v2/health/live", "/v2/health/ready"];

/// The accepted tokens; cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<[String]>);

impl Tokens {
    /// Reads a file with one token a line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`ServerError::TokenFile`] when it cannot be read, holds no token, or holds one that is too short.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        let wrong = |reason: String| ServerError::TokenFile { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let tokens: Vec<String> = lines.map(str::to_owned).collect();
        if tokens.is_empty() {
            return Err(wrong("it holds no token".into()));
        }
        if let Some(at) = tokens.iter().position(|t| t.len() < MIN_TOKEN) {
            return Err(wrong(format!("token {} is shorter than {MIN_TOKEN} characters", at + 1)));
        }
        Ok(Self(tokens.into()))
    }

    fn accepts(&self, token: &str) -> bool {
        // Every token is compared, each in constant time, so that the time tells nothing.
        self.0.iter().fold(false, |found, known| found | same(known.as_bytes(), token.as_bytes()))
    }

    fn accept_headers(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) else { return false };
        match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => self.accepts(token.trim()),
            Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => {
                use base64::Engine;
                let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).unwrap_or_default();
                let text = String::from_utf8_lossy(&decoded);
                text.split_once(':').is_some_and(|(_, password)| self.accepts(password))
            }
            _ => false,
        }
    }
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

/// Lets a request pass if it carries a token.
pub(crate) async fn require(State(tokens): State<Tokens>, request: Request, next: Next) -> Response {
    if OPEN.contains(&request.uri().path()) || tokens.accept_headers(request.headers()) {
        return next.run(request).await;
    }
    let grpc =
        request.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        // 16 is UNAUTHENTICATED; gRPC carries its status in headers of a 200 answer.
        let headers =
            [("content-type", "application/grpc"), ("grpc-status", "16"), ("grpc-message", "a token is required")];
        return (StatusCode::OK, headers).into_response();
    }
    let body = serde_json::json!({
        "error_code": "UNAUTHENTICATED",
        "message": "You are not authenticated: this server asks for a token.",
        "code": "auth.required",
    });
    let headers = [(header::WWW_AUTHENTICATE, "Basic realm=\"slipway\""), (header::CONTENT_TYPE, "application/json")];
    (StatusCode::UNAUTHORIZED, headers, body.to_string()).into_response()
}

/// Whether a request that changes something comes from a page of another site, which a browser says by `Origin`.
fn is_foreign(method: &Method, headers: &HeaderMap) -> bool {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return false;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let from = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, authority)| authority);
    let to = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    from.is_none() || from != to
}

/// Turns away changes that a web page of another site asks the user's browser for.
pub(crate) async fn refuse_foreign(request: Request, next: Next) -> Response {
    if !is_foreign(request.method(), request.headers()) {
        return next.run(request).await;
    }
    let body = serde_json::json!({
        "error_code": "PERMISSION_DENIED",
        "message": "This request comes from a page of another site and is refused.",
        "code": "auth.foreign",
    });
    (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn changes_from_other_sites_are_refused() {
        let from = |origin: &str| {
            HeaderMap::from_iter([
                (header::HOST, "127.0.0.1:7070".parse().unwrap()),
                (header::ORIGIN, origin.parse().unwrap()),
            ])
        };
        assert!(is_foreign(&Method::POST, &from("https://evil.example")));
        assert!(is_foreign(&Method::DELETE, &from("null")));
        assert!(!is_foreign(&Method::POST, &from("http://127.0.0.1:7070")));
        assert!(!is_foreign(&Method::GET, &from("https://evil.example")));
        assert!(!is_foreign(&Method::POST, &HeaderMap::new()));
    }

    #[test]
    fn tokens_pass_as_bearer_and_as_password() {
        let tokens = Tokens(Arc::from(["0123456789abcdef".to_owned()]));
        assert!(tokens.accept_headers(&headers("Bearer 0123456789abcdef")));
        // any:0123456789abcdef
        assert!(tokens.accept_headers(&headers("Basic YW55OjAxMjM0NTY3ODlhYmNkZWY=")));
        for wrong in ["Bearer 0123456789abcdeg", "Bearer ", "Basic !!!", "0123456789abcdef"] {
            assert!(!tokens.accept_headers(&headers(wrong)), "{wrong}");
        }
    }
}
