//! Tests of artifact names and of the headers of downloads.

use axum::http::{Request, StatusCode};
use serde_json::json;

use super::{Server, TestResponse, assert_invalid};

const PROXY: &str = "/api/2.0/mlflow-artifacts/artifacts";

/// Asserts that a browser would not execute anything in the response with this server's origin.
#[track_caller]
fn assert_harmless(response: &TestResponse) {
    assert!(response.header("content-disposition").starts_with("attachment"), "{response:?}");
    assert_eq!(response.header("x-content-type-options"), "nosniff");
    assert!(response.header("content-security-policy").contains("sandbox"), "{response:?}");
    let kind = response.header("content-type");
    assert!(!kind.is_empty() && !["html", "svg", "xml", "script"].iter().any(|s| kind.contains(s)), "{kind}");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_characters_in_names_are_rejected_by_every_route() {
    let server = Server::start().await;
    let run = server.create_run().await;
    for name in ["a%0Ab.html", "a%250Ab.html", "x%7F", "x%C2%85", "x%E2%80%A8y", "%E2%80%AEgpj.exe", "d%0D/f.txt"] {
        assert_invalid(&server.put(&format!("{PROXY}/0/{run}/artifacts/{name}"), "x").await);
        let create = json!({ "path": "f", "num_parts": 1 });
        assert_invalid(&server.post(&format!("mlflow-artifacts/mpu/create/0/{name}"), create).await);
        let parts = json!({ "path": "f", "upload_id": "0", "parts": [{ "part_number": 1 }] });
        assert_invalid(&server.post(&format!("mlflow-artifacts/mpu/complete/0/{name}"), parts).await);
    }
    for path in ["/tmp/a\nb", "a\u{2029}b"] {
        assert_invalid(&server.post("mlflow-artifacts/mpu/create/0/x", json!({ "path": path, "num_parts": 1 })).await);
        let parts = json!({ "path": path, "upload_id": "0", "parts": [{ "part_number": 1 }] });
        assert_invalid(&server.post("mlflow-artifacts/mpu/complete/0/x", parts).await);
        let model = json!({ "artifact_path": path, "flavors": {}, "run_id": run, "utc_time_created": "now" });
        let logged = json!({ "run_id": run, "model_json": model.to_string() });
        assert_invalid(&server.post("mlflow/runs/log-model", logged).await);
        let experiment = json!({ "name": "e", "artifact_location": format!("mlflow-artifacts:/{path}") });
        assert_invalid(&server.post("mlflow/experiments/create", experiment).await);
    }
    assert!(server.tracking.list_folder("", "").await.unwrap().is_empty(), "something was stored");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_are_not_executed_by_a_browser() {
    let server = Server::start().await;
    let run = server.create_run().await;
    let page = "<script>alert(1)</script>";
    for name in ["a.html", "b.svg", "c.xhtml", "d.js", "MLmodel", "gr%C3%B6%C3%9Fe.htm", "q%22.html", "e.png", "f.xml"]
    {
        let uri = format!("{PROXY}/0/{run}/artifacts/{name}");
        assert_eq!(server.put(&uri, page).await.status, StatusCode::OK, "{name}");
        let full = server.get(&uri).await;
        assert_eq!((full.status, full.text().as_str()), (StatusCode::OK, page), "{name}");
        assert_harmless(&full);
        let range = |range| Request::get(&uri).header("range", range).body(axum::body::Body::empty()).unwrap();
        let part = server.request(range("bytes=1-6")).await;
        assert_eq!((part.status, part.text().as_str()), (StatusCode::PARTIAL_CONTENT, "script"), "{name}");
        assert_eq!(part.header("content-range"), "bytes 1-6/25");
        assert_harmless(&part);
        let outside = server.request(range("bytes=99-")).await;
        assert_eq!(outside.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_harmless(&outside);
        let by_run = server.get(&format!("/get-artifact?run_id={run}&path={name}")).await;
        assert_eq!(by_run.status, StatusCode::OK, "{name}");
        assert_harmless(&by_run);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_with_formerly_allowed_names_stay_readable() {
    let server = Server::start().await;
    let run = server.create_run().await;
    for name in ["a\nb.html", "good.txt", "d\r/x\u{202e}y"] {
        server.store_unchecked(&format!("0/{run}/artifacts/{name}"), "old").await;
    }
    let listed = async |path: &str| {
        let response = server.get(&format!("/api/2.0/mlflow/artifacts/list?run_id={run}&path={path}")).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text());
        let files = response.json()["files"].as_array().cloned().unwrap_or_default();
        files.iter().map(|f| f["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed("").await, ["a\u{fffd}b.html", "d\u{fffd}", "good.txt"]);
    assert_eq!(listed("d%EF%BF%BD").await, ["d\u{fffd}/x\u{fffd}y"]);
    // By the displayed name, and by the stored name.
    for name in ["a%EF%BF%BDb.html", "d%EF%BF%BD/x%EF%BF%BDy", "a%0Ab.html", "good.txt"] {
        for uri in [format!("{PROXY}/0/{run}/artifacts/{name}"), format!("/get-artifact?run_id={run}&path={name}")] {
            let response = server.get(&uri).await;
            assert_eq!((response.status, response.text().as_str()), (StatusCode::OK, "old"), "{uri}");
            assert_harmless(&response);
        }
    }
    assert_eq!(server.get(&format!("{PROXY}/0/{run}/artifacts/n%EF%BF%BD")).await.status, StatusCode::NOT_FOUND);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_decoded_as_in_mlflow() {
    let server = Server::start().await;
    let run = server.create_run().await;
    for name in ["a%5Cb.txt", "p%2520c.txt", "c:d.txt"] {
        assert_eq!(
            server.put(&format!("{PROXY}/0/{run}/artifacts/{name}"), "x").await.status,
            StatusCode::OK,
            "{name}"
        );
    }
    let response = server.get(&format!("/api/2.0/mlflow/artifacts/list?run_id={run}")).await.json();
    let names: Vec<_> = response["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["a\\b.txt", "c:d.txt", "p c.txt"]);
    for path in ["p%2520c.txt", "p%20c.txt", "p+c.txt", "a%5Cb.txt"] {
        let response = server.get(&format!("/get-artifact?run_id={run}&path={path}")).await;
        assert_eq!(response.status, StatusCode::OK, "{path}: {}", response.text());
    }
    for path in ["..%2Fx", "%252e%252e%2Fx", "C%3A%5Cx", "%5C%5Chost%5Cx", "%2Fx"] {
        assert_invalid(&server.get(&format!("/get-artifact?run_id={run}&path={path}")).await);
    }
    // Earlier versions stored percent-encoded names without decoding them.
    server.store_unchecked(&format!("0/{run}/artifacts/old%20name"), "x").await;
    assert_eq!(server.get(&format!("{PROXY}/0/{run}/artifacts/old%2520name")).await.status, StatusCode::OK);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ui_uploads_a_file_of_a_run_in_one_request() {
    let server = Server::start().await;
    let run = server.create_run().await;
    let upload = async |query: String, body: Vec<u8>| {
        let uri = format!("/ajax-api/2.0/mlflow/upload-artifact?{query}");
        server.request(Request::post(uri).body(axum::body::Body::from(body)).unwrap()).await
    };
    let response = upload(format!("run_uuid={run}&path=folder/u%20v.txt"), b"hello".to_vec()).await;
    assert_eq!((response.status, response.text().as_str()), (StatusCode::OK, ""));
    assert_eq!(server.get(&format!("/get-artifact?run_id={run}&path=folder/u%20v.txt")).await.text(), "hello");
    for (query, body, message) in [
        ("path=u.txt".into(), b"x".to_vec(), "Request must specify run_uuid."),
        (format!("run_uuid={run}"), b"x".to_vec(), "Request must specify path."),
        (format!("run_uuid={run}&path=u.txt"), vec![], "Request must specify data."),
        (
            format!("run_uuid={run}&path=u.txt"),
            vec![0; (10 << 20) + 1],
            "Artifact size is too large. Max size is 10MB.",
        ),
        (format!("run_uuid={run}&path=../u.txt"), b"x".to_vec(), "Invalid path"),
    ] {
        let response = upload(query, body).await;
        assert_invalid(&response);
        assert!(response.text().contains(message), "{}", response.text());
    }
    assert_eq!(upload("run_uuid=0&path=u.txt".into(), b"x".to_vec()).await.status, StatusCode::NOT_FOUND);
    server.stop().await;
}
