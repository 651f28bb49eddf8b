//! Routes of artifacts: `/mlflow/artifacts/list`, the artifact proxy `/mlflow-artifacts/*`, and MLflow's download URLs.

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, Request};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use slipway_access::{Access, Routes};

use super::access::{DELETE_EXPERIMENTS, READ_EXPERIMENTS, READ_MODELS, TRACK_EXPERIMENTS};
use super::download::send;
use super::logged_models::Listing;
use super::scoped::Scoped;
use super::uploads::{abort_upload, complete_upload, create_upload, upload_part};
use super::wire::{Call, Empty, Reply, messages, read_body};
use crate::model::FileInfo;
use crate::service::{ArtifactRoot, Tracking};
use crate::{Error, ErrorCode, artifact_path};

/// Maximum bytes of a file that the UI uploads in one request, as in MLflow.
const UI_UPLOAD_LIMIT: usize = 10 * 1024 * 1024;

messages! {
    ListArtifacts { #[required] run_id or run_uuid: String, path: String, page_token: String }
    ListProxied { path: String }
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

/// Routes that stream artifacts. They have no limit on the request body; the object store has its own limits.
pub(super) fn streaming_routes() -> Routes<Tracking> {
    Routes::new()
        .get("/2.0/mlflow-artifacts/artifacts/{*path}", READ_EXPERIMENTS, download)
        .put("/2.0/mlflow-artifacts/artifacts/{*path}", TRACK_EXPERIMENTS, upload)
        .delete("/2.0/mlflow-artifacts/artifacts/{*path}", DELETE_EXPERIMENTS, delete)
        .put("/2.0/mlflow-artifacts/mpu/part/{upload_id}/{number}", Access::SignedUrl, upload_part)
}

/// Routes of MLflow's web UI that API clients also use.
pub(super) fn ui_routes() -> Routes<Tracking> {
    Routes::new()
        .post("/ajax-api/2.0/mlflow/upload-artifact", TRACK_EXPERIMENTS, upload_run_file)
        .layer(DefaultBodyLimit::max(UI_UPLOAD_LIMIT))
        .get("/get-artifact", READ_EXPERIMENTS, run_file)
        .get("/model-versions/get-artifact", READ_MODELS, version_file)
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
    let path = artifact_path::for_writing(&path)?;
    t.may_change_artifact(&path)?;
    t.objects.put(&path, request.into_body().into_data_stream()).await?;
    Ok(Reply(Empty {}))
}

async fn delete(Scoped(t): Scoped, Path(path): Path<String>) -> Result<Reply<Empty>, Error> {
    t.delete_artifact(&path).await?;
    Ok(Reply(Empty {}))
}

async fn download(Scoped(t): Scoped, Path(path): Path<String>, headers: HeaderMap) -> Result<Response, Error> {
    send(&t, &path, &headers).await
}

/// The first value of a parameter in a query string.
pub(super) fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.find(|(k, _)| k == name).map(|(_, v)| v.into_owned())
}

async fn run_file(Scoped(t): Scoped, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Error> {
    let value = |name| query_value(query.as_deref(), name);
    let run_id = value("run_id").or_else(|| value("run_uuid")).unwrap_or_default();
    let object = t.artifact_object(ArtifactRoot::Run(&run_id), &value("path").unwrap_or_default())?;
    send(&t, &object, &headers).await
}

/// Stores the request's body as an artifact of a run (`upload_artifact_handler` in MLflow's `handlers.py`).
async fn upload_run_file(
    Scoped(t): Scoped,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<impl IntoResponse, Error> {
    let value = |name| {
        let found = query_value(query.as_deref(), name).filter(|v| !v.is_empty());
        found.ok_or_else(|| Error::invalid(format!("Request must specify {name}.")))
    };
    let (run_id, path) = (value("run_uuid")?, value("path")?);
    let path = artifact_path::for_writing(&path)?;
    let data = read_body(request).await.map_err(|e| match e.code {
        ErrorCode::TooLarge => Error::invalid("Artifact size is too large. Max size is 10MB."),
        _ => e,
    })?;
    if data.is_empty() {
        return Err(Error::invalid("Request must specify data."));
    }
    let object = t.artifact_object(ArtifactRoot::Run(&run_id), &path)?;
    t.may_change_artifact(&object)?;
    t.objects.put(&object, Body::from(data).into_data_stream()).await?;
    Ok([(header::CONTENT_TYPE, "text/html; charset=utf-8")])
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
