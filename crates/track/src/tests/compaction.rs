//! Tests of compaction: it changes the cost of reading histories, and never their contents.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use slipway_store::sql::{Connection, params};
use slipway_store::{Database, Migration};

use super::Server;
use crate::points::{Point, pack};
use crate::repo::metrics as repo;
use crate::service::compaction::{Compactor, LIMITS, Limits, SWEEP_DELAY, compact, plan};
use crate::service::metrics::NewMetric;
use crate::{Error, ErrorCode, MIGRATION};

/// Limits so small that a few requests result in several levels.
const SMALL: Limits = Limits { step_rows: 6, step_bytes: 400, mixed_rows: 3, chunk_points: 5, mixed_bytes: 60 };

/// The integer key of the run in the database.
fn run_key(server: &Server, run_id: &str) -> i64 {
    server.tracking.db.read_now(|c| repo::find_runs(c, &[run_id.to_owned()])).unwrap()[0].1
}

fn count(server: &Server, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    server.tracking.db.read_now(|c| c.first(&sql, params![], |row| row.get(0))).unwrap().unwrap()
}

/// The responses to all kinds of requests for the histories of these keys.
async fn histories(server: &Server, run_id: &str, keys: &[&str]) -> Vec<Value> {
    const METRICS: &str = "/api/2.0/mlflow/metrics";
    let mut responses = Vec::new();
    for key in keys {
        for query in [
            format!("get-history?run_id={run_id}&metric_key={key}"),
            format!("get-history-bulk?run_id={run_id}&metric_key={key}"),
            format!("get-history-bulk?run_id={run_id}&metric_key={key}&max_results=3"),
            format!("get-history-bulk-interval?run_ids={run_id}&metric_key={key}"),
            format!("get-history-bulk-interval?run_ids={run_id}&metric_key={key}&max_results=4"),
            format!("get-history-bulk-interval?run_ids={run_id}&metric_key={key}&start_step=1&end_step=3"),
        ] {
            let response = server.get(&format!("{METRICS}/{query}")).await;
            assert!(response.status.is_success(), "{query}: {}", response.text());
            responses.push(response.json());
        }
        let mut token = String::new();
        loop {
            let query = format!("get-history?run_id={run_id}&metric_key={key}&max_results=2&page_token={token}");
            let page = server.get(&format!("{METRICS}/{query}")).await.json();
            responses.push(page.clone());
            match page["next_page_token"].as_str() {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
    }
    responses
}

/// A `log-batch` request: key, step, timestamp and value of each metric.
type Batch = Vec<(&'static str, i64, i64, f64)>;

async fn log(server: &Server, run_id: &str, batch: &Batch) {
    let metrics: Vec<_> = batch
        .iter()
        .map(|(key, step, timestamp, value)| {
            let value = if value.is_nan() { json!("NaN") } else { json!(value) };
            json!({ "key": key, "step": step, "timestamp": timestamp, "value": value })
        })
        .collect();
    server.post_ok("mlflow/runs/log-batch", json!({ "run_id": run_id, "metrics": metrics })).await;
}

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let key = prop::sample::select(vec!["a", "a/b", "loss", "z"]);
    let value = prop::sample::select(vec![f64::NAN, 0.0, -0.5, 1e300]);
    prop::collection::vec(prop::collection::vec((key, -3..5_i64, 0..4_i64, value), 0..12), 0..40)
}

async fn assert_histories_are_unchanged(server: Server, before: Vec<Batch>, after: Vec<Batch>) {
    const KEYS: [&str; 5] = ["a", "a/b", "loss", "z", "none"];
    let run_id = server.create_run().await;
    let other = server.create_run().await;
    for batch in before.iter().chain(&after) {
        log(&server, &other, batch).await;
    }
    for batch in &before {
        log(&server, &run_id, batch).await;
    }
    let run = run_key(&server, &run_id);
    let expected = histories(&server, &run_id, &KEYS).await;
    compact(&server.tracking.db, run, SMALL).await.unwrap();
    assert_eq!(histories(&server, &run_id, &KEYS).await, expected);
    // Log more points and compact them together with the compacted ones.
    for batch in &after {
        log(&server, &run_id, batch).await;
    }
    let expected = histories(&server, &run_id, &KEYS).await;
    compact(&server.tracking.db, run, SMALL).await.unwrap();
    assert_eq!(histories(&server, &run_id, &KEYS).await, expected);
    // A run with the same points that was never compacted has the same histories, except for its id.
    let without_id = |responses: Vec<Value>, id: &str| json!(responses).to_string().replace(id, "");
    let never_compacted = without_id(histories(&server, &other, &KEYS).await, &other);
    assert_eq!(without_id(expected, &run_id), never_compacted);
    server.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn compaction_does_not_change_histories(before in batches(), after in batches()) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            if let Some(server) = Server::start_on_postgres().await {
                assert_histories_are_unchanged(server, before.clone(), after.clone()).await;
            }
            assert_histories_are_unchanged(Server::start().await, before, after).await;
        });
    }
}

/// The level is full, but its rows have disjoint keys, so regrouping results in the same rows. This once led to an endless loop.
#[tokio::test(flavor = "multi_thread")]
async fn compaction_ends_when_rows_cannot_be_merged() {
    let server = Server::start().await;
    let run_id = server.create_run().await;
    for n in 0..6_i64 {
        let keys = [("a", n < 4), ("a/b", n < 2), ("loss", n < 4), ("z", n >= 4)];
        let batch: Batch = keys.into_iter().filter(|(_, has)| *has).map(|(key, _)| (key, n, n, 0.5)).collect();
        log(&server, &run_id, &batch).await;
    }
    let run = run_key(&server, &run_id);
    let expected = histories(&server, &run_id, &["a", "a/b", "loss", "z"]).await;
    let steps = tokio::time::timeout(Duration::from_secs(60), compact(&server.tracking.db, run, SMALL)).await;
    assert_eq!(steps.expect("compaction did not end").unwrap(), 1);
    assert_eq!(count(&server, "metric_mixed"), 3);
    assert_eq!(histories(&server, &run_id, &["a", "a/b", "loss", "z"]).await, expected);
    server.stop().await;
}

/// Inserts rows of `requests` requests with `keys` metrics each. Every `rare_every`-th also has a point of the key `rare`.
async fn fill(server: &Server, run: i64, requests: i64, keys: usize, rare_every: i64) {
    let names: Vec<String> = (0..keys).map(|i| format!("metric/{i:05}")).collect();
    for group in (0..requests).collect::<Vec<_>>().chunks(100) {
        let rows: Vec<Vec<u8>> = group
            .iter()
            .map(|&n| {
                let point = Point { step: n, timestamp: n, value: 0.25 };
                let rare = (n % rare_every == 0).then_some("rare");
                pack(names.iter().map(String::as_str).chain(rare).map(|key| (key, point)))
            })
            .collect();
        let append = move |c: &Connection| rows.iter().try_for_each(|row| repo::append(c, run, row));
        server.tracking.db.write::<(), Error>(append).await.unwrap();
    }
}

/// Number of rows and bytes that a history of `key` reads.
fn cost(server: &Server, run: i64, key: &str) -> (usize, usize) {
    let (mut rows, mut bytes) = (0, 0);
    let read = |row: &[u8]| {
        rows += 1;
        bytes += row.len();
        Some(())
    };
    server.tracking.db.read_now(|c| repo::for_each_row(c, run, key, read)).unwrap();
    (rows, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn history_cost_depends_on_the_metric_and_not_on_the_run() {
    // About a hundredth of the default limits, so that a hundredth of the points is enough.
    let limits = Limits { step_rows: 100, step_bytes: 8 << 10, mixed_rows: 16, chunk_points: 16, mixed_bytes: 1 << 10 };
    // Few keys with many points each, and many keys with few points each.
    for (requests, keys) in [(2_000, 10), (100, 400)] {
        let server = Server::start().await;
        let run_id = server.create_run().await;
        let run = run_key(&server, &run_id);
        fill(&server, run, requests, keys, 10).await;
        let uncompacted = cost(&server, run, "rare");
        compact(&server.tracking.db, run, limits).await.unwrap();
        let once = cost(&server, run, "rare");
        assert!(once.1 * 5 < uncompacted.1, "{once:?} of {uncompacted:?}");
        fill(&server, run, 3 * requests, keys, 1_000_000).await;
        compact(&server.tracking.db, run, limits).await.unwrap();
        // The run now has four times as many points, but this key hardly more. The points of other keys that are read stay bounded.
        let later = cost(&server, run, "rare");
        let bound = limits.step_bytes + 2 * usize::try_from(limits.mixed_rows).unwrap() * limits.mixed_bytes;
        assert!(later.1 < bound && later.1 * 10 < uncompacted.1 * 4, "{later:?} after {once:?}, of {uncompacted:?}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outdated_or_interrupted_steps_change_nothing() {
    let postgres = Server::start_on_postgres().await;
    for server in postgres.into_iter().chain([Server::start().await]) {
        let run_id = server.create_run().await;
        let run = run_key(&server, &run_id);
        let batch = |n: i64| vec![("a", n, n, 0.5), ("b", n, n, f64::NAN), ("c", -n, 3, 1.0)];
        for n in 0..8 {
            log(&server, &run_id, &batch(n)).await;
        }
        let keys = ["a", "b", "c"];
        let expected = histories(&server, &run_id, &keys).await;
        let db = &server.tracking.db;
        let planned = || db.read_now(|c| plan(c, run, SMALL)).unwrap().unwrap();
        // The process is killed in the middle of the transaction.
        let step = planned();
        let interrupted = db.write(move |c| {
            step.apply(c)?;
            Err::<(), _>(Error::new(ErrorCode::InternalError, "interrupted"))
        });
        assert!(interrupted.await.is_err());
        assert_eq!(histories(&server, &run_id, &keys).await, expected);
        assert_eq!((count(&server, "metric_points"), count(&server, "metric_chunks")), (8, 0));
        // Two servers plan the same step.
        let (first, second) = (planned(), planned());
        assert!(db.write(move |c| first.apply(c)).await.unwrap());
        // SQLite reuses freed ids, so these rows may have the ids of the rows that were read.
        for n in 8..16 {
            log(&server, &run_id, &batch(n)).await;
        }
        let expected = histories(&server, &run_id, &keys).await;
        assert!(!db.write(move |c| second.apply(c)).await.unwrap());
        assert_eq!(histories(&server, &run_id, &keys).await, expected);
        // Deleting and restoring the run changes nothing.
        server.post_ok("mlflow/runs/delete", json!({ "run_id": run_id })).await;
        compact(db, run, SMALL).await.unwrap();
        server.post_ok("mlflow/runs/restore", json!({ "run_id": run_id })).await;
        assert_eq!(histories(&server, &run_id, &keys).await, expected);
        // After a permanent deletion no rows are left, and an outdated step does not restore any.
        for n in 16..30 {
            log(&server, &run_id, &batch(n)).await;
        }
        let outdated = planned();
        db.write(move |c| c.execute("DELETE FROM runs WHERE run = ?1", [run])).await.unwrap();
        assert!(!db.write(move |c| outdated.apply(c)).await.unwrap());
        for table in ["metric_points", "metric_chunks", "metric_mixed"] {
            assert_eq!(count(&server, table), 0, "{table}");
        }
        server.stop().await;
    }
}

async fn wait_until_compacted(server: &Server) {
    let started = Instant::now();
    while count(server, "metric_points") > 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing was compacted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_of_an_earlier_process_is_compacted_by_a_read_or_by_the_sweep() {
    for read in [true, false] {
        let mut server = Server::start().await;
        let run_id = server.create_run().await;
        fill(&server, run_key(&server, &run_id), i64::try_from(LIMITS.step_rows).unwrap(), 1, 1).await;
        if read {
            histories(&server, &run_id, &["rare"]).await;
        } else {
            let db = server.tracking.db.clone();
            server.tracking.compactor = Arc::new(Compactor::start(db, LIMITS, Duration::ZERO));
        }
        wait_until_compacted(&server).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn database_of_an_earlier_version_is_migrated_and_compacted() {
    let folder = std::env::temp_dir().join(format!("slipway-track-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&folder).unwrap();
    let older = Migration { steps: &MIGRATION.steps[..1], ..MIGRATION };
    let db = Database::open(&folder.join("t.db"), &[older]).unwrap();
    db.write(|c| {
        c.execute(
            "INSERT INTO experiments VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active', 1, 1)",
            params![],
        )?;
        c.execute(
            "INSERT INTO runs (run, run_id, experiment_id, name, user_id, status, start_time, lifecycle_stage, artifact_uri)
             VALUES (7, 'old', 0, 'n', 'u', 'FINISHED', 1, 'active', 'mlflow-artifacts:/0/old/artifacts')",
            params![],
        )?;
        (0..20).try_for_each(|n| repo::append(c, 7, &pack([("a", Point { step: n, timestamp: n, value: 0.5 })].into_iter())))
    })
    .await
    .unwrap();
    db.close();
    let db = Database::open(&folder.join("t.db"), &[MIGRATION]).unwrap();
    let server = Server::on(db, folder, None).await;
    let expected = histories(&server, "old", &["a"]).await;
    assert_eq!(expected[0]["metrics"].as_array().map(Vec::len), Some(20));
    compact(&server.tracking.db, 7, SMALL).await.unwrap();
    assert!(count(&server, "metric_chunks") > 0);
    assert_eq!(histories(&server, "old", &["a"]).await, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_with_many_requests_is_compacted_automatically() {
    let server = Server::start().await;
    let run_id = server.create_run().await;
    let requests = i64::try_from(LIMITS.step_rows).unwrap();
    for n in 0..requests {
        let metric = json!({ "run_id": run_id, "key": "loss", "value": 0.5, "timestamp": n, "step": n });
        server.post_ok("mlflow/runs/log-metric", metric).await;
    }
    wait_until_compacted(&server).await;
    assert_eq!(count(&server, "metric_chunks"), 1);
    let found = server.tracking.metric_history(run_id, "loss".into(), None, None).await.unwrap();
    assert_eq!(found.items.len(), LIMITS.step_rows);
    server.stop().await;
}

/// `cargo test --release -p slipway-track logging_throughput -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark; meaningful only in release builds"]
async fn logging_throughput_with_and_without_compaction() {
    const REQUESTS: usize = 4_000;
    let metrics: Vec<_> = (0..100_i64)
        .map(|i| NewMetric {
            key: format!("m{i}"),
            value: 0.5,
            timestamp: 1_700_000_000_000 + i,
            step: i,
            model_id: None,
            dataset_name: None,
            dataset_digest: None,
        })
        .collect();
    for (name, limits) in
        [("disabled", Limits { step_rows: usize::MAX, step_bytes: usize::MAX, ..LIMITS }), ("default", LIMITS)]
            .repeat(3)
    {
        let mut server = Server::start().await;
        let db = server.tracking.db.clone();
        server.tracking.compactor = Arc::new(Compactor::start(db, limits, SWEEP_DELAY));
        let run_id = server.create_run().await;
        let started = Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..16 {
            let (tracking, run_id, metrics) = (server.tracking.clone(), run_id.clone(), metrics.clone());
            tasks.push(tokio::spawn(async move {
                for _ in 0..REQUESTS / 16 {
                    tracking.log_batch(run_id.clone(), metrics.clone(), vec![], vec![]).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let rate = REQUESTS as f64 / started.elapsed().as_secs_f64();
        println!("compaction {name}: {rate:.0} requests/s, {} rows are left", count(&server, "metric_points"));
        server.stop().await;
    }
}

/// `cargo test --release -p slipway-track ten_million -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark that takes a minute; meaningful only in release builds"]
async fn ten_million_points_do_not_slow_down_a_key_with_a_thousand_points() {
    // Few keys with many points each, and many keys with fewer points each.
    for (keys, shape) in [(100, "100 keys"), (999, "999 keys")] {
        let server = Server::start().await;
        let run_id = server.create_run().await;
        let run = run_key(&server, &run_id);
        let requests = 10_000_000 / i64::try_from(keys).unwrap();
        fill(&server, run, requests, keys, requests / 1000).await;
        let time = async || {
            let started = Instant::now();
            let found = server.tracking.metric_history(run_id.clone(), "rare".into(), None, None).await.unwrap();
            assert!((1000..=1001).contains(&found.items.len()), "{}", found.items.len());
            started.elapsed()
        };
        let before = time().await;
        let started = Instant::now();
        let steps = compact(&server.tracking.db, run, LIMITS).await.unwrap();
        let compacted = started.elapsed();
        time().await;
        let after = time().await;
        println!(
            "{shape}: {before:?} before, {after:?} after {steps} steps in {compacted:?}; reads {:?}",
            cost(&server, run, "rare")
        );
        assert!(cfg!(debug_assertions) || after < Duration::from_millis(20), "{after:?}");
        server.stop().await;
    }
}
