//! Compares the OpenAPI document with the table of routes, with its committed copy, and with real requests and responses.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use slipway_cluster::report::{Outcome, Report, StepReport};
use slipway_exec::status::{Condition, Time};
use slipway_exec::{
    Attempt, ExecFuture, Executor, GpuUse, LogQuery, LogStream, Manifest, Phase, QueueStatus, QueueSystem, RunStatus,
    Submitted, UsedData,
};
use slipway_gpu::inventory::{
    Ecc, Finding, FindingCode, Gpu, Inventory, Mig, MigDevice, NvLink, Pcie, Process, Severity,
};
use slipway_pipeline::driver::{Driver, Settings};
use slipway_pipeline::entity::RuntimeConfig;
use slipway_pipeline::launch::{ArtifactStream, AttemptId, Launcher};
use slipway_pipeline::listing::ListRequest;
use slipway_pipeline::model::{Artifact, Launch, Outcome as TaskOutcome, Outputs};
use slipway_pipeline::service::{NewPipeline, NewRun, NewSource, NewVersion};

use super::json_schema;
use super::repositories::{GIF, Repository};
use super::{RUN_ID, Reply, TestServer};
use crate::openapi::operations;

/// Generated ONNX models, shared with the tests of the gateway.
#[allow(dead_code)] // this module uses only one of them
#[path = "../../../serve/src/testing/onnx.rs"]
mod onnx;

/// The committed copy, which makes changes of the API visible in review.
const COMMITTED: &str = include_str!("../openapi.json");

async fn document(server: &TestServer) -> Value {
    let reply = server.send_as("no-token", "GET", "/openapi.json", "").await;
    serde_json::from_slice(&reply.body).unwrap()
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().unwrap().iter()
}

#[tokio::test]
async fn committed_document_matches_the_served_one() {
    let served = document(&TestServer::open().await).await;
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/openapi.json");
        std::fs::write(path, serde_json::to_string_pretty(&served).unwrap() + "\n").unwrap();
        return;
    }
    let committed: Value = serde_json::from_str(COMMITTED).unwrap();
    assert!(served == committed, "the API has changed: UPDATE_OPENAPI=1 regenerates openapi.json; review its diff");
}

/// Routes of slipway's own API, operations, and paths of the document correspond one to one.
#[tokio::test]
async fn every_route_has_exactly_one_operation() {
    let server = TestServer::open().await;
    let document = document(&server).await;
    let own = ["/healthz", "/readyz", "/metrics", "/openapi.json"];
    // Kubernetes' core group is below `/api/v1` too, and has documents of its own.
    let kubernetes =
        server.platform.kubernetes_objects.as_ref().map(|store| crate::objects::routes(store, &None)).unwrap();
    let is_kubernetes = |path: &str| kubernetes.table().iter().any(|route| route.path == path);
    let routes: BTreeSet<String> = server.tables[0]
        .iter()
        .filter(|r| r.path.starts_with("/api/v1/") || own.contains(&r.path.as_str()))
        .filter(|r| !is_kubernetes(&r.path))
        .filter_map(|r| Some(format!("{} {} {}", r.method.as_ref()?, r.path, r.access)))
        .collect();
    let mut documented = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for (path, methods) in object(&document["paths"]) {
        for (method, operation) in object(methods) {
            let access = operation["x-slipway-access"].as_str().unwrap();
            documented.insert(format!("{} {path} {access}", method.to_uppercase()));
            assert_eq!(operation["security"] == json!([]), access == "public", "{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{method} {path}: duplicate operation id");
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{method} {path}");
        }
    }
    let without_wildcards: BTreeSet<String> = routes.iter().map(|route| route.replace("{*", "{")).collect();
    assert_eq!(documented, without_wildcards);
    let described: BTreeSet<String> = operations().iter().map(|o| format!("{} {}", o.method, o.path)).collect();
    let routes: BTreeSet<String> = routes.iter().map(|r| r.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(described, routes, "an operation is duplicated, or has no route");
    assert_eq!(described.len(), operations().len());
}

/// The document of a gateway-only server has only health and metrics.
#[tokio::test]
async fn gateway_only_document_has_only_its_routes() {
    let server = TestServer::open().await;
    let router = slipway_access::Guard::in_process().protect(server.platform.probe_routes());
    let request = Request::get("/openapi.json").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let document: Value = serde_json::from_slice(&body).unwrap();
    let paths: Vec<_> = object(&document["paths"]).map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/healthz", "/metrics", "/openapi.json", "/readyz"]);
}

/// All references resolve, and no two types share a name (schemars would append a number to one of them).
#[tokio::test]
async fn schema_references_resolve_and_names_are_unique() {
    let document = document(&TestServer::open().await).await;
    let mut references = BTreeSet::new();
    let mut pending = vec![&document];
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(fields) => {
                references.extend(fields.get("$ref").and_then(Value::as_str));
                pending.extend(fields.values());
            }
            Value::Array(items) => pending.extend(items),
            _ => {}
        }
    }
    for reference in &references {
        let found = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(found.is_some(), "{reference} does not resolve");
    }
    for (name, schema) in object(&document["components"]["schemas"]) {
        assert!(!name.ends_with(|c: char| c.is_ascii_digit()), "two types have the name {name}");
        assert!(schema.is_object(), "{name}");
        assert!(references.contains(format!("#/components/schemas/{name}").as_str()), "nothing refers to {name}");
    }
}

/// A server whose responses and accepted requests are validated against its document.
struct CheckedServer {
    server: TestServer,
    document: Value,
    /// Ids of the operations that have succeeded.
    succeeded: BTreeSet<String>,
}

impl CheckedServer {
    async fn open() -> Self {
        let server = TestServer::open().await;
        let document = document(&server).await;
        Self { server, document, succeeded: BTreeSet::new() }
    }

    /// The operation that describes a request.
    fn operation(&self, method: &str, path: &str) -> &Value {
        let path = path.split('?').next().unwrap();
        // The number of literal segments of a pattern that matches. The parameter `{path}` stands for any number of segments.
        let specificity = |pattern: &str| {
            let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
            let has_rest = pattern.last() == Some(&"{path}") && path.len() > pattern.len();
            let matches = (pattern.len() == path.len() || has_rest)
                && pattern.iter().zip(&path).all(|(p, s)| p == s || p.starts_with('{'));
            matches.then(|| pattern.iter().filter(|p| !p.starts_with('{')).count())
        };
        let patterns = object(&self.document["paths"]);
        let found = patterns.filter_map(|(pattern, methods)| Some((specificity(pattern)?, methods)));
        let found = found.max_by_key(|(literals, _)| *literals).map(|(_, methods)| methods);
        found.and_then(|methods| methods.get(method.to_lowercase())).unwrap_or_else(|| panic!("{method} {path}"))
    }

    /// Sends a request and validates the response, and also the request body if the request succeeds.
    async fn send(&mut self, role: &str, method: &str, path: &str, body: Value) -> Value {
        let operation = self.operation(method, path);
        let is_json = operation["requestBody"]["content"].get("application/json").is_some();
        let text = match &body {
            Value::Null => String::new(),
            Value::String(text) if !is_json => text.clone(),
            json => json.to_string(),
        };
        let reply = self.server.send_as(role, method, path, &text).await;
        let operation = self.operation(method, path);
        if reply.status.is_success() {
            if !body.is_null() && is_json {
                let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                let checked = json_schema::check(&self.document, schema, &body);
                assert_eq!(checked, Ok(()), "the body of {method} {path}");
            }
            let id = operation["operationId"].as_str().unwrap().to_owned();
            self.succeeded.insert(id);
        }
        let checked = self.check(self.operation(method, path), &reply);
        checked.unwrap_or_else(|why| {
            panic!("{method} {path}: {}: {why}\n{}", reply.status, String::from_utf8_lossy(&reply.body))
        })
    }

    /// Like [`Self::send`], as owner, for a request that must succeed.
    async fn succeed(&mut self, method: &str, path: &str, body: Value) -> Value {
        let id = self.operation(method, path)["operationId"].as_str().unwrap().to_owned();
        self.succeeded.remove(&id);
        let response = self.send("owner", method, path, body).await;
        assert!(self.succeeded.contains(&id), "{method} {path}: {response}");
        response
    }

    /// Validates a response against its operation and returns the body.
    fn check(&self, operation: &Value, reply: &Reply) -> Result<Value, String> {
        let responses = &operation["responses"];
        let response =
            responses.get(reply.status.as_str()).or_else(|| responses.get("default")).ok_or("no response")?;
        let response = match response["$ref"].as_str() {
            Some(reference) => self.document.pointer(&reference[1..]).ok_or("no such response")?,
            None => response,
        };
        let Some(content) = response.get("content") else {
            return if reply.body.is_empty() { Ok(Value::Null) } else { Err("there is a body".into()) };
        };
        let sent = reply.headers.get("content-type").and_then(|t| t.to_str().ok()).ok_or("no content type")?;
        let essence = |media_type: &str| media_type.split(';').next().unwrap_or_default().to_owned();
        let (_, media) = object(content)
            .find(|(t, _)| essence(t) == essence(sent) || (*t == "image/*" && sent.starts_with("image/")))
            .ok_or(format!("{sent} is not in the document"))?;
        let value = match essence(sent).as_str() {
            "application/json" => serde_json::from_slice(&reply.body).map_err(|e| e.to_string())?,
            // Binary content has no schema.
            _ if media.get("schema").is_none() => return Ok(Value::Null),
            _ => Value::String(String::from_utf8(reply.body.to_vec()).map_err(|e| e.to_string())?),
        };
        json_schema::check(&self.document, &media["schema"], &value).map(|()| value)
    }

    /// Sends a request to MLflow's API, which is not in the document.
    async fn mlflow(&self, path: &str, body: Value) -> Value {
        let reply = self.server.send_as("owner", "POST", &format!("/api/2.0/mlflow/{path}"), &body.to_string()).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&reply.body));
        serde_json::from_slice(&reply.body).unwrap()
    }

    /// Registers a model that uses all fields of a lineage.
    async fn register_model(&self) {
        let path = format!("/api/2.0/mlflow-artifacts/artifacts/0/{RUN_ID}/artifacts/model/model.onnx");
        let request = Request::put(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {}", super::OWNER))
            .body(Body::from(onnx::relu()))
            .unwrap();
        assert_eq!(self.server.send(0, request).await.status, StatusCode::OK);
        let dataset = json!({"name": "digits", "digest": "d1", "source_type": "local", "source": "{}", "schema": "{}", "profile": "{}"});
        let tags = json!([{"key": "mlflow.data.context", "value": "training"}]);
        self.mlflow("runs/log-inputs", json!({"run_id": RUN_ID, "datasets": [{"tags": tags, "dataset": dataset}]}))
            .await;
        self.mlflow("runs/update", json!({"run_id": RUN_ID, "status": "FINISHED", "end_time": 2})).await;
        self.mlflow("registered-models/create", json!({"name": "m"})).await;
        let version = json!({"name": "m", "source": format!("runs:/{RUN_ID}/model"), "run_id": RUN_ID, "description": "d", "tags": tags});
        self.mlflow("model-versions/create", version).await;
        self.mlflow("registered-models/alias", json!({"name": "m", "alias": "champion", "version": "1"})).await;
    }
}

/// An executor whose runs have a value in every field.
#[derive(Debug)]
struct FullExecutor;

impl FullExecutor {
    fn run(mut manifest: Manifest) -> Submitted {
        let time = Some(Time(1_700_000_000_123));
        let gpu =
            GpuUse { device: "GPU-1".into(), resource: "nvidia.com/gpu".into(), joules: 1.5, ..GpuUse::default() };
        let attempt = Attempt {
            number: 1,
            node: "n".into(),
            started_at: time,
            finished_at: time,
            exit_code: Some(137),
            reason: "OOMKilled".into(),
            message: "m".into(),
            gpus: vec![gpu],
        };
        let condition = Condition {
            kind: "Failed".into(),
            status: "True".into(),
            reason: "r".into(),
            message: "m".into(),
            last_transition_time: Time(0),
        };
        manifest.metadata.uid = "u".into();
        manifest.metadata.generation = Some(1);
        manifest.metadata.creation_timestamp = "2026-01-01T00:00:00Z".into();
        let status = RunStatus {
            phase: Phase::Failed,
            reason: "BackoffLimitExceeded".into(),
            message: "m".into(),
            run_id: RUN_ID.into(),
            node: "n".into(),
            queue: Some(QueueStatus { name: "q".into(), system: QueueSystem::Kueue, position: Some(1) }),
            start_time: time,
            completion_time: time,
            failures: 1,
            disruptions: 1,
            attempts: vec![attempt],
            data: vec![UsedData {
                repo: "r".into(),
                commit: "c".into(),
                path: "p".into(),
                file: "f.dvc".into(),
                digest: "d".into(),
                size: Some(1),
                files: Some(1),
            }],
            conditions: vec![condition],
            attributed: true,
        };
        Submitted { manifest, status }
    }

    fn named(name: &str) -> Submitted {
        Self::run(Manifest::new(name, ["true"]))
    }
}

impl Executor for FullExecutor {
    fn submit<'a>(&'a self, run: Manifest, _: Option<&'a str>) -> ExecFuture<'a, Submitted> {
        Box::pin(std::future::ready(Ok(Self::run(run))))
    }
    fn list<'a>(&'a self, _: Option<&'a str>) -> ExecFuture<'a, Vec<Submitted>> {
        Box::pin(std::future::ready(Ok(vec![Self::named("a"), Self::named("b")])))
    }
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        let missing = || slipway_exec::ExecError::NotFound(name.to_owned());
        Box::pin(std::future::ready(if name == "missing" { Err(missing()) } else { Ok(Self::named(name)) }))
    }
    fn cancel<'a>(&'a self, _: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(std::future::ready(Ok(Self::named(name))))
    }
    fn remove<'a>(&'a self, _: &'a str, _: &'a str) -> ExecFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn logs<'a>(&'a self, _: &'a str, _: &'a str, _: LogQuery) -> ExecFuture<'a, LogStream> {
        let lines: LogStream = Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(b"a line\n"))]));
        Box::pin(std::future::ready(Ok(lines)))
    }
}

/// A launcher of pipelines whose steps succeed at once, with a value in every field.
#[derive(Debug)]
struct FullLauncher;

impl Launcher for FullLauncher {
    fn execute(&self, _: Launch) -> BoxFuture<'static, TaskOutcome> {
        let model = Artifact {
            schema_title: "system.Model".into(),
            uri: "/m".into(),
            metadata: [("k".to_owned(), json!(1))].into_iter().collect(),
            digest: Some("sha256:0".into()),
            ..Artifact::default()
        };
        let outputs = Outputs {
            parameters: [("Output".to_owned(), json!("said"))].into(),
            artifacts: [("model".to_owned(), vec![model])].into(),
        };
        Box::pin(std::future::ready(TaskOutcome::Succeeded(outputs)))
    }
    fn stop(&self, _: AttemptId) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
    fn log(&self, _: AttemptId, _: bool) -> BoxFuture<'static, Result<LogStream, slipway_pipeline::Error>> {
        let lines: LogStream = Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(b"a line\n"))]));
        Box::pin(std::future::ready(Ok(lines)))
    }
    fn has(&self, _: Outputs) -> BoxFuture<'static, bool> {
        Box::pin(std::future::ready(true))
    }
    fn read(&self, _: String, _: Artifact) -> BoxFuture<'static, Result<ArtifactStream, slipway_pipeline::Error>> {
        let content: ArtifactStream = Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(b"weights"))]));
        Box::pin(std::future::ready(Ok(content)))
    }
    fn forget(&self, _: String, _: String) -> BoxFuture<'static, Result<(), slipway_pipeline::Error>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A pipeline of one step.
fn pipeline_of_one_step() -> Value {
    let outputs = json!({"parameters": {"Output": {"parameterType": "STRING"}},
        "artifacts": {"model": {"artifactType": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"}}}});
    json!({
        "pipelineInfo": {"name": "say"}, "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.3",
        "components": {"comp-say": {"executorLabel": "exec-say", "outputDefinitions": outputs,
            "inputDefinitions": {"parameters": {"text": {"parameterType": "STRING"}}}}},
        "deploymentSpec": {"executors": {"exec-say": {"container": {"image": "python:3.11", "command": ["true"]}}}},
        "root": {
            "inputDefinitions": {"parameters": {"text": {"parameterType": "STRING"}}},
            "dag": {"tasks": {"say": {"componentRef": {"name": "comp-say"}, "taskInfo": {"name": "say"},
                "inputs": {"parameters": {"text": {"componentInputParameter": "text"}}}}}},
        },
    })
}

/// Runs a pipeline of one step to its end, and returns the id of the run.
async fn run_pipeline(server: &TestServer) -> String {
    let platform = &server.platform;
    let tracker = Arc::new(crate::pipeline::PipelineTracker::new(platform.tracking.clone(), false));
    let settings = Settings { owner: "server".into(), pipeline_root: "/artifacts".into(), max_parallel_tasks: 1 };
    platform.pipeline_runner.set(Driver::new(platform.database.clone(), Arc::new(FullLauncher), tracker, settings));
    let service = &platform.pipelines;
    let experiment = service.default_experiment("default".into()).await.unwrap();
    let new = NewRun {
        display_name: "one".into(),
        description: String::new(),
        service_account: String::new(),
        source: NewSource::Inline(pipeline_of_one_step()),
        config: RuntimeConfig {
            parameters: [("text".to_owned(), json!("hi"))].into_iter().collect(),
            ..RuntimeConfig::default()
        },
    };
    let id = service.create_run(&experiment, new).await.unwrap().run_id;
    while !service.run(&id).unwrap().state.is_final() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    id
}

fn deployment_manifest() -> Value {
    let model = |name: &str, weight: u32| json!({"name": name, "uri": "models:/m@champion", "weight": weight});
    json!({
        "apiVersion": "slipway.dev/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {
            "models": [model("a", 90), model("b", 10)],
            "split": {"by": "header", "header": "x-user"},
            "batching": {"max_size": 4},
            "limits": {"timeout_ms": 5000},
        },
    })
}

/// Calls every operation with real content, and validates requests and responses.
#[tokio::test(flavor = "multi_thread")]
async fn responses_match_the_document() {
    let mut checked = CheckedServer::open().await;
    checked.register_model().await;
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/api/v1/addresses", "/api/v1/status"] {
        checked.succeed("GET", path, Value::Null).await;
    }
    checked.succeed("GET", "/api/v1/integrity", Value::Null).await;

    checked.succeed("POST", "/api/v1/deployments", deployment_manifest()).await;
    let weights = json!({"weights": {"a": 50, "b": 50}});
    checked.succeed("POST", "/api/v1/deployments/d/split", weights).await;
    checked.succeed("POST", "/api/v1/deployments/d/rollback", Value::Null).await;
    checked.succeed("POST", "/api/v1/deployments/d/rollback", json!({"to": 2})).await;
    checked.succeed("GET", "/api/v1/deployments/d", Value::Null).await;
    checked.succeed("GET", "/api/v1/deployments/d/metadata", Value::Null).await;
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, -1.0]});
    checked.succeed("POST", "/api/v1/deployments/d/infer", json!({"id": "q", "inputs": [&input]})).await;
    infer_in_binary(&mut checked, input).await;
    let all = checked.succeed("GET", "/api/v1/deployments", Value::Null).await;
    assert!(all[0]["variants"][0]["model"]["run_id"] == RUN_ID, "{all}");

    let requests = checked.succeed("GET", "/api/v1/requests?limit=5", Value::Null).await;
    assert_eq!(requests[0]["id"], "q");
    let lineage = checked.succeed("GET", "/api/v1/requests/q/lineage", Value::Null).await;
    assert_eq!(lineage["lineage"]["datasets"][0]["dataset"]["digest"], "d1");
    checked.succeed("GET", "/api/v1/models/m/versions/1/lineage", Value::Null).await;
    let versions = checked.succeed("POST", "/api/v1/run-versions", json!({"run_ids": [RUN_ID]})).await;
    assert_eq!(versions[RUN_ID], json!([["m", 1]]));

    checked.succeed("DELETE", "/api/v1/deployments/d", Value::Null).await;
    let history = checked.succeed("GET", "/api/v1/deployments/d/history", Value::Null).await;
    assert!(history[0]["manifest"].is_null() && history[1]["manifest"].is_object(), "{history}");

    let figure = json!({
        "what": "gemm", "device": "gpu 0", "precision": "bf16", "size": 4096, "median": 700.0, "range": [690.0, 710.0],
        "unit": "TFLOP/s", "samples": 5, "peak": 989.0, "grade": "suspicious", "cause": "power limit",
        "conditions": {"clock_sm_mhz": 1500, "power_watts": 600.5, "temperature_celsius": 60, "throttle": ["power"]},
    });
    let report = json!({"time": 1, "host": "h", "devices": ["H100"], "driver": "580", "figures": [figure]});
    checked.succeed("POST", "/api/v1/gpu/benchmarks", report).await;
    let reports = checked.succeed("GET", "/api/v1/gpu/benchmarks?limit=1", Value::Null).await;
    assert_eq!(reports[0]["figures"][0]["grade"], "suspicious");
    checked.succeed("GET", "/api/v1/gpu/pictures/roofline.svg?card=H100%20PCIe", Value::Null).await;
    let question = json!({"model": "deepseek-v3", "dtype": "fp8", "card": "H200", "seq": 131_072});
    let estimate = checked.succeed("POST", "/api/v1/gpu/fit", question).await;
    assert_eq!(estimate["fits"][0]["layout_name"], "TP8", "{estimate}");
    let shape = json!({"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128_256});
    let question = json!({"config": shape, "train": {"method": "lora"}, "seq": 2048, "card": "Tesla T4", "gpus": 1});
    assert!(checked.succeed("POST", "/api/v1/gpu/fit", question).await["parts"].as_array().unwrap().len() > 5);
    // The test machine may or may not have a GPU; both responses are in the document.
    checked.send("owner", "GET", "/api/v1/gpu", Value::Null).await;

    checked.succeed("GET", "/api/v1/cluster", Value::Null).await;
    store_report(&checked.server);
    let reports = checked.succeed("GET", "/api/v1/clusters", Value::Null).await;
    assert_eq!(reports["clusters"][0]["steps"].as_array().unwrap().len(), 7);

    checked.server.platform.set_executor(Arc::new(FullExecutor));
    checked.succeed("POST", "/api/v1/runs?namespace=team-a", run_manifest()).await;
    checked.succeed("GET", "/api/v1/runs", Value::Null).await;
    checked.succeed("GET", "/api/v1/runs/team-a/train", Value::Null).await;
    checked.succeed("GET", "/api/v1/runs/team-a/train/log?attempt=1&follow=false&tail=5", Value::Null).await;
    checked.succeed("POST", "/api/v1/runs/team-a/train/cancel", Value::Null).await;
    checked.succeed("DELETE", "/api/v1/runs/team-a/train", Value::Null).await;

    let run = run_pipeline(&checked.server).await;
    let shown = checked.succeed("GET", &format!("/api/v1/pipelines/runs/{run}"), Value::Null).await;
    assert_eq!(
        (&shown["state"], &shown["tasks"][1]["outputs"]["parameters"]["Output"]),
        (&json!("SUCCEEDED"), &json!("said"))
    );
    let compiled = checked.succeed("GET", &format!("/api/v1/pipelines/runs/{run}/specification"), Value::Null).await;
    assert_eq!(compiled["specification"]["pipelineInfo"]["name"], "say");
    let tasks = format!("/api/v1/pipelines/runs/{run}/tasks");
    let listed = checked.succeed("GET", &tasks, Value::Null).await;
    assert_eq!(listed["tasks"].as_array().map(Vec::len), Some(2));
    let unchanged = checked.succeed("GET", &format!("{tasks}?after={}", listed["changes"]), Value::Null).await;
    assert_eq!(unchanged["tasks"], Value::Null);
    let task = checked.succeed("GET", &format!("/api/v1/pipelines/runs/{run}/task?task=say"), Value::Null).await;
    assert_eq!((&task["path"], &task["history"][0]["state"]), (&json!("say"), &json!("PENDING")));
    checked
        .succeed("GET", &format!("/api/v1/pipelines/runs/{run}/log?task=say&attempt=1&follow=false"), Value::Null)
        .await;

    show_pipeline(&mut checked, &run).await;

    for remote in ["remotes", "namespaces/team-a/remotes"] {
        share_data(&mut checked, &format!("/api/v1/data/{remote}")).await;
    }
    for repositories in ["repositories", "namespaces/team-a/repositories"] {
        show_data(&mut checked, &format!("/api/v1/data/{repositories}")).await;
    }

    checked.succeeded.insert("getGpuInventory".into());
    let ids = checked.document["paths"].as_object().unwrap().values().flat_map(|methods| object(methods).map(|m| m.1));
    let untested: Vec<_> =
        ids.map(|o| o["operationId"].as_str().unwrap()).filter(|id| !checked.succeeded.contains(*id)).collect();
    assert!(untested.is_empty(), "{untested:?} were not called");
}

/// The JSON part of a response with binary tensors has the same schema as a pure JSON response.
/// Registers a repository, reads all that is shown of it, and forgets it.
/// Shows what the pipeline of a run says, what the run used, and the content of its artifact.
async fn show_pipeline(checked: &mut CheckedServer, run: &str) {
    let filter = "%7B%22predicates%22:%5B%7B%22operation%22:%22EQUALS%22,%22key%22:%22pipeline_name%22,%22string_value%22:%22say%22%7D%5D%7D";
    let listed = checked.succeed("GET", &format!("/api/v1/pipelines/runs?filter={filter}"), Value::Null).await;
    assert_eq!((&listed["total"], &listed["runs"][0]["runId"]), (&json!(1), &json!(run)));
    let others = filter.replace("say", "other");
    let listed = checked.succeed("GET", &format!("/api/v1/pipelines/runs?filter={others}"), Value::Null).await;
    assert_eq!(listed["runs"], json!([]));
    let run = format!("/api/v1/pipelines/runs/{run}");
    let outline = checked.succeed("GET", &format!("{run}/outline"), Value::Null).await;
    assert_eq!((&outline["inputs"][0]["name"], &outline["root"]["nodes"][0]["name"]), (&json!("text"), &json!("say")));
    let usage = checked.succeed("GET", &format!("{run}/usage"), Value::Null).await;
    assert_eq!(usage["measured"], Value::Null);
    let environment = checked.succeed("GET", &format!("{run}/environment?task=say"), Value::Null).await;
    assert_eq!((&environment["image"], &environment["program"]), (&json!("python:3.11"), &json!("true")));
    let artifact = format!("{run}/artifact?task=say&of=outputs&name=model");
    checked.succeed("GET", &artifact, Value::Null).await;
    assert_eq!(checked.server.send_as("owner", "GET", &artifact, "").await.body, b"weights"[..]);
    let missing = checked.server.send_as("owner", "GET", &format!("{artifact}&index=1"), "").await;
    assert_eq!(missing.status, 404);

    let service = &checked.server.platform.pipelines;
    let (name, namespace) = ("say".to_owned(), service.namespace(""));
    let first = NewVersion { name: name.clone(), ..NewVersion::default() };
    let new = NewPipeline { name, namespace, ..NewPipeline::default() };
    let made = service.create_pipeline_and_version(new, first, pipeline_of_one_step().to_string()).await.unwrap();
    let versions = service.versions(made.pipeline_id.clone(), &ListRequest::default()).await.unwrap();
    let version = &versions.items[0].0.version_id;
    let path = format!("/api/v1/pipelines/definitions/{}/versions/{version}/outline", made.pipeline_id);
    let of_version = checked.succeed("GET", &path, Value::Null).await;
    assert_eq!(of_version, outline);
}

async fn show_data(checked: &mut CheckedServer, repositories: &str) {
    let repository = Repository::new();
    repository.track(&[("a.csv", b"x,y\n1,2\n"), ("b.gif", GIF)]);
    repository.write("metrics.json", r#"{"accuracy": 0.5}"#);
    repository.write("dvc.yaml", "stages:\n  train:\n    cmd: train\n    deps: [images]\nmetrics:\n- metrics.json\n");
    repository.commit("Images");
    let new = json!({"name": "digits", "location": repository.path()});
    checked.succeed("POST", repositories, new).await;
    assert_eq!(checked.succeed("GET", repositories, Value::Null).await["repositories"][0]["name"], "digits");
    let digits = format!("{repositories}/digits");
    for path in [
        "",
        "/datasets",
        "/versions?path=images",
        "/files?path=images",
        "/places?path=images",
        "/differences?path=images&from=HEAD",
        "/preview?path=images/a.csv",
        "/picture?path=images/b.gif",
        "/stages",
        "/values?revs=HEAD",
        "/plots?revs=HEAD",
        "/experiments",
    ] {
        checked.succeed("GET", &format!("{digits}{path}"), Value::Null).await;
    }
    checked.succeed("DELETE", &digits, Value::Null).await;
}

/// Sends objects to a remote, whose contents are the texts of two numbers, and receives and removes them.
async fn share_data(checked: &mut CheckedServer, remotes: &str) {
    let (one, two) = ("files/md5/c4/ca4238a0b923820dcc509a6f75849b", "files/md5/c8/1e728d9d4c2f636f067f89cc14862c");
    let remote = format!("{remotes}/data");
    checked.succeed("PUT", &format!("{remote}/{one}"), json!(1)).await;
    checked.succeed("POST", &format!("{remote}/{one}"), json!(1)).await;
    checked.succeed("PUT", &format!("{remote}/parts/1/{two}"), json!(2)).await;
    let parts = checked.succeed("GET", &format!("{remote}/uploads/{two}"), Value::Null).await;
    assert_eq!(parts["parts"].as_array().map(Vec::len), Some(1), "{parts}");
    checked.succeed("POST", &format!("{remote}/uploads/{two}"), json!({"parts": 1})).await;
    let missing = checked.succeed("POST", &format!("{remote}/missing"), json!({"items": [one, two]})).await;
    assert_eq!(missing, json!({"items": []}));
    assert_eq!(checked.succeed("GET", remotes, Value::Null).await, json!({"remotes": ["data"]}));
    checked.succeed("GET", &format!("{remote}/{one}"), Value::Null).await;
    checked.succeed("POST", &format!("{remote}/upload"), Value::String(format!("{one} 1\n1"))).await;
    checked.succeed("POST", &format!("{remote}/download"), json!({"items": [one]})).await;
    checked.succeed("DELETE", &format!("{remote}/{one}"), Value::Null).await;
    checked.succeed("POST", &format!("{remote}/remove"), json!({"items": [two]})).await;
    assert_eq!(checked.succeed("GET", &format!("{remote}/items"), Value::Null).await, json!({"items": []}));
}

async fn infer_in_binary(checked: &mut CheckedServer, input: Value) {
    let path = "/api/v1/deployments/d/infer";
    let request =
        json!({"id": "q", "inputs": [input], "outputs": [{"name": "y", "parameters": {"binary_data": true}}]});
    checked.succeed("POST", path, request.clone()).await;
    let reply = checked.server.send_as("owner", "POST", path, &request.to_string()).await;
    let length: usize = reply.headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    let json: Value = serde_json::from_slice(&reply.body[..length]).unwrap();
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
    let schema = &checked.operation("POST", path)["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(json_schema::check(&checked.document, schema, &json), Ok(()));
}

/// Stores a cluster report whose steps have every outcome.
fn store_report(server: &TestServer) {
    let outcomes = [
        Outcome::Waiting,
        Outcome::Running,
        Outcome::Unchanged,
        Outcome::Changed { changes: 2 },
        Outcome::Passed { saw: "pods".into() },
        Outcome::Failed { reason: "no room".into() },
        Outcome::Skipped { because: "join".into() },
    ];
    let step = |outcome: Outcome| StepReport {
        step: "join".into(),
        host: "n1".into(),
        needs: vec!["install".into()],
        outcome,
        began: 0.5,
        seconds: 1.5,
    };
    let steps = outcomes.into_iter().map(step).collect();
    let report = Report { cluster: "c".into(), verb: "apply".into(), change: "1".into(), steps, seconds: 2.0 };
    slipway_cluster::state::State::open(server.home.root(), "c").unwrap().save("report", &report).unwrap();
}

fn run_manifest() -> Value {
    json!({
        "apiVersion": "slipway.dev/v1",
        "kind": "Run",
        "metadata": {"name": "train", "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {
            "experiment": "e",
            "image": "python",
            "command": ["python", "train.py"],
            "args": ["--fast"],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            "resources": {"requests": {"cpu": 1, "memory": "4Gi"}, "limits": {"nvidia.com/gpu": 1, "cpu": 1.5}},
            "volumes": [{"name": "v", "emptyDir": {}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}],
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "backoffLimit": 2,
            "activeDeadlineSeconds": 60,
        },
    })
}

/// A deployment of one model.
fn deployment_of(uri: &str) -> Value {
    let mut manifest = deployment_manifest();
    manifest["spec"]["models"] = json!([{"name": "a", "uri": uri, "weight": 100}]);
    manifest
}

/// Validates errors of the guard, of tracking, of slipway's own API, and in plain text.
#[tokio::test]
async fn errors_match_the_document() {
    let mut checked = CheckedServer::open().await;
    checked.server.platform.set_executor(Arc::new(FullExecutor));
    checked.server.platform.tracking.create_model("known".into(), Vec::new(), String::new()).await.unwrap();
    for (role, method, path, body, expected) in [
        ("no-token", "GET", "/api/v1/status", Value::Null, "UNAUTHENTICATED"),
        ("runner", "GET", "/api/v1/status", Value::Null, "PERMISSION_DENIED"),
        ("inferrer", "GET", "/api/v1/deployments", Value::Null, "PERMISSION_DENIED"),
        ("inferrer", "GET", "/api/v1/runs", Value::Null, "exec.forbidden"),
        ("owner", "GET", "/api/v1/runs/team-a/missing", Value::Null, "exec.not_found"),
        ("owner", "POST", "/api/v1/runs", json!({"kind": "Pod"}), "exec.manifest"),
        ("owner", "GET", "/api/v1/pipelines/runs/missing", Value::Null, "pipeline.not_found"),
        ("owner", "GET", "/api/v1/pipelines/runs/missing/task?task=x", Value::Null, "pipeline.not_found"),
        ("inferrer", "GET", "/api/v1/pipelines/runs/missing", Value::Null, "pipeline.forbidden"),
        ("owner", "GET", "/api/v1/deployments/missing", Value::Null, "serve.not_found"),
        ("owner", "POST", "/api/v1/deployments", json!({"kind": "Pod"}), "serve.manifest"),
        ("owner", "POST", "/api/v1/deployments", deployment_of("models:/missing@champion"), "serve.model_not_found"),
        ("owner", "POST", "/api/v1/deployments", deployment_of("models:/known@champion"), "serve.model_not_found"),
        ("owner", "POST", "/api/v1/deployments", deployment_of("models:/known/7"), "serve.model_not_found"),
        ("owner", "POST", "/api/v1/deployments", deployment_of("runs:/missing/model"), "serve.model_not_found"),
        ("owner", "POST", "/api/v1/deployments", deployment_of("models:/known"), "serve.manifest"),
        ("owner", "POST", "/api/v1/deployments", deployment_of("/nowhere/m.onnx"), "serve.model_not_found"),
        ("owner", "POST", "/api/v1/deployments", deployment_of("/dev/null"), "serve.model_unusable"),
        ("owner", "GET", "/api/v1/models/missing/versions/1/lineage", Value::Null, "RESOURCE_DOES_NOT_EXIST"),
        ("owner", "POST", "/api/v1/gpu/benchmarks", json!({}), "gpu.invalid"),
        ("owner", "POST", "/api/v1/gpu/fit", json!({"model": "no-such-model"}), "gpu.invalid"),
        ("owner", "GET", "/api/v1/requests?limit=many", Value::Null, ""),
    ] {
        let response = checked.send(role, method, path, body).await;
        let code =
            response.get("error_code").or_else(|| response.get("code")).and_then(Value::as_str).unwrap_or_default();
        assert_eq!(code, expected, "{method} {path} as {role}: {response}");
    }
    assert!(checked.succeeded.is_empty(), "{:?}", checked.succeeded);
    let elsewhere = Request::get("/api/v1/status").header("host", "elsewhere.example").body(Body::empty()).unwrap();
    let reply = checked.server.send(0, elsewhere).await;
    assert_eq!(reply.status, StatusCode::MISDIRECTED_REQUEST);
    checked.check(checked.operation(Method::GET.as_str(), "/api/v1/status"), &reply).unwrap();
}

/// Validates an inventory whose GPU has a value in every field, because the test machine may have no GPU.
#[tokio::test]
async fn gpu_inventory_matches_the_document() {
    let checked = CheckedServer::open().await;
    let operation = checked.operation("GET", "/api/v1/gpu");
    let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
    let full = Gpu {
        name: "H100".into(),
        power_range_watts: Some((200.0, 700.0)),
        throttle: vec!["power cap"],
        ecc: Some(Ecc {
            enabled: true,
            corrected: 1,
            uncorrected: 0,
            rows_remapped: 1,
            rows_remapped_uncorrected: 0,
            remapping_pending: false,
            remapping_failed: false,
        }),
        pcie: Some(Pcie { generation: 5, generation_max: 5, width: 16, width_max: 16, replays: None }),
        nvlinks: vec![NvLink { link: 0, active: true, version: Some(4), remote: None }],
        fabric: Some(slipway_gpu::nvml::Fabric {
            state: slipway_gpu::nvml::FabricState::Completed,
            error: Some("x".into()),
            cluster_uuid: Some("x".into()),
            clique: 1,
            problems: vec!["degraded bandwidth"],
        }),
        compute_mode: Some("default"),
        mig: Some(Mig {
            enabled: true,
            pending: false,
            devices: vec![MigDevice {
                uuid: "MIG-1".into(),
                profile: "1g.10gb".into(),
                gpu_instance: 1,
                compute_instance: 0,
                start: 0,
                size: 1,
                attributes: Default::default(),
            }],
        }),
        processes: vec![Process {
            pid: 1,
            memory_bytes: Some(1),
            gpu_instance: None,
            sm_percent: Some(3),
            owner: Default::default(),
        }],
        findings: vec![Finding {
            code: FindingCode::Hot,
            severity: Severity::Warning,
            what: "hot".into(),
            remedy: "cool it".into(),
        }],
        ..Gpu::default()
    };
    let inventory = Inventory {
        simulated: false,
        driver: "580".into(),
        nvml: "13".into(),
        cuda: "13.0".into(),
        gpus: vec![full, Gpu::default()],
    };
    let value = serde_json::to_value(inventory).unwrap();
    assert_eq!(json_schema::check(&checked.document, schema, &value), Ok(()));
    let mut invalid = value;
    invalid["gpus"][0]["index"] = json!("first");
    assert!(json_schema::check(&checked.document, schema, &invalid).is_err());
}
