//! Runs, the logs of their tasks and the artifacts that these made.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use slipway_access::{Access, Decision, Routes, Verb};

use super::failure::{Attempt, Code, Failure};
use super::request::{
    Input, Named, Query, action, authorize, authorize_logs, authorize_named, done, json_response, respond,
    unknown_action,
};
use super::tasks::{Ids, task_details};
use super::upload::form_error;
use super::wire::{Details, RunMessage};
use crate::Error;
use crate::entity::{Run, RuntimeConfig, Source, StoredSpec};
use crate::proto_json::Message;
use crate::service::{ArtifactStream, NewRun, NewSource, Service};

pub(super) fn routes() -> Routes<Service> {
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/runs", access, list)
        .post("/runs", access, create)
        .get("/runs/{id}", access, show)
        .post("/runs/{id}", access, act)
        .delete("/runs/{id}", access, remove)
        .get("/runs/{run_id}/nodes/{node_id}/artifacts/{name}", access, read_artifact)
        .get("/runs/{run_id}/nodes/{node_id}/log", access, log)
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ReferenceInput {
    pipeline_id: String,
    pipeline_version_id: String,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ConfigInput {
    parameters: Map<String, Value>,
    pipeline_root: String,
}

impl From<ConfigInput> for RuntimeConfig {
    fn from(input: ConfigInput) -> Self {
        Self { parameters: input.parameters, pipeline_root: input.pipeline_root }
    }
}

/// The source that a request names in one of three fields.
pub(super) fn source(
    spec: Value,
    reference: Option<Message<ReferenceInput>>,
    version_id: String,
) -> Result<NewSource, Failure> {
    let given = usize::from(!spec.is_null()) + usize::from(reference.is_some()) + usize::from(!version_id.is_empty());
    if given > 1 {
        return Err(Failure::new(
            Code::InvalidArgument,
            "oneof pipeline_source is already set: give one of pipeline_spec, pipeline_version_reference and pipeline_version_id",
        ));
    }
    Ok(match reference {
        Some(Message(reference)) => {
            NewSource::Reference { pipeline_id: reference.pipeline_id, version_id: reference.pipeline_version_id }
        }
        None if !version_id.is_empty() => NewSource::Reference { pipeline_id: String::new(), version_id },
        None => NewSource::Inline(spec),
    })
}

/// A run in a request. Fields that the server sets are ignored.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RunInput {
    experiment_id: String,
    display_name: String,
    description: String,
    pipeline_version_id: String,
    pipeline_spec: Value,
    pipeline_version_reference: Option<Message<ReferenceInput>>,
    runtime_config: Message<ConfigInput>,
    service_account: String,
    #[serde(rename = "run_id")]
    _id: Value,
    #[serde(rename = "storage_state")]
    _storage_state: Value,
    #[serde(rename = "created_at")]
    _created_at: Value,
    #[serde(rename = "scheduled_at")]
    _scheduled_at: Value,
    #[serde(rename = "finished_at")]
    _finished_at: Value,
    #[serde(rename = "state")]
    _state: Value,
    #[serde(rename = "error")]
    _error: Value,
    #[serde(rename = "run_details")]
    _run_details: Value,
    #[serde(rename = "recurring_run_id")]
    _recurring_run_id: Value,
    #[serde(rename = "state_history")]
    _state_history: Value,
    #[serde(rename = "plugins_input")]
    _plugins_input: Value,
}

async fn create(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    query: Query,
    Input(new): Input<RunInput>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to create a new run";
    // Old clients name the experiment in the query.
    let experiment_id =
        if new.experiment_id.is_empty() { query.text("experiment_id") } else { new.experiment_id.as_str() };
    authorize_experiment(&service, &decision, Verb::Create, (experiment_id, ""), ATTEMPT).await?;
    let experiment = service.experiment_for(experiment_id, "").await.attempt(ATTEMPT)?;
    let new = NewRun {
        display_name: new.display_name,
        description: new.description,
        service_account: new.service_account,
        source: source(new.pipeline_spec, new.pipeline_version_reference, new.pipeline_version_id)?,
        config: new.runtime_config.0.into(),
    };
    let run = service.create_run(&experiment, new).await.attempt(ATTEMPT)?;
    let spec = inline_spec(&service, &run)?;
    Ok(respond(&RunMessage::new(&run, spec.as_ref())?))
}

/// The specification of a run that brought its own.
fn inline_spec(service: &Service, run: &Run) -> Result<Option<StoredSpec>, Error> {
    match &run.source {
        Source::Inline { spec } => service.specification(spec).map(Some),
        Source::Version { .. } | Source::Newest { .. } => Ok(None),
    }
}

async fn show(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to get a run";
    let run = service.run(&id).attempt(ATTEMPT)?;
    authorize_named(&decision, Verb::Get, &named(&id, &run.namespace, ATTEMPT)).await?;
    let spec = inline_spec(&service, &run).attempt(ATTEMPT)?;
    let details = details(&service, &run).await.attempt(ATTEMPT)?;
    let mut message = RunMessage::new(&run, spec.as_ref())?;
    message.run_details = details.as_deref().map(|task_details| Details { task_details });
    Ok(respond(&message))
}

/// The tasks of a run, from the cache if they have not changed since. Clients poll a run every few seconds, and it may have thousands.
async fn details(service: &Service, run: &Run) -> Result<Option<Arc<RawValue>>, Failure> {
    if run.task_changes == 0 {
        return Ok(None);
    }
    if let Some((changes, details)) = service.details.get(&run.run_id)
        && changes == run.task_changes
    {
        return Ok(Some(details));
    }
    let tasks = service.tasks(run.run_id.clone()).await?;
    let ids = Ids::new(&run.run_id, &tasks);
    let text = serde_json::to_string(&task_details(&run.run_id, &tasks, &ids));
    let details: Arc<RawValue> =
        text.and_then(RawValue::from_string).map_err(|error| Failure::new(Code::Internal, error.to_string()))?.into();
    service.details.put(run.run_id.clone(), (run.task_changes, Arc::clone(&details)));
    Ok(Some(details))
}

#[derive(Serialize)]
struct List<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    runs: Vec<RunMessage<'a>>,
    #[serde(skip_serializing_if = "super::is_zero")]
    total_size: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

fn named<'a>(id: &'a str, namespace: &'a str, attempt: &'a str) -> Named<'a> {
    Named { kind: "Run", id, namespace, attempt }
}

/// Authorizes the caller in the namespace of the experiment with this id, or without an id in this namespace. Returns the namespace.
///
/// Nothing is written before, and nothing is said about an experiment that the caller may not see.
pub(super) async fn authorize_experiment(
    service: &Service,
    decision: &Decision,
    verb: Verb,
    (experiment_id, namespace): (&str, &str),
    attempt: &str,
) -> Result<String, Failure> {
    if experiment_id.is_empty() {
        let namespace = service.namespace(namespace);
        authorize(decision, verb, &namespace).await?;
        return Ok(namespace);
    }
    let namespace = service.experiment(experiment_id).attempt(attempt)?.namespace;
    let named = Named { kind: "Experiment", id: experiment_id, namespace: &namespace, attempt };
    authorize_named(decision, verb, &named).await?;
    Ok(namespace)
}

/// Authorizes the caller to list runs or recurring runs. Returns their namespace: that of the experiment, if one is named.
pub(super) async fn authorize_list(
    service: &Service,
    decision: &Decision,
    query: &Query,
    attempt: &str,
) -> Result<String, Failure> {
    let place = (query.text("experiment_id"), query.text("namespace"));
    let namespace = authorize_experiment(service, decision, Verb::List, place, attempt).await?;
    if !place.0.is_empty() {
        service.experiment_for(place.0, place.1).await.attempt(attempt)?;
    }
    Ok(namespace)
}

async fn list(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    query: Query,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to list runs";
    let namespace = authorize_list(&service, &decision, &query, ATTEMPT).await?;
    let experiment = query.text("experiment_id").to_owned();
    let page = service.runs(namespace, experiment, &query.list()?).await.attempt(ATTEMPT)?;
    Ok(respond(&List {
        runs: page.items.iter().map(|(run, spec)| RunMessage::new(run, spec.as_ref())).collect::<Result<_, _>>()?,
        total_size: page.total,
        next_page_token: page.next_page_token,
    }))
}

async fn act(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(path): Path<String>,
) -> Result<Response, Failure> {
    let (id, action) = action(&path)?;
    if !matches!(action, "archive" | "unarchive" | "terminate" | "retry") {
        return Err(unknown_action());
    }
    let attempt = format!("Failed to {action} a run");
    let namespace = service.run(id).attempt(&attempt)?.namespace;
    authorize_named(&decision, Verb::Update, &named(id, &namespace, &attempt)).await?;
    let id = id.to_owned();
    let result = match action {
        "archive" => service.set_run_archived(id, true).await,
        "unarchive" => service.set_run_archived(id, false).await,
        "terminate" => service.terminate_run(id).await,
        _ => service.retry_run(id).await,
    };
    result.attempt(&attempt)?;
    Ok(done())
}

async fn remove(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to delete a run";
    let namespace = service.run(&id).attempt(ATTEMPT)?.namespace;
    authorize_named(&decision, Verb::Delete, &named(&id, &namespace, ATTEMPT)).await?;
    service.delete_run(id).await.attempt(ATTEMPT)?;
    Ok(done())
}

/// The content of an artifact as `{"data": BASE64}`, in pieces.
pub(super) async fn read_artifact(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path((run_id, node_id, name)): Path<(String, String, String)>,
) -> Result<Response, Response> {
    let Some(name) = name.strip_suffix(":read") else { return Err(unknown_action().into_response()) };
    let failed = |failure: Failure| form_error(failure.status(), failure.message());
    let namespace = service.run(&run_id).map_err(|error| failed(error.into()))?.namespace;
    authorize_named(&decision, Verb::Get, &named(&run_id, &namespace, "")).await.map_err(failed)?;
    let content = service.read_artifact(run_id, &node_id, name.to_owned()).await;
    let (first, rest) = content.map_err(|error| failed(error.into()))?;
    let first = stream::iter(first.map(Ok)).chain(rest).boxed();
    Ok(json_response(StatusCode::OK, Body::from_stream(base64_json(first))))
}

/// Pieces of `{"data":"BASE64"}`. Three bytes become four characters, so up to two bytes wait for the next piece.
fn base64_json(content: ArtifactStream) -> impl futures_util::Stream<Item = Result<Bytes, Error>> + Send + 'static {
    use base64::engine::general_purpose::STANDARD;

    enum Step {
        Open,
        Content(Vec<u8>),
        Closed,
    }
    stream::try_unfold((content, Step::Open), move |(mut content, step)| async move {
        let mut pending = match step {
            Step::Open => return Ok(Some((Bytes::from_static(b"{\"data\":\""), (content, Step::Content(Vec::new()))))),
            Step::Closed => return Ok(None),
            Step::Content(pending) => pending,
        };
        match content.next().await.transpose()? {
            Some(piece) => {
                pending.extend_from_slice(&piece);
                let rest = pending.split_off(pending.len() / 3 * 3);
                Ok(Some((Bytes::from(STANDARD.encode(&pending)), (content, Step::Content(rest)))))
            }
            None => Ok(Some((Bytes::from(STANDARD.encode(&pending) + "\"}"), (content, Step::Closed)))),
        }
    })
}

/// What a task wrote, as plain text; until its end with `follow=true`.
pub(super) async fn log(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path((run_id, node_id)): Path<(String, String)>,
    query: Query,
) -> Result<Response, Response> {
    let failed = |failure: Failure| form_error(failure.status(), failure.message());
    let namespace = service.run(&run_id).map_err(|error| failed(error.into()))?.namespace;
    authorize_logs(&decision, &named(&run_id, &namespace, "")).await.map_err(failed)?;
    let follow = query.flag("follow").map_err(failed)?;
    let attempt = match query.text("attempt") {
        "" => None,
        text => Some(text.parse::<u32>().map_err(|_| {
            failed(Failure::new(Code::InvalidArgument, format!("parameter attempt: {text:?} is not a number")))
        })?),
    };
    let attempted = format!("Failed to read logs for run {run_id}");
    let log = service.task_log(run_id, &node_id, attempt, follow).await.attempt(&attempted).map_err(failed)?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-cache, private")];
    Ok((headers, Body::from_stream(log)).into_response())
}
