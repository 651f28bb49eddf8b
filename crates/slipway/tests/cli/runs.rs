//! Runs as local processes: submission, queueing, retries, logs, and recovery after the server is killed.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Sandbox, Server, wait_until};

/// The manifest of a run of a shell script. `more` is added to its specification.
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

/// Waits until the run has finished with `phase` and its GPU usage is attributed. Returns the status.
fn ended(server: &Server, name: &str, phase: &str) -> Value {
    let found = wait_until(&format!("{name} ends"), || {
        let found = status(server, name);
        let finished = matches!(found["phase"].as_str(), Some("Succeeded" | "Failed" | "Cancelled"));
        (finished && found["attributed"] == true).then_some(found)
    });
    assert_eq!(found["phase"], phase, "{name}: {found}");
    found
}

fn running(server: &Server, name: &str) {
    wait_until(&format!("{name} runs"), || (status(server, name)["phase"] == "Running").then_some(()));
}

/// Ids of processes with this word in their command lines, except supervisors.
fn processes(word: &str) -> Vec<i32> {
    let found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        let id = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).into_owned();
        (line.contains(word) && !line.contains("supervise")).then_some(id)
    });
    found.collect()
}

/// The tracked run of a submitted run.
fn tracked(server: &Server, run: &Value) -> Value {
    let id = run["runId"].as_str().unwrap();
    server.get(&format!("/api/2.0/mlflow/runs/get?run_id={id}")).with_status(200)["run"].clone()
}

#[test]
fn submitted_run_is_followed_and_tracked() {
    let server = Server::start();
    let script = "cat here.txt; echo $LR $MLFLOW_TRACKING_URI; echo end";
    let more = json!({ "experiment": "digits", "image": "any:1", "env": [{ "name": "LR", "value": "0.1" }] });
    server.sandbox.write("train.json", &manifest("train", script, more).to_string());
    server.sandbox.write("here.txt", "beside the file\n");
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
    assert!(!server.sandbox.home().join("work/runs/train").exists());
}

#[test]
fn all_commands_report_a_failed_run() {
    let server = Server::start();
    let words = ["run", "submit", "--name", "failing", "--wait", "--", "sh", "-c", "echo why >&2; exit 7"];
    let failed = server.run(&words).with_code(1);
    assert!(failed.message().contains("code 7") && failed.message().contains("exec.failed"), "{failed:?}");
    assert_eq!(server.run(&["run", "logs", "failing"]).with_code(0).stdout, "why\n");
    let listed = server.run(&["run", "ls", "--submitted"]).with_code(0).stdout;
    assert!(listed.contains("failing") && listed.contains("PHASE"), "{listed}");
    assert!(!server.run(&["run", "ls", "--submitted", "-n", "other"]).with_code(0).stdout.contains("failing"));
    let earlier_name = server.run(&["run", "queue"]).with_code(0).stdout;
    assert!(earlier_name.contains("failing") && earlier_name.contains("PHASE"), "{earlier_name}");
    server.run(&["run", "ls", "-n", "other"]).with_code(2);
    server.run(&["run", "ls", "--submitted", "--limit", "1"]).with_code(2);
    assert!(server.run(&["run", "status", "failing"]).with_code(0).stdout.contains("code 7"));
    let missing = server.run(&["run", "status", "nobody"]).with_code(1);
    assert!(missing.message().contains("there is no run 'nobody'"), "{missing:?}");
}

#[test]
fn retries_deadlines_and_cancellation() {
    let server = Server::start();
    let folder = server.sandbox.folder().display().to_string();
    let script = "[ -e again ] || { touch again; exit 3; }";
    submit(&server, "flaky", script, json!({ "backoffLimit": 1, "workingDir": folder }));
    let run = ended(&server, "flaky", "Succeeded");
    let codes: Vec<_> = run["attempts"].as_array().unwrap().iter().map(|a| a["exitCode"].clone()).collect();
    assert_eq!((codes, run["failures"].clone()), (vec![json!(3), json!(0)], json!(1)));

    // Markers that only these processes have in their command lines.
    let (late, deaf) = (format!("late-{}", std::process::id()), format!("deaf-{}", std::process::id()));
    let short = json!({ "activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1 });
    submit(&server, "late", &format!("sh -c 'sleep 1000; : {late}' & sleep 1000; : {late}"), short);
    assert_eq!(ended(&server, "late", "Failed")["reason"], "DeadlineExceeded");
    let script = format!("trap '' TERM; while :; do sleep 0.1; done # {deaf}");
    submit(&server, "deaf", &script, json!({ "terminationGracePeriodSeconds": 1 }));
    running(&server, "deaf");
    server.run(&["run", "cancel", "deaf"]).with_code(0);
    ended(&server, "deaf", "Cancelled");
    assert!(processes(&deaf).is_empty() && processes(&late).is_empty(), "child processes must end with the run");
}

#[test]
fn invalid_and_unschedulable_runs_are_rejected() {
    let server = Server::start();
    submit(&server, "there", "true", json!({}));
    let again = server.post("/api/v1/runs", &manifest("there", "true", json!({}))).with_status(409);
    assert_eq!(again["code"], "exec.exists");
    submit(&server, "nothere", "true", json!({ "command": ["/no/such/program"] }));
    assert_eq!(ended(&server, "nothere", "Failed")["reason"], "StartError");
    for (invalid, code) in [
        (json!({ "spec": {} }), "exec.manifest"),
        (manifest("Bad_Name", "true", json!({})), "exec.manifest"),
        (manifest("big", "true", json!({ "resources": { "requests": { "cpu": 9999 } } })), "exec.too_large"),
        (manifest("far", "true", json!({ "workingDir": "/no/such/folder" })), "exec.manifest"),
        (manifest("odd", "true", json!({ "nonsense": 1 })), "exec.manifest"),
    ] {
        assert_eq!(server.post("/api/v1/runs", &invalid).with_status(400)["code"], code, "{invalid}");
    }
}

#[test]
fn runs_survive_a_killed_server() {
    const COUNT: usize = 12;
    let mut server = Server::start();
    let marks = server.sandbox.folder().join("marks");
    std::fs::create_dir(&marks).unwrap();
    let begun = |n: usize, marks: &Path| std::fs::read_to_string(marks.join(n.to_string())).unwrap_or_default();
    for n in 0..COUNT {
        // The script runs until its `.end` file exists, so that the server is killed while it runs.
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
        // An attempt that was recorded but not started when the server was killed is lost and replaced by another attempt.
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
fn run_is_restarted_after_its_supervisor_is_killed() {
    let server = Server::start();
    let word = format!("lost-{}", std::process::id());
    let folder = server.sandbox.folder().display().to_string();
    let script = format!("[ -e second ] || {{ touch second; sleep 1000; }}; : {word}");
    submit(&server, "lost", &script, json!({ "workingDir": folder }));
    let program = wait_until("the run starts", || processes(&word).first().copied());
    let parent = std::fs::read_to_string(format!("/proc/{program}/stat")).unwrap();
    let parent: i32 = parent.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(parent).unwrap(), Signal::KILL).unwrap();
    let run = ended(&server, "lost", "Succeeded");
    assert_eq!(run["disruptions"], 1);
    assert_eq!(run["attempts"][0]["reason"], "Lost");
    assert!(run.get("failures").is_none(), "{run}");
    // The kernel kills the program of a dead supervisor, which takes a moment on a busy machine.
    wait_until("the first program ends", || processes(&word).is_empty().then_some(()));
}

#[test]
fn queued_gpu_runs_are_fifo() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SLIPWAY_GPU_FIXTURE", "a100x8");
    let server = Server::start_in(sandbox, &[]);
    let gpus = |n: u32| json!({ "resources": { "limits": { "nvidia.com/gpu": n }, "requests": { "cpu": "10m" } } });
    let end = server.sandbox.folder().join("end").display().to_string();
    let show = "echo $CUDA_VISIBLE_DEVICES";
    // The run lasts at least one second, for which usage is attributed.
    submit(&server, "five", &format!("{show}; sleep 1; until [ -e {end} ]; do sleep 0.02; done"), gpus(5));
    running(&server, "five");
    submit(&server, "six", show, gpus(6));
    submit(&server, "one", show, gpus(1));
    submit(&server, "none", "echo $NVIDIA_VISIBLE_DEVICES", gpus(0));
    ended(&server, "none", "Succeeded");
    let six = status(&server, "six");
    assert_eq!(six["reason"], "Queued");
    assert!(six["message"].as_str().unwrap().contains("6 nvidia.com/gpu (3 available)"), "{six}");
    assert_eq!(
        status(&server, "one")["phase"],
        "Pending",
        "a free GPU is reserved for the run that was submitted first"
    );
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
    // Between two attempts a run holds no GPU, and no usage is attributed.
    let mut twice = gpus(1);
    twice["backoffLimit"] = json!(1);
    submit(&server, "twice", "sleep 0.5; exit 1", twice);
    let twice = ended(&server, "twice", "Failed");
    assert_eq!(twice["attempts"].as_array().unwrap().len(), 2);
    for attempt in twice["attempts"].as_array().unwrap() {
        let seconds = |key: &str| attempt["gpus"][0][key].as_f64().unwrap();
        let attributed = seconds("busySeconds") + seconds("idleSeconds");
        assert!(0.2 < attributed && attributed < 5.0, "{attempt}");
    }
    let response = server.post("/api/v1/runs", &manifest("nine", "true", gpus(9))).with_status(400);
    assert!(response["error"].as_str().unwrap().contains("9 nvidia.com/gpu (8 available)"), "{response}");
}

#[test]
fn secrets_are_not_written_to_the_run_folder() {
    let server = Server::start();
    server.sandbox.write("home/secrets/hub/token", "very-secret\n");
    let secret = |key: &str| {
        let source = json!({ "secretKeyRef": { "name": "hub", "key": key } });
        json!({ "env": [{ "name": "TOKEN", "valueFrom": source }] })
    };
    submit(&server, "reader", "test \"$TOKEN\" = very-$(echo secret)", secret("token"));
    ended(&server, "reader", "Succeeded");
    let mut folders = vec![server.sandbox.home().join("work/runs/reader")];
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
        let response = server.post("/api/v1/runs", &manifest("wrong", "true", secret(key))).with_status(400);
        assert!(response["error"].as_str().unwrap().contains("TOKEN"), "{response}");
    }
}

#[test]
fn run_token_is_revoked_when_the_run_ends() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens", "0123456789abcdef0123456789abcdef\n");
    let mut server = Server::start_in(sandbox, &["--token-file", "tokens"]);
    server.use_token("0123456789abcdef0123456789abcdef");
    submit(&server, "asker", "echo $MLFLOW_TRACKING_TOKEN $MLFLOW_TRACKING_URI $SLIPWAY_TOKEN", json!({}));
    ended(&server, "asker", "Succeeded");
    let text = log(&server, "asker");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.len() == 2 && words[0].starts_with("slipway-run.") && words[1] == server.url(), "{words:?}");
    assert!(!text.contains("0123456789abcdef0123456789abcdef"));
    server.use_token(words[0]);
    // The token expires with its run. Its permissions during the run are tested at the router.
    wait_until("the token is refused", || (server.get("/api/v1/addresses").status == 401).then_some(()));
    for path in ["/api/v1/runs", "/api/v1/deployments"] {
        server.get(path).with_status(401);
    }
}
