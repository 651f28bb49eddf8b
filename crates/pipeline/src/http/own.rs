//! slipway's own view of a run, below `/api/v1/pipelines`: every task with its inputs, outputs and times, which Kubeflow's API does not
//! show, and logs by the path of a task.

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use slipway_access::{Access, Decision, Routes, Verb};

use super::failure::{Attempt, Code, Failure};
use super::request::{Query, authorize, authorize_logs, respond};
use crate::model::RunState;
use crate::service::Service;

/// slipway's own routes, to be nested below `/api/v1`.
pub fn own_routes(service: Service) -> Routes {
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/pipelines/runs/{id}", access, show)
        .get("/pipelines/runs/{id}/log", access, log)
        .with_state(service)
}

/// A run with its tasks.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunView {
    run_id: String,
    display_name: String,
    pipeline_name: String,
    namespace: String,
    state: RunState,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    parameters: Map<String, Value>,
    created_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<i64>,
    /// The engine's records, the outer ones first.
    tasks: Vec<Value>,
}

async fn show(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to get a run";
    let run = service.run(&id).attempt(ATTEMPT)?;
    authorize(&decision, Verb::Get, &run.namespace).await?;
    let tasks = service.tasks(run.run_id.clone()).await.attempt(ATTEMPT)?;
    let view = RunView {
        run_id: run.run_id,
        display_name: run.display_name,
        pipeline_name: run.pipeline_name,
        namespace: run.namespace,
        state: run.state,
        error: run.error,
        parameters: run.config.parameters,
        created_at: run.created_at,
        finished_at: (run.finished_at != 0).then_some(run.finished_at),
        tasks: tasks.into_iter().map(|stored| stored.row.record).collect(),
    };
    Ok(respond(&view))
}

async fn log(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to read the log of a task";
    let run = service.run(&id).attempt(ATTEMPT)?;
    authorize_logs(&decision, &run.namespace).await?;
    let task = query.text("task");
    if task.is_empty() {
        return Err(Failure::new(Code::InvalidArgument, "the query must name a task: ?task=PATH"));
    }
    let attempt = match query.text("attempt") {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Failure::new(Code::InvalidArgument, format!("parameter attempt: {text:?} is not a number from 1"))
        })?),
    };
    let log = service.task_log(run.run_id, task, attempt, query.flag("follow")?).await.attempt(ATTEMPT)?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, Body::from_stream(log)).into_response())
}
