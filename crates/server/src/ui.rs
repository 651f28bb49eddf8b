//! The embedded web UI. Its static files are public, because they contain no data: the pages fetch everything from the API with the token
//! of the signed-in user.
//!
//! Invariant: an unknown path never returns a page with status 200, so that clients of other APIs cannot mistake it for a success.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;
use serde_json::json;

/// The output of `npm run build` in `web/`.
#[derive(RustEmbed)]
#[folder = "../../web/dist"]
struct Pages;

/// The page of the single-page application, which selects its view by the path.
const PAGE: &str = "index.html";

/// First path segments of the views (`web/src/App.svelte`); the overview is at `/`.
const VIEWS: &[&str] =
    &["", "data", "experiments", "runs", "compare", "pipelines", "models", "deployments", "gpu", "fit", "cluster"];

/// The page that shows HTML which a step of a pipeline wrote, in a frame: the UI sends it the HTML as a message.
const FRAME: &str = "frame.html";

/// The content security policy of [`FRAME`]. The HTML is untrusted, but its own scripts and styles belong to it. In the sandbox it has an
/// origin of its own, without access to the token, storage and pages of the UI; nothing can be loaded or sent over the network.
const FRAME_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
    img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// The content security policy. It allows only scripts and styles from the page's own files: no inline script or style, no frames but
/// [`FRAME`], no form submission, and no markup from strings except through Svelte's templates (Trusted Types). `data:` and `blob:` are for images, which
/// the page fetches with the token and shows from memory.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
    connect-src 'self'; frame-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types svelte-trusted-html";

/// Headers of all responses of this module.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Handles requests that match no API route: serves a file of the UI, the page for the path of a view, or 404.
pub(crate) async fn serve(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let mut response = find(&method, uri.path(), &headers);
    response.headers_mut().extend(HeaderMap::from_iter(SECURITY_HEADERS));
    if uri.path().trim_start_matches('/') == FRAME {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(FRAME_POLICY));
    }
    response
}

fn find(method: &Method, path: &str, headers: &HeaderMap) -> Response {
    let path = path.trim_start_matches('/');
    let file = Some(path).filter(|p| *p != PAGE).and_then(Pages::get);
    let is_view = VIEWS.contains(&path.split('/').next().unwrap_or_default());
    if (file.is_some() || is_view) && !matches!(*method, Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")]).into_response();
    }
    if let Some(file) = file {
        // File names under assets/ contain a hash of the content.
        let cache_control =
            if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
        return ([(header::CONTENT_TYPE, media_type(path)), (header::CACHE_CONTROL, cache_control)], file.data)
            .into_response();
    }
    let browser = accepts_html(headers);
    if is_view && (browser || accepts_anything(headers)) {
        return page(StatusCode::OK);
    }
    // For an unknown path a browser gets the page, which shows an error, and a program gets JSON.
    if browser && matches!(*method, Method::GET | Method::HEAD) {
        return page(StatusCode::NOT_FOUND);
    }
    let message = format!("there is no {method} /{path}; see /openapi.json");
    let body = json!({ "error_code": "ENDPOINT_NOT_FOUND", "message": message, "error": message });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

fn page(status: StatusCode) -> Response {
    match Pages::get(PAGE) {
        Some(file) => {
            (status, [(header::CONTENT_TYPE, media_type(PAGE)), (header::CACHE_CONTROL, "no-cache")], file.data)
                .into_response()
        }
        None => (
            StatusCode::NOT_FOUND,
            "This build has no web UI: run `make ui` before `cargo build`. The API is at /api, see /openapi.json.\n",
        )
            .into_response(),
    }
}

/// The media types in the `Accept` headers, without parameters.
fn accepted(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(|part| part.split(';').next().unwrap_or_default().trim())
}

/// Whether a request accepts HTML explicitly, as browsers do when they open a page.
fn accepts_html(headers: &HeaderMap) -> bool {
    accepted(headers).any(|kind| kind.eq_ignore_ascii_case("text/html"))
}

/// Whether a request accepts any media type, as curl does.
fn accepts_anything(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::ACCEPT) || accepted(headers).any(|kind| matches!(kind, "*/*" | "text/*"))
}

/// The media type of a UI file, by its extension.
fn media_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "json" => "application/json",
        "woff2" => "font/woff2",
        "png" => "image/png",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

    /// Sends a request; returns status and media type. Also checks the security headers.
    async fn request(method: Method, path: &str, accept: &str) -> (u16, String) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        let response = serve(method, path.parse().unwrap(), headers).await;
        let value = |name| response.headers().get(name).map_or("", |v: &HeaderValue| v.to_str().unwrap());
        assert!(!value(header::CONTENT_SECURITY_POLICY).contains("unsafe"));
        assert_eq!(value(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
        assert_eq!(value(header::REFERRER_POLICY), "no-referrer");
        let media_type = value(header::CONTENT_TYPE).split(';').next().unwrap_or_default().to_owned();
        (response.status().as_u16(), media_type)
    }

    #[tokio::test]
    async fn the_frame_for_html_of_users_is_in_a_sandbox() {
        // A build without the UI has no pages.
        if Pages::get(FRAME).is_none() {
            return;
        }
        let policy = async |path: &str| {
            let response = serve(Method::GET, path.parse().unwrap(), HeaderMap::new()).await;
            assert_eq!(response.status(), 200);
            response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned()
        };
        assert!(policy("/frame.html").await.starts_with("sandbox allow-scripts; default-src 'none'; "));
        assert!(!policy("/").await.contains("sandbox"));
    }

    #[tokio::test]
    async fn views_return_the_page() {
        for path in ["/", "/models", "/models/digits", "/runs/abc", "/compare?runs=a,b", "/gpu"] {
            for accept in [BROWSER, "*/*", ""] {
                assert_eq!(request(Method::GET, path, accept).await, (200, "text/html".into()), "{path} {accept}");
            }
            assert_eq!(request(Method::HEAD, path, BROWSER).await.0, 200, "{path}");
            assert_eq!(
                request(Method::GET, path, "application/json").await,
                (404, "application/json".into()),
                "{path}"
            );
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                assert_eq!(request(method, path, BROWSER).await.0, 405, "{path}");
            }
        }
        assert_eq!(request(Method::GET, "/favicon.svg", "image/*").await, (200, "image/svg+xml".into()));
        assert_eq!(request(Method::POST, "/favicon.svg", "*/*").await.0, 405);
    }

    #[tokio::test]
    async fn unknown_paths_are_404() {
        // OpenTelemetry exporters, MLflow clients and Prometheus must not mistake a page for a success.
        for path in [
            "/v1/traces",
            "/api/nothing",
            "/api/2.0/mlflow/nothing",
            "/api/v1/nothing",
            "/v2/models/x/infer",
            "/index.html/x",
            "/modelsx",
            "/../Cargo.toml",
        ] {
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
                for accept in [BROWSER, "*/*", "application/json", ""] {
                    let response = request(method.clone(), path, accept).await;
                    assert_eq!(response, (404, "application/json".into()), "{method} {path} {accept}");
                }
            }
            for accept in ["*/*", "application/json", ""] {
                assert_eq!(
                    request(Method::GET, path, accept).await,
                    (404, "application/json".into()),
                    "{path} {accept}"
                );
            }
            // A browser gets the page, which shows that the path does not exist.
            assert_eq!(request(Method::GET, path, BROWSER).await.0, 404, "{path}");
        }
    }

    #[test]
    fn page_has_no_inline_scripts_or_styles() {
        let page = Pages::get(PAGE).map(|file| String::from_utf8(file.data.into_owned()).unwrap());
        let Some(page) = page else { return };
        assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains("javascript:"), "{page}");
        for script in page.split("<script").skip(1) {
            assert!(script.starts_with(" type=\"module\" crossorigin src=\"/assets/"), "{script}");
            assert!(script.contains("></script>"), "{script}");
        }
    }
}
