//! `/mlflow/artifacts/list`, the artifact proxy `/mlflow-artifacts/*`, and MLflow's download pages.

use axum::body::Body;
use axum::extract::{Path, RawQuery, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use slipway_access::Routes;
use unicode_normalization::UnicodeNormalization;

use super::access::{DELETE_EXPERIMENTS, READ_EXPERIMENTS, READ_MODELS, TRACK_EXPERIMENTS};
use super::logged_models::Listing;
use super::scoped::Scoped;
use super::wire::{Call, Empty, Int, List, Reply, messages};
use crate::model::FileInfo;
use crate::service::{ArtifactRoot, Tracking};
use crate::{Error, validate};

messages! {
    ListArtifacts { #[required] run_id or run_uuid: String, path: String, page_token: String }
    ListProxied { path: String }
    CreateUpload { #[required] path: String, num_parts: Int }
    CompleteUpload { #[required] path: String, upload_id: String, #[required] parts: List<Part> }
    AbortUpload { #[required] path: String, upload_id: String }
}

/// A part that was uploaded.
#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    part_number: Int,
}

pub(super) fn routes() -> Routes<Tracking> {
    Routes::new()
        .get("/2.0/mlflow/artifacts/list", READ_EXPERIMENTS, list)
        .get("/2.0/mlflow-artifacts/artifacts", READ_EXPERIMENTS, list_proxied)
        .post("/2.0/mlflow-artifacts/mpu/create/{*path}", TRACK_EXPERIMENTS, create_upload)
        .post("/2.0/mlflow-artifacts/mpu/complete/{*path}", TRACK_EXPERIMENTS, complete_upload)
        .post("/2.0/mlflow-artifacts/mpu/abort/{*path}", TRACK_EXPERIMENTS, abort_upload)
        .get("/2.0/mlflow/logged-models/{model_id}/artifacts/files", READ_EXPERIMENTS, logged_model_file)
}

/// Uploads, whose size only the disk limits.
pub(super) fn streaming_routes() -> Routes<Tracking> {
    Routes::new()
        .get("/2.0/mlflow-artifacts/artifacts/{*path}", READ_EXPERIMENTS, download)
        .put("/2.0/mlflow-artifacts/artifacts/{*path}", TRACK_EXPERIMENTS, upload)
        .delete("/2.0/mlflow-artifacts/artifacts/{*path}", DELETE_EXPERIMENTS, delete)
        .put("/2.0/mlflow-artifacts/mpu/part/{upload_id}/{number}", TRACK_EXPERIMENTS, upload_part)
}

/// Routes of MLflow's web pages that clients use too.
pub(super) fn ui_routes() -> Routes<Tracking> {
    Routes::new().get("/get-artifact", READ_EXPERIMENTS, run_file).get(
        "/model-versions/get-artifact",
        READ_MODELS,
        version_file,
    )
}

async fn list(Scoped(t): Scoped, Call(m): Call<ListArtifacts>) -> Result<Reply<Listing>, Error> {
    let path = m.path.unwrap_or_default();
    let run_id = m.run_id.unwrap_or_default();
    let (root_uri, files) = t.list_artifacts(ArtifactRoot::Run(&run_id), &path).await?;
    Ok(Reply(Listing { root_uri, files }))
}

#[derive(Serialize)]
struct Proxied {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileInfo>,
}

async fn list_proxied(Scoped(t): Scoped, Call(m): Call<ListProxied>) -> Result<Reply<Proxied>, Error> {
    let folder = m.path.unwrap_or_default();
    Ok(Reply(Proxied { files: t.list_folder(folder.trim_matches('/'), "").await? }))
}

async fn upload(Scoped(t): Scoped, Path(path): Path<String>, request: Request) -> Result<Reply<Empty>, Error> {
    validate::artifact_path(&path)?;
    t.may_change_artifact(&path)?;
    t.objects.put(&path, request.into_body().into_data_stream()).await?;
    Ok(Reply(Empty {}))
}

async fn delete(Scoped(t): Scoped, Path(path): Path<String>) -> Result<Reply<Empty>, Error> {
    validate::artifact_path(&path)?;
    t.objects.delete(&path).await?;
    Ok(Reply(Empty {}))
}

async fn download(Scoped(t): Scoped, Path(path): Path<String>, headers: HeaderMap) -> Result<Response, Error> {
    validate::artifact_path(&path)?;
    send(&t, &path, &headers).await
}

fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.find(|(k, _)| k == name).map(|(_, v)| v.into_owned())
}

async fn run_file(Scoped(t): Scoped, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Error> {
    let value = |name| query_value(query.as_deref(), name);
    let run_id = value("run_id").or_else(|| value("run_uuid")).unwrap_or_default();
    let object = t.artifact_object(ArtifactRoot::Run(&run_id), &value("path").unwrap_or_default())?;
    send(&t, &object, &headers).await
}

async fn version_file(Scoped(t): Scoped, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Error> {
    let value = |name| query_value(query.as_deref(), name).unwrap_or_default();
    let (name, version) = (value("name"), value("version"));
    let object = t.artifact_object(ArtifactRoot::Version(&name, &version), &value("path"))?;
    send(&t, &object, &headers).await
}

async fn logged_model_file(
    Scoped(t): Scoped,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let path = query_value(query.as_deref(), "artifact_file_path").filter(|p| !p.is_empty()).ok_or_else(|| {
        Error::new(crate::ErrorCode::BadRequest, "Request must include the \"artifact_file_path\" query parameter.")
    })?;
    let object = t.artifact_object(ArtifactRoot::LoggedModel(&id), &path)?;
    send(&t, &object, &headers).await
}

/// Sends an object, or the part of it that `Range` names, always as an attachment.
async fn send(t: &Tracking, path: &str, headers: &HeaderMap) -> Result<Response, Error> {
    let reader = t.objects.get(path).await?;
    let size = reader.size;
    let range = headers.get(header::RANGE).and_then(|r| r.to_str().ok()).and_then(|r| byte_range(r, size));
    let (from, to) = match range {
        Some(Err(())) => {
            let range = format!("bytes */{size}");
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, range)]).into_response());
        }
        Some(Ok(range)) => range,
        None => (0, size),
    };
    let mut response = Response::new(Body::from_stream(reader.stream(from, to)));
    let set = response.headers_mut();
    set.insert(header::CONTENT_LENGTH, (to - from).into());
    set.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    set.insert(header::CONTENT_TYPE, HeaderValue::from_static(mime_type(path)));
    let name = path.rsplit('/').next().unwrap_or("download");
    if let Ok(value) = HeaderValue::from_str(&attachment(name)) {
        set.insert(header::CONTENT_DISPOSITION, value);
    }
    if matches!(range, Some(Ok(_))) {
        if let Ok(value) = HeaderValue::from_str(&format!("bytes {from}-{}/{size}", to - 1)) {
            set.insert(header::CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// One range of RFC 9110 section 14.1.2 as `from..to`; `Err` when it lies outside, `None` when it is not understood.
fn byte_range(text: &str, size: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        (size.saturating_sub(suffix), size)
    } else {
        let from: u64 = first.parse().ok()?;
        let to = if last.is_empty() { size } else { last.parse::<u64>().ok()?.saturating_add(1).min(size) };
        (from, to)
    };
    Some(if range.0 < range.1 { Ok(range) } else { Err(()) })
}

/// RFC 6266 with RFC 5987 for names that are not ASCII.
fn attachment(name: &str) -> String {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$&+-.^_`|~".contains(c);
    if name.chars().all(token) {
        return format!("attachment; filename={name}");
    }
    if name.is_ascii() {
        return format!("attachment; filename=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    }
    // The closest ASCII name: letters without their accents.
    let plain: String = name.nfkd().filter(|c| token(*c)).collect();
    let encoded: String = name
        .bytes()
        .map(|b| if token(char::from(b)) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    let plain = if plain.trim_matches('.').is_empty() { "download" } else { &plain };
    format!("attachment; filename={plain}; filename*=UTF-8''{encoded}")
}

/// The media type by the name's ending; texts of all kinds are `text/plain`, as MLflow sends them.
fn mime_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let ending = name.rsplit_once('.').map_or(name, |(_, e)| e).to_ascii_lowercase();
    match ending.as_str() {
        "txt" | "log" | "err" | "cfg" | "conf" | "cnf" | "cf" | "ini" | "properties" | "prop" | "hocon" | "toml"
        | "yaml" | "yml" | "xml" | "json" | "js" | "py" | "py3" | "csv" | "tsv" | "md" | "rst" | "mlmodel"
        | "mlproject" | "requirements" => "text/plain",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        "html" | "htm" => "text/html",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        _ => "application/octet-stream",
    }
}

#[derive(Serialize)]
struct Upload {
    upload_id: String,
    credentials: Vec<Credential>,
}

#[derive(Serialize)]
struct Credential {
    url: String,
    part_number: i64,
    headers: std::collections::BTreeMap<String, String>,
}

async fn create_upload(
    Scoped(t): Scoped,
    Path(folder): Path<String>,
    headers: HeaderMap,
    Call(m): Call<CreateUpload>,
) -> Result<Reply<Upload>, Error> {
    t.may_change_artifact(&object(&folder, m.path.as_deref().unwrap_or_default())?)?;
    let parts = m.num_parts.map_or(1, |n| n.0);
    if !(1..=10_000).contains(&parts) {
        return Err(Error::invalid(format!("num_parts must be between 1 and 10000, got {parts}.")));
    }
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
    let scheme = headers.get("x-forwarded-proto").and_then(|h| h.to_str().ok()).unwrap_or("http");
    // Clients send parts without the credentials of the request, so these URLs carry them on.
    let passed: std::collections::BTreeMap<_, _> = headers
        .get(header::AUTHORIZATION)
        .and_then(|h| h.to_str().ok())
        .map(|h| ("Authorization".to_owned(), h.to_owned()))
        .into_iter()
        .collect();
    let upload_id = t.objects.begin_parts().await?;
    let credentials = (1..=parts)
        .map(|n| Credential {
            url: format!("{scheme}://{host}/api/2.0/mlflow-artifacts/mpu/part/{upload_id}/{n}"),
            part_number: n,
            headers: passed.clone(),
        })
        .collect();
    Ok(Reply(Upload { upload_id, credentials }))
}

async fn upload_part(
    Scoped(t): Scoped,
    Path((upload_id, number)): Path<(String, u32)>,
    request: Request,
) -> Result<Response, Error> {
    t.objects.put_part(&upload_id, number, request.into_body().into_data_stream()).await?;
    Ok([(header::ETAG, format!("\"{upload_id}-{number}\""))].into_response())
}

/// Where an upload goes: `path` is the file as the client's machine names it, of which only the name counts.
fn object(folder: &str, path: &str) -> Result<String, Error> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let place = format!("{folder}/{file}");
    validate::artifact_path(&place)?;
    Ok(place)
}

async fn complete_upload(
    Scoped(t): Scoped,
    Path(folder): Path<String>,
    Call(m): Call<CompleteUpload>,
) -> Result<Reply<Empty>, Error> {
    let place = object(&folder, m.path.as_deref().unwrap_or_default())?;
    t.may_change_artifact(&place)?;
    let mut numbers: Vec<u32> = Vec::new();
    for part in m.parts.map(|l| l.0).unwrap_or_default() {
        let number = part.part_number.0;
        numbers.push(u32::try_from(number).map_err(|_| Error::invalid(format!("Invalid part number {number}.")))?);
    }
    numbers.sort_unstable();
    t.objects.complete_parts(m.upload_id.as_deref().unwrap_or_default(), numbers, &place).await?;
    Ok(Reply(Empty {}))
}

async fn abort_upload(
    Scoped(t): Scoped,
    Path(folder): Path<String>,
    Call(m): Call<AbortUpload>,
) -> Result<Reply<Empty>, Error> {
    validate::artifact_path(&folder)?;
    t.may_change_artifact(&folder)?;
    t.objects.abort_parts(m.upload_id.as_deref().unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(byte_range("bytes=0-4", 10), Some(Ok((0, 5))));
        assert_eq!(byte_range("bytes=-3", 10), Some(Ok((7, 10))));
        assert_eq!(byte_range("bytes=8-", 10), Some(Ok((8, 10))));
        assert_eq!(byte_range("bytes=10-", 10), Some(Err(())));
        assert_eq!(byte_range("lines=1-2", 10), None);
    }

    #[test]
    fn names_of_attachments() {
        assert_eq!(attachment("a.txt"), "attachment; filename=a.txt");
        assert_eq!(attachment("a b.txt"), "attachment; filename=\"a b.txt\"");
        assert_eq!(attachment("é.txt"), "attachment; filename=e.txt; filename*=UTF-8''%C3%A9.txt");
    }
}
