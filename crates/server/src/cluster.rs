//! API for clusters: `/api/v1/cluster` lists the nodes of the cluster that the server runs in, with their GPUs and the pods that hold them;
//! `/api/v1/clusters` returns the reports of `slipway cluster` on this machine.

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
use slipway_pipeline::launch::pods::Claims;

use crate::Platform;
use crate::auth::Authority;
use crate::error_body::ErrorBody;

/// The future of [`Kubernetes::nodes`].
pub type NodesFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<Value>, String>> + Send + 'a>>;

pub use slipway_exec::{ControllerMetric, Mint};

/// The cluster that the server runs in. The binary passes in an implementation, so this crate needs no Kubernetes client.
pub trait Kubernetes: std::fmt::Debug + Send + Sync {
    /// The namespace that slipway is installed in.
    fn namespace(&self) -> &str;
    /// All nodes: `node`, `ready`, `gpus`, `offers`, `holders`.
    fn nodes(&self) -> NodesFuture<'_>;
    /// Verifies the cluster's users and their permissions; `None` if the cluster cannot.
    fn authority(&self) -> Option<Arc<dyn Authority>>;
    /// An executor whose runs are pods of the cluster. This process reconciles them, unless the run controller is installed separately.
    fn executor(&self, tracker: Arc<dyn Tracker>, mint: Mint) -> Arc<dyn Executor>;
    /// The image of this installation, from which the pods of pipelines get slipway's program; `None` if it is not known.
    fn image(&self) -> Option<Image>;
    /// The persistent volume claims of the cluster.
    fn claims(&self) -> Arc<dyn Claims>;
    /// Metrics of the controllers in this process.
    fn controller_metrics(&self) -> Vec<ControllerMetric>;
    /// Stops the controllers in this process and releases their leases, so that another server can take over immediately.
    fn stop(&self) -> BoxFuture<'_, ()>;
}

/// An image, and when it is pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Name with tag or digest.
    pub name: String,
    /// As in a container: `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// Names of secrets with which images are pulled.
    pub pull_secrets: Vec<String>,
}

/// The cluster, if the server runs in one, with a cache of its nodes.
pub(crate) struct Cluster {
    source: Option<Arc<dyn Kubernetes>>,
    cached_nodes: tokio::sync::Mutex<Option<(Instant, Vec<Value>)>>,
}

/// How long a list of nodes is cached, so that many open pages cause one request to the cluster.
const CACHE_TTL: Duration = Duration::from_secs(3);

impl Cluster {
    pub(crate) fn new(source: Option<Arc<dyn Kubernetes>>) -> Self {
        Self { source, cached_nodes: tokio::sync::Mutex::default() }
    }

    /// Metrics of the controllers; empty outside of a cluster.
    pub(crate) fn controller_metrics(&self) -> Vec<ControllerMetric> {
        self.source.as_ref().map(|s| s.controller_metrics()).unwrap_or_default()
    }

    /// Stops the controllers; does nothing outside of a cluster.
    pub(crate) async fn stop(&self) {
        if let Some(source) = &self.source {
            source.stop().await;
        }
    }

    /// Whether the server runs in a cluster.
    pub(crate) fn is_present(&self) -> bool {
        self.source.is_some()
    }
}

pub(crate) fn routes(platform: Platform) -> Routes {
    let read = Access::get(Resource::Nodes);
    Routes::new().get("/cluster", read, nodes).get("/clusters", read, reports).with_state(platform)
}

/// The latest report of every cluster that `slipway cluster` manages from this machine.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ClusterReports {
    /// Reports, newest first.
    clusters: Vec<Report>,
}

/// Returns the latest report of every cluster: its steps in order, with their outcomes.
async fn reports(State(platform): State<Platform>) -> Json<ClusterReports> {
    let home = platform.home.root().to_owned();
    let reports = tokio::task::spawn_blocking(move || slipway_cluster::state::reports(&home)).await;
    Json(ClusterReports { clusters: reports.unwrap_or_default() })
}

/// The nodes of the cluster that the server runs in.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ClusterNodes {
    /// Nodes, sorted by name.
    #[schemars(with = "Vec<ClusterNode>")]
    nodes: Vec<Value>,
    /// Why there are no nodes; only set if the server does not run in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    outside: Option<&'static str>,
}

// Only for the schema: `slipway_operator::nodes` creates the value, which is passed through unchanged.
/// A node of the cluster.
#[derive(JsonSchema)]
#[allow(dead_code)] // only the derive macro reads the fields
struct ClusterNode {
    /// Name of the node.
    node: String,
    /// Whether the node's `Ready` condition is true.
    ready: bool,
    /// Whether new pods may be scheduled to the node.
    schedulable: bool,
    /// Why the node's agent did not respond; absent if it did.
    #[schemars(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The agent's report: `driver`, `missing`, `simulated`, `offers`, `problem`, `holders`, `cdi`, `gpus`.
    #[serde(flatten)]
    agent: Map<String, Value>,
}

async fn nodes(State(platform): State<Platform>) -> Response {
    let cluster = &platform.cluster;
    let Some(source) = &cluster.source else {
        // Not an error: most servers do not run in a cluster, and the UI requests this page anyway.
        let why = "this server does not run in a cluster; slipway up --kube installs one in a cluster";
        return Json(ClusterNodes { nodes: Vec::new(), outside: Some(why) }).into_response();
    };
    let mut cached = cluster.cached_nodes.lock().await;
    if let Some((_, nodes)) = cached.as_ref().filter(|(at, _)| at.elapsed() < CACHE_TTL) {
        return Json(ClusterNodes { nodes: nodes.clone(), outside: None }).into_response();
    }
    match source.nodes().await {
        Ok(nodes) => {
            *cached = Some((Instant::now(), nodes.clone()));
            Json(ClusterNodes { nodes, outside: None }).into_response()
        }
        Err(error) => ErrorBody::from_code(StatusCode::BAD_GATEWAY, "kube.unreachable", error),
    }
}
