//! Routes and wire types of MLflow's REST API.

mod access;
mod artifacts;
mod download;
mod experiments;
pub(crate) mod logged_models;
mod registry;
mod runs;
mod scoped;
mod uploads;
pub(crate) mod wire;

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use slipway_access::{Access, Routes, RunTokenUse};

use crate::{Error, ErrorCode, Tracking};

/// The version of MLflow with which this crate is compatible.
pub const MLFLOW_VERSION: &str = "3.17.2";
/// Maximum bytes of a JSON request body.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// All of MLflow's routes, under `/api` and `/ajax-api`, with `/health`. `/version` belongs to several protocols, so the server has it.
pub fn routes(tracking: Tracking) -> Routes {
    let authenticated = Access::Authenticated(RunTokenUse::Scoped);
    let api = experiments::routes()
        .merge(runs::routes())
        .merge(registry::routes())
        .merge(logged_models::routes())
        .merge(artifacts::routes())
        .get("/3.0/mlflow/server-info", authenticated, server_info)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .merge(artifacts::streaming_routes())
        .fallback(authenticated, unknown);
    Routes::new()
        .merge(artifacts::ui_routes())
        .nest("/api", api.clone())
        .nest("/ajax-api", api)
        .get("/health", Access::Public, async || "OK")
        .with_state(tracking)
}

async fn server_info() -> Response {
    let body = serde_json::json!({
        "store_type": "SqlStore",
        "workspaces_enabled": false,
        "trace_archival_enabled": false,
        "multipart_uploads_enabled": true,
        "multipart_downloads_enabled": false,
        "presigned_upload_run_id_supported": false,
        "presigned_upload_model_id_supported": false,
        "features_enabled": { "gateway": false },
    });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// Path prefixes of MLflow's API that slipway does not implement (yet); `conformance/mlflow/README.md` has the full table.
const NOT_IMPLEMENTED: &[&str] = &[
    "/2.0/mlflow/traces",
    "/3.0/mlflow/traces",
    "/3.0/mlflow/assessments",
    "/3.0/mlflow/datasets",
    "/3.0/mlflow/scorers",
    "/3.0/mlflow/issues",
    "/3.0/mlflow/gateway",
    "/3.0/mlflow/jobs",
    "/3.0/mlflow/workspaces",
    "/2.0/mlflow/webhooks",
    "/2.0/mlflow/users",
    "/2.0/mlflow/gateway-proxy",
    "/2.0/mlflow/artifacts/presigned",
    "/2.0/mlflow-artifacts/presigned",
    "/3.0/mlflow/prompt-optimization",
    "/3.0/mlflow/review-queues",
    "/3.0/mlflow/label-schemas",
    "/2.0/mlflow/get-online-trace-details",
    "/2.0/mlflow/unified-traces",
    "/2.0/mlflow/get-trace-artifact",
    "/3.0/mlflow/get-trace-artifact",
    "/2.0/mlflow/runs/create-promptlab-run",
];

async fn unknown(uri: Uri) -> Response {
    let path = uri.path();
    if NOT_IMPLEMENTED.iter().any(|prefix| path.starts_with(prefix)) {
        return Error::new(ErrorCode::NotImplemented, format!("{path} is not implemented by slipway yet."))
            .into_response();
    }
    // MLflow's own response to an unknown path.
    const PAGE: &str = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n\
        <p>The requested URL was not found on the server. If you entered the URL manually please check your spelling \
        and try again.</p>\n";
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response()
}
