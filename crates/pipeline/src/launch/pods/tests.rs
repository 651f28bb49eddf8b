//! The launcher with an executor without pods, and the program of a pod against the launcher's routes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use axum::http::StatusCode;
use slipway_access::{Caller, Guard, HostNames, Permission, Policy, RunIdentity, Unavailable};
use slipway_exec::status::Attempt;
use slipway_exec::{ExecFuture, RunStatus};
use slipway_store::sql::params;

use super::*;
use crate::MIGRATION;
use crate::ir::ml_pipelines::component_outputs_spec::{ArtifactSpec, ParameterSpec};
use crate::ir::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use crate::ir::ml_pipelines::pipeline_deployment_config::{ExecutorSpec, PipelineContainerSpec};
use crate::ir::ml_pipelines::{ComponentOutputsSpec, ComponentSpec};
use crate::model::{Inputs, RunInfo, TaskPath};
use crate::step::{Server, execute};

/// Runs without pods, whose ends the tests decide.
#[derive(Debug, Default)]
struct Runs {
    runs: Mutex<HashMap<String, Submitted>>,
    submissions: AtomicUsize,
    is_away: AtomicBool,
}

impl Runs {
    fn find(&self, name: &str) -> Result<Submitted, ExecError> {
        if self.is_away.load(Ordering::Acquire) {
            return Err(ExecError::Unreachable("the API server is away".into()));
        }
        self.runs.lock().get(name).cloned().ok_or_else(|| ExecError::NotFound(name.into()))
    }

    fn end(&self, phase: Phase, message: &str, exit_code: Option<i32>) {
        for run in self.runs.lock().values_mut() {
            run.status = RunStatus { phase, message: message.into(), ..RunStatus::default() };
            run.status.attempts = vec![Attempt { number: 1, exit_code, ..Attempt::default() }];
        }
    }
}

impl Executor for Runs {
    fn submit<'a>(&'a self, run: Manifest, _: Option<&'a str>) -> ExecFuture<'a, Submitted> {
        Box::pin(async move {
            let name = run.metadata.name.clone();
            match self.find(&name) {
                Ok(_) => return Err(ExecError::Exists(name)),
                Err(ExecError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
            let run = Submitted { manifest: run, status: RunStatus::default() };
            self.submissions.fetch_add(1, Ordering::AcqRel);
            self.runs.lock().insert(name, run.clone());
            Ok(run)
        })
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> ExecFuture<'a, Vec<Submitted>> {
        Box::pin(async move { Ok(self.runs.lock().values().cloned().collect()) })
    }

    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(async move { self.find(name) })
    }

    fn cancel<'a>(&'a self, _: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(async move {
            let run = self.find(name)?;
            self.end(Phase::Cancelled, "", None);
            Ok(run)
        })
    }

    fn remove<'a>(&'a self, _: &'a str, name: &'a str) -> ExecFuture<'a, ()> {
        Box::pin(async move {
            self.find(name)?;
            self.runs.lock().remove(name);
            Ok(())
        })
    }

    fn logs<'a>(&'a self, _: &'a str, _: &'a str, _: LogQuery) -> ExecFuture<'a, LogStream> {
        Box::pin(async { Ok(futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"the last line\n"))]).boxed()) })
    }
}

impl Claims for Runs {
    fn create(&self, claim: Value) -> BoxFuture<'_, Result<(), ExecError>> {
        let run = Manifest::new(claim["metadata"]["name"].as_str().unwrap_or_default(), ["claim"]);
        self.runs.lock().insert(run.metadata.name.clone(), Submitted { manifest: run, status: RunStatus::default() });
        async { Ok(()) }.boxed()
    }

    fn delete<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), ExecError>> {
        self.runs.lock().remove(name);
        async { Ok(()) }.boxed()
    }
}

/// Takes every token as the name of a run.
struct Names;

impl Policy for Names {
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
        let run = |name: &str| RunIdentity {
            namespace: "team".into(),
            name: name.into(),
            run_id: String::new(),
            attempt: 1,
            isolated: true,
        };
        let caller = token.map(|token| if token == "owner" { Caller::Owner } else { Caller::Run(run(token)) });
        async move { Ok(caller) }.boxed()
    }

    fn allows<'a>(&'a self, _: &'a Caller, _: &'a Permission) -> BoxFuture<'a, Result<bool, Unavailable>> {
        async { Ok(false) }.boxed()
    }
}

struct Cluster {
    folder: tempfile::TempDir,
    runs: Arc<Runs>,
    launcher: PodLauncher,
    url: String,
}

impl Cluster {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runs = Arc::new(Runs::default());
        let launcher = Self::launcher(folder.path(), &runs);
        let guard = Guard::new(Arc::new(Names), "team", HostNames::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = guard.protect(launcher.routes());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { folder, runs, launcher, url }
    }

    fn launcher(folder: &Path, runs: &Arc<Runs>) -> PodLauncher {
        let database = Database::open(&folder.join("db"), &[MIGRATION]).unwrap();
        let objects = Objects::open(folder.join("objects")).unwrap();
        let settings =
            Settings { image: "slipway:1".into(), pull_policy: "Never".into(), program: vec!["slipway".into()] };
        let executor: Arc<dyn Executor> = Arc::<Runs>::clone(runs);
        PodLauncher::new(executor, Arc::<Runs>::clone(runs), database, objects, settings)
    }

    /// Waits until the run of an attempt is submitted, and lets its files be in the folder of this test.
    async fn submitted(&self, launch: &Launch) -> PathBuf {
        let (namespace, name) = key(&launch.into());
        while self.runs.find(&name).is_err() {
            tokio::task::yield_now().await;
        }
        let pod = self.folder.path().join(&name);
        let to = pod.display().to_string();
        let change = move |c: &Connection| {
            let row = steps::find(c, &namespace, &name)?.unwrap();
            let step = row.step.replace(FOLDER, &to);
            c.execute("UPDATE pipeline_steps SET step = ?1 WHERE name = ?2", params![step, name])?;
            Ok::<_, Error>(())
        };
        self.launcher.inner.database.write(change).await.unwrap();
        pod
    }

    /// Executes the program of a pod.
    async fn pod(&self, launch: &Launch) -> Result<i32, String> {
        self.submitted(launch).await;
        let token = key(&launch.into()).1;
        execute(&Server { url: self.url.clone(), token, authorities: None }).await
    }
}

/// A launch of a shell script with an output parameter `p` and an output artifact `a`.
fn launch(name: &str, script: &str, inputs: Inputs) -> Launch {
    let words = ["sh", "-ec", script, "{{$.outputs.parameters['p'].output_file}}", "{{$.outputs.artifacts['a'].path}}"];
    let command = words.map(str::to_owned).into_iter().chain(
        inputs.artifacts.keys().map(|name| format!("{{{{$.inputs.artifacts['{name}'].path}}}}")).collect::<Vec<_>>(),
    );
    let container = PipelineContainerSpec {
        image: "busybox".into(),
        command: command.collect(),
        ..PipelineContainerSpec::default()
    };
    let text = ParameterSpec { parameter_type: 3, ..ParameterSpec::default() };
    let outputs = ComponentOutputsSpec {
        parameters: [("p".to_owned(), text)].into(),
        artifacts: [("a".to_owned(), ArtifactSpec::default())].into(),
    };
    Launch {
        run: Arc::new(RunInfo { run_id: "run".into(), namespace: "team".into(), ..RunInfo::default() }),
        path: TaskPath(name.into()),
        task_name: name.into(),
        attempt: 1,
        component: Arc::new(ComponentSpec { output_definitions: Some(outputs), ..ComponentSpec::default() }),
        executor: Arc::new(ExecutorSpec { spec: Some(Spec::Container(container)) }),
        platform: None,
        inputs,
        platform_inputs: BTreeMap::new(),
    }
}

fn http() -> reqwest::Client {
    let tls = slipway_core::tls::client(slipway_core::tls::Trust::System).unwrap();
    reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap()
}

const MAKE: &str = "echo -n value > \"$0\"; mkdir -p \"$1/sub\"; echo one > \"$1/sub/x\"; echo two > \"$1/y\"";

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_pod_are_the_inputs_of_the_next_one() {
    let cluster = Cluster::new().await;
    let make = launch("make", MAKE, Inputs::default());
    let made = tokio::spawn(cluster.launcher.execute(make.clone()));
    assert_eq!(cluster.pod(&make).await, Ok(0));
    let Outcome::Succeeded(outputs) = made.await.unwrap() else { panic!() };
    assert_eq!(outputs.parameters["p"], "value");
    let artifact = outputs.artifacts["a"][0].clone();
    assert!(artifact.uri.starts_with("slipway-pipelines:/team/run/") && artifact.digest.is_some(), "{artifact:?}");
    assert!(cluster.launcher.has(outputs.clone()).await);
    assert!(cluster.launcher.read("team".into(), artifact.clone()).await.is_err(), "it is a folder");

    let inputs =
        |artifact: Artifact| Inputs { artifacts: [("i".to_owned(), vec![artifact])].into(), ..Inputs::default() };
    let script = "cat \"$2/sub/x\" \"$2/y\" > \"$0\"; cat \"$0\" > \"$1\"";
    let read = launch("read", script, inputs(artifact.clone()));
    let ended = tokio::spawn(cluster.launcher.execute(read.clone()));
    assert_eq!(cluster.pod(&read).await, Ok(0));
    let Outcome::Succeeded(outputs) = ended.await.unwrap() else { panic!() };
    assert_eq!(outputs.parameters["p"], "one\ntwo\n");
    let file = outputs.artifacts["a"][0].clone();
    let pieces = cluster.launcher.read("team".into(), file.clone()).await.unwrap();
    let pieces: Vec<bytes::Bytes> = pieces.map(Result::unwrap).collect().await;
    assert_eq!(pieces.concat(), b"one\ntwo\n");
    assert!(cluster.launcher.read("other".into(), file).await.is_err(), "of another tenant");

    // A changed digest fails the step before its program starts.
    let changed = Artifact { digest: Some("sha256:0".into()), ..artifact.clone() };
    let wrong = launch("wrong", script, inputs(changed));
    let ended = tokio::spawn(cluster.launcher.execute(wrong.clone()));
    assert!(cluster.pod(&wrong).await.unwrap_err().contains("its digest is sha256:"));
    ended.abort();
    let foreign = Artifact { uri: artifact.uri.replace("/team/", "/other/"), ..artifact };
    let Outcome::Failed(failure) = cluster.launcher.execute(launch("foreign", script, inputs(foreign))).await else {
        panic!()
    };
    assert!(
        failure.is_permanent && failure.message.contains("not among the artifacts of this namespace"),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_final_and_found_after_a_restart() {
    let cluster = Cluster::new().await;
    let make = launch("make", MAKE, Inputs::default());
    let made = tokio::spawn(cluster.launcher.execute(make.clone()));
    cluster.submitted(&make).await;
    // The control plane stops while the pod runs, and the pod is executed a second time.
    made.abort();
    assert_eq!(cluster.pod(&make).await, Ok(0));
    assert_eq!(
        execute(&Server { url: cluster.url.clone(), token: key(&(&make).into()).1, authorities: None }).await,
        Ok(0)
    );
    cluster.runs.end(Phase::Failed, "evicted later", None);
    let next = Cluster::launcher(cluster.folder.path(), &cluster.runs);
    assert!(matches!(next.execute(make.clone()).await, Outcome::Succeeded(_)));
    assert_eq!(cluster.runs.submissions.load(Ordering::Acquire), 1);
    next.forget("team".into(), "run".into()).await.unwrap();
    assert!(cluster.runs.runs.lock().is_empty());
    assert!(next.inner.delivered(&key(&(&make).into())).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_the_reason_and_the_end_of_the_log() {
    let cluster = Cluster::new().await;
    let failing = launch("failing", "exit 3", Inputs::default());
    let ended = tokio::spawn(cluster.launcher.execute(failing.clone()));
    assert_eq!(cluster.pod(&failing).await, Ok(3));
    assert!(!ended.is_finished(), "the executor decides whether the failure is one of the program");
    cluster.runs.end(Phase::Failed, "the program exited with code 3", Some(3));
    let Outcome::Failed(failure) = ended.await.unwrap() else { panic!() };
    assert_eq!(failure.message, "the program exited with code 3:\nthe last line");
    assert_eq!((failure.exit_code, failure.is_permanent), (Some(3), false));

    let silent = launch("silent", "true", Inputs::default());
    let ended = tokio::spawn(cluster.launcher.execute(silent.clone()));
    assert_eq!(cluster.pod(&silent).await, Ok(1), "a program without its outputs has failed");
    cluster.runs.end(Phase::Failed, "", Some(1));
    let Outcome::Failed(failure) = ended.await.unwrap() else { panic!() };
    assert!(failure.message.contains("the output parameter 'p'"), "{failure:?}");

    let killed = launch("killed", "true", Inputs::default());
    let ended = tokio::spawn(cluster.launcher.execute(killed.clone()));
    cluster.submitted(&killed).await;
    cluster.runs.end(Phase::Failed, "the program exceeded its memory limit", Some(137));
    let Outcome::Failed(failure) = ended.await.unwrap() else { panic!() };
    assert!(failure.message.starts_with("the program exceeded its memory limit"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_attempt_is_cancelled_even_while_the_cluster_is_away() {
    let cluster = Cluster::new().await;
    let make = launch("make", MAKE, Inputs::default());
    cluster.runs.is_away.store(true, Ordering::Release);
    let ended = tokio::spawn(cluster.launcher.execute(make.clone()));
    cluster.launcher.stop((&make).into()).await;
    cluster.runs.is_away.store(false, Ordering::Release);
    assert_eq!(ended.await.unwrap(), Outcome::Canceled);
    let other = launch("other", MAKE, Inputs::default());
    let ended = tokio::spawn(cluster.launcher.execute(other.clone()));
    cluster.submitted(&other).await;
    cluster.launcher.stop((&other).into()).await;
    assert_eq!(ended.await.unwrap(), Outcome::Canceled);
    let name = key(&(&other).into()).1;
    assert_eq!(cluster.runs.find(&name).unwrap().status.phase, Phase::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_serve_only_the_step_of_the_token() {
    let cluster = Cluster::new().await;
    let make = launch("make", MAKE, Inputs::default());
    let ended = tokio::spawn(cluster.launcher.execute(make.clone()));
    cluster.submitted(&make).await;
    let name = key(&(&make).into()).1;
    let get = async |path: &str, token: &str| {
        let url = format!("{}/api/v1/pipelines/step{path}", cluster.url);
        http().get(url).bearer_auth(token).send().await.unwrap().status()
    };
    assert_eq!(get("", &name).await, StatusCode::OK);
    assert_eq!(get("", "another").await, StatusCode::NOT_FOUND);
    assert_eq!(get("", "owner").await, StatusCode::FORBIDDEN);
    assert_eq!(get("/inputs/none/0", &name).await, StatusCode::NOT_FOUND);
    let put = async |path: &str| {
        let url = format!("{}/api/v1/pipelines/step/outputs/{path}", cluster.url);
        http().put(url).bearer_auth(&name).body("x").send().await.unwrap().status()
    };
    assert_eq!(put("a/0/file").await, StatusCode::OK);
    assert_eq!(put("b/0/file").await, StatusCode::NOT_FOUND);
    assert_eq!(put("a/0/file?path=../../x").await, StatusCode::BAD_REQUEST);
    ended.abort();
}
