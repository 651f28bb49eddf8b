//! The pod of an attempt: renders the pod and its secret, and derives the observation of the attempt from the pod.

use serde_json::{Map, Value, json};
use slipway_core::clock::{now_ms, parse_rfc3339};
use slipway_core::ids::hex32;
use slipway_exec::lifecycle::{Observation, Outcome};
use slipway_exec::manifest::Metadata;
pub(super) use slipway_exec::pod::name;
use slipway_exec::pod::{ATTEMPT_LABEL, CONTAINER_NAME, UID_LABEL, labels, owner};
use slipway_exec::{Submitted, tracked_id};

use super::data::PodData;
use super::queues::{self, Gang, PLACEMENT_ANNOTATIONS, PodQueue};
use super::{RUN, Settings};
use crate::names::{FINALIZER, INSTALLATION_LABEL, RUN_LABEL, SECRET_PREFIX};

/// Key of the token in the secret of an attempt.
const TOKEN_KEY: &str = "token";
/// Key of the certificates in the secret of an attempt. The program verifies the control plane with them.
const CA_KEY: &str = "ca.crt";
/// Mount path of the certificates.
const CA_FOLDER: &str = "/var/run/slipway.dev";
/// Name of the volume with the certificates.
const CA_VOLUME: &str = "slipway-ca";

/// The secret of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AttemptSecret {
    pub(super) name: String,
    /// Whether the secret contains the certificates of the control plane's authority.
    pub(super) has_ca: bool,
}

/// Generates a name for the secret of an attempt. It contains a random part: another user who can create secrets in the namespace could
/// create a secret with a predictable name, and the run would use the token in it.
pub(super) fn secret_name(run: &Metadata, attempt: u32) -> String {
    format!("{SECRET_PREFIX}{}-{attempt}-{}", run.name, &hex32()[..12])
}

/// The secret of an attempt. The run owns it, so it is deleted with the run. It is immutable, so kubelets need not watch it.
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
    labels.insert(INSTALLATION_LABEL.into(), json!(settings.namespace));
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

/// The pods of an attempt as a group, whose name is that of the attempt's pod.
pub(super) fn gang<'a>(run: &'a Metadata, attempt: u32, name: &'a str) -> Gang<'a> {
    let labels = json!({UID_LABEL: run.uid, ATTEMPT_LABEL: attempt.to_string()});
    Gang { name, namespace: &run.namespace, owner: owner(run), labels }
}

/// The annotations of a run that concern the queue or the placement of its pods.
fn placement_annotations(run: &Metadata) -> Map<String, Value> {
    let is_of_placement =
        |key: &str| key.split_once('/').is_some_and(|(domain, _)| PLACEMENT_ANNOTATIONS.contains(&domain));
    run.annotations.iter().filter(|(k, _)| is_of_placement(k)).map(|(k, v)| (k.clone(), json!(v))).collect()
}

/// The pod of an attempt. `limit` is the time until the run's deadline, in milliseconds. The variables of the manifest come last, so they
/// override those of the installation.
pub(super) fn object(
    run: &Submitted,
    attempt: u32,
    limit: Option<i64>,
    secret: &AttemptSecret,
    data: PodData,
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
    env.extend(data.variable);
    volumes.as_array_mut().into_iter().for_each(|v| v.extend(data.volumes.iter().cloned()));
    mounts.as_array_mut().into_iter().for_each(|m| m.extend(data.mounts.iter().cloned()));
    env.extend(spec.env.iter().map(|v| json!(v)));
    let mut container = Map::new();
    let mut put = |key: &str, value: Value, is_set: bool| {
        if is_set {
            container.insert(key.into(), value);
        }
    };
    put("name", json!(CONTAINER_NAME), true);
    put("image", json!(spec.image), spec.image.is_some());
    put("imagePullPolicy", json!(spec.image_pull_policy), spec.image_pull_policy.is_some());
    put("command", json!(spec.command), !spec.command.is_empty());
    put("args", json!(spec.args), !spec.args.is_empty());
    put("workingDir", json!(spec.working_dir), spec.working_dir.is_some());
    put("env", json!(env), true);
    put("envFrom", json!(spec.env_from), !spec.env_from.is_empty());
    put("resources", json!(spec.resources), true);
    put("volumeMounts", mounts.clone(), mounts != json!([]));
    // If the program writes no termination message, use the last lines of its log.
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
    put("initContainers", json!(spec.init_containers), !spec.init_containers.is_empty());
    put("containers", json!([container]), true);
    // Each attempt has its own pod, and thus its own log and node.
    put("restartPolicy", json!("Never"), true);
    // Mount a token for the API server only if the run names a service account.
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
    // The kubelet enforces the deadline even while no controller is running.
    put("activeDeadlineSeconds", json!(limit.map(|ms| (ms.max(1000) + 999) / 1000)), limit.is_some());
    let mut all_labels: Map<String, Value> = metadata.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    all_labels.extend(labels(metadata, attempt));
    let mut annotations: Map<String, Value> = spec.pod_annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    annotations.extend(placement_annotations(metadata));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name(&metadata.name, attempt), "namespace": metadata.namespace, "labels": all_labels,
            "annotations": annotations, "finalizers": [FINALIZER], "ownerReferences": [owner(metadata)],
        },
        "spec": pod,
    })
}

/// The parts of a pod that the controller uses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pod {
    /// Namespace of the pod and of the run.
    pub(super) namespace: String,
    /// Name of the pod.
    pub(super) name: String,
    /// Name of the run.
    pub(super) run: String,
    /// Unique id of the run.
    pub(super) run_uid: String,
    /// Number of the attempt, from 1.
    pub(super) attempt: u32,
    /// Resource version of the pod.
    pub(super) version: u64,
    /// Observation of the attempt.
    pub(super) observation: Observation,
    /// The queue of the pod, if it has one.
    pub(super) queue: Option<PodQueue>,
    /// Whether the pod is being deleted.
    pub(super) deleting: bool,
    /// Whether the pod has slipway's finalizer.
    pub(super) has_finalizer: bool,
    /// Finalizers of other components.
    pub(super) other_finalizers: Vec<String>,
}

impl Pod {
    /// Parses a pod; `None` if it is not a pod of a run: the labels and the owner reference must agree. Any client that can create pods in
    /// the namespace can set both, so they are trusted only for runs in the same namespace.
    pub(super) fn from_object(object: &Value) -> Option<Self> {
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
        let (own_finalizers, other_finalizers): (Vec<String>, Vec<String>) =
            finalizers.filter_map(|f| f.as_str().map(str::to_owned)).partition(|f| f == FINALIZER);
        Some(Self {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            run: label(RUN_LABEL)?,
            run_uid: label(UID_LABEL)?,
            attempt: label(ATTEMPT_LABEL)?.parse().ok()?,
            version: crate::api::version(object),
            observation: observe(object),
            queue: PodQueue::from_object(object),
            deleting: metadata["deletionTimestamp"].is_string(),
            has_finalizer: !own_finalizers.is_empty(),
            other_finalizers,
        })
    }

    /// Whether the attempt has ended.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.observation, Observation::Finished { .. })
    }
}

/// Reasons in the status of a pod that mark a disruption (kubelet: eviction, node shutdown, preemption for critical pods).
const DISRUPTION_REASONS: [&str; 6] = ["Evicted", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "NodeLost"];

/// Derives the observation of an attempt from its pod.
fn observe(object: &Value) -> Observation {
    let status = &object["status"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |value: &Value| value.as_str().and_then(parse_rfc3339);
    let node = text(&object["spec"]["nodeName"]);
    let container = &status["containerStatuses"][0];
    let state = &container["state"];
    match status["phase"].as_str().unwrap_or_default() {
        "Succeeded" | "Failed" => {
            let terminated = &state["terminated"];
            let finished_at = time(&terminated["finishedAt"]).unwrap_or_else(now_ms);
            let started_at = time(&terminated["startedAt"]);
            Observation::Finished { started_at, finished_at, node, outcome: outcome(object, terminated) }
        }
        "Running" if state["running"].is_object() => {
            Observation::Running { started_at: time(&state["running"]["startedAt"]).unwrap_or_else(now_ms), node }
        }
        // A pod that is deleted before a kubelet accepts it stays in this state until it is deleted.
        _ => {
            if let Some((reason, message)) = unstarted_eviction(object) {
                let outcome = Outcome::Disrupted(reason, message);
                return Observation::Finished { started_at: None, finished_at: now_ms(), node, outcome };
            }
            // While an init container waits, the container waits only for it.
            let waiting = init_states(object, "waiting").next().map_or(&state["waiting"], |(_, waiting)| waiting);
            let conditions = status["conditions"].as_array();
            let unscheduled =
                conditions.into_iter().flatten().find(|c| c["type"] == "PodScheduled" && c["status"] == "False");
            let (reason, message) = match unscheduled {
                Some(condition) => (text(&condition["reason"]), text(&condition["message"])),
                None => (text(&waiting["reason"]), text(&waiting["message"])),
            };
            Observation::Waiting { reason, message }
        }
    }
}

/// The init containers of a pod that are in a state, such as `waiting`: their names and the details of the state.
fn init_states<'a>(object: &'a Value, state: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let containers = object["status"]["initContainerStatuses"].as_array();
    containers.into_iter().flatten().filter_map(move |container| {
        let details = &container["state"][state];
        details.is_object().then(|| (container["name"].as_str().unwrap_or_default(), details))
    })
}

/// Reason and message with which Kueue deletes a pod that was never scheduled, as when its workload is deleted. No kubelet ends such a pod.
fn unstarted_eviction(object: &Value) -> Option<(String, String)> {
    let is_unstarted = object["spec"]["nodeName"].is_null() && object["metadata"]["deletionTimestamp"].is_string();
    queues::eviction(object).filter(|_| is_unstarted)
}

/// The outcome of a finished attempt. `terminated` is the terminated state of its container.
fn outcome(object: &Value, terminated: &Value) -> Outcome {
    let status = &object["status"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reason = status["reason"].as_str().unwrap_or_default();
    let code = terminated["exitCode"].as_i64().and_then(|c| i32::try_from(c).ok());
    if status["phase"] == "Succeeded" {
        return Outcome::Exited(0);
    }
    if reason == "DeadlineExceeded" {
        return Outcome::TimedOut;
    }
    let conditions = status["conditions"].as_array();
    let target = conditions.into_iter().flatten().find(|c| c["type"] == "DisruptionTarget" && c["status"] == "True");
    if let Some(target) = target {
        return Outcome::Disrupted(text(&target["reason"]), text(&target["message"]));
    }
    if let Some((reason, message)) = queues::eviction(object) {
        return Outcome::Disrupted(reason, message);
    }
    let failed_init = init_states(object, "terminated").find(|(_, terminated)| terminated["exitCode"] != 0);
    if let (Some((name, details)), None, "") = (failed_init, code, reason) {
        let message = format!(
            "the init container {name} exited with code {}: {}",
            details["exitCode"],
            text(&details["message"])
        );
        return Outcome::CannotStart("InitError".into(), message);
    }
    if DISRUPTION_REASONS.contains(&reason) || (!reason.is_empty() && code.is_none()) {
        // A reason without an exit code: the kubelet rejected the pod, because another pod took its resources meanwhile.
        return Outcome::Disrupted(reason.to_owned(), text(&status["message"]));
    }
    match (terminated["reason"].as_str().unwrap_or_default(), code) {
        ("OOMKilled", _) => Outcome::OutOfMemory,
        ("StartError" | "ContainerCannotRun" | "CreateContainerError", _) => {
            Outcome::CannotStart("StartError".into(), text(&terminated["message"]))
        }
        (_, Some(_)) if object["metadata"]["deletionTimestamp"].is_string() => {
            Outcome::Disrupted("Deleted".into(), "the pod was deleted".into())
        }
        (_, Some(code)) => Outcome::Exited(code),
        (_, None) => Outcome::Disrupted("Lost".into(), "the kubelet reports no exit code".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_exec::Manifest;

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "a-1"}, "spec": {"nodeName": "n1"}, "status": status})
    }

    fn outcome_of(status: Value) -> Outcome {
        match observe(&pod(status)) {
            Observation::Finished { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn terminated(reason: &str, code: i32) -> Value {
        json!([{"state": {"terminated": {"reason": reason, "exitCode": code, "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": "2026-01-01T00:00:05Z", "message": "why"}}}])
    }

    #[test]
    fn outcomes_are_derived_from_pod_status() {
        let failed = |reason: &str, code| json!({"phase": "Failed", "containerStatuses": terminated(reason, code)});
        assert_eq!(
            outcome_of(json!({"phase": "Succeeded", "containerStatuses": terminated("Completed", 0)})),
            Outcome::Exited(0)
        );
        assert_eq!(outcome_of(failed("Error", 3)), Outcome::Exited(3));
        assert_eq!(outcome_of(failed("OOMKilled", 137)), Outcome::OutOfMemory);
        assert_eq!(outcome_of(failed("StartError", 128)), Outcome::CannotStart("StartError".into(), "why".into()));
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"});
        assert_eq!(outcome_of(evicted), Outcome::Disrupted("Evicted".into(), "low on memory".into()));
        let drained = json!({"phase": "Failed", "containerStatuses": terminated("Error", 143),
            "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drain"}]});
        assert_eq!(outcome_of(drained), Outcome::Disrupted("EvictionByEvictionAPI".into(), "drain".into()));
        let late =
            json!({"phase": "Failed", "reason": "DeadlineExceeded", "containerStatuses": terminated("Error", 137)});
        assert_eq!(outcome_of(late), Outcome::TimedOut);
        let preempted = json!({"phase": "Failed", "containerStatuses": terminated("Error", 143), "conditions": [
            {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvictedDueToPreempted", "message": "a higher priority"}]});
        assert_eq!(outcome_of(preempted), Outcome::Disrupted("Preempted".into(), "a higher priority".into()));
        let uninitialized = json!({"phase": "Failed", "containerStatuses": [{"state": {"waiting": {}}}],
            "initContainerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 2, "message": "why"}}}]});
        let message = "the init container a exited with code 2: why".to_owned();
        assert_eq!(outcome_of(uninitialized), Outcome::CannotStart("InitError".into(), message));
        let refused = json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no such device"});
        assert_eq!(outcome_of(refused), Outcome::Disrupted("UnexpectedAdmissionError".into(), "no such device".into()));
    }

    #[test]
    fn waiting_pod_has_a_reason() {
        let unschedulable = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}]});
        let expected =
            Observation::Waiting { reason: "Unschedulable".into(), message: "0/2 nodes are available".into() };
        assert_eq!(observe(&pod(unschedulable)), expected);
        let initializing = json!({"phase": "Pending",
            "initContainerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ErrImagePull"}}}],
            "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]});
        assert_eq!(
            observe(&pod(initializing)),
            Observation::Waiting { reason: "ErrImagePull".into(), message: String::new() }
        );
        let image =
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
        assert_eq!(
            observe(&pod(image)),
            Observation::Waiting { reason: "ImagePullBackOff".into(), message: String::new() }
        );
    }

    #[test]
    fn pod_is_rendered_from_the_manifest() {
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
            retry_delay: std::time::Duration::ZERO,
            default_queues: Default::default(),
        };
        let mut attempt_secret = AttemptSecret { name: secret_name(&run.manifest.metadata, 2), has_ca: false };
        let object = super::object(&run, 2, Some(8_200), &attempt_secret, PodData::default(), &settings);
        let spec = &object["spec"];
        assert_eq!(object["metadata"]["name"], "train-2");
        assert_eq!(spec["activeDeadlineSeconds"], 9);
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], 1);
        let env = spec["containers"][0]["env"].as_array().unwrap();
        assert_eq!(env.first().unwrap()["value"], "http://x");
        assert_eq!(env.last().unwrap(), &json!({"name": "LR", "value": "1"}));
        assert_eq!(Pod::from_object(&object).unwrap().attempt, 2);
        for owners in
            [json!(null), json!([]), json!([{"apiVersion": "v1", "kind": "Run", "name": "train", "uid": "1-2"}])]
        {
            let mut foreign = object.clone();
            foreign["metadata"]["ownerReferences"] = owners;
            assert_eq!(Pod::from_object(&foreign), None);
        }
        let mut foreign = object.clone();
        foreign["metadata"]["labels"][UID_LABEL] = json!("of another run");
        assert_eq!(Pod::from_object(&foreign), None);
        // The token is only in the secret of this attempt, which the run owns, and not in the pod.
        let secret = secret(&run.manifest.metadata, 2, &attempt_secret.name, "the token", None, &settings);
        let reference = env.iter().find(|v| v["name"] == "MLFLOW_TRACKING_TOKEN").unwrap();
        assert!(
            attempt_secret.name.starts_with("slipway-run-train-2-")
                && secret["metadata"]["name"] == attempt_secret.name.as_str()
        );
        assert_ne!(secret_name(&run.manifest.metadata, 2), attempt_secret.name, "the name is not predictable");
        assert_eq!(reference["valueFrom"]["secretKeyRef"], json!({"name": attempt_secret.name, "key": "token"}));
        assert_eq!(secret["metadata"]["ownerReferences"], object["metadata"]["ownerReferences"]);
        assert_eq!((&secret["stringData"], &secret["immutable"]), (&json!({"token": "the token"}), &json!(true)));
        assert!(!object.to_string().contains("the token"));
        assert!(spec["volumes"].is_null());
        // Certificates of a private authority are mounted where MLflow's clients find them.
        attempt_secret.has_ca = true;
        let object = super::object(&run, 2, None, &attempt_secret, PodData::default(), &settings);
        let spec = &object["spec"];
        assert_eq!(spec["volumes"][0]["secret"]["secretName"], attempt_secret.name.as_str());
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/slipway.dev");
        let env = spec["containers"][0]["env"].as_array().unwrap();
        let path = json!({"name": "MLFLOW_TRACKING_SERVER_CERT_PATH", "value": "/var/run/slipway.dev/ca.crt"});
        assert!(env.contains(&path));
        let secret = super::secret(&run.manifest.metadata, 2, "n", "t", Some("PEM"), &settings);
        assert_eq!(secret["stringData"]["ca.crt"], "PEM");
    }
}
