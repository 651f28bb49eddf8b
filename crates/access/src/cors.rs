//! Cross-origin resource sharing (Fetch standard, section "CORS protocol"): lets web pages of configured origins call a server.
//!
//! Invariant: no response allows credentials or names the wildcard origin. Pages therefore send a token that they hold themselves, and no
//! page can use what the browser has stored for the server.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// How long browsers may cache the result of a preflight request, in seconds.
const PREFLIGHT_MAX_AGE: &str = "600";

/// The origins whose web pages may call a server, such as `https://app.example`. Empty by default, so only the server's own pages may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CorsOrigins(Vec<String>);

/// A text that is not the origin of a web page; holds the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidOrigin(pub String);

impl CorsOrigins {
    /// Allows these origins.
    ///
    /// # Errors
    /// [`InvalidOrigin`] for a text that is not `http://HOST[:PORT]` or `https://HOST[:PORT]`. Patterns and `*` are not origins.
    pub fn new(origins: impl IntoIterator<Item = String>) -> Result<Self, InvalidOrigin> {
        origins.into_iter().map(|text| serialize(&text).ok_or(InvalidOrigin(text))).collect::<Result<_, _>>().map(Self)
    }

    /// Whether no origin is allowed.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The `Origin` of a request, if it is one of these.
    pub(crate) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.is_empty() {
            return None;
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let origin = origins.next().filter(|origin| self.0.iter().any(|o| o.as_bytes() == origin.as_bytes()))?;
        origins.next().is_none().then(|| origin.clone())
    }
}

/// An origin as browsers serialize it (HTML standard, section "Origin"): in lower case, without a default port.
fn serialize(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let (scheme, rest) = text.split_once("://")?;
    let default_port = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let authority = rest.parse::<Authority>().ok().filter(|_| !rest.contains(['@', '*']))?;
    let host = authority.host();
    match rest.strip_prefix(host).filter(|_| !host.is_empty())? {
        "" => Some(text),
        _ => match authority.port_u16()? {
            port if port == default_port => Some(format!("{scheme}://{host}")),
            port => Some(format!("{scheme}://{host}:{port}")),
        },
    }
}

/// Whether a request only asks what a page may send.
pub(crate) fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The response to a preflight request from an allowed origin. It is the same for every path, so it does not reveal which paths exist.
/// All request headers are allowed, because a deployment may split its traffic by a header of any name.
pub(crate) fn preflight(request: &HeaderMap) -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST")),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_MAX_AGE)),
    ];
    let mut response = (StatusCode::NO_CONTENT, headers).into_response();
    if let Some(requested) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
    }
    response
}

/// Lets a page of this origin read a response. Without an origin, only tells caches that the response depends on it.
pub(crate) fn share(response: &mut Response, origin: Option<HeaderValue>) {
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        // For requests without credentials, the wildcard stands for every header but `Authorization`.
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_serialized_as_browsers_do() {
        for (text, origin) in [
            ("https://app.example", "https://app.example"),
            (" HTTPS://App.Example:443 ", "https://app.example"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("http://[::1]:5173", "http://[::1]:5173"),
        ] {
            assert_eq!(CorsOrigins::new([text.to_owned()]), Ok(CorsOrigins(vec![origin.to_owned()])), "{text}");
        }
        for invalid in [
            "*",
            "null",
            "app.example",
            "https://",
            "https://*.example",
            "https://a@app.example",
            "https://app.example/",
            "https://app.example:x",
            "https://app.example:",
            "file:///srv",
        ] {
            assert_eq!(CorsOrigins::new([invalid.to_owned()]), Err(InvalidOrigin(invalid.into())), "{invalid}");
        }
    }
}
