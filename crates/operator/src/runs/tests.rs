//! Tests of the controller with a mock API server, a simulated kubelet, and a tracking store that records its calls.

mod queues;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_exec::{Executor, LogQuery, Phase, RunStatus, TokenRequest, Tracked, Tracker};
use tokio::task::JoinHandle;

use super::controller::Controller;
use super::{DefaultQueues, Settings};
use crate::mock::{Fault, MockCluster, status};

const NAMESPACE: &str = "team";

/// A tracking store that records its calls. As in the real store, creating a tracked run twice has no further effect.
#[derive(Default)]
struct RecordingTracker {
    /// Ids of created tracked runs.
    begun: Mutex<Vec<String>>,
    /// Ids and statuses of ended tracked runs.
    ended: Mutex<Vec<(String, RunStatus)>>,
    /// The namespace of each call of `end`, in the order of `ended`.
    namespaces: Mutex<Vec<String>>,
    /// Name of a run for which `begin` panics.
    panics_for: Mutex<Option<String>>,
    /// Number of panics so far.
    panic_count: AtomicUsize,
}

impl Tracker for RecordingTracker {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if self.panics_for.lock().as_ref() == Some(&run.name) {
                self.panic_count.fetch_add(1, SeqCst);
                panic!("injected panic");
            }
            let mut begun = self.begun.lock();
            if !begun.contains(&run.run_id) {
                begun.push(run.run_id);
            }
            Ok(())
        })
    }

    fn end<'a>(
        &'a self,
        namespace: &'a str,
        run_id: &'a str,
        status: &'a RunStatus,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.namespaces.lock().push(namespace.to_owned());
            self.ended.lock().push((run_id.to_owned(), status.clone()));
            Ok(())
        })
    }
}

struct TestCluster {
    cluster: Arc<MockCluster>,
    tracker: Arc<RecordingTracker>,
    /// Requests for tokens.
    minted: Arc<Mutex<Vec<TokenRequest>>>,
    ca_file: Option<PathBuf>,
    default_queues: DefaultQueues,
}

impl TestCluster {
    fn new() -> Self {
        Self {
            cluster: MockCluster::new(),
            tracker: Arc::default(),
            minted: Arc::default(),
            ca_file: None,
            default_queues: DefaultQueues::default(),
        }
    }

    fn settings(&self, identity: &str) -> Settings {
        let minted = Arc::clone(&self.minted);
        Settings {
            namespace: "slipway-system".into(),
            identity: identity.into(),
            variables: vec![("MLFLOW_TRACKING_URI".into(), "http://slipway:7070".into())],
            ca_file: self.ca_file.clone(),
            token: Arc::new(move |request| {
                let token = format!("token-{}-{}", request.run, request.attempt);
                minted.lock().push(request);
                Box::pin(async { Ok(token) })
            }),
            retry_delay: Duration::from_millis(20),
            default_queues: self.default_queues.clone(),
        }
    }

    /// Starts a controller. Aborting the task simulates a crash.
    fn controller(&self, identity: &str) -> JoinHandle<()> {
        let tracker = Arc::clone(&self.tracker) as Arc<dyn Tracker>;
        let controller = Controller::new(self.cluster.api(identity), self.settings(identity), tracker);
        tokio::spawn(controller.work())
    }

    /// Simulates a kubelet: moves every pod to `Running` and then to `Succeeded`.
    fn kubelet(&self) -> JoinHandle<()> {
        let cluster = Arc::clone(&self.cluster);
        tokio::spawn(async move {
            loop {
                for name in cluster.names("pods") {
                    let Some(pod) = cluster.get("pods", NAMESPACE, &name) else { continue };
                    match pod["status"]["phase"].as_str() {
                        None => cluster.change("pods", NAMESPACE, &name, running()),
                        Some("Running") => cluster.change("pods", NAMESPACE, &name, succeeded()),
                        _ => {}
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }

    fn submit(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["command"] = json!(["train"]);
        self.cluster.put(
            "runs",
            json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "spec": spec,
                "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("00000000-0000-0000-0000-{name:0>12}")}}),
        );
    }

    /// Submits a run and waits until its first attempt is running.
    async fn start(&self, name: &str, spec: Value) {
        self.submit(name, spec);
        let pod = format!("{name}-1");
        eventually("a pod is created", || self.pod(&pod).is_some()).await;
        self.cluster.change("pods", NAMESPACE, &pod, running());
        eventually("the run is running", || self.status(name)["phase"] == "Running").await;
    }

    fn status(&self, name: &str) -> Value {
        self.cluster.get("runs", NAMESPACE, name).map_or(Value::Null, |run| run["status"].clone())
    }

    fn pod(&self, name: &str) -> Option<Value> {
        self.cluster.get("pods", NAMESPACE, name)
    }

    /// Phases with which tracked runs were ended, in order.
    fn ended_phases(&self) -> Vec<Phase> {
        self.tracker.ended.lock().iter().map(|(_, status)| status.phase).collect()
    }
}

fn running() -> Value {
    json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running", "containerStatuses": [
        {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}})
}

fn succeeded() -> Value {
    json!({"status": {"phase": "Succeeded", "containerStatuses": [{"state": {"running": null, "terminated": {
        "reason": "Completed", "exitCode": 0, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:05Z"}}}]}})
}

/// Waits until a condition is true.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

fn has_finalizer(pod: &Option<Value>) -> bool {
    pod.as_ref().is_some_and(|p| p["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()))
}

#[tokio::test]
async fn pod_gets_its_own_token_and_is_released_after_its_end_is_recorded() {
    let test = TestCluster::new();
    let _controller = test.controller("one");
    test.submit("train", json!({"image": "i", "experiment": "digits", "activeDeadlineSeconds": 60}));
    eventually("a pod is created", || test.pod("train-1").is_some()).await;
    let pod = test.pod("train-1");
    assert!(has_finalizer(&pod));
    let env = pod.unwrap()["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let reference = &env.iter().find(|v| v["name"] == "MLFLOW_TRACKING_TOKEN").unwrap()["valueFrom"]["secretKeyRef"];
    let secret = test.cluster.get("secrets", NAMESPACE, reference["name"].as_str().unwrap()).unwrap();
    assert_eq!(secret["stringData"]["token"], "token-train-1");
    {
        let minted = test.minted.lock();
        let request = &minted[0];
        let run_id = "000000000000000000000000000train";
        let actual =
            (request.namespace.as_str(), request.run_id.as_str(), request.experiment.as_deref(), request.attempt);
        assert_eq!((actual, minted.len()), ((NAMESPACE, run_id, Some("digits"), 1), 1));
        // One day of retries to create the pod, seven days of waiting for capacity, and one minute of running.
        let days = (request.expires_at - slipway_core::clock::now_ms()) / 86_400_000;
        assert_eq!(days, 8);
        assert_eq!(*test.tracker.begun.lock(), [run_id]);
    }
    test.cluster.change("pods", NAMESPACE, "train-1", running());
    eventually("the run is running", || test.status("train")["phase"] == "Running").await;
    assert_eq!(test.status("train")["node"], "n1");
    test.cluster.change("pods", NAMESPACE, "train-1", succeeded());
    eventually("the run has succeeded", || test.status("train")["phase"] == "Succeeded").await;
    eventually("its finalizer is removed", || !has_finalizer(&test.pod("train-1"))).await;
    // The finalizer was removed after the end was recorded in the status and in the tracked run.
    let requests = test.cluster.requests();
    let recorded = requests.iter().rposition(|(m, p)| m == "PATCH" && p.ends_with("/runs/train/status")).unwrap();
    let released = requests.iter().position(|(m, p)| m == "PATCH" && p.ends_with("/pods/train-1")).unwrap();
    assert!(recorded < released, "{requests:?}");
    assert_eq!(test.ended_phases(), [Phase::Succeeded]);
    // The secret and the pods are deleted with the run.
    test.cluster.remove("runs", NAMESPACE, "train");
    eventually("pods and secrets are deleted", || {
        test.cluster.names("pods").is_empty() && test.cluster.names("secrets").is_empty()
    })
    .await;
}

#[tokio::test]
async fn lost_pod_is_replaced_with_another_token() {
    let test = TestCluster::new();
    let _controller = test.controller("one");
    test.start("train", json!({"image": "i"})).await;
    // The node was lost, and the pod was deleted despite its finalizer.
    test.cluster.remove("pods", NAMESPACE, "train-1");
    eventually("another pod is created", || test.pod("train-2").is_some()).await;
    test.cluster.change("pods", NAMESPACE, "train-2", succeeded());
    eventually("the run has succeeded", || test.status("train")["phase"] == "Succeeded").await;
    let status = test.status("train");
    assert_eq!((&status["disruptions"], &status["failures"]), (&json!(1), &Value::Null), "{status}");
    let attempts: Vec<u32> = test.minted.lock().iter().map(|r| r.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    assert_eq!(test.cluster.names("secrets").len(), 2);
}

#[tokio::test]
async fn cancelling_works_before_and_after_a_kubelet_accepts_the_pod() {
    let test = TestCluster::new();
    let _controller = test.controller("one");
    for name in ["pending", "running"] {
        test.submit(name, json!({"image": "i"}));
        eventually("a pod is created", || test.pod(&format!("{name}-1")).is_some()).await;
    }
    test.cluster.change("pods", NAMESPACE, "running-1", running());
    eventually("the run is running", || test.status("running")["phase"] == "Running").await;
    for name in ["pending", "running"] {
        test.cluster.change("runs", NAMESPACE, name, json!({"spec": {"cancel": true}}));
    }
    eventually("the pending run is cancelled", || test.status("pending")["phase"] == "Cancelled").await;
    eventually("its pod is deleted", || test.pod("pending-1").is_none()).await;
    eventually("the pod of the running run is being deleted", || {
        test.pod("running-1").is_some_and(|p| p["metadata"]["deletionTimestamp"].is_string())
    })
    .await;
    assert!(has_finalizer(&test.pod("running-1")), "the pod is kept until it has ended");
    let ended = json!({"status": {"phase": "Failed", "containerStatuses": [{"state": {"running": null, "terminated": {
        "reason": "Error", "exitCode": 143, "finishedAt": "2026-01-01T00:00:05Z"}}}]}});
    test.cluster.change("pods", NAMESPACE, "running-1", ended);
    eventually("the running run is cancelled", || test.status("running")["phase"] == "Cancelled").await;
    eventually("its pod is deleted", || test.pod("running-1").is_none()).await;
    assert_eq!(test.ended_phases(), [Phase::Cancelled, Phase::Cancelled]);
    assert!(test.pod("running-2").is_none() && test.pod("pending-2").is_none());
}

#[tokio::test]
async fn deleting_a_run_deletes_its_pod_and_ends_the_tracked_run() {
    let test = TestCluster::new();
    let _controller = test.controller("one");
    test.start("train", json!({"image": "i"})).await;
    test.cluster.remove("runs", NAMESPACE, "train");
    eventually("its pod is deleted", || test.pod("train-1").is_none()).await;
    assert_eq!(test.ended_phases().last(), Some(&Phase::Cancelled));
}

/// A user who can create pods in one namespace can forge the labels of a run in another.
#[tokio::test]
async fn forged_pod_cannot_end_runs_of_other_namespaces() {
    let test = TestCluster::new();
    let _controller = test.controller("one");
    test.submit("train", json!({"image": "i"}));
    eventually("a pod is created", || test.pod("train-1").is_some()).await;
    let mut forged = test.pod("train-1").unwrap();
    forged["metadata"] = json!({"name": "forged", "namespace": "attacker", "uid": "f", "finalizers": [super::FINALIZER],
        "labels": forged["metadata"]["labels"]});
    // A pod with the labels but without an owner reference is ignored.
    test.cluster.put("pods", forged.clone());
    forged["metadata"]["name"] = json!("owned");
    let uid = &forged["metadata"]["labels"]["slipway.dev/run-uid"];
    forged["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "slipway.dev/v1", "kind": "Run", "name": "train", "uid": uid}]);
    test.cluster.put("pods", forged);
    eventually("the pod with an owner reference is deleted as an orphan", || {
        test.cluster.get("pods", "attacker", "owned").is_none()
    })
    .await;
    assert!(test.cluster.get("pods", "attacker", "forged").is_some());
    // The call to the tracking store contains the namespace of the pod, which differs from that of the tracked run.
    let namespaces = test.tracker.namespaces.lock().clone();
    assert!(!namespaces.is_empty() && namespaces.iter().all(|namespace| namespace == "attacker"), "{namespaces:?}");
    assert!(test.pod("train-1").is_some());
}

#[tokio::test]
async fn panic_in_one_run_does_not_stop_others() {
    let test = TestCluster::new();
    *test.tracker.panics_for.lock() = Some("bad".into());
    let _controller = test.controller("one");
    let _kubelet = test.kubelet();
    test.submit("bad", json!({"image": "i"}));
    eventually("the panic has occurred", || test.tracker.panic_count.load(SeqCst) > 0).await;
    for number in 0..20 {
        test.submit(&format!("good-{number}"), json!({"image": "i"}));
    }
    eventually("the other runs have succeeded", || {
        (0..20).all(|n| test.status(&format!("good-{n}"))["phase"] == "Succeeded")
    })
    .await;
    *test.tracker.panics_for.lock() = None;
    eventually("the run succeeds without the panic", || test.status("bad")["phase"] == "Succeeded").await;
}

#[tokio::test]
async fn election_restarts_after_a_panic() {
    let test = TestCluster::new();
    let panics = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&panics);
    // The watch of runs is not part of a reconciliation, and the mock calls this function in the task that sends the request.
    test.cluster.faults(move |_, method, path| {
        assert!(!(method == "GET" && path.ends_with("/runs") && counted.fetch_add(1, SeqCst) == 0), "injected panic");
        Fault::None
    });
    let tracker = Arc::clone(&test.tracker) as Arc<dyn Tracker>;
    let controller = super::RunController::start(test.cluster.api("one"), test.settings("one"), tracker);
    test.submit("train", json!({"image": "i"}));
    eventually("a pod is created", || test.pod("train-1").is_some()).await;
    assert!(panics.load(SeqCst) > 1);
    // Stopping the controller releases the lease.
    controller.stop().await;
    let lease = test.cluster.get("leases", "slipway-system", "slipway-runs").unwrap();
    assert!(lease["spec"]["holderIdentity"].is_null(), "{lease}");
}

#[tokio::test]
async fn foreign_secret_is_not_used_and_unused_secret_is_reused() {
    let test = TestCluster::new();
    let (secret_requests, pod_requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (secrets, pods) = (Arc::clone(&secret_requests), Arc::clone(&pod_requests));
    test.cluster.respond_with(move |method, path, _| match (method, path.rsplit('/').next()) {
        ("POST", Some("secrets")) if secrets.fetch_add(1, SeqCst) == 0 => Some((409, status(409, "already exists"))),
        ("POST", Some("pods")) if pods.fetch_add(1, SeqCst) < 3 => Some((403, status(403, "exceeded quota: few"))),
        _ => None,
    });
    let _controller = test.controller("one");
    test.submit("train", json!({"image": "i"}));
    eventually("a pod is created", || test.pod("train-1").is_some()).await;
    assert_eq!(
        (secret_requests.load(SeqCst), pod_requests.load(SeqCst)),
        (2, 4),
        "one more name, and one secret for all retries"
    );
    let pod = test.pod("train-1").unwrap();
    assert!(pod.to_string().contains(&test.cluster.names("secrets")[0]));
}

#[tokio::test]
async fn new_attempts_get_the_renewed_authority() {
    let file = std::env::temp_dir().join(slipway_core::ids::hex32());
    let test = TestCluster { ca_file: Some(file.clone()), ..TestCluster::new() };
    let _controller = test.controller("one");
    let secret_of = |pod: &str| {
        let pod = test.pod(pod).unwrap();
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        let has_path = env.iter().any(|v| v["name"] == "MLFLOW_TRACKING_SERVER_CERT_PATH");
        let token = env.into_iter().find(|v| v["name"] == "MLFLOW_TRACKING_TOKEN").unwrap();
        let name = token["valueFrom"]["secretKeyRef"]["name"].as_str().unwrap().to_owned();
        let secret = test.cluster.get("secrets", NAMESPACE, &name).unwrap();
        (secret["stringData"]["ca.crt"].clone(), has_path)
    };
    for (name, text, expected) in
        [("public", None, json!(null)), ("old", Some("OLD"), json!("OLD")), ("new", Some("NEW"), json!("NEW"))]
    {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        test.submit(name, json!({"image": "i"}));
        let pod = format!("{name}-1");
        eventually("a pod is created", || test.pod(&pod).is_some()).await;
        assert_eq!(secret_of(&pod), (expected, text.is_some()), "{name}");
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn logs_error_shows_how_to_enable_the_namespace() {
    let test = TestCluster::new();
    test.cluster.respond_with(|_, path, _| {
        let message = "pods \"train-1\" is forbidden: User \"system:serviceaccount:slipway-system:slipway\" cannot get resource \
                       \"pods/log\" in API group \"\" in the namespace \"team\"";
        path.ends_with("/log").then(|| (403, status(403, message)))
    });
    test.submit("train", json!({"image": "i"}));
    let pods = super::Pods::new(test.cluster.api("server"), "slipway-system".into());
    let Err(error) = pods.logs(NAMESPACE, "train", LogQuery::default()).await else { panic!("there is a log") };
    assert!(error.to_string().contains("create rolebinding slipway-submit"), "{error}");
}

/// An API server that has just started may refuse everything because it has not read the roles yet.
#[tokio::test(start_paused = true)]
async fn refusal_counts_once_the_api_server_is_ready() {
    let test = TestCluster::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let readiness = Arc::clone(&asked);
    test.cluster.respond_with(move |method, path, _| match (method, path) {
        ("GET", "/readyz") if readiness.fetch_add(1, SeqCst) < 3 => Some((500, status(500, "informer-sync failed"))),
        ("GET", "/readyz") => Some((200, json!("ok"))),
        ("POST", _) if path.ends_with("/runs") && readiness.load(SeqCst) < 4 => {
            let message = "runs.slipway.dev is forbidden: User \"system:serviceaccount:slipway-system:slipway\" cannot create resource";
            Some((403, status(403, message)))
        }
        _ => None,
    });
    let pods = super::Pods::new(test.cluster.api("server"), "slipway-system".into());
    let run = |name: &str| {
        let mut run = slipway_exec::Manifest::new(name, ["true"]);
        run.spec.image = Some("i".into());
        run.metadata.namespace = NAMESPACE.into();
        run
    };
    pods.submit(run("train"), None).await.unwrap();
    assert_eq!(asked.load(SeqCst), 4);

    asked.store(0, SeqCst);
    test.cluster.respond_with(|method, path, _| match (method, path) {
        ("GET", "/readyz") => Some((200, json!("ok"))),
        ("POST", _) => {
            Some((403, status(403, "runs.slipway.dev is forbidden: the user cannot create resource \"runs\"")))
        }
        _ => None,
    });
    let refused = pods.submit(run("other"), None).await.unwrap_err();
    assert!(
        matches!(&refused, slipway_exec::ExecError::Forbidden(reason) if reason.contains("is not enabled")),
        "{refused}"
    );

    test.cluster.respond_with(|method, path, _| match (method, path) {
        ("GET", "/readyz") => Some((500, status(500, "informer-sync failed"))),
        ("POST", _) => {
            Some((403, status(403, "runs.slipway.dev is forbidden: the user cannot create resource \"runs\"")))
        }
        _ => None,
    });
    let refused = pods.submit(run("other"), None).await.unwrap_err();
    assert!(matches!(refused, slipway_exec::ExecError::Unreachable(_)), "{refused}");
}

#[tokio::test]
async fn status_shows_how_to_enable_the_namespace() {
    let test = TestCluster::new();
    let enabled = Arc::new(AtomicUsize::new(0));
    let is_enabled = Arc::clone(&enabled);
    test.cluster.respond_with(move |method, path, _| {
        let message = "secrets is forbidden: User \"system:serviceaccount:slipway-system:slipway-controller\" cannot create resource \"secrets\" \
                       in API group \"\" in the namespace \"team\"";
        let denied = is_enabled.load(SeqCst) == 0 && method == "POST" && path.ends_with("/secrets");
        denied.then(|| (403, status(403, message)))
    });
    let _controller = test.controller("one");
    test.submit("train", json!({"image": "i"}));
    eventually("the reason is NamespaceNotEnabled", || test.status("train")["reason"] == "NamespaceNotEnabled").await;
    let message = test.status("train")["message"].to_string();
    let command = "kubectl -n team create rolebinding slipway-runs --clusterrole=slipway-runs-slipway-system \
                   --serviceaccount=slipway-system:slipway-controller";
    assert!(message.contains(command), "{message}");
    assert!(test.cluster.names("pods").is_empty(), "no pod is created without its token");
    enabled.store(1, SeqCst);
    let _kubelet = test.kubelet();
    eventually("the run succeeds after the namespace was enabled", || test.status("train")["phase"] == "Succeeded")
        .await;
}

#[tokio::test]
async fn usage_is_attributed_after_the_lease_has_ended_without_keeping_the_pod() {
    let test = TestCluster::new();
    let lease_ended = Arc::new(AtomicUsize::new(0));
    let has_ended = Arc::clone(&lease_ended);
    test.cluster.respond_with(move |_, path, _| {
        let ended = if has_ended.load(SeqCst) == 0 { Value::Null } else { json!("2026-01-01T00:00:06Z") };
        path.ends_with("/proxy/api/v1/node/leases").then(|| {
            let lease = json!({"namespace": NAMESPACE, "pod": "train-1", "device": "GPU-1", "resource": "nvidia.com/gpu",
                "joules": 12.5, "busy_seconds": 4.0, "idle_seconds": 1.0, "ended": ended});
            (200, json!({"leases": [lease]}))
        })
    });
    let agent = json!({"metadata": {"name": "agent", "namespace": "slipway-system", "labels": {"app.kubernetes.io/component": "node"}},
        "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
    test.cluster.put("pods", agent);
    let _controller = test.controller("one");
    test.start("train", json!({"image": "i", "resources": {"limits": {"nvidia.com/gpu": 1}}})).await;
    // The kubelet reports the end before the agent notices it.
    let mut end = succeeded();
    let now = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
    end["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = json!(now);
    test.cluster.change("pods", NAMESPACE, "train-1", end);
    eventually("the run has succeeded", || test.status("train")["phase"] == "Succeeded").await;
    eventually("its finalizer is removed", || !has_finalizer(&test.pod("train-1"))).await;
    assert_eq!(test.status("train")["attributed"], Value::Null, "usage is not attributed before the lease has ended");
    lease_ended.store(1, SeqCst);
    eventually("usage is attributed", || test.status("train")["attributed"] == true).await;
    let ended = test.tracker.ended.lock().clone();
    let gpus = &ended.last().unwrap().1.attempts[0].gpus;
    assert_eq!((gpus[0].device.as_str(), gpus[0].joules), ("GPU-1", 12.5));
    assert_eq!(test.status("train")["attempts"][0]["gpus"][0]["joules"], 12.5);
}

#[tokio::test]
async fn crash_at_any_request_loses_nothing() {
    // The number of requests without faults.
    let requests = {
        let test = TestCluster::new();
        let controller = test.controller("one");
        let _kubelet = test.kubelet();
        test.submit("train", json!({"image": "i"}));
        eventually("the run is finished", || {
            test.status("train")["phase"] == "Succeeded" && !has_finalizer(&test.pod("train-1"))
        })
        .await;
        controller.abort();
        test.cluster.requests().len()
    };
    assert!(requests >= 8, "{requests}");
    for stopped_at in 1..=requests {
        // Crash before the request takes effect, and between its effect and its response.
        for fault in [Fault::Lost, Fault::StoredAndLost(Duration::ZERO)] {
            let test = TestCluster::new();
            let (sender, stopped) = tokio::sync::watch::channel(false);
            let count = AtomicUsize::new(0);
            test.cluster.faults(move |identity, _, _| {
                if identity == "one" && count.fetch_add(1, SeqCst) + 1 >= stopped_at {
                    sender.send_replace(true);
                    return if count.load(SeqCst) == stopped_at { fault } else { Fault::Lost };
                }
                Fault::None
            });
            let first = test.controller("one");
            let _kubelet = test.kubelet();
            test.submit("train", json!({"image": "i"}));
            eventually("the controller is stopped, or the run is finished", || {
                *stopped.borrow()
                    || (test.status("train")["phase"] == "Succeeded" && !has_finalizer(&test.pod("train-1")))
            })
            .await;
            first.abort();
            let second = test.controller("two");
            let what = format!("{fault:?} at request {stopped_at} of {requests}");
            eventually(&what, || test.status("train")["phase"] == "Succeeded" && !has_finalizer(&test.pod("train-1")))
                .await;
            assert_eq!(test.cluster.names("pods"), ["train-1"], "{what}");
            // The second controller does not know the unused secret of the first, so it may create another one.
            assert!((1..=2).contains(&test.cluster.names("secrets").len()), "{what}");
            assert_eq!(test.status("train")["attempts"].as_array().unwrap().len(), 1, "{what}");
            assert_eq!(test.tracker.begun.lock().len(), 1, "{what}");
            assert!(
                test.ended_phases().iter().all(|p| *p == Phase::Succeeded) && !test.ended_phases().is_empty(),
                "{what}"
            );
            second.abort();
        }
    }
}

#[tokio::test]
async fn changes_during_a_broken_watch_are_not_lost() {
    let test = TestCluster::new();
    let _controller = test.controller("one");
    test.submit("first", json!({"image": "i"}));
    eventually("a pod is created", || test.pod("first-1").is_some()).await;
    test.cluster.break_watches();
    // These changes happen while no watch is active.
    test.submit("second", json!({"image": "i"}));
    test.cluster.change("pods", NAMESPACE, "first-1", succeeded());
    let _kubelet = test.kubelet();
    eventually("both runs are finished", || {
        ["first", "second"]
            .iter()
            .all(|name| test.status(name)["phase"] == "Succeeded" && !has_finalizer(&test.pod(&format!("{name}-1"))))
    })
    .await;
}
