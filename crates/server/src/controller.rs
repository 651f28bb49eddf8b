//! API for a run controller in another process, under `/api/v1/controller`: begins and ends tracked runs, and issues the tokens of
//! attempts.
//!
//! Invariant: all routes require the permission to create `runs/tracking` in the namespace of the installation.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use slipway_access::{Access, Resource, Routes};
use slipway_exec::{Mint, RunStatus, TokenRequest, Tracked, Tracker};

#[derive(Clone)]
struct Service {
    tracker: Arc<dyn Tracker>,
    mint: Mint,
}

/// Request to end a tracked run.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    namespace: String,
    run_id: String,
    status: RunStatus,
}

pub(crate) fn routes(tracker: Arc<dyn Tracker>, mint: Mint) -> Routes {
    let access = Access::create(Resource::RunTracking);
    Routes::new()
        .get("/api/v1/controller/ready", access, ready)
        .post("/api/v1/controller/begin", access, begin)
        .post("/api/v1/controller/end", access, end)
        .post("/api/v1/controller/token", access, token)
        .with_state(Service { tracker, mint })
}

fn empty_response(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Json(json!({})).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": error}))).into_response(),
    }
}

/// Readiness check of the controller. A success means that the controller reaches the server and is authorized.
async fn ready() -> Response {
    empty_response(Ok(()))
}

async fn begin(State(service): State<Service>, Json(run): Json<Tracked>) -> Response {
    empty_response(service.tracker.begin(run).await)
}

async fn end(State(service): State<Service>, Json(end): Json<End>) -> Response {
    empty_response(service.tracker.end(&end.namespace, &end.run_id, &end.status).await)
}

async fn token(State(service): State<Service>, Json(request): Json<TokenRequest>) -> Response {
    Json(json!({"token": (service.mint)(&request)})).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, header};
    use futures_util::future::BoxFuture;
    use parking_lot::Mutex;
    use tower::ServiceExt;

    use super::*;
    use crate::auth::{Authority, Callers, RunTokens};
    use slipway_access::{Guard, HostNames, Permission, Person};

    /// A tracker that records its calls.
    #[derive(Default)]
    struct RecordingTracker(Mutex<Vec<String>>);

    impl Tracker for RecordingTracker {
        fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
            self.0.lock().push(format!("begin {}", run.run_id));
            Box::pin(async { Ok(()) })
        }

        fn end<'a>(
            &'a self,
            namespace: &'a str,
            run_id: &'a str,
            status: &'a RunStatus,
        ) -> BoxFuture<'a, Result<(), String>> {
            self.0.lock().push(format!("end {namespace} {run_id} {:?}", status.phase));
            Box::pin(async { Ok(()) })
        }
    }

    /// A cluster whose tokens equal the user names. Only the controller may create `runs/tracking`.
    struct Cluster;

    impl Authority for Cluster {
        fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>> {
            let known = ["controller", "editor"].contains(&token);
            Box::pin(async move { Ok(known.then(|| Person { name: token.to_owned(), ..Person::default() })) })
        }

        fn is_allowed<'a>(
            &'a self,
            person: &'a Person,
            permission: &'a Permission,
        ) -> BoxFuture<'a, Result<bool, String>> {
            let tracking =
                permission.resource == Resource::RunTracking && permission.namespace.as_deref() == Some("sys");
            Box::pin(async move { Ok(!tracking || person.name == "controller") })
        }
    }

    #[tokio::test]
    async fn only_the_controller_may_track_runs_and_issue_tokens() {
        let tracker = Arc::new(RecordingTracker::default());
        let tokens = RunTokens::new([7; 32]);
        let minting = tokens.clone();
        let mint: Mint = Arc::new(move |request| minting.mint(request));
        let callers = Callers { runs: Some(tokens.clone()), authority: Some(Arc::new(Cluster)), ..Callers::default() };
        let guard = Guard::new(Arc::new(callers), "sys", HostNames::default());
        let router = guard.protect(routes(Arc::<RecordingTracker>::clone(&tracker), mint));
        let post = async |token: &str, path: &str, body: serde_json::Value| {
            let request = Request::post(format!("/api/v1/controller/{path}"))
                .header(header::HOST, "localhost")
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::AUTHORIZATION, format!("Bearer {token}"))
                .body(Body::from(body.to_string()))
                .unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), 100_000).await.unwrap();
            (status, serde_json::from_slice::<serde_json::Value>(&bytes).unwrap_or_default())
        };
        let run = Tracked {
            run_id: "r".into(),
            namespace: "team".into(),
            experiment: None,
            name: "a".into(),
            user: String::new(),
            tags: Vec::new(),
            attempt: 1,
            data: Vec::new(),
        };
        let request = json!({"namespace": "team", "run_id": "r", "run": "a", "experiment": null, "attempt": 1, "expires_at": i64::MAX});
        let run_token = tokens.mint(&serde_json::from_value(request.clone()).unwrap());
        let end = json!({"namespace": "team", "runId": "r", "status": {"phase": "Succeeded"}});
        let calls = [("begin", json!(run)), ("end", end), ("token", request)];
        for (path, body) in &calls {
            for (token, expected) in [("unknown", 401), ("editor", 403), (run_token.as_str(), 403)] {
                assert_eq!(post(token, path, body.clone()).await.0, expected, "{path}");
            }
        }
        assert!(tracker.0.lock().is_empty());
        for (path, body) in calls {
            let (status, response) = post("controller", path, body).await;
            assert_eq!(status, 200, "{path}: {response}");
            assert_eq!(
                response["token"].as_str().map(|t| tokens.verify(t).unwrap().namespace),
                (path == "token").then(|| "team".to_owned())
            );
        }
        assert_eq!(*tracker.0.lock(), ["begin r", "end team r Succeeded"]);
    }
}
