//! Why a pod waits in its queue, from the objects in which each system publishes it, and why a system ended a pod.
//!
//! Sources: Kueue `apis/kueue/v1beta2/workload_types.go` (conditions), `apis/visibility/v1beta1/types.go` (positions) and
//! `pkg/controller/jobs/pod/pod_controller.go` (`TerminationTarget`); Volcano `apis/pkg/apis/scheduling/v1beta1/types.go`; KAI
//! `pkg/apis/scheduling/v2alpha2/podgroup_types.go`.

use serde_json::Value;
use slipway_core::clock::parse_rfc3339;
use slipway_exec::lifecycle::Observation;
use slipway_exec::status::QUEUED;
use slipway_exec::{QueueStatus, QueueSystem, queueing};

use super::Queues;
use super::placement::{KUEUE_GROUP, VOLCANO_GROUP};
use crate::{KubeError, Resource};

/// Prefix of the scheduling gates with which Kueue holds a pod back: `admission`, `topology`.
const KUEUE_GATES: &str = "kueue.x-k8s.io/";
/// Label on Kueue's workloads with the UID of the pod.
const KUEUE_JOB_UID: &str = "kueue.x-k8s.io/job-uid";
/// Prefix of the reasons with which Kueue ends a pod; the reason of the eviction follows.
const KUEUE_EVICTED: &str = "WorkloadEvictedDueTo";
/// Annotation on a pod with the name of KAI's pod group.
const KAI_GROUP: &str = "pod-group-name";
/// Number of waiting workloads whose positions are read.
const MAX_POSITIONS: u32 = 1000;
const KAI_POD_GROUP: Resource<'static> =
    Resource { group: "scheduling.run.ai", version: "v2alpha2", kind: "PodGroup", plural: "podgroups" };
/// Volcano's pod group, which the controller also creates.
pub(in crate::runs) const VOLCANO_POD_GROUP: Resource<'static> =
    Resource { group: "scheduling.volcano.sh", version: "v1beta1", kind: "PodGroup", plural: "podgroups" };

/// The queue of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::runs) struct PodQueue {
    pub(in crate::runs) status: QueueStatus,
    /// UID of the pod.
    uid: String,
    /// Name of the pod group, if the pod has one.
    group: Option<String>,
    /// Whether a scheduling gate of Kueue holds the pod back.
    is_gated: bool,
    /// Whether the pod has a node, so that it no longer waits for its queue.
    has_node: bool,
    /// When the pod was created, in milliseconds since the Unix epoch.
    pub(in crate::runs) created_at: i64,
}

impl PodQueue {
    /// The queue that a pod's labels and annotations name.
    pub(in crate::runs) fn from_object(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let (labels, annotations) = (&metadata["labels"], &metadata["annotations"]);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (name, system, group) = if let Some(name) = text(&labels[queueing::KUEUE_QUEUE]) {
            (name, QueueSystem::Kueue, text(&labels[KUEUE_GROUP]))
        } else if let Some(name) = text(&annotations[queueing::VOLCANO_QUEUE]) {
            (name, QueueSystem::Volcano, text(&annotations[VOLCANO_GROUP]))
        } else {
            let name = text(&labels[queueing::KAI_QUEUE]).or_else(|| text(&labels[queueing::KAI_QUEUE_BEFORE_0_6]))?;
            (name, QueueSystem::Kai, text(&annotations[KAI_GROUP]))
        };
        let mut gates = object["spec"]["schedulingGates"].as_array().into_iter().flatten();
        Some(Self {
            status: QueueStatus { name, system, position: None },
            uid: text(&metadata["uid"]).unwrap_or_default(),
            group,
            is_gated: gates.any(|g| g["name"].as_str().is_some_and(|n| n.starts_with(KUEUE_GATES))),
            has_node: object["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty()),
            created_at: metadata["creationTimestamp"].as_str().and_then(parse_rfc3339).unwrap_or(0),
        })
    }

    fn message(&self, why: &str) -> String {
        let position = self.status.position.map_or(String::new(), |p| format!(", position {p}"));
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        format!("in queue {} of {}{position}{why}", self.status.name, self.status.system)
    }
}

impl Queues {
    /// What a pod that is not running waits for, with its position set in `queue`; `None` if it does not wait for its queue.
    pub(in crate::runs) async fn explain(&self, namespace: &str, queue: &mut PodQueue) -> Option<Observation> {
        let why = match queue.status.system {
            _ if queue.has_node => return None,
            QueueSystem::Kueue if !queue.is_gated => return None,
            QueueSystem::Kueue => self.kueue(namespace, queue).await,
            QueueSystem::Volcano => self.volcano(namespace, queue).await,
            QueueSystem::Kai => self.kai(namespace, queue).await,
        };
        let why = match why {
            Ok(why) => why,
            Err(error) => {
                tracing::debug!(namespace, queue = queue.status.name, %error, "cannot read why a pod is queued");
                // The gate alone shows that the pod is queued; the other systems only publish it in the object.
                (queue.status.system == QueueSystem::Kueue).then(String::new)
            }
        };
        why.map(|why| Observation::Waiting { reason: QUEUED.into(), message: queue.message(&why) })
    }

    async fn kueue(&self, namespace: &str, queue: &mut PodQueue) -> Result<Option<String>, KubeError> {
        let groups = self.groups().await?;
        let version = groups.get("kueue.x-k8s.io").and_then(|v| v.first()).map_or("v1beta1", String::as_str);
        let resource = Resource { group: "kueue.x-k8s.io", version, kind: "Workload", plural: "workloads" };
        let workload = match &queue.group {
            Some(name) => self.api.get(&resource, Some(namespace), name).await?,
            None => {
                let selector = format!("{KUEUE_JOB_UID}={}", queue.uid);
                self.api.list(&resource, Some(namespace), "", &selector).await?.into_iter().next()
            }
        };
        let Some(workload) = workload else { return Ok(Some("kueue has not created its workload yet".into())) };
        if condition(&workload, "QuotaReserved", "True").is_none() {
            let name = workload["metadata"]["name"].as_str().unwrap_or_default();
            queue.status.position = self.position(namespace, &queue.status.name, name).await;
        }
        Ok(Some(kueue_message(&workload)))
    }

    /// The position of a workload in its local queue, from 1; `None` if Kueue does not publish it.
    async fn position(&self, namespace: &str, queue: &str, workload: &str) -> Option<u32> {
        const GROUP: &str = "visibility.kueue.x-k8s.io";
        let groups = self.groups().await.ok()?;
        let version = groups.get(GROUP)?.first()?;
        let path = format!(
            "/apis/{GROUP}/{version}/namespaces/{namespace}/localqueues/{queue}/pendingworkloads?limit={MAX_POSITIONS}"
        );
        let summary = self.api.read(&path).await.ok()?;
        let found = summary["items"].as_array()?.iter().find(|w| w["metadata"]["name"] == workload)?;
        u32::try_from(found["positionInLocalQueue"].as_u64().unwrap_or(0)).ok()?.checked_add(1)
    }

    /// A pod group that is pending waits for the queue; afterwards its pods wait for nodes, which the scheduler explains on the pods.
    async fn volcano(&self, namespace: &str, queue: &PodQueue) -> Result<Option<String>, KubeError> {
        let Some(name) = &queue.group else { return Ok(None) };
        let Some(group) = self.api.get(&VOLCANO_POD_GROUP, Some(namespace), name).await? else { return Ok(None) };
        Ok(volcano_message(&group))
    }

    async fn kai(&self, namespace: &str, queue: &PodQueue) -> Result<Option<String>, KubeError> {
        let Some(name) = &queue.group else { return Ok(None) };
        let Some(group) = self.api.get(&KAI_POD_GROUP, Some(namespace), name).await? else { return Ok(None) };
        Ok(kai_message(&group))
    }
}

/// The condition of this type and status.
fn condition<'a>(object: &'a Value, kind: &str, status: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|c| c["type"] == kind && c["status"] == status)
}

/// Why Kueue does not admit a workload: it has no quota, or a check after the reservation of the quota has not passed.
fn kueue_message(workload: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if workload["spec"]["active"] == false {
        return "the workload is deactivated; kubectl patch it with spec.active: true".into();
    }
    if let Some(condition) = condition(workload, "QuotaReserved", "False") {
        return text(&condition["message"]);
    }
    let checks = workload["status"]["admissionChecks"].as_array();
    let mut pending = checks.into_iter().flatten().filter(|c| c["state"] != "Ready");
    match pending.next() {
        Some(check) => {
            let (name, state, message) = (text(&check["name"]), text(&check["state"]), text(&check["message"]));
            let message = if message.is_empty() { String::new() } else { format!(": {message}") };
            format!("admission check {name} is {}{message}", state.to_lowercase())
        }
        None => condition(workload, "Admitted", "False").map_or(String::new(), |c| text(&c["message"])),
    }
}

/// Why Volcano does not start a pod group; `None` if the group has left its queue.
fn volcano_message(group: &Value) -> Option<String> {
    match group["status"]["phase"].as_str().unwrap_or("Pending") {
        "Pending" => {
            let message = condition(group, "Unschedulable", "True").and_then(|c| c["message"].as_str());
            Some(message.unwrap_or("the pod group is pending").to_owned())
        }
        _ => None,
    }
}

/// Why KAI does not start a pod group; `None` if it publishes nothing.
fn kai_message(group: &Value) -> Option<String> {
    let condition = group["status"]["schedulingConditions"].as_array()?.iter().rfind(|c| c["status"] != "False")?;
    let reasons = condition["reasons"].as_array().into_iter().flatten();
    let explained: Vec<&str> = reasons.filter_map(|r| r["message"].as_str()).filter(|m| !m.is_empty()).collect();
    if explained.is_empty() { condition["message"].as_str().map(str::to_owned) } else { Some(explained.join("; ")) }
}

/// Why Kueue ends a pod: reason and message of the condition `TerminationTarget`, which it sets before it deletes the pod. An evicted
/// workload has the reason of its eviction, such as `Preempted`.
pub(in crate::runs) fn eviction(pod: &Value) -> Option<(String, String)> {
    let condition = condition(pod, "TerminationTarget", "True")?;
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let reason = text("reason");
    Some((reason.strip_prefix(KUEUE_EVICTED).map_or_else(|| reason.clone(), str::to_owned), text("message")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kueue_explains_quota_then_checks() {
        let quota = json!({"status": {"conditions": [{"type": "QuotaReserved", "status": "False", "reason": "Pending",
            "message": "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor h100, 4 more needed"}]}});
        assert!(kueue_message(&quota).contains("insufficient unused quota for nvidia.com/gpu"));
        let checks = json!({"status": {"conditions": [{"type": "QuotaReserved", "status": "True"}],
            "admissionChecks": [{"name": "a", "state": "Ready"}, {"name": "capacity", "state": "Pending", "message": "no nodes yet"}]}});
        assert_eq!(kueue_message(&checks), "admission check capacity is pending: no nodes yet");
        assert!(kueue_message(&json!({"spec": {"active": false}})).contains("deactivated"));
    }

    #[test]
    fn pod_groups_explain_the_queue_only_while_they_wait_for_it() {
        let group = |phase: &str| {
            json!({"status": {"phase": phase, "conditions": [{"type": "Unschedulable", "status": "True",
            "message": "queue resource quota insufficient: insufficient nvidia.com/gpu"}]}})
        };
        assert!(volcano_message(&group("Pending")).unwrap().contains("quota insufficient"));
        assert_eq!(volcano_message(&group("Inqueue")), None);
        let over = json!({"status": {"schedulingConditions": [{"type": "UnschedulableOnNodePool", "status": "True", "message": "old",
            "reasons": [{"reason": "OverLimit", "message": "gpus quota has reached the allowable limit"}]}]}});
        assert_eq!(kai_message(&over).unwrap(), "gpus quota has reached the allowable limit");
        assert_eq!(kai_message(&json!({"status": {}})), None);
    }

    #[test]
    fn eviction_has_the_reason_of_the_queue() {
        let pod = |reason: &str| json!({"status": {"conditions": [{"type": "TerminationTarget", "status": "True", "reason": reason, "message": "m"}]}});
        assert_eq!(eviction(&pod("WorkloadEvictedDueToPreempted")), Some(("Preempted".into(), "m".into())));
        assert_eq!(eviction(&pod("WorkloadDeleted")), Some(("WorkloadDeleted".into(), "m".into())));
        assert_eq!(eviction(&json!({"status": {}})), None);
    }
}
