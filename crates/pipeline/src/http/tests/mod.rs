//! The API with a runner that records what it is told.

mod lists;
mod objects;
mod recurring;
mod tenants;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_access::Guard;
use slipway_exec::LogStream;
use slipway_store::Database;
use tempfile::TempDir;
use tower::ServiceExt;

use crate::Error;
use crate::ir::Document;
use crate::model::{Artifact, RunState, TaskPath};
use crate::repo;
use crate::service::{ArtifactStream, DownloadRules, Options, Runner, Service};

/// A pipeline with one task, a required text and a number with a default.
const PIPELINE: &str = "
pipelineInfo: {name: hello}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.3
root:
  inputDefinitions:
    parameters:
      text: {parameterType: STRING}
      n: {parameterType: NUMBER_INTEGER, defaultValue: 1}
  dag:
    tasks:
      say:
        componentRef: {name: comp-say}
        taskInfo: {name: say}
        inputs: {parameters: {text: {componentInputParameter: text}}}
components:
  comp-say:
    executorLabel: exec-say
    inputDefinitions: {parameters: {text: {parameterType: STRING}}}
deploymentSpec:
  executors:
    exec-say: {container: {image: alpine, command: [echo, \"{{$.inputs.parameters['text']}}\"]}}
";

/// The name of the server.
const OWNER: &str = "this-server";

#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn record(&self, what: String) {
        self.0.lock().push(what);
    }
}

impl Runner for Recorder {
    fn ready(&self) -> Result<(), Error> {
        Ok(())
    }

    fn owner(&self) -> String {
        OWNER.into()
    }

    fn start(&self, run_id: String, _: Arc<Document>) {
        self.record(format!("start {run_id}"));
    }

    fn cancel(&self, run_id: String) {
        self.record(format!("cancel {run_id}"));
    }

    fn retry(&self, run_id: String) {
        self.record(format!("retry {run_id}"));
    }

    fn forget(&self, namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>> {
        self.record(format!("forget {namespace} {run_id}"));
        std::future::ready(Ok(())).boxed()
    }

    fn log(
        &self,
        run_id: String,
        task: TaskPath,
        attempt: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'static, Result<LogStream, Error>> {
        let text = format!("{task} {attempt:?} {follow} {}", run_id.len());
        let log: LogStream = stream::iter([Ok(Bytes::from(text))]).boxed();
        std::future::ready(Ok(log)).boxed()
    }

    fn read_artifact(
        &self,
        _namespace: String,
        artifact: Artifact,
    ) -> BoxFuture<'static, Result<ArtifactStream, Error>> {
        if artifact.uri.is_empty() {
            return std::future::ready(Err(Error::NotFound("the artifact has no content".into()))).boxed();
        }
        // Pieces whose lengths are no multiples of three.
        let pieces: Vec<_> = ["a", "bcde", "", "fghij"].map(|piece| Ok(Bytes::from(piece))).into();
        std::future::ready(Ok(stream::iter(pieces).boxed())).boxed()
    }
}

struct Api {
    router: Router,
    service: Service,
    runner: Arc<Recorder>,
    _folder: TempDir,
}

impl Api {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(&folder.path().join("t.db"), &[repo::MIGRATION]).unwrap();
        let runner = Arc::new(Recorder::default());
        let options = Options { downloads: DownloadRules::Any, ..options };
        let service = Service::open(db, Arc::clone(&runner) as Arc<dyn Runner>, options).await.unwrap();
        let router = Guard::in_process().protect(super::routes(service.clone()));
        Self { router, service, runner, _folder: folder }
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let path = if path.starts_with("/pipeline/") || path.starts_with("/apis/") {
            path.to_owned()
        } else {
            format!("/apis/v2beta1/{path}")
        };
        let request =
            Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, content_type).body(body.into());
        let response = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let value = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        (status, value)
    }

    /// Sends a request that must succeed.
    async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, value) = self.send(method, path, "application/json", body).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {value}");
        value
    }

    async fn get(&self, path: &str) -> Value {
        self.ok("GET", path, Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.ok("POST", path, body).await
    }

    async fn delete(&self, path: &str) {
        assert_eq!(self.ok("DELETE", path, Value::Null).await, json!({}));
    }

    /// Sends a request that must fail, and returns HTTP status, code and reason.
    async fn refused(&self, method: &str, path: &str, body: Value) -> (u16, i64, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, value) = self.send(method, path, "application/json", body).await;
        let reason = value["details"][0]["message"].as_str().unwrap_or_default().to_owned();
        assert!(value["message"].as_str().is_some_and(|message| message.contains(&reason)), "{value}");
        assert_eq!(value["code"], value["details"][0]["code"]);
        (status.as_u16(), value["code"].as_i64().unwrap_or_default(), reason)
    }

    /// Uploads a package.
    async fn upload(&self, query: &str, file_name: &str, content: &[u8]) -> (StatusCode, Value) {
        let mut form =
            format!("--X\r\nContent-Disposition: form-data; name=\"uploadfile\"; filename=\"{file_name}\"\r\n\r\n")
                .into_bytes();
        form.extend(content);
        form.extend(b"\r\n--X--\r\n");
        self.send("POST", &format!("pipelines/{query}"), "multipart/form-data; boundary=X", form).await
    }

    async fn run(&self, name: &str) -> Value {
        let spec: Value = serde_json::to_value(pipeline_spec()).unwrap();
        let body =
            json!({"display_name": name, "pipeline_spec": spec, "runtime_config": {"parameters": {"text": "hi"}}});
        self.post("runs", body).await
    }

    async fn set_state(&self, id: &str, state: RunState) {
        let id = id.to_owned();
        let changed = self.service.db.write(move |c| repo::runs::set_state(c, &id, &[], state, "", 5000)).await;
        assert!(changed.unwrap());
    }

    fn recorded(&self) -> Vec<String> {
        std::mem::take(&mut self.runner.0.lock())
    }
}

/// [`PIPELINE`] as JSON.
fn pipeline_spec() -> Value {
    crate::ir::write::to_json(&crate::ir::read::read(PIPELINE).unwrap())
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is missing in {value}"))
}
