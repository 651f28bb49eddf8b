//! Tests of runs in queues: the mock API server, with the objects that Kueue, Volcano and the KAI scheduler would create.

use super::*;
use slipway_exec::QueueSystem;

/// Serves the discovery document of a cluster with these API groups and versions.
fn install(test: &TestCluster, groups: &'static [(&'static str, &'static str)]) {
    test.cluster
        .respond_with(move |method, path, _| (method == "GET" && path == "/apis").then(|| (200, discovery(groups))));
}

fn discovery(groups: &[(&str, &str)]) -> Value {
    let versions = |v: &str| json!([{"version": v}]);
    let groups = groups
        .iter()
        .map(|(name, v)| json!({"name": name, "preferredVersion": {"version": v}, "versions": versions(v)}));
    json!({"kind": "APIGroupList", "groups": groups.collect::<Vec<_>>()})
}

/// What Kueue's webhook does to a pod: it manages the pod and holds it back.
fn gated() -> Value {
    json!({"metadata": {"labels": {"kueue.x-k8s.io/managed": "true"}},
        "spec": {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]},
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"}]}})
}

fn terminated_by_kueue(reason: &str) -> Value {
    json!([{"type": "TerminationTarget", "status": "True", "reason": reason, "message": "told by the test"}])
}

/// Submits a run to the queue `gpus`, and waits for its pod.
async fn queued(test: &TestCluster, spec: Value) -> Value {
    let mut spec = spec;
    spec["image"] = json!("i");
    spec["queue"] = json!("gpus");
    test.submit("train", spec);
    eventually("a pod is created", || test.pod("train-1").is_some()).await;
    test.pod("train-1").unwrap()
}

async fn eventually_reason(test: &TestCluster, reason: &str, message: &str) {
    let is_reached = || {
        let status = test.status("train");
        status["reason"] == reason && status["message"].as_str().unwrap_or_default().contains(message)
    };
    eventually(&format!("{reason}: {message}"), is_reached).await;
}

#[tokio::test]
async fn kueue_run_reports_its_position_and_is_restarted_after_preemption() {
    let test = TestCluster::new();
    test.cluster.respond_with(|method, path, _| match (method, path) {
        ("GET", "/apis") => Some((200, discovery(&[("kueue.x-k8s.io", "v1beta2"), ("visibility.kueue.x-k8s.io", "v1beta2")]))),
        ("GET", "/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/team/localqueues/gpus/pendingworkloads") => {
            let item = |name: &str, n: u32| json!({"metadata": {"name": name}, "positionInLocalQueue": n, "positionInClusterQueue": 9});
            Some((200, json!({"items": [item("pod-other", 0), item("pod-train", 2)]})))
        }
        _ => None,
    });
    let _controller = test.controller("one");
    let pod = queued(&test, json!({"workloadPriorityClass": "high"})).await;
    assert_eq!(pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "gpus");
    assert_eq!(pod["metadata"]["labels"]["kueue.x-k8s.io/priority-class"], "high");
    test.cluster.change("pods", NAMESPACE, "train-1", gated());
    eventually_reason(&test, "Queued", "in queue gpus of kueue: kueue has not created its workload yet").await;
    let workload = json!({"metadata": {"name": "pod-train", "namespace": NAMESPACE, "labels": {"kueue.x-k8s.io/job-uid": pod["metadata"]["uid"]}},
        "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "reason": "WaitingForQuota",
            "message": "insufficient unused quota for nvidia.com/gpu in flavor h100, 4 more needed"}]}});
    test.cluster.put("workloads", workload);
    eventually_reason(
        &test,
        "Queued",
        "in queue gpus of kueue, position 3: insufficient unused quota for nvidia.com/gpu",
    )
    .await;
    assert_eq!(test.status("train")["queue"], json!({"name": "gpus", "system": "kueue", "position": 3}));
    let mut admitted = running();
    admitted["spec"]["schedulingGates"] = Value::Null;
    admitted["status"]["conditions"] = json!([]);
    test.cluster.change("pods", NAMESPACE, "train-1", admitted);
    eventually("the run is running", || test.status("train")["phase"] == "Running").await;
    assert_eq!(test.status("train")["queue"], json!({"name": "gpus", "system": "kueue"}));
    let preempted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": "Failed", "conditions": terminated_by_kueue("WorkloadEvictedDueToPreempted"), "containerStatuses": [
            {"state": {"running": null, "terminated": {"reason": "Error", "exitCode": 143}}}]}});
    test.cluster.change("pods", NAMESPACE, "train-1", preempted);
    eventually("another pod waits in the queue", || test.pod("train-2").is_some()).await;
    eventually("the preemption is recorded", || test.status("train")["disruptions"] == 1).await;
    let status = test.status("train");
    assert_eq!(
        (&status["attempts"][0]["reason"], &status["failures"]),
        (&json!("Preempted"), &Value::Null),
        "{status}"
    );
    assert_eq!(test.pod("train-2").unwrap()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "gpus");
}

#[tokio::test]
async fn deleting_the_workload_of_a_queued_run_queues_it_again() {
    let test = TestCluster::new();
    install(&test, &[("kueue.x-k8s.io", "v1beta1")]);
    let _controller = test.controller("one");
    queued(&test, json!({})).await;
    test.cluster.change("pods", NAMESPACE, "train-1", gated());
    eventually_reason(&test, "Queued", "in queue gpus").await;
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"conditions": terminated_by_kueue("WorkloadDeleted")}});
    test.cluster.change("pods", NAMESPACE, "train-1", deleted);
    eventually("another pod is created", || test.pod("train-2").is_some()).await;
    eventually("the deleted pod is released", || test.pod("train-1").is_none()).await;
    eventually("the reason is recorded", || test.status("train")["attempts"][0]["reason"] == "WorkloadDeleted").await;
}

#[tokio::test]
async fn pods_that_kueue_does_not_manage_are_reported() {
    let test = TestCluster::new();
    install(&test, &[("kueue.x-k8s.io", "v1beta1")]);
    let _controller = test.controller("one");
    queued(&test, json!({})).await;
    // The webhook of Kueue would have labelled the pod in the response to its creation.
    let events = || {
        test.cluster
            .names("events")
            .into_iter()
            .filter_map(|e| test.cluster.get("events", NAMESPACE, &e))
            .collect::<Vec<_>>()
    };
    eventually("a warning", || events().iter().any(|e| e["reason"] == "QueueIgnored" && e["type"] == "Warning")).await;
}

#[tokio::test]
async fn volcano_run_has_a_pod_group_with_its_queue_and_tier() {
    let test = TestCluster::new();
    install(&test, &[("scheduling.volcano.sh", "v1beta1"), ("topology.volcano.sh", "v1alpha1")]);
    let member = json!({"type": "Node", "selector": {"labelMatch": {"matchLabels": {"nvidia.com/gpu.clique": "c.1"}}}});
    test.cluster.put("hypernodes", json!({"metadata": {"name": "rack"}, "spec": {"tier": 1, "members": [member]}}));
    let _controller = test.controller("one");
    let gpus = json!({"limits": {"nvidia.com/gpu": 8}});
    let pod = queued(&test, json!({"topology": {"preferred": "nvlink-domain"}, "resources": gpus})).await;
    assert_eq!(pod["spec"]["schedulerName"], "volcano");
    assert_eq!(pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"], "train-1");
    let group = test.cluster.get("podgroups", NAMESPACE, "train-1").unwrap();
    assert_eq!(
        group["spec"],
        json!({"minMember": 1, "queue": "gpus", "minResources": {"nvidia.com/gpu": "8"},
            "networkTopology": {"mode": "soft", "highestTierAllowed": 1}})
    );
    // Volcano rejects pods whose group does not exist yet.
    let requests = test.cluster.requests();
    let position = |end: &str| requests.iter().position(|(m, p)| m == "POST" && p.ends_with(end)).unwrap();
    assert!(position("/podgroups") < position("/pods"));
    let waits = json!({"status": {"phase": "Pending", "conditions": [{"type": "Unschedulable", "status": "True", "message": "queue resource quota insufficient"}]}});
    test.cluster.change("podgroups", NAMESPACE, "train-1", waits);
    test.cluster.change("pods", NAMESPACE, "train-1", json!({"status": {"phase": "Pending"}}));
    eventually_reason(&test, "Queued", "in queue gpus of volcano: queue resource quota insufficient").await;
    // In the queue's turn the scheduler explains the pod itself.
    test.cluster.change("podgroups", NAMESPACE, "train-1", json!({"status": {"phase": "Inqueue"}}));
    let unschedulable = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}]}});
    test.cluster.change("pods", NAMESPACE, "train-1", unschedulable);
    eventually_reason(&test, "Unschedulable", "0/2 nodes").await;
    test.cluster.remove("runs", NAMESPACE, "train");
    eventually("the group is deleted with the run", || test.cluster.names("podgroups").is_empty()).await;
}

#[tokio::test]
async fn kai_run_reports_why_its_pod_group_waits() {
    let test = TestCluster::new();
    install(&test, &[("scheduling.run.ai", "v2alpha2"), ("kai.scheduler", "v1alpha1")]);
    let levels = json!([{"nodeLabel": "nvidia.com/gpu.clique"}, {"nodeLabel": "kubernetes.io/hostname"}]);
    test.cluster.put("topologies", json!({"metadata": {"name": "cluster"}, "spec": {"levels": levels}}));
    let _controller = test.controller("one");
    let pod = queued(&test, json!({"topology": {"required": "nvlink-domain"}})).await;
    assert_eq!(
        (&pod["spec"]["schedulerName"], &pod["metadata"]["labels"]["kai.scheduler/queue"]),
        (&json!("kai-scheduler"), &json!("gpus"))
    );
    assert_eq!(pod["metadata"]["annotations"]["kai.scheduler/topology"], "cluster");
    assert_eq!(pod["metadata"]["annotations"]["kai.scheduler/topology-required-placement"], "nvidia.com/gpu.clique");
    let group = json!({"metadata": {"name": "pg-train", "namespace": NAMESPACE}, "status": {"schedulingConditions": [
        {"type": "UnschedulableOnNodePool", "status": "True", "reasons": [{"reason": "OverLimit", "message": "gpus quota has reached the limit"}]}]}});
    test.cluster.put("podgroups", group);
    let grouped = json!({"metadata": {"annotations": {"pod-group-name": "pg-train"}}, "status": {"phase": "Pending"}});
    test.cluster.change("pods", NAMESPACE, "train-1", grouped);
    eventually_reason(&test, "Queued", "in queue gpus of kai: gpus quota has reached the limit").await;
    // The condition of the group remains after its pod has a node.
    test.cluster.change(
        "pods",
        NAMESPACE,
        "train-1",
        json!({"spec": {"nodeName": "n1"}, "status": {"containerStatuses": [
        {"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}}),
    );
    eventually_reason(&test, "ImagePullBackOff", "").await;
}

#[tokio::test]
async fn run_waits_until_its_queue_system_is_installed() {
    let test = TestCluster::new();
    let is_installed = Arc::new(AtomicUsize::new(0));
    let installed = Arc::clone(&is_installed);
    test.cluster.respond_with(move |_, path, _| {
        let kueue = ("kueue.x-k8s.io", "v1beta1");
        let groups = if installed.load(SeqCst) == 0 { vec![] } else { vec![kueue] };
        (path == "/apis").then(|| (200, discovery(&[&[("scheduling.volcano.sh", "v1beta1")][..], &groups].concat())))
    });
    let _controller = test.controller("one");
    test.submit("train", json!({"image": "i", "queue": "gpus", "queueSystem": "kueue"}));
    eventually_reason(&test, "QueueSystemNotInstalled", "no API group kueue.x-k8s.io; installed: volcano").await;
    assert!(test.cluster.names("pods").is_empty() && test.cluster.names("secrets").is_empty());
    is_installed.store(1, SeqCst);
    eventually("a pod is created", || test.pod("train-1").is_some()).await;
}

#[tokio::test]
async fn namespaces_have_default_queues_and_labels_of_the_run_come_first() {
    let mut test = TestCluster::new();
    test.default_queues.queue = Some("others".into());
    test.default_queues.system = Some(QueueSystem::Kueue);
    test.default_queues.namespaces.insert(NAMESPACE.into(), "team-queue".into());
    install(&test, &[("kueue.x-k8s.io", "v1beta1"), ("scheduling.run.ai", "v2alpha2")]);
    let _controller = test.controller("one");
    test.submit("train", json!({"image": "i"}));
    eventually("a pod is created", || test.pod("train-1").is_some()).await;
    assert_eq!(test.pod("train-1").unwrap()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "team-queue");
    let metadata = json!({"name": "own", "namespace": NAMESPACE, "uid": "00000000-0000-0000-0000-000000000own", "labels": {"kai.scheduler/queue": "mine"},
        "annotations": {"kai.scheduler/topology": "cluster", "example.com/note": "x"}});
    let spec = json!({"image": "i", "command": ["train"]});
    test.cluster
        .put("runs", json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": metadata, "spec": spec}));
    eventually("a pod is created", || test.pod("own-1").is_some()).await;
    let pod = test.pod("own-1").unwrap();
    let labels = &pod["metadata"]["labels"];
    assert_eq!((&labels["kai.scheduler/queue"], &labels["kueue.x-k8s.io/queue-name"]), (&json!("mine"), &Value::Null));
    assert_eq!(pod["metadata"]["annotations"], json!({"kai.scheduler/topology": "cluster"}), "no other annotations");
    assert_eq!(pod["spec"]["schedulerName"], "kai-scheduler");
}

#[tokio::test]
async fn kueue_topology_annotation_is_written_only_for_a_level_that_exists() {
    for has_level in [true, false] {
        let test = TestCluster::new();
        install(&test, &[("kueue.x-k8s.io", "v1beta2")]);
        let level = if has_level { "nvidia.com/gpu.clique" } else { "example.com/rack" };
        test.cluster.put("topologies", json!({"metadata": {"name": "t"}, "spec": {"levels": [{"nodeLabel": level}]}}));
        let _controller = test.controller("one");
        let pod = queued(&test, json!({"topology": {"preferred": "nvlink-domain"}})).await;
        let annotation = &pod["metadata"]["annotations"]["kueue.x-k8s.io/podset-preferred-topology"];
        assert_eq!(*annotation == "nvidia.com/gpu.clique", has_level, "{annotation}");
        assert_eq!(pod["spec"]["affinity"].is_null(), has_level);
    }
}

#[tokio::test]
async fn contradictory_queues_fail_the_run() {
    let test = TestCluster::new();
    install(&test, &[("kueue.x-k8s.io", "v1beta1")]);
    let _controller = test.controller("one");
    test.submit("train", json!({"image": "i", "queue": "a/b"}));
    eventually("the run has failed", || test.status("train")["phase"] == "Failed").await;
    let status = test.status("train");
    assert!(status["reason"] == "Invalid" && status["message"].as_str().unwrap().contains("'a/b'"), "{status}");
}
