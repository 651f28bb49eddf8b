//! Triton's extensions over REST: model configuration, statistics, shared memory status, trace and logging settings.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{json_response, metadata, receive};
use crate::{Error, Gateway, body, triton};

pub(super) async fn config(State(g): State<Gateway>, Path(name): Path<String>) -> Result<Response, Error> {
    config_of(&g, &name, None)
}

pub(super) async fn version_config(
    State(g): State<Gateway>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    config_of(&g, &name, Some(&version))
}

fn config_of(g: &Gateway, name: &str, version: Option<&str>) -> Result<Response, Error> {
    let config = triton::config(g.deployment(name)?.as_ref(), version, g.runtime().platform())?;
    Ok(json_response(&triton::config_json(&config)))
}

pub(super) async fn statistics(State(g): State<Gateway>, Path(name): Path<String>) -> Result<Response, Error> {
    Ok(json_response(&triton::statistics_json(&g.statistics(Some(&name), None)?)))
}

pub(super) async fn version_statistics(
    State(g): State<Gateway>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    Ok(json_response(&triton::statistics_json(&g.statistics(Some(&name), Some(&version))?)))
}

/// The statistics of all models; but the metadata of a deployment that is called `stats`, whose path is the same.
pub(super) async fn all_statistics(State(g): State<Gateway>) -> Result<Response, Error> {
    if g.deployment("stats").is_ok() {
        return metadata(&g, "stats", None);
    }
    Ok(json_response(&triton::statistics_json(&g.statistics(None, None)?)))
}

/// The shared memory regions: there are never any.
pub(super) async fn no_regions() -> Response {
    json_response(&json!([]))
}

pub(super) async fn trace() -> Response {
    json_response(&json!({ "trace_level": ["OFF"] }))
}

pub(super) async fn logging() -> Response {
    json_response(&triton::LOG_LEVELS.iter().map(|(name, on)| ((*name).to_owned(), json!(on))).collect::<Value>())
}

/// A request that changes settings, which is rejected. Triton's clients also send one without settings to read them.
async fn unchanged(g: &Gateway, headers: &HeaderMap, mut body: Body, extension: &str) -> Result<(), Error> {
    let (bytes, _reservation) = match receive(g, headers, &mut body, body::MAX_SMALL_BODY).await {
        Ok(received) => received,
        Err(error) => {
            body::discard(headers, body);
            return Err(error);
        }
    };
    let settings: Map<String, Value> = serde_json::from_slice(&bytes).unwrap_or_default();
    if settings.is_empty() { Ok(()) } else { Err(triton::fixed_settings(extension)) }
}

pub(super) async fn set_trace(State(g): State<Gateway>, headers: HeaderMap, body: Body) -> Result<Response, Error> {
    unchanged(&g, &headers, body, "trace").await?;
    Ok(trace().await)
}

pub(super) async fn set_logging(State(g): State<Gateway>, headers: HeaderMap, body: Body) -> Result<Response, Error> {
    unchanged(&g, &headers, body, "log").await?;
    Ok(logging().await)
}
