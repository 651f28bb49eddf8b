//! Requests through the real router, on stores of a test's own.

mod artifacts;
mod compaction;
mod locations;
mod mlflow;
mod uploads;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use slipway_store::{Database, Objects};
use tower::ServiceExt;

use crate::{MIGRATION, Tracking};

/// A tracking server on stores that go with it.
struct Server {
    tracking: Tracking,
    router: Router,
    folder: std::path::PathBuf,
    /// A schema of PostgreSQL that the test made: its name, and the database it is in.
    schema: Option<(String, Database)>,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Server {
    /// On SQLite and files.
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("slipway-track-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let db = Database::open(&folder.join("t.db"), &[MIGRATION]).unwrap();
        Self::on(db, folder, None).await
    }

    /// On the PostgreSQL that `SLIPWAY_TEST_DATABASE` names (`testkit/services.py`), if it is there, in a schema of its own.
    async fn start_on_postgres() -> Option<Self> {
        let url = std::env::var("SLIPWAY_TEST_DATABASE").ok()?;
        let name = format!("t{}", slipway_core::ids::hex32());
        let (admin, own) = (url.clone(), format!("{url}?options=-csearch_path%3D{name}"));
        let create = format!("CREATE SCHEMA {name}");
        let admin = tokio::task::spawn_blocking(move || Database::connect(&admin, &[])).await.unwrap().unwrap();
        admin.write(move |c| c.execute(&create, slipway_store::sql::params![])).await.unwrap();
        let db = tokio::task::spawn_blocking(move || Database::connect(&own, &[MIGRATION])).await.unwrap().unwrap();
        let folder = std::env::temp_dir().join(format!("slipway-track-{name}"));
        Some(Self::on(db, folder, Some((name, admin))).await)
    }

    async fn on(db: Database, folder: std::path::PathBuf, schema: Option<(String, Database)>) -> Self {
        let objects = Objects::open(folder.join("objects")).unwrap();
        let tracking = Tracking::open(db, objects).await.unwrap();
        Self {
            router: slipway_access::Guard::in_process().protect(crate::http::routes(tracking.clone())),
            tracking,
            folder,
            schema,
        }
    }

    async fn request(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, uri: &str) -> Answer {
        self.request(Request::get(uri).body(Body::empty()).unwrap()).await
    }

    async fn put(&self, uri: &str, body: &'static str) -> Answer {
        self.request(Request::put(uri).body(Body::from(body)).unwrap()).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(json_request(Method::POST, &format!("/api/2.0/{path}"), &body)).await
    }

    /// Posts what has to be accepted.
    async fn done(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        answer.json()
    }

    /// Begins a run in experiment 0; its id.
    async fn run(&self) -> String {
        let run = self.done("mlflow/runs/create", serde_json::json!({ "experiment_id": "0" })).await;
        run["run"]["info"]["run_id"].as_str().unwrap().to_owned()
    }

    /// Stores an object without any check, as an earlier version may have done.
    async fn store_unchecked(&self, path: &str, body: &'static str) {
        let body = futures_stream(body);
        self.tracking.objects.put(path, body).await.unwrap();
    }

    async fn stop(self) {
        self.tracking.db.close();
        if let Some((name, admin)) = &self.schema {
            let sql = format!("DROP SCHEMA {name} CASCADE");
            admin.write(move |c| c.execute(&sql, slipway_store::sql::params![])).await.unwrap();
        }
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

fn futures_stream(
    body: &'static str,
) -> impl futures_util::Stream<Item = Result<bytes::Bytes, std::convert::Infallible>> + Unpin {
    futures_util::stream::iter([Ok(bytes::Bytes::from_static(body.as_bytes()))])
}

fn json_request(method: Method, uri: &str, body: &Value) -> Request<Body> {
    let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

/// Refused by MLflow's rules.
#[track_caller]
fn assert_invalid(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
    assert_eq!(answer.json()["error_code"], "INVALID_PARAMETER_VALUE", "{}", answer.text());
}
