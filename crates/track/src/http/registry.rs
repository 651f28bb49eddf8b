//! Routes of the model registry: `/mlflow/registered-models/*` and `/mlflow/model-versions/*`.

use serde::Serialize;
use slipway_access::Routes;

use super::access::{CHANGE_MODELS, DELETE_MODELS, READ_MODELS, TRACK_MODELS};
use super::scoped::Scoped;
use super::wire::{Call, Empty, Int, List, Reply, messages, out_of_range};
use crate::Error;
use crate::model::{KeyValue, ModelVersion, RegisteredModel};
use crate::service::{NewModelVersion, Tracking};

messages! {
    CreateModel { #[required] name: String, tags: List<KeyValue>, description: String }
    ModelName { #[required] name: String }
    DescribeModel { #[required] name: String, description: String }
    RenameModel { #[required] name: String, #[required] new_name: String }
    Search { filter: String, max_results: Int, order_by: Vec<String>, page_token: String }
    LatestVersions { #[required] name: String, stages: Vec<String> }
    SetModelTag { #[required] name: String, #[required] key: String, value: String }
    DeleteModelTag { #[required] name: String, #[required] key: String }
    SetAlias { #[required] name: String, #[required] alias: String, #[required] version: String }
    AliasName { #[required] name: String, #[required] alias: String }
    CreateVersion {
        #[required] name: String, #[required] source: String, run_id: String, tags: List<KeyValue>, run_link: String,
        description: String, model_id: String,
    }
    VersionId { #[required] name: String, #[required] version: String }
    DescribeVersion { #[required] name: String, #[required] version: String, description: String }
    Transition {
        #[required] name: String, #[required] version: String, #[required] stage: String,
        archive_existing_versions: bool,
    }
    SetVersionTag { #[required] name: String, #[required] version: String, #[required] key: String, value: String }
    DeleteVersionTag { #[required] name: String, #[required] version: String, #[required] key: String }
}

pub(super) fn routes() -> Routes<Tracking> {
    Routes::new()
        .post("/2.0/mlflow/registered-models/create", TRACK_MODELS, create_model)
        .get("/2.0/mlflow/registered-models/get", READ_MODELS, find_model)
        .patch("/2.0/mlflow/registered-models/update", TRACK_MODELS, describe_model)
        .post("/2.0/mlflow/registered-models/rename", CHANGE_MODELS, rename_model)
        .delete("/2.0/mlflow/registered-models/delete", DELETE_MODELS, delete_model)
        .get("/2.0/mlflow/registered-models/search", READ_MODELS, search_models)
        .get("/2.0/mlflow/registered-models/get-latest-versions", READ_MODELS, latest_versions)
        .post("/2.0/mlflow/registered-models/get-latest-versions", READ_MODELS, latest_versions)
        .post("/2.0/mlflow/registered-models/set-tag", TRACK_MODELS, set_model_tag)
        .delete("/2.0/mlflow/registered-models/delete-tag", TRACK_MODELS, delete_model_tag)
        .get("/2.0/mlflow/registered-models/alias", READ_MODELS, find_by_alias)
        .post("/2.0/mlflow/registered-models/alias", TRACK_MODELS, set_alias)
        .delete("/2.0/mlflow/registered-models/alias", TRACK_MODELS, delete_alias)
        .post("/2.0/mlflow/model-versions/create", TRACK_MODELS, create_version)
        .get("/2.0/mlflow/model-versions/get", READ_MODELS, find_version)
        .patch("/2.0/mlflow/model-versions/update", TRACK_MODELS, describe_version)
        .delete("/2.0/mlflow/model-versions/delete", DELETE_MODELS, delete_version)
        .get("/2.0/mlflow/model-versions/search", READ_MODELS, search_versions)
        .get("/2.0/mlflow/model-versions/get-download-uri", READ_MODELS, download_uri)
        .post("/2.0/mlflow/model-versions/transition-stage", TRACK_MODELS, transition)
        .post("/2.0/mlflow/model-versions/set-tag", TRACK_MODELS, set_version_tag)
        .delete("/2.0/mlflow/model-versions/delete-tag", TRACK_MODELS, delete_version_tag)
}

#[derive(Serialize)]
struct OneModel {
    registered_model: RegisteredModel,
}

#[derive(Serialize)]
struct OneVersion {
    model_version: ModelVersion,
}

#[derive(Serialize)]
struct Models {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    registered_models: Vec<RegisteredModel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct Versions {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_versions: Vec<ModelVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn create_model(Scoped(t): Scoped, Call(m): Call<CreateModel>) -> Result<Reply<OneModel>, Error> {
    let tags = m.tags.map(|t| t.0).unwrap_or_default();
    let registered_model = t.create_model(m.name.unwrap_or_default(), tags, m.description.unwrap_or_default()).await?;
    Ok(Reply(OneModel { registered_model }))
}

async fn find_model(Scoped(t): Scoped, Call(m): Call<ModelName>) -> Result<Reply<OneModel>, Error> {
    Ok(Reply(OneModel { registered_model: t.model(&m.name.unwrap_or_default())? }))
}

async fn describe_model(Scoped(t): Scoped, Call(m): Call<DescribeModel>) -> Result<Reply<OneModel>, Error> {
    let registered_model = t.describe_model(m.name.unwrap_or_default(), m.description.unwrap_or_default()).await?;
    Ok(Reply(OneModel { registered_model }))
}

async fn rename_model(Scoped(t): Scoped, Call(m): Call<RenameModel>) -> Result<Reply<OneModel>, Error> {
    let registered_model = t.rename_model(m.name.unwrap_or_default(), m.new_name.unwrap_or_default()).await?;
    Ok(Reply(OneModel { registered_model }))
}

async fn delete_model(Scoped(t): Scoped, Call(m): Call<ModelName>) -> Result<Reply<Empty>, Error> {
    t.delete_model(m.name.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn search_models(Scoped(t): Scoped, Call(m): Call<Search>) -> Result<Reply<Models>, Error> {
    // 100 is the default of the proto field.
    let max_results = m.max_results.map_or(100, |n| n.0);
    if max_results > 1000 {
        return Err(out_of_range("max_results", max_results, true));
    }
    let filter = m.filter.unwrap_or_default();
    let page = t.search_models(&filter, max_results, &m.order_by.unwrap_or_default(), m.page_token.as_deref()).await?;
    Ok(Reply(Models { registered_models: page.items, next_page_token: page.next_page_token }))
}

async fn latest_versions(Scoped(t): Scoped, Call(m): Call<LatestVersions>) -> Result<Reply<Versions>, Error> {
    let model_versions = t.latest_versions(&m.name.unwrap_or_default(), &m.stages.unwrap_or_default())?;
    Ok(Reply(Versions { model_versions, next_page_token: None }))
}

async fn set_model_tag(Scoped(t): Scoped, Call(m): Call<SetModelTag>) -> Result<Reply<Empty>, Error> {
    let tag = KeyValue { key: m.key.unwrap_or_default(), value: m.value.unwrap_or_default() };
    t.set_model_tag(m.name.unwrap_or_default(), tag).await?;
    Ok(Reply(Empty {}))
}

async fn delete_model_tag(Scoped(t): Scoped, Call(m): Call<DeleteModelTag>) -> Result<Reply<Empty>, Error> {
    t.delete_model_tag(m.name.unwrap_or_default(), m.key.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn set_alias(Scoped(t): Scoped, Call(m): Call<SetAlias>) -> Result<Reply<Empty>, Error> {
    let version = m.version.unwrap_or_default();
    t.set_alias(m.name.unwrap_or_default(), m.alias.unwrap_or_default(), &version).await?;
    Ok(Reply(Empty {}))
}

async fn delete_alias(Scoped(t): Scoped, Call(m): Call<AliasName>) -> Result<Reply<Empty>, Error> {
    t.delete_alias(m.name.unwrap_or_default(), m.alias.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn find_by_alias(Scoped(t): Scoped, Call(m): Call<AliasName>) -> Result<Reply<OneVersion>, Error> {
    let model_version = t.version_by_alias(&m.name.unwrap_or_default(), &m.alias.unwrap_or_default())?;
    Ok(Reply(OneVersion { model_version }))
}

async fn create_version(Scoped(t): Scoped, Call(m): Call<CreateVersion>) -> Result<Reply<OneVersion>, Error> {
    let new = NewModelVersion {
        name: m.name.unwrap_or_default(),
        source: m.source.unwrap_or_default(),
        run_id: m.run_id,
        run_link: m.run_link.unwrap_or_default(),
        description: m.description.unwrap_or_default(),
        model_id: m.model_id,
        tags: m.tags.map(|t| t.0).unwrap_or_default(),
    };
    Ok(Reply(OneVersion { model_version: t.create_version(new).await? }))
}

async fn find_version(Scoped(t): Scoped, Call(m): Call<VersionId>) -> Result<Reply<OneVersion>, Error> {
    let model_version = t.version(&m.name.unwrap_or_default(), &m.version.unwrap_or_default())?;
    Ok(Reply(OneVersion { model_version }))
}

async fn describe_version(Scoped(t): Scoped, Call(m): Call<DescribeVersion>) -> Result<Reply<OneVersion>, Error> {
    let version = m.version.unwrap_or_default();
    let model_version = t.describe_version(m.name.unwrap_or_default(), &version, m.description).await?;
    Ok(Reply(OneVersion { model_version }))
}

async fn delete_version(Scoped(t): Scoped, Call(m): Call<VersionId>) -> Result<Reply<Empty>, Error> {
    t.delete_version(m.name.unwrap_or_default(), &m.version.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn search_versions(Scoped(t): Scoped, Call(m): Call<Search>) -> Result<Reply<Versions>, Error> {
    // 200,000 is the default of the proto field.
    let max_results = m.max_results.map_or(200_000, |n| n.0);
    if max_results > 200_000 {
        return Err(out_of_range("max_results", max_results, true));
    }
    let filter = m.filter.unwrap_or_default();
    let page =
        t.search_versions(&filter, max_results, &m.order_by.unwrap_or_default(), m.page_token.as_deref()).await?;
    Ok(Reply(Versions { model_versions: page.items, next_page_token: page.next_page_token }))
}

#[derive(Serialize)]
struct DownloadUri {
    artifact_uri: String,
}

async fn download_uri(Scoped(t): Scoped, Call(m): Call<VersionId>) -> Result<Reply<DownloadUri>, Error> {
    let version = t.version(&m.name.unwrap_or_default(), &m.version.unwrap_or_default())?;
    Ok(Reply(DownloadUri { artifact_uri: version.storage_location }))
}

async fn transition(Scoped(t): Scoped, Call(m): Call<Transition>) -> Result<Reply<OneVersion>, Error> {
    let (version, stage) = (m.version.unwrap_or_default(), m.stage.unwrap_or_default());
    let archive = m.archive_existing_versions.unwrap_or_default();
    let model_version = t.transition(m.name.unwrap_or_default(), &version, &stage, archive).await?;
    Ok(Reply(OneVersion { model_version }))
}

async fn set_version_tag(Scoped(t): Scoped, Call(m): Call<SetVersionTag>) -> Result<Reply<Empty>, Error> {
    let tag = KeyValue { key: m.key.unwrap_or_default(), value: m.value.unwrap_or_default() };
    t.set_version_tag(m.name.unwrap_or_default(), &m.version.unwrap_or_default(), tag).await?;
    Ok(Reply(Empty {}))
}

async fn delete_version_tag(Scoped(t): Scoped, Call(m): Call<DeleteVersionTag>) -> Result<Reply<Empty>, Error> {
    let version = m.version.unwrap_or_default();
    t.delete_version_tag(m.name.unwrap_or_default(), &version, m.key.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}
