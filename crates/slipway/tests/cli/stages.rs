//! `slipway data repro --submit`: stages of a pipeline as submitted runs.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Running, Sandbox, Server, wait_until};

/// Two stages in the middle that only end if both of them run at the same time.
const PIPELINE: &str = r#"stages:
  prepare:
    cmd:
    - cp raw raw.tmp
    - mv raw.tmp clean
    deps: [raw]
    outs: [clean]
  left:
    cmd: touch left.here; until [ -e right.here ]; do sleep 0.02; done; mkdir -p left; cat clean > left/a; echo b > left/b
    deps: [clean]
    outs: [left]
    meta:
      team: us
      slipway: {resources: {requests: {cpu: 100m}}, experiment: pipelines, env: [{name: COLOR, value: red}]}
  right:
    cmd: touch right.here; until [ -e left.here ]; do sleep 0.02; done; wc -l < clean > right.txt
    deps: [clean]
    params: [width]
    metrics: [{right.txt: {cache: false}}]
    meta: {slipway: {resources: {requests: {cpu: 100m}}}}
  join:
    cmd: cat left/a right.txt > all
    deps: [left, right.txt]
    outs: [all]
"#;

fn project(sandbox: &Sandbox, folder: &str, pipeline: &str) {
    sandbox.write(&format!("{folder}/dvc.yaml"), pipeline);
    sandbox.write(&format!("{folder}/params.yaml"), "width: 1\n");
    sandbox.write(&format!("{folder}/raw"), "one\ntwo\n");
    data(sandbox, folder, &["init", "--no-scm", "--quiet"]).wait().with_code(0);
}

fn data(sandbox: &Sandbox, folder: &str, arguments: &[&str]) -> Running {
    let mut command = sandbox.command(&[&["data"], arguments].concat());
    command.current_dir(sandbox.folder().join(folder));
    Running::start(command)
}

fn runs(server: &Server) -> Vec<Value> {
    server.get("/api/v1/runs").with_status(200).as_array().unwrap().clone()
}

/// A stage that notes each of its starts and then waits for the file `go`.
fn waiting(key: &str) -> String {
    format!(
        "stages:\n  slow:\n    cmd: echo {key} >> starts; until [ -e go ]; do sleep 0.02; done; cp raw out\n    deps: [raw]\n    \
         params: [width]\n    outs: [out]\n"
    )
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn submitted_stages_run_side_by_side_and_leave_the_records_of_a_local_run() {
    let server = Server::start();
    let sandbox = &server.sandbox;
    project(sandbox, "submitted", PIPELINE);
    project(sandbox, "local", PIPELINE);
    data(sandbox, "local", &["repro", "-j", "2"]).wait().with_code(0);
    let done = data(sandbox, "submitted", &["repro", "--submit"]).wait().with_code(0);
    assert!(
        done.stdout.contains("Submitting stage 'left'") && done.stdout.contains("[prepare] > cp raw raw.tmp"),
        "{done:?}"
    );
    for file in ["dvc.lock", "all", "right.txt", "left/b"] {
        let read = |folder: &str| sandbox.read(&format!("{folder}/{file}"));
        assert_eq!(read("submitted"), read("local"), "{file}");
    }
    let submitted = runs(&server);
    assert_eq!(submitted.len(), 4);
    let of = |stage: &str| {
        let is_its = |run: &&Value| run["metadata"]["annotations"]["slipway.dev/stage"] == stage;
        submitted.iter().find(is_its).unwrap_or_else(|| panic!("no run of {stage}: {submitted:?}"))
    };
    assert_eq!(of("left")["spec"]["resources"], json!({"requests": {"cpu": "100m"}}));
    assert_eq!(of("left")["spec"]["experiment"], "pipelines");
    assert!(of("left")["spec"]["env"].as_array().unwrap().contains(&json!({"name": "COLOR", "value": "red"})));
    assert!(of("join")["metadata"]["name"].as_str().unwrap().starts_with("join-"));
    assert!(submitted.iter().all(|run| run["status"]["phase"] == "Succeeded"), "{submitted:?}");
    let again = data(sandbox, "submitted", &["repro", "--submit"]).wait().with_code(0);
    assert!(again.stdout.contains("up to date"), "{again:?}");
    // A result of the run cache needs no run.
    std::fs::remove_file(sandbox.folder().join("submitted/all")).unwrap();
    data(sandbox, "submitted", &["repro", "--submit"]).wait().with_code(0);
    assert_eq!(sandbox.read("submitted/all"), sandbox.read("local/all"));
    assert_eq!(runs(&server).len(), 4);
}

#[test]
fn a_failed_stage_is_reported_and_not_recorded() {
    let server = Server::start();
    let sandbox = &server.sandbox;
    project(sandbox, "p", "stages:\n  a:\n    cmd: echo why >&2; exit 3\n    deps: [raw]\n    outs: [a]\n");
    let failed = data(sandbox, "p", &["repro", "--submit"]).wait().with_code(1);
    assert!(failed.stdout.contains("why") && failed.message().contains("code 3"), "{failed:?}");
    assert!(!sandbox.folder().join("p/dvc.lock").exists());
    for (meta, message) in [
        ("{slipway: {command: [x]}}", "'command' is determined by the stage"),
        ("{slipway: {imag: x}}", "imag"),
        ("{slipway: [x]}", "not a mapping"),
    ] {
        sandbox
            .write("p/dvc.yaml", &format!("stages:\n  a: {{cmd: cp raw a, deps: [raw], outs: [a], meta: {meta}}}\n"));
        let refused = data(sandbox, "p", &["repro", "--submit"]).wait().with_code(1);
        assert!(refused.message().contains(message), "{refused:?}");
    }
    assert_eq!(runs(&server).len(), 1);
}

#[test]
fn a_killed_command_leaves_runs_that_the_next_one_follows() {
    let server = Server::start();
    let sandbox = &server.sandbox;
    project(sandbox, "p", &waiting("first"));
    let starts = sandbox.folder().join("p/starts");
    let killed = data(sandbox, "p", &["repro", "--submit"]);
    wait_until("the stage runs", || (lines(&starts) == 1).then_some(()));
    drop(killed); // with SIGKILL
    let follower = data(sandbox, "p", &["repro", "--submit"]);
    wait_until("the run is followed", || {
        let rwlock = sandbox.folder().join("p/.dvc/tmp/rwlock");
        let text = std::fs::read_to_string(rwlock).unwrap_or_default();
        text.contains(&follower.id().to_string()).then_some(())
    });
    sandbox.write("p/go", "");
    let done = follower.wait().with_code(0);
    assert!(done.stdout.contains("following the run slow-"), "{done:?}");
    assert_eq!((lines(&starts), runs(&server).len()), (1, 1), "the stage ran once");
    assert!(sandbox.read("p/dvc.lock").contains("path: out"));

    // A run with other dependencies is stopped before its successor starts.
    std::fs::remove_file(sandbox.folder().join("p/go")).unwrap();
    sandbox.write("p/params.yaml", "width: 2\n");
    let killed = data(sandbox, "p", &["repro", "--submit"]);
    wait_until("the stage runs", || (lines(&starts) == 2).then_some(()));
    drop(killed);
    sandbox.write("p/params.yaml", "width: 3\n");
    let third = data(sandbox, "p", &["repro", "--submit"]);
    wait_until("the successor runs", || (lines(&starts) == 3).then_some(()));
    let phases: Vec<Value> = runs(&server).iter().map(|run| run["status"]["phase"].clone()).collect();
    assert_eq!(phases.iter().filter(|phase| **phase == "Cancelled").count(), 1, "{phases:?}");
    sandbox.write("p/go", "");
    third.wait().with_code(0);
    assert!(sandbox.read("p/dvc.lock").contains("width: 3"));
}

#[test]
fn an_interrupt_cancels_the_runs() {
    let server = Server::start();
    let sandbox = &server.sandbox;
    project(sandbox, "p", &waiting("first"));
    let starts = sandbox.folder().join("p/starts");
    let command = data(sandbox, "p", &["repro", "--submit"]);
    wait_until("the stage runs", || (lines(&starts) == 1).then_some(()));
    command.signal(Signal::INT);
    let ended = command.wait().with_code(1);
    assert!(ended.message().contains("cancelled"), "{ended:?}");
    assert_eq!(runs(&server)[0]["status"]["phase"], "Cancelled");
    assert!(!sandbox.folder().join("p/dvc.lock").exists());
}

#[test]
fn stages_are_submitted_to_a_running_server_only() {
    let sandbox = Sandbox::new();
    project(&sandbox, "p", PIPELINE);
    let refused = data(&sandbox, "p", &["repro", "--submit"]).wait().with_code(1);
    assert!(refused.message().contains("`slipway up`"), "{refused:?}");
}
