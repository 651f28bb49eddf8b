//! The agent's HTTP server: public metrics and health routes, and routes for state and leases that the [`Gate`] protects.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::json;
use slipway_access::{Access, Resource, Routes};
use slipway_store::Database;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::accept;
use crate::access::Gate;
use crate::config::Config;
use crate::driver::State;
use crate::kubelet::identity;
use crate::metrics::{self, Readings};
use crate::model::Held;
use crate::{NodeError, amd, labels, repo, resources};

/// Limits on connections. They are tight, because the only clients are Prometheus, the kubelet and the control plane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum number of concurrent connections; further ones wait in the kernel's backlog.
    pub(crate) connections: usize,
    /// Timeout for the header of a request, measured from the end of the previous request.
    pub(crate) header_timeout: Duration,
    /// Age after which a connection accepts no more requests.
    pub(crate) max_age: Duration,
    /// Timeout for the last response of a connection that reached `max_age`.
    pub(crate) shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            header_timeout: Duration::from_secs(30),
            max_age: Duration::from_secs(120),
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

/// What the handlers read about GPUs of AMD.
#[derive(Clone)]
pub(crate) struct Amd {
    pub(crate) states: watch::Receiver<Arc<amd::State>>,
    pub(crate) readings: watch::Receiver<amd::Readings>,
    pub(crate) naming: amd::Naming,
}

/// The state that the handlers read.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) node: String,
    pub(crate) states: watch::Receiver<Arc<State>>,
    pub(crate) amd: Amd,
    pub(crate) configs: watch::Receiver<Arc<Config>>,
    pub(crate) readings: watch::Receiver<Arc<Readings>>,
    pub(crate) held: watch::Receiver<Held>,
    pub(crate) database: Arc<Database>,
    pub(crate) acceptance: accept::Store,
    /// The kubelet's socket for device plugin registration.
    pub(crate) kubelet: PathBuf,
}

/// All routes with the access that they require.
fn routes() -> Routes<Arc<AppState>> {
    // State and leases reveal namespaces, pods and containers of the last 90 days.
    let read_nodes = Access::get(Resource::Nodes);
    Routes::new()
        .get("/metrics", Access::Public, metrics)
        .get("/healthz", Access::Public, || async { "ok\n" })
        .get("/readyz", Access::Public, ready)
        .get("/api/v1/node", read_nodes, node)
        .get("/api/v1/node/leases", read_nodes, leases)
        .get("/api/v1/node/acceptance", read_nodes, acceptance)
}

/// The router with the gate applied.
pub(crate) fn router(state: AppState, gate: Gate) -> Router {
    gate.guard().protect(routes().with_state(Arc::new(state)))
}

/// Serves connections until the future is dropped.
pub(crate) async fn serve(mut listener: TcpListener, router: Router, limits: Limits) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, _) = Listener::accept(&mut listener).await; // `accept` sleeps and retries after errors.
        let router = router.clone();
        connections.spawn(async move {
            serve_connection(stream, router, limits).await;
            drop(permit);
        });
    }
}

async fn serve_connection(stream: TcpStream, router: Router, limits: Limits) {
    // HTTP/2 is not used. Detecting it would wait for the first bytes without a timeout.
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return, // A connection error concerns only this client.
        () = sleep(limits.max_age) => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(limits.shutdown_timeout, connection).await; // A client that does not read in time is disconnected.
}

async fn metrics(Extract(app): Extract<Arc<AppState>>) -> Response {
    let (state, readings) = (app.states.borrow().clone(), app.readings.borrow().clone());
    let mut text = metrics::render(&state, &readings, &app.held.borrow(), &app.node);
    let (state, readings) = (app.amd.states.borrow().clone(), app.amd.readings.borrow().clone());
    text.push_str(&amd::render(&state, &readings, &app.held.borrow(), &app.node));
    ([("content-type", "text/plain; version=0.0.4")], text).into_response()
}

/// Reports whether the agent could serve a pod now. A missing driver makes it unready but not unhealthy, because a restart would not
/// help.
async fn ready(Extract(app): Extract<Arc<AppState>>) -> Response {
    let state = app.states.borrow().clone();
    match &*state {
        // A node with GPUs of AMD only needs no driver of NVIDIA.
        State::Missing(why) if app.amd.states.borrow().machine().is_none() => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the driver is missing: {why}\n")).into_response()
        }
        _ if identity(&app.kubelet).is_none() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the kubelet is not running\n").into_response()
        }
        _ => "ok\n".into_response(),
    }
}

async fn node(Extract(app): Extract<Arc<AppState>>) -> Response {
    let state = app.states.borrow().clone();
    let config = app.configs.borrow().clone();
    let held = app.held.borrow().clone();
    let holders: Vec<_> = held.iter().map(|(h, u)| json!({"holder": h, "used": u})).collect();
    let mut body = match &*state {
        State::Missing(why) => json!({"node": app.node, "driver": null, "missing": why, "holders": holders}),
        State::Available(machine) => {
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
                "node": app.node, "driver": machine.inventory.driver, "simulated": machine.inventory.simulated,
                "gpus": machine.inventory.gpus, "labels": labels::labels(machine, &config, &labels::machine_type()),
                "offers": offers, "problem": problem, "holders": holders,
                "cdi": machine.cdi, "warnings": config.warnings,
            })
        }
    };
    let (state, readings) = (app.amd.states.borrow().clone(), app.amd.readings.borrow().clone());
    amd::add_to_report(&mut body, &state, &readings, app.amd.naming, labels::has_nvidia_gpu());
    Json(body).into_response()
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u32>,
}

async fn leases(Extract(app): Extract<Arc<AppState>>, Query(query): Query<Limit>) -> Response {
    let limit = query.limit.unwrap_or(1000).min(10_000);
    match app.database.read(move |c| repo::leases(c, limit)).await {
        Ok(leases) => Json(json!({"node": app.node, "leases": leases})).into_response(),
        Err(error) => {
            let error = NodeError::Store(error);
            (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": error.to_string()}))).into_response()
        }
    }
}

/// The last acceptance report of this node.
async fn acceptance(Extract(app): Extract<Arc<AppState>>) -> Response {
    let problem = |status: StatusCode, error: String| (status, Json(json!({"error": error}))).into_response();
    match app.acceptance.report() {
        Ok(Some(report)) => Json(report).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, "this node has no acceptance report".into()),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;
    use crate::cluster::Fake;

    const READER: &str = "system:serviceaccount:slipway-system:slipway-node-reader";

    fn app_state() -> (AppState, PathBuf) {
        let folder = std::env::temp_dir().join(format!("slipway-node-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let state = AppState {
            node: "n1".into(),
            states: watch::channel(Arc::new(State::Missing("a test".into()))).1,
            amd: Amd {
                states: watch::channel(Arc::default()).1,
                readings: watch::channel(Arc::default()).1,
                naming: amd::Naming::Single,
            },
            configs: watch::channel(Arc::default()).1,
            readings: watch::channel(Arc::default()).1,
            held: watch::channel(Held::default()).1,
            database: Arc::new(Database::open(&folder.join("node.db"), &[repo::MIGRATION]).unwrap()),
            acceptance: accept::Store::new(&folder),
            kubelet: folder.join("kubelet.sock"),
        };
        (state, folder)
    }

    async fn status(router: &Router, path: &str, token: Option<&str>) -> u16 {
        let mut request = Request::get(path).header("host", "127.0.0.1:9400");
        if let Some(token) = token {
            request = request.header(slipway_core::node_access::HEADER, token);
        }
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        response.status().as_u16()
    }

    #[tokio::test]
    async fn state_and_leases_require_a_token() {
        let (state, folder) = app_state();
        let user = |token: &str, user: &str| (token.to_owned(), user.to_owned());
        let users = [
            user("reader", READER),
            user("elsewhere", "system:serviceaccount:team-a:slipway-node-reader"),
            user("person", "mia"),
        ];
        let cluster = Arc::new(Fake { users: BTreeMap::from(users), ..Fake::default() });
        let address: SocketAddr = "0.0.0.0:9400".parse().unwrap();
        let gate = Gate::new(Some(Arc::clone(&cluster)), Some("slipway-system"), address);
        let router = router(state, gate);
        let table = [
            // Path, then status: no token, reader, reader of another installation, other user, invalid token, no API server.
            ("/healthz", [200, 200, 200, 200, 200, 200]),
            ("/metrics", [200, 200, 200, 200, 200, 200]),
            // The driver is missing.
            ("/readyz", [503, 503, 503, 503, 503, 503]),
            ("/api/v1/node", [401, 200, 403, 403, 401, 503]),
            ("/api/v1/node/leases", [401, 200, 403, 403, 401, 503]),
            ("/api/v1/node/leases?limit=5", [401, 200, 403, 403, 401, 503]),
            // There is no report.
            ("/api/v1/node/acceptance", [401, 404, 403, 403, 401, 503]),
            ("/api/v1/node/", [404, 404, 404, 404, 404, 404]),
            ("/api/v1//node", [404, 404, 404, 404, 404, 404]),
        ];
        for (path, expected) in table {
            let tokens =
                [None, Some("reader"), Some("elsewhere"), Some("person"), Some("invalid"), Some("unreachable")];
            for (token, expected) in tokens.into_iter().zip(expected) {
                assert_eq!(status(&router, path, token).await, expected, "{path} with {token:?}");
            }
        }
        let reviews = cluster.reviewed.lock().iter().filter(|t| *t == "reader").count();
        assert_eq!(reviews, 1, "an accepted token is cached");
        let long = "a".repeat(20_000);
        assert_eq!(status(&router, "/api/v1/node", Some(&long)).await, 401);
        assert!(!cluster.reviewed.lock().contains(&long), "an oversized token is not reviewed");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn agents_without_tokens_serve_loopback_only() {
        for (cluster, namespace, address, expected) in [
            (None, None, "127.0.0.1:9400", 200),
            (None, None, "[::1]:9400", 200),
            (None, Some("slipway-system"), "0.0.0.0:9400", 403),
            (Some(Arc::new(Fake::default())), None, "127.0.0.1:9400", 403),
        ] {
            let (state, folder) = app_state();
            let router = router(state, Gate::new(cluster, namespace, address.parse().unwrap()));
            assert_eq!(status(&router, "/api/v1/node/leases", None).await, expected, "{address} {namespace:?}");
            assert_eq!(status(&router, "/healthz", None).await, 200);
            std::fs::remove_dir_all(folder).unwrap();
        }
    }

    #[tokio::test]
    async fn agents_on_loopback_check_the_host_header() {
        let status_for = async |gate: Gate, host: &str| {
            let (state, folder) = app_state();
            let request = Request::get("/api/v1/node").header("host", host).body(Body::empty()).unwrap();
            let status = router(state, gate).oneshot(request).await.unwrap().status().as_u16();
            std::fs::remove_dir_all(folder).unwrap();
            status
        };
        let loopback = || Gate::new(None::<Arc<Fake>>, None, "127.0.0.1:9400".parse().unwrap());
        assert_eq!(status_for(loopback(), "localhost:9400").await, 200);
        assert_eq!(status_for(loopback(), "rebound.example:9400").await, 421);
        // The API server's proxy forwards the host header of its own client.
        let in_cluster = Gate::new(Some(Arc::new(Fake::default())), Some("ns"), "0.0.0.0:9400".parse().unwrap());
        assert_eq!(status_for(in_cluster, "kubernetes.default.svc").await, 401);
    }

    #[test]
    fn only_metrics_and_health_are_public() {
        let routes = routes();
        let public: Vec<_> =
            routes.table().iter().filter(|r| r.access == Access::Public).map(|r| r.path.as_str()).collect();
        assert_eq!(public, ["/metrics", "/healthz", "/readyz"]);
    }

    #[tokio::test]
    async fn idle_clients_do_not_block_other_connections() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let routes = Router::new()
            .route("/large", axum::routing::get(|| async { vec![0_u8; 64 << 20] }))
            .route("/healthz", axum::routing::get(|| async { "ok" }));
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(600));
        let slow_header = Limits { connections: 2, header_timeout: short, max_age: long, shutdown_timeout: long };
        let slow_reader = Limits { connections: 2, header_timeout: long, max_age: short, shutdown_timeout: short };
        for (limits, request) in [
            (slow_header, ""),
            (slow_header, "GET /healthz HTTP/1.1\r\nhost: a\r\n"),
            (slow_reader, "GET /large HTTP/1.1\r\nhost: a\r\n\r\n"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serving = tokio::spawn(serve(listener, routes.clone(), limits));
            let mut idle_clients = Vec::new();
            for _ in 0..2 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                idle_clients.push(stream);
            }
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut response = String::new();
            let read = timeout(Duration::from_secs(60), stream.read_to_string(&mut response));
            read.await.expect("a connection is free").unwrap();
            assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("ok"), "{response}");
            serving.abort();
        }
    }
}
