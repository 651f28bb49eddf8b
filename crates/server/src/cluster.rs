//! The cluster's nodes with their GPUs and who holds them, under `/api/v1/cluster`; what `slipway cluster` did from here, under
//! `/api/v1/clusters`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use slipway_access::{Access, Resource, Routes};
use slipway_cluster::report::Report;
use slipway_exec::{Executor, Tracker};

use crate::Platform;
use crate::auth::Authority;
use crate::openapi::ErrorBody;

/// An answer to come.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Vec<Value>, String>> + Send + 'a>>;

pub use slipway_exec::Mint;

/// A figure that metrics show.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Its name, without the suffix `_total` of counters.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Whether it only grows.
    pub is_counter: bool,
    /// How much it is now.
    pub value: u64,
}

/// The cluster that a server runs in. The binary hands in one that asks the API server, so this crate needs no client of Kubernetes.
pub trait Kubernetes: std::fmt::Debug + Send + Sync {
    /// The namespace of the installation.
    fn namespace(&self) -> &str;
    /// All nodes: `node`, `ready`, `gpus`, `offers`, `holders`.
    fn nodes(&self) -> Answer<'_>;
    /// Who knows its users and rules.
    fn authority(&self) -> Option<Arc<dyn Authority>>;
    /// Runs as its pods. They are carried out by this process, unless a controller of runs is installed apart from it.
    fn executor(&self, tracker: Arc<dyn Tracker>, mint: Mint) -> Arc<dyn Executor>;
    /// Figures of its controllers, for metrics.
    fn figures(&self) -> Vec<Figure>;
    /// Ends the work of its controllers when the server stops, and gives their leases back, so that another server can go on at once.
    fn stop(&self) -> BoxFuture<'_, ()>;
}

/// A source, and its last answer for the next pages that ask.
pub(crate) struct Cluster {
    source: Option<Arc<dyn Kubernetes>>,
    last: tokio::sync::Mutex<Option<(Instant, Vec<Value>)>>,
}

/// So long an answer is good enough; many open pages are then one question.
const FRESH: Duration = Duration::from_secs(3);

impl Cluster {
    pub(crate) fn new(source: Option<Arc<dyn Kubernetes>>) -> Self {
        Self { source, last: tokio::sync::Mutex::default() }
    }

    /// Figures of the controllers; none outside of a cluster.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        self.source.as_ref().map(|s| s.figures()).unwrap_or_default()
    }

    /// Ends the work of the controllers; nothing outside of a cluster.
    pub(crate) async fn stop(&self) {
        if let Some(source) = &self.source {
            source.stop().await;
        }
    }

    pub(crate) fn is_there(&self) -> bool {
        self.source.is_some()
    }
}

pub(crate) fn routes(platform: Platform) -> Routes {
    let read = Access::get(Resource::Nodes);
    Routes::new().get("/cluster", read, nodes).get("/clusters", read, reports).with_state(platform)
}

/// The last report of every cluster.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ClusterReports {
    /// Newest first.
    clusters: Vec<Report>,
}

/// The last report of every cluster: what was done, in which order, and how it ended.
async fn reports(State(platform): State<Platform>) -> Json<ClusterReports> {
    let home = platform.home.root().to_owned();
    let read = tokio::task::spawn_blocking(move || slipway_cluster::state::reports(&home)).await;
    Json(ClusterReports { clusters: read.unwrap_or_default() })
}

/// Nodes of the cluster that the server runs in.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ClusterNodes {
    /// By name.
    #[schemars(with = "Vec<ClusterNode>")]
    nodes: Vec<Value>,
    /// Why there are none, where the server is in no cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    outside: Option<&'static str>,
}

// `slipway_operator::nodes` writes it and it goes through as it is, so this only describes it.
/// A node of the cluster.
#[derive(JsonSchema)]
#[allow(dead_code)] // its fields are read by the macro
struct ClusterNode {
    /// Its name.
    node: String,
    /// Whether the kubelet is ready.
    ready: bool,
    /// Whether pods may be scheduled to it.
    schedulable: bool,
    /// Why its agent did not answer.
    #[schemars(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What its agent told: `driver`, `missing`, `simulated`, `offers`, `problem`, `holders`, `cdi`, `gpus`.
    #[serde(flatten)]
    agent: Map<String, Value>,
}

async fn nodes(State(platform): State<Platform>) -> Response {
    let cluster = &platform.cluster;
    let Some(source) = &cluster.source else {
        // Most servers are in none, and a page that asks has made no mistake.
        let why = "this server is not in a cluster: slipway up --kube puts one there";
        return Json(ClusterNodes { nodes: Vec::new(), outside: Some(why) }).into_response();
    };
    let mut last = cluster.last.lock().await;
    if let Some((_, nodes)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
        return Json(ClusterNodes { nodes: nodes.clone(), outside: None }).into_response();
    }
    match source.nodes().await {
        Ok(nodes) => {
            *last = Some((Instant::now(), nodes.clone()));
            Json(ClusterNodes { nodes, outside: None }).into_response()
        }
        Err(error) => ErrorBody::of_code(StatusCode::BAD_GATEWAY, "kube.unreachable", error),
    }
}
