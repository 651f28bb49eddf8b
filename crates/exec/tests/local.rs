//! Runs that are really carried out as processes. This program is its own supervisor and its own server, so it has a `main` of its own
//! instead of the standard test harness: the executor starts it as `PROGRAM supervise FOLDER`, and a test that kills a server starts it as
//! `PROGRAM serve FOLDER`. Arguments of `cargo test` that are no options choose tests by a part of their names.

#![allow(clippy::unwrap_used, clippy::panic)] // these are tests

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use slipway_core::clock::now_ms;
use slipway_exec::local::descriptors::raise_limit;
use slipway_exec::local::{Accelerators, Device, NAMESPACE, Reading, Room, Settings, supervise};
use slipway_exec::{
    ExecError, Executor, LocalProcesses, LogQuery, Manifest, Phase, RunStatus, Submitted, TokenRequest, Tracked,
    Tracker,
};

/// Longest time that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The limit of descriptors that the server of all tests is started with.
const SOFT_LIMIT: u64 = 500;
/// Value of every variable that no run may see.
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
    // As a server does, from a limit that it can tell from the others.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(SOFT_LIMIT), maximum }).unwrap();
    raise_limit();
    let wanted = |name: &str| {
        let mut words = arguments.iter().filter(|a| !a.starts_with('-')).peekable();
        words.peek().is_none() || words.any(|word| name.contains(word.as_str()))
    };
    let running: Vec<_> = TESTS.iter().filter(|(n, _)| wanted(n)).map(|(n, t)| (n, std::thread::spawn(*t))).collect();
    let failed =
        running.into_iter().filter_map(|(name, test)| test.join().is_err().then_some(name)).collect::<Vec<_>>();
    for name in &failed {
        println!("test {name} ... FAILED");
    }
    println!("test result: {} failed of {}", failed.len(), TESTS.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const TESTS: &[(&str, fn())] = &[
    ("a_run_is_carried_out_and_its_log_is_followed", || run(a_run_is_carried_out_and_its_log_is_followed)),
    ("a_failed_run_is_tried_again_with_a_token_of_its_own", || {
        run(a_failed_run_is_tried_again_with_a_token_of_its_own)
    }),
    ("a_deadline_ends_a_run_and_what_it_started", || run(a_deadline_ends_a_run_and_what_it_started)),
    ("a_cancelled_run_ends", || run(a_cancelled_run_ends)),
    ("a_removed_run_is_gone_and_its_name_free", || run(a_removed_run_is_gone_and_its_name_free)),
    ("a_run_whose_supervisor_is_killed_is_started_again", || run(a_run_whose_supervisor_is_killed_is_started_again)),
    ("a_panic_about_one_run_is_not_the_end_of_the_others", || run(a_panic_about_one_run_is_not_the_end_of_the_others)),
    ("a_server_that_is_killed_finds_its_runs_again", || run(a_server_that_is_killed_finds_its_runs_again)),
    ("a_run_does_not_inherit_the_raised_limit_of_descriptors", || {
        run(a_run_does_not_inherit_the_raised_limit_of_descriptors)
    }),
    ("a_run_sees_nothing_of_the_servers_environment", || run(a_run_sees_nothing_of_the_servers_environment)),
];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn run<F: Future<Output = ()>>(test: fn(Place) -> F) {
    let place = std::env::temp_dir().join(format!("slipway-exec-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&place).unwrap();
    runtime().block_on(async { tokio::time::timeout(LIMIT, test(Place(place))).await.unwrap() });
}

/// A folder that is deleted at the end.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // A supervisor may still be writing into it; it is a temporary one.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Remembers what was tracked, and panics about runs of the name `bad`.
#[derive(Default)]
struct Fake {
    begun: Mutex<HashSet<String>>,
    ended: Mutex<Vec<(String, Phase)>>,
    minted: Mutex<Vec<TokenRequest>>,
}

impl Tracker for Fake {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            assert!(run.name != "bad", "this panic is part of the test");
            self.begun.lock().unwrap().insert(run.run_id);
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

fn open(place: &Path) -> (LocalProcesses, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let minting = Arc::clone(&fake);
    let settings = Settings {
        folder: place.join("runs"),
        secrets: place.join("secrets"),
        program: std::env::current_exe().unwrap(),
        variables: vec![("MLFLOW_TRACKING_URI".into(), "http://127.0.0.1:1".into())],
        environment: vec!["DATASETS".into()],
        mint: Some(Arc::new(move |asked: &TokenRequest| {
            minting.minted.lock().unwrap().push(asked.clone());
            format!("token-of-{}-{}", asked.run, asked.attempt)
        })),
        room: Room { processors: 100.0, bytes: 0.0, devices: Vec::new() },
        accelerators: Arc::new(NoGpus),
        tracker: Arc::clone(&fake) as Arc<dyn Tracker>,
    };
    (LocalProcesses::open(settings).unwrap(), fake)
}

fn script(name: &str, text: &str) -> Manifest {
    let mut run = Manifest::of(name, ["sh", "-c", text]);
    run.spec.termination_grace_period_seconds = Some(1);
    run
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT / 2, "{what}: not yet");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn reaches(runs: &LocalProcesses, name: &str, phase: Phase) -> Submitted {
    let start = Instant::now();
    loop {
        let run = runs.get(NAMESPACE, name).await.unwrap();
        if run.status.phase == phase && (!phase.is_final() || run.status.attributed) {
            return run;
        }
        assert!(start.elapsed() < LIMIT / 2 && !run.status.attributed, "{name} is not {phase:?}: {:?}", run.status);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn log(runs: &LocalProcesses, name: &str, query: LogQuery) -> String {
    let chunks: Vec<_> = runs.logs(NAMESPACE, name, query).await.unwrap().try_collect().await.unwrap();
    String::from_utf8(chunks.concat()).unwrap()
}

fn is_alive(pid: &str) -> bool {
    // A process that has ended and that nobody has waited for yet is a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn a_run_is_carried_out_and_its_log_is_followed(place: Place) {
    let (runs, fake) = open(&place.0);
    let go = place.0.join("go");
    let text = format!("echo one; while [ ! -e {} ]; do sleep 0.01; done; echo two >&2; printf three", go.display());
    let run = runs.submit(script("train", &text), Some("mia")).await.unwrap();
    assert_eq!(run.manifest.metadata.annotations["slipway.dev/submitted-by"], "mia");
    let mut stream = runs.logs(NAMESPACE, "train", LogQuery { follow: true, ..LogQuery::default() }).await.unwrap();
    assert_eq!(stream.try_next().await.unwrap().unwrap(), "one\n");
    assert_eq!(reaches(&runs, "train", Phase::Running).await.status.attempts.len(), 1);
    std::fs::write(&go, "").unwrap();
    let rest: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(rest.concat(), b"two\nthree");
    let done = reaches(&runs, "train", Phase::Succeeded).await;
    assert_eq!(done.status.attempts[0].exit_code, Some(0));
    assert_eq!(log(&runs, "train", LogQuery { tail: Some(2), ..LogQuery::default() }).await, "two\nthree");
    assert!(fake.begun.lock().unwrap().contains(&run.status.run_id));
    assert_eq!(*fake.ended.lock().unwrap(), [(run.status.run_id, Phase::Succeeded)]);
    let missing = runs.logs(NAMESPACE, "train", LogQuery { attempt: Some(2), ..LogQuery::default() }).await;
    assert!(matches!(missing.map(|_| ()), Err(ExecError::NotNow(_))));
}

async fn a_run_does_not_inherit_the_raised_limit_of_descriptors(place: Place) {
    let limit = getrlimit(Resource::Nofile);
    assert_eq!(limit.current, limit.maximum, "the server's own is raised");
    let (runs, _) = open(&place.0);
    runs.submit(script("count", "ulimit -Sn"), None).await.unwrap();
    reaches(&runs, "count", Phase::Succeeded).await;
    assert_eq!(log(&runs, "count", LogQuery::default()).await.trim(), SOFT_LIMIT.to_string());
}

async fn a_failed_run_is_tried_again_with_a_token_of_its_own(place: Place) {
    let (runs, fake) = open(&place.0);
    let again = place.0.join("again").display().to_string();
    let text = format!("echo $MLFLOW_TRACKING_TOKEN; [ -e {again} ] || {{ touch {again}; exit 3; }}");
    let mut run = script("flaky", &text);
    run.spec.backoff_limit = 1;
    run.spec.experiment = Some("digits".into());
    run.spec.active_deadline_seconds = Some(100);
    let before = now_ms();
    let run = runs.submit(run, None).await.unwrap();
    let done = reaches(&runs, "flaky", Phase::Succeeded).await;
    let codes: Vec<_> = done.status.attempts.iter().map(|a| a.exit_code).collect();
    assert_eq!((codes, done.status.failures), (vec![Some(3), Some(0)], 1));
    for attempt in [1, 2] {
        let printed = log(&runs, "flaky", LogQuery { attempt: Some(attempt), ..LogQuery::default() }).await;
        assert_eq!(printed, format!("token-of-flaky-{attempt}\n"));
    }
    let minted = fake.minted.lock().unwrap();
    assert_eq!(minted.iter().map(|m| m.attempt).collect::<Vec<_>>(), [1, 2]);
    for asked in minted.iter() {
        assert_eq!((asked.namespace.as_str(), &asked.run_id), (NAMESPACE, &run.status.run_id));
        assert_eq!(asked.experiment.as_deref(), Some("digits"));
        let lifetime = asked.expires_at - before;
        assert!((100_000..1_000_000).contains(&lifetime), "it ends soon after the deadline: {lifetime} ms");
    }
}

async fn a_deadline_ends_a_run_and_what_it_started(place: Place) {
    let (runs, _) = open(&place.0);
    let pids = place.0.join("pids");
    let text = format!(
        "trap '' TERM; sleep 1000 & echo $! > {0}; echo $$ >> {0}; while :; do sleep 0.1; done",
        pids.display()
    );
    let mut run = script("late", &text);
    run.spec.active_deadline_seconds = Some(1);
    runs.submit(run, None).await.unwrap();
    let done = reaches(&runs, "late", Phase::Failed).await;
    assert_eq!(done.status.reason, "DeadlineExceeded");
    let pids = std::fs::read_to_string(&pids).unwrap();
    until("its processes are gone", || !pids.lines().any(is_alive)).await;
}

async fn a_cancelled_run_ends(place: Place) {
    let (runs, _) = open(&place.0);
    runs.submit(script("long", "echo $$; exec sleep 1000"), None).await.unwrap();
    reaches(&runs, "long", Phase::Running).await;
    let cancelled = runs.cancel(NAMESPACE, "long").await.unwrap();
    assert!(cancelled.manifest.spec.cancel);
    reaches(&runs, "long", Phase::Cancelled).await;
    let pid = log(&runs, "long", LogQuery::default()).await;
    until("its process is gone", || !is_alive(&pid)).await;
    runs.cancel(NAMESPACE, "long").await.unwrap();
    let missing = runs.cancel(NAMESPACE, "nobody").await.unwrap_err();
    assert!(matches!(missing, ExecError::NotFound(_)), "{missing}");
}

async fn a_removed_run_is_gone_and_its_name_free(place: Place) {
    let (runs, _) = open(&place.0);
    runs.submit(script("long", "exec sleep 1000"), None).await.unwrap();
    reaches(&runs, "long", Phase::Running).await;
    runs.remove(NAMESPACE, "long").await.unwrap();
    assert!(matches!(runs.get(NAMESPACE, "long").await.unwrap_err(), ExecError::NotFound(_)));
    assert_eq!(std::fs::read_dir(place.0.join("runs")).unwrap().count(), 0);
    runs.submit(script("long", "true"), None).await.unwrap();
    reaches(&runs, "long", Phase::Succeeded).await;
    // One that has ended is removed as well, and several may wait for the same.
    let (one, other) = tokio::join!(runs.remove(NAMESPACE, "long"), runs.remove(NAMESPACE, "long"));
    assert!(one.is_ok() && matches!(other, Ok(()) | Err(ExecError::NotFound(_))), "{one:?} {other:?}");
}

async fn a_run_whose_supervisor_is_killed_is_started_again(place: Place) {
    let (runs, _) = open(&place.0);
    let go = place.0.join("go");
    let text = format!("echo $$; while [ ! -e {} ]; do sleep 0.01; done", go.display());
    runs.submit(script("lost", &text), None).await.unwrap();
    reaches(&runs, "lost", Phase::Running).await;
    let file = std::fs::read(place.0.join("runs/lost/1/process.json")).unwrap();
    let process: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let supervisor = i32::try_from(process["supervisor"].as_i64().unwrap()).unwrap();
    let supervisor = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    let second = place.0.join("runs/lost/2");
    until("it is started again", || second.exists()).await;
    let first = log(&runs, "lost", LogQuery { attempt: Some(1), ..LogQuery::default() }).await;
    until("what was left of the first attempt is ended", || !is_alive(&first)).await;
    std::fs::write(&go, "").unwrap();
    let done = reaches(&runs, "lost", Phase::Succeeded).await;
    assert_eq!((done.status.disruptions, done.status.failures), (1, 0));
    assert_eq!(done.status.attempts[0].reason, "Lost");
}

async fn a_panic_about_one_run_is_not_the_end_of_the_others(place: Place) {
    let (runs, _) = open(&place.0);
    runs.submit(script("bad", "true"), None).await.unwrap();
    runs.submit(script("good", "true"), None).await.unwrap();
    reaches(&runs, "good", Phase::Succeeded).await;
    let bad = runs.get(NAMESPACE, "bad").await.unwrap();
    assert_eq!(bad.status.phase, Phase::Pending);
    assert!(bad.status.message.contains("panicked"), "{:?}", bad.status);
}

/// A server: submits every manifest of a folder that it does not know yet, and lives until it is killed.
async fn serve(place: &Path) -> ! {
    let (runs, _) = open(place);
    for file in std::fs::read_dir(place).unwrap().flatten() {
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

/// A server as a process, killed at the end.
struct Server(Child);

impl Server {
    fn start(place: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("serve").arg(place).stdin(Stdio::null());
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
        // SIGKILL; one that has ended already has failed its test elsewhere.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn a_server_that_is_killed_finds_its_runs_again(place: Place) {
    let (marks, go) = (place.0.join("marks"), place.0.join("go"));
    let (mark, wait) = (marks.display(), go.display());
    let text = format!("echo begun >> {mark}; while [ ! -e {wait} ]; do sleep 0.01; done; echo end; exit 4");
    std::fs::write(place.0.join("train.json"), serde_json::to_vec(&script("train", &text)).unwrap()).unwrap();
    let server = Server::start(&place.0);
    until("its program runs", || marks.exists()).await;
    drop(server);
    // The second one is killed as soon as it knows that the program runs, and the third is the one that sees the end.
    let server = Server::start(&place.0);
    let file = place.0.join("runs/train/run.json");
    until("it is found", || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"Running\""))).await;
    drop(server);
    let (runs, fake) = open(&place.0);
    let found = reaches(&runs, "train", Phase::Running).await;
    assert_eq!(found.status.attempts.len(), 1);
    std::fs::write(&go, "").unwrap();
    let done = reaches(&runs, "train", Phase::Failed).await;
    assert_eq!(done.status.attempts.iter().map(|a| a.exit_code).collect::<Vec<_>>(), [Some(4)]);
    assert_eq!(std::fs::read_to_string(&marks).unwrap(), "begun\n", "it was started once");
    assert_eq!(log(&runs, "train", LogQuery::default()).await, "end\n");
    assert_eq!(*fake.ended.lock().unwrap(), [(done.status.run_id, Phase::Failed)]);
    assert!(fake.minted.lock().unwrap().is_empty(), "the program has its token already");
}

async fn a_run_sees_nothing_of_the_servers_environment(place: Place) {
    let mut run = script("curious", "env; tr '\\0' '\\n' < /proc/$PPID/environ; echo end");
    run.spec.env.push(slipway_exec::manifest::EnvVar {
        name: "LR".into(),
        value: Some("0.1".into()),
        value_from: None,
    });
    std::fs::write(place.0.join("curious.json"), serde_json::to_vec(&run).unwrap()).unwrap();
    let _server = Server::start(&place.0);
    let folder = place.0.join("runs/curious");
    until("it has ended", || folder.join("1/end.json").exists()).await;
    let printed = std::fs::read_to_string(folder.join("1/log")).unwrap();
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
    // The token is nowhere but in the environment; the program printed it into its log itself.
    for file in
        [folder.join("run.json"), folder.join("1/task.json"), folder.join("1/process.json"), folder.join("1/end.json")]
    {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("token-of"), "{} has the token", file.display());
    }
}
