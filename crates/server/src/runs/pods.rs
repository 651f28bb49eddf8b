//! Attempts as pods: a process of this machine in the form in which a cluster shows the pod of an attempt. Nothing reads these pods back; they
//! are derived from the run.

use serde_json::{Map, Value, json};
use slipway_core::clock::rfc3339;
use slipway_exec::manifest::Metadata;
use slipway_exec::status::Time;
use slipway_exec::{Attempt, Manifest, RunStatus, pod};
use slipway_objects::Object;
use slipway_objects::meta::{ObjectMeta, OwnerReference};

/// The exit code that kubectl shows for a program that could not be started, as kubelets report it.
const NOT_STARTED: i32 = 128;
/// The exit code that kubectl shows for a program that was stopped: 128 plus the number of SIGTERM.
const STOPPED: i32 = 143;

/// The pod of an attempt, without the metadata that the store sets.
pub(super) fn of_attempt(run: &Manifest, status: &RunStatus, attempt: &Attempt) -> Object {
    let metadata = &run.metadata;
    let labels = pod::labels(metadata, attempt.number).into_iter();
    let labels = labels.filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
    let is_finished = attempt.finished_at.is_some();
    let body = [("spec".to_owned(), spec(run, attempt)), ("status".to_owned(), self::status(run, status, attempt))];
    Object {
        metadata: ObjectMeta {
            name: pod::name(&metadata.name, attempt.number),
            namespace: metadata.namespace.clone(),
            labels: metadata.labels.clone().into_iter().chain(labels).collect(),
            annotations: run.spec.pod_annotations.clone(),
            owner_references: vec![owner(metadata)],
            finalizers: if is_finished { Vec::new() } else { vec![pod::FINALIZER.to_owned()] },
            ..ObjectMeta::default()
        },
        body: body.into_iter().collect(),
        ..Object::default()
    }
}

fn owner(run: &Metadata) -> OwnerReference {
    serde_json::from_value(pod::owner(run)).expect("the value has the fields of an owner reference")
}

fn spec(run: &Manifest, attempt: &Attempt) -> Value {
    let spec = &run.spec;
    let mut container = Map::new();
    let mut put = |key: &str, value: Value, is_set: bool| {
        if is_set {
            container.insert(key.into(), value);
        }
    };
    put("name", json!(pod::CONTAINER_NAME), true);
    put("image", json!(spec.image), spec.image.is_some());
    put("command", json!(spec.command), !spec.command.is_empty());
    put("args", json!(spec.args), !spec.args.is_empty());
    put("workingDir", json!(spec.working_dir), spec.working_dir.is_some());
    put("env", json!(spec.env), !spec.env.is_empty());
    put("resources", json!(spec.resources), true);
    let mut pod = json!({"containers": [container], "restartPolicy": "Never"});
    if !attempt.node.is_empty() {
        pod["nodeName"] = json!(attempt.node);
    }
    if let Some(grace) = spec.termination_grace_period_seconds {
        pod["terminationGracePeriodSeconds"] = json!(grace);
    }
    pod
}

fn time(time: Option<Time>) -> Value {
    time.map_or(Value::Null, |time| json!(rfc3339(time.0)))
}

/// The phase of the pod and the state of its container.
fn state(status: &RunStatus, attempt: &Attempt) -> (&'static str, Value) {
    match (attempt.finished_at, attempt.started_at) {
        (Some(_), started) => {
            // Without a code, the program was stopped or never started.
            let code = attempt.exit_code.unwrap_or(if started.is_some() { STOPPED } else { NOT_STARTED });
            let finished = time(attempt.finished_at);
            let mut state = json!({"exitCode": code, "reason": attempt.reason, "finishedAt": finished});
            if started.is_some() {
                state["startedAt"] = time(started);
            }
            if !attempt.message.is_empty() {
                state["message"] = json!(attempt.message);
            }
            (if code == 0 { "Succeeded" } else { "Failed" }, json!({"terminated": state}))
        }
        (None, Some(_)) => ("Running", json!({"running": {"startedAt": time(attempt.started_at)}})),
        (None, None) => {
            let reason = if status.reason.is_empty() { "ContainerCreating" } else { &status.reason };
            ("Pending", json!({"waiting": {"reason": reason, "message": status.message}}))
        }
    }
}

fn status(run: &Manifest, status: &RunStatus, attempt: &Attempt) -> Value {
    let (phase, state) = state(status, attempt);
    let is_running = phase == "Running";
    let ready_since = if is_running { time(attempt.started_at) } else { time(attempt.finished_at) };
    let condition = |kind: &str, is_true: bool, since: &Value| {
        let mut condition = json!({"type": kind, "status": if is_true { "True" } else { "False" }});
        if !since.is_null() {
            condition["lastTransitionTime"] = since.clone();
        }
        if !is_true && phase == "Succeeded" {
            condition["reason"] = json!("PodCompleted");
        }
        condition
    };
    let mut pod = json!({
        "phase": phase,
        "qosClass": "BestEffort",
        "conditions": [
            condition("PodScheduled", true, &Value::Null),
            condition("Initialized", true, &Value::Null),
            condition("ContainersReady", is_running, &ready_since),
            condition("Ready", is_running, &ready_since),
        ],
        "containerStatuses": [{
            "name": pod::CONTAINER_NAME,
            "image": run.spec.image.clone().unwrap_or_default(),
            "imageID": "",
            "ready": is_running,
            "started": is_running,
            "restartCount": 0,
            "state": state,
        }],
    });
    if attempt.started_at.is_some() {
        pod["startTime"] = time(attempt.started_at);
    }
    // An attempt that did not end by itself has a reason, as an evicted pod has one.
    if attempt.finished_at.is_some() && attempt.exit_code.is_none() {
        pod["reason"] = json!(attempt.reason);
        pod["message"] = json!(attempt.message);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_show_how_far_an_attempt_is() {
        let mut run = Manifest::new("train", ["python", "train.py"]);
        run.metadata.uid = "u".into();
        let mut attempt = Attempt { number: 2, ..Attempt::default() };
        let pod = |attempt: &Attempt| of_attempt(&run, &RunStatus::default(), attempt);
        let container_state =
            |pod: &Object, name: &str| pod.at(&["status", "containerStatuses"])[0]["state"][name].clone();
        let waiting = pod(&attempt);
        assert_eq!((waiting.text(&["status", "phase"]), waiting.metadata.name.as_str()), ("Pending", "train-2"));
        assert_eq!(waiting.metadata.finalizers, [pod::FINALIZER]);
        assert_eq!(waiting.metadata.owner_references[0].uid, "u");
        attempt.started_at = Some(Time(5_000));
        assert_eq!(container_state(&pod(&attempt), "running")["startedAt"], "1970-01-01T00:00:05Z");
        attempt.finished_at = Some(Time(9_000));
        (attempt.exit_code, attempt.reason) = (Some(3), "Error".into());
        let failed = pod(&attempt);
        assert_eq!(container_state(&failed, "terminated")["exitCode"], 3);
        assert_eq!(failed.text(&["status", "phase"]), "Failed");
        assert!(failed.metadata.finalizers.is_empty());
        attempt.exit_code = None;
        assert_eq!(pod(&attempt).text(&["status", "reason"]), "Error");
    }
}
