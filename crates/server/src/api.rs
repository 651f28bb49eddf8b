//! slipway's own API (`/api/v1`), and health.

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
use slipway_serve::service::{Remembered, Revision, Status};
use slipway_track::service::Lineage;

use crate::run::Addresses;
use crate::{Platform, metrics};

pub(crate) fn routes(platform: Platform) -> Routes {
    let known = Access::Authenticated(RunTokenUse::Denied);
    let read = Access::get(Resource::Deployments);
    let change = Access::update(Resource::Deployments);
    Routes::new()
        .get("/status", known, status)
        // It reads the whole database, so it is not for everybody.
        .get("/integrity", Access::get(Resource::Installation), integrity)
        .get("/deployments", read, deployments)
        .post("/deployments", change, apply)
        .get("/deployments/{name}", read, deployment)
        .delete("/deployments/{name}", Access::delete(Resource::Deployments), remove)
        .post("/deployments/{name}/split", change, split)
        .post("/deployments/{name}/rollback", change, rollback)
        .get("/deployments/{name}/history", read, history)
        .get("/requests", read, requests)
        .get("/requests/{id}/lineage", read, request_lineage)
        .get("/models/{name}/versions/{version}/lineage", Access::get(Resource::Models), version_lineage)
        // Asked for with a body, and nothing but read.
        .post("/run-versions", Access::get(Resource::Experiments), run_versions)
        .fallback(known, async || (StatusCode::NOT_FOUND, Json(json!({ "error": "no such path; see /openapi.json" }))))
        .with_state(platform)
}

/// The gateway's own routes on this port, so that the UI's "try it" form needs no other origin. The routes here have authorized the caller
/// when the gateway, in this process, is called.
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
        .get("/metrics", Access::Authenticated(RunTokenUse::Denied), prometheus)
        .with_state(platform)
}

/// Where the ports are, for the UI and remote clients.
pub(crate) fn addresses_routes(addresses: Addresses) -> Routes {
    let known = Access::Authenticated(RunTokenUse::Scoped);
    Routes::new().get("/api/v1/addresses", known, async move || Json(addresses))
}

/// The writer has this long to answer a readiness probe, whose own time limit is a second or more.
const READY_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(900);

/// An error of a domain as an answer.
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
    // A server that could only read would look alive while it loses every change, so the writer is asked, and a reader too.
    let reads = || p.database.read_now(|c| c.first("SELECT 1", slipway_store::sql::params![], |_| Ok(())));
    match p.database.ping_writer(READY_TIMEOUT).await.and_then(|()| reads()) {
        Ok(_) => "ready\n".into_response(),
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response(),
    }
}

async fn prometheus(State(p): State<Platform>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&p)).into_response()
}

/// What the server is and how it does.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ServerStatus {
    /// slipway's version.
    version: &'static str,
    /// Seconds since the server started.
    uptime_seconds: f64,
    /// Resident memory of the server.
    memory_bytes: u64,
    /// What runs the models.
    runtime: String,
    /// Number of deployments.
    deployments: usize,
    /// The version of MLflow whose API is spoken.
    mlflow: &'static str,
    /// What runs are carried out as.
    runs: RunsAs,
}

/// What runs are carried out as.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RunsAs {
    /// Pods of the cluster.
    Pods,
    /// Processes of the server's machine.
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
        runs: if p.cluster.is_there() { RunsAs::Pods } else { RunsAs::Processes },
    })
}

/// What the database found when it checked its file.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Integrity {
    /// `ok`, or what is wrong.
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

/// Whether a manifest may name files of this machine: only the owner of the state folder, who could read them anyway.
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

/// How traffic is shared among the models of a deployment.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "TrafficWeights")]
pub(crate) struct Weights {
    /// Per cent for each model, 100 together; a model that is not named gets none.
    weights: std::collections::BTreeMap<String, u32>,
}

fn json_body<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|e| slipway_serve::Error::Invalid(format!("the body is not the JSON that is expected: {e}")).into())
}

async fn split(State(p): State<Platform>, Path(name): Path<String>, body: Bytes) -> Result<Json<Status>, Failure> {
    let asked: Weights = json_body(&body)?;
    let weights: Vec<_> = asked.weights.into_iter().collect();
    Ok(Json(p.gateway.split(&name, &weights).await?))
}

/// Which revision is put in force again.
#[derive(Deserialize, Default, JsonSchema)]
pub(crate) struct Rollback {
    /// Its number; the one before the revision in force if unset.
    to: Option<i64>,
}

async fn rollback(
    State(p): State<Platform>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Status>, Failure> {
    let asked = if body.is_empty() { Rollback::default() } else { json_body(&body)? };
    Ok(Json(p.gateway.rollback(&name, asked.to, local_paths(&caller)).await?))
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
    // This router's path parameters would count as the other's.
    parts.extensions.clear();
    parts.uri = path.parse().map_err(|e| slipway_serve::Error::Invalid(format!("'{path}' is no path: {e}")))?;
    let answer = gateway.oneshot(Request::from_parts(parts, body)).await;
    Ok(answer.unwrap_or_else(|never| match never {}))
}

/// How many are answered with.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Limit {
    /// At most so many, up to 1000; 50 if unset.
    pub(crate) limit: Option<usize>,
}

async fn requests(State(p): State<Platform>, Query(q): Query<Limit>) -> Json<Vec<Remembered>> {
    Json(p.gateway.recent(q.limit.unwrap_or(50).min(1000)))
}

/// An answered request and where its model came from.
#[derive(Serialize, JsonSchema)]
pub(crate) struct RequestLineage {
    /// The request.
    request: Remembered,
    /// Where its model came from; null for a model that is not registered.
    lineage: Option<Lineage>,
}

async fn request_lineage(State(p): State<Platform>, Path(id): Path<String>) -> Result<Json<RequestLineage>, Failure> {
    let request = p.gateway.request(&id).ok_or_else(|| {
        slipway_serve::Error::NotFound(format!("request '{id}' is not among the last thousand that were answered"))
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

/// Tracked runs.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct RunIds {
    /// Their ids.
    run_ids: Vec<String>,
}

async fn run_versions(
    State(p): State<Platform>,
    body: Bytes,
) -> Result<Json<HashMap<String, Vec<(String, i64)>>>, Failure> {
    let asked: RunIds = json_body(&body)?;
    Ok(Json(p.tracking.versions_of_runs(&asked.run_ids)?))
}
