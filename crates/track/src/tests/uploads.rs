//! Uploads in parts: who has a part's URL may store that part, and nobody else.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::json;
use slipway_core::clock::now_ms;

use super::{Answer, Server, assert_invalid, json_request};
use slipway_access::Origin;

const CREATE: &str = "/api/2.0/mlflow-artifacts/mpu/create/0/run/artifacts";

/// A request for part URLs as somebody may send it who can choose its headers.
fn create(parts: i64) -> Request<Body> {
    let mut request = json_request(Method::POST, CREATE, &json!({ "path": "/tmp/big.bin", "num_parts": parts }));
    for (name, value) in
        [("authorization", "Basic c2VjcmV0"), ("host", "evil.example"), ("x-forwarded-proto", "gopher")]
    {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

async fn created(server: &Server, parts: i64) -> (String, Vec<String>) {
    let mut request = create(parts);
    request.extensions_mut().insert(Origin::new("https", "slipway.example".parse().unwrap()));
    let answer = server.request(request).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    for told in ["c2VjcmV0", "uthorization", "evil.example", "gopher"] {
        assert!(!answer.text().contains(told), "the answer tells {told}: {}", answer.text());
    }
    let json = answer.json();
    let url = |credential: &serde_json::Value| {
        let url = credential["url"].as_str().unwrap();
        url.strip_prefix("https://slipway.example").expect("a URL of another origin").to_owned()
    };
    (json["upload_id"].as_str().unwrap().to_owned(), json["credentials"].as_array().unwrap().iter().map(url).collect())
}

#[track_caller]
fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text());
    assert_eq!(answer.json()["error_code"], "PERMISSION_DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_uploaded_in_parts_without_credentials_in_urls_or_answers() {
    let server = Server::start().await;
    let (id, urls) = created(&server, 2).await;
    assert_eq!(server.put(&urls[1], "world").await.status, StatusCode::OK);
    assert_eq!(server.put(&urls[0], "hello ").await.status, StatusCode::OK);
    for wrong in [
        json!([{ "part_number": 1 }, { "part_number": 1 }]),
        json!([{ "part_number": 0 }]),
        json!([{ "part_number": -1 }]),
    ] {
        let complete = json!({ "path": "/tmp/big.bin", "upload_id": id, "parts": wrong });
        assert_invalid(&server.post("mlflow-artifacts/mpu/complete/0/run/artifacts", complete).await);
    }
    let parts = json!([{ "part_number": 1 }, { "part_number": 2 }]);
    let complete = json!({ "path": "/tmp/big.bin", "upload_id": id, "parts": parts });
    server.done("mlflow-artifacts/mpu/complete/0/run/artifacts", complete).await;
    let whole = server.get("/api/2.0/mlflow-artifacts/artifacts/0/run/artifacts/big.bin").await;
    assert_eq!(whole.text(), "hello world");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_part_that_was_signed_can_be_stored() {
    let server = Server::start().await;
    let (id, urls) = created(&server, 2).await;
    let (other, _) = created(&server, 1).await;
    let (path, query) = urls[0].split_once('?').unwrap();
    let signature = query.rsplit_once('=').unwrap().1;
    let expired = now_ms() - 1;
    let late = server.tracking.part_signer.sign(&id, "1", expired);
    for forged in [
        path.to_owned(),
        format!("{path}?expires=9999999999999&signature={signature}"),
        format!("{path}?expires={expired}&signature={late}"),
        format!("{path}?{}", query.replace(signature, "")),
        format!("{path}?{}", query.replace(signature, "é")),
        urls[0].replace("/1?", "/2?"),
        urls[0].replace("/1?", "/3?"),
        urls[0].replace("/1?", "/01?"),
        urls[0].replace(&id, &other),
        urls[0].replace("signature=", "signature=0"),
    ] {
        let uri = forged.replace('é', "%C3%A9");
        assert_refused(&server.put(&uri, "x").await);
    }
    assert_eq!(server.put(&urls[0], "x").await.status, StatusCode::OK);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_trusted_address_the_client_is_told_to_send_the_file_in_one_piece() {
    let server = Server::start().await;
    let answer = server.request(create(1)).await;
    assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    // The beginning by which MLflow's client recognises it (`_UnsupportedMultipartUploadException`).
    assert!(message.starts_with("Multipart upload is not supported for the current artifact repository"), "{message}");
    assert!(!answer.text().contains("evil.example"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_a_database_know_each_others_urls() {
    let server = Server::start().await;
    let (_, urls) = created(&server, 1).await;
    let again = crate::Tracking::open(server.tracking.db.clone(), server.tracking.objects.clone()).await.unwrap();
    let second = Server {
        router: slipway_access::Guard::in_process().protect(crate::http::routes(again.clone())),
        tracking: again,
        folder: server.folder.clone(),
        schema: None,
    };
    assert_eq!(second.put(&urls[0], "x").await.status, StatusCode::OK);
    server.stop().await;
}
