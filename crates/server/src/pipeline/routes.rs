//! slipway's own view of the runs of pipelines, below `/api/v1/pipelines`: every task with its inputs, outputs and times, which Kubeflow's
//! API does not show, what a compiled pipeline says, what a run used, and logs and artifacts by the path of a task.
//!
//! Invariant: a handler reads tasks or logs only after it has authorized the caller in the namespace of the run.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_access::refusal::Refusal;
use slipway_access::{Access, Decision, Resource, Routes, Verb, confine};
use slipway_core::clock::now_ms;
use slipway_exec::ExecError;
use slipway_pipeline::Error;
use slipway_pipeline::entity::Run;
use slipway_pipeline::listing::ListRequest;
use slipway_pipeline::model::TaskPath;
use slipway_pipeline::outline::{Environment, Outline, container_at};
use slipway_pipeline::service::Side;
use slipway_pipeline::usage::Usage;

use super::usage::{MeasuredGpus, PipelineUsage};
use super::views::{PipelineRun, PipelineRuns, PipelineTask, PipelineTasks};
use crate::Platform;
use crate::error_body::ErrorBody;

pub(crate) fn routes(platform: Platform) -> Routes {
    // The namespace is that of the run, so the handlers decide.
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/pipelines/runs", access, list)
        .get("/pipelines/runs/{run}", access, show)
        .get("/pipelines/runs/{run}/specification", access, specification)
        .get("/pipelines/runs/{run}/outline", access, outline_of_run)
        .get("/pipelines/runs/{run}/usage", access, usage)
        .get("/pipelines/runs/{run}/tasks", access, tasks)
        .get("/pipelines/runs/{run}/task", access, task)
        .get("/pipelines/runs/{run}/environment", access, environment)
        .get("/pipelines/runs/{run}/artifact", access, artifact)
        .get("/pipelines/runs/{run}/log", access, log)
        .get("/pipelines/definitions/{pipeline}/versions/{version}/outline", access, outline_of_version)
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

/// Authorizes the caller to read this resource in the namespace of what was found.
async fn authorized<T>(
    decision: &Decision,
    resource: Resource,
    found: Result<T, Error>,
    namespace: impl FnOnce(&T) -> &str,
) -> Result<T, Failure> {
    if let Ok(named) = &found
        && authorize(decision, Verb::Get, resource, Some(namespace(named))).await.is_ok()
    {
        return Ok(found?);
    }
    // What does not exist has no namespace to ask for. Whoever may not read all of them gets the same answer for what is another tenant's.
    authorize(decision, Verb::Get, resource, None).await?;
    Ok(found?)
}

async fn authorize(
    decision: &Decision,
    verb: Verb,
    resource: Resource,
    namespace: Option<&str>,
) -> Result<(), Failure> {
    let refused = |refusal| match refusal {
        Refusal::Unavailable(reason) => Error::Executor(ExecError::Unreachable(reason)),
        other => Error::Forbidden(other.message()),
    };
    Ok(decision.authorize(verb, resource, namespace).await.map_err(refused)?)
}

/// Finds a run, and authorizes the caller to read this resource in its namespace.
async fn run(platform: &Platform, decision: &Decision, resource: Resource, id: &str) -> Result<Run, Failure> {
    authorized(decision, resource, platform.pipelines.run(id), |run| &run.namespace).await
}

/// Query for runs.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct RunsParameters {
    /// Namespace of the runs; that of the installation if empty.
    namespace: String,
    /// Id of their experiment in Kubeflow's API; all if empty.
    experiment: String,
    /// Filter in JSON, as Kubeflow's API has it: `{"predicates": [{"operation": "EQUALS", "key": "state", "string_value": "FAILED"}]}`.
    filter: String,
    /// Maximum number of runs; at most 200.
    page_size: i64,
    /// Token of the page; empty for the first one.
    page_token: String,
}

async fn list(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Query(query): Query<RunsParameters>,
) -> Result<Json<PipelineRuns>, Failure> {
    let service = &platform.pipelines;
    let namespace = match query.experiment.as_str() {
        "" => service.namespace(&query.namespace),
        id => {
            authorized(&decision, Resource::Runs, service.experiment(id), |experiment| &experiment.namespace)
                .await?
                .namespace
        }
    };
    authorize(&decision, Verb::List, Resource::Runs, Some(&namespace)).await?;
    if !query.experiment.is_empty() {
        service.experiment_for(&query.experiment, &query.namespace).await?;
    }
    let request = ListRequest {
        page_token: query.page_token,
        page_size: query.page_size,
        sort_by: "created_at desc".into(),
        filter: query.filter,
    };
    let page = service.list_runs(namespace, query.experiment, &request).await?;
    Ok(Json(PipelineRuns::new(page.items, page.total, page.next_page_token)))
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

async fn outline_of_run(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Json<Outline>, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    Ok(Json(Outline::new(&platform.pipelines.document(&run.spec).await?)))
}

async fn outline_of_version(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((pipeline, version)): Path<(String, String)>,
) -> Result<Json<Outline>, Failure> {
    let found = platform.pipelines.pipeline(&pipeline);
    authorized(&decision, Resource::Runs, found, |pipeline| &pipeline.namespace).await?;
    let (version, _) = platform.pipelines.version(&pipeline, &version)?;
    Ok(Json(Outline::new(&platform.pipelines.document(&version.spec).await?)))
}

async fn usage(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Json<PipelineUsage>, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    let document = platform.pipelines.document(&run.spec).await?;
    let records = platform.pipelines.task_records(run.run_id.clone()).await?;
    let reserved = Usage::new(&document, &records, now_ms());
    let measured = MeasuredGpus::of_run(&platform.tracking, &run.run_id).await;
    Ok(Json(PipelineUsage { reserved, measured }))
}

async fn environment(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    Query(query): Query<TaskParameters>,
) -> Result<Json<Environment>, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    let (path, service) = (TaskPath(query.task), &platform.pipelines);
    let document = service.document(&run.spec).await?;
    let container = container_at(&document, &path)
        .ok_or_else(|| Error::NotFound(format!("task {} of run {id} executes no container", path.0)))?;
    // A task that has not begun has no inputs yet.
    let record = service.task_record(run.run_id, path).await.ok();
    Ok(Json(Environment::new(container, &record.map(|record| record.inputs).unwrap_or_default())))
}

/// Query for the content of an artifact.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct ArtifactParameters {
    /// Path of the task.
    task: String,
    /// Whether the task was given the artifact, or gave it.
    of: ArtifactSide,
    /// Name of the input or output.
    name: String,
    /// Number of the artifact in a list, from 0.
    #[serde(default)]
    index: usize,
}

/// Inputs or outputs.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ArtifactSide {
    /// What a task was given.
    Inputs,
    /// What a task gave.
    Outputs,
}

/// Sends the bytes of an artifact. Browsers never show them as a page of this server.
async fn artifact(
    State(platform): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    Query(query): Query<ArtifactParameters>,
) -> Result<Response, Failure> {
    let run = run(&platform, &decision, Resource::Runs, &id).await?;
    let side = match query.of {
        ArtifactSide::Inputs => Side::Inputs,
        ArtifactSide::Outputs => Side::Outputs,
    };
    let path = TaskPath(query.task);
    let (first, rest) = platform.pipelines.read_task_artifact(&run, path, side, &query.name, query.index).await?;
    let content = stream::iter(first.map(Ok)).chain(rest);
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CONTENT_DISPOSITION, "attachment")];
    let mut response = (headers, Body::from_stream(content)).into_response();
    confine(response.headers_mut());
    Ok(response)
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
