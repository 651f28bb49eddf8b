//! What a run is told. Fields are named as in a pod or a job, and mean the same; what only a cluster has, a single machine leaves
//! aside and says so.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ExecError;
use crate::quantity::Quantity;

/// `apiVersion` of the manifest.
pub const API_VERSION: &str = "slipway.dev/v1";
/// `kind` of the manifest.
pub const KIND: &str = "Run";
/// Bytes that a manifest may have; etcd takes 1.5 MiB for an object, status included.
pub const MAX_BYTES: usize = 512 * 1024;
/// Characters of a name: a pod's name adds the attempt's number, and host names end at 63.
const MAX_NAME: usize = 56;

/// A run to be carried out.
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
    /// What it does.
    pub spec: RunSpec,
}

/// Of an object's metadata what matters here.
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

/// Who submitted a run; an annotation.
pub const SUBMITTED_BY: &str = "slipway.dev/submitted-by";

/// What a run does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RunSpec {
    /// Name of the experiment in which it is tracked; `Default` if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// The container's image; a single machine runs the program as it finds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// As in a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Program and first arguments; in a cluster the image's own if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// More arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Where it runs: the image's own folder, or on a single machine the manifest's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Secrets and config maps whole, as in a container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<Value>,
    /// Processor, memory, GPUs, claims.
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// As in a pod: claims of devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_claims: Vec<Value>,
    /// As in a container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Value>,
    /// As in a pod.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Value>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Value>,
    /// As in a pod; its token is mounted only when it is named here.
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
    /// The container's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<Value>,
    /// As in a pod: seconds between asking it to end and ending it; 30 if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<u32>,
    /// As in a job: how often it is tried again after it failed. What was not its own fault (evicted, node lost) does not count.
    pub backoff_limit: u32,
    /// As in a job: seconds from its first start after which it is ended, retries included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<u32>,
    /// As in a job: seconds after its end when it is forgotten; never if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
    /// Ends it. The one field that may be changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where its value is, as in a container; a single machine knows `secretKeyRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<Value>,
}

/// A volume in the container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// The volume.
    pub name: String,
    /// Where.
    pub mount_path: String,
    /// `readOnly`, `subPath` and so on.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// As in a container.
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

    /// What is asked for of a resource: the request, else the limit.
    pub fn amount(&self, resource: &str) -> Option<f64> {
        self.requests.get(resource).or_else(|| self.limits.get(resource)).and_then(Quantity::value)
    }

    /// Extended resources of GPUs and how many of each: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`.
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
    /// A manifest of a program and its arguments.
    pub fn of<A: Into<String>>(name: impl Into<String>, command: impl IntoIterator<Item = A>) -> Self {
        let command = command.into_iter().map(Into::into).collect();
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            metadata: Metadata { name: name.into(), ..Metadata::default() },
            spec: RunSpec { command, ..RunSpec::default() },
        }
    }

    /// Reads YAML or JSON, and checks it.
    ///
    /// # Errors
    /// [`ExecError::Manifest`] that names the place.
    pub fn parse(text: &str) -> Result<Self, ExecError> {
        if text.len() > MAX_BYTES {
            return Err(ExecError::Manifest(format!(
                "the manifest has {} bytes, of {MAX_BYTES} that it may have",
                text.len()
            )));
        }
        let run: Self = serde_saphyr::from_str(text).map_err(|e| ExecError::Manifest(format!("the manifest: {e}")))?;
        run.check()?;
        Ok(run)
    }

    /// Checks what no executor could carry out.
    ///
    /// # Errors
    /// [`ExecError::Manifest`].
    pub fn check(&self) -> Result<(), ExecError> {
        let wrong = |text: String| Err(ExecError::Manifest(text));
        if self.api_version != API_VERSION || self.kind != KIND {
            return wrong(format!(
                "the manifest is of {} {}, and must be of {API_VERSION} {KIND}",
                self.api_version, self.kind
            ));
        }
        let (name, prefix) = (&self.metadata.name, &self.metadata.generate_name);
        if name.is_empty() && prefix.is_empty() {
            return wrong("metadata.name is missing; metadata.generateName makes one up".into());
        }
        let (field, text, most) = if name.is_empty() {
            ("metadata.generateName", prefix.trim_end_matches('-'), MAX_NAME - 6)
        } else {
            ("metadata.name", name.as_str(), MAX_NAME)
        };
        if !is_label(text) || text.len() > most {
            return wrong(format!(
                "{field} is '{text}', and must be at most {most} small letters, digits and dashes, with a letter or digit at both ends"
            ));
        }
        if !self.metadata.namespace.is_empty() && !is_label(&self.metadata.namespace) {
            return wrong(format!("metadata.namespace '{}' is no name of a namespace", self.metadata.namespace));
        }
        if self.spec.command.is_empty() && self.spec.image.is_none() {
            return wrong("spec.command is missing; without it spec.image has to bring its own".into());
        }
        for variable in &self.spec.env {
            if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
                return wrong(format!("spec.env: '{}' is no name of a variable", variable.name));
            }
            if variable.value.is_some() && variable.value_from.is_some() {
                return wrong(format!("spec.env: {} has both value and valueFrom", variable.name));
            }
        }
        let resources = &self.spec.resources;
        for (kind, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
            for (resource, quantity) in amounts {
                let value = quantity.value();
                let whole = !resource.contains('/') || value.is_some_and(|v| v.fract() == 0.0);
                if value.is_none() || !whole {
                    return wrong(format!("spec.resources.{kind}.{resource} is no quantity of it"));
                }
            }
        }
        if self.spec.active_deadline_seconds == Some(0) {
            return wrong("spec.activeDeadlineSeconds must be 1 or more".into());
        }
        Ok(())
    }

    /// Its name, made up from `generateName` where it has none.
    pub fn named(mut self) -> Self {
        if self.metadata.name.is_empty() {
            let suffix = slipway_core::ids::hex32();
            self.metadata.name = format!("{}{}", self.metadata.generate_name, &suffix[..5]);
        }
        self
    }
}

/// A DNS label (RFC 1123).
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1])
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: &str) -> String {
        let text = format!("apiVersion: slipway.dev/v1\nkind: Run\n{change}");
        Manifest::parse(&text).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_named() {
        assert!(refused("metadata: {name: Train}\nspec: {command: [a]}").contains("metadata.name is 'Train'"));
        assert!(refused("metadata: {name: a}\nspec: {}").contains("spec.command is missing"));
        assert!(refused("metadata: {name: a}\nspec: {command: [a], comand: [b]}").contains("comand"));
        assert!(refused("metadata: {name: a}\nspec: {command: [a], env: [{name: A=B}]}").contains("A=B"));
        assert!(
            refused("metadata: {name: a}\nspec: {command: [a], resources: {limits: {nvidia.com/gpu: 0.5}}}")
                .contains("nvidia.com/gpu")
        );
        assert!(
            refused("metadata: {name: a}\nspec: {command: [a], resources: {limits: {memory: much}}}")
                .contains("limits.memory")
        );
        assert!(
            refused("metadata: {name: a}\nspec: {command: [a], activeDeadlineSeconds: 0}")
                .contains("activeDeadlineSeconds")
        );
        assert!(refused("metadata: {name: a}\nspec: [").contains("the manifest"));
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
