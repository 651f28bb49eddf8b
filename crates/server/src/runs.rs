//! API for submitted runs, under `/api/v1/runs`: submit, list, follow, cancel and remove them.
//!
//! On one machine, each run is also an object of the Kubernetes API, with the same unique id:
//!
//! | module | contents |
//! |---|---|
//! | `reconcile` | what is to be done about a run: a pure function |
//! | `controller` | does it |
//! | `pods` | attempts as pods |
//! | `executor` | runs that are submitted otherwise than as objects |
//! | `references` | secrets and config maps for the variables of runs |
//!
//! Invariant: a handler reaches the executor only through [`executor`], which authorizes the caller in the namespace.

mod controller;
mod executor;
mod pods;
mod reconcile;
mod references;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use slipway_access::refusal::Refusal;
use slipway_access::{Access, Decision, Resource, Routes, Verb};
use slipway_exec::{ExecError, Executor, LogQuery, Manifest, Submitted};

use crate::Platform;
use crate::error_body::ErrorBody;

pub(crate) use controller::RunController;
pub(crate) use references::StoredReferences;

/// The namespace of runs that name none.
const DEFAULT_NAMESPACE: &str = slipway_exec::local::NAMESPACE;

pub(crate) fn routes(platform: Platform) -> Routes {
    // The namespace is in the path, the query or the manifest, so the handlers decide.
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/runs", access, list)
        .post("/runs", access, submit)
        .get("/runs/{namespace}/{name}", access, show)
        .delete("/runs/{namespace}/{name}", access, remove)
        .post("/runs/{namespace}/{name}/cancel", access, cancel)
        .get("/runs/{namespace}/{name}/log", access, log)
        .with_state(platform)
}

struct Failure(ExecError);

impl From<ExecError> for Failure {
    fn from(e: ExecError) -> Self {
        Self(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            ExecError::Manifest(_) | ExecError::TooLarge(_) => StatusCode::BAD_REQUEST,
            ExecError::NotFound(_) => StatusCode::NOT_FOUND,
            ExecError::Exists(_) | ExecError::NotNow(_) | ExecError::Failed(_) => StatusCode::CONFLICT,
            ExecError::Forbidden(_) => StatusCode::FORBIDDEN,
            ExecError::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
            ExecError::Spawn { .. } | ExecError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ErrorBody::response(status, &self.0)
    }
}

/// Authorizes the caller for the operation in the namespace, and returns the executor.
async fn executor<'p>(
    platform: &'p Platform,
    decision: &Decision,
    verb: Verb,
    resource: Resource,
    namespace: Option<&str>,
) -> Result<&'p dyn Executor, Failure> {
    decision.authorize(verb, resource, namespace).await.map_err(|refusal| match refusal {
        Refusal::Unavailable(reason) => ExecError::Unreachable(reason),
        other => ExecError::Forbidden(other.message()),
    })?;
    let missing = || ExecError::Unreachable("runs need a running server with authentication".into());
    Ok(platform.executor.get().ok_or_else(missing)?.as_ref())
}

/// Query for the namespace.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct NamespaceQuery {
    /// Name of the namespace.
    namespace: Option<String>,
}

async fn list(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Query(q): Query<NamespaceQuery>,
) -> Result<Json<Vec<Submitted>>, Failure> {
    let executor = executor(&p, &decision, Verb::List, Resource::Runs, q.namespace.as_deref()).await?;
    Ok(Json(executor.list(q.namespace.as_deref()).await?))
}

async fn submit(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Query(q): Query<NamespaceQuery>,
    body: Bytes,
) -> Result<Response, Failure> {
    let text =
        std::str::from_utf8(&body).map_err(|e| ExecError::Manifest(format!("the manifest is not UTF-8: {e}")))?;
    let mut run = Manifest::parse(text)?;
    match (&q.namespace, run.metadata.namespace.as_str()) {
        (Some(requested), named) if !named.is_empty() && named != requested => {
            let text = format!("the manifest is for namespace '{named}', but the request is for '{requested}'");
            return Err(ExecError::Manifest(text).into());
        }
        (Some(requested), _) => run.metadata.namespace.clone_from(requested),
        (None, "") => run.metadata.namespace = DEFAULT_NAMESPACE.into(),
        (None, _) => {}
    }
    let namespace = run.metadata.namespace.clone();
    let executor = executor(&p, &decision, Verb::Create, Resource::Runs, Some(&namespace)).await?;
    let run = executor.submit(run, decision.caller().name()).await?;
    Ok((StatusCode::CREATED, Json(run)).into_response())
}

type RunPath = Path<(String, String)>;

async fn show(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): RunPath,
) -> Result<Json<Submitted>, Failure> {
    let executor = executor(&p, &decision, Verb::Get, Resource::Runs, Some(&namespace)).await?;
    Ok(Json(executor.get(&namespace, &name).await?))
}

async fn cancel(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): RunPath,
) -> Result<Json<Submitted>, Failure> {
    let executor = executor(&p, &decision, Verb::Patch, Resource::Runs, Some(&namespace)).await?;
    Ok(Json(executor.cancel(&namespace, &name).await?))
}

async fn remove(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): RunPath,
) -> Result<StatusCode, Failure> {
    let executor = executor(&p, &decision, Verb::Delete, Resource::Runs, Some(&namespace)).await?;
    executor.remove(&namespace, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Query for a log.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct LogParameters {
    /// Number of the attempt, from 1; the newest one if unset.
    attempt: Option<u32>,
    /// Whether to follow the log until the attempt ends.
    #[serde(default)]
    follow: bool,
    /// Number of last lines to return; all lines if unset.
    tail: Option<u64>,
}

async fn log(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): RunPath,
    Query(parameters): Query<LogParameters>,
) -> Result<Response, Failure> {
    let executor = executor(&p, &decision, Verb::Get, Resource::RunLogs, Some(&namespace)).await?;
    let LogParameters { attempt, follow, tail } = parameters;
    let query = LogQuery { attempt, follow, tail, ..LogQuery::default() };
    let stream = executor.logs(&namespace, &name, query).await?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, Body::from_stream(stream)).into_response())
}
