//! Readiness, and errors of the store as answers.

use super::{Front, RUN_ID};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_writer_is_gone_is_not_ready() {
    let front = Front::open().await;
    assert_eq!(front.ask("nobody", "GET", "/readyz", "").await.status, 200);
    let database = front.platform.database.clone();
    tokio::task::spawn_blocking(move || database.close()).await.unwrap();
    assert_eq!(front.ask("nobody", "GET", "/readyz", "").await.status, 503);
    assert_eq!(front.ask("nobody", "GET", "/healthz", "").await.status, 200, "the process itself lives");
}

/// A change that panics is an error of its own request, and the next one is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_change_is_that_changes_error() {
    let front = Front::open().await;
    let result: Result<(), slipway_store::StoreError> = front
        .platform
        .database
        .write(|_| if RUN_ID.is_empty() { Ok(()) } else { std::panic::panic_any("a defect") })
        .await;
    assert!(matches!(result, Err(slipway_store::StoreError::Panicked(_))), "{result:?}");
    assert_eq!(front.ask("nobody", "GET", "/readyz", "").await.status, 200);
    let tag = serde_json::json!({"run_id": RUN_ID, "key": "k", "value": "v"}).to_string();
    assert_eq!(front.ask("owner", "POST", "/api/2.0/mlflow/runs/set-tag", &tag).await.status, 200);
}

/// What a full disk refuses is told as such, and nothing of it is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_507_and_keeps_nothing() {
    let limits = slipway_store::Limits { min_free_bytes: u64::MAX, ..slipway_store::Limits::default() };
    let front = Front::open_with(limits).await;
    let path = format!("/api/2.0/mlflow-artifacts/artifacts/0/{RUN_ID}/artifacts/big.bin");
    let before = super::fuzz::state(&front);
    let reply = front.ask("owner", "PUT", &path, "content").await;
    assert_eq!(reply.status, 507, "{:?}", reply.body);
    assert_eq!(super::fuzz::state(&front), before);

    let limits = slipway_store::Limits { max_object_bytes: 4, ..slipway_store::Limits::default() };
    let front = Front::open_with(limits).await;
    assert_eq!(front.ask("owner", "PUT", &path, "content").await.status, 413);
    assert_eq!(front.ask("owner", "PUT", &path, "okay").await.status, 200);
}
