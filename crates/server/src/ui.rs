//! The embedded web pages.

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

/// What `npm run build` made in `web/`.
#[derive(RustEmbed)]
#[folder = "../../web/dist"]
struct Pages;

/// A file of the UI; every path that is none gets the start page, which finds its view by the path.
pub(crate) async fn serve(uri: Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    if path.starts_with("api/") {
        return (StatusCode::NOT_FOUND, "no such path").into_response();
    }
    if let Some(file) = Pages::get(path).filter(|_| !path.is_empty()) {
        // Names under assets/ carry a hash of their content.
        let keep = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
        return page(path, file.data.into_owned(), keep);
    }
    match Pages::get("index.html") {
        Some(file) => page("index.html", file.data.into_owned(), "no-cache"),
        None => (
            StatusCode::NOT_FOUND,
            "This build has no web UI: run `make ui` before `cargo build`. The API is at /api, see /openapi.json.\n",
        )
            .into_response(),
    }
}

fn page(path: &str, data: Vec<u8>, keep: &'static str) -> Response {
    let kind = match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "json" => "application/json",
        "woff2" => "font/woff2",
        "png" => "image/png",
        _ => "application/octet-stream",
    };
    let policy =
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, keep),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, data).into_response()
}
