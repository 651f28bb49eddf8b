//! Tests of details in which responses must match MLflow's.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::json;

use super::{Server, assert_invalid};

#[tokio::test(flavor = "multi_thread")]
async fn unquoted_nan_and_infinity_are_stored() {
    let server = Server::start().await;
    let run = server.create_run().await;
    let log = async |value: &str| {
        let body = format!(r#"{{"run_id":"{run}","metrics":[{{"key":"loss","value":{value},"timestamp":1}}]}}"#);
        let request = Request::post("/api/2.0/mlflow/runs/log-batch").header("content-type", "application/json");
        server.request(request.body(Body::from(body)).unwrap()).await
    };
    for (value, stored) in [("NaN", json!("NaN")), ("Infinity", json!(f64::MAX)), ("-Infinity", json!(f64::MIN))] {
        let response = log(value).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text());
        let history = server.get(&format!("/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=loss")).await;
        let metrics = history.json()["metrics"].as_array().cloned().unwrap_or_default();
        assert!(metrics.iter().any(|metric| metric["value"] == stored), "{value}: {}", history.text());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numeric_experiment_ids_are_accepted() {
    let server = Server::start().await;
    let run = server.create_run().await;
    let found = server.post_ok("mlflow/runs/search", json!({ "experiment_ids": [0] })).await;
    assert_eq!(found["runs"][0]["info"]["run_id"], run);
    assert_invalid(&server.post("mlflow/runs/search", json!({ "experiment_ids": 0 })).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn artifact_locations_are_made_absolute_and_http_is_rejected() {
    let server = Server::start().await;
    let created =
        server.post_ok("mlflow/experiments/create", json!({ "name": "r", "artifact_location": "some/place" })).await;
    let id = created["experiment_id"].as_str().unwrap();
    let experiment = server.get(&format!("/api/2.0/mlflow/experiments/get?experiment_id={id}")).await.json();
    let location = experiment["experiment"]["artifact_location"].as_str().unwrap().to_owned();
    assert!(location.starts_with('/') && location.ends_with("/some/place"), "{location}");
    for rejected in ["http://h/p?a=b", "https://h/p", "HTTP://h/p"] {
        let experiment = json!({ "name": "h", "artifact_location": rejected });
        assert_invalid(&server.post("mlflow/experiments/create", experiment).await);
    }
    for accepted in ["s3://bucket/place", "/absolute", "file:///absolute", "mlflow-artifacts:/x"] {
        server.post_ok("mlflow/experiments/create", json!({ "name": accepted, "artifact_location": accepted })).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_in_tags_is_formatted_like_python() {
    let server = Server::start().await;
    let run = server.create_run().await;
    let model = json!({ "artifact_path": "m", "flavors": {}, "run_id": run, "utc_time_created": "now" });
    server.post_ok("mlflow/runs/log-model", json!({ "run_id": run, "model_json": model.to_string() })).await;
    let run = server.get(&format!("/api/2.0/mlflow/runs/get?run_id={run}")).await.json();
    let tags = run["run"]["data"]["tags"].as_array().unwrap();
    let history = tags.iter().find(|tag| tag["key"] == "mlflow.log-model.history").unwrap();
    assert!(history["value"].as_str().unwrap().contains("\"artifact_path\": \"m\", \"flavors\": {}"), "{history}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_request_is_rejected_with_status_413() {
    let server = Server::start().await;
    let request = Request::post("/api/2.0/mlflow/runs/create").header("content-type", "application/json");
    let body = vec![b' '; (64 << 20) + 1];
    let response = server.request(request.body(Body::from(body)).unwrap()).await;
    assert_eq!(response.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", response.text());
    assert_eq!(response.json()["error_code"], "INVALID_PARAMETER_VALUE");
    server.stop().await;
}
