//! What the agent tells over HTTP: metrics and health to everybody, state and leases to those that its [`Gate`] lets through.

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

use crate::access::Gate;
use crate::config::Config;
use crate::driver::State;
use crate::kubelet::identity;
use crate::metrics::{self, Readings};
use crate::model::Held;
use crate::{NodeError, labels, repo, resources};

/// What the clients of the agent may use. Nobody but Prometheus, the kubelet and the control plane asks, so the limits are tight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub(crate) connections: usize,
    /// Time for the head of a request, from the end of the one before.
    pub(crate) header: Duration,
    /// Age after which a connection takes no more requests.
    pub(crate) age: Duration,
    /// Time that is left then for the last response.
    pub(crate) last_response: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            header: Duration::from_secs(30),
            age: Duration::from_secs(120),
            last_response: Duration::from_secs(30),
        }
    }
}

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

/// All routes, each with who may use it.
fn routes() -> Routes<Arc<Page>> {
    // Leases and state name namespaces, pods and containers, of the last 90 days.
    let of_pods = Access::get(Resource::Nodes);
    Routes::new()
        .get("/metrics", Access::Public, metrics)
        .get("/healthz", Access::Public, || async { "ok\n" })
        .get("/readyz", Access::Public, ready)
        .get("/api/v1/node", of_pods, node)
        .get("/api/v1/node/leases", of_pods, leases)
}

/// The guarded router.
pub(crate) fn router(page: Page, gate: Gate) -> Router {
    gate.guard().protect(routes().with_state(Arc::new(page)))
}

/// Serves until it is dropped.
pub(crate) async fn serve(mut listener: TcpListener, router: Router, limits: Limits) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, _) = Listener::accept(&mut listener).await; // It waits a moment after errors.
        let router = router.clone();
        connections.spawn(async move {
            serve_connection(stream, router, limits).await;
            drop(permit);
        });
    }
}

async fn serve_connection(stream: TcpStream, router: Router, limits: Limits) {
    // Looking for HTTP/2, which nobody speaks here, would wait for the first bytes without a limit.
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return, // What goes wrong with one connection concerns its client only.
        () = sleep(limits.age) => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(limits.last_response, connection).await; // Who does not read it by then is cut.
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

    fn page() -> (Page, PathBuf) {
        let place = std::env::temp_dir().join(format!("slipway-node-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&place).unwrap();
        let page = Page {
            node: "n1".into(),
            states: watch::channel(Arc::new(State::Missing("a test".into()))).1,
            configs: watch::channel(Arc::default()).1,
            readings: watch::channel(Arc::default()).1,
            held: watch::channel(Held::default()).1,
            database: Arc::new(Database::open(&place.join("node.db"), &[repo::MIGRATION]).unwrap()),
            kubelet: place.join("kubelet.sock"),
        };
        (page, place)
    }

    async fn status(router: &Router, path: &str, token: Option<&str>) -> u16 {
        let mut request = Request::get(path).header("host", "127.0.0.1:9400");
        if let Some(token) = token {
            request = request.header(slipway_core::node_access::HEADER, token);
        }
        let answer = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        answer.status().as_u16()
    }

    #[tokio::test]
    async fn what_names_pods_is_for_holders_of_a_token() {
        let (page, place) = page();
        let user = |token: &str, user: &str| (token.to_owned(), user.to_owned());
        let users = [
            user("reader", READER),
            user("elsewhere", "system:serviceaccount:team-a:slipway-node-reader"),
            user("person", "mia"),
        ];
        let cluster = Arc::new(Fake { users: BTreeMap::from(users), ..Fake::default() });
        let address: SocketAddr = "0.0.0.0:9400".parse().unwrap();
        let gate = Gate::new(Some(Arc::clone(&cluster)), Some("slipway-system"), address);
        let router = router(page, gate);
        let table = [
            // Path, then: nobody, reader, a reader of another installation, a person, a wrong token, no API server.
            ("/healthz", [200, 200, 200, 200, 200, 200]),
            ("/metrics", [200, 200, 200, 200, 200, 200]),
            // The driver is missing.
            ("/readyz", [503, 503, 503, 503, 503, 503]),
            ("/api/v1/node", [401, 200, 403, 403, 401, 503]),
            ("/api/v1/node/leases", [401, 200, 403, 403, 401, 503]),
            ("/api/v1/node/leases?limit=5", [401, 200, 403, 403, 401, 503]),
            ("/api/v1/node/", [404, 404, 404, 404, 404, 404]),
            ("/api/v1//node", [404, 404, 404, 404, 404, 404]),
        ];
        for (path, expected) in table {
            let tokens = [None, Some("reader"), Some("elsewhere"), Some("person"), Some("wrong"), Some("unreachable")];
            for (token, expected) in tokens.into_iter().zip(expected) {
                assert_eq!(status(&router, path, token).await, expected, "{path} with {token:?}");
            }
        }
        let reviews = cluster.asked.lock().iter().filter(|t| *t == "reader").count();
        assert_eq!(reviews, 1, "a good token is reviewed once a minute");
        let long = "a".repeat(20_000);
        assert_eq!(status(&router, "/api/v1/node", Some(&long)).await, 401);
        assert!(!cluster.asked.lock().contains(&long), "what can be no token is not reviewed");
        std::fs::remove_dir_all(place).unwrap();
    }

    #[tokio::test]
    async fn without_tokens_only_this_machine_is_told() {
        for (cluster, namespace, address, expected) in [
            (None, None, "127.0.0.1:9400", 200),
            (None, None, "[::1]:9400", 200),
            (None, Some("slipway-system"), "0.0.0.0:9400", 403),
            (Some(Arc::new(Fake::default())), None, "127.0.0.1:9400", 403),
        ] {
            let (page, place) = page();
            let router = router(page, Gate::new(cluster, namespace, address.parse().unwrap()));
            assert_eq!(status(&router, "/api/v1/node/leases", None).await, expected, "{address} {namespace:?}");
            assert_eq!(status(&router, "/healthz", None).await, 200);
            std::fs::remove_dir_all(place).unwrap();
        }
    }

    #[tokio::test]
    async fn an_agent_without_tokens_answers_under_its_own_names_only() {
        let asked = async |gate: Gate, host: &str| {
            let (page, place) = page();
            let request = Request::get("/api/v1/node").header("host", host).body(Body::empty()).unwrap();
            let status = router(page, gate).oneshot(request).await.unwrap().status().as_u16();
            std::fs::remove_dir_all(place).unwrap();
            status
        };
        let this_machine = || Gate::new(None::<Arc<Fake>>, None, "127.0.0.1:9400".parse().unwrap());
        assert_eq!(asked(this_machine(), "localhost:9400").await, 200);
        assert_eq!(asked(this_machine(), "rebound.example:9400").await, 421);
        // The API server's proxy passes on the host that its own client named.
        let in_cluster = Gate::new(Some(Arc::new(Fake::default())), Some("ns"), "0.0.0.0:9400".parse().unwrap());
        assert_eq!(asked(in_cluster, "kubernetes.default.svc").await, 401);
    }

    #[test]
    fn only_metrics_and_health_are_public() {
        let routes = routes();
        let public: Vec<_> =
            routes.table().iter().filter(|r| r.access == Access::Public).map(|r| r.path.as_str()).collect();
        assert_eq!(public, ["/metrics", "/healthz", "/readyz"]);
    }

    #[tokio::test]
    async fn clients_that_send_or_read_nothing_keep_nobody_out() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let routes = Router::new()
            .route("/large", axum::routing::get(|| async { vec![0_u8; 64 << 20] }))
            .route("/healthz", axum::routing::get(|| async { "ok" }));
        let (soon, late) = (Duration::from_millis(100), Duration::from_secs(600));
        let slow_head = Limits { connections: 2, header: soon, age: late, last_response: late };
        let slow_reader = Limits { connections: 2, header: late, age: soon, last_response: soon };
        for (limits, request) in [
            (slow_head, ""),
            (slow_head, "GET /healthz HTTP/1.1\r\nhost: a\r\n"),
            (slow_reader, "GET /large HTTP/1.1\r\nhost: a\r\n\r\n"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serving = tokio::spawn(serve(listener, routes.clone(), limits));
            let mut silent = Vec::new();
            for _ in 0..2 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                silent.push(stream);
            }
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            let read = timeout(Duration::from_secs(60), stream.read_to_string(&mut answer));
            read.await.expect("there is room for it").unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
            serving.abort();
        }
    }
}
