//! An attempt of a run as a pod: the pod and the secret that are made for it, and what is seen of the pod.

use serde_json::{Map, Value, json};
use slipway_core::clock::{now_ms, parse_rfc3339};
use slipway_core::ids::hex32;
use slipway_exec::lifecycle::{End, Seen};
use slipway_exec::manifest::Metadata;
use slipway_exec::{Submitted, tracked_id};

use super::{RUN, Settings};
use crate::names::{FINALIZER, INSTALLATION, RUN_LABEL, SECRET_PREFIX};

/// The unique id of the run, to tell it from an earlier one of the same name.
const UID_LABEL: &str = "slipway.dev/run-uid";
/// The number of the attempt.
const ATTEMPT_LABEL: &str = "slipway.dev/attempt";
/// The one container.
const CONTAINER: &str = "main";
/// In the secret of an attempt: the token that it tracks with.
const TOKEN_KEY: &str = "token";
/// In the secret of an attempt: the certificates by which it knows the control plane.
const CA_KEY: &str = "ca.crt";
/// Where the certificates are in the container.
const CA_FOLDER: &str = "/var/run/slipway.dev";
/// The volume that brings them there.
const CA_VOLUME: &str = "slipway-ca";

/// The name of an attempt's pod.
pub(super) fn name(run: &str, attempt: u32) -> String {
    format!("{run}-{attempt}")
}

/// The secret that was created for an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AttemptSecret {
    pub(super) name: String,
    /// Whether it holds the certificates of the control plane's authority.
    pub(super) has_ca: bool,
}

/// A name for a secret of an attempt. A part of it is random: a name that can be told in advance could be taken by somebody who may
/// create secrets there, and the run would track with a token of his.
pub(super) fn secret_name(run: &Metadata, attempt: u32) -> String {
    format!("{SECRET_PREFIX}{}-{attempt}-{}", run.name, &hex32()[..12])
}

fn owner(run: &Metadata) -> Value {
    json!({
        "apiVersion": "slipway.dev/v1", "kind": "Run", "name": run.name, "uid": run.uid,
        "controller": true, "blockOwnerDeletion": false,
    })
}

/// The labels by which everything that is made for an attempt is found.
fn labels(run: &Metadata, attempt: u32) -> Map<String, Value> {
    let mut labels = Map::new();
    labels.insert("app.kubernetes.io/managed-by".into(), json!("slipway"));
    labels.insert(RUN_LABEL.into(), json!(run.name));
    labels.insert(UID_LABEL.into(), json!(run.uid));
    labels.insert(ATTEMPT_LABEL.into(), json!(attempt.to_string()));
    labels
}

/// The secret of an attempt, which belongs to the run and is deleted with it. It never changes, so no kubelet has to watch it.
pub(super) fn secret(
    run: &Metadata,
    attempt: u32,
    name: &str,
    token: &str,
    ca: Option<&str>,
    settings: &Settings,
) -> Value {
    let mut labels = labels(run, attempt);
    labels.insert("app.kubernetes.io/name".into(), json!("slipway"));
    labels.insert(INSTALLATION.into(), json!(settings.namespace));
    let mut data = json!({TOKEN_KEY: token});
    if let Some(ca) = ca {
        data[CA_KEY] = json!(ca);
    }
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true, "stringData": data,
        "metadata": {
            "name": name, "namespace": run.namespace, "labels": labels,
            "ownerReferences": [owner(run)],
        },
    })
}

/// The pod of an attempt. `limit` is what is left of the run's deadline, in milliseconds; the installation's variables come before
/// the run's own, which may replace them.
pub(super) fn object(
    run: &Submitted,
    attempt: u32,
    limit: Option<i64>,
    secret: &AttemptSecret,
    settings: &Settings,
) -> Value {
    let (metadata, spec) = (&run.manifest.metadata, &run.manifest.spec);
    let variable = |name: &str, value: &str| json!({"name": name, "value": value});
    let mut env: Vec<Value> = settings.variables.iter().map(|(name, value)| variable(name, value)).collect();
    env.push(variable("MLFLOW_RUN_ID", &tracked_id(&metadata.uid)));
    env.push(variable("SLIPWAY_RUN", &metadata.name));
    env.push(
        json!({"name": "MLFLOW_TRACKING_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": TOKEN_KEY}}}),
    );
    let (mut volumes, mut mounts) = (json!(spec.volumes), json!(spec.volume_mounts));
    if secret.has_ca {
        env.push(variable("MLFLOW_TRACKING_SERVER_CERT_PATH", &format!("{CA_FOLDER}/{CA_KEY}")));
        let items = json!([{"key": CA_KEY, "path": CA_KEY}]);
        let volume = json!({"name": CA_VOLUME, "secret": {"secretName": secret.name, "items": items}});
        volumes.as_array_mut().into_iter().for_each(|v| v.push(volume.clone()));
        let mount = json!({"name": CA_VOLUME, "mountPath": CA_FOLDER, "readOnly": true});
        mounts.as_array_mut().into_iter().for_each(|m| m.push(mount.clone()));
    }
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
    put("volumeMounts", mounts.clone(), mounts != json!([]));
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
    // Another attempt is a pod of its own, so that each has its own log and node.
    put("restartPolicy", json!("Never"), true);
    // A run gets rights in the cluster only if it names a service account.
    put("automountServiceAccountToken", json!(false), spec.service_account_name.is_none());
    put("serviceAccountName", json!(spec.service_account_name), spec.service_account_name.is_some());
    put("volumes", volumes.clone(), volumes != json!([]));
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
    let mut all_labels: Map<String, Value> = metadata.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    all_labels.extend(labels(metadata, attempt));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name(&metadata.name, attempt), "namespace": metadata.namespace, "labels": all_labels,
            "finalizers": [FINALIZER], "ownerReferences": [owner(metadata)],
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
    /// The run that it is an attempt of.
    pub(super) run: String,
    /// That run's unique id.
    pub(super) run_uid: String,
    /// Which attempt, from 1.
    pub(super) attempt: u32,
    /// The version of the object.
    pub(super) version: u64,
    /// What is seen of the attempt.
    pub(super) seen: Seen,
    /// Whether it is being deleted.
    pub(super) leaving: bool,
    /// Whether our finalizer keeps it.
    pub(super) held: bool,
    /// The finalizers of others.
    pub(super) others: Vec<String>,
}

impl Pod {
    /// Of an object; `None` for one that is no run's: the labels and the owner must say the same. Whoever may create pods in a
    /// namespace can write both, so neither says anything about another namespace.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let owners = metadata["ownerReferences"].as_array();
        let is_owned = owners.into_iter().flatten().any(|o| {
            o["apiVersion"] == RUN.api_version()
                && o["kind"] == RUN.kind
                && o["name"] == metadata["labels"][RUN_LABEL]
                && o["uid"] == metadata["labels"][UID_LABEL]
        });
        if !is_owned {
            return None;
        }
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

/// What is seen of an attempt, by its pod.
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
        let settings = Settings {
            namespace: "slipway-system".into(),
            identity: "me".into(),
            variables: vec![("MLFLOW_TRACKING_URI".into(), "http://x".into())],
            ca_file: None,
            token: std::sync::Arc::new(|_| Box::pin(async { Ok(String::new()) })),
            patience: std::time::Duration::ZERO,
        };
        let mut made = AttemptSecret { name: secret_name(&run.manifest.metadata, 2), has_ca: false };
        let object = super::object(&run, 2, Some(8_200), &made, &settings);
        let spec = &object["spec"];
        assert_eq!(object["metadata"]["name"], "train-2");
        assert_eq!(spec["activeDeadlineSeconds"], 9);
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], 1);
        let env = spec["containers"][0]["env"].as_array().unwrap();
        assert_eq!(env.first().unwrap()["value"], "http://x");
        assert_eq!(env.last().unwrap(), &json!({"name": "LR", "value": "1"}));
        assert_eq!(Pod::of(&object).unwrap().attempt, 2);
        for owners in
            [json!(null), json!([]), json!([{"apiVersion": "v1", "kind": "Run", "name": "train", "uid": "1-2"}])]
        {
            let mut strange = object.clone();
            strange["metadata"]["ownerReferences"] = owners;
            assert_eq!(Pod::of(&strange), None);
        }
        let mut strange = object.clone();
        strange["metadata"]["labels"][UID_LABEL] = json!("of another run");
        assert_eq!(Pod::of(&strange), None);
        // The token is in a secret of this attempt alone, which goes with the run and never lies in the pod itself.
        let secret = secret(&run.manifest.metadata, 2, &made.name, "the token", None, &settings);
        let reference = env.iter().find(|v| v["name"] == "MLFLOW_TRACKING_TOKEN").unwrap();
        assert!(made.name.starts_with("slipway-run-train-2-") && secret["metadata"]["name"] == made.name.as_str());
        assert_ne!(secret_name(&run.manifest.metadata, 2), made.name, "nobody can tell it in advance");
        assert_eq!(reference["valueFrom"]["secretKeyRef"], json!({"name": made.name, "key": "token"}));
        assert_eq!(secret["metadata"]["ownerReferences"], object["metadata"]["ownerReferences"]);
        assert_eq!((&secret["stringData"], &secret["immutable"]), (&json!({"token": "the token"}), &json!(true)));
        assert!(!object.to_string().contains("the token"));
        assert!(spec["volumes"].is_null());
        // With certificates of a private authority the program finds them where MLflow's clients look.
        made.has_ca = true;
        let object = super::object(&run, 2, None, &made, &settings);
        let spec = &object["spec"];
        assert_eq!(spec["volumes"][0]["secret"]["secretName"], made.name.as_str());
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/slipway.dev");
        let env = spec["containers"][0]["env"].as_array().unwrap();
        let path = json!({"name": "MLFLOW_TRACKING_SERVER_CERT_PATH", "value": "/var/run/slipway.dev/ca.crt"});
        assert!(env.contains(&path));
        let secret = super::secret(&run.manifest.metadata, 2, "n", "t", Some("PEM"), &settings);
        assert_eq!(secret["stringData"]["ca.crt"], "PEM");
    }
}
