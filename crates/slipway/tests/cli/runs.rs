//! Runs as processes: taken in, queued, tried again, followed, and found again after a kill.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Place, Server, wait_until};

/// The manifest of a run of this shell script, with more of its specification.
fn manifest(name: &str, script: &str, more: Value) -> Value {
    let mut spec = json!({ "command": ["sh", "-c", script] });
    let more: serde_json::Map<String, Value> = serde_json::from_value(more).unwrap();
    spec.as_object_mut().unwrap().extend(more);
    json!({ "apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": { "name": name }, "spec": spec })
}

fn submit(server: &Server, name: &str, script: &str, more: Value) {
    server.post("/api/v1/runs", &manifest(name, script, more)).with_status(201);
}

fn status(server: &Server, name: &str) -> Value {
    server.get(&format!("/api/v1/runs/default/{name}")).with_status(200)["status"].clone()
}

fn log(server: &Server, name: &str) -> String {
    server.get(&format!("/api/v1/runs/default/{name}/log")).text()
}

/// Its status when it has ended, as it should have, and what it used is known.
fn ended(server: &Server, name: &str, phase: &str) -> Value {
    let found = wait_until(&format!("{name} ends"), || {
        let found = status(server, name);
        let over = matches!(found["phase"].as_str(), Some("Succeeded" | "Failed" | "Cancelled"));
        (over && found["attributed"] == true).then_some(found)
    });
    assert_eq!(found["phase"], phase, "{name}: {found}");
    found
}

fn running(server: &Server, name: &str) {
    wait_until(&format!("{name} runs"), || (status(server, name)["phase"] == "Running").then_some(()));
}

/// Ids of processes with this word in their command lines, supervisors aside.
fn processes(word: &str) -> Vec<i32> {
    let found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        let id = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).into_owned();
        (line.contains(word) && !line.contains("supervise")).then_some(id)
    });
    found.collect()
}

/// Values of a tracked run's metrics or other data, by key.
fn tracked(server: &Server, run: &Value) -> Value {
    let id = run["runId"].as_str().unwrap();
    server.get(&format!("/api/2.0/mlflow/runs/get?run_id={id}")).with_status(200)["run"].clone()
}

#[test]
fn a_run_is_followed_and_tracked() {
    let server = Server::start();
    let script = "cat here.txt; echo $LR $MLFLOW_TRACKING_URI; echo end";
    let more = json!({ "experiment": "digits", "image": "any:1", "env": [{ "name": "LR", "value": "0.1" }] });
    server.place.write("train.json", &manifest("train", script, more).to_string());
    server.place.write("here.txt", "beside the file\n");
    let done = server.run(&["run", "submit", "train.json", "--follow"]).with_code(0);
    assert_eq!(done.stdout, format!("beside the file\n0.1 {}\nend\n", server.url()));
    assert!(done.stderr.contains("without image"), "{done:?}");
    let run = tracked(&server, &ended(&server, "train", "Succeeded"));
    let experiment = server.get("/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits").with_status(200);
    assert_eq!(run["info"]["status"], "FINISHED");
    assert_eq!(run["info"]["run_name"], "train");
    assert_eq!(run["info"]["experiment_id"], experiment["experiment"]["experiment_id"]);
    server.run(&["run", "rm", "train", "--yes"]).with_code(0);
    server.get("/api/v1/runs/default/train").with_status(404);
    assert!(!server.place.home().join("work/runs/train").exists());
}

#[test]
fn a_run_that_fails_is_told_by_every_command() {
    let server = Server::start();
    let words = ["run", "submit", "--name", "failing", "--wait", "--", "sh", "-c", "echo why >&2; exit 7"];
    let failed = server.run(&words).with_code(1);
    assert!(failed.talk().contains("code 7") && failed.talk().contains("exec.failed"), "{failed:?}");
    assert_eq!(server.run(&["run", "logs", "failing"]).with_code(0).stdout, "why\n");
    assert!(server.run(&["run", "queue"]).with_code(0).stdout.contains("failing"));
    assert!(server.run(&["run", "status", "failing"]).with_code(0).stdout.contains("code 7"));
    let missing = server.run(&["run", "status", "nobody"]).with_code(1);
    assert!(missing.talk().contains("there is no run 'nobody'"), "{missing:?}");
}

#[test]
fn failures_deadlines_and_cancellation() {
    let server = Server::start();
    let folder = server.place.folder().display().to_string();
    let script = "[ -e again ] || { touch again; exit 3; }";
    submit(&server, "flaky", script, json!({ "backoffLimit": 1, "workingDir": folder }));
    let run = ended(&server, "flaky", "Succeeded");
    let codes: Vec<_> = run["attempts"].as_array().unwrap().iter().map(|a| a["exitCode"].clone()).collect();
    assert_eq!((codes, run["failures"].clone()), (vec![json!(3), json!(0)], json!(1)));

    // Words that only these processes have in their command lines.
    let (late, deaf) = (format!("late-{}", std::process::id()), format!("deaf-{}", std::process::id()));
    let short = json!({ "activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1 });
    submit(&server, "late", &format!("sh -c 'sleep 1000; : {late}' & sleep 1000; : {late}"), short);
    assert_eq!(ended(&server, "late", "Failed")["reason"], "DeadlineExceeded");
    let script = format!("trap '' TERM; while :; do sleep 0.1; done # {deaf}");
    submit(&server, "deaf", &script, json!({ "terminationGracePeriodSeconds": 1 }));
    running(&server, "deaf");
    server.run(&["run", "cancel", "deaf"]).with_code(0);
    ended(&server, "deaf", "Cancelled");
    assert!(processes(&deaf).is_empty() && processes(&late).is_empty(), "what it started has to end with it");
}

#[test]
fn what_cannot_be_carried_out_is_refused() {
    let server = Server::start();
    submit(&server, "there", "true", json!({}));
    let again = server.post("/api/v1/runs", &manifest("there", "true", json!({}))).with_status(409);
    assert_eq!(again["code"], "exec.exists");
    submit(&server, "nothere", "true", json!({ "command": ["/no/such/program"] }));
    assert_eq!(ended(&server, "nothere", "Failed")["reason"], "StartError");
    for (wrong, code) in [
        (json!({ "spec": {} }), "exec.manifest"),
        (manifest("Bad_Name", "true", json!({})), "exec.manifest"),
        (manifest("big", "true", json!({ "resources": { "requests": { "cpu": 9999 } } })), "exec.too_large"),
        (manifest("far", "true", json!({ "workingDir": "/no/such/folder" })), "exec.manifest"),
        (manifest("odd", "true", json!({ "nonsense": 1 })), "exec.manifest"),
    ] {
        assert_eq!(server.post("/api/v1/runs", &wrong).with_status(400)["code"], code, "{wrong}");
    }
}

#[test]
fn runs_outlive_a_server_that_is_killed() {
    const COUNT: usize = 12;
    let mut server = Server::start();
    let marks = server.place.folder().join("marks");
    std::fs::create_dir(&marks).unwrap();
    let begun = |n: usize, marks: &Path| std::fs::read_to_string(marks.join(n.to_string())).unwrap_or_default();
    for n in 0..COUNT {
        // It goes on until it is told to end, so that the server is killed while it runs.
        let file = marks.join(n.to_string()).display().to_string();
        let script = format!(
            "echo begun >> {file}; until [ -e {file}.end ]; do sleep 0.02; done; echo line {n}; exit {}",
            n % 3
        );
        submit(&server, &format!("job-{n}"), &script, json!({ "resources": { "requests": { "cpu": "100m" } } }));
    }
    for round in 0..8 {
        wait_until("one more has begun", || (!begun(round, &marks).is_empty()).then_some(()));
        std::fs::write(marks.join(format!("{round}.end")), "").unwrap();
        server.kill();
        server.restart();
    }
    for n in 0..COUNT {
        std::fs::write(marks.join(format!("{n}.end")), "").unwrap();
    }
    for n in 0..COUNT {
        let run = ended(&server, &format!("job-{n}"), if n % 3 == 0 { "Succeeded" } else { "Failed" });
        let attempts = run["attempts"].as_array().unwrap();
        // An attempt that was written down when the server was killed, and not yet started, is lost; the next one is made.
        let (last, lost) = attempts.split_last().unwrap();
        assert!(last["exitCode"] == n % 3, "{run}");
        assert!(lost.iter().all(|a| a["reason"] == "Lost" && a.get("startedAt").is_none()), "{run}");
        assert_eq!(begun(n, &marks), "begun\n", "it was started twice");
        assert_eq!(log(&server, &format!("job-{n}")), format!("line {n}\n"));
        let expected = if n % 3 == 0 { "FINISHED" } else { "FAILED" };
        assert_eq!(tracked(&server, &run)["info"]["status"], expected);
    }
}

#[test]
fn a_run_whose_supervisor_is_killed_is_started_again() {
    let server = Server::start();
    let word = format!("lost-{}", std::process::id());
    let folder = server.place.folder().display().to_string();
    let script = format!("[ -e second ] || {{ touch second; sleep 1000; }}; : {word}");
    submit(&server, "lost", &script, json!({ "workingDir": folder }));
    let program = wait_until("it runs", || processes(&word).first().copied());
    let parent = std::fs::read_to_string(format!("/proc/{program}/stat")).unwrap();
    let parent: i32 = parent.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(parent).unwrap(), Signal::KILL).unwrap();
    let run = ended(&server, "lost", "Succeeded");
    assert_eq!(run["disruptions"], 1);
    assert_eq!(run["attempts"][0]["reason"], "Lost");
    assert!(run.get("failures").is_none() && processes(&word).is_empty(), "{run}");
}

#[test]
fn gpus_are_leased_in_the_order_of_arrival() {
    let mut place = Place::with_simulated_gpus();
    place.set("SLIPWAY_GPU_FIXTURE", "a100x8");
    let server = Server::start_in(place, &[]);
    let gpus = |n: u32| json!({ "resources": { "limits": { "nvidia.com/gpu": n }, "requests": { "cpu": "10m" } } });
    let end = server.place.folder().join("end").display().to_string();
    let show = "echo $CUDA_VISIBLE_DEVICES";
    // One second at least, for which it is charged.
    submit(&server, "five", &format!("{show}; sleep 1; until [ -e {end} ]; do sleep 0.02; done"), gpus(5));
    running(&server, "five");
    submit(&server, "six", show, gpus(6));
    submit(&server, "one", show, gpus(1));
    submit(&server, "none", "echo $NVIDIA_VISIBLE_DEVICES", gpus(0));
    ended(&server, "none", "Succeeded");
    let six = status(&server, "six");
    assert_eq!(six["reason"], "Queued");
    assert!(six["message"].as_str().unwrap().contains("6 nvidia.com/gpu of 3"), "{six}");
    assert_eq!(status(&server, "one")["phase"], "Pending", "a GPU is free, and kept for the run that came first");
    std::fs::write(&end, "").unwrap();
    let five = ended(&server, "five", "Succeeded");
    for (name, count) in [("five", 5), ("six", 6), ("one", 1)] {
        ended(&server, name, "Succeeded");
        let text = log(&server, name);
        let seen: std::collections::BTreeSet<&str> = text.trim().split(',').collect();
        assert_eq!(seen.len(), count, "{name}: {seen:?}");
    }
    assert_eq!(log(&server, "none").trim(), "void");
    let used = five["attempts"][0]["gpus"].as_array().unwrap();
    assert!(used.len() == 5 && used.iter().all(|gpu| gpu["joules"].as_f64().unwrap() > 0.0), "{five}");
    let metrics = tracked(&server, &five)["data"]["metrics"].as_array().unwrap().clone();
    assert!(metrics.iter().any(|m| m["key"] == "system/gpu_energy_joules" && m["value"].as_f64().unwrap() > 0.0));
    // Between two attempts it holds nothing, and is charged for nothing.
    let mut twice = gpus(1);
    twice["backoffLimit"] = json!(1);
    submit(&server, "twice", "sleep 0.5; exit 1", twice);
    let twice = ended(&server, "twice", "Failed");
    assert_eq!(twice["attempts"].as_array().unwrap().len(), 2);
    for attempt in twice["attempts"].as_array().unwrap() {
        let seconds = |key: &str| attempt["gpus"][0][key].as_f64().unwrap();
        let charged = seconds("busySeconds") + seconds("idleSeconds");
        assert!(0.2 < charged && charged < 5.0, "{attempt}");
    }
    let answer = server.post("/api/v1/runs", &manifest("nine", "true", gpus(9))).with_status(400);
    assert!(answer["error"].as_str().unwrap().contains("9 nvidia.com/gpu of 8"), "{answer}");
}

#[test]
fn secrets_come_from_files_and_stay_there() {
    let server = Server::start();
    server.place.write("home/secrets/hub/token", "very-secret\n");
    let secret = |key: &str| {
        let source = json!({ "secretKeyRef": { "name": "hub", "key": key } });
        json!({ "env": [{ "name": "TOKEN", "valueFrom": source }] })
    };
    submit(&server, "reader", "test \"$TOKEN\" = very-$(echo secret)", secret("token"));
    ended(&server, "reader", "Succeeded");
    let mut folders = vec![server.place.home().join("work/runs/reader")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
                assert!(!String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains("very-secret"), "{path:?}");
            }
        }
    }
    assert!(files > 0);
    for key in ["missing", "../../run-tokens.key"] {
        let answer = server.post("/api/v1/runs", &manifest("wrong", "true", secret(key))).with_status(400);
        assert!(answer["error"].as_str().unwrap().contains("TOKEN"), "{answer}");
    }
}

#[test]
fn a_run_gets_a_token_that_may_track_and_nothing_else() {
    let place = Place::new();
    place.write("tokens", "0123456789abcdef0123456789abcdef\n");
    let mut server = Server::start_in(place, &["--token-file", "tokens"]);
    server.use_token("0123456789abcdef0123456789abcdef");
    submit(&server, "asker", "echo $MLFLOW_TRACKING_TOKEN $MLFLOW_TRACKING_URI $SLIPWAY_TOKEN", json!({}));
    ended(&server, "asker", "Succeeded");
    let text = log(&server, "asker");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.len() == 2 && words[0].starts_with("slipway-run.") && words[1] == server.url(), "{words:?}");
    assert!(!text.contains("0123456789abcdef0123456789abcdef"));
    server.use_token(words[0]);
    // The token ended with its run; what it may do before that is tested at the router.
    wait_until("the token is refused", || (server.get("/api/v1/addresses").status == 401).then_some(()));
    for path in ["/api/v1/runs", "/api/v1/deployments"] {
        server.get(path).with_status(401);
    }
}
