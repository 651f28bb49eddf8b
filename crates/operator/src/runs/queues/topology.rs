//! Which object of a queue system describes a topology level. A system that knows the level chooses among its domains itself; otherwise
//! the pods carry affinities to each other, which every scheduler honours.

use serde_json::Value;
use slipway_exec::QueueSystem;

use super::Queues;
use crate::KubeError;

/// A constraint on the topology of an attempt's pods.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::runs) struct Constraint {
    /// Node label of the level: `nvidia.com/gpu.clique`.
    pub(super) label: String,
    /// Whether the pods wait until they can be placed in one domain of the level.
    pub(super) is_required: bool,
    pub(super) mechanism: Mechanism,
}

/// What expresses a constraint.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Mechanism {
    /// Affinities of the pods to each other.
    Affinity,
    /// Kueue's annotation for topology-aware scheduling.
    KueueAnnotation,
    /// KAI's annotations, with the name of its `Topology`.
    KaiTopology(String),
    /// The highest tier of Volcano's `HyperNode`s that the pods may span.
    VolcanoTier(i64),
}

impl Constraint {
    pub(super) fn affinity(label: &str, is_required: bool) -> Self {
        Self { label: label.to_owned(), is_required, mechanism: Mechanism::Affinity }
    }
}

impl Queues {
    /// The constraint for a level in the way of the system.
    pub(super) async fn constraint(
        &self,
        system: QueueSystem,
        label: &str,
        is_required: bool,
    ) -> Result<Constraint, KubeError> {
        let mechanism = match system {
            // Kueue does not admit a pod with the annotation if no topology has the level, so it must not be written on a guess.
            QueueSystem::Kueue => {
                let topologies = self.list("kueue.x-k8s.io", "Topology", "topologies").await?;
                with_level(&topologies, label).map(|_| Mechanism::KueueAnnotation)
            }
            QueueSystem::Kai => {
                let topologies = self.list("kai.scheduler", "Topology", "topologies").await?;
                with_level(&topologies, label).map(|name| Mechanism::KaiTopology(name.to_owned()))
            }
            QueueSystem::Volcano => {
                let nodes = self.list("topology.volcano.sh", "HyperNode", "hypernodes").await?;
                tier(&nodes, label).map(Mechanism::VolcanoTier)
            }
        };
        Ok(Constraint {
            mechanism: mechanism.unwrap_or(Mechanism::Affinity),
            ..Constraint::affinity(label, is_required)
        })
    }
}

/// The name of the first topology that has the level (`spec.levels[].nodeLabel` in Kueue and in KAI).
fn with_level<'a>(topologies: &'a [Value], label: &str) -> Option<&'a str> {
    let has_level = |t: &&Value| t["spec"]["levels"].as_array().into_iter().flatten().any(|l| l["nodeLabel"] == label);
    topologies.iter().find(has_level)?["metadata"]["name"].as_str()
}

/// The tier of the `HyperNode`s whose nodes share the label: those that select their members by it, or that Volcano's discovery by labels
/// created for it. If several tiers do, the lowest.
fn tier(nodes: &[Value], label: &str) -> Option<i64> {
    let is_of_level = |node: &&Value| {
        let mut members = node["spec"]["members"].as_array().into_iter().flatten();
        node["metadata"]["labels"][label].is_string()
            || members.any(|m| m["selector"]["labelMatch"]["matchLabels"][label].is_string())
    };
    nodes.iter().filter(is_of_level).filter_map(|n| n["spec"]["tier"].as_i64()).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tier_is_that_of_the_hypernodes_of_the_label() {
        let member = |labels: Value| json!([{"type": "Node", "selector": {"labelMatch": {"matchLabels": labels}}}]);
        let nodes = [
            json!({"metadata": {"name": "rack"}, "spec": {"tier": 2, "members": [{"type": "HyperNode", "selector": {"exactMatch": {"name": "a"}}}]}}),
            json!({"metadata": {"name": "a"}, "spec": {"tier": 1, "members": member(json!({"nvidia.com/gpu.clique": "c.1"}))}}),
            json!({"metadata": {"name": "z", "labels": {"topology.kubernetes.io/zone": "z"}}, "spec": {"tier": 3}}),
        ];
        assert_eq!(tier(&nodes, "nvidia.com/gpu.clique"), Some(1));
        assert_eq!(tier(&nodes, "topology.kubernetes.io/zone"), Some(3));
        assert_eq!(tier(&nodes, "kubernetes.io/hostname"), None);
    }
}
