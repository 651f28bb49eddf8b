//! Headers of responses with bytes from users, so that a browser does not run them as a page of this server.

use axum::http::{HeaderMap, HeaderValue, header};

/// What a browser may do with the bytes, if it opens them nevertheless: load and execute nothing. `sandbox` also gives them a separate origin.
const POLICY: &str = "default-src 'none'; sandbox";

/// Makes a browser take a response for what its media type says, and execute nothing of it.
pub fn confine(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
}
