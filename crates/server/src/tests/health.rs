//! Readiness, and the responses to errors of the store.

use super::{RUN_ID, TestServer};

#[tokio::test(flavor = "multi_thread")]
async fn closed_writer_makes_the_server_not_ready() {
    let server = TestServer::open().await;
    assert_eq!(server.send_as("no-token", "GET", "/readyz", "").await.status, 200);
    let database = server.platform.database.clone();
    tokio::task::spawn_blocking(move || database.close()).await.unwrap();
    assert_eq!(server.send_as("no-token", "GET", "/readyz", "").await.status, 503);
    assert_eq!(server.send_as("no-token", "GET", "/healthz", "").await.status, 200, "the process itself is alive");
}

/// A database change that panics fails only its own request; later changes succeed.
#[tokio::test(flavor = "multi_thread")]
async fn panic_in_a_database_change_fails_only_that_change() {
    let server = TestServer::open().await;
    let result: Result<(), slipway_store::StoreError> = server
        .platform
        .database
        .write(|_| if RUN_ID.is_empty() { Ok(()) } else { std::panic::panic_any("a defect") })
        .await;
    assert!(matches!(result, Err(slipway_store::StoreError::Panicked(_))), "{result:?}");
    assert_eq!(server.send_as("no-token", "GET", "/readyz", "").await.status, 200);
    let tag = serde_json::json!({"run_id": RUN_ID, "key": "k", "value": "v"}).to_string();
    assert_eq!(server.send_as("owner", "POST", "/api/2.0/mlflow/runs/set-tag", &tag).await.status, 200);
}

/// A full disk has its own status code, and leaves no partial file.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_507_and_stores_nothing() {
    let limits = slipway_store::Limits { min_free_bytes: u64::MAX, ..slipway_store::Limits::default() };
    let server = TestServer::open_with(limits).await;
    let path = format!("/api/2.0/mlflow-artifacts/artifacts/0/{RUN_ID}/artifacts/big.bin");
    let before = super::fuzz::state(&server);
    let reply = server.send_as("owner", "PUT", &path, "content").await;
    assert_eq!(reply.status, 507, "{:?}", reply.body);
    assert_eq!(super::fuzz::state(&server), before);

    let limits = slipway_store::Limits { max_object_bytes: 4, ..slipway_store::Limits::default() };
    let server = TestServer::open_with(limits).await;
    assert_eq!(server.send_as("owner", "PUT", &path, "content").await.status, 413);
    assert_eq!(server.send_as("owner", "PUT", &path, "okay").await.status, 200);
}
