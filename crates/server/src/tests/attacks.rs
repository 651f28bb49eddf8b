//! Regression tests for attacks that once worked, and for obvious ones.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use slipway_core::ids::RUN_TAG;

use super::{RUN_ID, TestServer};

fn run_manifest(namespace: &str) -> String {
    json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": "x", "namespace": namespace},
        "spec": {"command": ["id"]}})
    .to_string()
}

/// In DNS rebinding, a web page resolves its own host name to this machine. `Host` and `Origin` then both have that name and agree.
#[tokio::test]
async fn dns_rebinding_is_rejected() {
    let server = TestServer::open().await;
    for (token, path) in [(None, "/api/v1/runs"), (Some(super::OWNER), "/api/v1/runs"), (None, "/healthz"), (None, "/")]
    {
        for method in [Method::POST, Method::GET] {
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "evil.example:7070")
                .header("origin", "http://evil.example:7070");
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let reply = server.send(0, request.body(Body::from(run_manifest("default"))).unwrap()).await;
            assert_eq!(reply.status, StatusCode::MISDIRECTED_REQUEST, "{path}");
        }
    }
}

/// Another user of the machine has no token, or guesses one.
#[tokio::test]
async fn other_users_of_the_machine_cannot_submit_runs() {
    let server = TestServer::open().await;
    assert_eq!(server.send_as("no-token", "POST", "/api/v1/runs", &run_manifest("default")).await.status, 401);
    assert_eq!(server.send_as("bad-token", "POST", "/api/v1/runs", &run_manifest("default")).await.status, 401);
}

/// A page on another port of this machine is a different origin. It is rejected for reads too, and also when only `Sec-Fetch-Site` says so.
#[tokio::test]
async fn cross_origin_requests_are_rejected() {
    let server = TestServer::open().await;
    for (name, value) in [("origin", "http://localhost:9999"), ("origin", "null"), ("sec-fetch-site", "same-site")] {
        for method in ["GET", "POST"] {
            let request = Request::builder()
                .method(method)
                .uri("/api/2.0/mlflow/experiments/search?max_results=1")
                .header("host", "localhost:7070")
                .header("authorization", format!("Bearer {}", super::OWNER))
                .header(name, value);
            let reply = server.send(0, request.body(Body::from("{}")).unwrap()).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{method} {name}: {value}");
        }
    }
}

/// The permission to run inference does not include loading and unloading models.
#[tokio::test]
async fn inference_permission_does_not_allow_changing_deployments() {
    let server = TestServer::open().await;
    for action in ["load", "unload"] {
        let path = format!("/v2/repository/models/prod/{action}");
        let request = |role| server.request(1, role, &Method::POST, &path, "").unwrap();
        assert_eq!(server.send(1, request("inferrer")).await.status, StatusCode::FORBIDDEN, "{action}");
        let allowed = server.send(1, request("writer")).await.status;
        assert!(
            ![StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED].contains(&allowed),
            "{action}: the writer is authorized, although the model does not exist"
        );
    }
    for method in ["RepositoryModelLoad", "RepositoryModelUnload"] {
        let path = format!("/inference.GRPCInferenceService/{method}");
        let reply = server.send(2, server.request(2, "inferrer", &Method::POST, &path, "\0\0\0\0\0").unwrap()).await;
        assert_eq!(reply.headers["grpc-status"], "7", "{method}");
    }
}

/// Clients choose the segments of an artifact path, so words such as `get` or `list` in it must not make a request count as a read.
#[tokio::test]
async fn words_in_a_path_do_not_make_a_write_a_read() {
    let server = TestServer::open().await;
    let folder = format!("/api/2.0/mlflow-artifacts/artifacts/0/{RUN_ID}/artifacts");
    assert_eq!(server.send_as("owner", "PUT", &format!("{folder}/list"), "kept").await.status, 200);
    for (method, path) in [
        ("PUT", format!("{folder}/get.onnx")),
        ("PUT", format!("{folder}/listing%2Fmodel.onnx")),
        ("PUT", format!("{folder}/registered-models/search")),
        ("DELETE", format!("{folder}/list")),
        ("DELETE", "/api/2.0/mlflow/logged-models/m-1/tags/getX".to_owned()),
    ] {
        for role in ["reader", "inferrer"] {
            assert_eq!(server.send_as(role, method, &path, "overwritten").await.status, 403, "{role} {method} {path}");
        }
    }
    let kept = server.send_as("reader", "GET", &format!("{folder}/list"), "").await;
    assert_eq!(kept.body, "kept");
}

/// The token of a run cannot change another tenant's experiments, runs, artifacts, models, aliases, stages or tags.
#[tokio::test]
async fn run_token_cannot_change_another_tenant() {
    let server = TestServer::open().await;
    let json_of = |reply: super::Reply| -> Value { serde_json::from_slice(&reply.body).unwrap() };
    let mlflow = "/api/2.0/mlflow";
    let body = json!({"name": "b", "tags": [{"key": "slipway.namespace", "value": "team-b"}]}).to_string();
    let experiment = json_of(server.send_as("owner", "POST", &format!("{mlflow}/experiments/create"), &body).await);
    let experiment = experiment["experiment_id"].as_str().unwrap().to_owned();
    let body = json!({"experiment_id": experiment}).to_string();
    let run = json_of(server.send_as("owner", "POST", &format!("{mlflow}/runs/create"), &body).await);
    let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let body = json!({"name": "fraud", "tags": [{"key": "slipway.namespace", "value": "team-b"}]}).to_string();
    server.send_as("owner", "POST", &format!("{mlflow}/registered-models/create"), &body).await;
    let body =
        json!({"name": "fraud", "source": format!("mlflow-artifacts:/{experiment}/{run}/artifacts/m"), "run_id": run})
            .to_string();
    assert_eq!(server.send_as("owner", "POST", &format!("{mlflow}/model-versions/create"), &body).await.status, 200);
    let body = json!({"experiment_id": experiment, "name": "m"}).to_string();
    let logged = json_of(server.send_as("owner", "POST", &format!("{mlflow}/logged-models"), &body).await);
    let logged = logged["model"]["info"]["model_id"].as_str().unwrap().to_owned();

    let before = super::fuzz::state(&server);
    let version = json!({"name": "fraud", "version": "1"});
    let with = |base: &Value, more: Value| {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all.to_string()
    };
    let of_run = json!({"run_id": run});
    let own_source = format!("mlflow-artifacts:/0/{RUN_ID}/artifacts/m");
    for (method, path, body) in [
        ("POST", "/2.0/mlflow/registered-models/alias", with(&version, json!({"alias": "production"}))),
        ("DELETE", "/2.0/mlflow/registered-models/alias?name=fraud&alias=production", String::new()),
        ("POST", "/2.0/mlflow/model-versions/transition-stage", with(&version, json!({"stage": "Production"}))),
        ("PATCH", "/2.0/mlflow/model-versions/update", with(&version, json!({"description": "x"}))),
        ("POST", "/2.0/mlflow/model-versions/set-tag", with(&version, json!({"key": "k", "value": "v"}))),
        (
            "POST",
            "/2.0/mlflow/model-versions/create",
            json!({"name": "fraud", "source": own_source, "run_id": RUN_ID}).to_string(),
        ),
        (
            "POST",
            "/2.0/mlflow/registered-models/set-tag",
            json!({"name": "fraud", "key": "slipway.namespace", "value": "team-a"}).to_string(),
        ),
        ("DELETE", "/2.0/mlflow/registered-models/delete-tag?name=fraud&key=slipway.namespace", String::new()),
        ("PATCH", "/2.0/mlflow/registered-models/update", json!({"name": "fraud", "description": "x"}).to_string()),
        ("POST", "/2.0/mlflow/registered-models/rename", json!({"name": "fraud", "new_name": "mine"}).to_string()),
        ("DELETE", "/2.0/mlflow/registered-models/delete?name=fraud", String::new()),
        ("POST", "/2.0/mlflow/runs/create", json!({"experiment_id": experiment}).to_string()),
        ("POST", "/2.0/mlflow/runs/update", with(&of_run, json!({"status": "FAILED"}))),
        ("POST", "/2.0/mlflow/runs/delete", of_run.to_string()),
        ("POST", "/2.0/mlflow/runs/log-metric", with(&of_run, json!({"key": "m", "value": 1.0, "timestamp": 1}))),
        ("POST", "/2.0/mlflow/runs/log-parameter", with(&of_run, json!({"key": "p", "value": "1"}))),
        ("POST", "/2.0/mlflow/runs/log-batch", with(&of_run, json!({"tags": [{"key": "t", "value": "1"}]}))),
        ("POST", "/2.0/mlflow/runs/set-tag", with(&of_run, json!({"key": "t", "value": "1"}))),
        // A run cannot assign itself to another tenant either.
        (
            "POST",
            "/2.0/mlflow/runs/set-tag",
            json!({"run_id": RUN_ID, "key": RUN_TAG, "value": "team-b/x"}).to_string(),
        ),
        ("POST", "/2.0/mlflow/runs/delete-tag", json!({"run_id": RUN_ID, "key": RUN_TAG}).to_string()),
        (
            "POST",
            "/2.0/mlflow/runs/log-batch",
            json!({"run_id": RUN_ID, "tags": [{"key": RUN_TAG, "value": "team-b/x"}]}).to_string(),
        ),
        ("POST", "/2.0/mlflow/runs/log-inputs", with(&of_run, json!({"models": [{"model_id": logged}]}))),
        ("POST", "/2.0/mlflow/runs/outputs", with(&of_run, json!({"models": [{"model_id": logged, "step": 1}]}))),
        (
            "POST",
            "/2.0/mlflow/experiments/create",
            json!({"name": "thief", "artifact_location": format!("mlflow-artifacts:/{experiment}")}).to_string(),
        ),
        (
            "POST",
            "/2.0/mlflow/experiments/set-experiment-tag",
            json!({"experiment_id": experiment, "key": "k", "value": "v"}).to_string(),
        ),
        ("POST", "/2.0/mlflow/experiments/update", json!({"experiment_id": experiment, "new_name": "c"}).to_string()),
        ("POST", "/2.0/mlflow/experiments/delete", json!({"experiment_id": experiment}).to_string()),
        ("POST", "/2.0/mlflow/logged-models", json!({"experiment_id": experiment, "name": "n"}).to_string()),
        (
            "PATCH",
            &format!("/2.0/mlflow/logged-models/{logged}"),
            json!({"model_id": logged, "status": "2"}).to_string(),
        ),
        (
            "PATCH",
            &format!("/2.0/mlflow/logged-models/{logged}/tags"),
            json!({"model_id": logged, "tags": [{"key": "k", "value": "v"}]}).to_string(),
        ),
        (
            "PUT",
            &format!("/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/m/model.onnx"),
            "evil".to_owned(),
        ),
        ("PUT", &format!("/2.0/mlflow-artifacts/artifacts/%2e/{experiment}/x"), "evil".to_owned()),
        (
            "POST",
            &format!("/2.0/mlflow-artifacts/mpu/create/{experiment}/{run}/artifacts"),
            json!({"path": "a", "num_parts": 1}).to_string(),
        ),
    ] {
        for prefix in ["/api", "/ajax-api"] {
            let reply = server.send_as("runner", method, &format!("{prefix}{path}"), &body).await;
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(matches!(reply.status.as_u16(), 400 | 403), "{method} {path}: {} {text}", reply.status);
        }
    }
    assert_eq!(super::fuzz::state(&server), before);
}

/// Submitters choose the experiment of a run, and runs without one share the default experiment. So being in an experiment must not give
/// access to what others have in it.
#[tokio::test]
async fn run_token_cannot_change_others_in_a_shared_experiment() {
    let server = TestServer::open().await;
    let json_of = |reply: super::Reply| -> Value { serde_json::from_slice(&reply.body).unwrap() };
    let mlflow = "/api/2.0/mlflow";
    let body = json!({"experiment_id": "0"}).to_string();
    let other = json_of(server.send_as("owner", "POST", &format!("{mlflow}/runs/create"), &body).await);
    let other = other["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let body = json!({"experiment_id": "0", "name": "theirs"}).to_string();
    let model = json_of(server.send_as("owner", "POST", &format!("{mlflow}/logged-models"), &body).await);
    let model = model["model"]["info"]["model_id"].as_str().unwrap().to_owned();
    let artifacts = "/api/2.0/mlflow-artifacts";
    let metric = |run: &str| json!({"run_id": run, "key": "m", "value": 1.0, "timestamp": 1, "model_id": model});
    let of_batch = json!({"run_id": RUN_ID, "metrics": [metric(RUN_ID)]});
    let owner_tag = json!({"key": "slipway.namespace", "value": "team-a"});
    let before = super::fuzz::state(&server);
    for (method, path, body) in [
        ("PUT", format!("{artifacts}/artifacts/0/{other}/artifacts/m/model.onnx"), json!({})),
        ("PUT", format!("{artifacts}/artifacts/0/models/{model}/artifacts/model.onnx"), json!({})),
        ("PUT", format!("{artifacts}/artifacts/0/models/{model}"), json!({})),
        ("PUT", format!("{artifacts}/artifacts/0/{RUN_ID}%2f..%2f{other}/x"), json!({})),
        ("PUT", format!("{artifacts}/artifacts/0/.%2f{other}/x"), json!({})),
        ("PUT", format!("{artifacts}/artifacts/0//{other}/x"), json!({})),
        ("PUT", format!("{artifacts}/artifacts/0/x"), json!({})),
        ("PUT", format!("{artifacts}/artifacts/00/{RUN_ID}/x"), json!({})),
        ("POST", format!("{artifacts}/mpu/create/0/{other}/artifacts"), json!({"path": "a", "num_parts": 1})),
        ("POST", format!("{mlflow}/runs/log-metric"), metric(&other)),
        ("POST", format!("{mlflow}/runs/log-metric"), metric(RUN_ID)),
        ("POST", format!("{mlflow}/runs/log-batch"), of_batch),
        ("POST", format!("{mlflow}/runs/set-tag"), json!({"run_id": other, "key": "k", "value": "v"})),
        ("POST", format!("{mlflow}/runs/set-tag"), json!({"run_id": RUN_ID, "key": "slipway.namespace", "value": "b"})),
        ("POST", format!("{mlflow}/runs/log-batch"), json!({"run_id": RUN_ID, "tags": [owner_tag]})),
        ("POST", format!("{mlflow}/runs/update"), json!({"run_id": other, "status": "FAILED"})),
        ("PATCH", format!("{mlflow}/logged-models/{model}"), json!({"model_id": model, "status": "2"})),
        ("PATCH", format!("{mlflow}/logged-models/{model}/tags"), json!({"model_id": model, "tags": [owner_tag]})),
        (
            "POST",
            format!("{mlflow}/logged-models/{model}/params"),
            json!({"model_id": model, "params": [{"key": "k", "value": "v"}]}),
        ),
        ("POST", format!("{mlflow}/runs/create"), json!({"experiment_id": "0", "tags": [owner_tag]})),
        (
            "POST",
            format!("{mlflow}/experiments/set-experiment-tag"),
            json!({"experiment_id": "0", "key": "k", "value": "v"}),
        ),
    ] {
        let reply = server.send_as("runner", method, &path, &body.to_string()).await;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(matches!(reply.status.as_u16(), 400 | 403), "{method} {path} {body}: {} {text}", reply.status);
    }
    assert_eq!(super::fuzz::state(&server), before);

    // The run may register a model that others logged. This only reads the logged model, which must not change.
    server
        .send_as("runner", "POST", &format!("{mlflow}/registered-models/create"), &json!({"name": "mine"}).to_string())
        .await;
    let body = json!({"name": "mine", "source": format!("models:/{model}"), "model_id": model}).to_string();
    let reply = server.send_as("runner", "POST", &format!("{mlflow}/model-versions/create"), &body).await;
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let kept = json_of(server.send_as("owner", "GET", &format!("{mlflow}/logged-models/{model}"), "").await);
    assert!(!kept.to_string().contains("modelVersions"), "{kept}");
}

/// Child runs and logged models that a run creates in a shared experiment are its own.
#[tokio::test]
async fn run_token_can_change_what_the_run_created_in_a_shared_experiment() {
    let server = TestServer::open().await;
    let mlflow = "/api/2.0/mlflow";
    let send = async |method: &str, path: &str, body: Value| -> Value {
        let reply = server.send_as("runner", method, path, &body.to_string()).await;
        assert_eq!(reply.status, 200, "{method} {path}: {}", String::from_utf8_lossy(&reply.body));
        serde_json::from_slice(&reply.body).unwrap_or_default()
    };
    let child = send("POST", &format!("{mlflow}/runs/create"), json!({"experiment_id": "0"})).await;
    let child = child["run"]["info"]["run_id"].as_str().unwrap();
    let new = json!({"experiment_id": "0", "name": "own", "source_run_id": child});
    let model = send("POST", &format!("{mlflow}/logged-models"), new).await;
    let model = model["model"]["info"]["model_id"].as_str().unwrap();
    let artifacts = "/api/2.0/mlflow-artifacts/artifacts";
    send("PUT", &format!("{artifacts}/0/models/{model}/artifacts/model.onnx"), json!({})).await;
    send("PUT", &format!("{artifacts}/0/{child}/artifacts/x.txt"), json!({})).await;
    send("PATCH", &format!("{mlflow}/logged-models/{model}"), json!({"model_id": model, "status": "2"})).await;
    let metric = json!({"run_id": child, "key": "m", "value": 1.0, "timestamp": 1, "model_id": model});
    send("POST", &format!("{mlflow}/runs/log-metric"), metric).await;
    send("POST", &format!("{mlflow}/runs/update"), json!({"run_id": child, "status": "FINISHED"})).await;
}

/// A run can track, register and promote with its own token, and what it creates belongs to its namespace.
#[tokio::test]
async fn run_token_can_track_register_and_promote_its_own_models() {
    let server = TestServer::open().await;
    for (method, path, body) in [
        ("POST", "/2.0/mlflow/runs/log-metric", json!({"run_id": RUN_ID, "key": "m", "value": 1.0, "timestamp": 1})),
        ("PUT", &format!("/2.0/mlflow-artifacts/artifacts/0/{RUN_ID}/artifacts/m/model.onnx"), json!({})),
        ("POST", "/2.0/mlflow/registered-models/create", json!({"name": "mine"})),
        (
            "POST",
            "/2.0/mlflow/model-versions/create",
            json!({"name": "mine", "source": format!("mlflow-artifacts:/0/{RUN_ID}/artifacts/m"), "run_id": RUN_ID}),
        ),
        ("POST", "/2.0/mlflow/registered-models/alias", json!({"name": "mine", "alias": "champion", "version": "1"})),
        ("POST", "/2.0/mlflow/experiments/create", json!({"name": "own"})),
        ("POST", "/2.0/mlflow/runs/create", json!({"experiment_id": "1"})),
    ] {
        let reply = server.send_as("runner", method, &format!("/api{path}"), &body.to_string()).await;
        assert_eq!(reply.status, 200, "{method} {path}: {}", String::from_utf8_lossy(&reply.body));
    }
    let model = server.send_as("reader", "GET", "/api/2.0/mlflow/registered-models/get?name=mine", "").await;
    assert!(String::from_utf8_lossy(&model.body).contains("\"team-a\""));
}

/// A filter that is too large for the database is a client error.
#[tokio::test]
async fn too_large_filters_are_rejected() {
    let server = TestServer::open().await;
    for (count, expected) in [(60, 200), (61, 400), (20_000, 400)] {
        for term in ["params.a = 'b'", "metrics.a > 1", "tags.a LIKE '%b%'"] {
            let filter = vec![term; count].join(" AND ");
            let body = json!({"experiment_ids": ["0"], "filter": filter}).to_string();
            let reply = server.send_as("owner", "POST", "/api/2.0/mlflow/runs/search", &body).await;
            assert_eq!(reply.status, expected, "{count} {term}: {}", String::from_utf8_lossy(&reply.body));
        }
    }
}
