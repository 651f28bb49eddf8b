//! Routes of experiments: `/mlflow/experiments/*`.

use serde::Serialize;
use slipway_access::Routes;

use super::access::{CHANGE_EXPERIMENTS, DELETE_EXPERIMENTS, READ_EXPERIMENTS, TRACK_EXPERIMENTS};
use super::scoped::Scoped;
use super::wire::{Call, Empty, Enum, Int, List, Reply, messages};
use crate::Error;
use crate::model::{Experiment, KeyValue};
use crate::service::{Tracking, ViewType};

messages! {
    CreateExperiment { #[required] name: String, artifact_location: String, tags: List<KeyValue> }
    ExperimentId { #[required] experiment_id: String }
    ExperimentName { #[required] experiment_name: String }
    UpdateExperiment { #[required] experiment_id: String, #[required] new_name: String }
    SetExperimentTag { #[required] experiment_id: String, #[required] key: String, value: String }
    DeleteExperimentTag { #[required] experiment_id: String, #[required] key: String }
    SearchExperiments {
        view_type: Enum, max_results: Int, order_by: Vec<String>, filter: String, page_token: String,
    }
    SearchDatasets { experiment_ids: Vec<String> }
}

pub(super) fn routes() -> Routes<Tracking> {
    Routes::new()
        .post("/2.0/mlflow/experiments/create", TRACK_EXPERIMENTS, create)
        .get("/2.0/mlflow/experiments/get", READ_EXPERIMENTS, find)
        .get("/2.0/mlflow/experiments/get-by-name", READ_EXPERIMENTS, find_by_name)
        .post("/2.0/mlflow/experiments/search", READ_EXPERIMENTS, search)
        .get("/2.0/mlflow/experiments/search", READ_EXPERIMENTS, search)
        .post("/2.0/mlflow/experiments/delete", DELETE_EXPERIMENTS, delete)
        .post("/2.0/mlflow/experiments/restore", CHANGE_EXPERIMENTS, restore)
        .post("/2.0/mlflow/experiments/update", CHANGE_EXPERIMENTS, update)
        .post("/2.0/mlflow/experiments/set-experiment-tag", TRACK_EXPERIMENTS, set_tag)
        .post("/2.0/mlflow/experiments/delete-experiment-tag", TRACK_EXPERIMENTS, delete_tag)
        .post("/2.0/mlflow/experiments/search-datasets", READ_EXPERIMENTS, search_datasets)
        .get("/2.0/mlflow/experiments/search-datasets", READ_EXPERIMENTS, search_datasets)
        // MLflow 3.17 registers this route without the slash.
        .post("/2.0mlflow/experiments/search-datasets", READ_EXPERIMENTS, search_datasets)
        .get("/2.0mlflow/experiments/search-datasets", READ_EXPERIMENTS, search_datasets)
}

#[derive(Serialize)]
struct One {
    experiment: Experiment,
}

pub(super) fn view_type(given: Option<Enum>) -> Result<ViewType, Error> {
    match given {
        None => Ok(ViewType::ActiveOnly),
        Some(Enum::Name(name)) => match name.as_str() {
            "ACTIVE_ONLY" | "1" => Ok(ViewType::ActiveOnly),
            "DELETED_ONLY" | "2" => Ok(ViewType::DeletedOnly),
            "ALL" | "3" => Ok(ViewType::All),
            _ => Err(Error::invalid(format!("Invalid value \"{name}\" for parameter 'view_type' supplied."))),
        },
        Some(Enum::Number(2)) => Ok(ViewType::DeletedOnly),
        Some(Enum::Number(3)) => Ok(ViewType::All),
        Some(Enum::Number(_)) => Ok(ViewType::ActiveOnly),
    }
}

async fn create(Scoped(t): Scoped, Call(m): Call<CreateExperiment>) -> Result<Reply<ExperimentId>, Error> {
    let tags = m.tags.map(|t| t.0).unwrap_or_default();
    let id = t.create_experiment(m.name.unwrap_or_default(), m.artifact_location, tags).await?;
    Ok(Reply(ExperimentId { experiment_id: Some(id) }))
}

impl Serialize for ExperimentId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry("experiment_id", &self.experiment_id)?;
        map.end()
    }
}

async fn find(Scoped(t): Scoped, Call(m): Call<ExperimentId>) -> Result<Reply<One>, Error> {
    Ok(Reply(One { experiment: t.experiment(&m.experiment_id.unwrap_or_default())? }))
}

async fn find_by_name(Scoped(t): Scoped, Call(m): Call<ExperimentName>) -> Result<Reply<One>, Error> {
    Ok(Reply(One { experiment: t.experiment_by_name(&m.experiment_name.unwrap_or_default())? }))
}

#[derive(Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    experiments: Vec<Experiment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn search(Scoped(t): Scoped, Call(m): Call<SearchExperiments>) -> Result<Reply<Found>, Error> {
    let page = t
        .search_experiments(
            view_type(m.view_type)?,
            m.max_results.map_or(0, |n| n.0),
            m.filter.as_deref().unwrap_or_default(),
            &m.order_by.unwrap_or_default(),
            m.page_token.as_deref(),
        )
        .await?;
    Ok(Reply(Found { experiments: page.items, next_page_token: page.next_page_token }))
}

async fn delete(Scoped(t): Scoped, Call(m): Call<ExperimentId>) -> Result<Reply<Empty>, Error> {
    t.delete_experiment(&m.experiment_id.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn restore(Scoped(t): Scoped, Call(m): Call<ExperimentId>) -> Result<Reply<Empty>, Error> {
    t.restore_experiment(&m.experiment_id.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn update(Scoped(t): Scoped, Call(m): Call<UpdateExperiment>) -> Result<Reply<Empty>, Error> {
    t.rename_experiment(&m.experiment_id.unwrap_or_default(), m.new_name.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn set_tag(Scoped(t): Scoped, Call(m): Call<SetExperimentTag>) -> Result<Reply<Empty>, Error> {
    let (id, key) = (m.experiment_id.unwrap_or_default(), m.key.unwrap_or_default());
    t.set_experiment_tag(&id, key, m.value.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn delete_tag(Scoped(t): Scoped, Call(m): Call<DeleteExperimentTag>) -> Result<Reply<Empty>, Error> {
    t.delete_experiment_tag(&m.experiment_id.unwrap_or_default(), m.key.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

#[derive(Serialize)]
struct Datasets {
    dataset_summaries: Vec<std::collections::HashMap<&'static str, String>>,
}

async fn search_datasets(Scoped(t): Scoped, Call(m): Call<SearchDatasets>) -> Result<Reply<Datasets>, Error> {
    let dataset_summaries = t.search_datasets(&m.experiment_ids.unwrap_or_default()).await?;
    Ok(Reply(Datasets { dataset_summaries }))
}
