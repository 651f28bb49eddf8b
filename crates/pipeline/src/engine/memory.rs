//! How much memory the values of a run take: the inputs and outputs of tasks that other tasks can still refer to.
//!
//! A few lines of a pipeline can multiply values without end, as a loop does that gives a long text to each of its iterations. So a task
//! whose values would go beyond the limit fails, before they are copied.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::budget::Budget;
use crate::model::{Artifact, Inputs, Outputs};
use crate::value::{check_depth, weight};

use super::machine::Machine;
use super::node::NodeId;

/// Maximum bytes of the inputs and outputs of a run's tasks at one time.
const MAX_LIVE_BYTES: usize = 128 << 20;

/// Bytes of artifacts.
pub(super) fn artifacts_weight(artifacts: &[Artifact]) -> usize {
    artifacts
        .iter()
        .map(|artifact| {
            let metadata = artifact.metadata.iter().map(|(key, value)| key.len() + weight(value));
            size_of::<Artifact>() + artifact.uri.len() + metadata.sum::<usize>()
        })
        .sum()
}

fn values_weight(parameters: &BTreeMap<String, Value>, artifacts: &BTreeMap<String, Vec<Artifact>>) -> usize {
    parameters.values().map(weight).sum::<usize>()
        + artifacts.values().map(|list| artifacts_weight(list)).sum::<usize>()
}

/// Bytes of the inputs of a task.
pub(super) fn inputs_weight(inputs: &Inputs) -> usize {
    values_weight(&inputs.parameters, &inputs.artifacts)
}

fn outputs_weight(outputs: &Outputs) -> usize {
    values_weight(&outputs.parameters, &outputs.artifacts)
}

impl Machine {
    /// What is left for the values of the run.
    pub(super) fn memory(&self) -> Budget {
        Budget::bytes(MAX_LIVE_BYTES, "the inputs and outputs of the tasks of the run").with_used(self.live_bytes)
    }

    /// Measures the values of a node, after a change of them.
    pub(super) fn weigh(&mut self, id: NodeId) {
        let held = self.nodes[id]
            .as_deref()
            .map_or(0, |node| inputs_weight(&node.record.inputs) + outputs_weight(&node.record.outputs));
        if self.held.len() <= id {
            self.held.resize(id + 1, 0);
        }
        self.live_bytes = self.live_bytes - self.held[id] + held;
        self.held[id] = held;
    }

    /// Fails for outputs that are too large, or too deep to be stored.
    pub(super) fn check_outputs(&self, outputs: &Outputs) -> Result<(), String> {
        self.memory().take(outputs_weight(outputs))?;
        for (name, value) in &outputs.parameters {
            check_depth(value).map_err(|reason| format!("output {name}: {reason}"))?;
        }
        let metadata = outputs.artifacts.values().flatten().flat_map(|artifact| artifact.metadata.iter());
        for (key, value) in metadata {
            check_depth(value).map_err(|reason| format!("metadata {key}: {reason}"))?;
        }
        Ok(())
    }
}
