//! What a controller of runs in another process asks of the control plane, under `/api/v1/controller`: to begin and end tracked runs, and
//! to make the tokens that attempts track with. Whoever may create `runs/tracking` in the namespace of the installation may ask.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use slipway_exec::{Mint, RunStatus, TokenRequest, Tracked, Tracker};

#[derive(Clone)]
struct Service {
    tracker: Arc<dyn Tracker>,
    mint: Mint,
}

/// The end of a tracked run.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    run_id: String,
    status: RunStatus,
}

pub(crate) fn router(tracker: Arc<dyn Tracker>, mint: Mint) -> Router {
    Router::new()
        .route("/api/v1/controller/begin", post(begin))
        .route("/api/v1/controller/end", post(end))
        .route("/api/v1/controller/token", post(token))
        .with_state(Service { tracker, mint })
}

fn done(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Json(json!({})).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": error}))).into_response(),
    }
}

async fn begin(State(service): State<Service>, Json(run): Json<Tracked>) -> Response {
    done(service.tracker.begin(run).await)
}

async fn end(State(service): State<Service>, Json(end): Json<End>) -> Response {
    done(service.tracker.end(&end.run_id, &end.status).await)
}

async fn token(State(service): State<Service>, Json(request): Json<TokenRequest>) -> Response {
    Json(json!({"token": (service.mint)(&request)})).into_response()
}
