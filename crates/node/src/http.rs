//! What the agent tells over HTTP: metrics, health, state, leases.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Query, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use slipway_store::Database;
use tokio::sync::watch;

use crate::config::Config;
use crate::driver::State;
use crate::holders::Held;
use crate::kubelet::identity;
use crate::metrics::{self, Readings};
use crate::{NodeError, labels, repo, resources};

#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) node: String,
    pub(crate) states: watch::Receiver<Arc<State>>,
    pub(crate) configs: watch::Receiver<Arc<Config>>,
    pub(crate) readings: watch::Receiver<Arc<Readings>>,
    pub(crate) held: watch::Receiver<Held>,
    pub(crate) database: Arc<Database>,
    /// The kubelet's socket for device plugins.
    pub(crate) kubelet: PathBuf,
}

pub(crate) fn router(page: Page) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/v1/node", get(node))
        .route("/api/v1/node/leases", get(leases))
        .with_state(Arc::new(page))
}

async fn metrics(Extract(page): Extract<Arc<Page>>) -> Response {
    let (state, readings) = (page.states.borrow().clone(), page.readings.borrow().clone());
    let text = metrics::render(&state, &readings, &page.held.borrow(), &page.node);
    ([("content-type", "text/plain; version=0.0.4")], text).into_response()
}

/// Ready is an agent that could serve a pod now. A driver that is missing is no reason to be restarted, so health is another page.
async fn ready(Extract(page): Extract<Arc<Page>>) -> Response {
    let state = page.states.borrow().clone();
    match &*state {
        State::Missing(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the driver is missing: {why}\n")).into_response()
        }
        State::There(_) if identity(&page.kubelet).is_none() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the kubelet is not there\n").into_response()
        }
        State::There(_) => "ok\n".into_response(),
    }
}

async fn node(Extract(page): Extract<Arc<Page>>) -> Response {
    let state = page.states.borrow().clone();
    let config = page.configs.borrow().clone();
    let held = page.held.borrow().clone();
    let holders: Vec<_> = held.iter().map(|(h, u)| json!({"holder": h, "used": u})).collect();
    let body = match &*state {
        State::Missing(why) => json!({"node": page.node, "driver": null, "missing": why, "holders": holders}),
        State::There(machine) => {
            let offers = resources::offers(machine, &config);
            let problem = offers.as_ref().err().cloned();
            let offers: Vec<_> = offers
                .unwrap_or_default()
                .iter()
                .map(|o| {
                    let units: Vec<_> = o
                        .units
                        .iter()
                        .map(|u| json!({"uuid": u.uuid, "index": u.index, "gpu": u.gpu_uuid, "fault": u.fault}))
                        .collect();
                    json!({"resource": o.resource, "replicas": o.shared.map(|s| s.replicas),
                        "sharing": o.shared.map(|s| s.strategy.name()), "devices": units})
                })
                .collect();
            json!({
                "node": page.node, "driver": machine.inventory.driver, "simulated": machine.inventory.simulated,
                "gpus": machine.inventory.gpus, "labels": labels::labels(machine, &config, &labels::machine_type()),
                "offers": offers, "problem": problem, "holders": holders,
                "cdi": machine.cdi, "warnings": config.warnings,
            })
        }
    };
    Json(body).into_response()
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u32>,
}

async fn leases(Extract(page): Extract<Arc<Page>>, Query(asked): Query<Limit>) -> Response {
    let limit = asked.limit.unwrap_or(1000).min(10_000);
    match page.database.read(move |c| repo::leases(c, limit)).await {
        Ok(leases) => Json(json!({"node": page.node, "leases": leases})).into_response(),
        Err(error) => {
            let error = NodeError::Store(error);
            (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": error.to_string()}))).into_response()
        }
    }
}
