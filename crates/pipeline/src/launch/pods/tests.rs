//! The launcher with an executor without pods, and the program of a pod against the launcher's routes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use axum::http::StatusCode;
use slipway_access::{Caller, Guard, HostNames, Permission, Policy, RunIdentity, Unavailable};
use slipway_exec::status::Attempt;
use slipway_exec::{ExecFuture, RunStatus};
use slipway_store::sql::params;

use super::pool::{Ended, Next, Report};
use super::*;
use crate::MIGRATION;
use crate::ir::ml_pipelines::component_outputs_spec::{ArtifactSpec, ParameterSpec};
use crate::ir::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use crate::ir::ml_pipelines::pipeline_deployment_config::{ExecutorSpec, PipelineContainerSpec};
use crate::ir::ml_pipelines::{ComponentOutputsSpec, ComponentSpec};
use crate::model::{Inputs, TaskPath};
use crate::proto::kfp_kubernetes::{KubernetesExecutorConfig, PodMetadata};
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
        assert_eq!(claim["metadata"]["labels"][CLAIM_LABEL], "true", "only claims with the label can be deleted");
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
        let settings = Settings {
            image: "slipway:1".into(),
            pull_policy: "Never".into(),
            pull_secrets: vec!["registry".into()],
            program: vec!["slipway".into()],
        };
        let executor: Arc<dyn Executor> = Arc::<Runs>::clone(runs);
        // As `Names` reads them.
        let mint: Mint = Arc::new(|request| request.run.clone());
        PodLauncher::new(executor, Arc::<Runs>::clone(runs), database, objects, settings, mint)
    }

    /// Waits until the run of an attempt is submitted, and lets its files be in the folder of this test.
    async fn submitted(&self, launch: &Launch) -> PathBuf {
        let (_, name) = key(&launch.into());
        while self.runs.find(&name).is_err() {
            tokio::task::yield_now().await;
        }
        self.recorded(launch).await
    }

    /// Waits until an attempt is recorded, and lets its files be in the folder of this test.
    async fn recorded(&self, launch: &Launch) -> PathBuf {
        let (namespace, name) = key(&launch.into());
        let find = async || {
            let (namespace, name) = (namespace.clone(), name.clone());
            self.launcher.inner.database.read(move |c| steps::find(c, &namespace, &name)).await.unwrap()
        };
        while find().await.is_none() {
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
async fn inputs_in_buckets_need_credentials_of_the_pod() {
    let cluster = Cluster::new().await;
    let imported = |uri: &str| {
        let artifact = Artifact { uri: uri.into(), ..Artifact::default() };
        Inputs { artifacts: [("i".to_owned(), vec![artifact])].into(), ..Inputs::default() }
    };
    let read = launch("read", "true", imported("az://models/a/b.bin?region=x"));
    let ended = tokio::spawn(cluster.launcher.execute(read.clone()));
    let refused = cluster.pod(&read).await.unwrap_err();
    assert!(refused.contains("variables AZURE_*") && refused.contains("slipway-buckets"), "{refused}");
    let manifest = cluster.runs.find(&key(&(&read).into()).1).unwrap().manifest;
    assert_eq!(
        manifest.spec.env_from,
        [serde_json::json!({ "secretRef": { "name": "slipway-buckets", "optional": true } })]
    );
    assert_eq!(manifest.spec.image_pull_secrets, [serde_json::json!({ "name": "registry" })]);
    assert!(manifest.spec.command.iter().all(|word| !word.contains("az://")));
    ended.abort();

    // A web server is reached from the pod, so it needs no credentials.
    let served = axum::Router::new().route("/data.csv", axum::routing::get(async || "1,2\n"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/data.csv?x=1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, served).await });
    let copy = launch("copy", "cat \"$2\" > \"$0\"; cp \"$2\" \"$1\"", imported(&uri));
    let ended = tokio::spawn(cluster.launcher.execute(copy.clone()));
    assert_eq!(cluster.pod(&copy).await, Ok(0));
    let Outcome::Succeeded(outputs) = ended.await.unwrap() else { panic!() };
    assert_eq!(outputs.parameters["p"], "1,2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn workspace_lives_from_its_first_task_to_the_success_of_the_run() {
    let cluster = Cluster::new().await;
    let mut task = launch("task", MAKE, Inputs::default());
    let workspace = serde_json::json!({ "accessModes": ["ReadWriteOnce"] });
    task.inputs.parameters.insert("folder".into(), "/kfp-workspace/data".into());
    let Outcome::Failed(failure) = cluster.launcher.execute(task.clone()).await else { panic!() };
    assert!(failure.is_permanent && failure.message.contains("dsl.WorkspaceConfig"), "{failure:?}");

    task.run = Arc::new(RunInfo { workspace: Some(workspace), ..RunInfo::clone(&task.run) });
    let ended = tokio::spawn(cluster.launcher.execute(task.clone()));
    cluster.submitted(&task).await;
    let claim = "run-kfp-workspace";
    assert!(cluster.runs.find(claim).is_ok(), "the claim exists before the pod");
    let spec = cluster.runs.find(&key(&(&task).into()).1).unwrap().manifest.spec;
    assert!(spec.volumes.iter().any(|volume| volume["persistentVolumeClaim"]["claimName"] == claim), "{spec:?}");
    ended.abort();

    // What failed or was cancelled can be retried with the content of the workspace, until the run is deleted.
    cluster.launcher.release(Arc::clone(&task.run)).await;
    assert!(cluster.runs.find(claim).is_err(), "a run that succeeded needs it no more");
    let ended = tokio::spawn(cluster.launcher.execute(launch_again(&task)));
    cluster.submitted(&launch_again(&task)).await;
    ended.abort();
    cluster.launcher.forget("team".into(), "run".into()).await.unwrap();
    assert!(cluster.runs.runs.lock().is_empty());
}

fn launch_again(launch: &Launch) -> Launch {
    Launch { attempt: launch.attempt + 1, ..launch.clone() }
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

/// A launch in a pool of workers.
fn pooled(name: &str, workers: &str) -> Launch {
    let annotations = [("slipway.dev/workers".to_owned(), workers.to_owned())].into();
    let metadata = PodMetadata { annotations, ..PodMetadata::default() };
    let config = KubernetesExecutorConfig { pod_metadata: Some(metadata), ..KubernetesExecutorConfig::default() };
    Launch { platform: Some(Arc::new(config)), ..launch(name, MAKE, Inputs::default()) }
}

impl Cluster {
    /// Waits until a pool has this many workers, and returns their names.
    async fn workers(&self, count: usize) -> Vec<String> {
        loop {
            let is_worker = |name: &&String| name.starts_with("workers-");
            let names: Vec<String> = self.runs.runs.lock().keys().filter(is_worker).cloned().collect();
            if names.len() >= count {
                assert_eq!(names.len(), count);
                return names;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Asks for a step as a worker does.
    async fn next(&self, worker: &str, report: &Report) -> Next {
        let url = format!("{}/api/v1/pipelines/worker/next", self.url);
        let request = http().post(url).bearer_auth(worker).header("content-type", "application/json");
        let response = request.body(serde_json::to_vec(report).unwrap()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_executes_the_steps_of_its_pool_one_after_the_other() {
    let cluster = Cluster::new().await;
    let launches = ["a", "b"].map(|name| pooled(name, "1"));
    let ended = launches.clone().map(|launch| tokio::spawn(cluster.launcher.execute(launch)));
    for launch in &launches {
        cluster.recorded(launch).await;
    }
    let workers = cluster.workers(1).await;
    let mut report = Report::default();
    for _ in &launches {
        let Next::Execute { step, token, .. } = cluster.next(&workers[0], &report).await else { panic!() };
        // A response that was lost is given again.
        let repeated = cluster.next(&workers[0], &Report::default()).await;
        assert!(matches!(repeated, Next::Execute { step: again, .. } if again == step));
        let server = Server { url: cluster.url.clone(), token, authorities: None };
        assert_eq!(execute(&server).await, Ok(0));
        report = Report { ended: Some(Ended { step, code: 0 }), idle_seconds: 0 };
    }
    for outcome in ended {
        let Outcome::Succeeded(outputs) = outcome.await.unwrap() else { panic!() };
        assert_eq!(outputs.parameters["p"], "value");
        assert!(outputs.artifacts["a"][0].uri.contains(&format!("/{}.1/", workers[0])), "{outputs:?}");
    }
    assert_eq!(cluster.runs.submissions.load(Ordering::Acquire), 1, "two steps, one pod");
    let report = Report { ended: None, idle_seconds: 3600 };
    assert!(matches!(cluster.next(&workers[0], &report).await, Next::End));
    for foreign in ["train", "workers-1"] {
        let url = format!("{}/api/v1/pipelines/worker/next", cluster.url);
        let request = http()
            .post(url)
            .bearer_auth(foreign)
            .header("content-type", "application/json")
            .body("{\"idle_seconds\":0}");
        assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN, "{foreign}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn step_of_a_lost_worker_is_given_to_another_one() {
    let cluster = Cluster::new().await;
    let launch = pooled("a", "2");
    let ended = tokio::spawn(cluster.launcher.execute(launch.clone()));
    cluster.recorded(&launch).await;
    let workers = cluster.workers(1).await;
    let Next::Execute { token, .. } = cluster.next(&workers[0], &Report::default()).await else { panic!() };
    cluster.runs.runs.lock().clear();
    let active = cluster.launcher.inner.active(&key(&(&launch).into())).unwrap();
    active.changed.notify_one();
    let others = cluster.workers(1).await;
    assert_ne!(workers, others);
    // The lost worker goes on, and cannot deliver.
    let lost = Server { url: cluster.url.clone(), token, authorities: None };
    assert!(execute(&lost).await.unwrap_err().contains("not executed by this worker any more"));
    let Next::Execute { token, .. } = cluster.next(&others[0], &Report::default()).await else { panic!() };
    assert_eq!(execute(&Server { token, ..lost }).await, Ok(0));
    assert!(matches!(ended.await.unwrap(), Outcome::Succeeded(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_report_failures_and_stop_with_their_step() {
    let cluster = Cluster::new().await;
    // The process of a step ends without an outcome.
    let killed = pooled("killed", "1");
    let ended = tokio::spawn(cluster.launcher.execute(killed.clone()));
    let workers = cluster.workers(1).await;
    let Next::Execute { step, .. } = cluster.next(&workers[0], &Report::default()).await else { panic!() };
    let report = Report { ended: Some(Ended { step, code: 137 }), idle_seconds: 3600 };
    assert!(matches!(cluster.next(&workers[0], &report).await, Next::End));
    let Outcome::Failed(failure) = ended.await.unwrap() else { panic!() };
    assert!(
        failure.message.starts_with("the step ended with code 137") && failure.exit_code == Some(137),
        "{failure:?}"
    );

    // A worker that cannot start.
    cluster.runs.runs.lock().clear();
    let ended = tokio::spawn(cluster.launcher.execute(pooled("none", "1")));
    cluster.workers(1).await;
    cluster.runs.end(Phase::Failed, "the image does not exist", None);
    let Outcome::Failed(failure) = ended.await.unwrap() else { panic!() };
    assert!(failure.message.contains("the image does not exist"), "{failure:?}");

    // A step that is stopped while a worker executes it.
    cluster.runs.runs.lock().clear();
    let stopped = pooled("stopped", "1");
    let ended = tokio::spawn(cluster.launcher.execute(stopped.clone()));
    let workers = cluster.workers(1).await;
    assert!(matches!(cluster.next(&workers[0], &Report::default()).await, Next::Execute { .. }));
    cluster.launcher.stop((&stopped).into()).await;
    assert_eq!(ended.await.unwrap(), Outcome::Canceled);
    assert_eq!(cluster.runs.find(&workers[0]).unwrap().status.phase, Phase::Cancelled);
    let Outcome::Failed(failure) = cluster.launcher.execute(pooled("many", "1000")).await else { panic!() };
    assert!(failure.is_permanent && failure.message.contains("from 1 to 100"), "{failure:?}");
}
