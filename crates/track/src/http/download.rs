//! Artifact downloads: ranges, media types, and headers that prevent a browser from executing an artifact.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use slipway_access::confine;
use slipway_core::byte_range;
use unicode_normalization::UnicodeNormalization;

use crate::{Error, Tracking, artifact_path};

/// Sends an object, or the part of it that the `Range` header requests, always as an attachment.
pub(super) async fn send(t: &Tracking, path: &str, request: &HeaderMap) -> Result<Response, Error> {
    let reader = t.open_artifact(path).await?;
    let size = reader.size;
    let range = request.get(header::RANGE).and_then(|r| r.to_str().ok()).and_then(|r| byte_range::parse(r, size));
    let mut response = match range {
        Some(Err(byte_range::Unsatisfiable)) => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        Some(Ok((from, to))) => {
            let part = Body::from_stream(reader.stream(from, to));
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_LENGTH, to - from)], part).into_response()
        }
        None => ([(header::CONTENT_LENGTH, size)], Body::from_stream(reader.stream(0, size))).into_response(),
    };
    let headers = response.headers_mut();
    let content_range = match range {
        Some(Err(byte_range::Unsatisfiable)) => Some(format!("bytes */{size}")),
        Some(Ok((from, to))) => Some(format!("bytes {from}-{}/{size}", to - 1)),
        None => None,
    };
    if let Some(value) = content_range.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(header::CONTENT_RANGE, value);
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type(path)));
    headers.insert(header::CONTENT_DISPOSITION, attachment(path.rsplit('/').next().unwrap_or_default()));
    confine(headers);
    Ok(response)
}

/// `Content-Disposition` by RFC 6266, with RFC 5987 for names that are not ASCII. A name that cannot be sent is omitted, so that
/// the response is always an attachment.
fn attachment(name: &str) -> HeaderValue {
    let unnamed = HeaderValue::from_static("attachment");
    if name.is_empty() || !artifact_path::is_printable(name) {
        return unnamed;
    }
    let is_token_char = |c: char| c.is_ascii_alphanumeric() || "!#$&+-.^_`|~".contains(c);
    let text = if name.chars().all(is_token_char) {
        format!("attachment; filename={name}")
    } else if name.is_ascii() {
        format!("attachment; filename=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        // The closest ASCII name: accents are removed.
        let plain: String = name.nfkd().filter(|c| is_token_char(*c)).collect();
        let encoded: String = name
            .bytes()
            .map(|b| if is_token_char(char::from(b)) { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect();
        let plain = if plain.trim_matches('.').is_empty() { "download" } else { &plain };
        format!("attachment; filename={plain}; filename*=UTF-8''{encoded}")
    };
    HeaderValue::try_from(text).unwrap_or(unnamed)
}

/// The media type for a file name extension. All text formats are `text/plain`, as in MLflow. Unlike in MLflow, so are HTML and SVG,
/// because a browser must not treat an artifact as a page of this server.
fn media_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let extension = name.rsplit_once('.').map_or(name, |(_, e)| e).to_ascii_lowercase();
    match extension.as_str() {
        "txt" | "log" | "err" | "cfg" | "conf" | "cnf" | "cf" | "ini" | "properties" | "prop" | "hocon" | "toml"
        | "yaml" | "yml" | "xml" | "json" | "js" | "py" | "py3" | "csv" | "tsv" | "md" | "rst" | "mlmodel"
        | "mlproject" | "requirements" | "html" | "htm" | "svg" => "text/plain",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachment_names_are_encoded() {
        for (name, expected) in [
            ("a.txt", "attachment; filename=a.txt"),
            ("a b.txt", "attachment; filename=\"a b.txt\""),
            ("a\\b\".txt", "attachment; filename=\"a\\\\b\\\".txt\""),
            ("é.txt", "attachment; filename=e.txt; filename*=UTF-8''%C3%A9.txt"),
            ("a\nb.html", "attachment"),
            ("\u{202e}x", "attachment"),
            ("", "attachment"),
        ] {
            assert_eq!(attachment(name), expected, "{name:?}");
        }
    }
}
