//! Acknowledged writes survive `kill -9`.

use std::sync::Mutex;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, wait_until};

/// Number of times that the server is killed; `$KILL_ROUNDS` overrides it.
const ROUNDS: usize = 20;

/// The writes that the server has acknowledged so far.
#[derive(Default)]
struct Acknowledged {
    points: Mutex<Vec<u64>>,
    runs: Mutex<Vec<String>>,
    files: Mutex<Vec<String>>,
}

impl Acknowledged {
    fn counts(&self) -> [usize; 3] {
        [self.points.lock().unwrap().len(), self.runs.lock().unwrap().len(), self.files.lock().unwrap().len()]
    }
}

/// Logs metrics from `step` on until the server stops responding.
fn log_points(server: &Server, run: &str, mut step: u64, acknowledged: &Acknowledged) {
    let point = |step: u64| json!({ "run_id": run, "key": "m", "value": step, "timestamp": step, "step": step });
    let log = |body: Value| server.try_call("POST", "/api/2.0/mlflow/runs/log-metric", body.to_string().as_bytes());
    while let Ok(response) = log(point(step)) {
        if response.status == 200 {
            acknowledged.points.lock().unwrap().push(step);
        }
        step += 1;
    }
}

fn create_runs(server: &Server, acknowledged: &Acknowledged) {
    let body = json!({ "experiment_id": "0", "run_name": "r" }).to_string();
    while let Ok(response) = server.try_call("POST", "/api/2.0/mlflow/runs/create", body.as_bytes()) {
        if response.status == 200 {
            let id = response.json()["run"]["info"]["run_id"].as_str().unwrap().to_owned();
            acknowledged.runs.lock().unwrap().push(id);
        }
    }
}

fn put_files(server: &Server, round: usize, acknowledged: &Acknowledged) {
    for number in 0.. {
        let name = format!("{round}-{number}");
        let path = format!("/api/2.0/mlflow-artifacts/artifacts/kill/{name}");
        match server.try_call("PUT", &path, name.repeat(50).as_bytes()) {
            Ok(response) if response.status == 200 => acknowledged.files.lock().unwrap().push(name),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let rounds = std::env::var("KILL_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let mut server = Server::start();
    let created = server.post("/api/2.0/mlflow/runs/create", &json!({ "experiment_id": "0" })).with_status(200);
    let run = created["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let acknowledged = Acknowledged::default();
    for round in 0..rounds {
        let before = acknowledged.counts();
        // Kill the server while it writes, after a different number of responses in each round.
        let more = 1 + round * 7 % 19;
        std::thread::scope(|scope| {
            scope.spawn(|| log_points(&server, &run, 100_000 * round as u64, &acknowledged));
            scope.spawn(|| create_runs(&server, &acknowledged));
            scope.spawn(|| put_files(&server, round, &acknowledged));
            wait_until("all are being acknowledged", || {
                acknowledged.counts().iter().zip(before).all(|(now, before)| *now >= before + more).then_some(())
            });
            server.signal(Signal::KILL);
        });
        assert!(!server.wait_for_exit().success());
        server.restart();
    }
    let history =
        server.get(&format!("/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m")).with_status(200);
    let stored: std::collections::BTreeSet<u64> =
        history["metrics"].as_array().unwrap().iter().map(|m| m["step"].as_u64().unwrap()).collect();
    let points = acknowledged.points.into_inner().unwrap();
    let lost = points.iter().filter(|step| !stored.contains(step)).count();
    assert_eq!(lost, 0, "of {} acknowledged points", points.len());
    for id in acknowledged.runs.into_inner().unwrap() {
        server.get(&format!("/api/2.0/mlflow/runs/get?run_id={id}")).with_status(200);
    }
    for name in acknowledged.files.into_inner().unwrap() {
        let response = server.get(&format!("/api/2.0/mlflow-artifacts/artifacts/kill/{name}"));
        assert_eq!((response.status, response.text()), (200, name.repeat(50)));
    }
    assert_eq!(server.get("/api/v1/integrity").with_status(200), json!({ "result": "ok" }));
}
