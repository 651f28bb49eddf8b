//! Queues of batch systems and placement by topology: which queue a run requests, and near which part of the network it wants its GPUs.
//! A run names its queue in `spec.queue`, or, as manifests for these systems already do, in a label or annotation of its metadata.
//!
//! Sources of the keys: Kueue `pkg/controller/constants/constants.go`; Volcano `apis/pkg/apis/scheduling/v1beta1/labels.go`; KAI scheduler
//! `pkg/common/constants/constants.go` and its migration guide for 0.6, which renamed `runai/queue`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_core::dns;

use crate::ExecError;

/// Label with the name of Kueue's `LocalQueue`.
pub const KUEUE_QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Label with the name of Kueue's `WorkloadPriorityClass`.
pub const KUEUE_PRIORITY_CLASS: &str = "kueue.x-k8s.io/priority-class";
/// Annotation with the name of Volcano's queue.
pub const VOLCANO_QUEUE: &str = "scheduling.volcano.sh/queue-name";
/// Label with the name of KAI's queue.
pub const KAI_QUEUE: &str = "kai.scheduler/queue";
/// The same label before KAI 0.6.
pub const KAI_QUEUE_BEFORE_0_6: &str = "runai/queue";

/// Node label with the NVLink domain: the cluster's UUID and the clique's id (NVIDIA's GPU feature discovery).
const NVLINK_DOMAIN_LABEL: &str = "nvidia.com/gpu.clique";
/// Names of topology levels, and the node labels that they stand for.
const LEVELS: [(&str, &str); 4] = [
    ("nvlink-domain", NVLINK_DOMAIN_LABEL),
    ("node", "kubernetes.io/hostname"),
    ("zone", "topology.kubernetes.io/zone"),
    ("region", "topology.kubernetes.io/region"),
];
/// Maximum characters of a label's value, and of the part of a label's key after the slash.
const MAX_LABEL_CHARS: usize = 63;

/// A system that decides when queued work may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueSystem {
    /// Kueue: admits pods to quotas and leaves their placement to the scheduler of the cluster.
    Kueue,
    /// Volcano: a scheduler with queues and pod groups.
    Volcano,
    /// NVIDIA's KAI scheduler.
    Kai,
}

impl QueueSystem {
    /// Every supported system.
    pub const ALL: [Self; 3] = [Self::Kueue, Self::Volcano, Self::Kai];

    /// The name in manifests: `kueue`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kueue => "kueue",
            Self::Volcano => "volcano",
            Self::Kai => "kai",
        }
    }

    /// The API group whose presence shows that the system is installed in a cluster.
    pub fn api_group(self) -> &'static str {
        match self {
            Self::Kueue => "kueue.x-k8s.io",
            Self::Volcano => "scheduling.volcano.sh",
            Self::Kai => "scheduling.run.ai",
        }
    }
}

impl std::fmt::Display for QueueSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for QueueSystem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|s| s.name() == text);
        found.ok_or_else(|| format!("'{text}' is not a queue system; expected kueue, volcano or kai"))
    }
}

/// Where the pods of a run are placed. Exactly one field is set.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Topology {
    /// Level within which all pods should be: `nvlink-domain`, `node`, `zone`, `region`, or the key of a node label. The run starts
    /// elsewhere if that is impossible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred: Option<String>,
    /// Level within which all pods must be; the run waits until that is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<String>,
}

impl Topology {
    /// The node label of the level, and whether it is required.
    ///
    /// # Errors
    /// [`ExecError::Manifest`] if not exactly one field is set, or if it is neither a level nor a key of a label.
    pub fn label(&self) -> Result<(&str, bool), ExecError> {
        let (field, level, is_required) = match (&self.preferred, &self.required) {
            (Some(level), None) => ("preferred", level, false),
            (None, Some(level)) => ("required", level, true),
            _ => {
                let text = "spec.topology must have either preferred or required, such as {preferred: nvlink-domain}";
                return Err(ExecError::Manifest(text.into()));
            }
        };
        if let Some((_, label)) = LEVELS.iter().find(|(name, _)| name == level) {
            return Ok((label, is_required));
        }
        if is_label_key(level) {
            return Ok((level, is_required));
        }
        let names = LEVELS.map(|(name, _)| name).join(", ");
        Err(ExecError::Manifest(format!(
            "spec.topology.{field} is '{level}'; use {names}, or the key of a node label with its domain, such as example.com/rack"
        )))
    }

    /// Parses `preferred=LEVEL` or `required=LEVEL`.
    ///
    /// # Errors
    /// As [`Topology::label`].
    pub fn parse(text: &str) -> Result<Self, ExecError> {
        let topology = match text.split_once('=') {
            Some(("preferred", level)) => Self { preferred: Some(level.into()), required: None },
            Some(("required", level)) => Self { preferred: None, required: Some(level.into()) },
            _ => {
                let text = format!("--topology {text}: expected preferred=LEVEL or required=LEVEL");
                return Err(ExecError::Manifest(text));
            }
        };
        topology.label()?;
        Ok(topology)
    }
}

/// The queue that a run waits in, or ran from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RunQueue")]
pub struct QueueStatus {
    /// Name of the queue.
    pub name: String,
    /// The system that the queue belongs to.
    pub system: QueueSystem,
    /// Position of the waiting run in the queue, from 1; absent if the system does not publish it, or if the run does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
}

/// The queue that a run requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRequest {
    /// Name of the queue.
    pub name: String,
    /// The system that the queue belongs to; `None` if the cluster's only one is meant.
    pub system: Option<QueueSystem>,
}

/// The fields of a manifest that name or refer to its queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueFields<'a> {
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) annotations: &'a BTreeMap<String, String>,
    pub(crate) queue: Option<&'a str>,
    pub(crate) system: Option<QueueSystem>,
    pub(crate) has_workload_priority_class: bool,
}

impl QueueRequest {
    /// The queue that the specification, the labels or the annotations name; `None` if they name none.
    pub(crate) fn new(fields: QueueFields<'_>) -> Result<Option<Self>, ExecError> {
        let request = Self::named(fields)?;
        let system = request.as_ref().map_or(fields.system, |r| r.system);
        match system.filter(|s| *s != QueueSystem::Kueue && fields.has_workload_priority_class) {
            Some(system) => Err(ExecError::Manifest(priority_class_message(system))),
            None => Ok(request),
        }
    }

    fn named(fields: QueueFields<'_>) -> Result<Option<Self>, ExecError> {
        let invalid = |text: String| Err(ExecError::Manifest(text));
        let mut written = [
            ("label", KUEUE_QUEUE, fields.labels.get(KUEUE_QUEUE), QueueSystem::Kueue),
            ("annotation", VOLCANO_QUEUE, fields.annotations.get(VOLCANO_QUEUE), QueueSystem::Volcano),
            ("label", KAI_QUEUE, fields.labels.get(KAI_QUEUE), QueueSystem::Kai),
            ("label", KAI_QUEUE_BEFORE_0_6, fields.labels.get(KAI_QUEUE_BEFORE_0_6), QueueSystem::Kai),
        ]
        .into_iter()
        .filter_map(|(kind, key, value, system)| Some((kind, key, value?, system)));
        let request = match (written.next(), fields.queue) {
            (None, None) => return Ok(None),
            (None, Some(queue)) => Self { name: queue.to_owned(), system: fields.system },
            (Some((kind, key, value, system)), queue) => {
                if let Some((_, other, ..)) = written.find(|(.., other)| *other != system) {
                    return invalid(format!("metadata has both {key} and {other}; a run has one queue"));
                }
                if let Some(queue) = queue.filter(|queue| queue != value) {
                    return invalid(format!("spec.queue is '{queue}', but the {kind} {key} is '{value}'"));
                }
                if let Some(named) = fields.system.filter(|named| *named != system) {
                    return invalid(format!("spec.queueSystem is {named}, but the {kind} {key} is for {system}"));
                }
                Self { name: value.clone(), system: Some(system) }
            }
        };
        if !is_queue_name(&request.name) {
            return invalid(format!(
                "the queue's name '{}' is not valid; use 1 to {MAX_LABEL_CHARS} letters, digits, '-', '_' and '.', with a letter or \
                 digit at both ends",
                request.name
            ));
        }
        Ok(Some(request))
    }
}

/// The error for a `workloadPriorityClass` in another system than Kueue.
pub fn priority_class_message(system: QueueSystem) -> String {
    format!(
        "spec.workloadPriorityClass is for kueue, but the run's queue system is {system}; use spec.priorityClassName"
    )
}

/// Whether the text can be the value of a label and thus the name of a queue.
pub fn is_queue_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=MAX_LABEL_CHARS).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// Whether the text is the key of a label with a domain: `example.com/rack`.
fn is_label_key(text: &str) -> bool {
    let Some((domain, name)) = text.split_once('/') else { return false };
    let is_domain_label = |label: &str| is_queue_name(label) && !label.contains(['_', '.']);
    domain.len() <= dns::MAX_SUBDOMAIN
        && domain.to_ascii_lowercase() == domain
        && domain.split('.').all(is_domain_label)
        && is_queue_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Manifest;

    fn request(metadata: &str, spec: &str) -> Result<Option<QueueRequest>, String> {
        let text = format!(
            "apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {{name: a, {metadata}}}\nspec: {{command: [a], {spec}}}"
        );
        let run: Manifest = serde_saphyr::from_str(&text).unwrap();
        run.queue_request().map_err(|e| e.to_string())
    }

    fn queue(name: &str, system: Option<QueueSystem>) -> Result<Option<QueueRequest>, String> {
        Ok(Some(QueueRequest { name: name.into(), system }))
    }

    #[test]
    fn queue_is_named_by_the_specification_or_by_the_labels_of_its_system() {
        assert_eq!(request("", ""), Ok(None));
        assert_eq!(request("", "queue: team"), queue("team", None));
        assert_eq!(request("", "queue: team, queueSystem: kai"), queue("team", Some(QueueSystem::Kai)));
        for (metadata, system) in [
            ("labels: {kueue.x-k8s.io/queue-name: team}", QueueSystem::Kueue),
            ("annotations: {scheduling.volcano.sh/queue-name: team}", QueueSystem::Volcano),
            ("labels: {kai.scheduler/queue: team}", QueueSystem::Kai),
            ("labels: {runai/queue: team}", QueueSystem::Kai),
        ] {
            assert_eq!(request(metadata, ""), queue("team", Some(system)), "{metadata}");
            assert_eq!(request(metadata, "queue: team"), queue("team", Some(system)), "{metadata}");
        }
    }

    #[test]
    fn contradictions_are_errors() {
        let kueue = "labels: {kueue.x-k8s.io/queue-name: team}";
        for (metadata, spec, expected) in [
            (kueue, "queue: other", "spec.queue is 'other', but the label kueue.x-k8s.io/queue-name is 'team'"),
            (
                kueue,
                "queueSystem: volcano",
                "spec.queueSystem is volcano, but the label kueue.x-k8s.io/queue-name is for kueue",
            ),
            (
                "labels: {kueue.x-k8s.io/queue-name: team}, annotations: {scheduling.volcano.sh/queue-name: team}",
                "",
                "a run has one queue",
            ),
            ("", "queue: -a", "'-a' is not valid"),
            ("", "queue: a/b", "'a/b' is not valid"),
            ("", "queue: team, queueSystem: kai, workloadPriorityClass: high", "use spec.priorityClassName"),
            ("", "queueSystem: volcano, workloadPriorityClass: high", "use spec.priorityClassName"),
        ] {
            let error = request(metadata, spec).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn topology_levels_are_names_or_labels() {
        let label = |text: &str| Topology::parse(text).map(|t| t.label().map(|(l, r)| (l.to_owned(), r)).unwrap());
        assert_eq!(label("preferred=nvlink-domain").unwrap(), ("nvidia.com/gpu.clique".into(), false));
        assert_eq!(label("required=node").unwrap(), ("kubernetes.io/hostname".into(), true));
        assert_eq!(label("required=example.com/rack").unwrap(), ("example.com/rack".into(), true));
        for text in
            ["nvlink-domain", "preferred=", "required=rack", "required=/rack", "required=Example.com/rack", "near=node"]
        {
            assert!(label(text).is_err(), "{text}");
        }
        assert!(Topology::default().label().is_err());
        let both = Topology { preferred: Some("node".into()), required: Some("node".into()) };
        assert!(both.label().unwrap_err().to_string().contains("either preferred or required"));
    }
}
