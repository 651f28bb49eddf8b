//! Tests of multipart uploads: the signed URL of a part gives access to that part only.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::json;
use slipway_core::clock::now_ms;

use super::{Server, TestResponse, assert_invalid, json_request};
use slipway_access::Origin;

const CREATE: &str = "/api/2.0/mlflow-artifacts/mpu/create/0/run/artifacts";

/// A request for part URLs with headers that an attacker may choose.
fn create_request(parts: i64) -> Request<Body> {
    let mut request = json_request(Method::POST, CREATE, &json!({ "path": "/tmp/big.bin", "num_parts": parts }));
    for (name, value) in
        [("authorization", "Basic c2VjcmV0"), ("host", "evil.example"), ("x-forwarded-proto", "gopher")]
    {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// Creates an upload; returns its id and the URLs of its parts, without the origin.
async fn create_upload(server: &Server, parts: i64) -> (String, Vec<String>) {
    let mut request = create_request(parts);
    request.extensions_mut().insert(Origin::new("https", "slipway.example".parse().unwrap()));
    let response = server.request(request).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    for leaked in ["c2VjcmV0", "uthorization", "evil.example", "gopher"] {
        assert!(!response.text().contains(leaked), "the response contains {leaked}: {}", response.text());
    }
    let json = response.json();
    let url = |credential: &serde_json::Value| {
        let url = credential["url"].as_str().unwrap();
        url.strip_prefix("https://slipway.example").expect("a URL of another origin").to_owned()
    };
    (json["upload_id"].as_str().unwrap().to_owned(), json["credentials"].as_array().unwrap().iter().map(url).collect())
}

#[track_caller]
fn assert_denied(response: &TestResponse) {
    assert_eq!(response.status, StatusCode::FORBIDDEN, "{}", response.text());
    assert_eq!(response.json()["error_code"], "PERMISSION_DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn multipart_upload_exposes_no_credentials_in_urls_or_responses() {
    let server = Server::start().await;
    let (id, urls) = create_upload(&server, 2).await;
    assert_eq!(server.put(&urls[1], "world").await.status, StatusCode::OK);
    assert_eq!(server.put(&urls[0], "hello ").await.status, StatusCode::OK);
    for invalid in [
        json!([{ "part_number": 1 }, { "part_number": 1 }]),
        json!([{ "part_number": 0 }]),
        json!([{ "part_number": -1 }]),
    ] {
        let complete = json!({ "path": "/tmp/big.bin", "upload_id": id, "parts": invalid });
        assert_invalid(&server.post("mlflow-artifacts/mpu/complete/0/run/artifacts", complete).await);
    }
    let parts = json!([{ "part_number": 1 }, { "part_number": 2 }]);
    let complete = json!({ "path": "/tmp/big.bin", "upload_id": id, "parts": parts });
    server.post_ok("mlflow-artifacts/mpu/complete/0/run/artifacts", complete).await;
    let joined = server.get("/api/2.0/mlflow-artifacts/artifacts/0/run/artifacts/big.bin").await;
    assert_eq!(joined.text(), "hello world");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_signed_part_can_be_stored() {
    let server = Server::start().await;
    let (id, urls) = create_upload(&server, 2).await;
    let (other, _) = create_upload(&server, 1).await;
    let (path, query) = urls[0].split_once('?').unwrap();
    let signature = query.rsplit_once('=').unwrap().1;
    let expired = now_ms() - 1;
    let expired_signature = server.tracking.part_signer.sign(&id, "1", expired);
    for forged in [
        path.to_owned(),
        format!("{path}?expires=9999999999999&signature={signature}"),
        format!("{path}?expires={expired}&signature={expired_signature}"),
        format!("{path}?{}", query.replace(signature, "")),
        format!("{path}?{}", query.replace(signature, "é")),
        urls[0].replace("/1?", "/2?"),
        urls[0].replace("/1?", "/3?"),
        urls[0].replace("/1?", "/01?"),
        urls[0].replace(&id, &other),
        urls[0].replace("signature=", "signature=0"),
    ] {
        let uri = forged.replace('é', "%C3%A9");
        assert_denied(&server.put(&uri, "x").await);
    }
    assert_eq!(server.put(&urls[0], "x").await.status, StatusCode::OK);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn multipart_upload_is_not_implemented_without_a_trusted_address() {
    let server = Server::start().await;
    let response = server.request(create_request(1)).await;
    assert_eq!(response.status, StatusCode::NOT_IMPLEMENTED);
    let message = response.json()["message"].as_str().unwrap().to_owned();
    // MLflow's client recognises this beginning (`_UnsupportedMultipartUploadException`).
    assert!(message.starts_with("Multipart upload is not supported for the current artifact repository"), "{message}");
    assert!(!response.text().contains("evil.example"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_a_database_accept_each_others_urls() {
    let server = Server::start().await;
    let (_, urls) = create_upload(&server, 1).await;
    let tracking = crate::Tracking::open(server.tracking.db.clone(), server.tracking.objects.clone()).await.unwrap();
    let second = Server {
        router: slipway_access::Guard::in_process().protect(crate::http::routes(tracking.clone())),
        tracking,
        folder: server.folder.clone(),
        schema: None,
    };
    assert_eq!(second.put(&urls[0], "x").await.status, StatusCode::OK);
    server.stop().await;
}
