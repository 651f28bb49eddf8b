//! What was acknowledged is there after `kill -9`.

use std::sync::Mutex;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, wait_until};

/// How often the server is killed; `$KILL_ROUNDS` in place of it.
const ROUNDS: usize = 20;

/// What the server has acknowledged so far.
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

/// Logs metrics from `step` on until the server does not answer any more.
fn log_points(server: &Server, run: &str, mut step: u64, kept: &Acknowledged) {
    let point = |step: u64| json!({ "run_id": run, "key": "m", "value": step, "timestamp": step, "step": step });
    let log = |body: Value| server.try_call("POST", "/api/2.0/mlflow/runs/log-metric", body.to_string().as_bytes());
    while let Ok(answer) = log(point(step)) {
        if answer.status == 200 {
            kept.points.lock().unwrap().push(step);
        }
        step += 1;
    }
}

fn create_runs(server: &Server, kept: &Acknowledged) {
    let body = json!({ "experiment_id": "0", "run_name": "r" }).to_string();
    while let Ok(answer) = server.try_call("POST", "/api/2.0/mlflow/runs/create", body.as_bytes()) {
        if answer.status == 200 {
            let id = answer.json()["run"]["info"]["run_id"].as_str().unwrap().to_owned();
            kept.runs.lock().unwrap().push(id);
        }
    }
}

fn put_files(server: &Server, round: usize, kept: &Acknowledged) {
    for number in 0.. {
        let name = format!("{round}-{number}");
        let path = format!("/api/2.0/mlflow-artifacts/artifacts/kill/{name}");
        match server.try_call("PUT", &path, name.repeat(50).as_bytes()) {
            Ok(answer) if answer.status == 200 => kept.files.lock().unwrap().push(name),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let rounds = std::env::var("KILL_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let mut server = Server::start();
    let made = server.post("/api/2.0/mlflow/runs/create", &json!({ "experiment_id": "0" })).with_status(200);
    let run = made["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let kept = Acknowledged::default();
    for round in 0..rounds {
        let before = kept.counts();
        // In the middle of things: after another number of answers each time.
        let more = 1 + round * 7 % 19;
        std::thread::scope(|scope| {
            scope.spawn(|| log_points(&server, &run, 100_000 * round as u64, &kept));
            scope.spawn(|| create_runs(&server, &kept));
            scope.spawn(|| put_files(&server, round, &kept));
            wait_until("all are being acknowledged", || {
                kept.counts().iter().zip(before).all(|(now, before)| *now >= before + more).then_some(())
            });
            server.signal(Signal::KILL);
        });
        assert!(!server.ended().success());
        server.restart();
    }
    let history =
        server.get(&format!("/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m")).with_status(200);
    let stored: std::collections::BTreeSet<u64> =
        history["metrics"].as_array().unwrap().iter().map(|m| m["step"].as_u64().unwrap()).collect();
    let points = kept.points.into_inner().unwrap();
    let lost = points.iter().filter(|step| !stored.contains(step)).count();
    assert_eq!(lost, 0, "of {} acknowledged points", points.len());
    for id in kept.runs.into_inner().unwrap() {
        server.get(&format!("/api/2.0/mlflow/runs/get?run_id={id}")).with_status(200);
    }
    for name in kept.files.into_inner().unwrap() {
        let answer = server.get(&format!("/api/2.0/mlflow-artifacts/artifacts/kill/{name}"));
        assert_eq!((answer.status, answer.text()), (200, name.repeat(50)));
    }
    assert_eq!(server.get("/api/v1/integrity").with_status(200), json!({ "result": "ok" }));
}
