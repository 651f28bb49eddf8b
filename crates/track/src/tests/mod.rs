//! Tests that send requests through the real router, each on its own database and object store.

mod artifacts;
mod compaction;
mod locations;
mod mlflow;
mod parsers;
mod uploads;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use slipway_store::{Database, Objects};
use tower::ServiceExt;

use crate::{MIGRATION, Tracking};

/// A tracking server on a temporary database and object store.
struct Server {
    tracking: Tracking,
    router: Router,
    folder: std::path::PathBuf,
    /// The PostgreSQL schema that was created for the test: its name, and a connection to delete it.
    schema: Option<(String, Database)>,
}

/// A response that was read completely.
#[derive(Debug)]
struct TestResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl TestResponse {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Server {
    /// Starts a server on SQLite and files.
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("slipway-track-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let db = Database::open(&folder.join("t.db"), &[MIGRATION]).unwrap();
        Self::on(db, folder, None).await
    }

    /// Starts a server on PostgreSQL, in a new schema; `None` unless `SLIPWAY_TEST_DATABASE` is set (`testkit/services.py`).
    async fn start_on_postgres() -> Option<Self> {
        let url = std::env::var("SLIPWAY_TEST_DATABASE").ok()?;
        let name = format!("t{}", slipway_core::ids::hex32());
        let (admin, with_schema) = (url.clone(), format!("{url}?options=-csearch_path%3D{name}"));
        let create = format!("CREATE SCHEMA {name}");
        let admin = tokio::task::spawn_blocking(move || Database::connect(&admin, &[])).await.unwrap().unwrap();
        admin.write(move |c| c.execute(&create, slipway_store::sql::params![])).await.unwrap();
        let db =
            tokio::task::spawn_blocking(move || Database::connect(&with_schema, &[MIGRATION])).await.unwrap().unwrap();
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

    async fn request(&self, request: Request<Body>) -> TestResponse {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        TestResponse { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, uri: &str) -> TestResponse {
        self.request(Request::get(uri).body(Body::empty()).unwrap()).await
    }

    async fn put(&self, uri: &str, body: &'static str) -> TestResponse {
        self.request(Request::put(uri).body(Body::from(body)).unwrap()).await
    }

    async fn post(&self, path: &str, body: Value) -> TestResponse {
        self.request(json_request(Method::POST, &format!("/api/2.0/{path}"), &body)).await
    }

    /// Sends a POST request that must succeed, and returns the JSON of the response.
    async fn post_ok(&self, path: &str, body: Value) -> Value {
        let response = self.post(path, body).await;
        assert_eq!(response.status, StatusCode::OK, "{path}: {}", response.text());
        response.json()
    }

    /// Creates a run in experiment 0 and returns its id.
    async fn create_run(&self) -> String {
        let run = self.post_ok("mlflow/runs/create", serde_json::json!({ "experiment_id": "0" })).await;
        run["run"]["info"]["run_id"].as_str().unwrap().to_owned()
    }

    /// Stores an object without validating its path, as an earlier version did.
    async fn store_unchecked(&self, path: &str, body: &'static str) {
        let body = body_stream(body);
        self.tracking.objects.put(path, body).await.unwrap();
    }

    async fn stop(self) {
        self.tracking.db.close();
        if let Some((name, admin)) = &self.schema {
            let sql = format!("DROP SCHEMA {name} CASCADE");
            admin.write(move |c| c.execute(&sql, slipway_store::sql::params![])).await.unwrap();
        }
        // A background task that still reads may create SQLite's shared memory again while the folder is removed.
        let started = std::time::Instant::now();
        while let Err(error) = std::fs::remove_dir_all(&self.folder) {
            assert!(started.elapsed() < std::time::Duration::from_secs(10), "{error}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

fn body_stream(
    body: &'static str,
) -> impl futures_util::Stream<Item = Result<bytes::Bytes, std::convert::Infallible>> + Unpin {
    futures_util::stream::iter([Ok(bytes::Bytes::from_static(body.as_bytes()))])
}

fn json_request(method: Method, uri: &str, body: &Value) -> Request<Body> {
    let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

/// Asserts that the request was rejected with `INVALID_PARAMETER_VALUE`.
#[track_caller]
fn assert_invalid(response: &TestResponse) {
    assert_eq!(response.status, StatusCode::BAD_REQUEST, "{}", response.text());
    assert_eq!(response.json()["error_code"], "INVALID_PARAMETER_VALUE", "{}", response.text());
}
