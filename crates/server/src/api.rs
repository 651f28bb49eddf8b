//! slipway's own API (`/api/v1`) for deployments and lineage, and the health routes.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use slipway_access::{Access, Caller, Guard, Resource, Routes, RunTokenUse};
use slipway_serve::LocalPaths;
use slipway_serve::manifest::Manifest;
use slipway_serve::service::{RequestRecord, Revision, Status};
use slipway_track::service::Lineage;

use crate::addresses::Addresses;
use crate::limit_query::LimitQuery;
use crate::{Platform, metrics};

pub(crate) fn routes(platform: Platform) -> Routes {
    let authenticated = Access::Authenticated(RunTokenUse::Denied);
    let read = Access::get(Resource::Deployments);
    let update = Access::update(Resource::Deployments);
    Routes::new()
        .get("/status", authenticated, status)
        // Reads the whole database, so it requires a permission.
        .get("/integrity", Access::get(Resource::Installation), integrity)
        .get("/deployments", read, deployments)
        .post("/deployments", update, apply)
        .get("/deployments/{name}", read, deployment)
        .delete("/deployments/{name}", Access::delete(Resource::Deployments), remove)
        .post("/deployments/{name}/split", update, split)
        .post("/deployments/{name}/rollback", update, rollback)
        .get("/deployments/{name}/history", read, history)
        .get("/requests", read, requests)
        .get("/requests/{id}/lineage", read, request_lineage)
        .get("/models/{name}/versions/{version}/lineage", Access::get(Resource::Models), version_lineage)
        // A POST only because the ids are in a body; it changes nothing.
        .post("/run-versions", Access::get(Resource::Experiments), run_versions)
        .fallback(authenticated, async || {
            (StatusCode::NOT_FOUND, Json(json!({ "error": "no such path; see /openapi.json" })))
        })
        .with_state(platform)
}

/// Serves inference on the control port, so that the UI's "try it" form needs no other origin. These routes authorize the caller and then
/// call the gateway in this process, without a second check.
pub(crate) fn gateway_routes(gateway: Routes) -> Routes {
    let infer_access = Access::create(Resource::Inferences);
    Routes::new()
        .post("/deployments/{name}/infer", infer_access, infer)
        .get("/deployments/{name}/metadata", infer_access, metadata)
        .with_state(Guard::in_process().protect(gateway))
}

pub(crate) fn health_routes(platform: Platform) -> Routes {
    Routes::new()
        .get("/healthz", Access::Public, async || "ok\n")
        .get("/readyz", Access::Public, ready)
        .with_state(platform.clone())
        .merge(metrics_routes(platform))
}

/// The metrics of the whole server, for the control port and the inference port.
pub(crate) fn metrics_routes(platform: Platform) -> Routes {
    Routes::new().get("/metrics", Access::Authenticated(RunTokenUse::Denied), prometheus).with_state(platform)
}

/// The addresses of the ports, for the UI and remote clients.
pub(crate) fn addresses_routes(addresses: Addresses) -> Routes {
    let authenticated = Access::Authenticated(RunTokenUse::Scoped);
    Routes::new().get("/api/v1/addresses", authenticated, async move || Json(addresses))
}

/// Timeout of the database writer's ping in a readiness probe. Probes themselves time out after a second or more.
const READY_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(900);

/// An error of a domain, converted into its response.
enum Failure {
    Track(slipway_track::Error),
    Serve(slipway_serve::Error),
}

impl From<slipway_track::Error> for Failure {
    fn from(e: slipway_track::Error) -> Self {
        Self::Track(e)
    }
}
impl From<slipway_serve::Error> for Failure {
    fn from(e: slipway_serve::Error) -> Self {
        Self::Serve(e)
    }
}
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Track(e) => e.into_response(),
            Self::Serve(e) => e.into_response(),
        }
    }
}

async fn ready(State(p): State<Platform>) -> Response {
    // Check the writer and a reader: a server whose writer has failed can still read, but would lose every change.
    let reads = || p.database.read_now(|c| c.first("SELECT 1", slipway_store::sql::params![], |_| Ok(())));
    match p.database.ping_writer(READY_TIMEOUT).await.and_then(|()| reads()) {
        Ok(_) => "ready\n".into_response(),
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response(),
    }
}

async fn prometheus(State(p): State<Platform>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&p)).into_response()
}

/// Version and state of the server.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ServerStatus {
    /// Version of slipway.
    version: &'static str,
    /// Seconds since the server started.
    uptime_seconds: f64,
    /// Resident memory of the server in bytes.
    memory_bytes: u64,
    /// The runtime that executes models, such as `ONNX Runtime from /usr/lib/libonnxruntime.so`.
    runtime: String,
    /// Number of deployments.
    deployments: usize,
    /// The MLflow version whose API the server implements.
    mlflow: &'static str,
    /// How submitted runs are executed.
    runs: RunsAs,
}

/// How submitted runs are executed.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RunsAs {
    /// As pods of the cluster.
    Pods,
    /// As processes on the server's machine.
    Processes,
}

async fn status(State(p): State<Platform>) -> Json<ServerStatus> {
    Json(ServerStatus {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: metrics::uptime(&p),
        memory_bytes: metrics::resident_bytes(),
        runtime: p.gateway.runtime().about().to_owned(),
        deployments: p.gateway.deployments().len(),
        mlflow: slipway_track::http::MLFLOW_VERSION,
        runs: if p.cluster.is_present() { RunsAs::Pods } else { RunsAs::Processes },
    })
}

/// Result of the database's integrity check.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Integrity {
    /// `ok`, or the problems that were found.
    result: String,
}

async fn integrity(State(p): State<Platform>) -> Response {
    let checked = tokio::task::spawn_blocking(move || p.database.integrity()).await;
    let (status, result) = match checked {
        Ok(Ok(result)) => (StatusCode::OK, result),
        Ok(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    };
    (status, Json(Integrity { result })).into_response()
}

async fn deployments(State(p): State<Platform>) -> Json<Vec<Status>> {
    Json(p.gateway.statuses())
}

async fn deployment(State(p): State<Platform>, Path(name): Path<String>) -> Result<Json<Status>, Failure> {
    Ok(Json(p.gateway.status(&name)?))
}

/// Whether a caller's manifest may name files on this machine: only the owner's, who could read them anyway.
fn local_paths(caller: &Caller) -> LocalPaths {
    if *caller == Caller::Owner { LocalPaths::Allowed } else { LocalPaths::Refused }
}

async fn apply(
    State(p): State<Platform>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Json<Status>, Failure> {
    let text = std::str::from_utf8(&body)
        .map_err(|e| slipway_serve::Error::Manifest(format!("the manifest is not UTF-8: {e}")))?;
    Ok(Json(p.gateway.apply(Manifest::parse(text)?, "apply", local_paths(&caller)).await?))
}

async fn remove(State(p): State<Platform>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    p.gateway.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Traffic weights of the models of a deployment.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "TrafficWeights")]
pub(crate) struct Weights {
    /// Per cent for each model, by name. They must add up to 100; a model without a weight gets 0.
    weights: std::collections::BTreeMap<String, u32>,
}

fn json_body<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|e| slipway_serve::Error::Invalid(format!("the request body is not valid: {e}")).into())
}

async fn split(State(p): State<Platform>, Path(name): Path<String>, body: Bytes) -> Result<Json<Status>, Failure> {
    let request: Weights = json_body(&body)?;
    let weights: Vec<_> = request.weights.into_iter().collect();
    Ok(Json(p.gateway.split(&name, &weights).await?))
}

/// The revision to activate again.
#[derive(Deserialize, Default, JsonSchema)]
pub(crate) struct Rollback {
    /// Revision number; the one before the active revision if unset.
    to: Option<i64>,
}

async fn rollback(
    State(p): State<Platform>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Status>, Failure> {
    let request = if body.is_empty() { Rollback::default() } else { json_body(&body)? };
    Ok(Json(p.gateway.rollback(&name, request.to, local_paths(&caller)).await?))
}

async fn history(State(p): State<Platform>, Path(name): Path<String>) -> Result<Json<Vec<Revision>>, Failure> {
    Ok(Json(p.gateway.history(&name)?))
}

async fn infer(State(gateway): State<Router>, Path(name): Path<String>, request: Request) -> Result<Response, Failure> {
    forward(gateway, format!("/v2/models/{name}/infer"), request).await
}

async fn metadata(
    State(gateway): State<Router>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    forward(gateway, format!("/v2/models/{name}"), request).await
}

async fn forward(gateway: Router, path: String, request: Request) -> Result<Response, Failure> {
    use tower::ServiceExt;
    let (mut parts, body) = request.into_parts();
    // Otherwise the gateway's router would also see this router's path parameters.
    parts.extensions.clear();
    parts.uri =
        path.parse().map_err(|e| slipway_serve::Error::Invalid(format!("'{path}' is not a valid path: {e}")))?;
    let response = gateway.oneshot(Request::from_parts(parts, body)).await;
    Ok(response.unwrap_or_else(|never| match never {}))
}

async fn requests(State(p): State<Platform>, Query(q): Query<LimitQuery>) -> Json<Vec<RequestRecord>> {
    Json(p.gateway.recent(q.limit.unwrap_or(50).min(1000)))
}

/// A served inference request and the lineage of its model.
#[derive(Serialize, JsonSchema)]
pub(crate) struct RequestLineage {
    /// The served request.
    request: RequestRecord,
    /// Lineage of the model; null for a model that is not registered.
    lineage: Option<Lineage>,
}

async fn request_lineage(State(p): State<Platform>, Path(id): Path<String>) -> Result<Json<RequestLineage>, Failure> {
    let request = p.gateway.request(&id).ok_or_else(|| {
        slipway_serve::Error::NotFound(format!("request '{id}' is not among the last 1000 served requests"))
    })?;
    let lineage = if request.model.name.is_empty() {
        None
    } else {
        Some(p.tracking.lineage(&request.model.name, &request.model.version)?)
    };
    Ok(Json(RequestLineage { request, lineage }))
}

async fn version_lineage(
    State(p): State<Platform>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<Lineage>, Failure> {
    Ok(Json(p.tracking.lineage(&name, &version)?))
}

/// Ids of tracked runs.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct RunIds {
    /// MLflow run ids.
    run_ids: Vec<String>,
}

async fn run_versions(
    State(p): State<Platform>,
    body: Bytes,
) -> Result<Json<HashMap<String, Vec<(String, i64)>>>, Failure> {
    let request: RunIds = json_body(&body)?;
    Ok(Json(p.tracking.versions_of_runs(&request.run_ids)?))
}
