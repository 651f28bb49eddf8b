//! What the pods of attempts have in common, whether they are pods of a cluster or views of processes on one machine.

use serde_json::{Map, Value, json};

use crate::manifest::{API_VERSION, KIND, Metadata};

/// Label on every pod and secret of a run. Its value is the name of the run.
pub const RUN_LABEL: &str = "slipway.dev/run";
/// Label with the unique id of the run, which distinguishes it from earlier runs of the same name.
pub const UID_LABEL: &str = "slipway.dev/run-uid";
/// Label with the number of the attempt.
pub const ATTEMPT_LABEL: &str = "slipway.dev/attempt";
/// Finalizer that keeps a pod until its end is recorded, as `batch.kubernetes.io/job-tracking` does for a job.
pub const FINALIZER: &str = "slipway.dev/run";
/// Name of the container.
pub const CONTAINER_NAME: &str = "main";

/// The name of an attempt's pod.
pub fn name(run: &str, attempt: u32) -> String {
    format!("{run}-{attempt}")
}

/// The owner reference to a run.
pub fn owner(run: &Metadata) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": KIND, "name": run.name, "uid": run.uid,
        "controller": true, "blockOwnerDeletion": false,
    })
}

/// Labels of the pod and the secret of an attempt.
pub fn labels(run: &Metadata, attempt: u32) -> Map<String, Value> {
    let mut labels = Map::new();
    labels.insert("app.kubernetes.io/managed-by".into(), json!("slipway"));
    labels.insert(RUN_LABEL.into(), json!(run.name));
    labels.insert(UID_LABEL.into(), json!(run.uid));
    labels.insert(ATTEMPT_LABEL.into(), json!(attempt.to_string()));
    labels
}
