//! Experiments.

use axum::extract::{Extension, Path, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_access::{Access, Decision, Routes, Verb};

use super::failure::{Attempt, Failure};
use super::request::{Input, Named, Query, action, authorize, authorize_named, done, respond, unknown_action};
use super::wire::ExperimentMessage;
use crate::service::Service;

pub(super) fn routes() -> Routes<Service> {
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/experiments", access, list)
        .post("/experiments", access, create)
        .get("/experiments/{id}", access, show)
        .post("/experiments/{id}", access, act)
        .delete("/experiments/{id}", access, remove)
}

/// An experiment in a request. Fields that the server sets are ignored.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct NewExperiment {
    display_name: String,
    description: String,
    namespace: String,
    #[serde(rename = "experiment_id")]
    _id: Value,
    #[serde(rename = "created_at")]
    _created_at: Value,
    #[serde(rename = "storage_state")]
    _storage_state: Value,
    #[serde(rename = "last_run_created_at")]
    _last_run_created_at: Value,
}

async fn create(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Input(new): Input<NewExperiment>,
) -> Result<Response, Failure> {
    let namespace = service.namespace(&new.namespace);
    authorize(&decision, Verb::Create, &namespace).await?;
    let created = service.create_experiment(namespace, new.display_name, new.description).await;
    Ok(respond(&ExperimentMessage::new(&service, &created.attempt("Failed to create a experiment")?)))
}

fn named<'a>(id: &'a str, namespace: &'a str, attempt: &'a str) -> Named<'a> {
    Named { kind: "Experiment", id, namespace, attempt }
}

async fn show(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to fetch experiment";
    let experiment = service.experiment(&id).attempt(ATTEMPT)?;
    authorize_named(&decision, Verb::Get, &named(&id, &experiment.namespace, ATTEMPT)).await?;
    Ok(respond(&ExperimentMessage::new(&service, &experiment)))
}

#[derive(Serialize)]
struct List<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    experiments: Vec<ExperimentMessage<'a>>,
    #[serde(skip_serializing_if = "super::is_zero")]
    total_size: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

async fn list(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    query: Query,
) -> Result<Response, Failure> {
    let namespace = service.namespace(query.text("namespace"));
    authorize(&decision, Verb::List, &namespace).await?;
    let page = service.experiments(namespace, &query.list()?).await.attempt("List experiments failed")?;
    Ok(respond(&List {
        experiments: page.items.iter().map(|item| ExperimentMessage::new(&service, item)).collect(),
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
    let archived = match action {
        "archive" => true,
        "unarchive" => false,
        _ => return Err(unknown_action()),
    };
    let attempt = format!("Failed to {action} experiment");
    let namespace = service.experiment(id).attempt(&attempt)?.namespace;
    authorize_named(&decision, Verb::Update, &named(id, &namespace, &attempt)).await?;
    service.set_experiment_archived(id.to_owned(), archived).await.attempt(&attempt)?;
    Ok(done())
}

async fn remove(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to delete experiment";
    let namespace = service.experiment(&id).attempt(ATTEMPT)?.namespace;
    authorize_named(&decision, Verb::Delete, &named(&id, &namespace, ATTEMPT)).await?;
    service.delete_experiment(id).await.attempt(ATTEMPT)?;
    Ok(done())
}
