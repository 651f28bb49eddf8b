//! No way leads from a registered model to a file of the server outside its object store.

use axum::http::StatusCode;
use serde_json::json;
use slipway_core::clock::now_ms;

use super::{Server, assert_invalid};
use crate::ErrorCode;
use crate::repo::registry::{NewVersion, insert_version};

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_are_paths_or_unknown_places_are_refused() {
    let server = Server::start().await;
    let run = server.run().await;
    server.done("mlflow/registered-models/create", json!({ "name": "m" })).await;
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
        let answer = server.post("mlflow/model-versions/create", version).await;
        assert_eq!(answer.status, StatusCode::OK, "{source}: {}", answer.text());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_resolved_is_in_the_object_store() {
    let server = Server::start().await;
    let tracking = &server.tracking;
    server.done("mlflow/registered-models/create", json!({ "name": "m" })).await;
    for source in ["/etc/passwd", "/tmp/a:b/model.onnx", "file:///etc/passwd", "s3://bucket/model"] {
        // As an earlier version may have registered it.
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
    // A run whose client keeps artifacts in a folder of its own machine.
    let experiment = json!({ "name": "e", "artifact_location": "/etc" });
    let id = server.done("mlflow/experiments/create", experiment).await["experiment_id"].clone();
    let run = server.done("mlflow/runs/create", json!({ "experiment_id": id })).await;
    let run = run["run"]["info"]["run_id"].as_str().unwrap();
    assert_eq!(tracking.resolve(&format!("runs:/{run}/hosts")).unwrap_err().code, ErrorCode::NotImplemented);
    for uri in ["mlflow-artifacts:/../x", "mlflow-artifacts:/%2e%2e/x", "mlflow-artifacts://h/../../x"] {
        assert_eq!(tracking.resolve(uri).unwrap_err().code, ErrorCode::InvalidParameterValue, "{uri}");
    }
    let run = server.run().await;
    let found = tracking.resolve(&format!("runs:/{run}/model")).unwrap();
    assert_eq!(found.location.path(), format!("0/{run}/artifacts/model"));
    server.stop().await;
}
