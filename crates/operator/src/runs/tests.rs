//! The controller on a mock API server, with a kubelet that is a loop and a tracker that remembers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_exec::{Executor, LogQuery, Phase, RunStatus, TokenRequest, Tracked, Tracker};
use tokio::task::JoinHandle;

use super::Settings;
use super::controller::Controller;
use crate::mock::{Fault, MockCluster, status};

const NAMESPACE: &str = "team";

/// Remembers what it is told, as the tracking store would: beginning or ending twice is the same as once.
#[derive(Default)]
struct Memory {
    begun: Mutex<Vec<String>>,
    ended: Mutex<Vec<(String, RunStatus)>>,
    /// Beside each that ended, the namespace that it was ended for.
    namespaces: Mutex<Vec<String>>,
    /// The name of a run that meets a defect.
    defect: Mutex<Option<String>>,
    /// How often it was met.
    met: AtomicUsize,
}

impl Tracker for Memory {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if self.defect.lock().as_ref() == Some(&run.name) {
                self.met.fetch_add(1, SeqCst);
                panic!("a defect");
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

struct Lab {
    cluster: Arc<MockCluster>,
    tracker: Arc<Memory>,
    minted: Arc<Mutex<Vec<TokenRequest>>>,
    ca_file: Option<PathBuf>,
}

impl Lab {
    fn new() -> Self {
        Self { cluster: MockCluster::new(), tracker: Arc::default(), minted: Arc::default(), ca_file: None }
    }

    fn settings(&self, who: &str) -> Settings {
        let minted = Arc::clone(&self.minted);
        Settings {
            namespace: "slipway-system".into(),
            identity: who.into(),
            variables: vec![("MLFLOW_TRACKING_URI".into(), "http://slipway:7070".into())],
            ca_file: self.ca_file.clone(),
            token: Arc::new(move |request| {
                let token = format!("token-{}-{}", request.run, request.attempt);
                minted.lock().push(request);
                Box::pin(async { Ok(token) })
            }),
            patience: Duration::from_millis(20),
        }
    }

    /// Starts a controller; aborting it is what a crash is.
    fn controller(&self, who: &str) -> JoinHandle<()> {
        let tracker = Arc::clone(&self.tracker) as Arc<dyn Tracker>;
        let controller = Controller::new(self.cluster.api(who), self.settings(who), tracker);
        tokio::spawn(controller.work())
    }

    /// Takes every pod that waits through running to success, as a kubelet would.
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

    fn status(&self, name: &str) -> Value {
        self.cluster.get("runs", NAMESPACE, name).map_or(Value::Null, |run| run["status"].clone())
    }

    fn pod(&self, name: &str) -> Option<Value> {
        self.cluster.get("pods", NAMESPACE, name)
    }

    /// Verdicts that the tracker heard, in order.
    fn verdicts(&self) -> Vec<Phase> {
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

/// Waits until something is so.
async fn eventually(what: &str, is: impl Fn() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(tokio::time::Instant::now() < limit, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

fn held(pod: &Option<Value>) -> bool {
    pod.as_ref().is_some_and(|p| p["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()))
}

#[tokio::test]
async fn a_run_becomes_a_pod_with_a_token_of_its_own_and_its_end_is_written_down_first() {
    let lab = Lab::new();
    let _controller = lab.controller("one");
    lab.submit("train", json!({"image": "i", "experiment": "digits", "activeDeadlineSeconds": 60}));
    eventually("a pod", || lab.pod("train-1").is_some()).await;
    let pod = lab.pod("train-1");
    assert!(held(&pod));
    let env = pod.unwrap()["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let reference = &env.iter().find(|v| v["name"] == "MLFLOW_TRACKING_TOKEN").unwrap()["valueFrom"]["secretKeyRef"];
    let secret = lab.cluster.get("secrets", NAMESPACE, reference["name"].as_str().unwrap()).unwrap();
    assert_eq!(secret["stringData"]["token"], "token-train-1");
    {
        let minted = lab.minted.lock();
        let asked = &minted[0];
        let run_id = "000000000000000000000000000train";
        let known = (asked.namespace.as_str(), asked.run_id.as_str(), asked.experiment.as_deref(), asked.attempt);
        assert_eq!((known, minted.len()), ((NAMESPACE, run_id, Some("digits"), 1), 1));
        // It may wait a day for its pod and a week for room, and runs for a minute.
        let days = (asked.expires_at - slipway_core::clock::now_ms()) / 86_400_000;
        assert_eq!(days, 8);
        assert_eq!(*lab.tracker.begun.lock(), [run_id]);
    }
    lab.cluster.change("pods", NAMESPACE, "train-1", running());
    eventually("it runs", || lab.status("train")["phase"] == "Running").await;
    assert_eq!(lab.status("train")["node"], "n1");
    lab.cluster.change("pods", NAMESPACE, "train-1", succeeded());
    eventually("it is over", || lab.status("train")["phase"] == "Succeeded").await;
    eventually("its pod may be deleted", || !held(&lab.pod("train-1"))).await;
    // The pod was kept until its end was in the status and in the tracked run.
    let requests = lab.cluster.requests();
    let written = requests.iter().rposition(|(m, p)| m == "PATCH" && p.ends_with("/runs/train/status")).unwrap();
    let released = requests.iter().position(|(m, p)| m == "PATCH" && p.ends_with("/pods/train-1")).unwrap();
    assert!(written < released, "{requests:?}");
    assert_eq!(lab.verdicts(), [Phase::Succeeded]);
    // The secret goes with the run, as its pods do.
    lab.cluster.remove("runs", NAMESPACE, "train");
    eventually("nothing is left", || lab.cluster.names("pods").is_empty() && lab.cluster.names("secrets").is_empty())
        .await;
}

#[tokio::test]
async fn a_pod_that_is_lost_is_made_again_with_another_token() {
    let lab = Lab::new();
    let _controller = lab.controller("one");
    lab.submit("train", json!({"image": "i"}));
    eventually("a pod", || lab.pod("train-1").is_some()).await;
    lab.cluster.change("pods", NAMESPACE, "train-1", running());
    eventually("it runs", || lab.status("train")["phase"] == "Running").await;
    // Its node is gone, and somebody removed the finalizer by force.
    lab.cluster.remove("pods", NAMESPACE, "train-1");
    eventually("another pod", || lab.pod("train-2").is_some()).await;
    lab.cluster.change("pods", NAMESPACE, "train-2", succeeded());
    eventually("it is over", || lab.status("train")["phase"] == "Succeeded").await;
    let status = lab.status("train");
    assert_eq!((&status["disruptions"], &status["failures"]), (&json!(1), &Value::Null), "{status}");
    let attempts: Vec<u32> = lab.minted.lock().iter().map(|r| r.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    assert_eq!(lab.cluster.names("secrets").len(), 2);
}

#[tokio::test]
async fn what_is_cancelled_ends_also_before_a_kubelet_has_it() {
    let lab = Lab::new();
    let _controller = lab.controller("one");
    for name in ["waits", "works"] {
        lab.submit(name, json!({"image": "i"}));
        eventually("a pod", || lab.pod(&format!("{name}-1")).is_some()).await;
    }
    lab.cluster.change("pods", NAMESPACE, "works-1", running());
    eventually("it runs", || lab.status("works")["phase"] == "Running").await;
    for name in ["waits", "works"] {
        lab.cluster.change("runs", NAMESPACE, name, json!({"spec": {"cancel": true}}));
    }
    eventually("the waiting one is cancelled", || lab.status("waits")["phase"] == "Cancelled").await;
    eventually("its pod is gone", || lab.pod("waits-1").is_none()).await;
    eventually("the other's pod is asked to end", || {
        lab.pod("works-1").is_some_and(|p| p["metadata"]["deletionTimestamp"].is_string())
    })
    .await;
    assert!(held(&lab.pod("works-1")), "it is kept until it has ended");
    let ended = json!({"status": {"phase": "Failed", "containerStatuses": [{"state": {"running": null, "terminated": {
        "reason": "Error", "exitCode": 143, "finishedAt": "2026-01-01T00:00:05Z"}}}]}});
    lab.cluster.change("pods", NAMESPACE, "works-1", ended);
    eventually("it is cancelled", || lab.status("works")["phase"] == "Cancelled").await;
    eventually("its pod is gone", || lab.pod("works-1").is_none()).await;
    assert_eq!(lab.verdicts(), [Phase::Cancelled, Phase::Cancelled]);
    assert!(lab.pod("works-2").is_none() && lab.pod("waits-2").is_none());
}

#[tokio::test]
async fn a_run_that_is_deleted_takes_its_pod_along_and_is_tracked_as_ended() {
    let lab = Lab::new();
    let _controller = lab.controller("one");
    lab.submit("train", json!({"image": "i"}));
    eventually("a pod", || lab.pod("train-1").is_some()).await;
    lab.cluster.change("pods", NAMESPACE, "train-1", running());
    eventually("it runs", || lab.status("train")["phase"] == "Running").await;
    lab.cluster.remove("runs", NAMESPACE, "train");
    eventually("its pod is gone", || lab.pod("train-1").is_none()).await;
    assert_eq!(lab.verdicts().last(), Some(&Phase::Cancelled));
}

/// Whoever may create pods in a namespace can make one that says to be of a run in another.
#[tokio::test]
async fn a_forged_pod_ends_a_run_of_its_own_namespace_at_most() {
    let lab = Lab::new();
    let _controller = lab.controller("one");
    lab.submit("train", json!({"image": "i"}));
    eventually("a pod", || lab.pod("train-1").is_some()).await;
    let mut forged = lab.pod("train-1").unwrap();
    forged["metadata"] = json!({"name": "forged", "namespace": "thief", "uid": "f", "finalizers": [super::FINALIZER],
        "labels": forged["metadata"]["labels"]});
    // With labels alone it is none of ours.
    lab.cluster.put("pods", forged.clone());
    forged["metadata"]["name"] = json!("owned");
    let uid = &forged["metadata"]["labels"]["slipway.dev/run-uid"];
    forged["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "slipway.dev/v1", "kind": "Run", "name": "train", "uid": uid}]);
    lab.cluster.put("pods", forged);
    eventually("the one with an owner is an orphan", || lab.cluster.get("pods", "thief", "owned").is_none()).await;
    assert!(lab.cluster.get("pods", "thief", "forged").is_some());
    // The tracker is told of which namespace it was; it knows to which the tracked run belongs.
    let told = lab.tracker.namespaces.lock().clone();
    assert!(!told.is_empty() && told.iter().all(|namespace| namespace == "thief"), "{told:?}");
    assert!(lab.pod("train-1").is_some());
}

#[tokio::test]
async fn a_defect_that_one_run_meets_does_not_stop_the_others() {
    let lab = Lab::new();
    *lab.tracker.defect.lock() = Some("bad".into());
    let _controller = lab.controller("one");
    let _kubelet = lab.kubelet();
    lab.submit("bad", json!({"image": "i"}));
    eventually("it met the defect", || lab.tracker.met.load(SeqCst) > 0).await;
    for number in 0..20 {
        lab.submit(&format!("good-{number}"), json!({"image": "i"}));
    }
    eventually("the others are done", || (0..20).all(|n| lab.status(&format!("good-{n}"))["phase"] == "Succeeded"))
        .await;
    *lab.tracker.defect.lock() = None;
    eventually("and the one when the defect is mended", || lab.status("bad")["phase"] == "Succeeded").await;
}

#[tokio::test]
async fn the_election_goes_on_after_a_panic() {
    let lab = Lab::new();
    let panics = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&panics);
    // Runs are watched outside of any reconciliation; the mock calls this in the task that asks.
    lab.cluster.faults(move |_, method, path| {
        assert!(!(method == "GET" && path.ends_with("/runs") && counted.fetch_add(1, SeqCst) == 0), "a defect");
        Fault::None
    });
    let tracker = Arc::clone(&lab.tracker) as Arc<dyn Tracker>;
    let controller = super::RunController::start(lab.cluster.api("one"), lab.settings("one"), tracker);
    lab.submit("train", json!({"image": "i"}));
    eventually("a pod", || lab.pod("train-1").is_some()).await;
    assert!(panics.load(SeqCst) > 1);
    // A controller that is stopped gives its lease back.
    controller.stop().await;
    let lease = lab.cluster.get("leases", "slipway-system", "slipway-runs").unwrap();
    assert!(lease["spec"]["holderIdentity"].is_null(), "{lease}");
}

#[tokio::test]
async fn a_secret_that_somebody_planted_is_not_used_and_one_without_a_pod_is_used_again() {
    let lab = Lab::new();
    let (taken, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (first, pods) = (Arc::clone(&taken), Arc::clone(&refused));
    lab.cluster.answer_with(move |method, path, _| match (method, path.rsplit('/').next()) {
        ("POST", Some("secrets")) if first.fetch_add(1, SeqCst) == 0 => Some((409, status(409, "already exists"))),
        ("POST", Some("pods")) if pods.fetch_add(1, SeqCst) < 3 => Some((403, status(403, "exceeded quota: few"))),
        _ => None,
    });
    let _controller = lab.controller("one");
    lab.submit("train", json!({"image": "i"}));
    eventually("a pod", || lab.pod("train-1").is_some()).await;
    assert_eq!((taken.load(SeqCst), refused.load(SeqCst)), (2, 4), "another name, and one secret for all attempts");
    let pod = lab.pod("train-1").unwrap();
    assert!(pod.to_string().contains(&lab.cluster.names("secrets")[0]));
}

#[tokio::test]
async fn a_renewed_authority_reaches_new_attempts() {
    let file = std::env::temp_dir().join(slipway_core::ids::hex32());
    let lab = Lab { ca_file: Some(file.clone()), ..Lab::new() };
    let _controller = lab.controller("one");
    let secret_of = |pod: &str| {
        let pod = lab.pod(pod).unwrap();
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        let has_path = env.iter().any(|v| v["name"] == "MLFLOW_TRACKING_SERVER_CERT_PATH");
        let token = env.into_iter().find(|v| v["name"] == "MLFLOW_TRACKING_TOKEN").unwrap();
        let name = token["valueFrom"]["secretKeyRef"]["name"].as_str().unwrap().to_owned();
        let secret = lab.cluster.get("secrets", NAMESPACE, &name).unwrap();
        (secret["stringData"]["ca.crt"].clone(), has_path)
    };
    for (name, text, expected) in
        [("public", None, json!(null)), ("old", Some("OLD"), json!("OLD")), ("new", Some("NEW"), json!("NEW"))]
    {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        lab.submit(name, json!({"image": "i"}));
        let pod = format!("{name}-1");
        eventually("a pod", || lab.pod(&pod).is_some()).await;
        assert_eq!(secret_of(&pod), (expected, text.is_some()), "{name}");
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn logs_in_a_namespace_that_is_not_enabled_say_what_enables_it() {
    let lab = Lab::new();
    lab.cluster.answer_with(|_, path, _| {
        let message = "pods \"train-1\" is forbidden: User \"system:serviceaccount:slipway-system:slipway\" cannot get resource \
                       \"pods/log\" in API group \"\" in the namespace \"team\"";
        path.ends_with("/log").then(|| (403, status(403, message)))
    });
    lab.submit("train", json!({"image": "i"}));
    let pods = super::Pods::new(lab.cluster.api("server"), "slipway-system".into());
    let Err(error) = pods.logs(NAMESPACE, "train", LogQuery::default()).await else { panic!("there is a log") };
    assert!(error.to_string().contains("create rolebinding slipway-submit"), "{error}");
}

#[tokio::test]
async fn a_namespace_that_is_not_enabled_is_named_with_what_enables_it() {
    let lab = Lab::new();
    let enabled = Arc::new(AtomicUsize::new(0));
    let open = Arc::clone(&enabled);
    lab.cluster.answer_with(move |method, path, _| {
        let message = "secrets is forbidden: User \"system:serviceaccount:slipway-system:slipway-controller\" cannot create resource \"secrets\" \
                       in API group \"\" in the namespace \"team\"";
        let closed = open.load(SeqCst) == 0 && method == "POST" && path.ends_with("/secrets");
        closed.then(|| (403, status(403, message)))
    });
    let _controller = lab.controller("one");
    lab.submit("train", json!({"image": "i"}));
    eventually("it says so", || lab.status("train")["reason"] == "NamespaceNotEnabled").await;
    let message = lab.status("train")["message"].to_string();
    let command = "kubectl -n team create rolebinding slipway-runs --clusterrole=slipway-runs-slipway-system \
                   --serviceaccount=slipway-system:slipway-controller";
    assert!(message.contains(command), "{message}");
    assert!(lab.cluster.names("pods").is_empty(), "no pod without its token");
    enabled.store(1, SeqCst);
    let _kubelet = lab.kubelet();
    eventually("it is done as soon as it may", || lab.status("train")["phase"] == "Succeeded").await;
}

#[tokio::test]
async fn usage_is_attributed_once_the_agent_knows_it_and_is_not_waited_for_by_the_pod() {
    let lab = Lab::new();
    let over = Arc::new(AtomicUsize::new(0));
    let known = Arc::clone(&over);
    lab.cluster.answer_with(move |_, path, _| {
        let ended = if known.load(SeqCst) == 0 { Value::Null } else { json!("2026-01-01T00:00:06Z") };
        path.ends_with("/proxy/api/v1/node/leases").then(|| {
            let lease = json!({"namespace": NAMESPACE, "pod": "train-1", "device": "GPU-1", "resource": "nvidia.com/gpu",
                "joules": 12.5, "busy_seconds": 4.0, "idle_seconds": 1.0, "ended": ended});
            (200, json!({"leases": [lease]}))
        })
    });
    let agent = json!({"metadata": {"name": "agent", "namespace": "slipway-system", "labels": {"app.kubernetes.io/component": "node"}},
        "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
    lab.cluster.put("pods", agent);
    let _controller = lab.controller("one");
    lab.submit("train", json!({"image": "i", "resources": {"limits": {"nvidia.com/gpu": 1}}}));
    eventually("a pod", || lab.pod("train-1").is_some()).await;
    lab.cluster.change("pods", NAMESPACE, "train-1", running());
    eventually("it runs", || lab.status("train")["phase"] == "Running").await;
    // The agent notices the end later than the kubelet tells it.
    let mut end = succeeded();
    let now = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
    end["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = json!(now);
    lab.cluster.change("pods", NAMESPACE, "train-1", end);
    eventually("it is over", || lab.status("train")["phase"] == "Succeeded").await;
    eventually("its pod may be deleted", || !held(&lab.pod("train-1"))).await;
    assert_eq!(lab.status("train")["attributed"], Value::Null, "not before the lease has ended");
    over.store(1, SeqCst);
    eventually("it is attributed", || lab.status("train")["attributed"] == true).await;
    let ended = lab.tracker.ended.lock().clone();
    let gpus = &ended.last().unwrap().1.attempts[0].gpus;
    assert_eq!((gpus[0].device.as_str(), gpus[0].joules), ("GPU-1", 12.5));
    assert_eq!(lab.status("train")["attempts"][0]["gpus"][0]["joules"], 12.5);
}

#[tokio::test]
async fn a_controller_that_is_stopped_at_any_request_loses_nothing() {
    // How many requests a run takes when nothing goes wrong.
    let requests = {
        let lab = Lab::new();
        let controller = lab.controller("one");
        let _kubelet = lab.kubelet();
        lab.submit("train", json!({"image": "i"}));
        eventually("it is done", || lab.status("train")["phase"] == "Succeeded" && !held(&lab.pod("train-1"))).await;
        controller.abort();
        lab.cluster.requests().len()
    };
    assert!(requests >= 8, "{requests}");
    for stopped_at in 1..=requests {
        // Stopped before the request arrives, and after it took effect and before its answer came.
        for fault in [Fault::Lost, Fault::StoredAndLost(Duration::ZERO)] {
            let lab = Lab::new();
            let (sender, stopped) = tokio::sync::watch::channel(false);
            let count = AtomicUsize::new(0);
            lab.cluster.faults(move |who, _, _| {
                if who == "one" && count.fetch_add(1, SeqCst) + 1 >= stopped_at {
                    sender.send_replace(true);
                    return if count.load(SeqCst) == stopped_at { fault } else { Fault::Lost };
                }
                Fault::None
            });
            let first = lab.controller("one");
            let _kubelet = lab.kubelet();
            lab.submit("train", json!({"image": "i"}));
            eventually("it is stopped, or done", || {
                *stopped.borrow() || (lab.status("train")["phase"] == "Succeeded" && !held(&lab.pod("train-1")))
            })
            .await;
            first.abort();
            let second = lab.controller("two");
            let what = format!("{fault:?} at request {stopped_at} of {requests}");
            eventually(&what, || lab.status("train")["phase"] == "Succeeded" && !held(&lab.pod("train-1"))).await;
            assert_eq!(lab.cluster.names("pods"), ["train-1"], "{what}");
            // The second controller does not know a secret whose pod the first did not create, and creates another.
            assert!((1..=2).contains(&lab.cluster.names("secrets").len()), "{what}");
            assert_eq!(lab.status("train")["attempts"].as_array().unwrap().len(), 1, "{what}");
            assert_eq!(lab.tracker.begun.lock().len(), 1, "{what}");
            assert!(lab.verdicts().iter().all(|p| *p == Phase::Succeeded) && !lab.verdicts().is_empty(), "{what}");
            second.abort();
        }
    }
}

#[tokio::test]
async fn broken_watches_lose_nothing() {
    let lab = Lab::new();
    let _controller = lab.controller("one");
    lab.submit("first", json!({"image": "i"}));
    eventually("a pod", || lab.pod("first-1").is_some()).await;
    lab.cluster.break_watches();
    // What happens while nobody watches.
    lab.submit("second", json!({"image": "i"}));
    lab.cluster.change("pods", NAMESPACE, "first-1", succeeded());
    let _kubelet = lab.kubelet();
    eventually("both are done", || {
        ["first", "second"]
            .iter()
            .all(|name| lab.status(name)["phase"] == "Succeeded" && !held(&lab.pod(&format!("{name}-1"))))
    })
    .await;
}
