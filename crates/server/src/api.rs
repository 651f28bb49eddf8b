//! slipway's own API (`/api/v1`), health and the OpenAPI document.

use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_access::{Access, Caller, Guard, Resource, Routes, RunTokenUse};
use slipway_serve::LocalPaths;
use slipway_serve::manifest::Manifest;
use slipway_serve::service::{Remembered, Revision, Status};
use slipway_track::service::Lineage;

use crate::run::Addresses;
use crate::{Platform, metrics};

/// The OpenAPI document of these routes.
const OPENAPI: &str = include_str!("openapi.json");

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
        .get("/openapi.json", Access::Public, async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI))
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

async fn status(State(p): State<Platform>) -> Json<Value> {
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": metrics::uptime(&p),
        "memory_bytes": metrics::resident_bytes(),
        "runtime": p.gateway.runtime().about(),
        "deployments": p.gateway.deployments().len(),
        "mlflow": slipway_track::http::MLFLOW_VERSION,
        "runs": if p.cluster.is_there() { "pods" } else { "processes" },
    }))
}

async fn integrity(State(p): State<Platform>) -> Response {
    let checked = tokio::task::spawn_blocking(move || p.database.integrity()).await;
    match checked {
        Ok(Ok(result)) => Json(json!({ "result": result })).into_response(),
        Ok(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "result": e.to_string() }))).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "result": e.to_string() }))).into_response(),
    }
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

#[derive(Deserialize)]
struct Weights {
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

#[derive(Deserialize, Default)]
struct Rollback {
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

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn requests(State(p): State<Platform>, Query(q): Query<Limit>) -> Json<Vec<Remembered>> {
    Json(p.gateway.recent(q.limit.unwrap_or(50).min(1000)))
}

#[derive(Serialize)]
struct RequestLineage {
    request: Remembered,
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

#[derive(Deserialize)]
struct RunIds {
    run_ids: Vec<String>,
}

async fn run_versions(State(p): State<Platform>, body: Bytes) -> Result<Json<Value>, Failure> {
    let asked: RunIds = json_body(&body)?;
    let found = p.tracking.versions_of_runs(&asked.run_ids)?;
    Ok(Json(json!(found)))
}
