//! Runs that are carried out, under `/api/v1/runs`: taken in, listed, followed, ended.

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
use crate::openapi::ErrorBody;

/// A namespace, when none is named.
const DEFAULT: &str = slipway_exec::local::NAMESPACE;

pub(crate) fn routes(platform: Platform) -> Routes {
    // The namespace is in the path, the query or the manifest, so the handlers decide.
    let decided = Access::DecidedByHandler;
    Routes::new()
        .get("/runs", decided, list)
        .post("/runs", decided, submit)
        .get("/runs/{namespace}/{name}", decided, show)
        .delete("/runs/{namespace}/{name}", decided, remove)
        .post("/runs/{namespace}/{name}/cancel", decided, cancel)
        .get("/runs/{namespace}/{name}/log", decided, log)
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

/// The executor, once it is certain that the caller may do this in the namespace.
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
    let missing = || ExecError::Unreachable("runs are carried out by a running server that knows its callers".into());
    Ok(platform.executor.get().ok_or_else(missing)?.as_ref())
}

/// Which namespace is meant.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Where {
    /// Its name.
    namespace: Option<String>,
}

async fn list(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Query(q): Query<Where>,
) -> Result<Json<Vec<Submitted>>, Failure> {
    let executor = executor(&p, &decision, Verb::List, Resource::Runs, q.namespace.as_deref()).await?;
    Ok(Json(executor.list(q.namespace.as_deref()).await?))
}

async fn submit(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Query(q): Query<Where>,
    body: Bytes,
) -> Result<Response, Failure> {
    let text =
        std::str::from_utf8(&body).map_err(|e| ExecError::Manifest(format!("the manifest is not UTF-8: {e}")))?;
    let mut run = Manifest::parse(text)?;
    match (&q.namespace, run.metadata.namespace.as_str()) {
        (Some(asked), named) if !named.is_empty() && named != asked => {
            let text = format!("the manifest is for namespace '{named}', and the request for '{asked}'");
            return Err(ExecError::Manifest(text).into());
        }
        (Some(asked), _) => run.metadata.namespace.clone_from(asked),
        (None, "") => run.metadata.namespace = DEFAULT.into(),
        (None, _) => {}
    }
    let namespace = run.metadata.namespace.clone();
    let executor = executor(&p, &decision, Verb::Create, Resource::Runs, Some(&namespace)).await?;
    let run = executor.submit(run, decision.caller().name()).await?;
    Ok((StatusCode::CREATED, Json(run)).into_response())
}

type Name = Path<(String, String)>;

async fn show(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): Name,
) -> Result<Json<Submitted>, Failure> {
    let executor = executor(&p, &decision, Verb::Get, Resource::Runs, Some(&namespace)).await?;
    Ok(Json(executor.get(&namespace, &name).await?))
}

async fn cancel(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): Name,
) -> Result<Json<Submitted>, Failure> {
    let executor = executor(&p, &decision, Verb::Patch, Resource::Runs, Some(&namespace)).await?;
    Ok(Json(executor.cancel(&namespace, &name).await?))
}

async fn remove(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): Name,
) -> Result<StatusCode, Failure> {
    let executor = executor(&p, &decision, Verb::Delete, Resource::Runs, Some(&namespace)).await?;
    executor.remove(&namespace, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which part of a log.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Part {
    /// Which attempt, from 1; the newest if unset.
    attempt: Option<u32>,
    /// Whether to go on until the attempt ends.
    #[serde(default)]
    follow: bool,
    /// So many of its last lines; all if unset.
    tail: Option<u64>,
}

async fn log(
    State(p): State<Platform>,
    Extension(decision): Extension<Decision>,
    Path((namespace, name)): Name,
    Query(part): Query<Part>,
) -> Result<Response, Failure> {
    let executor = executor(&p, &decision, Verb::Get, Resource::RunLogs, Some(&namespace)).await?;
    let query = LogQuery { attempt: part.attempt, follow: part.follow, tail: part.tail };
    let stream = executor.logs(&namespace, &name, query).await?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, Body::from_stream(stream)).into_response())
}
