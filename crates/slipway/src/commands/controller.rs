//! `slipway controller`: the run controller as a separate process. The controller creates pods and their secrets; to track runs and to
//! issue run tokens, it calls the control plane.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use slipway_core::env;
use slipway_exec::{RunStatus, TokenRequest, Tracked, Tracker};
use slipway_operator::Api;
use slipway_operator::runs::RunController;
use slipway_server::metrics;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};

use super::in_cluster;
use crate::Failure;
use crate::cli;
use crate::client::Client;
use crate::credentials::{Access, ServerUrl, Token};

/// Time limit of a request to the control plane.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the result of a readiness check is cached.
const READINESS_TTL: Duration = Duration::from_secs(5);
/// Time limit for metrics requests in flight when the process stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A client of the control plane whose token is read from a file that the kubelet renews.
struct ControlPlane {
    url: String,
    token_file: PathBuf,
    /// A PEM file of certificate authorities. If the file does not exist, the control plane's certificate is signed by a public one.
    ca_file: Option<PathBuf>,
    /// The client for the credentials that were read last, so that connections are reused.
    client: Mutex<Option<(Credentials, Arc<Client>)>>,
    /// The time and the result of the last readiness check.
    checked: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// The current contents of the token and CA files.
#[derive(PartialEq)]
struct Credentials {
    token: String,
    /// The PEM text; `None` if the file does not exist.
    authorities: Option<Vec<u8>>,
}

impl ControlPlane {
    fn new(url: String, token_file: PathBuf, ca_file: Option<PathBuf>) -> Self {
        Self { url, token_file, ca_file, client: Mutex::default(), checked: Mutex::default() }
    }

    async fn credentials(&self) -> Result<Credentials, String> {
        let unreadable = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
        let token = tokio::fs::read_to_string(&self.token_file).await;
        let token = token.map_err(|e| unreadable(&self.token_file, e))?.trim().to_owned();
        let authorities = match &self.ca_file {
            None => None,
            Some(path) => match tokio::fs::read(path).await {
                Ok(text) => Some(text),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => return Err(unreadable(path, e)),
            },
        };
        Ok(Credentials { token, authorities })
    }

    async fn client(&self) -> Result<Arc<Client>, String> {
        let credentials = self.credentials().await?;
        let mut cached = self.client.lock().await;
        if let Some((_, client)) = cached.as_ref().filter(|(key, _)| *key == credentials) {
            return Ok(Arc::clone(client));
        }
        let secret = Token::from_text(&credentials.token)
            .ok_or_else(|| format!("{} contains no token", self.token_file.display()))?;
        let authorities = credentials.authorities.as_ref().and(self.ca_file.clone());
        let url = ServerUrl::parse(&self.url).map_err(|e| e.to_string())?;
        let client = Client::new(&url, Access::for_controller(secret, authorities)).map_err(|e| e.to_string())?;
        let client = Arc::new(client);
        *cached = Some((credentials, Arc::clone(&client)));
        Ok(client)
    }

    async fn post<T: DeserializeOwned>(&self, operation: &str, body: Value) -> Result<T, String> {
        let path = format!("/api/v1/controller/{operation}");
        with_timeout(REQUEST_TIMEOUT, async {
            self.client().await?.post(&path, &body).await.map_err(|e| e.to_string())
        })
        .await
    }

    /// Whether the control plane accepts requests of this controller, checked at most once per [`READINESS_TTL`].
    async fn ready(&self) -> Result<(), String> {
        let mut checked = self.checked.lock().await;
        if let Some((_, result)) = checked.as_ref().filter(|(at, _)| at.elapsed() < READINESS_TTL) {
            return result.clone();
        }
        let check = async {
            let response = self.client().await?.get::<Value>("/api/v1/controller/ready").await;
            response.map(|_| ()).map_err(|e| e.to_string())
        };
        let result = with_timeout(REQUEST_TIMEOUT, check).await;
        *checked = Some((Instant::now(), result.clone()));
        result
    }

    async fn token(&self, request: TokenRequest) -> Result<String, String> {
        #[derive(serde::Deserialize)]
        struct Minted {
            token: String,
        }
        Ok(self.post::<Minted>("token", json!(request)).await?.token)
    }
}

/// Limits the time of a request to the control plane, because a worker of the controller is blocked while it waits.
async fn with_timeout<T>(limit: Duration, request: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let timed_out = |_| format!("no response within {} s", limit.as_secs());
    let result = tokio::time::timeout(limit, request).await;
    result.map_err(timed_out).and_then(|r| r).map_err(|e| format!("the control plane: {e}"))
}

impl Tracker for ControlPlane {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.post::<Value>("begin", json!(run)).await.map(drop) })
    }

    fn end<'a>(
        &'a self,
        namespace: &'a str,
        run_id: &'a str,
        status: &'a RunStatus,
    ) -> BoxFuture<'a, Result<(), String>> {
        let body = json!({"namespace": namespace, "runId": run_id, "status": status});
        Box::pin(async move { self.post::<Value>("end", body).await.map(drop) })
    }
}

/// The routes for liveness and readiness probes and for metrics.
fn probes(plane: Arc<ControlPlane>, controller: Arc<RunController>) -> Router {
    let ready = move || async move {
        match plane.ready().await {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(error) => {
                tracing::warn!(error, "not ready");
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the control plane rejects or does not answer requests of this controller\n".to_owned(),
                )
            }
        }
    };
    let metrics = move || async move {
        let text = metrics::render_controller_metrics(controller.metrics().to_vec());
        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

pub(super) async fn run(options: cli::Controller) -> Result<(), Failure> {
    let namespace = env::value(env::NAMESPACE).ok_or_else(|| {
        Failure::with_code(
            format!("{} is not set; this command runs only in a cluster", env::NAMESPACE),
            "kube.no_config",
            2,
        )
    })?;
    let api = Api::connect(None, None).await?;
    let listener = TcpListener::bind(&options.listen)
        .await
        .map_err(|e| Failure::with_code(format!("cannot listen on {}: {e}", options.listen), "listen.invalid", 1))?;
    let plane = Arc::new(ControlPlane::new(
        options.control_plane.unwrap_or_else(|| in_cluster::runs_url(&namespace)),
        options.token_file,
        env::value(env::CA_FILE).map(PathBuf::from),
    ));
    let token_plane = Arc::clone(&plane);
    let settings = in_cluster::settings(
        namespace,
        Arc::new(move |request| {
            let plane = Arc::clone(&token_plane);
            Box::pin(async move { plane.token(request).await })
        }),
        in_cluster::default_queues()?,
    );
    let controller = Arc::new(RunController::start(api, settings, Arc::<ControlPlane>::clone(&plane)));
    let router = probes(plane, Arc::clone(&controller));
    let (stop, mut stopped) = watch::channel(false);
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stopped.wait_for(|s| *s).await; // An error means that the process is ending.
    });
    let mut server = tokio::spawn(async move { server.await });
    tracing::info!("the run controller has started");
    tokio::select! {
        () = super::up::termination_signal()? => {}
        ended = &mut server => {
            return Err(Failure::with_code(format!("the probe and metrics server failed: {ended:?}"), "listen.invalid", 1));
        }
    }
    // Stop the controller and release its lease first, so that another replica can take over at once.
    controller.stop().await;
    stop.send_replace(true);
    if tokio::time::timeout(DRAIN_TIMEOUT, server).await.is_err() {
        tracing::debug!("a metrics request did not finish in time");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;

    use axum::Json;
    use axum::http::HeaderMap;
    use axum::routing::post;

    use super::*;

    #[tokio::test]
    async fn requests_carry_the_current_token_of_the_file() {
        let requests: Arc<Lock<Vec<(String, String, Value)>>> = Arc::default();
        let recorded = Arc::clone(&requests);
        let handler = move |path: axum::extract::Path<String>, headers: HeaderMap, body: Json<Value>| async move {
            let token = headers["authorization"].to_str().unwrap_or_default().to_owned();
            recorded.lock().unwrap().push((path.0, token, body.0));
            Json(json!({"token": "of the attempt"}))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/api/v1/controller/{operation}", post(handler));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let token_file = std::env::temp_dir().join(format!("slipway-controller-{}", std::process::id()));
        std::fs::write(&token_file, "first\n").unwrap();
        let plane = ControlPlane::new(url, token_file.clone(), None);
        let manifest = slipway_exec::Manifest::new("train", ["true"]);
        let request = TokenRequest::new(&manifest, 1, Some(1000), 0);
        assert_eq!(plane.token(request.clone()).await.unwrap(), "of the attempt");
        std::fs::write(&token_file, "second\n").unwrap();
        let submitted = slipway_exec::Submitted { manifest, status: RunStatus::default() };
        plane.begin(Tracked::new(&submitted, 1)).await.unwrap();
        plane.end("team", "r", &RunStatus::default()).await.unwrap();
        std::fs::remove_file(&token_file).unwrap();
        assert!(plane.end("team", "r", &RunStatus::default()).await.is_err(), "without a token no request is sent");
        let requests = requests.lock().unwrap().clone();
        let expected = [("token", "Bearer first"), ("begin", "Bearer second"), ("end", "Bearer second")];
        assert_eq!(
            requests.iter().map(|(path, token, _)| (path.as_str(), token.as_str())).collect::<Vec<_>>(),
            expected
        );
        assert_eq!((&requests[0].2, &requests[2].2["runId"]), (&json!(request), &json!("r")));
        assert_eq!(requests[2].2["namespace"], "team");
        server.abort();
    }

    #[tokio::test]
    async fn controller_is_ready_when_the_control_plane_accepts_its_requests() {
        let handler = |headers: HeaderMap| async move {
            let status = if headers["authorization"] == "Bearer good" { StatusCode::OK } else { StatusCode::FORBIDDEN };
            (status, Json(json!({})))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/api/v1/controller/ready", get(handler));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir(&folder).unwrap();
        let token_file = folder.join("token");
        // With a certificate of a public authority, the secret contains no `ca.crt`.
        let plane = || ControlPlane::new(url.clone(), token_file.clone(), Some(folder.join("ca.crt")));
        assert!(plane().ready().await.unwrap_err().contains("token"));
        std::fs::write(&token_file, "of somebody else").unwrap();
        assert!(plane().ready().await.unwrap_err().starts_with("the control plane: "));
        std::fs::write(&token_file, "good").unwrap();
        let cached = plane();
        cached.ready().await.unwrap();
        server.abort();
        let _ = server.await; // The error says that the task was aborted.
        cached.ready().await.unwrap(); // The result is cached, so that probes do not flood the control plane.
        assert!(plane().ready().await.is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn requests_to_a_hanging_control_plane_time_out() {
        let error = with_timeout::<()>(Duration::from_millis(1), std::future::pending()).await.unwrap_err();
        assert_eq!(error, "the control plane: no response within 0 s");
    }
}
