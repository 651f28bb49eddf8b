//! slipway's own view of the runs of pipelines, below `/api/v1/pipelines`: every task with its inputs, outputs and times, which Kubeflow's
//! API does not show, and logs by the path of a task.
//!
//! Invariant: a handler reads tasks or logs only after it has authorized the caller in the namespace of the run.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_access::refusal::Refusal;
use slipway_access::{Access, Decision, Resource, Routes, Verb};
use slipway_exec::ExecError;
use slipway_pipeline::Error;
use slipway_pipeline::engine::TaskRecord;
use slipway_pipeline::entity::Run;

use crate::Platform;
use crate::error_body::ErrorBody;

pub(crate) fn routes(platform: Platform) -> Routes {
    // The namespace is that of the run, so the handlers decide.
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/pipelines/runs/{run}", access, show)
        .get("/pipelines/runs/{run}/log", access, log)
        .with_state(platform)
}

struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            Error::Invalid(_) | Error::Specification(_) => StatusCode::BAD_REQUEST,
            Error::NotFound(_) | Error::Executor(ExecError::NotFound(_)) => StatusCode::NOT_FOUND,
            Error::Exists(_) | Error::NotNow(_) | Error::Conflict(_) => StatusCode::CONFLICT,
            Error::Forbidden(_) | Error::Executor(ExecError::Forbidden(_)) => StatusCode::FORBIDDEN,
            Error::Executor(ExecError::Unreachable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Error::Io { .. } | Error::Executor(_) | Error::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ErrorBody::response(status, &self.0)
    }
}

/// Finds a run, and authorizes the caller to read this resource in its namespace.
async fn run(platform: &Platform, decision: &Decision, resource: Resource, id: &str) -> Result<Run, Failure> {
    let found = platform.pipelines.run(id);
    // Without a run there is no namespace to ask for; whoever may not even list runs must not learn that.
    let namespace = found.as_ref().ok().map(|run| run.namespace.clone());
    decision.authorize(Verb::Get, resource, namespace.as_deref()).await.map_err(|refusal| match refusal {
        Refusal::Unavailable(reason) => Error::Executor(ExecError::Unreachable(reason)),
        other => Error::Forbidden(other.message()),
    })?;
    Ok(found?)
}

/// A run of a pipeline with its tasks.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PipelineRun {
    /// Id of the run.
    run_id: String,
    /// Name that users see.
    display_name: String,
    /// Name of the pipeline.
    pipeline_name: String,
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
    /// Its tasks in the order in which they began; the whole pipeline is the first one, with an empty path.
    tasks: Vec<PipelineTask>,
}

/// A task of a run.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct PipelineTask {
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

fn task(record: &TaskRecord) -> PipelineTask {
    PipelineTask {
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
    }
}

async fn show(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Json<PipelineRun>, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    let records = platform.pipelines.task_records(run.run_id.clone()).await?;
    Ok(Json(PipelineRun {
        run_id: run.run_id,
        display_name: run.display_name,
        pipeline_name: run.pipeline_name,
        namespace: run.namespace,
        state: name(run.state),
        error: run.error,
        parameters: run.config.parameters.into_iter().collect(),
        created_at: run.created_at,
        finished_at: (run.finished_at != 0).then_some(run.finished_at),
        tasks: records.iter().map(task).collect(),
    }))
}

/// Query for the log of a task.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct TaskLogParameters {
    /// Path of the task.
    task: String,
    /// Number of the attempt, from 1; the newest one if unset.
    attempt: Option<u32>,
    /// Whether to follow the log until the attempt ends.
    #[serde(default)]
    follow: bool,
}

async fn log(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    Query(query): Query<TaskLogParameters>,
) -> Result<Response, Failure> {
    let run = run(&platform, &decision, Resource::RunLogs, &id).await?;
    let log = platform.pipelines.task_log(run.run_id, &query.task, query.attempt, query.follow).await?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, Body::from_stream(log)).into_response())
}
