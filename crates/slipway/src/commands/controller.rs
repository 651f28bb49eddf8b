//! `slipway controller`: the controller of runs in a process of its own. It creates pods and their secrets; what has to be tracked, and
//! the tokens that runs track with, it asks the control plane for.

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

/// The longest that a question to the control plane may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer to a readiness check is good enough.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How long requests for metrics may take to end after the process was asked to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// The control plane, asked with a token that the kubelet renews in a file.
struct ControlPlane {
    url: String,
    token_file: PathBuf,
    /// The file of the authorities that signed its certificate; a public one where the file does not exist.
    ca_file: Option<PathBuf>,
    /// The client of the token and authorities that were read last, so that connections are used again.
    client: Mutex<Option<(Credentials, Arc<Client>)>>,
    /// When the control plane was asked last whether it answers, and what came of it.
    checked: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// What the files say now.
#[derive(PartialEq)]
struct Credentials {
    token: String,
    /// `None` where there is no such file.
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
        let mut known = self.client.lock().await;
        if let Some((_, client)) = known.as_ref().filter(|(of, _)| *of == credentials) {
            return Ok(Arc::clone(client));
        }
        let secret = Token::from_text(&credentials.token)
            .ok_or_else(|| format!("{} holds no token", self.token_file.display()))?;
        let authorities = credentials.authorities.as_ref().and(self.ca_file.clone());
        let url = ServerUrl::parse(&self.url).map_err(|e| e.to_string())?;
        let client = Client::to(&url, Access::of_controller(secret, authorities)).map_err(|e| e.to_string())?;
        let client = Arc::new(client);
        *known = Some((credentials, Arc::clone(&client)));
        Ok(client)
    }

    async fn ask<T: DeserializeOwned>(&self, what: &str, body: Value) -> Result<T, String> {
        let path = format!("/api/v1/controller/{what}");
        in_time(ASK_TIMEOUT, async { self.client().await?.post(&path, &body).await.map_err(|e| e.to_string()) }).await
    }

    /// Whether the control plane answers this controller, asked at most once in [`CHECK_INTERVAL`].
    async fn ready(&self) -> Result<(), String> {
        let mut checked = self.checked.lock().await;
        if let Some((_, answer)) = checked.as_ref().filter(|(at, _)| at.elapsed() < CHECK_INTERVAL) {
            return answer.clone();
        }
        let asking = async {
            let answer = self.client().await?.get::<Value>("/api/v1/controller/ready").await;
            answer.map(|_| ()).map_err(|e| e.to_string())
        };
        let answer = in_time(ASK_TIMEOUT, asking).await;
        *checked = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn token(&self, request: TokenRequest) -> Result<String, String> {
        #[derive(serde::Deserialize)]
        struct Minted {
            token: String,
        }
        Ok(self.ask::<Minted>("token", json!(request)).await?.token)
    }
}

/// Bounds the time of a question to the control plane: while one waits, a worker of the controller waits with it.
async fn in_time<T>(limit: Duration, question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = |_| format!("no answer within {} s", limit.as_secs());
    let answer = tokio::time::timeout(limit, question).await;
    answer.map_err(late).and_then(|r| r).map_err(|e| format!("the control plane: {e}"))
}

impl Tracker for ControlPlane {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.ask::<Value>("begin", json!(run)).await.map(drop) })
    }

    fn end<'a>(
        &'a self,
        namespace: &'a str,
        run_id: &'a str,
        status: &'a RunStatus,
    ) -> BoxFuture<'a, Result<(), String>> {
        let body = json!({"namespace": namespace, "runId": run_id, "status": status});
        Box::pin(async move { self.ask::<Value>("end", body).await.map(drop) })
    }
}

/// Answers to probes, and metrics.
fn probes(plane: Arc<ControlPlane>, controller: Arc<RunController>) -> Router {
    let ready = move || async move {
        match plane.ready().await {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(error) => {
                tracing::warn!(error, "not ready");
                (StatusCode::SERVICE_UNAVAILABLE, "the control plane does not answer this controller\n".to_owned())
            }
        }
    };
    let metrics = move || async move {
        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render_figures(in_cluster::figures(&controller)))
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

pub(super) async fn run(options: cli::Controller) -> Result<(), Failure> {
    let namespace = env::value(env::NAMESPACE).ok_or_else(|| {
        Failure::known(format!("{} is not set: this command runs in a cluster", env::NAMESPACE), "kube.no_config", 2)
    })?;
    let api = Api::connect(None, None).await?;
    let listener = TcpListener::bind(&options.listen)
        .await
        .map_err(|e| Failure::known(format!("{} cannot be listened on: {e}", options.listen), "listen.invalid", 1))?;
    let plane = Arc::new(ControlPlane::new(
        options.control_plane.unwrap_or_else(|| in_cluster::runs_url(&namespace)),
        options.token_file,
        env::value(env::CA_FILE).map(PathBuf::from),
    ));
    let minting = Arc::clone(&plane);
    let settings = in_cluster::settings(
        namespace,
        Arc::new(move |request| {
            let plane = Arc::clone(&minting);
            Box::pin(async move { plane.token(request).await })
        }),
    );
    let controller = Arc::new(RunController::start(api, settings, Arc::<ControlPlane>::clone(&plane)));
    let router = probes(plane, Arc::clone(&controller));
    let (stop, mut stopped) = watch::channel(false);
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stopped.wait_for(|s| *s).await; // An error means that the process is ending.
    });
    let mut server = tokio::spawn(async move { server.await });
    tracing::info!("carrying out runs");
    tokio::select! {
        () = super::up::terminated()? => {}
        ended = &mut server => {
            return Err(Failure::known(format!("the port for metrics failed: {ended:?}"), "listen.invalid", 1));
        }
    }
    // The work stops and the lease is given back first: then another can go on at once.
    controller.stop().await;
    stop.send_replace(true);
    if tokio::time::timeout(DRAIN, server).await.is_err() {
        tracing::debug!("a request for metrics did not end in time");
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
    async fn the_control_plane_is_asked_with_the_token_that_the_file_has_now() {
        let asked: Arc<Lock<Vec<(String, String, Value)>>> = Arc::default();
        let kept = Arc::clone(&asked);
        let answer = move |path: axum::extract::Path<String>, headers: HeaderMap, body: Json<Value>| async move {
            let token = headers["authorization"].to_str().unwrap_or_default().to_owned();
            kept.lock().unwrap().push((path.0, token, body.0));
            Json(json!({"token": "of the attempt"}))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/api/v1/controller/{what}", post(answer));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let token_file = std::env::temp_dir().join(format!("slipway-controller-{}", std::process::id()));
        std::fs::write(&token_file, "first\n").unwrap();
        let plane = ControlPlane::new(url, token_file.clone(), None);
        let manifest = slipway_exec::Manifest::of("train", ["true"]);
        let request = TokenRequest::new(&manifest, 1, Some(1000), 0);
        assert_eq!(plane.token(request.clone()).await.unwrap(), "of the attempt");
        std::fs::write(&token_file, "second\n").unwrap();
        plane.begin(Tracked::of(&manifest)).await.unwrap();
        plane.end("team", "r", &RunStatus::default()).await.unwrap();
        std::fs::remove_file(&token_file).unwrap();
        assert!(plane.end("team", "r", &RunStatus::default()).await.is_err(), "without a token nothing is asked");
        let asked = asked.lock().unwrap().clone();
        let expected = [("token", "Bearer first"), ("begin", "Bearer second"), ("end", "Bearer second")];
        assert_eq!(asked.iter().map(|(what, token, _)| (what.as_str(), token.as_str())).collect::<Vec<_>>(), expected);
        assert_eq!((&asked[0].2, &asked[2].2["runId"]), (&json!(request), &json!("r")));
        assert_eq!(asked[2].2["namespace"], "team");
        server.abort();
    }

    #[tokio::test]
    async fn it_is_ready_when_the_control_plane_answers_it() {
        let answer = |headers: HeaderMap| async move {
            let status = if headers["authorization"] == "Bearer good" { StatusCode::OK } else { StatusCode::FORBIDDEN };
            (status, Json(json!({})))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/api/v1/controller/ready", get(answer));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir(&folder).unwrap();
        let token_file = folder.join("token");
        // The secret of a public authority brings no certificates.
        let plane = || ControlPlane::new(url.clone(), token_file.clone(), Some(folder.join("ca.crt")));
        assert!(plane().ready().await.unwrap_err().contains("token"));
        std::fs::write(&token_file, "of somebody else").unwrap();
        assert!(plane().ready().await.unwrap_err().starts_with("the control plane: "));
        std::fs::write(&token_file, "good").unwrap();
        let asked = plane();
        asked.ready().await.unwrap();
        server.abort();
        let _ = server.await; // It was aborted.
        asked.ready().await.unwrap(); // The answer is kept for a moment, so probes are no flood.
        assert!(plane().ready().await.is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_control_plane_that_hangs_is_not_waited_for_for_long() {
        let error = in_time::<()>(Duration::from_millis(1), std::future::pending()).await.unwrap_err();
        assert_eq!(error, "the control plane: no answer within 0 s");
    }
}
