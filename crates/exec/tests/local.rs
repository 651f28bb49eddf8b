//! Tests that execute runs as real processes. The test binary is also the supervisor (`PROGRAM supervise FOLDER`) and, for tests that
//! kill a server, the server (`PROGRAM serve FOLDER`), so it has its own `main` instead of the standard test harness.

#![allow(clippy::unwrap_used, clippy::panic)] // these are tests

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use libtest_mimic::{Arguments, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use slipway_core::clock::now_ms;
use slipway_exec::local::descriptors::raise_limit;
use slipway_exec::local::{Accelerators, Capacity, Device, NAMESPACE, Reading, Settings, supervise};
use slipway_exec::{
    ExecError, Executor, LocalProcesses, LogQuery, Manifest, Phase, RunStatus, Submitted, TokenRequest, Tracked,
    Tracker, UsedData,
};

#[path = "local/data.rs"]
mod data;

use data::Shelf;

/// Timeout of one test.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Soft limit of open file descriptors before the server raises it.
const SOFT_LIMIT: u64 = 500;
/// Value of every variable that runs must not inherit.
const SECRET: &str = "correct-horse-battery";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["supervise", folder] => {
            runtime().block_on(supervise(Path::new(folder))).unwrap();
            return ExitCode::SUCCESS;
        }
        ["serve", folder] => runtime().block_on(serve(Path::new(folder))),
        _ => {}
    }
    // Raise the limit as a server does, starting from a value that the tests can recognise.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(SOFT_LIMIT), maximum }).unwrap();
    raise_limit();
    let trial = |&(name, test): &(&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let trials = TESTS.iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

const TESTS: &[(&str, fn())] = &[
    ("run_succeeds_and_its_log_is_followed", || run(run_succeeds_and_its_log_is_followed)),
    ("each_attempt_gets_its_own_token", || run(each_attempt_gets_its_own_token)),
    ("deadline_kills_the_whole_process_group", || run(deadline_kills_the_whole_process_group)),
    ("cancelled_run_ends", || run(cancelled_run_ends)),
    ("removed_run_is_deleted_and_its_name_is_free", || run(removed_run_is_deleted_and_its_name_is_free)),
    ("run_with_a_killed_supervisor_is_restarted", || run(run_with_a_killed_supervisor_is_restarted)),
    ("attempt_that_never_began_is_no_attempt", || run(attempt_that_never_began_is_no_attempt)),
    ("panic_in_one_run_does_not_stop_others", || run(panic_in_one_run_does_not_stop_others)),
    ("restarted_server_resumes_its_runs", || run(restarted_server_resumes_its_runs)),
    ("run_gets_the_original_descriptor_limit", || run(run_gets_the_original_descriptor_limit)),
    ("run_does_not_inherit_the_servers_environment", || run(run_does_not_inherit_the_servers_environment)),
    ("run_gets_its_data_and_leaves_no_link", || run(data::run_gets_its_data_and_leaves_no_link)),
    ("run_without_its_data_fails", || run(data::run_without_its_data_fails)),
    ("waiting_run_shows_progress_and_can_be_cancelled", || run(data::waiting_run_shows_progress_and_can_be_cancelled)),
    ("data_replaces_nothing", || run(data::data_replaces_nothing)),
];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn run<F: Future<Output = ()>>(test: fn(TempDir) -> F) {
    let path = std::env::temp_dir().join(format!("slipway-exec-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&path).unwrap();
    runtime().block_on(async { tokio::time::timeout(TEST_TIMEOUT, test(TempDir(path))).await.unwrap() });
}

/// A temporary folder, deleted on drop.
struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        // May fail if a supervisor is still writing; then a temporary folder remains.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tracking store that records its calls, and panics for runs named `bad`.
#[derive(Default)]
struct RecordingTracker {
    /// Ids of created tracked runs.
    begun: Mutex<HashSet<String>>,
    /// Ids and final phases of ended tracked runs.
    ended: Mutex<Vec<(String, Phase)>>,
    /// Data of the tracked run that was begun last.
    data: Mutex<Vec<UsedData>>,
    /// Requests for tokens.
    minted: Mutex<Vec<TokenRequest>>,
}

impl Tracker for RecordingTracker {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            assert!(run.name != "bad", "this panic is part of the test");
            self.begun.lock().unwrap().insert(run.run_id);
            *self.data.lock().unwrap() = run.data;
            Ok(())
        })
    }
    fn end<'a>(&'a self, _: &'a str, run_id: &'a str, status: &'a RunStatus) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.ended.lock().unwrap().push((run_id.to_owned(), status.phase));
            Ok(())
        })
    }
}

struct NoGpus;

impl Accelerators for NoGpus {
    fn devices(&self) -> Vec<Device> {
        Vec::new()
    }
    fn read(&self, devices: &[Device], _: f64) -> Vec<Option<Reading>> {
        vec![None; devices.len()]
    }
}

fn open(folder: &Path) -> (LocalProcesses, Arc<RecordingTracker>) {
    let tracker = Arc::new(RecordingTracker::default());
    let minting = Arc::clone(&tracker);
    let settings = Settings {
        folder: folder.join("runs"),
        secrets: folder.join("secrets"),
        references: None,
        program: std::env::current_exe().unwrap(),
        variables: vec![("MLFLOW_TRACKING_URI".into(), "http://127.0.0.1:1".into())],
        environment: vec!["DATASETS".into()],
        mint: Some(Arc::new(move |request: &TokenRequest| {
            minting.minted.lock().unwrap().push(request.clone());
            format!("token-of-{}-{}", request.run, request.attempt)
        })),
        capacity: Capacity { processors: 100.0, bytes: 0.0, devices: Vec::new() },
        accelerators: Arc::new(NoGpus),
        tracker: Arc::clone(&tracker) as Arc<dyn Tracker>,
        data: Some(Arc::new(Shelf(folder.join("shelf")))),
    };
    (LocalProcesses::open(settings).unwrap(), tracker)
}

fn script(name: &str, text: &str) -> Manifest {
    let mut run = Manifest::new(name, ["sh", "-c", text]);
    run.spec.termination_grace_period_seconds = Some(1);
    run
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TEST_TIMEOUT / 2, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn wait_for_phase(runs: &LocalProcesses, name: &str, phase: Phase) -> Submitted {
    let start = Instant::now();
    loop {
        let run = runs.get(NAMESPACE, name).await.unwrap();
        if run.status.phase == phase && (!phase.is_final() || run.status.attributed) {
            return run;
        }
        assert!(
            start.elapsed() < TEST_TIMEOUT / 2 && !run.status.attributed,
            "{name} is not {phase:?}: {:?}",
            run.status
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn log(runs: &LocalProcesses, name: &str, query: LogQuery) -> String {
    let chunks: Vec<_> = runs.logs(NAMESPACE, name, query).await.unwrap().try_collect().await.unwrap();
    String::from_utf8(chunks.concat()).unwrap()
}

fn is_alive(pid: &str) -> bool {
    // A process that has ended but was not reaped yet is a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn run_succeeds_and_its_log_is_followed(folder: TempDir) {
    let (runs, tracker) = open(&folder.0);
    let go = folder.0.join("go");
    let text = format!("echo one; while [ ! -e {} ]; do sleep 0.01; done; echo two >&2; printf three", go.display());
    let run = runs.submit(script("train", &text), Some("mia")).await.unwrap();
    assert_eq!(run.manifest.metadata.annotations["slipway.dev/submitted-by"], "mia");
    let mut stream = runs.logs(NAMESPACE, "train", LogQuery { follow: true, ..LogQuery::default() }).await.unwrap();
    assert_eq!(stream.try_next().await.unwrap().unwrap(), "one\n");
    assert_eq!(wait_for_phase(&runs, "train", Phase::Running).await.status.attempts.len(), 1);
    std::fs::write(&go, "").unwrap();
    let rest: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(rest.concat(), b"two\nthree");
    let done = wait_for_phase(&runs, "train", Phase::Succeeded).await;
    assert_eq!(done.status.attempts[0].exit_code, Some(0));
    assert_eq!(log(&runs, "train", LogQuery { tail: Some(2), ..LogQuery::default() }).await, "two\nthree");
    assert!(tracker.begun.lock().unwrap().contains(&run.status.run_id));
    assert_eq!(*tracker.ended.lock().unwrap(), [(run.status.run_id, Phase::Succeeded)]);
    let missing = runs.logs(NAMESPACE, "train", LogQuery { attempt: Some(2), ..LogQuery::default() }).await;
    assert!(matches!(missing.map(|_| ()), Err(ExecError::NotNow(_))));
}

async fn run_gets_the_original_descriptor_limit(folder: TempDir) {
    let limit = getrlimit(Resource::Nofile);
    assert_eq!(limit.current, limit.maximum, "the limit of the server is raised");
    let (runs, _) = open(&folder.0);
    runs.submit(script("count", "ulimit -Sn"), None).await.unwrap();
    wait_for_phase(&runs, "count", Phase::Succeeded).await;
    assert_eq!(log(&runs, "count", LogQuery::default()).await.trim(), SOFT_LIMIT.to_string());
}

async fn each_attempt_gets_its_own_token(folder: TempDir) {
    let (runs, tracker) = open(&folder.0);
    let marker = folder.0.join("marker").display().to_string();
    let text = format!("echo $MLFLOW_TRACKING_TOKEN; [ -e {marker} ] || {{ touch {marker}; exit 3; }}");
    let mut run = script("flaky", &text);
    run.spec.backoff_limit = 1;
    run.spec.experiment = Some("digits".into());
    run.spec.active_deadline_seconds = Some(100);
    let before = now_ms();
    let run = runs.submit(run, None).await.unwrap();
    let done = wait_for_phase(&runs, "flaky", Phase::Succeeded).await;
    let codes: Vec<_> = done.status.attempts.iter().map(|a| a.exit_code).collect();
    assert_eq!((codes, done.status.failures), (vec![Some(3), Some(0)], 1));
    for attempt in [1, 2] {
        let printed = log(&runs, "flaky", LogQuery { attempt: Some(attempt), ..LogQuery::default() }).await;
        assert_eq!(printed, format!("token-of-flaky-{attempt}\n"));
    }
    let minted = tracker.minted.lock().unwrap();
    assert_eq!(minted.iter().map(|m| m.attempt).collect::<Vec<_>>(), [1, 2]);
    for request in minted.iter() {
        assert_eq!((request.namespace.as_str(), &request.run_id), (NAMESPACE, &run.status.run_id));
        assert_eq!(request.experiment.as_deref(), Some("digits"));
        let lifetime = request.expires_at - before;
        assert!((100_000..1_000_000).contains(&lifetime), "the token expires soon after the deadline: {lifetime} ms");
    }
}

async fn deadline_kills_the_whole_process_group(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    let pids = folder.0.join("pids");
    let text = format!(
        "trap '' TERM; sleep 1000 & echo $! > {0}; echo $$ >> {0}; while :; do sleep 0.1; done",
        pids.display()
    );
    let mut run = script("late", &text);
    run.spec.active_deadline_seconds = Some(1);
    runs.submit(run, None).await.unwrap();
    let done = wait_for_phase(&runs, "late", Phase::Failed).await;
    assert_eq!(done.status.reason, "DeadlineExceeded");
    let pids = std::fs::read_to_string(&pids).unwrap();
    wait_until("its processes have ended", || !pids.lines().any(is_alive)).await;
}

async fn cancelled_run_ends(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    runs.submit(script("long", "echo $$; exec sleep 1000"), None).await.unwrap();
    wait_for_phase(&runs, "long", Phase::Running).await;
    let cancelled = runs.cancel(NAMESPACE, "long").await.unwrap();
    assert!(cancelled.manifest.spec.cancel);
    wait_for_phase(&runs, "long", Phase::Cancelled).await;
    let pid = log(&runs, "long", LogQuery::default()).await;
    wait_until("its process has ended", || !is_alive(&pid)).await;
    runs.cancel(NAMESPACE, "long").await.unwrap();
    let missing = runs.cancel(NAMESPACE, "unknown").await.unwrap_err();
    assert!(matches!(missing, ExecError::NotFound(_)), "{missing}");
}

async fn removed_run_is_deleted_and_its_name_is_free(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    runs.submit(script("long", "exec sleep 1000"), None).await.unwrap();
    wait_for_phase(&runs, "long", Phase::Running).await;
    runs.remove(NAMESPACE, "long").await.unwrap();
    assert!(matches!(runs.get(NAMESPACE, "long").await.unwrap_err(), ExecError::NotFound(_)));
    assert_eq!(std::fs::read_dir(folder.0.join("runs")).unwrap().count(), 0);
    runs.submit(script("long", "true"), None).await.unwrap();
    wait_for_phase(&runs, "long", Phase::Succeeded).await;
    // A finished run can be removed too, also by several callers at once.
    let (first, second) = tokio::join!(runs.remove(NAMESPACE, "long"), runs.remove(NAMESPACE, "long"));
    let is_gone = |result: &Result<(), ExecError>| matches!(result, Ok(()) | Err(ExecError::NotFound(_)));
    assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
    assert!(is_gone(&first) && is_gone(&second), "{first:?} {second:?}");
}

async fn run_with_a_killed_supervisor_is_restarted(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    let go = folder.0.join("go");
    let text = format!("echo $$; while [ ! -e {} ]; do sleep 0.01; done", go.display());
    runs.submit(script("lost", &text), None).await.unwrap();
    wait_for_phase(&runs, "lost", Phase::Running).await;
    let file = std::fs::read(folder.0.join("runs/lost/1/process.json")).unwrap();
    let process: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let supervisor = i32::try_from(process["supervisor"].as_i64().unwrap()).unwrap();
    let supervisor = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    let second = folder.0.join("runs/lost/2");
    wait_until("it is restarted", || second.exists()).await;
    let first = log(&runs, "lost", LogQuery { attempt: Some(1), ..LogQuery::default() }).await;
    wait_until("the processes of the first attempt are killed", || !is_alive(&first)).await;
    std::fs::write(&go, "").unwrap();
    let done = wait_for_phase(&runs, "lost", Phase::Succeeded).await;
    assert_eq!((done.status.disruptions, done.status.failures), (1, 0));
    assert_eq!(done.status.attempts[0].reason, "Lost");
}

/// A server may be killed after it has created the files of an attempt and before it has started the supervisor.
async fn attempt_that_never_began_is_no_attempt(folder: TempDir) {
    let mut manifest = script("interrupted", "echo started");
    manifest.metadata.namespace = NAMESPACE.into();
    let run = serde_json::to_string(&Submitted { manifest, status: RunStatus::default() }).unwrap();
    let attempt = folder.0.join("runs/interrupted/1");
    std::fs::create_dir_all(&attempt).unwrap();
    std::fs::write(attempt.parent().unwrap().join("run.json"), run).unwrap();
    std::fs::write(attempt.join("task.json"), "{").unwrap();
    std::fs::write(attempt.join("lock"), "").unwrap();
    std::fs::write(attempt.join("log"), "").unwrap();
    let (runs, _) = open(&folder.0);
    let done = wait_for_phase(&runs, "interrupted", Phase::Succeeded).await;
    assert_eq!((done.status.disruptions, done.status.attempts.len()), (0, 1), "{:?}", done.status);
    assert_eq!(log(&runs, "interrupted", LogQuery::default()).await, "started\n");
}

async fn panic_in_one_run_does_not_stop_others(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    runs.submit(script("bad", "true"), None).await.unwrap();
    runs.submit(script("good", "true"), None).await.unwrap();
    wait_for_phase(&runs, "good", Phase::Succeeded).await;
    let bad = runs.get(NAMESPACE, "bad").await.unwrap();
    assert_eq!(bad.status.phase, Phase::Pending);
    assert!(bad.status.message.contains("panicked"), "{:?}", bad.status);
}

/// A server that submits every new manifest of a folder and runs until it is killed.
async fn serve(folder: &Path) -> ! {
    let (runs, _) = open(folder);
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        if file.path().extension().is_some_and(|e| e == "json") {
            let run = Manifest::parse(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
            match runs.submit(run, None).await {
                Ok(_) | Err(ExecError::Exists(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    std::future::pending().await
}

/// A server in its own process, killed on drop.
struct Server(Child);

impl Server {
    fn start(folder: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("serve").arg(folder).stdin(Stdio::null());
        for name in ["SLIPWAY_TOKEN", "SLIPWAY_DATABASE", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "NVIDIA_API_KEY", "MINE"]
        {
            command.env(name, SECRET);
        }
        command.env("DATASETS", "/data").env("LC_ALL", "C");
        Self(command.spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Sends SIGKILL. Fails if the server has already ended, which another assertion reports.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn restarted_server_resumes_its_runs(folder: TempDir) {
    let (marks, go) = (folder.0.join("marks"), folder.0.join("go"));
    let (mark, wait) = (marks.display(), go.display());
    let text = format!("echo begun >> {mark}; while [ ! -e {wait} ]; do sleep 0.01; done; echo end; exit 4");
    std::fs::write(folder.0.join("train.json"), serde_json::to_vec(&script("train", &text)).unwrap()).unwrap();
    let server = Server::start(&folder.0);
    wait_until("its program runs", || marks.exists()).await;
    drop(server);
    // Kill the second server as soon as it has observed the running program. This process is the third server and observes the end.
    let server = Server::start(&folder.0);
    let file = folder.0.join("runs/train/run.json");
    wait_until("the second server observes the program", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"Running\""))
    })
    .await;
    drop(server);
    let (runs, tracker) = open(&folder.0);
    let found = wait_for_phase(&runs, "train", Phase::Running).await;
    assert_eq!(found.status.attempts.len(), 1);
    std::fs::write(&go, "").unwrap();
    let done = wait_for_phase(&runs, "train", Phase::Failed).await;
    assert_eq!(done.status.attempts.iter().map(|a| a.exit_code).collect::<Vec<_>>(), [Some(4)]);
    assert_eq!(std::fs::read_to_string(&marks).unwrap(), "begun\n", "the program was started once");
    assert_eq!(log(&runs, "train", LogQuery::default()).await, "end\n");
    assert_eq!(*tracker.ended.lock().unwrap(), [(done.status.run_id, Phase::Failed)]);
    assert!(tracker.minted.lock().unwrap().is_empty(), "no second token was created");
}

async fn run_does_not_inherit_the_servers_environment(folder: TempDir) {
    let mut run = script("curious", "env; tr '\\0' '\\n' < /proc/$PPID/environ; echo end");
    run.spec.env.push(slipway_exec::manifest::EnvVar {
        name: "LR".into(),
        value: Some("0.1".into()),
        value_from: None,
    });
    std::fs::write(folder.0.join("curious.json"), serde_json::to_vec(&run).unwrap()).unwrap();
    let _server = Server::start(&folder.0);
    let run_folder = folder.0.join("runs/curious");
    wait_until("it has ended", || run_folder.join("1/end.json").exists()).await;
    let printed = std::fs::read_to_string(run_folder.join("1/log")).unwrap();
    let lines: HashSet<&str> = printed.lines().collect();
    for line in [
        "LR=0.1",
        "DATASETS=/data",
        "LC_ALL=C",
        "SLIPWAY_RUN=curious",
        "MLFLOW_TRACKING_URI=http://127.0.0.1:1",
        "MLFLOW_TRACKING_TOKEN=token-of-curious-1",
        "end",
    ] {
        assert!(lines.contains(line), "{line} is missing: {printed}");
    }
    assert!(!printed.contains(SECRET), "a variable of the server is visible: {printed}");
    // The token is in the environment only. It is in the log because the program printed it.
    for file in [
        run_folder.join("run.json"),
        run_folder.join("1/task.json"),
        run_folder.join("1/process.json"),
        run_folder.join("1/end.json"),
    ] {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("token-of"), "{} contains the token", file.display());
    }
}
