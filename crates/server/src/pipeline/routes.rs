//! slipway's own view of the runs of pipelines, below `/api/v1/pipelines`: every task with its inputs, outputs and times, which Kubeflow's
//! API does not show, and logs by the path of a task.
//!
//! Invariant: a handler reads tasks or logs only after it has authorized the caller in the namespace of the run.

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
use slipway_pipeline::entity::Run;
use slipway_pipeline::model::TaskPath;

use super::views::{PipelineRun, PipelineTask, PipelineTasks};
use crate::Platform;
use crate::error_body::ErrorBody;

pub(crate) fn routes(platform: Platform) -> Routes {
    // The namespace is that of the run, so the handlers decide.
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/pipelines/runs/{run}", access, show)
        .get("/pipelines/runs/{run}/specification", access, specification)
        .get("/pipelines/runs/{run}/tasks", access, tasks)
        .get("/pipelines/runs/{run}/task", access, task)
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

async fn show(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Json<PipelineRun>, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    let records = platform.pipelines.task_records(run.run_id.clone()).await?;
    Ok(Json(PipelineRun::new(run, &records)))
}

/// Query for the tasks of a run.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct TasksParameters {
    /// The number of changes that the caller knows.
    after: Option<i64>,
}

async fn tasks(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    Query(query): Query<TasksParameters>,
) -> Result<Json<PipelineTasks>, Failure> {
    // The run is read before its tasks, so that its number of changes is never that of changes that the tasks lack.
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    if query.after == Some(run.task_changes) {
        return Ok(Json(PipelineTasks::new(run, None)));
    }
    let records = platform.pipelines.task_records(run.run_id.clone()).await?;
    Ok(Json(PipelineTasks::new(run, Some(&records))))
}

/// Query for a task of a run.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct TaskParameters {
    /// Path of the task.
    task: String,
}

async fn task(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    Query(query): Query<TaskParameters>,
) -> Result<Json<PipelineTask>, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    let record = platform.pipelines.task_record(run.run_id, TaskPath(query.task)).await?;
    Ok(Json(PipelineTask::from(&record)))
}

/// The compiled pipeline of a run.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PipelineSpecification {
    /// As in Kubeflow's API: the pipeline, or an object with it in `pipeline_spec` and its settings for Kubernetes in `platform_spec`.
    specification: Value,
}

async fn specification(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Json<PipelineSpecification>, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    let stored = platform.pipelines.specification(&run.spec)?;
    let specification = serde_json::from_str(&stored.text)
        .map_err(|error| Error::NotFound(format!("the stored specification of run {id} is damaged: {error}")))?;
    Ok(Json(PipelineSpecification { specification }))
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
