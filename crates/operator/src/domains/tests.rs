//! Tests of the controller against the in-memory API server.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_core::compute_domain::{MEMBER_ANNOTATION, Member};

use super::{COMPUTE_DOMAIN, DEFINITION, DOMAIN_LABEL, DomainController, FINALIZER};
use crate::mock::{Fault, MockCluster};

/// The domain of upstream's `demo/specs/imex/channel-injection-all.yaml`, as the API server stores it.
fn domain(cluster: &Arc<MockCluster>, name: &str) -> Value {
    cluster.put(
        "computedomains",
        json!({
            "apiVersion": "resource.nvidia.com/v1beta1", "kind": "ComputeDomain",
            "metadata": {"name": name, "namespace": "team", "uid": format!("uid-{name}")},
            "spec": {"numNodes": 1, "channel": {"allocationMode": "All", "resourceClaimTemplate": {"name": format!("{name}-channels")}}},
        }),
    )
}

fn node(cluster: &Arc<MockCluster>, name: &str, domain: &str, ready: bool) {
    let (domain, address) = (format!("uid-{domain}"), "10.1.2.3".into());
    let member = Member { domain: domain.clone(), address, clique: "c.1".into(), ready, problem: String::new() };
    cluster.put(
        "nodes",
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "labels": {DOMAIN_LABEL: domain, "other": "kept"},
                "annotations": {MEMBER_ANNOTATION: serde_json::to_string(&member).unwrap()},
            },
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }),
    );
}

fn start(cluster: &Arc<MockCluster>, identity: &str) -> DomainController {
    DomainController::start(cluster.api(identity), "slipway-system".into(), identity.into())
}

/// Waits until a condition holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("timed out: {what}");
}

fn stored(cluster: &MockCluster, name: &str) -> Value {
    cluster.get("computedomains", "team", name).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn domain_gets_a_template_and_the_status_of_its_nodes() {
    let cluster = MockCluster::new();
    let created = domain(&cluster, "a");
    let controller = start(&cluster, "one");
    eventually("the template", || cluster.get("resourceclaimtemplates", "team", "a-channels").is_some()).await;
    let template = cluster.get("resourceclaimtemplates", "team", "a-channels").unwrap();
    let devices = &template["spec"]["spec"]["devices"];
    let class = "compute-domain-default-channel.nvidia.com";
    assert_eq!(devices["requests"], json!([{"name": "channel", "exactly": {"deviceClassName": class}}]));
    let parameters = json!({
        "apiVersion": "resource.nvidia.com/v1beta1", "kind": "ComputeDomainChannelConfig", "domainID": "uid-a", "allocationMode": "All",
    });
    let opaque = json!({"driver": "compute-domain.nvidia.com", "parameters": parameters});
    assert_eq!(devices["config"], json!([{"requests": ["channel"], "opaque": opaque}]));
    assert_eq!(template["metadata"]["ownerReferences"][0]["uid"], created["metadata"]["uid"]);
    eventually("the status", || stored(&cluster, "a")["status"]["status"] == "NotReady").await;
    assert_eq!(stored(&cluster, "a")["metadata"]["finalizers"], json!([FINALIZER]));
    node(&cluster, "n1", "a", false);
    eventually("the node", || stored(&cluster, "a")["status"]["nodes"][0]["status"] == "NotReady").await;
    node(&cluster, "n1", "a", true);
    eventually("readiness", || stored(&cluster, "a")["status"]["status"] == "Ready").await;
    let expected = json!([{"name": "n1", "ipAddress": "10.1.2.3", "cliqueID": "c.1", "index": 0, "status": "Ready"}]);
    assert_eq!(stored(&cluster, "a")["status"]["nodes"], expected);
    // A template that was deleted by hand is created again.
    cluster.remove("resourceclaimtemplates", "team", "a-channels");
    eventually("a new template", || cluster.get("resourceclaimtemplates", "team", "a-channels").is_some()).await;
    // A node that left is removed.
    cluster.change("nodes", "", "n1", json!({"metadata": {"labels": {DOMAIN_LABEL: null}, "annotations": null}}));
    cluster.break_watches();
    eventually("the node left", || stored(&cluster, "a")["status"]["nodes"] == json!([])).await;
    controller.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deleted_domain_leaves_nothing_behind_although_controllers_are_killed() {
    let cluster = MockCluster::new();
    domain(&cluster, "a");
    node(&cluster, "n1", "a", true);
    node(&cluster, "n2", "a", true);
    let first = start(&cluster, "first");
    eventually("both nodes", || stored(&cluster, "a")["status"]["nodes"].as_array().is_some_and(|n| n.len() == 2))
        .await;
    // The first controller removes one label, and then no request of it reaches the API server any more.
    let patched = std::sync::atomic::AtomicBool::new(false);
    cluster.faults(move |client, method, path| {
        let is_node = method == "PATCH" && path.contains("/nodes/");
        let dead = client == "first" && patched.load(std::sync::atomic::Ordering::SeqCst);
        if client == "first" && is_node {
            patched.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        if dead { Fault::Lost } else { Fault::None }
    });
    let api = cluster.api("user");
    api.delete(&COMPUTE_DOMAIN, Some("team"), "a").await.unwrap();
    let labelled = || {
        ["n1", "n2"]
            .iter()
            .filter(|n| cluster.get("nodes", "", n).unwrap()["metadata"]["labels"][DOMAIN_LABEL].is_string())
            .count()
    };
    eventually("one label is removed", || labelled() == 1).await;
    drop(first);
    let second = start(&cluster, "second");
    eventually("the domain is deleted", || cluster.get("computedomains", "team", "a").is_none()).await;
    assert_eq!(labelled(), 0);
    assert_eq!(cluster.get("nodes", "", "n1").unwrap()["metadata"]["labels"], json!({"other": "kept"}));
    assert!(cluster.names("resourceclaimtemplates").is_empty());
    // An agent that lagged behind labels a node with the deleted domain.
    node(&cluster, "n1", "a", true);
    eventually("the stale label is removed", || labelled() == 0).await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn template_of_somebody_else_is_kept_and_reported() {
    let cluster = MockCluster::new();
    let foreign = json!({"metadata": {"name": "a-channels", "namespace": "team"}, "spec": {"mine": true}});
    let foreign = cluster.put("resourceclaimtemplates", foreign);
    domain(&cluster, "a");
    let controller = start(&cluster, "one");
    let reported = || {
        let events = cluster.names("events");
        events.iter().any(|name| {
            let event = cluster.get("events", "team", name).unwrap_or_default();
            event["reason"] == "TemplateNameTaken" && event["type"] == "Warning" && event["regarding"]["name"] == "a"
        })
    };
    eventually("the event", reported).await;
    assert_eq!(cluster.get("resourceclaimtemplates", "team", "a-channels").unwrap(), foreign);
    cluster.remove("resourceclaimtemplates", "team", "a-channels");
    let own = || {
        let template = cluster.get("resourceclaimtemplates", "team", "a-channels").unwrap_or_default();
        template["metadata"]["labels"][DOMAIN_LABEL] == "uid-a"
    };
    eventually("its own template", own).await;
    controller.stop().await;
}

#[test]
fn definition_is_the_api_of_upstream() {
    let definition: Value = serde_saphyr::from_str(DEFINITION).unwrap();
    assert_eq!(definition["metadata"]["name"], "computedomains.resource.nvidia.com");
    assert_eq!(definition["spec"]["names"]["kind"], COMPUTE_DOMAIN.kind);
    let version = &definition["spec"]["versions"][0];
    assert_eq!((&version["name"], &version["subresources"]), (&json!("v1beta1"), &json!({"status": {}})));
    let properties = &version["schema"]["openAPIV3Schema"]["properties"];
    let spec = &properties["spec"]["properties"];
    assert_eq!((&spec["numNodes"]["default"], &spec["numNodes"]["minimum"]), (&json!(0), &json!(0)));
    assert_eq!(spec["channel"]["properties"]["allocationMode"]["enum"], json!(["All", "Single"]));
    let nodes = &properties["status"]["properties"]["nodes"];
    assert_eq!(nodes["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(nodes["items"]["required"], json!(["name", "ipAddress", "cliqueID"]));
}
