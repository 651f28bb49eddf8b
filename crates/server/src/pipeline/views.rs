//! What the routes of pipelines return: runs and their tasks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use slipway_pipeline::engine::TaskRecord;
use slipway_pipeline::entity::{Run, Source};
use slipway_pipeline::tracker::tracked_id;

/// A run of a pipeline without its tasks.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct PipelineRunFacts {
    /// Id of the run.
    run_id: String,
    /// Id of the tracked run that records it.
    tracked_run_id: String,
    /// Name that users see.
    display_name: String,
    /// Name of the pipeline.
    pipeline_name: String,
    /// Id of the registered pipeline, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline_id: Option<String>,
    /// Id of its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    /// Id of the experiment in Kubeflow's API.
    experiment_id: String,
    /// Id of the recurring run that started it, or empty.
    recurring_run_id: String,
    /// Namespace of the run.
    namespace: String,
    /// State, as in Kubeflow's API: `RUNNING`, `SUCCEEDED` and so on.
    state: String,
    /// Why it failed, or empty.
    error: String,
    /// Values of the pipeline's parameters.
    parameters: BTreeMap<String, Value>,
    /// When it was created, in milliseconds since the Unix epoch, as all times.
    created_at: i64,
    /// When it finished.
    finished_at: Option<i64>,
}

impl From<Run> for PipelineRunFacts {
    fn from(run: Run) -> Self {
        let (pipeline_id, version_id) = match run.source {
            Source::Version { pipeline_id, version_id } => (Some(pipeline_id), Some(version_id)),
            Source::Inline { .. } | Source::Newest { .. } => (None, None),
        };
        Self {
            tracked_run_id: tracked_id(&run.run_id, None),
            run_id: run.run_id,
            display_name: run.display_name,
            pipeline_name: run.pipeline_name,
            pipeline_id,
            version_id,
            experiment_id: run.experiment_id,
            recurring_run_id: run.recurring_run_id,
            namespace: run.namespace,
            state: name(run.state),
            error: run.error,
            parameters: run.config.parameters.into_iter().collect(),
            created_at: run.created_at,
            finished_at: (run.finished_at != 0).then_some(run.finished_at),
        }
    }
}

/// A page of runs of pipelines, the newest first.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PipelineRuns {
    /// The runs without their tasks.
    runs: Vec<PipelineRunFacts>,
    /// Number of runs on all pages.
    total: i64,
    /// Token of the next page; empty on the last one.
    next_page_token: String,
}

impl PipelineRuns {
    pub(super) fn new(runs: Vec<Run>, total: i64, next_page_token: String) -> Self {
        Self { runs: runs.into_iter().map(PipelineRunFacts::from).collect(), total, next_page_token }
    }
}

/// A run of a pipeline with its tasks.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PipelineRun {
    #[serde(flatten)]
    facts: PipelineRunFacts,
    /// Its tasks in the order in which they began; the whole pipeline is the first one, with an empty path.
    tasks: Vec<PipelineTask>,
}

impl PipelineRun {
    pub(super) fn new(run: Run, records: &[TaskRecord]) -> Self {
        Self { facts: run.into(), tasks: records.iter().map(PipelineTask::from).collect() }
    }
}

/// A run of a pipeline with the states of its tasks.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PipelineTasks {
    #[serde(flatten)]
    facts: PipelineRunFacts,
    /// Number of changes of its tasks. A request with this number in `after` gets no tasks until there are newer changes.
    changes: i64,
    /// Its tasks in the order in which they began, without their inputs and outputs; null if they have not changed.
    tasks: Option<Vec<PipelineTaskSummary>>,
}

impl PipelineTasks {
    pub(super) fn new(run: Run, records: Option<&[TaskRecord]>) -> Self {
        Self {
            changes: run.task_changes,
            facts: run.into(),
            tasks: records.map(|records| records.iter().map(PipelineTaskSummary::from).collect()),
        }
    }
}

/// A task in a list of thousands.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct PipelineTaskSummary {
    /// Names of the enclosing tasks and its own, as in `for-loop-1[0]/train`.
    path: String,
    /// `ROOT`, `DAG`, `LOOP`, `ITERATION`, `CONTAINER` or `IMPORTER`.
    kind: String,
    /// `PENDING`, `RUNNING`, `SUCCEEDED`, `CACHED`, `SKIPPED`, `FAILED` or `CANCELED`.
    state: String,
    /// Number of its newest attempt, from 1; 0 before the first.
    attempt: u32,
    /// Number of iterations of a loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    iterations: Option<usize>,
    /// When its inputs were known.
    created_at: i64,
    /// When its first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<i64>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<i64>,
}

impl From<&TaskRecord> for PipelineTaskSummary {
    fn from(record: &TaskRecord) -> Self {
        Self {
            path: record.path.0.clone(),
            kind: name(record.kind),
            state: name(record.state),
            attempt: record.attempt,
            iterations: record.iterations,
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
        }
    }
}

/// A state of a task, and when it entered it.
#[derive(Serialize, JsonSchema)]
struct PipelineTaskState {
    /// Milliseconds since the Unix epoch.
    at: i64,
    /// The state.
    state: String,
}

/// A task of a run.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PipelineTask {
    /// Names of the enclosing tasks and its own, separated by `/`; an iteration of a loop adds its index, as in `for-loop-1[0]/train`.
    path: String,
    /// Name in `taskInfo` of the compiled pipeline.
    display_name: String,
    /// `ROOT`, `DAG`, `LOOP`, `ITERATION`, `CONTAINER` or `IMPORTER`.
    kind: String,
    /// `PENDING`, `RUNNING`, `SUCCEEDED`, `CACHED`, `SKIPPED`, `FAILED` or `CANCELED`.
    state: String,
    /// Number of its newest attempt, from 1; 0 before the first.
    attempt: u32,
    /// What it was given.
    inputs: Values,
    /// What it gave.
    outputs: Values,
    /// When its inputs were known.
    created_at: i64,
    /// When its first attempt started.
    started_at: Option<i64>,
    /// When it ended.
    finished_at: Option<i64>,
    /// Why it failed.
    failure: Option<String>,
    /// The run and task whose outputs it has, if it is cached.
    cached_from: Option<String>,
    /// Every state that it had, the oldest first.
    history: Vec<PipelineTaskState>,
}

/// Parameters and artifacts by name.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PipelineValues")]
struct Values {
    /// Values of parameters.
    parameters: BTreeMap<String, Value>,
    /// Artifacts: type, place, metadata and digest.
    artifacts: BTreeMap<String, Vec<PipelineArtifact>>,
}

/// An artifact of a task.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct PipelineArtifact {
    /// Id in Kubeflow's API.
    id: String,
    /// Type, as in `system.Model`.
    schema_title: String,
    /// Where its content is.
    uri: String,
    /// Metadata.
    metadata: BTreeMap<String, Value>,
    /// Digest of its content, if known.
    digest: Option<String>,
}

/// The name of a state or kind, as serde writes it.
fn name(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

type Artifacts = BTreeMap<String, Vec<slipway_pipeline::model::Artifact>>;

fn values(parameters: &BTreeMap<String, Value>, artifacts: &Artifacts) -> Values {
    let view = |artifact: &slipway_pipeline::model::Artifact| PipelineArtifact {
        id: artifact.id.clone(),
        schema_title: artifact.schema_title.clone(),
        uri: artifact.uri.clone(),
        metadata: artifact.metadata.clone().into_iter().collect(),
        digest: artifact.digest.clone(),
    };
    let artifacts = artifacts.iter().map(|(name, list)| (name.clone(), list.iter().map(view).collect())).collect();
    Values { parameters: parameters.clone(), artifacts }
}

impl From<&TaskRecord> for PipelineTask {
    fn from(record: &TaskRecord) -> Self {
        Self {
            path: record.path.0.clone(),
            display_name: record.display_name.clone(),
            kind: name(record.kind),
            state: name(record.state),
            attempt: record.attempt,
            inputs: values(&record.inputs.parameters, &record.inputs.artifacts),
            outputs: values(&record.outputs.parameters, &record.outputs.artifacts),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            failure: record.failure.as_ref().map(|failure| failure.message.clone()),
            cached_from: record.cached_from.clone(),
            history: record
                .history
                .iter()
                .map(|(at, state)| PipelineTaskState { at: *at, state: name(state) })
                .collect(),
        }
    }
}
