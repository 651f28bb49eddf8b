//! What tasks of a graph wait for.

use std::collections::BTreeSet;

use crate::proto::ml_pipelines::PipelineTaskSpec;
use crate::proto::ml_pipelines::task_inputs_spec::input_artifact_spec::Kind as ArtifactSource;
use crate::proto::ml_pipelines::task_inputs_spec::input_parameter_spec::Kind as Source;

/// The tasks of the same graph that a task waits for: those that it names, and those whose outputs it needs.
pub fn dependencies(task: &PipelineTaskSpec) -> BTreeSet<&str> {
    let named = task.dependent_tasks.iter().map(String::as_str);
    named.chain(producers(task).map(|(producer, _)| producer)).collect()
}

/// Producers of a task's inputs, with the outputs that they pass.
pub(crate) fn producers(task: &PipelineTaskSpec) -> impl Iterator<Item = (&str, Option<&str>)> {
    let parameters =
        task.inputs.iter().flat_map(|inputs| inputs.parameters.values()).filter_map(|input| match &input.kind {
            Some(Source::TaskOutputParameter(output)) => {
                Some((output.producer_task.as_str(), Some(output.output_parameter_key.as_str())))
            }
            Some(Source::TaskFinalStatus(status)) => Some((status.producer_task.as_str(), None)),
            _ => None,
        });
    let artifacts =
        task.inputs.iter().flat_map(|inputs| inputs.artifacts.values()).filter_map(|input| match &input.kind {
            Some(ArtifactSource::TaskOutputArtifact(output)) => {
                Some((output.producer_task.as_str(), Some(output.output_artifact_key.as_str())))
            }
            _ => None,
        });
    parameters.chain(artifacts)
}
