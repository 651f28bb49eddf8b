//! What a pod fetches and delivers, below `/api/v1/pipelines/step`.
//!
//! Invariant: a request is authenticated by the token of a run of the executor, and reaches only the step, the inputs and the outputs of
//! this run. The token is valid only during its attempt.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use slipway_access::rule::RunTokenUse;
use slipway_access::{Access, Caller, Routes, RunIdentity};
use slipway_core::{Explain, hex};
use slipway_store::StoreError;
use tokio::sync::Semaphore;

use super::artifacts::{self, Files};
use super::step::Step;
use super::{Inner, PodLauncher, pool};
use crate::error::Error;
use crate::model::{Artifact, Outcome};
use crate::repo::steps;
use crate::value;

/// Maximum bytes of an outcome: all output parameters, and the description of artifacts.
pub(crate) const MAX_OUTCOME_BYTES: usize = 8 << 20;
/// Maximum number of outcomes that are received at the same time.
const MAX_RECEIVED: usize = 4;
/// Time in which an outcome must arrive, so that a slow pod does not keep the others waiting.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a pod is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Execute this step; the URIs of its outputs begin with `outputs`.
    Execute {
        /// The step.
        step: Box<Step>,
        /// What the URIs of its outputs begin with.
        outputs: String,
    },
    /// Nothing: an earlier pod has delivered the outputs.
    Done,
}

/// A file of an artifact.
#[derive(Debug, Deserialize)]
struct FileQuery {
    /// Path in the folder; empty if the artifact is one file.
    #[serde(default)]
    path: String,
}

/// The digest of a received file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Received {
    /// SHA-256 in hexadecimal digits.
    pub(crate) sha256: String,
}

impl PodLauncher {
    /// The routes for pods.
    pub fn routes(&self) -> Routes {
        let access = Access::Authenticated(RunTokenUse::Scoped);
        Routes::new()
            .get("/api/v1/pipelines/step", access, order)
            .post("/api/v1/pipelines/step/outcome", access, deliver)
            .get("/api/v1/pipelines/step/inputs/{name}/{index}", access, list_input)
            .get("/api/v1/pipelines/step/inputs/{name}/{index}/file", access, send_input)
            .put("/api/v1/pipelines/step/outputs/{name}/{index}/file", access, receive_output)
            .with_state(Arc::clone(&self.inner))
            .merge(pool::routes(&self.inner))
    }
}

/// An error as a response.
pub(super) struct Refused(Error);

impl<E: Into<Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            Error::NotFound(_) | Error::Store(StoreError::NotFound(_) | StoreError::IsFolder(_)) => {
                StatusCode::NOT_FOUND
            }
            Error::Forbidden(_) => StatusCode::FORBIDDEN,
            Error::Invalid(_) | Error::Store(StoreError::BadPath(_)) => StatusCode::BAD_REQUEST,
            Error::Store(StoreError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(json!({ "code": self.0.code(), "message": self.0.to_string() }))).into_response()
    }
}

pub(super) fn run_of(caller: &Caller) -> Result<&RunIdentity, Error> {
    caller.run().ok_or_else(|| Error::Forbidden("only the pod of a step may use this route".into()))
}

/// The step of the caller and how it ended, if it has.
async fn find(inner: &Inner, caller: &Caller) -> Result<(Order, RunIdentity), Error> {
    let run = run_of(caller)?.clone();
    let (name, worker) = pool::step_of(&run.name);
    let (namespace, name) = (run.namespace.clone(), name.to_owned());
    let found = inner.database.read(move |c| steps::find(c, &namespace, &name)).await?;
    let row = found.ok_or_else(|| Error::NotFound(format!("run '{}' is not a step of a pipeline", run.name)))?;
    if !pool::is_current(worker, &row) {
        return Err(Error::Forbidden("the step is not executed by this worker any more".into()));
    }
    if matches!(row.outcome, Some(Outcome::Succeeded(_))) {
        return Ok((Order::Done, run));
    }
    let step = Step::parse(&row.step)?;
    let place = worker.map_or_else(|| run.attempt.to_string(), str::to_owned);
    let outputs = step.outputs(pool::step_of(&run.name).0, &place);
    Ok((Order::Execute { step: Box::new(step), outputs }, run))
}

/// The step of the caller, which must not have ended.
async fn find_step(inner: &Inner, caller: &Caller) -> Result<(Step, String, RunIdentity), Error> {
    match find(inner, caller).await? {
        (Order::Execute { step, outputs }, run) => Ok((*step, outputs, run)),
        (Order::Done, _) => Err(Error::NotFound("the step has delivered its outputs".into())),
    }
}

async fn order(State(inner): State<Arc<Inner>>, Extension(caller): Extension<Caller>) -> Result<Json<Order>, Refused> {
    Ok(Json(find(&inner, &caller).await?.0))
}

/// The path in the object store of an input of the caller.
async fn input(inner: &Inner, caller: &Caller, name: &str, index: usize) -> Result<String, Error> {
    let (step, _, run) = find_step(inner, caller).await?;
    let missing = || Error::NotFound(format!("the step has no input artifact '{name}' with index {index}"));
    let artifact = step.inputs.artifacts.get(name).and_then(|list| list.get(index)).ok_or_else(missing)?;
    artifacts::object_of(&artifact.uri, &run.namespace).map(str::to_owned).ok_or_else(missing)
}

async fn list_input(
    State(inner): State<Arc<Inner>>,
    Extension(caller): Extension<Caller>,
    Path((name, index)): Path<(String, usize)>,
) -> Result<Json<Files>, Refused> {
    let path = input(&inner, &caller, &name, index).await?;
    Ok(Json(artifacts::files(&inner.objects, &path).await?))
}

/// The path of a file of an artifact in the object store.
fn file(artifact: &str, query: &FileQuery) -> Result<String, Error> {
    if query.path.is_empty() {
        return Ok(artifact.to_owned());
    }
    if query.path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(Error::Invalid(format!("'{}' is not a path in a folder", query.path)));
    }
    Ok(format!("{artifact}/{}", query.path))
}

async fn send_input(
    State(inner): State<Arc<Inner>>,
    Extension(caller): Extension<Caller>,
    Path((name, index)): Path<(String, usize)>,
    Query(query): Query<FileQuery>,
) -> Result<Response, Refused> {
    let path = file(&input(&inner, &caller, &name, index).await?, &query)?;
    let reader = inner.objects.get(&path).await?;
    let size = reader.size;
    Ok(Body::from_stream(reader.stream(0, size)).into_response())
}

async fn receive_output(
    State(inner): State<Arc<Inner>>,
    Extension(caller): Extension<Caller>,
    Path((name, index)): Path<(String, usize)>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Result<Json<Received>, Refused> {
    let (step, outputs, run) = find_step(&inner, &caller).await?;
    if !step.paths.output_artifacts.contains_key(&name) {
        return Err(Error::NotFound(format!("the step has no output artifact '{name}'")).into());
    }
    let uri = artifacts::uri(&outputs, &name, index);
    let artifact =
        artifacts::object_of(&uri, &run.namespace).ok_or_else(|| Error::Invalid(format!("bad URI {uri}")))?;
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let body = request.into_body().into_data_stream().inspect(|piece| {
        if let Ok(piece) = piece {
            digest.update(piece);
        }
    });
    inner.objects.put(&file(artifact, &query)?, body).await?;
    Ok(Json(Received { sha256: hex::encode(digest.finish().as_ref()) }))
}

/// The outcome in a request.
async fn receive(request: Request) -> Result<Outcome, Error> {
    static RECEIVERS: Semaphore = Semaphore::const_new(MAX_RECEIVED);
    let _permit = RECEIVERS.acquire().await.map_err(|_| StoreError::Closed)?;
    let body = axum::body::to_bytes(request.into_body(), MAX_OUTCOME_BYTES);
    let body = tokio::time::timeout(RECEIVE_TIMEOUT, body).await.map_err(|_| StoreError::Closed)?;
    let body = body.map_err(|error| Error::Invalid(format!("the outcome cannot be received: {error}")))?;
    tokio::task::spawn_blocking(move || parse(&body)).await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
}

fn parse(body: &[u8]) -> Result<Outcome, Error> {
    let malformed = |reason: String| Error::Invalid(format!("the outcome is malformed: {reason}"));
    let outcome: Outcome = serde_json::from_slice(body).map_err(|error| malformed(error.to_string()))?;
    if let Outcome::Succeeded(outputs) = &outcome {
        let metadata = outputs.artifacts.values().flatten().flat_map(|artifact| artifact.metadata.values());
        outputs.parameters.values().chain(metadata).try_for_each(value::check_depth).map_err(malformed)?;
    }
    Ok(outcome)
}

/// Records how the program of the caller ended.
async fn deliver(
    State(inner): State<Arc<Inner>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<StatusCode, Refused> {
    // Refuses a worker that has lost the step.
    let (_, run) = find(&inner, &caller).await?;
    let outcome = receive(request).await?;
    if let Outcome::Succeeded(outputs) = &outcome {
        let is_foreign = |artifact: &&Artifact| {
            artifact.uri.starts_with(artifacts::SCHEME) && artifacts::object_of(&artifact.uri, &run.namespace).is_none()
        };
        if let Some(artifact) = outputs.artifacts.values().flatten().find(is_foreign) {
            return Err(Error::Invalid(format!("{} is not an artifact of this namespace", artifact.uri)).into());
        }
    }
    let key = (run.namespace.clone(), pool::step_of(&run.name).0.to_owned());
    let (namespace, name) = key.clone();
    inner.database.write(move |c| steps::set_outcome(c, &namespace, &name, &outcome)).await?;
    if let Some(active) = inner.active(&key) {
        active.changed.notify_one();
    }
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn outcomes_that_are_too_large_or_too_deep_are_refused() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let outcome = |value: &str| format!("{{\"Succeeded\":{{\"parameters\":{{\"x\":{value}}}}}}}");
        parse(outcome(&deep(value::MAX_DEPTH)).as_bytes()).unwrap();
        let error = parse(outcome(&deep(value::MAX_DEPTH + 1)).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("inside each other"), "{error}");

        let large = format!("\"{}\"", "a".repeat(MAX_OUTCOME_BYTES));
        let error = receive(Request::new(Body::from(outcome(&large)))).await.unwrap_err().to_string();
        assert!(error.contains("the outcome cannot be received"), "{error}");
        receive(Request::new(Body::from(outcome("\"a\"")))).await.unwrap();
    }
}
