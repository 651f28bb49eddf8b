//! Routes of logged models: `/mlflow/logged-models/*`.

use axum::extract::Path;
use serde::Serialize;
use slipway_access::Routes;

use super::access::{DELETE_EXPERIMENTS, READ_EXPERIMENTS, TRACK_EXPERIMENTS};
use super::scoped::Scoped;
use super::wire::{Call, Empty, Enum, Int, List, Reply, messages};
use crate::Error;
use crate::model::{DatasetFilter, FileInfo, KeyValue, LoggedModel, OrderBy};
use crate::service::{ArtifactRoot, Tracking};

messages! {
    CreateLoggedModel {
        #[required] experiment_id: String, name: String, model_type: String, source_run_id: String,
        params: List<KeyValue>, tags: List<KeyValue>,
    }
    GetLoggedModel { allow_deleted: bool }
    Finalize { #[required] model_id: String, #[required] status: Enum }
    SetTags { tags: List<KeyValue> }
    LogParams { #[required] model_id: String, params: List<KeyValue> }
    SearchLoggedModels {
        #[required] experiment_ids: Vec<String>, filter: String, datasets: List<DatasetFilter>, max_results: Int,
        order_by: List<OrderBy>, page_token: String,
    }
    ListFolder { artifact_directory_path: String }
}

pub(super) fn routes() -> Routes<Tracking> {
    Routes::new()
        .post("/2.0/mlflow/logged-models", TRACK_EXPERIMENTS, create)
        .post("/2.0/mlflow/logged-models/search", READ_EXPERIMENTS, search)
        .get("/2.0/mlflow/logged-models/{model_id}", READ_EXPERIMENTS, find)
        .patch("/2.0/mlflow/logged-models/{model_id}", TRACK_EXPERIMENTS, finalize)
        .delete("/2.0/mlflow/logged-models/{model_id}", DELETE_EXPERIMENTS, remove)
        .patch("/2.0/mlflow/logged-models/{model_id}/tags", TRACK_EXPERIMENTS, set_tags)
        .delete("/2.0/mlflow/logged-models/{model_id}/tags/{key}", TRACK_EXPERIMENTS, delete_tag)
        .post("/2.0/mlflow/logged-models/{model_id}/params", TRACK_EXPERIMENTS, log_params)
        .get("/2.0/mlflow/logged-models/{model_id}/artifacts/directories", READ_EXPERIMENTS, list)
}

#[derive(Serialize)]
struct One {
    model: LoggedModel,
}

async fn create(Scoped(t): Scoped, Call(m): Call<CreateLoggedModel>) -> Result<Reply<One>, Error> {
    let model = t
        .create_logged_model(
            &m.experiment_id.unwrap_or_default(),
            m.name,
            m.model_type.unwrap_or_default(),
            m.source_run_id.unwrap_or_default(),
            m.params.map(|l| l.0).unwrap_or_default(),
            m.tags.map(|l| l.0).unwrap_or_default(),
        )
        .await?;
    Ok(Reply(One { model }))
}

async fn find(Scoped(t): Scoped, Path(id): Path<String>, Call(m): Call<GetLoggedModel>) -> Result<Reply<One>, Error> {
    Ok(Reply(One { model: t.logged_model(&id, m.allow_deleted.unwrap_or_default())? }))
}

async fn finalize(Scoped(t): Scoped, Path(id): Path<String>, Call(m): Call<Finalize>) -> Result<Reply<One>, Error> {
    let status = match m.status {
        Some(Enum::Name(name)) => name,
        Some(Enum::Number(n)) => n.to_string(),
        None => String::new(),
    };
    Ok(Reply(One { model: t.finalize_logged_model(id, status).await? }))
}

async fn remove(Scoped(t): Scoped, Path(id): Path<String>) -> Result<Reply<Empty>, Error> {
    t.delete_logged_model(id).await?;
    Ok(Reply(Empty {}))
}

async fn set_tags(Scoped(t): Scoped, Path(id): Path<String>, Call(m): Call<SetTags>) -> Result<Reply<Empty>, Error> {
    t.set_logged_model_tags(id, m.tags.map(|l| l.0).unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn delete_tag(Scoped(t): Scoped, Path((id, key)): Path<(String, String)>) -> Result<Reply<Empty>, Error> {
    t.delete_logged_model_tag(id, key).await?;
    Ok(Reply(Empty {}))
}

async fn log_params(
    Scoped(t): Scoped,
    Path(id): Path<String>,
    Call(m): Call<LogParams>,
) -> Result<Reply<Empty>, Error> {
    t.log_logged_model_params(id, m.params.map(|l| l.0).unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

#[derive(Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<LoggedModel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn search(Scoped(t): Scoped, Call(m): Call<SearchLoggedModels>) -> Result<Reply<Found>, Error> {
    let page = t
        .search_logged_models(
            &m.experiment_ids.unwrap_or_default(),
            m.filter.as_deref().unwrap_or_default(),
            &m.datasets.map(|l| l.0).unwrap_or_default(),
            m.max_results.map(|n| n.0),
            &m.order_by.map(|l| l.0).unwrap_or_default(),
            m.page_token.as_deref(),
        )
        .await?;
    Ok(Reply(Found { models: page.items, next_page_token: page.next_page_token }))
}

/// The response to a listing of artifacts.
#[derive(Serialize)]
pub(super) struct Listing {
    pub(super) root_uri: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) files: Vec<FileInfo>,
}

async fn list(Scoped(t): Scoped, Path(id): Path<String>, Call(m): Call<ListFolder>) -> Result<Reply<Listing>, Error> {
    let path = m.artifact_directory_path.unwrap_or_default();
    let (root_uri, files) = t.list_artifacts(ArtifactRoot::LoggedModel(&id), &path).await?;
    Ok(Reply(Listing { root_uri, files }))
}
