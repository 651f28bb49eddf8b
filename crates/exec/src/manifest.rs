//! The manifest of a run. Its fields have the names and meanings of the fields of a Kubernetes pod or job. On a single machine, fields
//! that need a cluster are ignored with a warning, or rejected.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_core::dns;

use crate::ExecError;
use crate::data::{self, DataVolume, Source};
use crate::quantity::Quantity;
use crate::queueing::{QueueFields, QueueRequest, QueueSystem, Topology};

/// Value of `apiVersion` in a manifest.
pub const API_VERSION: &str = "slipway.dev/v1";
/// Value of `kind` in a manifest.
pub const KIND: &str = "Run";
/// The definition of the kind as a custom resource, in YAML: its schema, its rules and its columns.
pub const DEFINITION: &str = include_str!("../../../deploy/helm/slipway/files/runs.yaml");
/// Maximum bytes of a manifest. etcd limits an object, including its status, to 1.5 MiB.
pub const MAX_BYTES: usize = 512 * 1024;
/// Maximum characters of a name. The name of a pod appends the attempt's number, and host names are limited to 63 characters.
const MAX_NAME_CHARS: usize = 56;

/// A run, as its author describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RunManifest")]
pub struct Manifest {
    /// `slipway.dev/v1`.
    pub api_version: String,
    /// `Run`.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: Metadata,
    /// The program and how to run it.
    pub spec: RunSpec,
}

/// The fields of a Kubernetes object's metadata that slipway uses.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // Kubernetes' own names
#[schemars(rename = "RunMetadata")]
pub struct Metadata {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub creation_timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Annotation with the name of the user who submitted a run.
pub const SUBMITTED_BY: &str = "slipway.dev/submitted-by";
/// Annotation with the id of the tracked run that shows a run below itself.
pub const PARENT_RUN: &str = "slipway.dev/parent-run";

/// The program of a run, with its environment, resources, retries and deadline.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RunSpec {
    /// Name of the experiment in which the run is tracked; `Default` if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// Container image. Ignored on a single machine, where the program runs without a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// As in a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Program and its first arguments. If empty, a cluster runs the image's entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Arguments that follow those in `command`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Working directory. Default: the image's in a cluster, the manifest's folder on a single machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Environment variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// As in a container: sets every key of a secret or config map as a variable.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<Value>,
    /// CPU, memory, GPUs and device claims.
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// As in a pod: claims of devices. Clusters only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_claims: Vec<Value>,
    /// As in a container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Value>,
    /// As in a pod. Clusters only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<Value>,
    /// Annotations of the pod. Clusters only; a single machine ignores them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_annotations: BTreeMap<String, String>,
    /// Versions of data that the run needs. It starts when they are there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataVolume>,
    /// The repository that the run was submitted from. `slipway run submit` sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// As in a pod.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Value>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Value>,
    /// As in a pod. No service account token is mounted if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<Value>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// Name of the queue in which the run waits for its quota: a `LocalQueue` of Kueue, or a queue of Volcano or of KAI. Default: the
    /// queue of the installation for this namespace, if there is one. Clusters only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// The system that the queue belongs to. Default: the one that is installed in the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_system: Option<QueueSystem>,
    /// Name of Kueue's `WorkloadPriorityClass`, which orders the queue and does not affect the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_priority_class: Option<String>,
    /// Part of the network within which the pods of the run are placed. Clusters only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// As in a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<Value>,
    /// As in a pod: seconds between SIGTERM and SIGKILL when the run is stopped; 30 if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<u32>,
    /// As in a job: maximum number of retries after failures. Disruptions (eviction, loss of the node) do not count.
    pub backoff_limit: u32,
    /// As in a job: maximum seconds from the first start to the end, retries included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<u32>,
    /// As in a job: seconds after the end until the run is deleted; never deleted if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
    /// Cancels the run. The only field that may change after submission.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
}

/// An environment variable.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Name of the variable; must not contain `=`.
    pub name: String,
    /// Literal value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Source of the value, as in a container. A single machine supports `secretKeyRef` and `configMapKeyRef` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<Value>,
}

/// A volume mounted into the container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of a volume in `volumes`.
    pub name: String,
    /// Absolute path in the container. On a single machine the path must exist.
    pub mount_path: String,
    /// Other fields of a volume mount: `readOnly`, `subPath` and so on.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Resource requests and limits, as in a container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // Kubernetes' own names
#[schemars(rename = "ResourceRequirements")]
pub struct Resources {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Value>,
}

impl Resources {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The requested amount of a resource: its request, or its limit if there is no request.
    pub fn amount(&self, resource: &str) -> Option<f64> {
        self.requests.get(resource).or_else(|| self.limits.get(resource)).and_then(Quantity::value)
    }

    /// The extended resources for GPUs (`nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`) and the number of devices of each.
    pub fn gpus(&self) -> Vec<(&str, u32)> {
        let mut found: Vec<(&str, u32)> = Vec::new();
        for (name, quantity) in self.limits.iter().chain(&self.requests) {
            if name.starts_with("nvidia.com/") && !found.iter().any(|(n, _)| n == name) {
                found.push((name, quantity.value().unwrap_or(0.0) as u32));
            }
        }
        found
    }
}

impl Manifest {
    /// A manifest that runs a program with arguments; all other fields have their defaults.
    pub fn new<A: Into<String>>(name: impl Into<String>, command: impl IntoIterator<Item = A>) -> Self {
        let command = command.into_iter().map(Into::into).collect();
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            metadata: Metadata { name: name.into(), ..Metadata::default() },
            spec: RunSpec { command, ..RunSpec::default() },
        }
    }

    /// Parses YAML or JSON and validates the result.
    ///
    /// # Errors
    /// [`ExecError::Manifest`] that names the invalid field.
    pub fn parse(text: &str) -> Result<Self, ExecError> {
        if text.len() > MAX_BYTES {
            return Err(ExecError::Manifest(format!(
                "the manifest has {} bytes; the limit is {MAX_BYTES}",
                text.len()
            )));
        }
        let run: Self = serde_saphyr::from_str(text).map_err(|e| ExecError::Manifest(format!("the manifest: {e}")))?;
        run.check()?;
        Ok(run)
    }

    /// Validates the rules that hold for every executor.
    ///
    /// # Errors
    /// [`ExecError::Manifest`] that names the invalid field.
    pub fn check(&self) -> Result<(), ExecError> {
        let invalid = |text: String| Err(ExecError::Manifest(text));
        if self.api_version != API_VERSION || self.kind != KIND {
            return invalid(format!(
                "apiVersion and kind of the manifest are '{} {}'; expected '{API_VERSION} {KIND}'",
                self.api_version, self.kind
            ));
        }
        let (name, prefix) = (&self.metadata.name, &self.metadata.generate_name);
        if name.is_empty() && prefix.is_empty() {
            return invalid(
                "metadata.name is missing; set it, or set metadata.generateName to have a name generated".into(),
            );
        }
        let (field, text, max_chars) = if name.is_empty() {
            ("metadata.generateName", prefix.trim_end_matches('-'), MAX_NAME_CHARS - 6)
        } else {
            ("metadata.name", name.as_str(), MAX_NAME_CHARS)
        };
        if !is_label(text) || text.len() > max_chars {
            return invalid(format!(
                "{field} is '{text}'; use 1 to {max_chars} lowercase letters, digits and dashes, with a letter or digit at both ends"
            ));
        }
        if !self.metadata.namespace.is_empty() && !is_label(&self.metadata.namespace) {
            return invalid(format!("metadata.namespace '{}' is not a valid namespace name", self.metadata.namespace));
        }
        if self.spec.command.is_empty() && self.spec.image.is_none() {
            return invalid("spec.command is missing; set it, or set spec.image to run the image's entrypoint".into());
        }
        // Neither an argument nor a variable of a program can have a NUL byte.
        let has_nul = |text: &String| text.contains('\0');
        let words = [("command", &self.spec.command), ("args", &self.spec.args)];
        if let Some((field, _)) = words.into_iter().find(|(_, words)| words.iter().any(has_nul)) {
            return invalid(format!("spec.{field} has a NUL byte"));
        }
        if self.spec.working_dir.as_ref().is_some_and(has_nul) {
            return invalid("spec.workingDir has a NUL byte".into());
        }
        for variable in &self.spec.env {
            if variable.value.as_ref().is_some_and(has_nul) {
                return invalid(format!("spec.env: the value of '{}' has a NUL byte", variable.name));
            }
            if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
                return invalid(format!("spec.env: '{}' is not a valid variable name", variable.name));
            }
            if variable.value.is_some() && variable.value_from.is_some() {
                return invalid(format!("spec.env: {} has both value and valueFrom", variable.name));
            }
        }
        let resources = &self.spec.resources;
        for (kind, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
            for (resource, quantity) in amounts {
                let value = quantity.value();
                let has_valid_fraction = !resource.contains('/') || value.is_some_and(|v| v.fract() == 0.0);
                if value.is_none() || !has_valid_fraction {
                    return invalid(format!(
                        "spec.resources.{kind}.{resource} is not a valid quantity of this resource"
                    ));
                }
            }
        }
        let mount_paths: Vec<&str> = self.spec.volume_mounts.iter().map(|mount| mount.mount_path.as_str()).collect();
        data::check(&self.spec.data, &mount_paths)?;
        self.queue_request()?;
        if let Some(topology) = &self.spec.topology {
            topology.label()?;
        }
        if self.spec.active_deadline_seconds == Some(0) {
            return invalid("spec.activeDeadlineSeconds must be 1 or more".into());
        }
        Ok(())
    }

    /// The queue that the run requests in its specification, labels or annotations; `None` if it leaves the queue to the installation.
    ///
    /// # Errors
    /// [`ExecError::Manifest`] if these contradict each other, or if a value is not valid.
    pub fn queue_request(&self) -> Result<Option<QueueRequest>, ExecError> {
        QueueRequest::new(QueueFields {
            labels: &self.metadata.labels,
            annotations: &self.metadata.annotations,
            queue: self.spec.queue.as_deref(),
            system: self.spec.queue_system,
            has_workload_priority_class: self.spec.workload_priority_class.is_some(),
        })
    }

    /// Generates a name from `generateName` if the manifest has none.
    pub fn named(mut self) -> Self {
        if self.metadata.name.is_empty() {
            let suffix = slipway_core::ids::hex32();
            self.metadata.name = format!("{}{}", self.metadata.generate_name, &suffix[..5]);
        }
        self
    }
}

fn is_label(text: &str) -> bool {
    dns::is_label(text) && text.len() <= dns::MAX_LABEL
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_error(change: &str) -> String {
        let text = format!("apiVersion: slipway.dev/v1\nkind: Run\n{change}");
        Manifest::parse(&text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_invalid_field() {
        assert!(parse_error("metadata: {name: Train}\nspec: {command: [a]}").contains("metadata.name is 'Train'"));
        assert!(parse_error("metadata: {name: a}\nspec: {}").contains("spec.command is missing"));
        assert!(parse_error("metadata: {name: a}\nspec: {command: [a], comand: [b]}").contains("comand"));
        assert!(parse_error("metadata: {name: a}\nspec: {command: [a], env: [{name: A=B}]}").contains("A=B"));
        assert!(
            parse_error("metadata: {name: a}\nspec: {command: [a], resources: {limits: {nvidia.com/gpu: 0.5}}}")
                .contains("nvidia.com/gpu")
        );
        assert!(
            parse_error("metadata: {name: a}\nspec: {command: [a], resources: {limits: {memory: much}}}")
                .contains("limits.memory")
        );
        assert!(
            parse_error("metadata: {name: a}\nspec: {command: [a], activeDeadlineSeconds: 0}")
                .contains("activeDeadlineSeconds")
        );
        assert!(parse_error("metadata: {name: a}\nspec: [").contains("the manifest"));
        for (spec, field) in [
            ("command: [\"a\\0\"]", "spec.command"),
            ("command: [a], args: [\"\\0\"]", "spec.args"),
            ("command: [a], workingDir: \"/\\0\"", "spec.workingDir"),
            ("command: [a], env: [{name: A, value: \"b\\0\"}]", "the value of 'A'"),
        ] {
            let error = parse_error(&format!("metadata: {{name: a}}\nspec: {{{spec}}}"));
            assert!(error.contains(field) && error.contains("NUL byte"), "{error}");
        }
    }

    #[test]
    fn gpus_are_counted_once() {
        let run = Manifest::parse(
            "apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {generateName: a-}\nspec:\n  command: [a]\n  \
             resources: {requests: {cpu: 500m, nvidia.com/gpu: 2}, limits: {nvidia.com/gpu: 2, memory: 1Gi}}",
        )
        .unwrap()
        .named();
        assert_eq!(run.spec.resources.gpus(), [("nvidia.com/gpu", 2)]);
        assert_eq!(
            (run.spec.resources.amount("cpu"), run.spec.resources.amount("memory")),
            (Some(0.5), Some(1_073_741_824.0))
        );
        assert_eq!(run.metadata.name.len(), 7);
    }
}
