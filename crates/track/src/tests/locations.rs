//! Tests that a registered model can never refer to a file on the server outside of the object store.

use axum::http::StatusCode;
use serde_json::json;
use slipway_core::clock::now_ms;

use super::{Server, assert_invalid};
use crate::ErrorCode;
use crate::repo::registry::{NewVersion, insert_version};

#[tokio::test(flavor = "multi_thread")]
async fn local_paths_and_unknown_schemes_are_rejected_as_sources() {
    let server = Server::start().await;
    let run = server.create_run().await;
    server.post_ok("mlflow/registered-models/create", json!({ "name": "m" })).await;
    for source in [
        "/tmp/a:b/model.onnx",
        "model.onnx",
        "a/b:c",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "C:\\model.onnx",
        " /tmp/a:b",
        "fi\nle:///etc/passwd",
        "unix:/tmp/x",
        "javascript:alert(1)",
        "s3://bucket/%252e%252e/x",
        "runs:/another/model",
        "mlflow-artifacts:/0/another/artifacts",
        "http://here/api/2.0/mlflow-artifacts/artifacts/0/another/artifacts",
    ] {
        let version = json!({ "name": "m", "source": source, "run_id": run });
        assert_invalid(&server.post("mlflow/model-versions/create", version).await);
    }
    for source in ["s3://bucket/model", "https://example.org/model", "dbfs:/m", &format!("runs:/{run}/model")] {
        let version = json!({ "name": "m", "source": source, "run_id": run });
        let response = server.post("mlflow/model-versions/create", version).await;
        assert_eq!(response.status, StatusCode::OK, "{source}: {}", response.text());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_locations_in_the_object_store_are_resolved() {
    let server = Server::start().await;
    let tracking = &server.tracking;
    server.post_ok("mlflow/registered-models/create", json!({ "name": "m" })).await;
    for source in ["/etc/passwd", "/tmp/a:b/model.onnx", "file:///etc/passwd", "s3://bucket/model"] {
        // Insert the row directly, as an earlier version may have registered it.
        let row = move |c: &slipway_store::sql::Connection| {
            let new = NewVersion {
                name: "m",
                source,
                storage_location: source,
                run_id: "",
                run_link: "",
                description: "",
                model_id: "",
            };
            insert_version(c, &new, now_ms())
        };
        let number = tracking.db.write(row).await.unwrap();
        let error = tracking.resolve(&format!("models:/m/{number}")).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotImplemented, "{source}: {error}");
        assert!(tracking.fetch(source).await.is_err(), "{source}");
    }
    // A run whose artifacts are in a folder on the client's machine.
    let experiment = json!({ "name": "e", "artifact_location": "/etc" });
    let id = server.post_ok("mlflow/experiments/create", experiment).await["experiment_id"].clone();
    let run = server.post_ok("mlflow/runs/create", json!({ "experiment_id": id })).await;
    let run = run["run"]["info"]["run_id"].as_str().unwrap();
    assert_eq!(tracking.resolve(&format!("runs:/{run}/hosts")).unwrap_err().code, ErrorCode::NotImplemented);
    for uri in ["mlflow-artifacts:/../x", "mlflow-artifacts:/%2e%2e/x", "mlflow-artifacts://h/../../x"] {
        assert_eq!(tracking.resolve(uri).unwrap_err().code, ErrorCode::InvalidParameterValue, "{uri}");
    }
    let run = server.create_run().await;
    let found = tracking.resolve(&format!("runs:/{run}/model")).unwrap();
    assert_eq!(found.location.path(), format!("0/{run}/artifacts/model"));
    server.stop().await;
}
