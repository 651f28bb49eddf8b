//! slipway's own API (`/api/v1`), health and the OpenAPI document.

use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_serve::LocalPaths;
use slipway_serve::manifest::Manifest;
use slipway_serve::service::{Remembered, Revision, Status};
use slipway_track::service::Lineage;

use crate::run::Addresses;
use crate::{Platform, metrics};

/// The OpenAPI document of these routes.
const OPENAPI: &str = include_str!("openapi.json");

pub(crate) fn router(platform: Platform) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/integrity", get(integrity))
        .route("/deployments", get(deployments).post(apply))
        .route("/deployments/{name}", get(deployment).delete(remove))
        .route("/deployments/{name}/split", post(split))
        .route("/deployments/{name}/rollback", post(rollback))
        .route("/deployments/{name}/history", get(history))
        .route("/requests", get(requests))
        .route("/requests/{id}/lineage", get(request_lineage))
        .route("/models/{name}/versions/{version}/lineage", get(version_lineage))
        .route("/run-versions", post(run_versions))
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({ "error": "no such path; see /openapi.json" }))) })
        .with_state(platform)
}

/// The gateway's own routes on this port, so that the UI's "try it" form needs no other origin.
pub(crate) fn gateway_router(gateway: Router) -> Router {
    Router::new()
        .route("/deployments/{name}/infer", post(infer))
        .route("/deployments/{name}/metadata", get(metadata))
        .with_state(gateway)
}

pub(crate) fn health_router(platform: Platform) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(prometheus))
        .route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .with_state(platform)
}

/// Where the ports are, for the UI and remote clients.
pub(crate) fn addresses_router(addresses: Addresses) -> Router {
    Router::new().route("/api/v1/addresses", get(move || async move { Json(addresses) }))
}

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
    let answers = p.database.read_now(|c| c.first("SELECT 1", slipway_store::sql::params![], |_| Ok(())));
    match answers {
        Ok(_) => "ready\n".into_response(),
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response(),
    }
}

async fn prometheus(State(p): State<Platform>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render(&p)).into_response()
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

async fn apply(State(p): State<Platform>, body: Bytes) -> Result<Json<Status>, Failure> {
    let text = std::str::from_utf8(&body)
        .map_err(|e| slipway_serve::Error::Manifest(format!("the manifest is not UTF-8: {e}")))?;
    Ok(Json(p.gateway.apply(Manifest::parse(text)?, "apply", LocalPaths::Refused).await?))
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

async fn rollback(State(p): State<Platform>, Path(name): Path<String>, body: Bytes) -> Result<Json<Status>, Failure> {
    let asked = if body.is_empty() { Rollback::default() } else { json_body(&body)? };
    Ok(Json(p.gateway.rollback(&name, asked.to, LocalPaths::Refused).await?))
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

#[cfg(test)]
mod tests {
    /// Every path of the document is a route of this file, and the other way round.
    #[test]
    fn the_openapi_document_names_every_route() {
        let document: serde_json::Value = serde_json::from_str(super::OPENAPI).unwrap();
        let mut documented: Vec<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        documented.sort();
        let source = concat!(
            include_str!("api.rs"),
            include_str!("cluster.rs"),
            include_str!("gpu.rs"),
            include_str!("runs.rs")
        );
        let mut routes: Vec<String> = source
            .split(".route(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .map(|p| {
                if p.starts_with("/api/v1") || matches!(p, "/healthz" | "/readyz" | "/metrics" | "/openapi.json") {
                    p.to_owned()
                } else {
                    format!("/api/v1{p}")
                }
            })
            .collect();
        routes.sort();
        assert_eq!(documented, routes);
    }
}
