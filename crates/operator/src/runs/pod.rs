//! A try of a run as a pod: the pod that is made for it, and what is seen of that pod.

use serde_json::{Map, Value, json};
use slipway_core::clock::{now_ms, parse_rfc3339};
use slipway_exec::lifecycle::{End, Seen};
use slipway_exec::{Submitted, tracked_id};

/// On every pod of a run: the run's name.
pub const RUN_LABEL: &str = "slipway.dev/run";
/// The unique id of the run, to tell it from an earlier one of the same name.
const UID_LABEL: &str = "slipway.dev/run-uid";
/// The number of the try.
const ATTEMPT_LABEL: &str = "slipway.dev/attempt";
/// Keeps a pod until what became of it is written down (as a job's `batch.kubernetes.io/job-tracking`).
pub const FINALIZER: &str = "slipway.dev/run";
/// The one container.
const CONTAINER: &str = "main";
/// The secret with the token that runs of a namespace track with.
pub(super) const TOKEN_SECRET: &str = "slipway-run";

/// The name of a try's pod.
pub(super) fn name(run: &str, attempt: u32) -> String {
    format!("{run}-{attempt}")
}

/// The pod of a try. `limit` is what is left of the run's deadline, in milliseconds; `variables` come before the run's own.
pub(super) fn object(run: &Submitted, attempt: u32, limit: Option<i64>, variables: &[(String, String)]) -> Value {
    let (metadata, spec) = (&run.manifest.metadata, &run.manifest.spec);
    let mut env: Vec<Value> = variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    env.push(json!({"name": "MLFLOW_RUN_ID", "value": tracked_id(&metadata.uid)}));
    env.push(json!({"name": "SLIPWAY_RUN", "value": metadata.name}));
    env.push(json!({"name": "MLFLOW_TRACKING_TOKEN", "valueFrom": {"secretKeyRef": {
        "name": TOKEN_SECRET, "key": "token", "optional": true,
    }}}));
    env.extend(spec.env.iter().map(|v| json!(v)));
    let mut container = Map::new();
    let mut put = |key: &str, value: Value, is_set: bool| {
        if is_set {
            container.insert(key.into(), value);
        }
    };
    put("name", json!(CONTAINER), true);
    put("image", json!(spec.image), spec.image.is_some());
    put("imagePullPolicy", json!(spec.image_pull_policy), spec.image_pull_policy.is_some());
    put("command", json!(spec.command), !spec.command.is_empty());
    put("args", json!(spec.args), !spec.args.is_empty());
    put("workingDir", json!(spec.working_dir), spec.working_dir.is_some());
    put("env", json!(env), true);
    put("envFrom", json!(spec.env_from), !spec.env_from.is_empty());
    put("resources", json!(spec.resources), true);
    put("volumeMounts", json!(spec.volume_mounts), !spec.volume_mounts.is_empty());
    // The last lines say why it failed, where the program writes no message of its own.
    put("terminationMessagePolicy", json!("FallbackToLogsOnError"), true);
    let security = spec.security_context.clone().unwrap_or_else(|| {
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}})
    });
    put("securityContext", security, true);
    let mut pod = Map::new();
    let mut put = |key: &str, value: Value, is_set: bool| {
        if is_set {
            pod.insert(key.into(), value);
        }
    };
    put("containers", json!([container]), true);
    // A try again is a pod of its own, so that each has its log and its node.
    put("restartPolicy", json!("Never"), true);
    // Nobody's token by default: what a run may do in the cluster is asked for by naming an account.
    put("automountServiceAccountToken", json!(false), spec.service_account_name.is_none());
    put("serviceAccountName", json!(spec.service_account_name), spec.service_account_name.is_some());
    put("volumes", json!(spec.volumes), !spec.volumes.is_empty());
    put("resourceClaims", json!(spec.resource_claims), !spec.resource_claims.is_empty());
    put("nodeSelector", json!(spec.node_selector), !spec.node_selector.is_empty());
    put("affinity", json!(spec.affinity), spec.affinity.is_some());
    put("tolerations", json!(spec.tolerations), !spec.tolerations.is_empty());
    put("imagePullSecrets", json!(spec.image_pull_secrets), !spec.image_pull_secrets.is_empty());
    put("priorityClassName", json!(spec.priority_class_name), spec.priority_class_name.is_some());
    put("runtimeClassName", json!(spec.runtime_class_name), spec.runtime_class_name.is_some());
    put("schedulerName", json!(spec.scheduler_name), spec.scheduler_name.is_some());
    let grace = spec.termination_grace_period_seconds;
    put("terminationGracePeriodSeconds", json!(grace), grace.is_some());
    // The kubelet ends it in time even when nobody else is there to do so.
    put("activeDeadlineSeconds", json!(limit.map(|ms| (ms.max(1000) + 999) / 1000)), limit.is_some());
    let mut labels = metadata.labels.clone();
    labels.insert("app.kubernetes.io/managed-by".into(), "slipway".into());
    labels.insert(RUN_LABEL.into(), metadata.name.clone());
    labels.insert(UID_LABEL.into(), metadata.uid.clone());
    labels.insert(ATTEMPT_LABEL.into(), attempt.to_string());
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name(&metadata.name, attempt), "namespace": metadata.namespace, "labels": labels,
            "finalizers": [FINALIZER],
            "ownerReferences": [{
                "apiVersion": "slipway.dev/v1", "kind": "Run", "name": metadata.name, "uid": metadata.uid,
                "controller": true, "blockOwnerDeletion": false,
            }],
        },
        "spec": pod,
    })
}

/// What matters of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pod {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// The run that it is a try of.
    pub(super) run: String,
    /// That run's unique id.
    pub(super) run_uid: String,
    /// Which try.
    pub(super) attempt: u32,
    /// The version of the object.
    pub(super) version: u64,
    /// What is seen of the try.
    pub(super) seen: Seen,
    /// Whether it is being deleted.
    pub(super) leaving: bool,
    /// Whether our finalizer keeps it.
    pub(super) held: bool,
    /// The finalizers of others.
    pub(super) others: Vec<String>,
}

impl Pod {
    /// Of an object; `None` for one that is no run's.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let label = |name: &str| metadata["labels"][name].as_str().map(str::to_owned);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let finalizers = metadata["finalizers"].as_array().into_iter().flatten();
        let (ours, others): (Vec<String>, Vec<String>) =
            finalizers.filter_map(|f| f.as_str().map(str::to_owned)).partition(|f| f == FINALIZER);
        Some(Self {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            run: label(RUN_LABEL)?,
            run_uid: label(UID_LABEL)?,
            attempt: label(ATTEMPT_LABEL)?.parse().ok()?,
            version: super::version(object),
            seen: seen(object),
            leaving: metadata["deletionTimestamp"].is_string(),
            held: !ours.is_empty(),
            others,
        })
    }

    /// Whether its program has ended or never will begin.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.seen, Seen::Over { .. })
    }
}

/// Reasons of a pod that say that it was ended by no fault of its own (kubelet: eviction, node shutdown, preemption for critical pods).
const DISRUPTED: [&str; 6] = ["Evicted", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "NodeLost"];

/// What is seen of a try, by its pod.
fn seen(object: &Value) -> Seen {
    let status = &object["status"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |value: &Value| value.as_str().and_then(parse_rfc3339);
    let node = text(&object["spec"]["nodeName"]);
    let container = &status["containerStatuses"][0];
    let state = &container["state"];
    match status["phase"].as_str().unwrap_or_default() {
        "Succeeded" | "Failed" => {
            let ended = &state["terminated"];
            let at = time(&ended["finishedAt"]).unwrap_or_else(now_ms);
            Seen::Over { since: time(&ended["startedAt"]), at, node, end: end(object, ended) }
        }
        "Running" if state["running"].is_object() => {
            Seen::Running { since: time(&state["running"]["startedAt"]).unwrap_or_else(now_ms), node }
        }
        // A pod that was deleted before a kubelet took it goes without an end.
        _ => {
            let waiting = &state["waiting"];
            let conditions = status["conditions"].as_array();
            let unscheduled =
                conditions.into_iter().flatten().find(|c| c["type"] == "PodScheduled" && c["status"] == "False");
            let (reason, message) = match unscheduled {
                Some(condition) => (text(&condition["reason"]), text(&condition["message"])),
                None => (text(&waiting["reason"]), text(&waiting["message"])),
            };
            Seen::Waiting { reason, message }
        }
    }
}

fn end(object: &Value, ended: &Value) -> End {
    let status = &object["status"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reason = status["reason"].as_str().unwrap_or_default();
    let code = ended["exitCode"].as_i64().and_then(|c| i32::try_from(c).ok());
    if status["phase"] == "Succeeded" {
        return End::Exited(0);
    }
    if reason == "DeadlineExceeded" {
        return End::TimedOut;
    }
    let conditions = status["conditions"].as_array();
    let target = conditions.into_iter().flatten().find(|c| c["type"] == "DisruptionTarget" && c["status"] == "True");
    if let Some(target) = target {
        return End::Disrupted(text(&target["reason"]), text(&target["message"]));
    }
    if DISRUPTED.contains(&reason) || (!reason.is_empty() && code.is_none()) {
        // The second: the kubelet turned it away, since what it asks for went to somebody else meanwhile.
        return End::Disrupted(reason.to_owned(), text(&status["message"]));
    }
    match (ended["reason"].as_str().unwrap_or_default(), code) {
        ("OOMKilled", _) => End::OutOfMemory,
        ("StartError" | "ContainerCannotRun" | "CreateContainerError", _) => {
            End::Impossible("StartError".into(), text(&ended["message"]))
        }
        (_, Some(_)) if object["metadata"]["deletionTimestamp"].is_string() => {
            End::Disrupted("Deleted".into(), "its pod was deleted".into())
        }
        (_, Some(code)) => End::Exited(code),
        (_, None) => End::Disrupted("Lost".into(), "the kubelet does not know how it ended".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_exec::Manifest;

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "a-1"}, "spec": {"nodeName": "n1"}, "status": status})
    }

    fn how(status: Value) -> End {
        match seen(&pod(status)) {
            Seen::Over { end, .. } => end,
            other => panic!("{other:?}"),
        }
    }

    fn terminated(reason: &str, code: i32) -> Value {
        json!([{"state": {"terminated": {"reason": reason, "exitCode": code, "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": "2026-01-01T00:00:05Z", "message": "why"}}}])
    }

    #[test]
    fn ends_are_told_apart() {
        let failed = |reason: &str, code| json!({"phase": "Failed", "containerStatuses": terminated(reason, code)});
        assert_eq!(how(json!({"phase": "Succeeded", "containerStatuses": terminated("Completed", 0)})), End::Exited(0));
        assert_eq!(how(failed("Error", 3)), End::Exited(3));
        assert_eq!(how(failed("OOMKilled", 137)), End::OutOfMemory);
        assert_eq!(how(failed("StartError", 128)), End::Impossible("StartError".into(), "why".into()));
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"});
        assert_eq!(how(evicted), End::Disrupted("Evicted".into(), "low on memory".into()));
        let drained = json!({"phase": "Failed", "containerStatuses": terminated("Error", 143),
            "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drain"}]});
        assert_eq!(how(drained), End::Disrupted("EvictionByEvictionAPI".into(), "drain".into()));
        let late =
            json!({"phase": "Failed", "reason": "DeadlineExceeded", "containerStatuses": terminated("Error", 137)});
        assert_eq!(how(late), End::TimedOut);
        let refused = json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no such device"});
        assert_eq!(how(refused), End::Disrupted("UnexpectedAdmissionError".into(), "no such device".into()));
    }

    #[test]
    fn waiting_says_what_for() {
        let unschedulable = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}]});
        let expected = Seen::Waiting { reason: "Unschedulable".into(), message: "0/2 nodes are available".into() };
        assert_eq!(seen(&pod(unschedulable)), expected);
        let image =
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
        assert_eq!(seen(&pod(image)), Seen::Waiting { reason: "ImagePullBackOff".into(), message: String::new() });
    }

    #[test]
    fn a_pod_is_what_the_run_says() {
        let text = "apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {name: train, namespace: a, uid: 1-2}\nspec:\n  image: i\n  \
            command: [python]\n  args: [x]\n  env: [{name: LR, value: '1'}]\n  resources: {limits: {nvidia.com/gpu: 1}}\n  \
            activeDeadlineSeconds: 9\n  nodeSelector: {a: b}";
        let run = Submitted { manifest: Manifest::parse(text).unwrap(), status: Default::default() };
        let object = object(&run, 2, Some(8_200), &[("MLFLOW_TRACKING_URI".into(), "http://x".into())]);
        let spec = &object["spec"];
        assert_eq!(object["metadata"]["name"], "train-2");
        assert_eq!(spec["activeDeadlineSeconds"], 9);
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], 1);
        let env = spec["containers"][0]["env"].as_array().unwrap();
        assert_eq!(env.first().unwrap()["value"], "http://x");
        assert_eq!(env.last().unwrap(), &json!({"name": "LR", "value": "1"}));
        assert_eq!(Pod::of(&object).unwrap().attempt, 2);
    }
}
